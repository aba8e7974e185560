"""Credit of actions: the return still to come after each legal action of each row of a bank.

From a row's state the simulator forks K futures for every legal action: that action, then a continuation policy to the
end. Future k of a row has the same noise for all its actions (common random numbers), so differences between actions
are paired. A fork knows the hidden state and the defender does not. Two remedies keep a lucky blind guess from being
taught: the roles of what the defender has not seen are dealt anew in every future, see `redeal`, and rows that show
the same observation are averaged, see `beliefs`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax.sharding import Mesh, PartitionSpec

from grpo.rows.bank import Bank, take
from grpo.rows.redeal import redeal
from jaxsim import actions, check, env, reward
from jaxsim.noise import Noise
from jaxsim.one_episode import episode_keys, tick_noise
from jaxsim.policies import BASELINES, EVIDENCE, HEURISTIC, Handled, Policy
from jaxsim.types import CONFIRMED, CUT_OFF, HORIZON, PATCHED, RUNNING, Dims, Observation, Params, State

REDEAL = 2**31 - 1  # folded into a future's key for the roles; no tick is so late
ROUNDING = 1e-4  # points: float32 sums of a whole episode may differ by so much where nothing differs


class Credit(NamedTuple):
    """What each action of each row is worth. NumPy arrays; NaN where an action is not legal."""

    q: Array  # (R, A) float32, points, mean return-to-go
    se: Array  # (R, A) float32, points, standard error of q less the mean q of the row's legal actions, paired
    legal: Array  # (R, A) bool
    futures: Array  # (R,) int32, K, of each action
    beliefs: Array  # (R,) int32, rows averaged: 1 = one hidden attack, but for what was dealt anew


# --- one row --------------------------------------------------------------------------------------------------------


def memory_at(dims: Dims, policy: Policy, parameters: Any, obs: Observation) -> Any:
    """The memory of a policy that is switched on in mid-episode.

    The evidence and heuristic baselines remember what was investigated: that is read off the forensic results in view.
    Of the evidence baseline's own containments and rebuilds that leaves what the marks say, not when they were. Any
    other policy, a recurrent one too, starts with its empty memory, as at the start of an episode.
    """
    if policy not in (EVIDENCE, HEURISTIC):
        return policy.init(dims, parameters)
    shown = (obs.forensics.number >= 0).astype(jnp.int32)
    counts = jnp.zeros(dims.entities, jnp.int32).at[obs.forensics.entity].add(shown)
    if policy == HEURISTIC:
        return counts > 0
    rebuilt = obs.marks[PATCHED] & obs.marks[CUT_OFF] & ~obs.marks[CONFIRMED] & dims.restore
    return Handled(counts, jnp.zeros_like(counts), rebuilt)


class _Row(NamedTuple):
    """One row's task; a chunk of them has a leading axis."""

    state: State
    params_index: Array  # () int32
    place: Array  # () int32, in the bank: its luck
    action: Array  # (W,) int32, legal ones first, then MONITOR
    count: Array  # () int32, of legal ones


def _fork(
    dims: Dims, policy: Policy, futures: int, redealt: bool, parameters: Any, many: Params, key: Array, row: _Row
) -> tuple[Array, Array]:
    """((W,) mean, (W,) paired standard error) of a row's actions; W lanes by `futures` run in lockstep."""
    params = jax.tree.map(lambda x: x[row.params_index], many)
    keys = episode_keys(jax.random.fold_in(key, row.place), futures)

    def dealt(future: Array) -> State:
        return redeal(dims, row.state, params, jax.random.fold_in(future, REDEAL)) if redealt else row.state

    def resume(state: State) -> Any:
        return memory_at(dims, policy, parameters, env.observe(dims, state, params))

    def choose(state: State, memory: Any, block: Array) -> tuple[Array, Any]:
        obs = env.observe(dims, state, params)
        seen = (obs, state) if policy.privileged else obs
        chosen: tuple[Array, Any] = policy.act(dims, parameters, memory, seen, block[Noise.POLICY_VERB :])
        return chosen

    def tick(state: State, action: Array, points: Array, block: Array) -> tuple[State, Array]:
        state, signals = env.transition(dims, state, action, block, params)
        return state, points + reward.total(reward.channels(signals, params.reward), params.reward)

    def over(f: Any, *lanes: int | None) -> Any:
        """`f` in every lane, an action and a future; an argument of None is a future's only, whatever the action."""
        return jax.vmap(jax.vmap(f), lanes)

    # The row's own action is the first turn of the same loop: simulator and observation are compiled once.
    def turn(carry: tuple[Array, State, Any, Array]) -> tuple[Array, State, Any, Array]:
        now, state, memory, points = carry
        since = now - row.state.tick
        # Drawn once for all actions: the noise costs next to nothing.
        blocks = jax.vmap(lambda future: tick_noise(future, now + 1))(keys)
        memory = jax.lax.cond(since == 1, lambda: over(resume, 0)(state), lambda: memory)
        action, memory = over(choose, 0, 0, None)(state, memory, blocks)
        action = jnp.where(since == 0, row.action[:, None], action)
        state, points = over(tick, 0, 0, 0, None)(state, action, points, blocks)
        return now + 1, state, memory, points

    width = len(row.action)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (width, *x.shape)), jax.vmap(dealt)(keys))
    lanes = width, futures
    memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (*lanes, *jnp.shape(x))), policy.init(dims, parameters))
    begun = row.state.tick, state, memory, jnp.zeros(lanes, jnp.float32)
    *_, points = jax.lax.while_loop(lambda carry: jnp.any(carry[1].end == RUNNING), turn, begun)

    legal = np.arange(len(row.action), dtype=np.int32) < row.count
    centre = jnp.sum(jnp.where(legal[:, None], points, 0.0), axis=0) / row.count.astype(jnp.float32)
    spread = jnp.std(points - centre[None], axis=1, ddof=1)
    return jnp.mean(points, axis=1), spread / np.float32(np.sqrt(futures))


@partial(jax.jit, static_argnums=(0, 1))
def _forks(
    mesh: Mesh, static: tuple[Dims, Policy, int, bool], parameters: Any, params: Params, key: Array, rows: _Row
) -> tuple[Array, Array]:
    """`_fork` of a chunk of rows, shared out among the devices; on each of them one row after the other.

    One row's lanes are as many as a core's cache holds, need no more ticks than that row has left, and share its
    parameters.
    """

    def own(parameters: Any, params: Params, key: Array, rows: _Row) -> tuple[Array, Array]:
        return jax.lax.map(partial(_fork, *static, parameters, params, key), rows)

    shared, split = PartitionSpec(), PartitionSpec("rows")
    spread = jax.shard_map(own, mesh=mesh, in_specs=(shared, shared, shared, split), out_specs=split, check_vma=False)
    return spread(parameters, params, key, rows)


# --- all rows -------------------------------------------------------------------------------------------------------


def legal_actions(dims: Dims, params: Params, bank: Bank) -> Array:
    """(R, A) bool: the legal actions of each row."""
    table = jax.vmap(partial(actions.legal_mask, dims))(jnp.asarray(params.scenario.exists))
    return np.asarray(table)[bank.params_index]


def returns_to_go(
    dims: Dims,
    params: Params,
    bank: Bank,
    policy: Policy = EVIDENCE,
    parameters: Any = BASELINES["evidence"][1],
    key: Array | None = None,
    *,
    futures: int = 32,
    redealt: bool = True,
    some: Array | None = None,
    chunk: int = 64,
    devices: Sequence[jax.Device] | None = None,
) -> Credit:
    """Mean return-to-go, in points, of every legal action of every row, each over the same K = `futures` futures.

    `params` has leading axis P. After the action, `policy` plays to the end, from the next tick on and with the memory
    of `memory_at`. Row r draws its luck from `key` (seed 0 if not given) and r alone: neither `chunk`, the rows of one
    call, nor `devices`, by default all, change a result but for rounding. With `redealt` each future has its own deal
    of the unseen roles, see `redeal`. `some`, (R, A) bool, are the legal actions to try, at least one a row; all others
    count as not legal. Raises ValueError for fewer than 2 futures, a chunk below 1, an empty bank, a finished state, a
    campaign that `params` lacks, and `some` that are not legal.
    """
    _check(params, bank, futures, chunk)
    key = jax.random.key(0) if key is None else key
    mesh = Mesh(np.asarray(devices or jax.devices()), ("rows",))
    legal = legal_actions(dims, params, bank)
    if some is not None:
        some, every = np.asarray(some, bool), legal
        if some.shape != every.shape or (some & ~every).any() or not some.any(axis=1).all():
            raise ValueError(f"some is no choice of legal actions of each row; give bools of shape {every.shape}")
        legal = some
    order, real = _lanes(legal)
    q, se = (np.full(legal.shape, np.nan, np.float32) for _ in range(2))
    program = partial(
        _forks, mesh, (dims, policy, futures, redealt), jax.tree.map(jnp.asarray, parameters), params, key
    )
    left = np.asarray(params.scenario.horizon)[bank.params_index] - bank.state.tick
    for chosen, filler in _chunks(left, chunk, mesh.size):
        part = take(bank, chosen)
        end = np.where(filler, HORIZON, RUNNING).astype(np.int32)  # over at once
        count = real[chosen].sum(axis=1, dtype=np.int32)
        mean, error = map(
            np.asarray, program(_Row(part.state._replace(end=end), part.params_index, chosen, order[chosen], count))
        )
        row, lane = np.nonzero(real[chosen] & ~filler[:, None])
        place = chosen[row], order[chosen[row], lane]
        q[place], se[place] = mean[row, lane], error[row, lane]
    return Credit(q, se, legal, np.full(len(q), futures, np.int32), np.ones(len(q), np.int32))


def _check(params: Params, bank: Bank, futures: int, chunk: int) -> None:
    """Raise ValueError for what no return-to-go can be had of."""
    rows, campaigns = len(bank.params_index), len(params.personality_weights)
    for name, value, least in (("futures", futures, 2), ("chunk", chunk, 1), ("rows of the bank", rows, 1)):
        if value < least:
            raise ValueError(f"{name} = {value} is too few; give at least {least}")
    if (over := np.flatnonzero(np.asarray(bank.state.end) != RUNNING)).size:
        raise ValueError(f"row {over[0]} of the bank has ended; a row needs a decision still to be made: leave it out")
    if not 0 <= np.min(bank.params_index) <= np.max(bank.params_index) < campaigns:
        raise ValueError(
            f"params_index of the bank is not in 0..{campaigns - 1}; give the params it was collected with"
        )


def _lanes(legal: Array) -> tuple[Array, Array]:
    """((R, W) int32 action of each lane, (R, W) bool which are real): legal ones first, then MONITOR."""
    count = legal.sum(axis=1, dtype=np.int32)
    order = np.argsort(~legal, axis=1, kind="stable")[:, : count.max()].astype(np.int32)
    real = np.arange(order.shape[1]) < count[:, None]
    return np.where(real, order, 0), real


def _chunks(left: Array, chunk: int, devices: int) -> Iterator[tuple[Array, Array]]:
    """(rows, which of them only fill up) of each call: those with about as many ticks `left` run at the same time.

    So no device waits for another: neighbours in length are dealt out among them.
    """
    by_length = np.argsort(-left, kind="stable").astype(np.int32)
    size = -(-chunk // devices) * devices
    dealt = np.arange(size).reshape(-1, devices).T.ravel()
    for i in range(0, len(left), size):
        mine = by_length[i : i + size]
        yield mine[np.minimum(dealt, len(mine) - 1)], dealt >= len(mine)


# --- what the numbers say -------------------------------------------------------------------------------------------


def informative(credit: Credit, z: float = 2.5, least: float = 0.0) -> Array:
    """(R,) bool: rows whose best action beats the mean of the legal ones by more than luck; others teach nothing.

    The mean, because an advantage in GRPO is a distance from a group's mean, and because its error is free of the
    choice of a best action. The bar is `z` standard errors for one action, raised for the choice among A legal ones by
    Bonferroni's correction and for the estimated error by Student's t with K - 1 degrees of freedom (Cornish-Fisher
    expansion, good for K of 16 or more): for z = 2.5, A = 41 and K = 32 it is 4.1. The gain must also be above `least`
    points. Raises ValueError for a z that is not positive.
    """
    if not 0 < z <= 10:
        raise ValueError(f"z = {z} is not positive, or above 10; give a number of standard errors, such as 2.5")
    check.number("least", least, 0, float("inf"))
    normal = NormalDist()
    tail, count, dof = normal.cdf(-z), credit.legal.sum(axis=1), credit.futures - 1.0
    bar = np.asarray([-normal.inv_cdf(tail / n) for n in count])
    bar += (bar**3 + bar) / (4 * dof) + (5 * bar**5 + 16 * bar**3 + 3 * bar) / (96 * dof**2)
    gain = credit.q - np.nanmean(credit.q, axis=1, keepdims=True)
    enough = np.maximum(bar[:, None] * credit.se, max(least, ROUNDING))
    return np.any(credit.legal & (gain > enough), axis=1)


def regret(credit: Credit, row: Array, action: Array) -> Array:
    """Points that actions lose on the row's best legal one, float32 of the common shape; NaN for one that is not legal.

    The best of many noisy means is too high: on average the regret of even the best action is overstated a little.
    """
    known = (np.asarray(action) >= 0) & (np.asarray(action) < credit.q.shape[1])
    return np.where(known, np.nanmax(credit.q, axis=1)[row] - credit.q[row, np.where(known, action, 0)], np.nan)


def scaled(credit: Credit) -> Array:
    """(R, A) float32: each row's q from 0, its worst legal action, to 1, its best; 0 where all are equal."""
    low, high = (f(credit.q, axis=1, keepdims=True) for f in (np.nanmin, np.nanmax))
    return (credit.q - low) / np.where(high > low, high - low, np.float32(1))
