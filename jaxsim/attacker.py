"""The attacker: what is dealt at reset, and step 3 of a tick, sub-steps b to d: its stages start, go on and end."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim.noise import Noise, integer, scramble, unit
from jaxsim.types import BLOCKED, FAILED, IDLE, IN_PROGRESS, SUCCEEDED, Dims, Params, State

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
    """Draw an episode's attack from five words, (5,) uint32."""
    rules, roles = params.rules, params.scenario.targets
    lo, hi = rules.attack_delay[0], rules.attack_delay[1]

    def permuted(seed: Array, role: Array, size: int, count: Array) -> Array:
        """Place of each role in a random permutation of 0..count-1."""
        index = np.arange(size, dtype=np.uint32)
        keys = jnp.where(index < count.astype(jnp.uint32), scramble(seed, index), np.uint32(2**32 - 1))
        own = scramble(seed, jnp.maximum(role, 0).astype(jnp.uint32))
        return jnp.sum(keys[None, :] < own[:, None], axis=1, dtype=jnp.int32)

    assets = permuted(bits[2], roles[0], dims.assets, params.scenario.asset_count)
    identities = permuted(bits[3], roles[1] - dims.assets, dims.identities, params.scenario.identity_count)
    dealt = jnp.where(roles >= 0, jnp.stack([assets, identities + dims.assets]), -1)
    listed = np.arange(dims.stages, dtype=np.int32)
    shuffled = (scramble(bits[4], listed.astype(np.uint32)) >> 10).astype(jnp.int32) << INDEX_BITS
    return Dealt(
        attack=unit(bits[0]) < rules.attack_probability,
        next_start=1 + integer(unit(bits[1]), lo, hi),
        targets=jnp.where(rules.unknown_path, dealt, roles),
        order=jnp.where(rules.unknown_path, shuffled, 0) + listed,
    )


class Started(NamedTuple):
    """The stage begun this tick. `telemetry` turns it into alerts."""

    any: Array  # () bool
    stage: Array  # () int32, 0 if none


def ready(state: State) -> Array:
    """(S,) bool: idle stages whose prerequisites are met."""
    return (state.status == IDLE) & (state.unmet == 0) & state.option_met


def progress(dims: Dims, state: State, live: Array, noise: Array, params: Params) -> tuple[State, Array, Array]:
    """Sub-step b. Returns (state, active block, exfil), the last two () bool."""
    scenario, rules = params.scenario, params.rules
    k = jnp.maximum(state.stage, 0)
    running = live & (state.stage >= 0)
    blocked = running & state.contained[k]
    over = running & ~blocked & (state.tick >= state.stage_end)
    p = jnp.clip(scenario.stage_success[k] + state.personality.success, SUCCESS_MIN, SUCCESS_MAX)
    p = jnp.where(state.patched[k], jnp.maximum(p - rules.patch_penalty, SUCCESS_MIN), p)
    success = over & (noise[Noise.STAGE_SUCCESS] < p)
    ended = blocked | over

    failure = jnp.where(rules.persistence, IDLE, FAILED)
    outcome = jnp.where(blocked, BLOCKED, jnp.where(success, SUCCEEDED, failure))
    this = jnp.arange(dims.stages, dtype=jnp.int32) == k
    # Nothing starts on the tick of a setback, so its draw of a dwell is free.
    setback = ended & ~success & rules.persistence
    rest = integer(noise[Noise.DWELL], rules.retry_delay[0], rules.retry_delay[1])
    again = jnp.where(state.personality.reroutes, state.order | LAST, k - 2**INDEX_BITS)
    taken = state.targets[:, k]
    taken = jnp.where(success & scenario.stage_compromises[k], taken, dims.entities)
    state = state._replace(
        status=jnp.where(ended & this, outcome, state.status),
        unmet=state.unmet - (success & scenario.required_by[k]).astype(jnp.int32),
        option_met=state.option_met | (success & scenario.option_of[k]),
        next_start=jnp.where(setback, state.tick + rest, state.next_start),
        order=jnp.where(setback & over & this, again, state.order),
        exfil=state.exfil | (success & scenario.stage_exfil[k]),
        stage=jnp.where(ended, -1, state.stage),
        succeeded=state.succeeded + success.astype(jnp.int32),
        compromised=state.compromised.at[taken].set(True, mode="drop"),
    )
    return state, blocked, success & scenario.stage_exfil[k]


def start(dims: Dims, state: State, live: Array, acted: Array, noise: Array, params: Params) -> tuple[State, Started]:
    """Sub-step c: pause after a defender action, or start the ready stage that the attacker prefers."""
    none = 2 * LAST - 1
    first = jnp.min(jnp.where(ready(state) & ~state.contained, state.order, none))
    paused = acted & (noise[Noise.PAUSE] < state.personality.pause)
    over = state.exfil & params.rules.run_to_horizon
    begins = live & state.attack & ~over & (state.tick >= state.next_start)
    begins &= (state.stage < 0) & ~paused & (first < none)
    k = jnp.where(begins, first & (2**INDEX_BITS - 1), 0)

    # Python's and NumPy's round: half to even.
    dwell = jnp.round(params.scenario.stage_dwell[k].astype(jnp.float32) * state.personality.dwell)
    lo = jnp.maximum(1, dwell[0].astype(jnp.int32))
    hi = jnp.maximum(lo, dwell[1].astype(jnp.int32))
    state = state._replace(
        status=jnp.where(begins & (jnp.arange(dims.stages, dtype=jnp.int32) == k), IN_PROGRESS, state.status),
        stage=jnp.where(begins, k, state.stage),
        stage_end=jnp.where(begins, state.tick + integer(noise[Noise.DWELL], lo, hi), state.stage_end),
    )
    return state, Started(begins, k)


def block_contained(state: State, live: Array) -> tuple[State, Array]:
    """Sub-step d: idle stages with a contained target are blocked. Returns (state, how many, () int32)."""
    blocked = live & state.attack & (state.status == IDLE) & state.contained
    return state._replace(status=jnp.where(blocked, BLOCKED, state.status)), jnp.sum(blocked, dtype=jnp.int32)
