"""Features of mean 0 and variance 1, for a network that learns: else one that hardly varies, such as how many assets
there are, hardly counts, however much hangs on it, since Adam moves all weights alike.

Only training knows of it. Weights that learn are those of the normalised features; what plays, and is written, are the
weights that make the same of features as they are. Andrychowicz et al. 2020, arXiv:2006.05990, 3.3.
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


def none(network: Network) -> Moments:
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


def playing(learning: Network, m: Moments) -> Network:
    """The network of features as they are, of one of normalised features."""
    for matrix, bias, (mean, deviation) in _inputs(learning, m):
        weights = getattr(learning, matrix)
        raw = weights / jnp.expand_dims(deviation, tuple(range(1, weights.ndim)))
        learning = learning._replace(**{matrix: raw, bias: getattr(learning, bias) - mean @ raw})
    return learning


def learning(playing: Network, m: Moments) -> Network:
    """The inverse: the network of normalised features, of one of features as they are."""
    for matrix, bias, (mean, deviation) in _inputs(playing, m):
        raw = getattr(playing, matrix)
        weights = raw * jnp.expand_dims(deviation, tuple(range(1, raw.ndim)))
        playing = playing._replace(**{matrix: weights, bias: getattr(playing, bias) + mean @ raw})
    return playing
