"""`jaxsim-soc evaluate` and what it shares with the other tools: rows, tables, pictures, bad input, whole files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

import scenarios
from jaxsim.audit import evaluation
from jaxsim.twin_reward import CHANNELS
from jaxsim_soc import cli

ROOT = Path(__file__).resolve().parents[2]
SUPPLY = "supply_chain_token_drift"
KNOWN_PLAN = "plan:MONITOR;ISOLATE_ASSET ci-runner-01"
NUMBER, RATE = {"type": "number"}, {"type": "number", "minimum": 0, "maximum": 1}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}  # null: of none
HOURS = {"type": ["number", "null"], "minimum": 0}
ROW = {
    "scenario": {"type": "string"},
    "personality": {"enum": ["stealthy", "aggressive", "opportunistic", "any"]},
    "policy": {"type": "string"},
    "rules": {"type": "string"},
    "reward": {"type": "string"},
    "n": {"type": "integer", "minimum": 1},
    "mean_return": NUMBER,
    "std_return": {"type": "number", "minimum": 0},
    "se_return": {"type": ["number", "null"], "minimum": 0},
    "mean_length": {"type": "number", "minimum": 1},
    "mean_stages": {"type": "number", "minimum": 0},
    "exfil_rate": RATE,
    "mean_confirmed": {"type": "number", "minimum": 0},
    "invalid_rate": RATE,
    "channels": {
        "type": "object",
        "properties": dict.fromkeys(CHANNELS, NUMBER),
        "required": list(CHANNELS),
        "additionalProperties": False,
    },
    "downtime": {"type": "number", "minimum": 0},
    "hours_of_downtime": {"type": "number", "minimum": 0},
    "evidence_backed": SHARE,
    "recontained": SHARE,
    "false_containments": SHARE,
    "blind_rate": RATE,
    **dict.fromkeys(("detected", "contained", "recovered"), SHARE),
    **dict.fromkeys((f"hours_{x}" for x in ("to_detect", "to_contain", "to_recover", "of_dwell")), HOURS),
    "seed": {"type": "integer"},
    "version": {"type": "string"},
    "simulator_version": {"type": "string"},
}
ROWS = {
    "type": "array",
    "items": {"type": "object", "properties": ROW, "required": list(ROW), "additionalProperties": False},
}


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr with which bad input ends, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluation.main(argv))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """All scenarios under the default rules and reward, two baselines and a plan, 40 episodes."""
    folder = tmp_path_factory.mktemp("evaluate")
    plan = "plan:MONITOR;ISOLATE_ASSET assets[0]"
    policies = ["random", "monitor", plan]
    files = ["--json", str(folder / "rows.json"), "--plot", str(folder / "rows.png")]
    evaluation.main(["--policy", *policies[:1], "--policy", *policies[1:], "--episodes", "40", *files])
    assert (folder / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir()) == ["rows.json", "rows.png"]
    yield json.loads((folder / "rows.json").read_text())


def test_rows_follow_their_schema(rows: list[dict[str, Any]]) -> None:
    jsonschema.validate(rows, ROWS)
    assert [r["scenario"] for r in rows[::3]] == [name for g in scenarios.GROUPS for name in scenarios.names(g)]
    assert {(r["rules"], r["reward"]) for r in rows} == {("hardened", "operational")}
    assert {r["n"] for r in rows} == {40}


def test_channels_add_up_to_the_return(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert sum(row["channels"].values()) == pytest.approx(row["mean_return"], abs=0.05)


def test_monitor_neither_contains_nor_confirms(rows: list[dict[str, Any]]) -> None:
    for row in (r for r in rows if r["policy"] == "monitor"):
        assert row["detected"] == row["contained"] == 0 < row["hours_of_dwell"]
        assert row["hours_to_detect"] is row["evidence_backed"] is row["false_containments"] is None
        assert row["mean_confirmed"] == row["downtime"] == row["blind_rate"] == row["invalid_rate"] == 0


def test_plan_of_known_value(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    classic = ["--rules", "classic", "--reward", "evidence"]
    evaluation.main(["--scenario", SUPPLY, *classic, "--policy", KNOWN_PLAN, "--episodes", "50", "--json", str(path)])
    (row,) = json.loads(path.read_text())
    assert row["mean_return"] == pytest.approx(7.302, abs=5e-4)
    assert row["std_return"] == 0
    assert "7.302 ± 0.000" in capsys.readouterr().out


def test_same_seed_same_rows_and_one_episode_has_no_error(tmp_path: Path) -> None:
    texts = []
    for name in ("a.json", "b.json"):
        options = ["--episodes", "1", "--seed", "4294967295", "--personality", "stealthy"]
        evaluation.main(["--scenario", SUPPLY, *options, "--policy", "random", "--json", str(tmp_path / name)])
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])[0]["se_return"] is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--scenario", "nope"], ["--scenario", "nope", "built-in are"]),
        (["--scenario", "no/such.yaml"], ["--scenario", "no/such.yaml", "check the path"]),
        (["--personality", "sneaky"], ["--personality", "'sneaky'", "stealthy, aggressive"]),
        (["--policy", "randm"], ["--policy", "'randm'", "did you mean random?"]),
        (["--policy", "plan:"], ["--policy", "empty", "write actions"]),
        (["--policy", "plan:ISOLATE ci-runner-01"], ["--policy", "'ISOLATE'", "ISOLATE_ASSET"]),
        (["--policy", KNOWN_PLAN], ["--policy", "ci-runner-01", "federated_identity_takeover has no entity"]),
        (["--rules", "modern"], ["--rules", "'modern'", "classic, hardened"]),
        (["--rules", "hardened-evidnce"], ["--rules", "'evidnce'", "evidence_once"]),
        (["--rules", "hardened+persistence"], ["--rules", "'persistence'", "on already"]),
        (["--reward", "evidnce"], ["--reward", "'evidnce'", "did you mean evidence?"]),
        (["--episodes", "0"], ["--episodes", "'0'", "whole number from 1"]),
        (["--episodes", "1e3"], ["--episodes", "'1e3'", "whole number"]),
        (["--seed", "-1"], ["--seed", "'-1'", "from 0 to 4294967295"]),
        (["--json", ""], ["--json", "''", "give the name"]),
        (["--json", "/dev/null"], ["--json", "/dev/null", "regular file"]),
        (["--json", "/"], ["--json", "'/'", "directory"]),
        (["--json", "/no/such/folder/x.json"], ["--json", "'/no/such/folder'", "create it first"]),
        (["--plot", "picture.txt"], ["--plot", "'picture.txt'", "end it in one of .png"]),
        (["--polcy", "random"], ["--polcy", "--help"]),
        (["--policy"], ["--policy", "at least one"]),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str], said: list[str]
) -> None:
    monkeypatch.setattr(evaluation, "played", None)  # refused before anything is simulated
    message = error_of(capsys, *argv)
    assert all(part in message for part in said), message


def test_two_outputs_are_two_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    same = str(tmp_path / "x.png")
    assert "two different files" in error_of(capsys, "--json", same, "--plot", same)


def test_two_scenarios_of_one_id(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = scenarios.load(SUPPLY).model_copy(update={"horizon": 20})
    (tmp_path / "other.yaml").write_text(scenarios.dump(other))
    assert "change `id`" in error_of(capsys, "--scenario", SUPPLY, str(tmp_path / "other.yaml"))


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: BaseException
) -> None:
    def refuse(*args: Any) -> None:
        raise failure

    path = tmp_path / "rows.json"
    path.write_text("old")
    monkeypatch.setattr(cli.os, "replace", refuse)
    with pytest.raises(type(failure)):
        cli.write_json(path, [1, 2])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(evaluation, "evaluate", lambda args: [])
    monkeypatch.setattr(evaluation, "show", lambda rows: None)
    monkeypatch.setattr(cli, "write_json", full)
    assert "No space left" in error_of(capsys, "--json", str(tmp_path / "x.json"))


def test_numbers_json_lacks_are_refused_before_the_file_is_touched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        cli.write_json(tmp_path / "x.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_output_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    cli.write_json(cli.output_path(str(tmp_path / "link.json")), {})
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "{}\n"


def test_a_folder_may_be_a_link_to_one_that_is_still_to_be_made(tmp_path: Path) -> None:
    link = tmp_path / "a link [x]"
    link.symlink_to(tmp_path / "not" / "yet", target_is_directory=True)
    assert cli.output_folder(str(link)) == link and not list(tmp_path.glob("not"))


def test_an_interruption_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run(interrupted)
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_log_gets_lines_of_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 32.0, 70.0])
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with cli.progress(4, done=1) as advance:
        advance("early")
        advance("[later]")
        advance("soon after", 0)
        advance("last")
    assert capsys.readouterr().err == "31 s: [later] (3 of 4)\n70 s: last (4 of 4)\n"


# --- what is shown decides nothing ----------------------------------------------------------------------------------


def started(code: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """A tool in a process of its own."""
    begin = "from jaxsim_soc import cli\n"
    given = {"stdout": subprocess.PIPE, **given, "env": {**os.environ, **given.get("env", {})}}
    return subprocess.run([sys.executable, "-c", begin + code], stderr=subprocess.PIPE, text=True, **given)


def test_results_are_kept_though_nobody_reads_what_is_shown(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = ["--scenario", SUPPLY, "--policy", "monitor", "--episodes", "2", "--json", str(tmp_path / "rows.json")]
    done = started(f"from jaxsim.audit import evaluation; cli.run(lambda: evaluation.main({argv!r}))", stdout=writing)
    os.close(writing)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    jsonschema.validate(json.loads((tmp_path / "rows.json").read_text()), ROWS)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_character_shows_its_number(encoding: str) -> None:
    code = """from jaxsim.audit import evaluation
from rich.console import Console
def main():
    Console().print("± " + chr(0xD800), markup=False)
    print("Ω", chr(0x2026))
    evaluation.main(["--help"])
cli.run(main)"""
    done = started(code, env={"PYTHONIOENCODING": encoding}, encoding="latin-1")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith({"ascii": "\\xb1 \\ud800\n", "latin-1": "± \\ud800\n"}[encoding])
    assert "\\u03a9 \\u2026\n" in done.stdout and "--json FILE" in done.stdout


def test_a_full_disk_behind_standard_output_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = started("cli.run(lambda: print('x' * 100_000))", stdout=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not whole" in done.stderr


def test_the_scenarios_tool_outlasts_its_reader_too() -> None:
    list_all = [sys.executable, "-m", "scenarios", "schema"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(list_all, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not whole" in done.stderr
    gone = subprocess.Popen(list_all, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert gone.stdout is not None and gone.stderr is not None
    gone.stdout.close()
    with gone.stderr:
        assert gone.stderr.read() == b"" and gone.wait() == 0
