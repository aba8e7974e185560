"""One episode: its keys and noise, its beginning, its ticks and what is known of it in the end.

Episode e of `key` draws from fold_in(key, e), its reset from tick 0 of that key and its tick t from tick t of it. So an
episode is the same whoever plays it, alone or in a batch, and two policies meet the same attacker luck (common random
numbers).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array

from jaxsim import actions, env, noise, reward
from jaxsim.types import RUNNING, VERBS, Channels, Dims, Params, RewardWeights, Signals, State


class EpisodeStats(NamedTuple):
    """One episode's outcome. `rollout` adds a leading axis E, `rollout_many` two: M policies x E episodes.

    Where the reward weights are (R,) arrays, so are the return and the channels of an episode.
    """

    episode_return: Array  # () float32, points
    channels: Channels  # () float32 each, points, summed over the episode
    signals: Signals  # () float32 each, summed over the episode
    length: Array  # () int32, ticks
    end: Array  # () int32, see types.ENDS
    succeeded: Array  # () int32, stages
    downtime: Array  # () float32, load x ticks, controls left in force to the horizon
    verbs: Array  # (7,) int32, valid actions by verb
    first_containment: Array  # () int32, tick, horizon + 1 if none
    blind: Array  # () bool, the first containment came before any alert was in view


def episode_keys(key: Array, episodes: int, first: int = 0) -> Array:
    """Keys of episodes first .. first + episodes - 1, (E,)."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(first, first + episodes, dtype=jnp.uint32))


def tick_noise(episode_key: Array, tick: Array, many: int = len(noise.Noise)) -> Array:
    """The (16,) noise block of a tick of an episode, or the first `many` of it."""
    return noise.draw(noise.fold_in(episode_key, tick), many)


def start(dims: Dims, episode_key: Array, params: Params) -> State:
    """The state of tick 0 of an episode."""
    return env.reset(dims, noise.fold_in(episode_key, jnp.uint32(0)), params)


def no_stats(params: Params) -> EpisodeStats:
    """The statistics of an episode that has not begun."""
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    points = jnp.zeros(() if params.reward is None else params.reward.clip.shape, jnp.float32)
    return EpisodeStats(
        episode_return=points,
        channels=Channels(*[points] * len(Channels._fields)),
        signals=Signals(*[zero] * len(Signals._fields)),
        length=none,
        end=none,
        succeeded=none,
        downtime=zero,
        verbs=jnp.zeros(len(VERBS), jnp.int32),
        first_containment=params.scenario.horizon + 1,
        blind=jnp.zeros((), bool),
    )


def advance(
    dims: Dims, state: State, action: Array, block: Array, params: Params, stats: EpisodeStats
) -> tuple[State, EpisodeStats, Signals, Array]:
    """One tick of one episode: transition, and add up all but the points. The action is INVALID once it was over."""
    live = state.end == RUNNING
    after, signals = env.transition(dims, state, action, block, params)
    verb, _, valid = actions.decode(dims, action, params.scenario.exists)
    first = (signals.containments > 0) & (stats.first_containment > params.scenario.horizon)
    stats = stats._replace(
        signals=jax.tree.map(jnp.add, stats.signals, signals),
        verbs=stats.verbs + (live & valid & (jnp.arange(len(VERBS), dtype=jnp.int32) == verb)).astype(jnp.int32),
        first_containment=jnp.where(first, after.tick, stats.first_containment),
        blind=stats.blind | (first & (state.alerts.count == 0)),
    )
    return after, stats, signals, jnp.where(live, action, actions.INVALID)


def paid(points: tuple[Array, Channels], signals: Signals, weights: RewardWeights) -> tuple[Array, Channels]:
    """(return, channels) of an episode so far, with what a tick is paid."""
    channels = reward.channels(signals, weights)
    return points[0] + reward.total(channels, weights), jax.tree.map(jnp.add, points[1], channels)


def finish(state: State, stats: EpisodeStats, params: Params) -> EpisodeStats:
    """The statistics of an episode that has ended in `state`."""
    left = (params.scenario.horizon - state.tick).astype(jnp.float32)
    return stats._replace(
        length=state.tick,
        end=state.end,
        succeeded=state.succeeded,
        downtime=stats.signals.load + state.load * left,
    )
