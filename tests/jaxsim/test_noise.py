"""jaxsim/noise.py: its numbers are those of `jax.random`, whatever the generator of a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim import noise

WORDS = st.integers(0, 2**32 - 1)


@given(seed=st.integers(0, 2**31 - 1), number=WORDS)
def test_a_key_gives_the_numbers_of_jax(seed: int, number: int) -> None:
    key, data = jax.random.key(seed), np.uint32(number)
    np.testing.assert_array_equal(noise.draw(key), jax.random.uniform(key, (16,), jnp.float32))
    np.testing.assert_array_equal(noise.uniform(key, 1)[0], jax.random.uniform(key, (), jnp.float32))
    np.testing.assert_array_equal(noise.bits(key, 6), jax.random.bits(key, (6,), jnp.uint32))
    ours, theirs = noise.fold_in(key, data), jax.random.fold_in(key, data)
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_generator_are_taken(impl: str) -> None:
    key = jax.random.key(3, impl=impl)
    folded = noise.fold_in(key, jnp.uint32(7))
    assert str(jax.random.key_impl(folded)) == impl
    np.testing.assert_array_equal(noise.draw(folded), jax.random.uniform(jax.random.fold_in(key, 7), (16,)))


def test_raw_keys_are_taken() -> None:
    key = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(noise.draw(noise.fold_in(key, jnp.uint32(7))), noise.draw(jax.random.fold_in(key, 7)))


def test_the_older_way_of_jax_is_kept() -> None:
    with jax.threefry_partitionable(False):
        key = jax.random.key(3)
        np.testing.assert_array_equal(noise.draw(key), jax.random.uniform(key, (16,), jnp.float32))


def test_known_answers() -> None:
    """Of the Random123 library: `kat_vectors`, threefry2x32 with 20 rounds."""
    zero, ones = np.uint32(0), np.uint32(0xFFFFFFFF)
    pi = np.asarray([0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3], np.uint32)
    for key, counter, expected in (
        ([zero, zero], (zero, zero), (0x6B200159, 0x99BA4EFE)),
        ([ones, ones], (ones, ones), (0x1CB996FC, 0xBB002BE7)),
        (pi[:2], tuple(pi[2:]), (0xC4923A9C, 0x483DF7A0)),
    ):
        found = noise.threefry(jnp.asarray(key), *map(jnp.asarray, counter))
        assert tuple(int(x) for x in found) == expected
