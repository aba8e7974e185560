"""The order of imports: one direction, no circle, no script in a library; a light core, and a lighter front door.

Imports inside functions count as well. A package's `__init__` is a module like another.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom to the top: each may import those before it, and itself.
ROOMS = ["model", "reporting", "playing", "rows", "exporting", "learning", "training", "speed"]
ORDER = ["jaxsim_soc", "scenarios", "jaxsim", "jaxsim.audit", "jaxsim.audit.outward", "jaxsim.soc", "prompting"]
ORDER += ["grpo", *(f"grpo.{room}" for room in ROOMS), "serving", "serving.openenv", "serving.openenv.server"]
ORDER += ["jaxsim_soc_v1"]
CORE = {"jax", "jaxlib", "chex", "numpy", "pydantic", "pydantic_core", "yaml"}  # what pyproject.toml depends on
SCRIPTS = {f"grpo.{name}" for name in ("train", "evaluate", "export", "gate", "transcript")}
HEAVY = "{'torch', 'transformers', 'rich', 'scipy', 'matplotlib', 'optax', 'safetensors'"
HEAVY += ", 'gymnasium', 'fastapi', 'uvicorn'}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for package in dict.fromkeys(name.partition(".")[0] for name in ORDER)
    for path in (ROOT / package).rglob("*.py")
}


def imported(name: str, node: ast.AST) -> Iterator[str]:
    """The modules that one node imports: submodules by their own name, what is in a package by the package's."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, f"{name} imports by a relative name"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in FILES else node.module


IMPORTS = {
    name: {m for node in ast.walk(ast.parse(path.read_text("utf-8"))) for m in imported(name, node)}
    for name, path in FILES.items()
}


def rank(module: str) -> int:
    """The place of a module's package in ORDER."""
    return max((i for i, name in enumerate(ORDER) if f"{module}.".startswith(f"{name}.")), default=-1)


def closure(*roots: str) -> set[str]:
    """All own modules that importing these brings in, and their packages, but for imports inside of functions."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in FILES and name not in found:
            found.add(name)
            waiting += [*at_the_top(name), name.rpartition(".")[0]]
    return found


def at_the_top(name: str) -> set[str]:
    return {m for node in ast.parse(FILES[name].read_text("utf-8")).body for m in imported(name, node)}


def test_packages_import_in_one_direction() -> None:
    upward = [f"{a} imports {b}" for a, many in IMPORTS.items() for b in many if b in FILES and rank(b) > rank(a)]
    assert not upward


def test_every_folder_has_a_place_in_the_order_and_in_the_wheel() -> None:
    folders = {module_name(path) for path in FILES.values() if path.name == "__init__.py"}
    with open(ROOT / "pyproject.toml", "rb") as file:
        packages = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert folders == set(ORDER) == set(packages)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_which_it_touches(room: str) -> None:
    said = re.findall("`(\\w+)`", str(ast.get_docstring(ast.parse(FILES[f"grpo.{room}"].read_text("utf-8")))))
    many = {m for a in FILES if a.startswith(f"grpo.{room}.") for m in IMPORTS[a]}
    touched = {m.split(".")[1] for m in many if m.startswith("grpo.")} - {room}
    assert touched == {name for name in said if name in ROOMS}


def test_no_circle() -> None:
    try:
        TopologicalSorter({a: {b for b in many if b in FILES} for a, many in IMPORTS.items()}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_library_imports_a_script_or_a_test() -> None:
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    scripts = SCRIPTS | {name for name in FILES if name.endswith("__main__")}
    wrong = {a: found for a, many in IMPORTS.items() if (found := many & (scripts | tests))}
    assert not wrong
    scripts |= {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - set(sys.stdlib_module_names)
    assert not {a for a, many in IMPORTS.items() if many & scripts}


def test_nobody_changes_where_modules_are_found() -> None:
    folders = [ROOT / name for name in ("benchmarks", *dict.fromkeys(x.partition(".")[0] for x in ORDER))]
    files = [path for folder in folders for path in (*folder.rglob("*.py"), *folder.rglob("*.ipynb"))]
    assert not [path for path in files if "sys.path" in path.read_text("utf-8")]


def test_the_core_needs_only_what_it_depends_on() -> None:
    outside = {
        top
        for name in closure("jaxsim", "scenarios")
        for module in at_the_top(name)
        if module not in FILES and (top := module.partition(".")[0]) not in sys.stdlib_module_names
    }
    assert outside <= CORE


@pytest.mark.parametrize(
    "package", ["jaxsim", "scenarios", "prompting", "jaxsim_soc.commands", "grpo.training.command"]
)
def test_importing_brings_in_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print({HEAVY} & set(sys.modules), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", str(package not in ("scenarios", "jaxsim_soc.commands"))]


def seconds(code: str) -> float:
    """CPU time of a Python process, the least of three."""
    timed = f"import time\n{code}\nprint(time.process_time())"
    return min(float(subprocess.check_output([sys.executable, "-c", timed], text=True).split()[-1]) for _ in range(3))


def test_importing_is_quick() -> None:
    # 1.5 s on a machine to oneself. JAX takes most of it, and says how fast this one is.
    assert seconds("import jaxsim") < max(1.5, 2 * seconds("import jax"))
    assert seconds("import jaxsim_soc.commands") < 0.3
