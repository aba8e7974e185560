"""RFC 008's checks of a reward, from rows as an audit writes them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxsim_soc import commands
from serving.reward_report import LEFT, checks, reward_report

IDS = ["semantic.oracle_max", "semantic.floor_gap", "statistical.adversarial_floor", "semantic.canary_floor"]
IDS += ["statistical.gameability_gap"]
SOUND = {"monitor": -2.0, "random": -40.0, "evidence": 0.5, "alerts only": -0.5, "open-loop": -1.5, "positional": -1.8}
SOUND |= {"briefed": -1.5, "farming": -1.6, "farming x1": -1.7, "farming x4": -1.6, "seeing": 1.0, "privileged": 2.0}


def row(tau: float | None = 1.0, wide: float = 0.1, **returns: float) -> dict[str, Any]:
    policies = [
        {"policy": name, "return": value, "return_ci": [value - wide, value + wide]}
        for name, value in (SOUND | {k.replace("_", " "): v for k, v in returns.items()}).items()
    ]
    named = {"scenario": "s", "rules": "r", "reward": "w", "personality": "any", "episodes": 64, "verdict": "v"}
    return {**named, "outcome_tau": tau, "harm_seeker": None, "witness": {}, "policies": policies}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"simulator_version": "2", "version": "0", "budget": {"name": "tiny"}, "seed": 0, "verdicts": list(rows)}


def failed(given: dict[str, Any]) -> list[str]:
    return [x["check_id"] for x in checks(given) if x["status"] == "fail"]


def test_a_sound_reward_passes_and_says_by_how_much() -> None:
    found = checks(row())
    assert [x["check_id"] for x in found] == IDS and failed(row()) == []
    oracle, gap, blind, canaries, tau = (x["measured"] for x in found)
    assert oracle["golden"]["policy"] == oracle["maximum"]["policy"] == "privileged" and oracle["floor"] == -2.0
    assert gap["gap"] == 4.0
    assert blind["share_of_gain"] == pytest.approx((-1.4 + 2.0) / 4.0) and blind["allowed"] == LEFT
    assert not blind["at_floor"] and [x["policy"] for x in blind["panel"]] == ["open-loop", "positional", "briefed"]
    assert [x["policy"] for x in canaries["panel"]] == ["random", "farming", "farming x1", "farming x4"]
    assert tau["kendall_tau"] == 1.0
    assert all((x["remediation"] is None) == (x["status"] == "pass") and len(x["evidence"]) == 1 for x in found)


@pytest.mark.parametrize(
    ("wrong", "checks_failed"),
    [
        ({"farming": 25.0}, ["semantic.oracle_max", "semantic.canary_floor"]),
        ({"open-loop": 1.05}, ["statistical.adversarial_floor"]),
        ({"open-loop": 0.95}, ["statistical.adversarial_floor"]),  # by the end of its interval
        ({"open-loop": 0.85}, []),
        ({"open-loop": 2.39}, ["statistical.adversarial_floor"]),
        ({"open-loop": 2.41}, ["semantic.oracle_max", "statistical.adversarial_floor"]),
        ({"monitor": 1.85}, ["semantic.floor_gap"]),
        ({"monitor": 3.0}, IDS[:4]),
        ({"tau": 0.69}, ["statistical.gameability_gap"]),
        ({"tau": None}, ["statistical.gameability_gap"]),
        ({"wide": 3.0}, ["semantic.floor_gap", "statistical.adversarial_floor", "semantic.canary_floor"]),
    ],
)
def test_what_is_wrong_fails_its_check(wrong: dict[str, Any], checks_failed: list[str]) -> None:
    assert failed(row(**wrong)) == checks_failed


def test_with_nobody_told_the_truth_the_best_reader_is_golden() -> None:
    given = row()
    given["policies"] = [p for p in given["policies"] if p["policy"] not in ("privileged", "seeing")]
    assert checks(given)[0]["measured"]["golden"]["policy"] == "evidence"
    given["policies"] = [p for p in given["policies"] if p["policy"] != "monitor"]
    with pytest.raises(ValueError, match="verdict of s: no monitor"):
        checks(given)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["jaxsim-soc", "reward-report", *words])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    return ended.value.code


def test_the_command_writes_what_a_hub_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "report.json"
    source.write_text(json.dumps(document(row(), row(farming=25.0))))
    assert run(monkeypatch, str(tmp_path)) == 1
    assert "s r w: fail semantic.canary_floor: farming earns at most +25.10" in capsys.readouterr().out
    written = json.loads((tmp_path / "reward-report.json").read_text())
    assert [x["passed"] for x in written["rewards"]] == [True, False]
    assert written == json.loads(json.dumps(reward_report(json.loads(source.read_text()))))
    source.write_text(json.dumps(document(row())))
    assert run(monkeypatch, str(tmp_path), "--out", str(tmp_path / "other.json")) == 0
    assert (tmp_path / "other.json").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "report.json: Expecting"), ("{}", "'verdicts' is missing"), ('{"verdicts": [1]}', "wrong")],
)
def test_what_is_no_report_is_said_in_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(text)
    assert run(monkeypatch, str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
