"""What a memoryless policy would rather do: its own policy improved in the simulator, round by round.

A critic that sees what a prompt shows is fitted to forked futures: what each action is worth over waiting. A fork
knows the hidden state, and in a few futures luck is most of the difference. Both average out where a network is given
the view alone and fitted, by least squares, to the forks of many states: it tends to the mean over whatever the view
leaves open. The states are of the play of whoever plays on, so that a language model has nothing to do for them.

Of a policy and its critic the next policy is made, chances x exp(worth / eta), whose critic comes next, and so on:
policy iteration by mirror descent (Abdolmaleki et al. 2018, arXiv:1806.06920; Geist et al. 2019, arXiv:1901.11275).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from grpo.rows import bank as banks
from grpo.rows import credit as credits
from grpo.rows import surrogate
from grpo.rows.bank import Bank
from grpo.rows.credit import Credit
from jaxsim import env, noise, recurrent
from jaxsim.recurrent import Features, Learned, Weights
from jaxsim.types import MONITOR, Dims, Params

SNAPSHOTS = 16  # states of an episode
TRIED = 12  # actions of a state that are forked, MONITOR among them
SELDOM = 1e-3  # chance that the least likely actions are counted with when those are drawn
WIDTH = 32
STEPS = 1500
BATCH = 256  # states of a step, at most
LEAST = 8  # states, to fit one
PLAY = 96  # episodes per campaign, of a policy, whose states the next one is fitted to


class Improved(NamedTuple):
    """What became of a policy."""

    learned: Learned  # the last policy
    critics: list["Critic"]  # of the first policy, of the next one, and so on
    rounds: list[dict[str, float]]  # what there is to say of each


class Critic(NamedTuple):
    """Two networks, each fitted to one half of the states."""

    weights: Weights  # leading axis (2,)
    scale: np.float32  # points of one unit of their outputs
    explained: float  # of the variance, luck included, by each network in the half of the other


def improve(
    env_: env.Env, params: Params, who: Learned, seed: int, *, rounds: int, states: int, futures: int, eta: float
) -> Improved:
    """The memoryless policy `who` after some `rounds`, each with a critic of `states` states and a step of 1 / `eta`.

    `params` has leading axis P. Raises ValueError as `learn` does.
    """
    dims, critics, told = env_.dims, list[Critic](), list[dict[str, float]]()
    for i in range(rounds):
        found = learn(env_, params, who, seed + i, states=states, futures=futures)
        bank = play_of(env_, params, who, seed + i, PLAY)  # others than the critic was fitted to
        wanted = target(surrogate.chances(dims, params, bank, who), credit(dims, params, bank, [found]), eta)
        fitted = surrogate.fit(dims, params, bank, wanted, seed + i, who.weights)
        critics.append(found)
        told.append({"round": i + 1, "explained": found.explained, "scale": float(found.scale), **fitted.agreement})
        who = fitted.learned
    return Improved(who, critics, told)


def play_of(env_: env.Env, params: Params, who: Learned, seed: int, episodes: int) -> Bank:
    """States of a memoryless policy's play."""
    key = jax.random.fold_in(noise.root(seed), 0x706C6179)
    return banks.collect_heuristic(env_, params, surrogate.POLICY, who, key, episodes, SNAPSHOTS)


def target(chances: np.ndarray, found: Credit, eta: float) -> np.ndarray:
    """(R, A) chances x exp(worth / eta), made to add up to 1; `eta` in points."""
    # What has no chance is not brought back, and what is not legal has none.
    with np.errstate(divide="ignore"):
        logits = np.where(found.legal, np.log(chances) + np.nan_to_num(found.q) / eta, -np.inf)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return wanted


def learn(env_: env.Env, params: Params, who: Learned, seed: int, *, states: int, futures: int) -> Critic:
    """A critic of the memoryless policy `who`, fitted in about `states` states of its play.

    `params` has leading axis P. In each state TRIED actions are forked into so many `futures`, in which `who` plays
    on. Raises ValueError for fewer than LEAST states or 2 futures.
    """
    if states < LEAST:
        raise ValueError(f"{states} states are too few to fit a critic to; give at least {LEAST}")
    key, dims = jax.random.fold_in(noise.root(seed), 0x63726974), env_.dims
    episodes = -(-states // (SNAPSHOTS * len(params.personality_weights)))
    bank = banks.collect_heuristic(env_, params, surrogate.POLICY, who, key, episodes, SNAPSHOTS)
    some = tried(credits.legal_actions(dims, params, bank), surrogate.chances(dims, params, bank, who), seed)
    found = credits.returns_to_go(
        dims, params, bank, surrogate.POLICY, who, jax.random.fold_in(key, 1), futures=futures, some=some
    )  # fmt: skip
    return fit(dims, surrogate.features(dims, params, bank), found, jax.random.fold_in(key, 2))


def tried(legal: np.ndarray, chances: np.ndarray, seed: int) -> np.ndarray:
    """(R, A) bool: TRIED of the `legal` actions of each row, MONITOR and others drawn, likely ones before others."""
    luck = np.random.default_rng([seed, 0x7472]).gumbel(size=legal.shape)
    order = np.log(np.maximum(chances, SELDOM)) + luck  # without replacement: Kool et al. 2019, arXiv:1903.06059
    order[:, MONITOR] = np.inf
    first = np.argsort(-np.where(legal, order, -np.inf), axis=1)[:, :TRIED]
    some = np.zeros_like(legal)
    np.put_along_axis(some, first, True, axis=1)
    return some & legal


def fit(dims: Dims, seen: Features, found: Credit, key: Array) -> Critic:
    """A critic of the returns-to-go over that of MONITOR, at states that show `seen`, leading axis (R,)."""
    over = np.nan_to_num(found.q - found.q[:, [MONITOR]])
    others = found.legal & (np.arange(dims.actions) != MONITOR)
    scale = np.float32(max(np.sqrt((over[others] ** 2).mean()), credits.ROUNDING))
    half = np.random.default_rng(0).permutation(len(over)) % 2
    size = len(over) // 2
    halves = np.stack([np.flatnonzero(half == h)[:size] for h in (0, 1)])
    mine = jax.tree.map(lambda x: jnp.asarray(x)[halves], (seen, jnp.asarray(over / scale), jnp.asarray(others)))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        weights = _fit(dims, min(BATCH, size), STEPS, *mine, jax.random.split(key, 2))
    crossed = jax.tree.map(lambda x: x[::-1], mine)
    outputs = jax.vmap(partial(_outputs, dims))(weights, crossed[0])  # each network's in the half of the other
    error, power = (float(jnp.sum(jnp.where(crossed[2], x**2, 0.0))) for x in (outputs - crossed[1], crossed[1]))
    return Critic(weights, scale, 1 - error / power if power else 0.0)


def credit(dims: Dims, params: Params, bank: Bank, critics: Sequence[Critic]) -> Credit:
    """What critics say together of every legal action at each row: points over MONITOR.

    `se` is half of what the two networks of each differ by, the standard error of their mean: it knows nothing of what
    they have in common.
    """
    seen, legal = surrogate.features(dims, params, bank), credits.legal_actions(dims, params, bank)
    q, square = np.zeros(legal.shape, np.float32), np.zeros(legal.shape, np.float32)
    for critic in critics:
        one, other = (np.asarray(x) * critic.scale for x in _both(dims, critic.weights, seen))
        q += np.where(legal, (one + other) / 2, np.float32(np.nan))
        square += np.where(legal, (one - other) ** 2 / 4, np.float32(np.nan))
    none = np.zeros(len(legal), np.int32)
    return Credit(q, np.sqrt(square), legal, none, none + 1)


def _outputs(dims: Dims, weights: Weights, seen: Features) -> Array:
    """(R, A), less that of MONITOR."""
    outputs = surrogate.logits(dims, weights, seen)
    return outputs - outputs[:, [MONITOR]]


@partial(jax.jit, static_argnames=("dims",))
def _both(dims: Dims, weights: Weights, seen: Features) -> Array:
    """(2, R, A) outputs of a critic's networks."""
    return jax.vmap(lambda w: _outputs(dims, w, seen))(weights)


@partial(jax.jit, static_argnames=("dims", "batch", "steps"))
def _fit(dims: Dims, batch: int, steps: int, seen: Features, over: Array, others: Array, keys: Array) -> Weights:
    """The weights of two networks; arguments and result have leading axis (2,)."""

    def of_one(seen: Features, over: Array, others: Array, key: Array) -> Weights:
        def loss(w: Weights, rows: Array) -> Array:
            error = _outputs(dims, w, jax.tree.map(lambda x: x[rows], seen)) - over[rows]
            there = others[rows]
            return jnp.sum(jnp.where(there, error, 0.0) ** 2) / jnp.sum(there).astype(jnp.float32)

        first, then = jax.random.split(key)
        weights = recurrent.init_weights(first, WIDTH, dims.restore)
        return surrogate.descend(loss, weights, len(over), batch, steps, then)

    found: Weights = jax.vmap(of_one)(seen, over, others, keys)
    return found
