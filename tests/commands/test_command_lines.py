"""Every option of every command, given what it cannot take: one line on stderr, exit code 2, and nothing written.

The commands are those of the front door; the options are collected from the parsers, so that a new one is tried without
being listed. Each command runs in this process up to where its work would begin, which `STOPS` names.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from jaxsim_soc.commands import COMMANDS, GROUPS

ROOT = Path(__file__).resolve().parents[2]
# Command -> where its work begins: attributes of its module, of one that it imports, or MODULE:ATTRIBUTE.
STOPS: dict[str, tuple[str, ...]] = {
    "ablate-rules": ("judged",),
    "audit": ("sweep",),
    "audit-gymnasium": ("audit",),
    "calibrate": ("read_alerts",),
    "completion": (),
    "console": ("serving.browser:served",),
    "credit-speed": ("use_devices", "rows"),
    "decoding-speed": ("models.load",),
    "evaluate": ("evaluate",),
    "evaluate-model": ("evaluate",),
    "export": ("export",),
    "export-soc": ("_run", "_episode", "_check"),
    "gate": ("collection",),
    "generator-speed": ("seconds",),
    "learning-speed": ("load",),
    "planted-holes": ("judged",),
    "prompting-speed": ("played",),
    "replay": ("play_record",),
    "reward-report": ("read",),
    "scenarios": ("_write_all",),
    "search-check": ("make_arenas",),
    "search-reward": ("played", "draw"),
    "serve": ("served",),
    "serve-speed": ("with_server",),
    "throughput": ("use_devices", "measure"),
    "train": ("grpo.training.stages:started",),
    "train-policy": ("best_of_family", "trained", "generate"),
    "transcript": ("page",),
}
TEXTS = [
    "",
    "x",
    " ",
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e999",
    "0x10",
    "1_0",
    "9" * 30,
    "é☃",
    "a\u2028b",
    "[bold]",
    "a\udce9",
    "a" * 5000,
]
NO_NUMBERS = ["", "x", " ", "nan", "inf", "-inf", "-1e3", "0x10", "é☃", "a" * 5000]  # for no option that is a number


class Stopped(BaseException):
    """The work would begin here: the command line was taken."""


def module_of(command: str) -> Any:
    return importlib.import_module(COMMANDS[command].module)


def scripts() -> dict[str, str]:
    """The tools that have a file's name too, and the command that the file calls."""
    found = {}
    for path in sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "grpo").glob("*.py")]):
        if call := re.search(r'^if __name__ == "__main__":\n    run\("(.*)"\)\n\Z', path.read_text("utf-8"), re.M):
            found[path.relative_to(ROOT).as_posix()] = call[1]
    return found


def test_every_command_is_here_and_in_the_help() -> None:
    assert sorted(STOPS) == sorted(COMMANDS) == sorted(name for names in GROUPS.values() for name in names)


def test_scripts_do_nothing_but_call_a_command() -> None:
    found, benchmarks = scripts(), {p.relative_to(ROOT).as_posix() for p in (ROOT / "benchmarks").glob("*.py")}
    assert set(found) == benchmarks | {f"grpo/{x}.py" for x in ("train", "evaluate", "export", "gate", "transcript")}
    assert set(found.values()) <= set(COMMANDS)
    assert all(len((ROOT / path).read_text("utf-8").splitlines()) < 8 for path in found)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a file, a folder, an empty and a binary file, and an adapter to export."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "embedded"}'
    )
    return tmp_path


PATHS = ["folder", "file", "file/inside", "absent/inside", "binary.json", "binary.yaml", "deep.json", "list.yaml"]
PATHS += ["/proc/none/inside", "/dev/full", "/dev/null"]
WORSE = ["list.yaml,list.yaml", "{}", '{"a": 1}', '{"format": NaN}', '{"format": 1e999}', "[" * 3000]
TRIED = [*TEXTS, *PATHS, *WORSE]
RECORD = {
    "version": SIMULATOR_VERSION, "scenario": "supply_chain_token_drift", "rules": "classic", "reward": "evidence",
    "personality": "any", "seed": 1, "episode": 0, "actions": ["MONITOR"],
}  # fmt: skip


REQUIRED = {"adapter": "adapter"}  # by some commands; what others can do without stays away
NEEDED = {"record": "record.json", "reports": "list.yaml", "shell": "bash"}
NEEDED |= {"environment": "FrozenLake-v1"}


def leaves(parser: argparse.ArgumentParser) -> list[tuple[list[str], argparse.ArgumentParser]]:
    """(words before, parser) of each command in a parser."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [([name], p) for a in inner for name, p in a.choices.items()] or [([], parser)]


def needed(parser: argparse.ArgumentParser, but: argparse.Action | None) -> list[str]:
    """Arguments that must be there, other than one."""
    words: list[str] = []
    for action in parser._actions:
        if (action.required or action.dest in NEEDED) and action is not but:
            value = (NEEDED | REQUIRED).get(action.dest, "out")
            words += [f"{action.option_strings[0]}={value}"] if action.option_strings else [value]
    return words


def is_number(action: argparse.Action) -> bool:
    kind = type(action.default) in (int, float) or action.metavar in ("INT", "FLOAT", "N", "K", "T", "SHARE", "WEIGHT")
    return kind and bool(action.option_strings)


def outcome(run: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What became of a command, and what it wrote to stderr; other exceptions are let through."""
    capsys.readouterr()
    try:
        run()
        code = "0"
    except SystemExit as end:
        code = str(end.code or 0)
    except Stopped:
        code = "taken"
    return code, capsys.readouterr().err


@pytest.mark.parametrize("command", STOPS)
def test_what_an_option_cannot_take_is_one_line(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = module_of(command)
    parser = module.parser()

    def stop(*_: Any, **__: Any) -> Any:
        raise Stopped

    for name in STOPS[command]:
        elsewhere, _, name = name.rpartition(":")
        *path, last = name.split(".")
        owner = importlib.import_module(elsewhere) if elsewhere else getattr(module, path[0]) if path else module
        monkeypatch.setattr(owner, last, stop)
    files = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    wrong: list[str] = []
    taken = 0
    for before, inner in leaves(parser):
        for action in inner._actions:
            if action.nargs == 0 or isinstance(action, argparse._HelpAction):
                continue
            for value in [None, *TRIED]:
                given = (
                    []
                    if value is None
                    else [f"{action.option_strings[-1]}={value}"]
                    if action.option_strings
                    else ["--", value]
                )
                words = [*before, *needed(inner, action if given else None), *given]
                monkeypatch.setattr(sys, "argv", [command, *words])
                label = f"{action.option_strings or action.dest} {value!r:.40}"
                try:
                    code, said = outcome(lambda: cli.run(module.main), capsys)
                except Exception as error:  # the traceback that a user would see
                    wrong.append(f"{label}: {type(error).__name__}: {str(error)[:200]}")
                    clean(place, files)
                    continue
                if code in ("taken", "0"):
                    taken += 1
                    if is_number(action) and value in NO_NUMBERS:
                        wrong.append(f"{label}: taken for a number")
                    clean(place, files)
                    continue
                bad = place_changed(place, files)
                lines = said.splitlines()
                # A file that is no scenario is found, and not refused as a word would be.
                found = before in (["validate"], ["check"])
                expected = ("1", "2") if found else ("2",)
                if code not in expected or (len(lines) != 1 and not found) or bad:
                    wrong.append(f"{label}: exit code {code}, {len(lines)} lines, left {bad}: {said[:300]!r}")
                clean(place, files)
    assert not wrong, f"{len(wrong)} of them:\n" + "\n".join(wrong)
    assert taken or not STOPS[command], "no value reached the work: is the place where it begins right?"


def place_changed(place: Path, files: dict[Path, int]) -> list[str]:
    now = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    return [p.name[:60] for p, when in now.items() if files.get(p) != when]


def clean(place: Path, files: dict[Path, int]) -> None:
    """Remove what is new."""
    for path in sorted(place.rglob("*"), reverse=True):
        if path not in files:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
