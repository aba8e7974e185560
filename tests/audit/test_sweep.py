"""The sweep's command line: bad input, what it asks for, and one run from end to end."""

import json
import runpy
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import scenarios
from jaxsim import reward
from jaxsim.audit import sweep as sweeping
from jaxsim.audit import verdict
from jaxsim.audit.budgets import BUDGETS

ROOT = Path(__file__).resolve().parents[2]
SUPPLY = "supply_chain_token_drift"


def refused(args: Sequence[str], capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> str:
    """What the script says, which exits with 2."""
    patch.setattr(sys, "argv", ["sweep_rewards.py", *args])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "sweep_rewards.py"), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--reward", "evidense"), ("--reward", "evidense", "evidence")),
        (("--rules", "hard"), ("--rules", "hard", "classic, hardened")),
        (("--rules", "hardened-evidnce"), ("--rules", "evidnce", "evidence_once")),
        (("--move", "2"), ("--move", "'2'", "below 1")),
        (("--scenario", "supply"), ("supply", "supply_chain_token_drift")),
        (("--out", "/dev/null/x"), ("--out", "/dev/null/x")),
        (("--replay", "/nonexistent.json"), ("/nonexistent.json",)),
    ],
)
def test_sweep_refuses_bad_input_in_one_line(
    args: tuple[str, ...],
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = refused(args, capsys, monkeypatch)
    assert all(w in said for w in words), said


def test_replay_refuses_a_record_of_other_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"version": "0", "scenario": SUPPLY, "rules": "classic", "reward": "evidence", "personality": "any"}
    path = tmp_path / "w.json"
    path.write_text(json.dumps({**record, "seed": 1, "episode": 0, "actions": []}))
    said = refused(("--replay", str(path)), capsys, monkeypatch)
    assert "version = '0'" in said and str(path) in said


def test_weights_move_one_at_a_time() -> None:
    moved = sweeping.moved_weights("operational", 0.25)
    base = reward.weights("operational")._asdict()
    found = {}
    for name, weights in moved.items():
        ((weight, value),) = [(k, float(v)) for k, v in weights._asdict().items() if float(v) != float(base[k])]
        found[name] = weight, round(value / float(base[weight]), 6)
    assert found["operational stage_left×0.75"] == ("stage_left", 0.75)
    movable = [w for w, v in base.items() if v and np.isfinite(v)]
    assert sorted(found.values()) == sorted((w, f) for w in movable for f in (0.75, 1.25))
    assert sweeping.moved_weights("operational", 0.0) == {}


def test_what_certify_asks_for() -> None:
    row = {"verdict": verdict.CERTIFIED, "moved": None}
    assert sweeping.certified(row)
    assert sweeping.certified(row | {"moved": {"not_certified": []}})
    assert not sweeping.certified(row | {"moved": {"not_certified": ["operational evidence×0.8"]}})
    assert not sweeping.certified(row | {"verdict": verdict.UNDECIDED})


def test_a_bad_learned_policy_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeping.learned(tmp_path, "classic", "linear") == {}
    (tmp_path / "classic-linear-masked.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SystemExit):
        sweeping.learned(tmp_path, "classic", "linear")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "classic-linear-masked.safetensors" in said and "train-policy" in said


PROGRAMS = 90  # most that an audit of one network compiles: each that is more is time before a first verdict


@pytest.mark.slow
def test_sweep_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    less = BUDGETS["tiny"]._replace(ticks=(0, 1, 2), depth=2, family=64, select=128, report=512)
    monkeypatch.setitem(BUDGETS, "tiny", less)
    monkeypatch.setattr(sys, "argv", ["sweep_rewards.py", "--scenario", SUPPLY, "--rules", "classic", "--reward"])
    sys.argv += ["evidence", "--budget", "tiny", "--certify", "--out", str(tmp_path)]
    compiled: list[str] = []

    def count(event: str, _: float, **of: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(of.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.raises(SystemExit) as ended:
        sweeping.main()
    jax.monitoring.unregister_event_duration_listener(count)
    assert ended.value.code == 1
    assert len(compiled) <= PROGRAMS, Counter(compiled)
    document = json.loads((tmp_path / "report.json").read_text())
    (row,) = document["verdicts"]
    assert row["verdict"] == "degenerate" and set(row["witness"]) == set(row["exploits"])
    assert {"scenario", "rules", "reward", "exploits", "evg", "evg_ci", "evg_norm", "tells"} <= set(row)
    assert row["digest"] == scenarios.digest(scenarios.load(SUPPLY))
    assert {"return", "std", "plan"} <= set(row["best_open_loop"])
    assert {"return", "std", "params"} <= set(row["best_evidence"]) and {"return", "plan"} <= set(row["farming"])
    assert row["moved"] is None and row["metrics"] is None, "nobody asked, and of a degenerate reward no one needs them"
    for file in ("report.md", "verdicts.csv", "returns.png", *row["witness"].values()):
        assert (tmp_path / file).stat().st_size > 100
    assert not list(tmp_path.rglob("*.part"))
    assert document["rescoring"][0]["configurations_per_minute"] >= 10_000
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["sweep_rewards.py", "--replay", str(tmp_path / row["witness"]["farming"])])
    sweeping.main()
    assert "REVOKE_IDENTITY" in capsys.readouterr().out
