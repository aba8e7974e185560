"""Step 2 of a tick: the defender's action takes effect."""

from typing import NamedTuple

import jax.numpy as jnp
from chex import Array

from jaxsim.actions import decode
from jaxsim.noise import Noise
from jaxsim.types import (
    BLOCK_EGRESS,
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    INVESTIGATE,
    ISOLATE_ASSET,
    PATCH_ASSET,
    PATCHED,
    REVOKE_IDENTITY,
    Dims,
    Params,
    State,
)

CONFIRM_AT = 0.6  # least confidence of a verdict that confirms


class Defended(NamedTuple):
    """What the action was, and what it did. All () bool but `verb` and `target`."""

    verb: Array  # () int32
    target: Array  # () int32, entity, 0 if none
    invalid: Array
    acted: Array  # a valid action other than MONITOR
    confirmed: Array  # its target became confirmed
    containment: Array
    evidence_backed: Array
    false_positive: Array


def forensic(truth: Array, noise: Array, params: Params) -> tuple[Array, Array]:
    """(verdict "compromised", confidence) of an investigation of an entity whose true state is `truth`."""
    f32 = jnp.float32
    error = noise[Noise.FORENSIC_ERROR] < jnp.where(truth, params.rules.false_negative, params.rules.false_positive)
    low, high = (
        jnp.where(truth, jnp.where(error, f32(a), f32(b)), jnp.where(error, f32(c), f32(d)))
        for a, b, c, d in ((0.40, 0.60, 0.40, 0.55), (0.65, 0.95, 0.60, 0.85))
    )
    return truth ^ error, low + noise[Noise.FORENSIC_CONFIDENCE] * (high - low)


def defend(
    dims: Dims, state: State, action: Array, live: Array, noise: Array, params: Params
) -> tuple[State, Defended]:
    """Apply an action to the state of before the attacker's move. `live` is False once the episode is over."""
    scenario, rules = params.scenario, params.rules
    verb, target, valid = decode(dims, action, scenario.exists)
    acted = live & (verb != 0)
    investigates = acted & (verb == INVESTIGATE)
    containment = acted & (verb != INVESTIGATE)
    was_confirmed = state.marks[CONFIRMED, target]
    untouched = ~jnp.any(state.marks[:CONFIRMED, target])

    truth = state.compromised[target]
    verdict, confidence = forensic(truth, noise, params)
    confirmed = investigates & verdict & truth & (confidence >= CONFIRM_AT) & ~was_confirmed

    row = jnp.asarray((CUT_OFF, CONFIRMED, CUT_OFF, EGRESS_BLOCKED, PATCHED, CUT_OFF), jnp.int32)[verb]
    changes = confirmed | (containment & ~state.marks[row, target])
    marks = state.marks.at[jnp.where(changes, row, len(state.marks)), target].set(True, mode="drop")
    zero = jnp.zeros_like(rules.load_isolated)
    load_per_value = jnp.stack([zero, zero, rules.load_isolated, rules.load_egress, zero, rules.load_revoked])[verb]

    # Entities of both kinds share one index, so a hit on a stage's asset is no hit on its identity.
    on_asset = containment & (state.targets[0, : dims.stages] == target)
    on_identity = containment & (state.targets[1, : dims.stages] == target)
    blocks = on_asset & ((verb == ISOLATE_ASSET) | ((verb == BLOCK_EGRESS) & scenario.stage_exfil))
    f = state.forensics
    slot = jnp.where(investigates, f.count % dims.forensics, dims.forensics)
    state = state._replace(
        acted=state.acted | acted,
        contained=state.contained | blocks | (on_identity & (verb == REVOKE_IDENTITY)),
        patched=state.patched | (on_asset & (verb == PATCH_ASSET)),
        marks=marks,
        load=state.load + jnp.where(changes, load_per_value * scenario.value[target], 0.0),
        forensics=f._replace(
            entity=f.entity.at[slot].set(target, mode="drop"),
            compromised=f.compromised.at[slot].set(verdict, mode="drop"),
            confidence=f.confidence.at[slot].set(confidence, mode="drop"),
            tick=f.tick.at[slot].set(state.tick, mode="drop"),
            count=f.count + investigates.astype(jnp.int32),
        ),
    )
    return state, Defended(
        verb=verb,
        target=target,
        invalid=live & ~valid,
        acted=acted,
        confirmed=confirmed,
        containment=containment,
        evidence_backed=containment & was_confirmed & (untouched | ~rules.evidence_once),
        false_positive=containment & ~(jnp.any(on_asset | on_identity) & state.attack),
    )
