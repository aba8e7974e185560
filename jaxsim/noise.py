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
    """Slot of each draw. Where nobody reads alerts, and the policy draws nothing, only those before ALERT_1 matter.

    Integer in [lo, hi] from u: lo + floor(u (hi - lo + 1)).
    """

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


THREEFRY = "threefry2x32"  # the name that JAX has for it
ROTATIONS = np.asarray([[17, 29, 16, 24], [13, 15, 26, 6]], np.uint32)


def root(seed: int) -> Array:
    """The key of a seed. Raises ValueError for one that is no whole number from 0 to check.MAX_SEED."""
    return jax.random.key(check.whole("seed", seed, 0, check.MAX_SEED))


def draw(key: Array, many: int = len(Noise)) -> Array:
    """Uniforms in [0, 1) for one tick, (16,) float32, indexed by `Noise`; or the first `many` of them."""
    return uniform(key, many if is_threefry(key) else len(Noise))[:many]


def uniform(key: Array, many: int) -> Array:
    """Uniforms in [0, 1), (many,) float32, those of `jax.random.uniform(key, (many,))`."""
    if not is_threefry(key):
        return jax.random.uniform(key, (many,), jnp.float32)
    # 23 random bits after the point of a number in [1, 2).
    mantissa = bits(key, many) >> 9 | np.float32(1.0).view(np.uint32)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1.0)


def bits(key: Array, many: int) -> Array:
    """Random words, (many,) uint32, those of `jax.random.bits(key, (many,))`."""
    if not is_threefry(key):
        return jax.random.bits(key, (many,), jnp.uint32)
    counter = np.arange(many, dtype=np.uint32)
    x, y = threefry(jax.random.key_data(key), np.zeros_like(counter), counter)
    return x ^ y


def fold_in(key: Array, data: Array) -> Array:
    """The key of `jax.random.fold_in(key, data)`."""
    if not is_threefry(key):
        return jax.random.fold_in(key, data)
    data = jnp.asarray(data).astype(jnp.uint32)
    x, y = threefry(jax.random.key_data(key), jnp.zeros_like(data), data)
    return jax.random.wrap_key_data(jnp.stack([x, y]), impl=THREEFRY)


def is_threefry(key: Array) -> bool:
    """Whether `threefry` makes the numbers that `jax.random` makes of a key, as it does unless told otherwise."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    partitionable = bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
    return partitionable and typed and str(jax.random.key_impl(key)) == THREEFRY


def threefry(key: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of twenty rounds: key (2,), counter words and result uint32.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". On a CPU `jax.random` loops over the rounds and
    each goes through memory; written out they stay in registers.
    """
    first, second = key[0], key[1]
    schedule = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    x, y = x + first, y + second
    for injection in range(1, 6):
        for rotation in ROTATIONS[injection % 2]:
            x = x + y
            y = (y << rotation | y >> (32 - rotation)) ^ x
        x = x + schedule[injection % 3]
        y = y + schedule[(injection + 1) % 3] + np.uint32(injection)
    return x, y


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
