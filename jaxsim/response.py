"""How a defender responds: the times that a SOC counts, and what was in view, of episodes that have been played.

The phases are those of NIST SP 800-61: detection, containment, and eradication and recovery.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import check, env
from jaxsim.one_episode import start, tick_noise
from jaxsim.types import CONFIRMED, CUT_OFF, EGRESS_BLOCKED, RUNNING, Dims, Params, State
from scenarios.model import TICK_MINUTES

TICK_HOURS = TICK_MINUTES / 60
NEVER = -1
LANES = 16  # episodes of the smallest batch


class Response(NamedTuple):
    """When what happened in an episode; `watched` adds an axis E. NEVER, where it did not.

    An identity cannot be rebuilt, so a compromised one has to stay revoked: every other control is needless in the end.
    """

    compromised: Array  # () int32, tick of the first compromise
    detected: Array  # () int32, first tick on which something compromised is confirmed
    contained: Array  # () int32, first tick after a compromise on which all that is compromised is cut off
    recovered: Array  # () int32, first tick from then on with no asset compromised and no needless control, see above
    dwell: Array  # () int32, ticks on which something compromised is not cut off


class Watched(NamedTuple):
    """E episodes of T ticks, watched once more."""

    response: Response  # (E,) each
    alerted: Array  # (E, T) bool, an alert was in view when acting
    containments: Array  # (E, T) float32, as in Signals


def no_response() -> Response:
    """That of an episode that has not begun."""
    never = jnp.int32(NEVER)
    return Response(never, never, never, never, jnp.int32(0))


def mark(dims: Dims, so_far: Response, before: State, state: State) -> Response:
    """Add a tick from state to state; one after the end of the episode changes nothing."""
    at_large = jnp.any(state.compromised & ~state.marks[CUT_OFF])
    over = so_far.compromised != NEVER
    assets = np.arange(dims.entities) < dims.assets
    controls = state.marks[CUT_OFF] | state.marks[EGRESS_BLOCKED]
    restored = ~jnp.any(jnp.where(assets, state.compromised | controls, controls & ~state.compromised))

    def first(seen: Array, happens: Array) -> Array:
        return jnp.where((seen == NEVER) & happens, state.tick, seen)

    contained = first(so_far.contained, over & ~at_large)
    marked = Response(
        compromised=first(so_far.compromised, jnp.any(state.compromised)),
        detected=first(so_far.detected, jnp.any(state.compromised & state.marks[CONFIRMED])),
        contained=contained,
        recovered=first(so_far.recovered, (contained != NEVER) & restored),
        dwell=so_far.dwell + at_large.astype(jnp.int32),
    )
    live = before.end == RUNNING
    return jax.tree.map(partial(jnp.where, live), marked, so_far)


@partial(jax.jit, static_argnames=("dims", "impl"))
def _watch(dims: Dims, params: Params, keys: Array, impl: str, actions: Array) -> Watched:
    def one(key: Array, plan: Array) -> Watched:
        def tick(carry: tuple[State, Response], action: Array) -> Any:
            state, so_far = carry
            after, signals = env.transition(dims, state, action, tick_noise(key, state.tick + 1), params)
            so_far = mark(dims, so_far, state, after)
            return (after, so_far), (state.alerts.count > 0, signals.containments)

        (_, response), ticks = jax.lax.scan(tick, (start(dims, key, params), no_response()), plan)
        return Watched(response, *ticks)

    found: Watched = jax.vmap(one)(jax.random.wrap_key_data(keys, impl=impl), actions)
    return found


def watched(env_: env.Env, params: Params, keys: Array, actions: Array) -> Watched:
    """The episodes of `keys`, (E,), in which `actions`, (E, T) int32, were taken; NumPy arrays.

    The actions are those of `rollouts.Trajectory`. Raises ValueError for an argument that is no such thing.
    """
    check.kind("env_", env_, env.Env, "the one that `make` returns")
    check.kind("params", params, Params, "those that `make` returns")
    check.key("keys", keys, (None,))
    check.actions("actions", actions, (len(keys), None))
    bare = params._replace(reward=None)  # type: ignore[arg-type]  # of which the times know nothing
    many, impl = len(keys), str(jax.random.key_impl(keys))
    # Few episodes share a program with any few; those that only fill up are left out.
    rows = np.minimum(np.arange(max(many, LANES)), many - 1)
    data, plans = np.asarray(jax.random.key_data(keys))[rows], np.asarray(actions, np.int32)[rows]
    found: Watched = jax.tree.map(lambda x: np.asarray(x)[:many], _watch(env_.dims, bare, data, impl, plans))
    return found


def hours(r: Response) -> dict[str, float | None]:
    """What a report says of E episodes: shares of those with a compromise, and mean hours where it happened.

    `to_detect` and `to_contain` are from the first compromise on, `to_recover` from the containment; None: never.
    """
    hit = r.compromised != NEVER

    def mean(many: np.ndarray, where: np.ndarray) -> float | None:
        return float(many[where].mean()) * TICK_HOURS if where.any() else None

    def share(ticks: np.ndarray) -> float | None:
        return float((ticks[hit] != NEVER).mean()) if hit.any() else None

    return {
        "detected": share(r.detected),
        "contained": share(r.contained),
        "recovered": share(r.recovered),
        "hours_to_detect": mean(r.detected - r.compromised, r.detected != NEVER),
        "hours_to_contain": mean(r.contained - r.compromised, r.contained != NEVER),
        "hours_to_recover": mean(r.recovered - r.contained, r.recovered != NEVER),
        "hours_of_dwell": mean(r.dwell, hit),
    }
