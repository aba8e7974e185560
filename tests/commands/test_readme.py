"""What README and docs/ show: their Python runs as it stands, and every command line is one that its tool takes."""

import argparse
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxsim
import prompting
from jaxsim import rollouts
from jaxsim.audit import budgets
from jaxsim_soc import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "prompting" / "FORMAT.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every block in a language."""
    for path in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
            yield path.relative_to(ROOT).as_posix(), text


# --- Python ---------------------------------------------------------------------------------------------------------


def given(block: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a block takes for granted: an observation's text, and a model that is not fetched."""
    if "search.search" in block:  # compiling is slow enough
        small = {"ticks": (0, 2), "depth": 1, "moves": 2, "kept": 2, "beam": 1, "prefix": 0, "family": 8}
        few = budgets.BUDGETS["tiny"]._replace(**small, screen=64, select=64, report=64)
        monkeypatch.setitem(budgets.BUDGETS, "tiny", few)
        monkeypatch.setattr(rollouts, "GROUPS", (8,))
    if "models.load" not in block:
        return {}
    from grpo.model import decode, models

    class Loaded:
        model = tokenizer = None

    answer = decode.Completion('{"action": "MONITOR"}', [1], 1, True)
    monkeypatch.setattr(models, "load", lambda *_: Loaded)
    monkeypatch.setattr(decode, "Decoder", lambda *_: None)
    monkeypatch.setattr(decode, "chat_tokens", lambda *_: [1])
    monkeypatch.setattr(decode, "decode", lambda *_: [answer])
    scenario = jaxsim.load_scenario("supply_chain_token_drift")
    return {"text": "Tick 1 of 80", "inventory": prompting.inventory(scenario)}


def python_blocks() -> list[Any]:
    """Some search or train, which takes long; what needs more than this environment is run elsewhere."""
    slow = re.compile("search.search|MaskablePPO")
    return [
        pytest.param(page, text, marks=[pytest.mark.slow] * bool(slow.search(text)), id=f"{page}-{i}")
        for i, (page, text) in enumerate(blocks("python"))
        if not re.search("127.0.0.1:800|GRPOTrainer|rejax", text)
    ]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_every_python_block_runs(page: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = given(block, monkeypatch)
    exec(compile(block.replace("10_000", "64"), page, "exec"), names)
    if "jit(env.step)" in block:
        luck_is_new(names)


def luck_is_new(names: dict[str, Any]) -> None:
    """The episode was played to its end, and its alerts are not one tick's, again and again.

    Under one key for every step, as it once stood there, 34 alerts came in 30 ticks instead of 13, all of one severity.
    """
    alerts = names["obs"].alerts
    assert bool(names["done"]) and int(names["state"].tick) == int(names["params"].scenario.horizon)
    shown = np.asarray(alerts.severity)[np.asarray(alerts.number) >= 0].tolist()
    assert len(set(shown)) == len(shown) > 3


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tables_made_from_the_code_are_whole() -> None:
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    asked = [name for path in PAGES for name in re.findall(r"<!-- table: (.*?) -->", path.read_text(encoding="utf-8"))]
    assert sorted(asked) == sorted(hooks["TABLES"])
    for name, make in hooks["TABLES"].items():
        head, _, *rows = (re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in make().splitlines())
        assert rows and all(len(row) == len(head) and row[0] and row[1] for row in rows if name != "presets"), name


# --- command lines --------------------------------------------------------------------------------------------------


def command_lines() -> list[tuple[str, str]]:
    """(page, command) of every command in a shell block, and of every one that runs Python or MkDocs in the text."""
    found = [
        (page, command)
        for page, text in blocks("sh")
        for line in text.replace("\\\n", " ").splitlines()
        for command in shlex.join(shlex.split(line, comments=True)).split(" '&&' ")
        if command
    ]
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        inline = re.findall(r"`((?:python|mkdocs|pip|jaxsim-soc) [^`]+)`", text)
        found += [(path.relative_to(ROOT).as_posix(), " ".join(command.split())) for command in inline]
    return list(dict.fromkeys(found))


class Taken(BaseException):
    """The parser took the command line."""


def test_there_are_command_lines_and_blocks() -> None:
    assert len(command_lines()) > 40 and len(list(blocks("python"))) == 11


@pytest.mark.parametrize(("page", "command"), command_lines())
def test_every_command_line_is_taken(page: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool, *words = shlex.split(command)
    if tool == "pip":
        assert words[0] == "install"
        extras = re.findall(r"\[(.*?)\]", command)
        assert extras and all(name in PROJECT["optional-dependencies"] for name in extras[0].split(","))
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    elif tool == "mkdocs":
        cli = pytest.importorskip("mkdocs.__main__").cli
        monkeypatch.chdir(ROOT)
        cli.commands[words[0]].make_context(words[0], words[1:])
    elif tool == "jaxsim-soc" and len(words) == 1:  # the name of a tool
        assert words[0] in (*commands.COMMANDS, "--help")
    elif tool == "jaxsim-soc":
        taken(tool, words, monkeypatch, tmp_path)
    elif tool != "python":
        assert (tool, *words) == ("pre-commit", "install") or (ROOT / tool).is_file()
    elif words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[2:] if word.endswith(".py"))
    else:
        script = "/".join([*words[1].split("."), "__main__.py"]) if words[0] == "-m" else words[0]
        taken(script, words[2:] if words[0] == "-m" else words[1:], monkeypatch, tmp_path)


def taken(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run a script, or `jaxsim-soc`, up to where its parser has taken its words, in a folder that has their files."""
    for word in words:
        path = folder / word
        if word.endswith(".yaml"):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "scenarios" / "campaigns" / "insider_repo_pivot.yaml", path)
        elif word.endswith(".json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}", encoding="utf-8")
        elif word in ("DIR", "FOLDER", "ADAPTER", "soc", "incident", "out/sweep") or word.endswith("/adapter"):
            path.mkdir(parents=True)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: Any) -> None:
        parse(self, *args)
        raise Taken

    monkeypatch.chdir(folder)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Taken):
        if script == "jaxsim-soc":
            commands.main()
        runpy.run_path(str(ROOT / script), run_name="__main__")
