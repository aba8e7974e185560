"""jaxsim/stages.py: a set of stages is a set, in one word or in several."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsim import stages


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_a_set_is_what_was_put_into_it(which: list[bool]) -> None:
    words = stages.packed(jnp.asarray(which))
    assert words.shape == (-(-len(which) // 32),) and words.dtype == jnp.uint32
    assert stages.unpacked(words, len(which)).tolist() == which
    assert stages.size(words) == sum(which)
    assert sum(int(w) << 32 * i for i, w in enumerate(words)) == sum(1 << k for k, there in enumerate(which) if there)


@given(st.integers(-1, 79), st.integers(1, 80))
def test_a_set_of_one_stage(stage: int, many: int) -> None:
    words = stages.only(jnp.int32(stage), -(-many // 32))
    expected = np.arange(32 * len(words)) == stage
    np.testing.assert_array_equal(stages.unpacked(words, 32 * len(words)), expected)


def test_axes_before_are_kept() -> None:
    which = np.arange(2 * 3 * 40).reshape(2, 3, 40) % 7 == 0
    words = stages.packed(jnp.asarray(which))
    assert words.shape == (2, 3, 2)
    np.testing.assert_array_equal(stages.unpacked(words, 40), which)
