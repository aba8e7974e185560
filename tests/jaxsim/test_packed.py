"""jaxsim/packed.py: the same numbers come back, whatever axes are added; one array a dtype."""

from typing import Any

import chex
import jax
import numpy as np

import jaxsim
from jaxsim.packed import pack, unpack

ENV, PARAMS = jaxsim.make("supply_chain_token_drift")


def test_a_state_is_a_few_arrays_and_comes_back() -> None:
    _, state = ENV.reset(jax.random.key(0), PARAMS)
    packed = pack(state)
    assert set(packed.words) == {x.dtype.name for x in jax.tree.leaves(state)}
    assert sum(x.size for x in packed.words.values()) == sum(x.size for x in jax.tree.leaves(state))
    chex.assert_trees_all_equal_shapes_and_dtypes(unpack(packed), state)
    chex.assert_trees_all_equal(unpack(packed), state)


def test_lanes_may_lie_behind_the_words() -> None:
    keys = jax.random.split(jax.random.key(1), 5)
    states: Any = jax.vmap(lambda key: ENV.reset(key, PARAMS)[1])(keys)
    packed = jax.jit(jax.vmap(pack, out_axes=1))(states)
    assert {x.shape[1] for x in packed.words.values()} == {5}
    chex.assert_trees_all_equal(jax.jit(jax.vmap(unpack, in_axes=1))(packed), states)


def test_numpy_stays_numpy_and_order_is_kept() -> None:
    tree = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros((), bool), "c": np.full(2, 9, np.int32)}
    packed = pack(tree)
    assert {type(x) for x in packed.words.values()} == {np.ndarray}
    assert packed.words["int32"].tolist() == [0, 1, 2, 3, 4, 5, 9, 9]
    chex.assert_trees_all_equal(unpack(packed), tree)


def test_the_form_is_hashable_and_equal_for_equal_shapes() -> None:
    one, other = pack(PARAMS), pack(jax.tree.map(lambda x: x, PARAMS))
    assert one.form == other.form and hash(one.form) == hash(other.form)
    assert pack(PARAMS.scenario).form != one.form
