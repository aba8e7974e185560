"""Step 3 of a tick, sub-steps b to d: the stage in progress, the next stage, preemptive blocks."""

from typing import NamedTuple

import jax.numpy as jnp
from chex import Array

from jaxsim.noise import Noise, integer
from jaxsim.types import BLOCKED, FAILED, IDLE, IN_PROGRESS, SUCCEEDED, Dims, Params, State

SUCCESS_MIN, SUCCESS_MAX = 0.05, 0.99


class Started(NamedTuple):
    """The stage begun this tick. `telemetry` turns it into alerts."""

    any: Array  # () bool
    stage: Array  # () int32, 0 if none


def ready(state: State) -> Array:
    """(S,) bool: idle stages whose prerequisites are met."""
    return (state.status == IDLE) & (state.unmet == 0) & state.option_met


def progress(dims: Dims, state: State, live: Array, noise: Array, params: Params) -> tuple[State, Array, Array]:
    """Sub-step b. Returns (state, active block, exfil), the last two () bool."""
    scenario = params.scenario
    k = jnp.maximum(state.stage, 0)
    running = live & (state.stage >= 0)
    blocked = running & state.contained[k]
    over = running & ~blocked & (state.tick >= state.stage_end)
    p = jnp.clip(scenario.stage_success[k] + state.personality.success, SUCCESS_MIN, SUCCESS_MAX)
    p = jnp.where(state.patched[k], jnp.maximum(p - params.rules.patch_penalty, SUCCESS_MIN), p)
    success = over & (noise[Noise.STAGE_SUCCESS] < p)
    ended = blocked | over

    outcome = jnp.where(blocked, BLOCKED, jnp.where(success, SUCCEEDED, FAILED))
    this = jnp.arange(dims.stages) == k
    taken = jnp.stack([scenario.stage_asset[k], scenario.stage_identity[k]])
    taken = jnp.where(success & scenario.stage_compromises[k], taken, dims.entities)
    state = state._replace(
        status=jnp.where(ended & this, outcome, state.status),
        unmet=state.unmet - (success & scenario.required_by[k]).astype(jnp.int32),
        option_met=state.option_met | (success & scenario.option_of[k]),
        stage=jnp.where(ended, -1, state.stage),
        succeeded=state.succeeded + success.astype(jnp.int32),
        compromised=state.compromised.at[taken].set(True, mode="drop"),
    )
    return state, blocked, success & scenario.stage_exfil[k]


def start(dims: Dims, state: State, live: Array, acted: Array, noise: Array, params: Params) -> tuple[State, Started]:
    """Sub-step c: pause after a defender action, or start the first ready stage, in listed order."""
    order = jnp.arange(dims.stages)
    first = jnp.min(jnp.where(ready(state) & ~state.contained, order, dims.stages))
    paused = acted & (noise[Noise.PAUSE] < state.personality.pause)
    begins = live & (state.stage < 0) & ~paused & (first < dims.stages)
    k = jnp.where(begins, first, 0)

    # Python's and NumPy's round: half to even.
    dwell = jnp.round(params.scenario.stage_dwell[k].astype(jnp.float32) * state.personality.dwell)
    lo = jnp.maximum(1, dwell[0].astype(jnp.int32))
    hi = jnp.maximum(lo, dwell[1].astype(jnp.int32))
    state = state._replace(
        status=jnp.where(begins & (order == k), IN_PROGRESS, state.status),
        stage=jnp.where(begins, k, state.stage),
        stage_end=jnp.where(begins, state.tick + integer(noise[Noise.DWELL], lo, hi), state.stage_end),
    )
    return state, Started(begins, k)


def block_contained(state: State, live: Array) -> tuple[State, Array]:
    """Sub-step d: idle stages with a contained target are blocked. Returns (state, how many, () int32)."""
    blocked = live & (state.status == IDLE) & state.contained
    return state._replace(status=jnp.where(blocked, BLOCKED, state.status)), jnp.sum(blocked, dtype=jnp.int32)
