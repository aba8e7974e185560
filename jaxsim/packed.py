"""Many small arrays as a few: each that a compiled program is given costs a microsecond, each that it returns ten."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A pytree's leaves one after the other, an array (words,) for each dtype. `jax.vmap` may add axes behind."""

    words: dict[str, Array]
    form: tuple[Any, tuple[tuple[tuple[int, ...], str], ...]] = field(metadata={"static": True})  # to unpack it


def pack(tree: Any) -> Packed:
    """The same numbers; of NumPy arrays, NumPy arrays."""
    leaves, structure = jax.tree.flatten(tree)
    xp = np if all(isinstance(x, np.ndarray) for x in leaves) else jnp
    names = [x.dtype.name for x in leaves]
    words = {
        name: xp.concatenate([x.reshape(-1) for x, own in zip(leaves, names, strict=True) if own == name])
        for name in sorted(set(names))
    }
    return Packed(words, (structure, tuple((x.shape, name) for x, name in zip(leaves, names, strict=True))))


def unpack(packed: Packed) -> Any:
    """What was packed."""
    structure, leaves = packed.form
    first, made = dict.fromkeys(packed.words, 0), []
    for shape, name in leaves:
        last = first[name] + math.prod(shape)
        made.append(packed.words[name][first[name] : last].reshape(shape))
        first[name] = last
    return jax.tree.unflatten(structure, made)
