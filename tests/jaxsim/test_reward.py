"""Rewards worked out by hand, and weights that are refused."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from two_ways import TWO_WAYS

from jaxsim import env, reward
from jaxsim.types import (
    Channels,
    Signals,
)

NOTHING = Signals(*[0.0] * len(Signals._fields))


class Worked(NamedTuple):
    """A tick, and what it pays in the channels named and in all. The other channels pay nothing."""

    preset: str
    happened: dict[str, float]
    pays: dict[str, float]
    total: float


WORKED = [
    Worked("linear", {}, {}, 0.0),
    # Looking is free in every preset but the last.
    Worked("linear", {"confirmed": 1, "investigations": 1}, {"detection": 1.5}, 1.5),
    Worked("operational1", {"investigations": 1}, {}, 0.0),
    # An isolation that stops the stage in progress: 2.5 - 0.15.
    Worked("linear", {"active_blocks": 1, "containments": 1}, {"containment": 2.35}, 2.35),
    # One that only forestalls three idle stages: 3 x 0.4 - 0.15.
    Worked("linear", {"preemptive_blocks": 3, "containments": 1}, {"containment": 1.05}, 1.05),
    # Of a confirmed target: 1.5 where evidence is paid for, less the 0.15 of any containment.
    Worked(
        "evidence",
        {"evidence_paid": 1, "containments": 1},
        {"evidence_bonus": 1.5, "containment": -0.15},
        1.35,
    ),
    Worked("linear", {"evidence_paid": 1, "containments": 1}, {"containment": -0.15}, -0.15),
    Worked("capped", {"evidence_paid": 1, "containments": 1}, {"containment": -0.15}, -0.15),
    # Of something that no stage names: 0.6 more.
    Worked("linear", {"false_positives": 1, "containments": 1}, {"false_positive": -0.6, "containment": -0.15}, -0.75),
    # 0.08 x 5 = 0.4, below the cap; 0.08 x 10 = 0.8, above it.
    Worked("capped", {"load": 5}, {"disruption": -0.4}, -0.4),
    Worked("capped", {"load": 10}, {"disruption": -0.6}, -0.6),
    Worked("linear", {"load": 10}, {"disruption": -0.8}, -0.8),
    Worked("evidence", {"load": 10}, {"disruption": -0.8}, -0.8),
    Worked("linear", {"invalid": 1}, {"invalid_action": -0.6}, -0.6),
    # The data is out with 2 of the stages left: -6 + 0.6 x 2.
    Worked("linear", {"exfil": 1, "exfil_stages_left": 2}, {"terminal": -4.8}, -4.8),
    Worked("linear", {"clean": 1}, {"terminal": 5.0}, 5.0),
    # Three stages left at any other end: 0.6 x 3, less 1.5 for a defender who never acted.
    Worked("linear", {"stages_left": 3}, {"terminal": 1.8}, 1.8),
    Worked("linear", {"stages_left": 3, "passive": 1}, {"terminal": 0.3}, 0.3),
    # Clipped: 4 x 1.5 = 6 pays 5, and 0.08 x 100 = 8 costs 5. The terminal 5 and -6 come on top of it.
    Worked("linear", {"confirmed": 4}, {"detection": 6.0}, 5.0),
    Worked("linear", {"load": 100}, {"disruption": -8.0}, -5.0),
    Worked("linear", {"confirmed": 4, "clean": 1}, {"detection": 6.0, "terminal": 5.0}, 10.0),
    Worked("linear", {"load": 100, "exfil": 1}, {"disruption": -8.0, "terminal": -6.0}, -11.0),
    # It is the sum that is clipped, not the channels: 6 - 0.8 - 0.6 = 4.6.
    Worked(
        "linear",
        {"confirmed": 4, "load": 10, "invalid": 1},
        {"detection": 6.0, "disruption": -0.8, "invalid_action": -0.6},
        4.6,
    ),
    # The reward of the hardened1 rules: an isolation of a confirmed target that stops the stage in progress.
    Worked(
        "operational1",
        {"evidence_paid": 1, "active_blocks": 1, "containments": 1, "load": 1},
        {"evidence_bonus": 0.042, "containment": 1.3, "disruption": -0.052},
        1.29,
    ),
    # 3 x 0.052.
    Worked("operational1", {"preemptive_blocks": 3, "containments": 1}, {"containment": 0.156}, 0.156),
    # Never clipped: 0.052 x 200 = 10.4, and -6 + 0.16 x 2 on top of it.
    Worked("operational1", {"load": 200}, {"disruption": -10.4}, -10.4),
    Worked(
        "operational1",
        {"load": 200, "exfil": 1, "exfil_stages_left": 2},
        {"disruption": -10.4, "terminal": -5.68},
        -16.08,
    ),
    Worked("operational1", {"clean": 1}, {"terminal": 0.21}, 0.21),
    Worked("operational1", {"stages_left": 3, "passive": 1}, {"terminal": 0.48}, 0.48),
    # The reward of the hardened rules: looking has a price; a confirmed target, isolated, that stops a stage.
    Worked("operational", {"investigations": 2}, {"detection": -0.0156}, -0.0156),
    Worked("operational", {"investigations": 1, "confirmed": 1}, {"detection": 0.0222}, 0.0222),
    Worked(
        "operational",
        {"evidence_paid": 1, "active_blocks": 1, "containments": 1, "load": 1},
        {"evidence_bonus": 0.5, "containment": 0.26, "disruption": -0.12},
        0.64,
    ),
    # A wrong one: -1.7, 0.13 as every containment, and 0.12 x 0.5 for every tick that it is in force.
    Worked(
        "operational",
        {"false_positives": 1, "containments": 1, "load": 0.5},
        {"containment": -0.13, "false_positive": -1.7, "disruption": -0.06},
        -1.89,
    ),
    # Never clipped: 0.12 x 200 = 24, and -6 + 1.1 x 2 on top of it.
    Worked(
        "operational",
        {"load": 200, "exfil": 1, "exfil_stages_left": 2},
        {"disruption": -24.0, "terminal": -3.8},
        -27.8,
    ),
    Worked("operational", {"clean": 1}, {}, 0.0),
    Worked("operational", {"stages_left": 3, "passive": 1}, {"terminal": 3.3}, 3.3),
]


@pytest.mark.parametrize("worked", WORKED)
def test_reward_worked_by_hand(worked: Worked) -> None:
    weights = reward.weights(worked.preset)
    happened = jax.tree.map(jnp.float32, NOTHING._replace(**worked.happened))
    channels = reward.channels(happened, weights)
    wanted = Channels(*[0.0] * 7)._replace(**worked.pays)
    chex.assert_trees_all_close(channels, jax.tree.map(jnp.float32, wanted), atol=1e-6)
    assert float(reward.total(channels, weights)) == pytest.approx(worked.total, abs=1e-6)


def test_the_worked_ticks_use_every_signal_and_channel() -> None:
    never_paid = {"evidence_backed", "recontained"}
    assert {s for w in WORKED for s in w.happened} == set(Signals._fields) - never_paid
    assert {c for w in WORKED for c in w.pays} == set(Channels._fields)


def test_a_weight_can_be_changed_by_name() -> None:
    changed = reward.weights("evidence", clip=1.0)
    assert float(changed.clip) == 1.0 and float(changed.detection) == 1.5
    looked = jax.tree.map(jnp.float32, NOTHING._replace(confirmed=1.0, investigations=1.0))
    assert float(reward.channels(looked, reward.weights("evidence", investigation=-0.25)).detection) == 1.25
    with pytest.raises(TypeError, match="clap"):
        reward.weights("evidence", clap=1.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clap": 1.0}, "reward weight 'clap' is unknown; a reward has detection, .* clip"),
        ({"clip": "x"}, "reward weight clip = 'x' is not a number; give one"),
        ({"clip": float("nan")}, "reward weight clip = nan is not a number; give one"),
    ],
)
def test_bad_weights_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        env.make(TWO_WAYS, reward=reward.PRESETS["linear"] | change)


def test_a_missing_weight_is_named() -> None:
    with pytest.raises(ValueError, match="reward weight 'passive' is missing; give all of detection"):
        env.make(TWO_WAYS, reward={k: v for k, v in reward.PRESETS["linear"].items() if k != "passive"})
