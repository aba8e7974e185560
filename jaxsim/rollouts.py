"""Massive rollouts: thousands of episodes in lockstep, each policy on the same episodes.

An episode is that of `one_episode`, whatever the batch that it is played in.

A batch is some policies in BLOCK episodes each, and a tick of it is two small programs, the policy acts and the
simulator advances; two more draw the noise of LOOK ticks and pay the reward of as many. So whatever is played, with any
number of policies and episodes and under any rewards, the simulator is compiled once a size of batch. Where it
is enough to know what episodes come to, as in a search of millions, each policy has a program for whole episodes.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import actions, check, env, policies, reward
from jaxsim.noise import Noise
from jaxsim.one_episode import EpisodeStats, advance, episode_keys, finish, no_stats, paid, start, tick_noise
from jaxsim.packed import Packed, pack, unpack
from jaxsim.policies import Policy
from jaxsim.types import CONFIRMED, RUNNING, Channels, Dims, Observation, Params, RewardWeights, Signals, State

BLOCK = 32  # episodes of a policy in a batch
GROUPS = (1, 8, 40)  # blocks in a batch, as many as are needed; each size is compiled for itself
# Policies that read no alerts and draw nothing, so that a program for whole episodes need not raise any, nor draw what
# only alerts and policies need: it takes a third of the time, and is soon compiled.
BLIND = (policies.PLAN, policies.FARM)
WHOLE = 1024  # pairs of a policy and an episode in a batch of whole episodes
# What a program for whole episodes leaves out of EpisodeStats.
LEFT_OUT: dict[str, Any] = dict.fromkeys(("channels", "verbs", "first_containment", "blind"))
LOOK = 8  # ticks that are drawn and paid together, after which a batch is asked whether all its episodes are over
WORKERS = min(4, os.cpu_count() or 1)  # what is done side by side, in threads
CHANNELS = ("alerts", "forensics", "controls")  # of an observation, that `exchange` can take from another episode


class Trajectory(NamedTuple):
    """Per-tick record; leading axis T = ticks. Rows after an episode's end are zero."""

    signals: Signals  # (T, ...) float32 each
    action: Array  # (T, ...) int32


def donors(episodes: int) -> np.ndarray:
    """(E,) int32: the episode that each of E gets observations from: the one before it among BLOCK neighbours."""
    e = np.arange(episodes, dtype=np.int32)
    first = e - e % BLOCK
    return first + (e - first - 1) % np.minimum(BLOCK, episodes - first)


def exchange(obs: Observation, donor: Array, channels: Array) -> Observation:
    """Give every episode what its donor sees in some CHANNELS; leaves have the axis (E, ...), `donor` (E,) is `donors`.

    `channels` (3,) bool says which. Its own clock and inventory stay. The donor is another episode of the same policy
    at the same tick.
    """
    alerts, forensics, controls = channels
    other = jax.tree.map(lambda x: x[donor], obs)

    def chosen(on: Array, theirs: Any, own: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(on, a, b), theirs, own)

    confirmed = (jnp.arange(obs.marks.shape[1], dtype=jnp.int32) == CONFIRMED)[None, :, None]
    return obs._replace(
        alerts=chosen(alerts, other.alerts, obs.alerts),
        forensics=chosen(forensics, other.forensics, obs.forensics),
        marks=jnp.where((confirmed & forensics) | (~confirmed & controls), other.marks, obs.marks),
    )


def named_channels(shuffle: tuple[str, ...]) -> np.ndarray:
    """(3,) bool: which of CHANNELS are named. Raises ValueError for an unknown name."""
    check.kind("shuffle", shuffle, tuple, f"a tuple of {', '.join(CHANNELS)}")
    if unknown := set(shuffle) - set(CHANNELS):
        raise ValueError(f"observation channel {min(unknown)!r} is unknown; choose among {', '.join(CHANNELS)}")
    return np.asarray([name in shuffle for name in CHANNELS])


# --- the programs of a batch; leading axes G policies, B episodes ----------------------------------------------------


class Lane(NamedTuple):
    """An episode in progress. Every array that a program returns costs it some microseconds: no more than changes."""

    state: State
    verbs: Array  # this and the next as in EpisodeStats
    first_containment: Array
    blind: Array


def _over_lanes(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(jax.vmap(f))


def _stats(lane: Lane, params: Params) -> EpisodeStats:
    """What is known of an episode in progress; all else is that of one that has not begun."""
    return no_stats(params)._replace(verbs=lane.verbs, first_containment=lane.first_containment, blind=lane.blind)


# What of a state is drawn at reset; all else is the same for all episodes.
DRAWN = ("personality", "who", "attack", "next_start", "targets", "order")


@partial(jax.jit, static_argnames=("dims", "impl"))
def _begin(dims: Dims, given: Packed, keys: Array, impl: str) -> State:
    """The first states; `given` are Params without a reward, `keys` (G, B, ...) uint32 key data.

    Only what is DRAWN has the leading axes.
    """
    params = unpack(given)
    axes: Any = State._make(0 if name in DRAWN else None for name in State._fields)
    began: State = jax.vmap(jax.vmap(lambda key: start(dims, key, params), out_axes=axes), out_axes=axes)(
        jax.random.wrap_key_data(keys, impl=impl)
    )
    return began


@partial(jax.jit, static_argnames=("impl",))
def _noise(keys: Array, impl: str, tick: Array) -> tuple[Array, ...]:
    """(G, B, 16) each: the noise of LOOK ticks of all episodes, from `tick` on."""
    lanes = jax.random.wrap_key_data(keys, impl=impl)
    blocks: tuple[Array, ...] = tuple(jax.vmap(_ahead, in_axes=(0, None), out_axes=1)(lanes, tick))
    return blocks


def _ahead(lanes: Array, tick: Array, many: int = len(Noise)) -> Array:
    """(LOOK, B, many): the noise of LOOK ticks, from `tick` on, of the episodes of keys (B,)."""
    ticks = tick + np.arange(LOOK, dtype=np.int32)
    return jax.vmap(jax.vmap(partial(tick_noise, many=many), in_axes=(0, None)), in_axes=(None, 0))(lanes, ticks)


def _spread(tree: Any, shape: tuple[int, ...]) -> Any:
    """Leaves of one episode for a batch of them."""
    return jax.device_put(jax.tree.map(lambda x: np.broadcast_to(x, (*shape, *np.shape(x))), tree))


@partial(jax.jit, static_argnames=("dims", "policy", "episodes"))
def _remember(dims: Dims, policy: Policy, parameters: Any, episodes: int) -> Any:
    """A policy's first memories."""

    def remember(p: Any) -> Any:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (episodes, *x.shape)), policy.init(dims, p))

    return jax.vmap(remember)(parameters)


@partial(jax.jit, static_argnames=("dims", "policy"))
def _act(
    dims: Dims,
    policy: Policy,
    parameters: Any,
    given: Packed,
    memory: Any,
    state: State,
    block: Array,
    swap: tuple[Array, Array] | None,
) -> tuple[Array, Any]:
    """(action, memory); `swap`: donors, (G, B), and the channels of `exchange`."""
    params = unpack(given)

    def act(p: Any, m: Any, s: State, obs: Observation, b: Array) -> tuple[Array, Any]:
        action, after = policy.act(dims, p, m, (obs, s) if policy.privileged else obs, b[Noise.POLICY_VERB :])
        return jnp.asarray(action), after

    seen = _over_lanes(lambda s: env.observe(dims, s, params))(state)
    if swap is not None:
        seen = jax.vmap(exchange, in_axes=(0, 0, None))(seen, *swap)
    acted: tuple[Array, Any] = jax.vmap(jax.vmap(act, in_axes=(None, 0, 0, 0, 0)))(
        parameters, memory, state, seen, block
    )
    return acted


@partial(jax.jit, static_argnames=("dims",), donate_argnames=("lanes",))
def _advance(dims: Dims, given: Packed, lanes: Lane, action: Array, block: Array) -> tuple[Lane, Array, Array, Array]:
    """(lanes, (G, B, 15) signals, action, () bool: some go on)."""
    params = unpack(given)

    def one(lane: Lane, a: Array, b: Array) -> Any:
        after, stats, signals, a = advance(dims, lane.state, a, b, params, _stats(lane, params))
        lane = Lane(after, stats.verbs, stats.first_containment, stats.blind)
        # One array instead of fifteen compiles and runs in less time.
        return lane, jnp.stack(signals), a

    after, signals, action = _over_lanes(one)(lanes, action, block)
    return after, signals, action, jnp.any(after.state.end == RUNNING)


@partial(jax.jit, donate_argnames=("points", "sums"))
def _pay(
    points: tuple[Array, Channels], sums: Array, signals: tuple[Array, ...], weights: RewardWeights
) -> tuple[tuple[Array, Channels], Array]:
    """(points, sums of the signals, (G, B, 15)) after as many ticks as there are (G, B, 15) signals."""

    def tick(carry: Any, s: Array) -> tuple[Any, None]:
        points, sums = carry
        return (_over_lanes(lambda p, s: paid(p, Signals(*s), weights))(points, s), sums + s), None

    after: tuple[tuple[Array, Channels], Array] = jax.lax.scan(tick, (points, sums), jnp.stack(signals))[0]
    return after


@jax.jit
def _finish(given: Packed, lanes: Lane, points: tuple[Array, Channels], sums: Array) -> EpisodeStats:
    """The statistics of the episodes of lanes that are over."""
    params = unpack(given)

    def one(lane: Lane, p: tuple[Array, Channels], s: Array) -> EpisodeStats:
        stats = _stats(lane, params)._replace(episode_return=p[0], channels=p[1], signals=Signals(*s))
        return finish(lane.state, stats, params)

    done: EpisodeStats = _over_lanes(one)(lanes, points, sums)
    return done


@partial(jax.jit, static_argnames=("dims", "policy", "impl", "returns_only"))
def _whole(
    dims: Dims, policy: Policy, parameters: Any, params: Params, keys: Array, impl: str, returns_only: bool
) -> Array | EpisodeStats:
    """Whole episodes, each with a policy and a key, (L, ...), of its own: returns, (L,) or (L, R), or all outcomes."""
    lanes = jax.random.wrap_key_data(keys, impl=impl)
    weights, several = params.reward, params.reward.clip.ndim
    drawn = Noise.ALERT_1 if policy in BLIND else len(Noise)

    def tick(p: Any, block: Array, memory: Any, state: State) -> tuple[Any, State, Signals]:
        seen = env.observe(dims, state, params)
        block = jnp.concatenate([block, np.zeros(len(Noise) - len(block), np.float32)])
        given = (seen, state) if policy.privileged else seen
        action, memory = policy.act(dims, p, memory, given, block[Noise.POLICY_VERB :])
        return memory, *env.transition(dims, state, action, block, params)

    def pay(signals: Array, w: RewardWeights) -> Array:
        s = Signals(*signals)
        return reward.total(reward.channels(s, w), w)

    # Lanes last: there are few rewards, and it is the last axis that a CPU works on side by side.
    over_rewards = jax.vmap(pay, in_axes=(None, 0)) if several else pay

    def step(carry: Any) -> Any:
        # Noise is drawn some ticks ahead, and a tick is paid in the next: what is carried over is not worked out again
        # wherever it is read.
        t, blocks, memory, state, signals, points, sums = carry
        points += over_rewards(signals, weights)
        sums = None if returns_only else sums + signals
        blocks = jax.lax.cond(t % LOOK == 0, lambda: _ahead(lanes, t + 1, drawn), lambda: blocks)
        memory, state, happened = jax.vmap(tick)(parameters, blocks[t % LOOK], memory, state)
        return t + 1, blocks, memory, state, jnp.stack(happened), points, sums

    def going(carry: Any) -> Array:
        return jnp.any(carry[3].end == RUNNING)

    began = jax.vmap(lambda key: start(dims, key, params))(lanes)
    memory = jax.vmap(partial(policy.init, dims))(parameters)
    blocks = jnp.zeros((LOOK, *lanes.shape, drawn), jnp.float32)
    signals = jnp.zeros((len(Signals._fields), *lanes.shape), jnp.float32)
    points = jnp.zeros((*weights.clip.shape, *lanes.shape), jnp.float32)
    first = (jnp.int32(0), blocks, memory, began, signals, points, None if returns_only else signals)
    last: Any = jax.lax.while_loop(going, step, first)
    *_, state, signals, points, sums = last
    points = jnp.moveaxis(points + over_rewards(signals, weights), -1, 0)
    if returns_only:
        return points

    def over(s: State, p: Array, total: Array) -> EpisodeStats:
        known = no_stats(params)._replace(episode_return=p, signals=Signals(*total))
        return finish(s, known._replace(**LEFT_OUT), params)

    done: EpisodeStats = jax.vmap(over, in_axes=(0, 0, 1))(state, points, sums + signals)
    return done


# --- batches ---------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """G pairs of a policy and a block of episodes."""

    policy: np.ndarray  # (G,) int, which of the M policies
    episode: np.ndarray  # (G, BLOCK) int, which of the E episodes; a block that is not full goes round


# What is done to the states of a batch, leaves (G, BLOCK, ...), before a tick is played; None leaves them alone.
Change = Callable[[State], State]
Meddle = Callable[[Batch, int], Change | None]


def _batches(many: int, episodes: int) -> list[Batch]:
    """All pairs, in batches of the smallest of GROUPS that holds them all; the last one goes round."""
    lanes = np.stack(_parts(episodes, BLOCK))
    pairs = many * len(lanes)
    groups = next((n for n in GROUPS if n >= pairs), GROUPS[-1])
    return [Batch(p // len(lanes), lanes[p % len(lanes)]) for p in _parts(pairs, groups)]


def _parts(many: int, size: int) -> list[np.ndarray]:
    """0 .. many - 1 in parts of `size`, (size,) int each; the last one goes round."""
    return [first + np.arange(size) % min(size, many - first) for first in range(0, many, size)]


def side_by_side(do: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """What `do` makes of each item, up to WORKERS of them at once, in threads."""
    # The first alone, because it compiles.
    done = [do(x) for x in items[:1]]
    pool = ThreadPoolExecutor(WORKERS)
    try:
        return done + list(pool.map(do, items[1:]))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # whoever interrupts need not wait for what is not begun


def _in_batches(play: Callable[[Batch], Any], batches: list[Batch], many: int, episodes: int) -> Any:
    """What `play` makes of all batches, leaves (G, BLOCK, ...), as leaves (M, E, ...)."""
    parts = side_by_side(play, batches)
    rows = many * -(-episodes // BLOCK)

    def join(*leaves: np.ndarray) -> np.ndarray:
        whole = np.concatenate(leaves)[:rows]
        return whole.reshape(many, -1, *whole.shape[2:])[:, :episodes]

    return jax.tree.map(join, *parts)


def _key_data(keys: Array) -> tuple[np.ndarray, str]:
    """(E, ...) uint32, and the name of their generator."""
    return np.asarray(jax.random.key_data(keys)), str(jax.random.key_impl(keys))


def _play(
    dims: Dims,
    params: Params,
    policy: Policy,
    parameters: Any,
    keys: tuple[np.ndarray, str],
    swap: tuple[np.ndarray, np.ndarray] | None,
    record: bool,
    meddle: Callable[[int], Change | None] | None,
) -> tuple[EpisodeStats, Trajectory | None]:
    """Play a batch, its parameters (G, ...) and keys (G, B, ...); NumPy, record (G, B, T, ...)."""
    horizon = int(np.max(params.scenario.horizon))
    weights = params.reward
    # Whatever the reward, one program.
    bare = jax.tree.map(np.asarray, params._replace(reward=None))  # type: ignore[arg-type]
    # For each shape `jnp.asarray` compiles a program.
    given, parameters, data, donor = jax.device_put((pack(bare), parameters, keys[0], swap))
    shape = data.shape[:2]
    began = _begin(dims, given, data, keys[1])
    same = {n: _spread(x, shape) for n, x in began._asdict().items() if n not in DRAWN}
    new = no_stats(bare)
    lanes = Lane(began._replace(**same), *_spread((new.verbs, new.first_containment, new.blind), shape))
    memory = _remember(dims, policy, parameters, shape[1])
    sums = jnp.zeros((*shape, len(Signals._fields)), jnp.float32)
    zero = np.zeros(np.shape(weights.clip), np.float32)
    points = _spread((zero, Channels(*[zero] * len(Channels._fields))), shape)
    nothing = jnp.zeros_like(sums)
    ticks: list[tuple[Array, Array]] = []
    for first in range(0, horizon, LOOK):
        # Who is still playing has the same tick; the others draw in vain.
        blocks, unpaid = _noise(data, keys[1], np.int32(first + 1)), []
        for tick, block in zip(range(first, min(first + LOOK, horizon)), blocks, strict=False):
            change = meddle(tick) if meddle else None
            if change is not None:
                lanes = lanes._replace(state=change(lanes.state))
            action, memory = _act(dims, policy, parameters, given, memory, lanes.state, block, donor)
            lanes, signals, action, going = _advance(dims, given, lanes, action, block)
            unpaid.append(signals)
            if record:
                ticks.append((signals, action))
        points, sums = _pay(points, sums, (*unpaid, *[nothing] * (LOOK - len(unpaid))), weights)
        if not going:
            break
    stats = _finish(given, lanes, points, sums)

    trajectory = None
    if record:
        signals = np.zeros((*shape, horizon, len(Signals._fields)), np.float32)
        action = np.full((*shape, horizon), actions.INVALID, np.int32)
        for t, (of_tick, played) in enumerate(ticks):
            signals[:, :, t], action[:, :, t] = of_tick, played
        trajectory = Trajectory(Signals(*np.moveaxis(signals, -1, 0)), action)
    return jax.tree.map(np.asarray, stats), trajectory


@contextmanager
def _fitting(parameters: Any) -> Iterator[None]:
    """What goes wrong while a policy is traced, before anything is played, is for want of its own parameters."""
    try:
        yield
    except (TypeError, AttributeError, IndexError) as error:
        why = (str(error).splitlines() or [""])[0]
        message = f"parameters = {check.said(parameters)} do not fit the policy ({why}); give its own, as in BASELINES"
        raise ValueError(message) from error


def outcomes_many(env_: env.Env, params: Params, policy: Policy, parameters: Any, keys: np.ndarray) -> EpisodeStats:
    """What M policies (leading axis of every leaf of `parameters`) come to in E episodes, as `rollout_many` has it but
    for rounding: by a program for whole episodes, which takes half of the time and some seconds more to compile.

    `keys` (E, ...) uint32 is the key data of the episodes. Returns NumPy arrays with axes (M, E); LEFT_OUT are None.
    """
    played: EpisodeStats = _in_one(env_, params, policy, parameters, keys, returns_only=False)
    return played


def returns_many(env_: env.Env, params: Params, policy: Policy, parameters: Any, keys: np.ndarray) -> np.ndarray:
    """(M, E) float32 returns, or (M, E, R) where the reward weights are (R,), of `outcomes_many`, in less time."""
    returns: np.ndarray = _in_one(env_, params, policy, parameters, keys, returns_only=True)
    return returns


def _in_one(
    env_: env.Env, params: Params, policy: Policy, parameters: Any, keys: np.ndarray, returns_only: bool
) -> Any:
    check.kind("keys", keys, np.ndarray, "jax.random.key_data of the episodes' keys, as NumPy")
    check.key("keys", keys, (None,))
    many = check.members("parameters", parameters, "those of `BASELINES` with a leading axis of policies")
    _, impl = _key_data(keys[:1])
    parameters = jax.tree.map(np.asarray, parameters)

    def play(pairs: np.ndarray) -> Any:
        rows, lanes = np.divmod(pairs, len(keys))
        some = jax.tree.map(lambda x: x[rows], parameters)
        return jax.device_get(_whole(env_.dims, policy, some, params, keys[lanes], impl, returns_only))

    def join(*leaves: np.ndarray) -> np.ndarray:
        whole = np.concatenate(leaves)[: many * len(keys)]
        return whole.reshape(many, len(keys), *whole.shape[1:])

    with _fitting(parameters):
        parts = side_by_side(play, _parts(many * len(keys), WHOLE))
    return jax.tree.map(join, *parts)


def rollout_many(
    env_: env.Env,
    params: Params,
    policy: Policy,
    parameters: Any,
    keys: Array,
    *,
    record: bool = False,
    shuffle: tuple[str, ...] = (),
    meddle: Meddle | None = None,
) -> tuple[EpisodeStats, Trajectory | None]:
    """Run M policies (leading axis of every leaf of `parameters`) on the E episodes of `keys`.

    Returns NumPy arrays: stats with axes (M, E), and with `record` the per-tick record with axes (M, E, T),
    T = the horizon. `shuffle` names CHANNELS of the observation that each episode gets from another one, see `donors`.
    `meddle(batch, tick)` may return what puts other states, leaves (G, BLOCK, ...), in the place of those of before a
    tick.
    Raises ValueError for an unknown channel.
    """
    check.kind("env_", env_, env.Env, "the one that `make` returns")
    check.kind("params", params, Params, "those that `make` returns")
    check.kind("policy", policy, Policy, "one such as jaxsim.BASELINES['heuristic'][0]")
    check.key("keys", keys, (None,))
    many = check.members("parameters", parameters, "those of `BASELINES` with a leading axis of policies")
    named = named_channels(shuffle)
    data, impl = _key_data(keys)
    leaves, tree = jax.tree.flatten(parameters)
    leaves = [np.asarray(x) for x in leaves]
    donor = donors(len(data)) % BLOCK

    def play(batch: Batch) -> tuple[EpisodeStats, Trajectory | None]:
        some = jax.tree.unflatten(tree, [x[batch.policy] for x in leaves])
        swap = (donor[batch.episode], named) if shuffle else None
        watched = partial(meddle, batch) if meddle else None
        return _play(env_.dims, params, policy, some, (data[batch.episode], impl), swap, record, watched)

    with _fitting(parameters):
        played: tuple[EpisodeStats, Trajectory | None] = _in_batches(play, _batches(many, len(data)), many, len(data))
    return played


def rollout(env_: env.Env, params: Params, policy: Policy, parameters: Any, key: Array, episodes: int) -> EpisodeStats:
    """Run one policy for `episodes` episodes of `key`; returns NumPy arrays with a leading axis (episodes,).

    `parameters` is the policy's own pytree, see `policies.BASELINES`.
    """
    check.key("key", key)
    check.whole("episodes", episodes, 1, 2**32)
    check.parameters("parameters", parameters)
    one = jax.tree.map(lambda x: np.asarray(x)[None], parameters)
    stats, _ = rollout_many(env_, params, policy, one, episode_keys(key, episodes))
    first: EpisodeStats = jax.tree.map(lambda x: x[0], stats)
    return first
