"""What an argument of a public function may be: each check raises ValueError naming argument, value and remedy."""

import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

MAX_SEED = 2**32 - 1  # JAX makes a key of 32 bits of a seed, and drops the others


def said(value: Any) -> str:
    """A value as it may stand in a message: one short line, without the numbers of an array."""
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
        return f"an array of shape {np.shape(value)} and {value.dtype}"
    text = repr(value)
    return " ".join(text.split()) if len(text) <= 60 else f"{' '.join(text[:57].split())}..."


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from `low` to `high`; NumPy's and JAX's scalars are as good as Python's."""
    scalar = value.item() if isinstance(value, np.ndarray | np.generic | jax.Array) and np.ndim(value) == 0 else value
    if (
        isinstance(scalar, int | np.integer)
        and not isinstance(scalar, bool)
        and low <= scalar <= (scalar if high is None else high)
    ):
        return int(scalar)
    room = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise ValueError(f"{name} = {said(value)} is not possible; give a whole number {room}")


def number(name: str, value: Any, low: float, high: float) -> float:
    """A number from `low` to `high`; infinite only where `high` is, and never NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or math.isnan(value):
        raise ValueError(f"{name} = {said(value)} is not a number; give one, such as 0.5")
    if low <= value <= high:
        return float(value)
    least = "one of at least 0" if (low, high) == (0, math.inf) else f"one from {low:g} to {high:g}"
    raise ValueError(f"{name} = {said(value)} is not possible; give {least}, such as 0.5")


def known(name: str, value: Any, names: Collection[str]) -> str:
    """One of some names."""
    if isinstance(value, str) and value in names:
        return value
    raise ValueError(f"{name} {said(value)} is unknown; choose one of {', '.join(names)}")


def kind(name: str, value: Any, wanted: type, remedy: str) -> None:
    """An object of a type."""
    if not isinstance(value, wanted):
        raise ValueError(f"{name} = {said(value)} is no {wanted.__name__}; give {remedy}")


def key(name: str, value: Any, shape: tuple[int | None, ...] = ()) -> None:
    """Keys of JAX's random numbers, of `shape`, where None is any length of at least 1."""
    typed = isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
    raw = isinstance(value, jax.Array | np.ndarray) and value.dtype == np.uint32 and np.ndim(value) > 0
    found = np.shape(value) if typed else np.shape(value)[:-1] if raw else None
    fits = found is not None and len(found) == len(shape)
    if not fits or any(n != (n if s is None else s) or n < 1 for n, s in zip(found or (), shape, strict=False)):
        one = "jax.random.key(0)" if not shape else "one_episode.episode_keys(jax.random.key(0), 100)"
        raise ValueError(f"{name} = {said(value)} is no key of that shape; give one, such as {one}")


def actions(name: str, value: Any, shape: tuple[int | None, ...]) -> None:
    """Whole numbers of `shape`, where None is any length."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            value = np.asarray(value)
        except ValueError:  # lists of different lengths
            value = np.asarray([0.0])
        dtype = value.dtype
    fits = len(np.shape(value)) == len(shape) and all(
        s in (None, n) for n, s in zip(np.shape(value), shape, strict=True)
    )
    empty = 0 in np.shape(value) and not hasattr(value, "item")
    if not fits or not (jax.numpy.issubdtype(dtype, np.integer) or empty):
        letters = "()" if not shape else "(T,)"
        raise ValueError(f"{name} = {said(value)} is not possible; give int32 of shape {letters}, of the action table")


def parameters(name: str, tree: Any) -> None:
    """A policy's own pytree: one that holds something, even where the policy has no use for it."""
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} = {said(tree)} are none; give the policy's own, as in jaxsim.BASELINES")


def members(name: str, tree: Any, remedy: str) -> int:
    """The length of the leading axis that all leaves of a pytree have, at least 1."""
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(tree)}
    if len(sizes) != 1 or not (size := sizes.pop()) or size[0] < 1:
        raise ValueError(f"{name} = {said(tree)} has no leading axis that all its leaves share; give {remedy}")
    return int(size[0])
