"""Reward signals against values worked out by hand."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.learning import signals
from grpo.learning.signals import Completion
from jaxsim import types

ROOT = Path(__file__).resolve().parents[2]
NOTHING = Completion(False, False, None, None, None, False, True, None, 0, None, -3.0)
BROKEN = NOTHING._replace(json=True)  # an object of another schema
WRONG = NOTHING._replace(json=True, schema=True, verb=types.ISOLATE_ASSET, step_reward=-0.6)  # a target of no network
MONITOR = Completion(True, True, 0, types.MONITOR, None, False, True, -0.1, 0, -1.0, -3.0)
LOOK = Completion(True, True, 2, types.INVESTIGATE, 1, False, True, 1.5, 0, 0.5, -3.0)
ISOLATE = Completion(True, True, 7, types.ISOLATE_ASSET, 0, False, True, 2.5, 0, 1.25, -3.0)
AGAIN = ISOLATE._replace(repeated=True, step_reward=-4.0)
PATCH = Completion(True, True, 20, types.PATCH_ASSET, 0, False, True, 0.0, 0, -3.0, -3.0)
REVOKE = Completion(True, True, 30, types.REVOKE_IDENTITY, 9, False, True, 0.0, 0, 0.0, -3.0)
BLOCK = Completion(True, True, 12, types.BLOCK_EGRESS, 0, False, True, 0.0, 0, 0.0, -3.0)
RESTORE = Completion(True, True, 40, types.RESTORE, 0, False, True, -0.2, 0, 0.75, -3.0)
BATCH = [NOTHING, BROKEN, WRONG, MONITOR, LOOK, ISOLATE, AGAIN, PATCH, REVOKE, BLOCK, RESTORE]
QUIET = [c._replace(alerts=False) for c in BATCH]

BY_HAND = {
    "json_valid": [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "schema_valid": [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "target_in_valid_targets": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    "no_redundant_containment": [0, 0, 1, 0.5, 1, 1, 0, 1, 1, 1, 1],
    "step_total": [-1, -1, -0.6, -0.1, 1.5, 2, -2, 0, 0, 0, -0.2],
    "avoids_exfil_path": [0, 0, 0.5, 0, 0.3, 0.5, 0.5, 0, 0.5, 0.5, 0],
    "observation_aware": [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
    "evidence_containment": [0, 0, 0.8, 0, 0.4, 0.8, 0, 0, 0.8, 0.8, 0],
    "return_to_go": [-3, -3, -3, -1, 0.5, 1.25, 1.25, -3, 0, 0, 0.75],
    "format": [-1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0],
    # ISOLATE and AGAIN say the same.
    "action_diversity": [0, 0, 1, 1, 1, 0.5, 0.5, 1, 1, 1, 1],
    "batch_action_entropy": [0, 0, 2, 2, 2, *[2 * math.log(5.5) / math.log(11)] * 2, 2, 2, 2, 2],
}
WHEN_QUIET = BY_HAND | {
    "avoids_exfil_path": [0] * 11,
    "observation_aware": [0, 0, 0, 0.7, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4],
    "evidence_containment": [0] * 11,
}


@pytest.mark.parametrize("name", signals.SIGNALS)
def test_every_signal_equals_the_value_by_hand(name: str) -> None:
    assert signals.SIGNALS[name](BATCH) == pytest.approx(BY_HAND[name])
    assert signals.SIGNALS[name](QUIET) == pytest.approx(WHEN_QUIET[name])
    assert signals.SIGNALS[name]([]) == []


@pytest.mark.parametrize("name", signals.SIGNALS)
def test_only_signals_of_spread_look_at_others(name: str) -> None:
    alone = [signals.SIGNALS[name]([c])[0] for c in BATCH]
    assert (alone != signals.SIGNALS[name](BATCH)) == (name in signals.SPREAD)


def test_verbs_are_those_of_the_simulator() -> None:
    for name in types.VERBS:
        assert getattr(signals, name) == getattr(types, name)


def test_diversity_counts_within_a_group_and_entropy_over_the_batch() -> None:
    batch = [MONITOR, MONITOR, LOOK, NOTHING, MONITOR._replace(group=1), LOOK._replace(group=1)]
    assert signals.action_diversity(batch) == pytest.approx([0.5, 0.5, 1, 0, 1, 1])
    three, two = 2 * math.log(6 / 3) / math.log(6), 2 * math.log(6 / 2) / math.log(6)
    assert signals.batch_action_entropy(batch) == pytest.approx([three, three, two, 0, three, two])


def test_entropy_of_a_batch_of_one_and_of_equals_is_nothing() -> None:
    assert signals.batch_action_entropy([LOOK]) == [0.0]
    assert signals.batch_action_entropy([LOOK, LOOK, LOOK]) == [0.0, 0.0, 0.0]
    assert signals.action_diversity([LOOK]) == [1.0]


def test_the_same_verb_on_two_targets_is_not_the_same() -> None:
    assert signals.action_diversity([LOOK, LOOK._replace(entity=2, action=3)]) == [1.0, 1.0]


def test_profiles_and_totals() -> None:
    assert set(signals.PROFILES["published"]) == set(signals.SIGNALS) - {"return_to_go", "format"}
    assert len(signals.PROFILES["published"]) == 10
    assert set(signals.PROFILES["published"].values()) == {1.0}
    assert signals.total(BATCH, signals.PROFILES["published"]) == pytest.approx(
        [sum(BY_HAND[n][i] for n in signals.PROFILES["published"]) for i in range(len(BATCH))]
    )
    returns = signals.total(BATCH, signals.PROFILES["returns"])
    assert returns == pytest.approx([-4, -4, -4, -1, 0.5, 1.25, 1.25, -3, 0, 0, 0.75])
    assert max(returns[:3]) < min(returns[3:]), "nothing legal is worse than what is not"
    weighted = signals.total(BATCH, {"json_valid": 0.5, "step_total": -2.0})
    assert weighted == pytest.approx([2, 2.5, 1.7, 0.7, -2.5, -3.5, 4.5, 0.5, 0.5, 0.5, 0.9])
    assert signals.total(BATCH, {}) == [0.0] * len(BATCH)
    assert signals.values(BATCH, ["schema_valid"]) == {"schema_valid": BY_HAND["schema_valid"]}


def test_what_an_audit_of_the_return_covers() -> None:
    legal = [MONITOR, LOOK, ISOLATE, AGAIN, PATCH, REVOKE, BLOCK, RESTORE]
    for name in signals.SIGNALS:
        alike = all(len(set(signals.SIGNALS[name](b))) == 1 for b in (legal, [c._replace(alerts=False) for c in legal]))
        assert alike == (name in signals.FORMAT_ONLY), name
    covered = signals.beside_the_return
    assert (
        covered(signals.PROFILES["returns"]) == [] == covered({"return_to_go": 0.1, "json_valid": 3, "step_total": 0})
    )
    assert covered(signals.PROFILES["published"])[0] == "no_redundant_containment x 1"
    assert covered({"return_to_go": 1, "action_diversity": 1}) == ["action_diversity x 1"]
    assert covered({"return_to_go": 1, "format": -2.5}) == ["format x -2.5"]  # pays for what is not legal
    for none in ({}, {"json_valid": 1}, {"return_to_go": 0}, {"return_to_go": -1}, {"return_to_go": math.nan}):
        assert covered(none) == ["no return_to_go"]


def test_an_unknown_signal_or_weight_is_named() -> None:
    with pytest.raises(ValueError, match=r"'step_totl' is unknown; did you mean 'step_total'\?"):
        signals.total(BATCH, {"step_totl": 1.0})
    with pytest.raises(ValueError, match="choose among json_valid, schema_valid"):
        signals.values(BATCH, ["zzz"])
    with pytest.raises(ValueError, match="'json_valid' = nan is not finite"):
        signals.total(BATCH, {"json_valid": math.nan})


def test_neither_torch_nor_jax_is_needed() -> None:
    code = "import sys, grpo.learning.signals; assert not {'jax', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
