"""Lanes: L episodes side by side that somebody plays a tick at a time, in step or each at its own pace.

Episode e of seed s draws as in `rollouts`, so what a lane played is `replay(env, params, noise.root(s), e, actions)`.
Each lane has parameters of its own. A tick is a few small programs, as in `rollouts`: as one it compiles for minutes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import env, one_episode, reward
from jaxsim.one_episode import EpisodeStats
from jaxsim.types import RUNNING, Channels, Dims, Observation, Params, Signals, State

NESTED = ("channels", "signals", "verbs")  # fields of EpisodeStats that are no single number


class Lanes(NamedTuple):
    """Episodes that are being played; every leaf has the leading axis L."""

    seed: Array  # (L,) uint32
    episode: Array  # (L,) uint32, of that seed
    state: State
    stats: EpisodeStats  # so far; its signals are in `sums`
    sums: Array  # (L, 16) float32, see types.Signals


class Ticked(NamedTuple):
    """What a tick was worth to whoever acted."""

    reward: Array  # (L,) float32, points; 0 in lanes that did not play
    done: Array  # (L,) bool, the episode is over


def _key(seed: Array, episode: Array) -> Array:
    return jax.random.fold_in(jax.random.key(seed), episode)


@partial(jax.jit, static_argnames=("dims",))
def _begin(dims: Dims, params: Params, seed: Array, episode: Array) -> Lanes:
    def one(p: Params, s: Array, e: Array) -> Lanes:
        zeros = jnp.zeros(len(Signals._fields), jnp.float32)
        return Lanes(s, e, one_episode.start(dims, _key(s, e), p), one_episode.no_stats(p), zeros)

    return jax.vmap(one)(params, seed, episode)


@partial(jax.jit, donate_argnames=("lanes",))
def _where(which: Array, began: Lanes, lanes: Lanes) -> Lanes:
    chosen: Lanes = jax.vmap(lambda w, a, b: jax.tree.map(partial(jnp.where, w), a, b))(which, began, lanes)
    return chosen


def begin(
    dims: Dims, params: Params, seed: Array, episode: Array, lanes: Lanes | None = None, which: Array | None = None
) -> Lanes:
    """Lanes at tick 0 of episodes of seeds, (L,) uint32 each: all, or `which`, (L,) bool, of `lanes`, used up."""
    began = _begin(dims, params, seed, episode)
    return began if lanes is None else _where(which, began, lanes)


@jax.jit
def _noise(seed: Array, episode: Array, tick: Array) -> Array:
    """(L, 16): of the tick that follows."""
    return jax.vmap(lambda s, e, t: one_episode.tick_noise(_key(s, e), t + 1))(seed, episode, tick)


@partial(jax.jit, static_argnames=("dims",), donate_argnames=("lanes",))
def _tick(dims: Dims, params: Params, lanes: Lanes, block: Array, action: Array, which: Array) -> tuple[Lanes, Ticked]:
    def one(p: Params, lane: Lanes, b: Array, a: Array, plays: Array) -> tuple[Lanes, Ticked]:
        state, stats, signals, _ = one_episode.advance(dims, lane.state, a, b, p, lane.stats)
        points, channels = one_episode.paid((stats.episode_return, stats.channels), signals, p.reward)
        # One array of sums instead of fifteen compiles and runs in less time.
        stats = stats._replace(signals=lane.stats.signals, episode_return=points, channels=channels)
        after = Lanes(lane.seed, lane.episode, state, stats, lane.sums + jnp.stack(signals))
        pay = reward.total(reward.channels(signals, p.reward), p.reward)
        kept: Lanes = jax.tree.map(partial(jnp.where, plays), after, lane)
        return kept, Ticked(jnp.where(plays, pay, 0.0), kept.state.end != RUNNING)

    ticked: tuple[Lanes, Ticked] = jax.vmap(one)(params, lanes, block, action, which)
    return ticked


def tick(dims: Dims, params: Params, lanes: Lanes, action: Array, which: Array) -> tuple[Lanes, Ticked]:
    """One tick of `which` lanes, (L,) bool; `action` is (L,) int32, see `actions`. `lanes` is used up.

    A lane whose episode is over stays as it is, and is paid nothing.
    """
    return _tick(dims, params, lanes, _noise(lanes.seed, lanes.episode, lanes.state.tick), action, which)


@partial(jax.jit, static_argnames=("dims",))
def observe(dims: Dims, params: Params, state: State) -> Observation:
    """What the defenders see, leaves (L, ...)."""
    return jax.vmap(partial(env.observe, dims))(state, params)


@jax.jit
def _finish(params: Params, lanes: Lanes) -> EpisodeStats:
    stats = lanes.stats._replace(signals=Signals(*jnp.moveaxis(lanes.sums, -1, 0)))
    done: EpisodeStats = jax.vmap(one_episode.finish)(lanes.state, stats, params)
    return done


def outcomes(params: Params, lanes: Lanes) -> EpisodeStats:
    """How the episodes went, NumPy leaves (L, ...). Hidden until an episode is over."""
    stats: EpisodeStats = jax.tree.map(np.asarray, _finish(params, lanes))
    return stats


def numbers(stats: EpisodeStats, lane: int) -> dict[str, Any]:
    """Those of one lane by name, in plain Python: points in all and by channel, and what happened."""
    named = {name: value for name, value in stats._asdict().items() if name not in NESTED}
    named |= {f"points_{name}": getattr(stats.channels, name) for name in Channels._fields}
    return {name: value[lane].item() for name, value in named.items()}
