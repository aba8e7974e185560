"""Massive rollouts: thousands of episodes in lockstep, each policy on the same episodes.

Episode e of `key` draws from fold_in(key, e), its reset from tick 0 of that key and its tick t from tick t of it. So an
episode is the same whatever the batch, and two policies meet the same attacker luck (common random numbers).
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import actions, check, env, noise, reward
from jaxsim.noise import Noise
from jaxsim.policies import Policy
from jaxsim.types import CONFIRMED, RUNNING, Channels, Dims, Observation, Params, Signals, State

BLOCK, GROUPS = 32, 32  # episodes of a policy, and policies, in a batch of `returns_many`
WORKERS = min(4, os.cpu_count() or 1)  # of its batches side by side
CHANNELS = ("alerts", "forensics", "controls")  # of an observation, that `exchange` can take from another episode


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
    verbs: Array  # (6,) int32, valid actions by verb
    first_containment: Array  # () int32, tick, horizon + 1 if none
    blind: Array  # () bool, the first containment came before any alert was in view


class Trajectory(NamedTuple):
    """Per-tick record; leading axis T = ticks. Rows after an episode's end are zero."""

    signals: Signals  # (T, ...) float32 each
    action: Array  # (T, ...) int32


def episode_keys(key: Array, episodes: int, first: int = 0) -> Array:
    """Keys of episodes first .. first + episodes - 1, (E,)."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(first, first + episodes, dtype=jnp.uint32))


def tick_noise(episode_key: Array, tick: Array) -> Array:
    """The (16,) noise block of a tick of an episode."""
    return noise.draw(jax.random.fold_in(episode_key, tick))


def start(dims: Dims, episode_key: Array, params: Params) -> State:
    """The state of tick 0 of an episode."""
    return env.reset(dims, jax.random.fold_in(episode_key, 0), params)


def no_stats(params: Params) -> EpisodeStats:
    """The statistics of an episode that has not begun."""
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    points = jnp.zeros_like(params.reward.clip)  # (R,) when several rewards are scored at once
    return EpisodeStats(
        episode_return=points,
        channels=Channels(*[points] * len(Channels._fields)),
        signals=Signals(*[zero] * len(Signals._fields)),
        length=none,
        end=none,
        succeeded=none,
        downtime=zero,
        verbs=jnp.zeros(6, jnp.int32),
        first_containment=params.scenario.horizon + 1,
        blind=jnp.zeros((), bool),
    )


def exchange(obs: Observation, channels: tuple[str, ...]) -> Observation:
    """Give every episode what its neighbour sees in some CHANNELS; leaves have the axes (M, E, ...).

    Its own clock and inventory stay. The neighbour is another episode of the same policy at the same tick.
    """
    if not channels:
        return obs
    other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=1), obs)
    if "alerts" in channels:
        obs = obs._replace(alerts=other.alerts)
    marks = obs.marks
    if "forensics" in channels:
        obs = obs._replace(forensics=other.forensics)
        marks = marks.at[:, :, CONFIRMED].set(other.marks[:, :, CONFIRMED])
    if "controls" in channels:
        marks = marks.at[:, :, :CONFIRMED].set(other.marks[:, :, :CONFIRMED])
    return obs._replace(marks=marks)


def play_tick(
    dims: Dims, policy: Policy, parameters: Any, params: Params, key: Array, obs: Observation, carry: Any
) -> tuple[Any, tuple[Signals, Array]]:
    """One tick of one episode that sees `obs`: act, transition, add up. `carry` is (state, memory, statistics)."""
    state, memory, stats = carry
    live = state.end == RUNNING
    block = tick_noise(key, state.tick + 1)
    seen = (obs, state) if policy.privileged else obs
    action, memory = policy.act(dims, parameters, memory, seen, block[Noise.POLICY_VERB :])
    after, signals = env.transition(dims, state, action, block, params)

    channels = reward.channels(signals, params.reward)
    verb, _, valid = actions.decode(dims, action, params.scenario.exists)
    first = (signals.containments > 0) & (stats.first_containment > params.scenario.horizon)
    stats = stats._replace(
        episode_return=stats.episode_return + reward.total(channels, params.reward),
        channels=jax.tree.map(jnp.add, stats.channels, channels),
        signals=jax.tree.map(jnp.add, stats.signals, signals),
        verbs=stats.verbs + (live & valid & (jnp.arange(6, dtype=jnp.int32) == verb)).astype(jnp.int32),
        first_containment=jnp.where(first, after.tick, stats.first_containment),
        blind=stats.blind | (first & (state.alerts.count == 0)),
    )
    return (after, memory, stats), (signals, jnp.where(live, action, actions.INVALID))


def finish(state: State, stats: EpisodeStats, params: Params) -> EpisodeStats:
    """The statistics of an episode that has ended in `state`."""
    left = (params.scenario.horizon - state.tick).astype(jnp.float32)
    return stats._replace(
        length=state.tick,
        end=state.end,
        succeeded=state.succeeded,
        downtime=stats.signals.load + state.load * left,
    )


@partial(jax.jit, static_argnames=("dims", "policy", "ticks", "shuffle"))
def _rollout(
    dims: Dims,
    policy: Policy,
    parameters: Any,
    params: Params,
    keys: Array,
    ticks: int | None,
    shuffle: tuple[str, ...],
) -> tuple[EpisodeStats, Trajectory | None]:
    own = 0 if keys.ndim == 2 else None  # keys (M, E): each policy has episodes of its own; (E,): all have the same

    def over_lanes(f: Any) -> Any:
        # Policies x episodes; params are shared by all lanes.
        return jax.vmap(jax.vmap(f, in_axes=(None, 0, 0)), in_axes=(0, own, 0))

    def begin(p: Any, key: Array, _: Array) -> Any:
        return start(dims, key, params), policy.init(dims, p), no_stats(params)

    def tick(p: Any, key: Array, seen_and_carry: Any) -> Any:
        return play_tick(dims, policy, p, params, key, *seen_and_carry)

    many = jax.tree.leaves(parameters)[0].shape[0]
    carry = over_lanes(begin)(parameters, keys, jnp.zeros((many, keys.shape[-1]), bool))

    def look(state: State) -> Observation:
        return env.observe(dims, state, params)

    def step(carry: Any) -> Any:
        obs = exchange(jax.vmap(jax.vmap(look))(carry[0]), shuffle)
        return over_lanes(tick)(parameters, keys, (obs, carry))

    if ticks is None:
        carry = jax.lax.while_loop(lambda c: jnp.any(c[0].end == RUNNING), lambda c: step(c)[0], carry)
        record = None
    else:
        carry, (signals, action) = jax.lax.scan(lambda c, _: step(c), carry, length=ticks)
        record = Trajectory(signals, action)
    state, _, stats = carry
    return jax.vmap(jax.vmap(lambda s, e: finish(s, e, params)))(state, stats), record


@contextmanager
def _fitting(parameters: Any) -> Iterator[None]:
    """What goes wrong while a policy is traced, before anything is played, is for want of its own parameters."""
    try:
        yield
    except (TypeError, AttributeError, IndexError) as error:
        why = (str(error).splitlines() or [""])[0]
        message = f"parameters = {check.said(parameters)} do not fit the policy ({why}); give its own, as in BASELINES"
        raise ValueError(message) from error


@partial(jax.jit, static_argnames=("dims", "policy"))
def _returns(dims: Dims, policy: Policy, parameters: Any, params: Params, keys: Array) -> Array:
    """(G, BLOCK) or (G, BLOCK, R) returns of G policies; `keys` (G, BLOCK, ...) uint32 are key data."""
    # What else an episode has to tell is no output, so the compiler leaves out what is needed for it alone.
    return _rollout(dims, policy, parameters, params, jax.random.wrap_key_data(keys), None, ())[0].episode_return


def returns_many(env_: env.Env, params: Params, policy: Policy, parameters: Any, keys: np.ndarray) -> np.ndarray:
    """Returns of M policies (leading axis of every leaf of `parameters`) in E episodes, as `rollout_many` has them.

    `keys` (E, ...) uint32 is the key data of the episodes. Returns (M, E) float32, or (M, E, R) where the reward
    weights are (R,). One compiled program serves every number of policies and of episodes: it plays GROUPS policies,
    BLOCK episodes of each, and several of it run side by side, a thread for each core.
    """
    check.kind("keys", keys, np.ndarray, "jax.random.key_data of the episodes' keys, as NumPy")
    check.key("keys", keys, (None,))
    check.members("parameters", parameters, "those of `BASELINES` with a leading axis of policies")
    leaves, tree = jax.tree.flatten(parameters)
    leaves = [np.asarray(x) for x in leaves]
    many, episodes = len(leaves[0]), len(keys)
    blocks = -(-episodes // BLOCK)
    data = np.resize(keys, (blocks * BLOCK, *keys.shape[1:])).reshape(blocks, BLOCK, *keys.shape[1:])
    points = np.shape(params.reward.clip)
    played = np.empty((many * blocks, BLOCK, *points), np.float32)

    def play(first: int) -> None:
        # The last batch is filled up with its first pair of policy and block, and cut again.
        pair = np.arange(first, first + GROUPS)
        pair[pair >= len(played)] = first
        some = jax.tree.unflatten(tree, [x[pair // blocks] for x in leaves])
        part = np.asarray(_returns(env_.dims, policy, some, params, data[pair % blocks]))
        played[first : first + GROUPS] = part[: len(played) - first]

    with _fitting(parameters):
        play(0)  # compiles
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(play, range(GROUPS, len(played), GROUPS)):
            pass
    return played.reshape(many, blocks * BLOCK, *points)[:, :episodes]


def rollout_many(
    env_: env.Env,
    params: Params,
    policy: Policy,
    parameters: Any,
    keys: Array,
    *,
    record: bool = False,
    lanes: int = 65536,
    shuffle: tuple[str, ...] = (),
) -> tuple[EpisodeStats, Trajectory | None]:
    """Run M policies (leading axis of every leaf of `parameters`) on the E episodes of `keys`, in chunks of policies.

    Returns NumPy arrays: stats with axes (M, E), and with `record` the per-tick record with axes (M, E, T),
    T = the horizon. `lanes` bounds the episodes in memory at a time. `shuffle` names CHANNELS of the observation that
    each episode gets from another one. Raises ValueError for an unknown channel.
    """
    check.kind("env_", env_, env.Env, "the one that `make` returns")
    check.kind("params", params, Params, "those that `make` returns")
    check.kind("policy", policy, Policy, "one such as jaxsim.BASELINES['heuristic'][0]")
    check.key("keys", keys, (None,))
    check.whole("lanes", lanes, 1)
    check.kind("shuffle", shuffle, tuple, f"a tuple of {', '.join(CHANNELS)}")
    many = check.members("parameters", parameters, "those of `BASELINES` with a leading axis of policies")
    if unknown := set(shuffle) - set(CHANNELS):
        raise ValueError(f"observation channel {min(unknown)!r} is unknown; choose among {', '.join(CHANNELS)}")
    # A power of two, so that searches of many sizes share few compiled programs.
    chunk = min(1 << (many - 1).bit_length(), max(1, lanes // len(keys)))
    ticks = int(np.max(params.scenario.horizon)) if record else None
    parts = []
    for i in range(0, many, chunk):
        # The last chunk is filled up, and cut again below.
        rows = np.minimum(np.arange(i, i + chunk), many - 1)
        part = jax.tree.map(lambda x, rows=rows: jnp.asarray(x)[rows], parameters)
        with _fitting(parameters):
            stats, trajectory = _rollout(env_.dims, policy, part, params, keys, ticks, tuple(sorted(shuffle)))
        if trajectory is not None:
            trajectory = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), trajectory)
        parts.append(jax.tree.map(lambda x, n=many - i: np.asarray(x)[:n], (stats, trajectory)))
    joined: tuple[EpisodeStats, Trajectory | None] = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return joined


def rollout(
    env_: env.Env,
    params: Params,
    policy: Policy,
    parameters: Any,
    key: Array,
    episodes: int,
    *,
    lanes: int = 65536,
) -> EpisodeStats:
    """Run one policy for `episodes` episodes of `key`; returns NumPy arrays with a leading axis (episodes,).

    `parameters` is the policy's own pytree, see `policies.BASELINES`. `lanes` bounds the episodes in memory at a time.
    """
    check.key("key", key)
    check.whole("episodes", episodes, 1, 2**32)
    check.whole("lanes", lanes, 1)
    check.parameters("parameters", parameters)
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], parameters)
    parts = []
    for first in range(0, episodes, lanes):
        keys = episode_keys(key, min(lanes, episodes - first), first)
        stats, _ = rollout_many(env_, params, policy, one, keys, lanes=lanes)
        parts.append(jax.tree.map(lambda x: x[0], stats))
    joined: EpisodeStats = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return joined
