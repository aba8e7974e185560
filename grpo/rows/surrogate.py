"""A stand-in for a language model in simulated futures: a small network that acts as the model does.

The forks of `credit` need thousands of futures of whoever plays on, for which a language model is too slow. A
memoryless policy, which sees what a prompt shows, is fitted to the model's probabilities of all legal actions at the
loop's states. How far it is from the model is measured at states that it was not fitted to.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from grpo.rows import bank as banks
from grpo.rows.bank import Bank
from jaxsim import noise, recurrent
from jaxsim.recurrent import MEMORYLESS, Features, Learned, Weights
from jaxsim.types import Dims, Params

POLICY = recurrent.POLICIES[MEMORYLESS]
STEPS = 400
BATCH = 128  # states of a step, at most
RATE = 3e-3  # of Adam, falls linearly to 0
LEAST = 5  # states, to fit one and to measure it
APART = 0.2  # share of the states that nothing is fitted to


class Surrogate(NamedTuple):
    """A fitted stand-in."""

    learned: Learned  # parameters of `POLICY`; it draws its actions
    agreement: dict[str, float]  # see `agreement`


@partial(jax.jit, static_argnames=("dims",))
def _features(dims: Dims, obs: Any) -> Features:
    found: Features = jax.vmap(partial(recurrent.features, dims, recurrent.SIGHTS[MEMORYLESS]))(obs)
    return found


def features(dims: Dims, params: Params, bank: Bank) -> Features:
    """What a memoryless network is given at each row; `params` has leading axis P."""
    return _features(dims, banks.observe(dims, params, bank))


@partial(jax.jit, static_argnames=("dims",))
def _chances(dims: Dims, weights: Weights, obs: Any) -> Array:
    return jax.vmap(partial(recurrent.chances, dims, weights))(obs)


def chances(dims: Dims, params: Params, bank: Bank, who: Learned) -> np.ndarray:
    """(R, A) float32, a memoryless policy's probability of every action at each row; 0 where it is not legal."""
    return np.asarray(_chances(dims, who.weights, banks.observe(dims, params, bank)))


def logits(dims: Dims, weights: Weights, seen: Features) -> Array:
    """(R, A), what a memoryless network makes of what is `seen`, leading axis (R,)."""
    memory = recurrent.no_history(dims, weights)
    return jax.vmap(lambda f: recurrent.forward(dims, weights, memory, f)[0])(seen)


def _log_p(dims: Dims, weights: Weights, seen: Features) -> Array:
    return jax.nn.log_softmax(logits(dims, weights, seen))


def descend(
    loss: Callable[[Weights, Array], Array], weights: Weights, many: int, batch: int, steps: int, key: Array
) -> Weights:
    """The weights after some `steps` down the `loss` of batches of `many` rows; called within `jax.jit`."""
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(RATE, 0.0, steps)))

    def step(carry: Any, k: Array) -> Any:
        w, memory = carry
        rows = jax.random.randint(k, (batch,), 0, many, jnp.int32)
        change, memory = optimiser.update(jax.grad(loss)(w, rows), memory, w)
        return (optax.apply_updates(w, change), memory), None

    (fitted, _), _ = jax.lax.scan(step, (weights, optimiser.init(weights)), jax.random.split(key, steps))
    return fitted


@partial(jax.jit, static_argnames=("dims", "batch", "steps"))
def _fit(dims: Dims, batch: int, steps: int, weights: Weights, seen: Features, target: Array, key: Array) -> Weights:
    def loss(w: Weights, rows: Array) -> Array:
        log_p = _log_p(dims, w, jax.tree.map(lambda x: x[rows], seen))
        return -jnp.mean(jnp.sum(target[rows] * log_p, axis=1))

    return descend(loss, weights, len(target), batch, steps, key)


def fit(
    dims: Dims, params: Params, bank: Bank, chances: Array, seed: int, start: Weights | None = None, width: int = 16
) -> Surrogate:
    """A stand-in for whoever chooses with `chances`, (R, A), at the rows of a bank; rows add up to 1.

    A fifth of the rows is kept apart for the agreement. It begins at the weights `start`, such as a teacher's of the
    same game, or at random ones of that width. `params` has leading axis P. Raises ValueError for fewer than LEAST
    rows.
    """
    many = len(chances)
    if many < LEAST:
        raise ValueError(f"{many} rows are too few to fit a stand-in to; give at least {LEAST}")
    key = jax.random.fold_in(noise.root(seed), 0x5572)
    order = np.random.default_rng(seed).permutation(many)
    apart, shown = np.split(order, [max(1, int(APART * many))])
    target = np.asarray(chances, np.float32)
    seen = features(dims, params, bank)
    weights = recurrent.init_weights(key, width, dims.restore) if start is None else jax.tree.map(jnp.asarray, start)
    mine = jax.tree.map(lambda x: x[shown], seen)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        fitted = _fit(dims, min(BATCH, len(shown)), STEPS, weights, mine, jnp.asarray(target[shown]), key)
    found = np.exp(np.asarray(_log_p(dims, fitted, jax.tree.map(lambda x: x[apart], seen))))
    return Surrogate(Learned(fitted, np.bool_(False), recurrent.SIGHTS[MEMORYLESS]), agreement(target[apart], found))


def agreement(own: Array, found: Array) -> dict[str, float]:
    """How alike two policies are, (R, A) probabilities each, averaged over R states.

    `distance` is the total variation distance, from 0 to 1; `same` the share of states with the same likeliest action.
    A return-to-go of the one differs from the other's by no more than the sum over the ticks left of distance x range
    of the returns-to-go, in the states that the one comes to (Kakade & Langford 2002, performance differences).
    """
    return {
        "rows": len(own),
        "distance": float(np.abs(own - found).sum(axis=1).mean() / 2),
        "same": float((own.argmax(axis=1) == found.argmax(axis=1)).mean()),
    }
