"""Features of mean 0 and variance 1, for a network that learns: else one that hardly varies, such as how many assets
there are, hardly counts, however much hangs on it, since Adam moves all weights alike.

Only training knows of it: an optimiser steps as if features were normalised, and weights of features as they are move
by what that comes to. Normalised observations: Andrychowicz et al. 2020, arXiv:2006.05990.
"""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim.recurrent import Critic, Features, Weights

NARROWEST = np.float32(0.02)  # standard deviation: the steps of a rare feature's weights have a bound
CONSTANT = np.float32(1e-3)  # what varies less is left as it is
Network = TypeVar("Network", Weights, Critic)


class Moments(NamedTuple):
    """Means and standard deviations of features, (F,) or (G,) float32 each."""

    entity: tuple[Array, Array]  # of F features of an entity, over those that exist
    overall: tuple[Array, Array]  # of G overall


def none(network: Weights | Critic) -> Moments:
    """Those with which features stay as they are."""
    zeros = [np.zeros(len(x), np.float32) for x in (network.embed, network.embed_overall)]
    return Moments(*((x, x + 1) for x in zeros))


def moments(f: Features) -> Moments:
    """Those of many features, which have any leading axes."""

    def of(x: Array, counts: Array) -> tuple[Array, Array]:
        rows, share = x.reshape(-1, x.shape[-1]), counts.astype(jnp.float32).reshape(-1)
        share = share / jnp.maximum(jnp.sum(share), 1.0)
        mean = share @ rows
        deviation = jnp.sqrt(share @ jnp.square(rows - mean[None]))
        return mean, jnp.where(deviation < CONSTANT, np.float32(1.0), jnp.maximum(deviation, NARROWEST))

    return Moments(of(f.entity, f.exists), of(f.overall, jnp.ones(f.overall.shape[:-1])))


def _inputs(network: Weights | Critic, m: Moments) -> list[tuple[str, str, tuple[Array, Array]]]:
    """Its matrices that are given features, the bias beside each, and the moments of those features."""
    last = ("wait_overall", "wait_bias") if isinstance(network, Weights) else ("mix_overall", "mix_bias")
    return [("embed", "embed_bias", m.entity), ("embed_overall", "embed_bias", m.overall), (*last, m.overall)]


def as_they_are(step: Network, m: Moments) -> Network:
    """The step of weights of features as they are that does what `step` does to weights of normalised ones; linear."""
    for matrix, bias, (mean, deviation) in _inputs(step, m):
        weights = getattr(step, matrix)
        raw = weights / jnp.expand_dims(deviation, tuple(range(1, weights.ndim)))
        step = step._replace(**{matrix: raw, bias: getattr(step, bias) - mean @ raw})
    return step
