"""Signals of a tick -> seven channels -> one number. The weights come last, so a rollout can be re-scored."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import check
from jaxsim.defender import Defended
from jaxsim.types import RUNNING, Channels, Params, RewardWeights, Signals, State

MAX_POINTS = 1e6  # of a weight: float32 holds the sums of an episode
BOUNDS = ("disruption_cap", "clip")

# The last published reward. Its weights are shared by the other two presets but for what they name.
_EVIDENCE = {
    "detection": 1.5,
    "active_block": 2.5,
    "preemptive_block": 0.4,
    "containment_cost": -0.15,
    "evidence": 1.5,
    "false_positive": -0.6,
    "disruption": -0.08,
    "disruption_cap": math.inf,
    "invalid_action": -0.6,
    "exfil": -6.0,
    "exfil_stage_left": 0.6,
    "clean": 5.0,
    "stage_left": 0.6,
    "passive": -1.5,
    "investigation": 0.0,
    "clip": 5.0,
}
PRESETS: dict[str, dict[str, float]] = {
    "capped": _EVIDENCE | {"evidence": 0.0, "disruption_cap": 0.6},
    "linear": _EVIDENCE | {"evidence": 0.0},
    "evidence": _EVIDENCE,
    # The default until simulator 1, for `hardened1`, found as the next one.
    "operational1": {
        "detection": 0.021,
        "active_block": 1.3,
        "preemptive_block": 0.052,
        "containment_cost": 0.0,
        "evidence": 0.042,
        "false_positive": -0.98,
        "disruption": -0.052,
        "disruption_cap": math.inf,
        "invalid_action": -0.6,
        "exfil": -6.0,
        "exfil_stage_left": 0.16,
        "clean": 0.21,
        "stage_left": 0.16,
        "passive": 0.0,
        "investigation": 0.0,
        "clip": math.inf,
    },
    # Found by `jaxsim-soc search-reward`. Neither cap nor clip: a return is linear in what happened.
    "operational": {
        "detection": 0.03,
        "active_block": 0.39,
        "preemptive_block": 0.0,
        "containment_cost": -0.13,
        "evidence": 0.5,
        "false_positive": -1.7,
        "disruption": -0.12,
        "disruption_cap": math.inf,
        "invalid_action": -0.6,
        "exfil": -6.0,
        "exfil_stage_left": 1.1,
        "clean": 0.0,
        "stage_left": 1.1,
        "passive": 0.0,
        "investigation": -0.0078,
        "clip": math.inf,
    },
}


def weights(name: str, **changes: float) -> RewardWeights:
    """A preset's weights, each a () float32 array, with single weights changed by keyword.

    Raises ValueError for an unknown preset and a value as in `from_mapping`, TypeError for an unknown weight.
    """
    check.known("reward", name, PRESETS)
    return _on_device(PRESETS[name] | changes)


def from_mapping(values: Mapping[str, float | None]) -> RewardWeights:
    """All weights by name, each a () float32 array.

    Raises ValueError for a missing or unknown weight, and for one that is no finite number of at most MAX_POINTS; a cap
    or clip is not negative, and may be infinite, or None, as JSON has no infinity.
    """
    check.kind("reward", values, Mapping, f"the name of a preset ({', '.join(PRESETS)}), or all weights by name")
    known = RewardWeights._fields
    for name in (*values, *known):
        if name not in known:
            raise ValueError(f"reward weight {name!r} is unknown; a reward has {', '.join(known)}")
        if name not in values:
            raise ValueError(f"reward weight {name!r} is missing; give all of {', '.join(known)}")
    return _on_device({**values, **{name: math.inf for name in BOUNDS if values[name] is None}})


def _on_device(values: Mapping[str, Any]) -> RewardWeights:
    """() float32 each. Raises ValueError for what the formulas below do not allow."""

    def allowed(name: str, value: Any) -> np.float32:
        low, high = (0.0, math.inf) if name in BOUNDS else (-MAX_POINTS, MAX_POINTS)
        return np.float32(check.number(f"reward weight {name}", value, low, high))

    weights: RewardWeights = jax.device_put(RewardWeights(**{k: allowed(k, v) for k, v in values.items()}))
    return weights


def signals(
    params: Params, state: State, live: Array, defended: Defended, active: Array, preemptive: Array, exfil: Array
) -> Signals:
    """Count what happened in a tick, from the state at its end; `exfil` () bool: the data went out in it."""
    scenario = params.scenario
    last = live & (state.end != RUNNING) & ~state.exfil
    clean = last & (state.succeeded == 0) & (state.earned | ~params.rules.earned_clean)
    other = last & ~clean
    left = jnp.sum(scenario.stage_exists, dtype=jnp.int32) - state.succeeded
    none = jnp.zeros_like(left)
    counts = (
        defended.confirmed,
        active,
        preemptive,
        defended.containment,
        defended.evidence_paid,
        defended.false_positive,
        jnp.where(live, state.load, 0.0),
        defended.invalid,
        exfil,
        jnp.where(exfil, left, none),
        clean,
        jnp.where(other, left, none),
        other & ~state.acted,
        defended.investigation,
        defended.evidence_backed,
        defended.recontained,
    )
    return Signals(*(jnp.asarray(c).astype(jnp.float32) for c in counts))


def channels(s: Signals, w: RewardWeights) -> Channels:
    """The seven channels; any common shape of signals, weights broadcast."""
    return Channels(
        detection=w.detection * s.confirmed + w.investigation * s.investigations,
        containment=w.active_block * s.active_blocks
        + w.preemptive_block * s.preemptive_blocks
        + w.containment_cost * s.containments,
        evidence_bonus=w.evidence * s.evidence_paid,
        false_positive=w.false_positive * s.false_positives,
        disruption=jnp.maximum(w.disruption * s.load, -w.disruption_cap),
        invalid_action=w.invalid_action * s.invalid,
        terminal=w.exfil * s.exfil
        + w.exfil_stage_left * s.exfil_stages_left
        + w.clean * s.clean
        + w.stage_left * s.stages_left
        + w.passive * s.passive,
    )


def total(c: Channels, w: RewardWeights) -> Array:
    """The reward: all channels but terminal summed and clipped to +-clip, terminal added unclipped."""
    shaped = c.detection + c.containment + c.evidence_bonus + c.false_positive + c.disruption
    return jnp.clip(shaped + c.invalid_action, -w.clip, w.clip) + c.terminal
