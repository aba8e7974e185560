"""The attacker: what is dealt at reset, and step 3 of a tick, sub-steps b to d: its stages start, go on and end."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import stages
from jaxsim.noise import Noise, integer, scramble, unit
from jaxsim.types import Dims, Params, State

SUCCESS_MIN, SUCCESS_MAX = 0.05, 0.99
# `State.order` holds the stage's index in its low bits, so that one minimum finds the stage to start.
INDEX_BITS = 8
LAST = 2**30  # added to the order of a stage that comes after all others


class Dealt(NamedTuple):
    """What an episode's attack is, drawn once."""

    attack: Array  # () bool
    next_start: Array  # () int32, tick
    targets: Array  # (2, S + B) int32
    order: Array  # (S,) int32


def deal(dims: Dims, bits: Array, params: Params) -> Dealt:
    """Draw an episode's attack from six words, (6,) uint32."""
    rules, scenario = params.rules, params.scenario
    lo, hi = rules.attack_delay[0], rules.attack_delay[1]
    alike = unit(bits[5]) < rules.believable_paths

    def permuted(seed: Array, role: Array, first: int, size: int) -> Array:
        """Who plays each role: permuted within groups, or else among all `size` entities from `first` on."""
        if not size:
            return role
        group = jnp.where(alike, scenario.group[first : first + size], first)
        keys = scramble(seed, np.arange(size, dtype=np.uint32))
        index = jnp.maximum(role - first, 0)
        own, its_group = scramble(seed, index.astype(jnp.uint32)), group[index]
        there = scenario.exists[first : first + size]
        before = there[None] & (group[None] == its_group[:, None]) & (keys[None] < own[:, None])
        place = its_group + jnp.sum(before, axis=1, dtype=jnp.int32)
        return jnp.where(alike, scenario.members[place], place)

    roles = scenario.targets
    assets = permuted(bits[2], roles[0], 0, dims.assets)
    identities = permuted(bits[3], roles[1], dims.assets, dims.identities)
    dealt = jnp.where(roles >= 0, jnp.stack([assets, identities]), -1)
    listed = np.arange(dims.stages, dtype=np.int32)
    shuffled = (scramble(bits[4], listed.astype(np.uint32)) >> 10).astype(jnp.int32) << INDEX_BITS
    return Dealt(
        attack=unit(bits[0]) < rules.attack_probability,
        next_start=1 + integer(unit(bits[1]), lo, hi),
        targets=jnp.where(rules.unknown_path, dealt, roles),
        order=jnp.where(rules.unknown_path, shuffled, 0) + listed,
    )


class Started(NamedTuple):
    """The stage begun this tick, not one that goes on. `telemetry` turns it into alerts."""

    any: Array  # () bool
    stage: Array  # () int32, 0 if none


def ready(state: State) -> Array:
    """(W,) uint32: the set of the idle stages that have what they need."""
    return state.idle & state.supported


def in_force(state: State) -> Array:
    """(W,) uint32: the set of the stages that a control in force blocks."""
    isolated, revoked, egress = state.controls
    return isolated | revoked | egress


def gives(state: State, params: Params) -> Array:
    """(W,) uint32: of the stages that have succeeded those that, under `foothold`, still give the attacker one."""
    on_asset, on_identity = state.taken & ~state.controls[:2]
    compromises = stages.packed(jnp.any(params.scenario.stage_compromises, axis=1))
    return jnp.where(params.rules.foothold, state.done & (on_asset | on_identity | ~compromises), state.done)


def supported(given: Array, needs: Array, options: Array) -> Array:
    """Bool: those that have what they need; `given` is (W,) of `gives`, the others (..., W), bits as in it."""
    one = jnp.any(options & given != 0, axis=-1) | jnp.all(options == 0, axis=-1)
    return jnp.all(needs & ~given == 0, axis=-1) & one


def progress(dims: Dims, state: State, live: Array, noise: Array, params: Params) -> tuple[State, Array, Array]:
    """Sub-step b. Returns (state, active block, exfil), the last two () bool."""
    scenario, rules = params.scenario, params.rules
    k = jnp.maximum(state.stage, 0)
    running = live & (state.stage >= 0)
    this = stages.only(k, dims.words)
    stopped = jnp.any(in_force(state) & this != 0)
    blocked = running & (stopped | ~supported(gives(state, params), scenario.needs[k], scenario.options[k]))
    over = running & ~blocked & (state.tick >= state.stage_end)
    p = jnp.clip(scenario.stage_success[k] + state.personality.success, SUCCESS_MIN, SUCCESS_MAX)
    p = jnp.where(jnp.any(state.patched & this != 0), jnp.maximum(p - rules.patch_penalty, SUCCESS_MIN), p)
    success = over & (noise[Noise.STAGE_SUCCESS] < p)
    stopped, blocked, over, success = stages.once(stopped, blocked, over, success)
    ended = blocked | over

    at_k = jnp.arange(dims.stages, dtype=jnp.int32) == k
    # Nothing starts on the tick of a setback, so its draw of a dwell is free.
    setback = ended & ~success & rules.persistence
    if dims.restore:
        suspended = blocked & rules.resumption
        left = jnp.maximum(1, state.stage_end - state.tick)
        state = state._replace(left=jnp.where(suspended & at_k, left, state.left))
        setback &= ~suspended
    rest = integer(noise[Noise.DWELL], rules.retry_delay[0], rules.retry_delay[1])
    # One that insists prefers this stage to all others, those too on which it insisted before.
    ahead = (jnp.minimum(jnp.min(state.order), 0) >> INDEX_BITS) - 1
    again = jnp.where(state.personality.reroutes, state.order | LAST, (ahead << INDEX_BITS) + k)
    compromises = jnp.where(success & scenario.stage_compromises[k], state.targets[:, k], dims.entities)
    hit = (state.targets[:, : dims.stages] == compromises[:, None]) & scenario.stage_compromises.T

    def also(if_so: Array) -> Array:
        return jnp.where(if_so, this, jnp.uint32(0))

    state = state._replace(
        idle=state.idle | also((blocked & ~stopped) | (over & ~success & rules.persistence)),
        done=state.done | also(success),
        blocked=state.blocked | also(blocked & stopped),
        taken=state.taken | stages.packed(hit),
        next_start=jnp.where(setback, state.tick + rest, state.next_start),
        order=jnp.where(setback & over & at_k, again, state.order),
        exfil=state.exfil | (success & scenario.stage_loss[k]),
        stage=jnp.where(ended, -1, state.stage),
        succeeded=state.succeeded + success.astype(jnp.int32),
        compromised=state.compromised.at[compromises].set(True, mode="drop"),
    )
    given = gives(state, params)
    state = state._replace(supported=stages.packed(supported(given[None], scenario.needs, scenario.options)))
    return state, blocked, success & scenario.stage_loss[k]


def start(dims: Dims, state: State, live: Array, acted: Array, noise: Array, params: Params) -> tuple[State, Started]:
    """Sub-step c: pause after a defender action, or start the ready stage that the attacker prefers."""
    none = 2 * LAST - 1
    paused = acted & (noise[Noise.PAUSE] < state.personality.pause)
    over = state.exfil & params.rules.run_to_horizon
    free = live & state.attack & ~over & (state.tick >= state.next_start) & (state.stage < 0) & ~paused
    # All conditions are within the minimum, so that what follows reads one number: compilers repeat what leads to a
    # number wherever it is read, but not a minimum.
    able = stages.unpacked(jnp.where(free, ready(state) & ~in_force(state), jnp.uint32(0)), dims.stages)
    first = jnp.min(jnp.where(able, state.order, none))
    begins = first < none
    k = jnp.where(begins, first & (2**INDEX_BITS - 1), 0)

    # Python's and NumPy's round: half to even.
    dwell = jnp.round(params.scenario.stage_dwell[k].astype(jnp.float32) * state.personality.dwell)
    lo = jnp.maximum(1, dwell[0].astype(jnp.int32))
    hi = jnp.maximum(lo, dwell[1].astype(jnp.int32))
    ticks, anew = integer(noise[Noise.DWELL], lo, hi), begins
    if dims.restore:
        # What goes on where it was stopped keeps its dwell, and is no event to be seen.
        left = state.left[k]
        ticks, anew = jnp.where(left > 0, left, ticks), begins & (left == 0)
        this = begins & (jnp.arange(dims.stages, dtype=jnp.int32) == k)
        state = state._replace(left=jnp.where(this, 0, state.left))
    state = state._replace(
        idle=state.idle & ~jnp.where(begins, stages.only(k, dims.words), jnp.uint32(0)),
        stage=jnp.where(begins, k, state.stage),
        stage_end=jnp.where(begins, state.tick + ticks, state.stage_end),
    )
    return state, Started(anew, k)


def block_contained(state: State, live: Array) -> tuple[State, Array]:
    """Sub-step d: idle stages with a contained target are blocked. Returns (state, (W,) uint32: which)."""
    which = jnp.where(live & state.attack, state.idle & in_force(state), jnp.uint32(0))
    return state._replace(idle=state.idle & ~which, blocked=state.blocked | which), which


def count(state: State, stage: Array, active: Array, idle: Array) -> tuple[State, Array, Array]:
    """Count blocks, those of a stage once: `active`, () bool, of the `stage` in progress; `idle`, (W,) uint32.

    What a RESTORE sets free can be blocked again, and would be paid again. Returns (state, how many of each), the
    latter () int32.
    """
    was_active, was_idle = state.counted
    blocked = jnp.where(active, stages.only(stage, len(idle)), jnp.uint32(0)) & ~was_active
    idle &= ~was_active & ~was_idle
    state = state._replace(counted=jnp.stack([was_active | blocked, was_idle | idle]))
    return state, stages.size(blocked), stages.size(idle)
