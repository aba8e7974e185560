"""Step 2 of a tick: the defender's action takes effect."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import stages
from jaxsim.actions import decode
from jaxsim.attacker import in_force
from jaxsim.noise import Noise
from jaxsim.types import (
    BLOCK_EGRESS,
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    INVESTIGATE,
    ISOLATE_ASSET,
    MONITOR,
    PATCH_ASSET,
    PATCHED,
    RESTORE,
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
    acted: Array  # an investigation or a containment
    investigation: Array
    confirmed: Array  # its target became confirmed
    containment: Array
    evidence_paid: Array
    evidence_backed: Array
    recontained: Array
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
    acted = live & (verb != MONITOR) & (verb != RESTORE)
    investigates = acted & (verb == INVESTIGATE)
    containment = acted & (verb != INVESTIGATE)
    was_confirmed, was_touched = state.marks[CONFIRMED, target], state.touched[target]
    was_held = state.marks[CUT_OFF, target] | state.marks[EGRESS_BLOCKED, target]

    truth = state.compromised[target]
    verdict, confidence = forensic(truth, noise, params)
    confirmed = investigates & verdict & truth & (confidence >= CONFIRM_AT) & ~was_confirmed
    acted, investigates, containment, confirmed, valid = stages.once(acted, investigates, containment, confirmed, valid)

    row = jnp.asarray((CUT_OFF, CONFIRMED, CUT_OFF, EGRESS_BLOCKED, PATCHED, CUT_OFF, CUT_OFF), jnp.int32)[verb]
    changes = confirmed | (containment & ~state.marks[row, target])
    zero = jnp.zeros_like(rules.load_isolated)
    load_per_value = jnp.stack([zero, zero, rules.load_isolated, rules.load_egress, zero, rules.load_revoked, zero])[
        verb
    ]

    # Entities of both kinds share one index, so a hit on a stage's asset is no hit on its identity.
    none = jnp.uint32(0)
    on_asset, on_identity = jnp.where(containment, aimed_at(dims, state, target), none)
    controls = [
        jnp.where(verb == ISOLATE_ASSET, on_asset, none),
        jnp.where(verb == REVOKE_IDENTITY, on_identity, none),
        jnp.where(verb == BLOCK_EGRESS, on_asset & stages.packed(scenario.stage_exfil), none),
    ]
    rebuilds = containment & (verb == PATCH_ASSET) & state.marks[CUT_OFF, target] & rules.eradication
    rebuilt = jnp.where(rebuilds, target, dims.entities)
    rows = jnp.stack([row, jnp.full_like(row, CONFIRMED)])
    columns = jnp.stack([jnp.where(changes, target, dims.entities), rebuilt])
    marks = state.marks.at[rows, columns].set(np.asarray([True, False]), mode="drop")
    f = state.forensics
    slot = jnp.where(investigates, f.count % dims.forensics, dims.forensics)
    state = state._replace(
        acted=state.acted | acted,
        controls=state.controls | jnp.stack(controls),
        patched=state.patched | jnp.where(verb == PATCH_ASSET, on_asset, none),
        taken=state.taken & ~jnp.stack([jnp.where(rebuilds, on_asset, none), jnp.zeros_like(on_asset)]),
        compromised=state.compromised.at[rebuilt].set(False, mode="drop"),
        touched=state.touched.at[jnp.where(containment, target, dims.entities)].set(True, mode="drop"),
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
    if dims.restore:
        state = restore(dims, state, live & (verb == RESTORE), target, params)
    return state, Defended(
        verb=verb,
        target=target,
        invalid=live & ~valid,
        acted=acted,
        investigation=investigates,
        confirmed=confirmed,
        containment=containment,
        evidence_paid=containment & was_confirmed & ~(was_touched & rules.evidence_once),
        evidence_backed=containment & was_confirmed,
        recontained=containment & was_touched & ~was_held & (verb != PATCH_ASSET),
        false_positive=containment & ~(jnp.any(on_asset | on_identity != 0) & state.attack),
    )


def aimed_at(dims: Dims, state: State, target: Array) -> Array:
    """(2, W) uint32: the stages whose asset, whose identity is an entity."""
    return stages.packed(state.targets[:, : dims.stages] == target)


def restore(dims: Dims, state: State, restores: Array, target: Array, params: Params) -> State:
    """Lift the controls in force on an entity; stages that nothing blocks any more can start again at once."""
    scenario, rules = params.scenario, params.rules
    cut_off, blocked = state.marks[CUT_OFF, target], state.marks[EGRESS_BLOCKED, target]
    lifts = restores & (cut_off | blocked)
    lifted = jnp.where(lifts, target, dims.entities)
    marks = state.marks.at[np.asarray([CUT_OFF, EGRESS_BLOCKED]), lifted].set(False, mode="drop")
    per_value = jnp.where(cut_off, jnp.where(target < dims.assets, rules.load_isolated, rules.load_revoked), 0.0)
    per_value += jnp.where(blocked, rules.load_egress, 0.0)
    # Float sums taken apart leave a crumb.
    left = jnp.any(marks[np.asarray([CUT_OFF, EGRESS_BLOCKED])])
    load = jnp.where(left, jnp.maximum(state.load - per_value * scenario.value[target], 0.0), 0.0)

    here = jnp.where(lifts, aimed_at(dims, state, target), jnp.uint32(0))
    state = state._replace(
        acted=state.acted | lifts,
        controls=state.controls & ~jnp.stack([here[0], here[1], here[0]]),
        marks=marks,
        load=jnp.where(lifts, load, state.load),
    )
    freed = (here[0] | here[1]) & state.blocked & ~in_force(state)
    return state._replace(idle=state.idle | freed, blocked=state.blocked & ~freed)
