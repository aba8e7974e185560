"""Sets of stages as words of 32 bits, (W,) uint32: stage k is bit k mod 32 of word k // 32.

A batch of episodes asks the same of all stages at every tick: of a word that is one operation.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from chex import Array

BITS = 32


def packed(which: Any, xp: Any = jnp) -> Any:
    """(..., W) uint32: the set of the stages that (..., S) bool names. `xp` is np where a scenario is compiled."""
    many = which.shape[-1]
    bits = which.astype(np.uint32) << xp.broadcast_to(np.arange(many, dtype=np.uint32) % BITS, which.shape)
    words = [xp.sum(bits[..., i : i + BITS], axis=-1, dtype=np.uint32) for i in range(0, many, BITS)]
    return xp.stack(words, axis=-1)


def unpacked(words: Any, many: int, xp: Any = jnp) -> Any:
    """(..., S) bool: which of `many` stages are in the set (..., W). `xp` is np where `words` are of NumPy."""
    shape = words.shape[:-1]
    parts = [xp.broadcast_to(words[..., i // BITS, None], (*shape, min(BITS, many - i))) for i in range(0, many, BITS)]
    bit = np.arange(many, dtype=np.uint32) % BITS
    return xp.concatenate(parts, axis=-1) >> xp.broadcast_to(bit, (*shape, many)) & 1 != 0


def only(stage: Array, words: int) -> Array:
    """(W,) uint32: the set of one stage, () int32; the empty one of a stage below 0."""
    bit = jnp.uint32(1) << (stage % BITS).astype(jnp.uint32)
    return jnp.where(np.arange(words, dtype=np.int32) == stage // BITS, bit, jnp.uint32(0))


def size(words: Array) -> Array:
    """() int32: how many stages are in the set (W,)."""
    return jnp.sum(jnp.bitwise_count(words), dtype=jnp.int32)


def once(*flags: Array) -> tuple[Array, ...]:
    """The same () bool values, at most 32, which a compiler works out once: it repeats what leads to a value wherever
    that is read, but not a sum."""
    bits = np.arange(len(flags), dtype=np.uint32)
    word = jnp.sum(jnp.stack(flags).astype(jnp.uint32) << bits, dtype=jnp.uint32)
    return tuple(word >> b & 1 != 0 for b in bits)
