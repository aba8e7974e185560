"""Every writer, stopped at every point of its write: the old or the new content is left, and no part of either.

`WRITERS` lists every function that opens, fills or moves a file; what is not in it fails the first test.
"""

import ast
import builtins
import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxsim
import scenarios
import scenarios.__main__ as generator
from grpo.rows import bank
from jaxsim.response import Response
from jaxsim.soc import export, ocsf
from jaxsim.soc.episodes import Alert, Cause, Episode
from jaxsim_soc import cli, json_lines, write

ROOT = Path(__file__).resolve().parents[2]
CALLS = {"write_text", "write_bytes", "save_pretrained", "savez", "savez_compressed", "save_file", "savefig", "replace"}
CALLS |= {
    "rename",
    "copyfile",
    "copytree",
    "copy",
    "GGUFWriter",
    "mkdtemp",
    "TemporaryFile",
    "open",
    "touch",
    "truncate",
}
# File::function -> why it leaves nothing half done.
WHOLE, INSIDE, LINES, SCRATCH = (
    "by itself",
    "within a part that is moved",
    "line by line, mended when read",
    "no result",
)
WRITERS = {
    "jaxsim/audit/ablation.py::main": INSIDE,
    "jaxsim/audit/planted.py::main": INSIDE,
    "jaxsim_soc/cli.py::output_folder": SCRATCH,
    "jaxsim_soc/shown.py::outlast_readers": SCRATCH,
    "jaxsim_soc/cli.py::output_path": SCRATCH,
    "jaxsim_soc/shown.py::write": SCRATCH,
    "jaxsim/audit/evaluation.py::plot": INSIDE,
    "jaxsim_soc/cli.py::write_json": INSIDE,
    "jaxsim_soc/cli.py::write_text": INSIDE,
    "jaxsim/audit/report.py::_picture": INSIDE,
    "jaxsim/audit/reward_search.py::main": INSIDE,
    "jaxsim/audit/reward_search.py::played": INSIDE,
    "jaxsim/soc/export.py::_json": INSIDE,
    "jaxsim/soc/export.py::write": INSIDE,
    "jaxsim/throughput.py::plot": INSIDE,
    "grpo/rows/bank.py::save": INSIDE,
    "grpo/rows/rows.py::save": INSIDE,
    "grpo/learning/descent.py::_keep": INSIDE,
    "grpo/learning/student.py::save_adapter": INSIDE,
    "grpo/training/loop.py::finish_adapter": INSIDE,
    "grpo/training/run_evaluation.py::base_beside": SCRATCH,
    "jaxsim_soc/json_lines.py::append": LINES,
    "jaxsim_soc/json_lines.py::resume": LINES,
    "grpo/model/adapters.py::note_base": INSIDE,
    "grpo/model/portable.py::make_portable": INSIDE,
    "grpo/model/embedded.py::_build": WHOLE,
    "grpo/model/embedded.py::_unpack": INSIDE,
    "grpo/model/embedded.py::_write_manifest": INSIDE,
    "grpo/model/embedded.py::convert": INSIDE,
    "grpo/playing/folder.py::locked": SCRATCH,
    "grpo/exporting/folder.py::replacing": WHOLE,
    "grpo/exporting/merge.py::save": INSIDE,
    "grpo/exporting/gguf_file.py::write_gguf": INSIDE,
    "grpo/learning/unsloth_backend.py::": SCRATCH,  # the jobs of a process of its own, in a folder of this run
    "grpo/learning/unsloth_backend.py::optimise": SCRATCH,
    "grpo/learning/unsloth_backend.py::write_adapter": SCRATCH,
    "grpo/exporting/llama_server.py::serving": SCRATCH,
    "jaxsim_soc/write.py::whole": WHOLE,
    "jaxsim_soc/write.py::folder": WHOLE,
    "jaxsim_soc/write.py::settle": WHOLE,
    "scenarios/__main__.py::_write_all": WHOLE,
    "scenarios/picture.py::picture": SCRATCH,  # in memory
}


def writing(call: ast.Call) -> bool:
    """Does a call open, fill or move a file?"""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    if name not in CALLS or owner == "cli":
        return False
    if name == "open":
        mode = [a.value for a in call.args[1:2] if isinstance(a, ast.Constant)]
        return owner == "" and bool(mode) and any(letter in str(mode[0]) for letter in "wax+")
    if name in ("replace", "rename", "copy", "touch"):
        return owner in ("os", "shutil", "part", "path", "model", "old")
    return True


def found() -> set[str]:
    places = set()
    for folder in ("benchmarks", "grpo", "jaxsim", "jaxsim_soc", "prompting", "scenarios"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
            for call in (c for c in ast.walk(tree) if isinstance(c, ast.Call) and writing(c)):
                inside = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
                outer = min(inside, key=lambda f: f.lineno, default=None)
                places.add(f"{path.relative_to(ROOT).as_posix()}::{outer.name if outer else ''}")
    return places


def test_every_writer_is_known() -> None:
    assert found() == set(WRITERS)


# --- stopped at every point -----------------------------------------------------------------------------------------


class Full(io.FileIO):
    """A file on a disk that fills up: `left` counts the points that are still to pass."""

    points: list[int]

    def write(self, data: Any) -> int:
        passed(self.points, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return super().write(data)


def passed(points: list[int], error: BaseException) -> None:
    points[0] -= 1
    if points[0] == 0:
        raise error


def stopping(patch: pytest.MonkeyPatch, at: int, error: BaseException) -> list[int]:
    """Let the point number `at` of all that follows fail; the count that is left says whether it came to that."""
    points = [at]
    real_open, mkdir = builtins.open, os.mkdir

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **kwargs)
        passed(points, error)
        raw = Full(file, mode.replace("b", "").replace("t", ""))
        raw.points = points
        binary = io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding=kwargs.get("encoding") or "utf-8")

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            passed(points, error)
            return real(*args, **kwargs)

        return call

    patch.setattr(builtins, "open", opened)
    patch.setattr(io, "open", opened)
    patch.setattr(os, "replace", before(os.replace))
    patch.setattr(os, "fsync", before(os.fsync))
    patch.setattr(os, "mkdir", before(mkdir))
    return points


def content(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


ENV, PARAMS = jaxsim.make("supply_chain_token_drift")
MANY = bank.stack([PARAMS])
STATE = jax.tree.map(lambda x: np.asarray(x)[None], jax.jit(ENV.reset)(jax.random.key(0), PARAMS)[1])
BANK = bank.Bank(STATE, *[np.zeros(1, np.int32)] * 3)


class Model:
    """Of two files, on a base that was loaded here."""

    name_or_path = identity = "base"

    def __init__(self, text: str):
        self.text = text

    def get_base_model(self) -> "Model":
        return self

    def named_parameters(self) -> list[Any]:
        return []

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text(self.text * 10_000)


def picture(place: Path, text: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title(text)
    cli.write_whole(place / "a.png", lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def adapter(place: Path, text: str) -> None:
    from grpo.learning.student import save_adapter

    save_adapter(Model(text), place / "adapter")


def exported(place: Path, text: str) -> None:
    from grpo.exporting import folder

    with folder.replacing(place / "soc", True, []) as part:
        (part / folder.NOTE).write_text(text)


def log(place: Path, text: str) -> None:
    """The same step again."""
    from grpo.training.run_folder import Log

    Log(place / "log.jsonl").add(0, "grpo", 0, {"reward": text})


def checkpoint(place: Path, text: str) -> None:
    import torch

    from grpo.learning.descent import _keep

    weights = {"w": torch.full((4,), float(len(text)))}
    _keep(place / "warm", weights, torch.optim.Adam(weights.values()), {"step": len(text)})


def generated(place: Path, text: str) -> None:
    made = jaxsim.load_scenario("supply_chain_token_drift")
    content = scenarios.dump(made.model_copy(update={"title": text}))
    generator._write_all(place, [(f"{made.id}.yaml", content)], force=True)


def soc_export(place: Path, text: str) -> None:
    """Of an alert and an incident."""
    site = ocsf.make_site(
        jaxsim.load_scenario("supply_chain_token_drift"), text, "game", datetime(2026, 1, 1, tzinfo=UTC), "0"
    )
    seen, done = Alert(0, 1, "auth_anomaly", None, None, 0.5), Response(-1, -1, -1, -1, 0)
    one = Episode(0, 1, (seen,), (), (Cause("background", None),), False, "stealthy", (), "horizon", 1, 0, 1, done, ())
    with write.folder(place / "soc-export") as part:
        export.write(part, site, [one], {"policy": text})


KINDS: dict[str, Callable[[Path, str], None]] = {
    "text": lambda place, text: cli.write_text(place / "a.txt", text * 100_000),
    "json": lambda place, text: cli.write_json(place / "a.json", {"a": text}),
    "bytes": lambda place, text: cli.write_bytes(place / "a.bin", text.encode()),
    "bank": lambda place, text: bank.save(
        place / "a.npz", BANK._replace(episode=np.full(1, len(text), np.int32)), ENV.dims, MANY
    ),
    "picture": picture,
    "adapter": adapter,
    "checkpoint": checkpoint,
    "export": exported,
    "log": log,
    "generated": generated,
    "soc export": soc_export,
}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_is_stopped_leaves_the_old_or_the_new(
    kind: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, other, place = KINDS[kind], tmp_path / "other", tmp_path / "place"
    other.mkdir()
    place.mkdir()
    put(other, "the new")
    new = content(other)
    put(place, "old")
    old = content(place)
    assert new != old and new.keys() == old.keys()
    for at in range(1, 200):
        with monkeypatch.context() as patch:
            left = stopping(patch, at, error)
            with suppress(OSError, KeyboardInterrupt):
                put(place, "the new")
        assert content(place) in (old, new), f"at point {at}"
        assert not [p for p in place.rglob("*") if "part" in p.name or p.name.endswith(".old")], f"at point {at}"
        if left[0] > 0:
            break
        put(place, "old")
    assert at > 2 and left[0] > 0 and content(place) == new


def test_a_full_device_is_one_line(tmp_path: Path) -> None:
    """/dev/full refuses every byte."""
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    path = tmp_path / "a"
    path.write_text("old")

    def full(file: Any) -> None:
        with open("/dev/full", "wb") as other:
            other.write(b"x")

    with pytest.raises(OSError, match="No space left"):
        write.whole(path, full)
    assert content(tmp_path) == {"a": b"old"}


KILLED = """
import os, signal, sys
from pathlib import Path
from jaxsim_soc import write
place = Path(sys.argv[1])
real = os.replace
def kill(*a):
    if len(sys.argv) > 3:
        real(*a)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = kill
if sys.argv[2] == "file":
    write.whole(place / "a", lambda file: file.write(b"new"))
else:
    with write.folder(place / "a") as part:
        (part / "b").write_text("new")
"""


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("after", [[], ["after"]], ids=["before the move", "after it"])
def test_a_process_that_is_killed(what: str, after: list[str], tmp_path: Path) -> None:
    """Nothing is lost; what a folder's writer left is cleared up by the next one."""
    if what == "file":
        write.whole(tmp_path / "a", lambda file: file.write(b"old"))
    else:
        with write.folder(tmp_path / "a") as part:
            (part / "b").write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path), what, *after]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    if what == "file":
        assert (tmp_path / "a").read_bytes() == (b"new" if after else b"old")
        return
    write.settle(tmp_path / "a")
    assert content(tmp_path) == {"a/b": b"old"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_line_that_is_stopped_is_added_or_not(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, line = tmp_path / "lines.jsonl", {"text": "long" * 10_000}
    json_lines.append(path, 0)
    for at in range(1, 200):
        with monkeypatch.context() as patch:
            left = stopping(patch, at, error)
            with suppress(OSError, KeyboardInterrupt):
                json_lines.append(path, line)
        if left[0] > 0:
            break
        assert json_lines.resume(path) == [0], f"at point {at}"
    assert at > 2 and json_lines.resume(path) == [0, line]


def test_lines_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    from grpo.training.run_folder import Log

    log = Log(tmp_path / "log.jsonl")
    for step in range(3):
        log.add(0, "grpo", step, {"reward": step})
    whole = (tmp_path / "log.jsonl").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "log.jsonl").write_bytes(whole[:end])
        again = Log(tmp_path / "log.jsonl")
        for step in range(min(len(again.lines), 2), 3):
            again.add(0, "grpo", step, {"reward": step})
        assert (tmp_path / "log.jsonl").read_bytes() == whole, end
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [0, 1, 2]
