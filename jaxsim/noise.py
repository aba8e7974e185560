"""The randomness of one tick: a block of uniforms with a name for each slot.

One block per tick keeps `transition` a pure function of (state, action, noise, params), lets a scalar twin be fed the
same numbers, and costs one call of the generator. Sixteen slots: a power of two is the cheapest shape.
"""

from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import check


class Noise(IntEnum):
    """Slot of each draw. Integer in [lo, hi] from u: lo + floor(u (hi - lo + 1))."""

    FORENSIC_ERROR = 0
    FORENSIC_CONFIDENCE = 1
    STAGE_SUCCESS = 2
    PAUSE = 3
    DWELL = 4
    ALERT_1 = 5
    LAG_1 = 6
    SEVERITY_1 = 7
    ALERT_2 = 8
    LAG_2 = 9
    SEVERITY_2 = 10
    BACKGROUND = 11  # fires if u < rate; u / rate is uniform again and picks the signal
    BACKGROUND_ENTITY = 12  # names an entity if u < share; u / share picks which
    BACKGROUND_SEVERITY = 13
    POLICY_VERB = 14  # the last two are the policy's own
    POLICY_TARGET = 15


def root(seed: int) -> Array:
    """The key of a seed. Raises ValueError for one that is no whole number from 0 to check.MAX_SEED."""
    return jax.random.key(check.whole("seed", seed, 0, check.MAX_SEED))


def draw(key: Array) -> Array:
    """Uniforms in [0, 1) for one tick, (16,) float32, indexed by `Noise`."""
    return jax.random.uniform(key, (len(Noise),), jnp.float32)


def unit(bits: Array) -> Array:
    """Uniform in [0, 1), float32, from uint32 bits."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def scramble(seed: Array, index: Array) -> Array:
    """uint32 keys whose order is a random permutation of different indices; both uint32. No two keys are equal.

    The finaliser of MurmurHash3 (Appleby, public domain), a bijection, of the Weyl sequence of `seed`: cheap, which
    counts where every step may begin an episode.
    """
    h = seed + index * np.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def integer(u: Array, lo: Array, hi: Array) -> Array:
    """Uniform integer in [lo, hi], int32, from u in [0, 1]; u = 1 gives hi."""
    span = (hi - lo + 1).astype(jnp.float32)
    return jnp.minimum(lo + jnp.floor(u * span).astype(jnp.int32), hi)
