"""Combinations of all that can be chosen by name, and what the tests that go through them share."""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from cells import ALL_ON, CAMPAIGNS, HARDENED
from parity import PLAN_TICKS

import scenarios
from jaxsim import actions, compile, env, names, reward, rules
from jaxsim.one_episode import episode_keys
from jaxsim.types import Dims, Params


class Case(NamedTuple):
    """One combination of all that can be chosen by name."""

    scenario: str
    rules: str
    reward: str
    personality: str


@cache
def random_plans(dims: Dims) -> np.ndarray:
    """Plans from passive to frantic, (E, T), one action in ten of the frantic ones outside the table."""
    rng = np.random.default_rng(3)
    busy = rng.choice([0.1, 0.3, 1.0], (EPISODES, 1))
    drawn = rng.integers(-2, dims.actions + 2, (EPISODES, PLAN_TICKS))
    return np.where(rng.random((EPISODES, PLAN_TICKS)) < busy, drawn, 0).astype(np.int32)


EVERY = CAMPAIGNS | HARDENED
DIMS = compile.dims_of(list(EVERY.values()))

WHO = (*rules.PERSONALITIES, rules.ANY)
# The hardened campaigns are made for the hardened rules and their reward.
CASES = [
    *itertools.starmap(Case, itertools.product(CAMPAIGNS, rules.PRESETS, reward.PRESETS, WHO)),
    *itertools.starmap(Case, itertools.product(HARDENED, ("hardened",), ("operational",), WHO)),
    *(Case(name, ALL_ON, "operational", rules.ANY) for name in HARDENED),
]
EPISODES = 12
KEYS = episode_keys(jax.random.key(3), EPISODES)
PLANS = random_plans(DIMS)

every_case = pytest.mark.parametrize("case", CASES, ids="-".join)


def sizes(case: Case, dims: Dims = DIMS) -> Dims:
    """Those of a case: with RESTORE where its rules bring it."""
    return dims._replace(restore=rules.restores(case.rules))


@cache
def params_of(case: Case, dims: Dims = DIMS) -> Params:
    return env.make_params(EVERY[case.scenario], sizes(case, dims), case.rules, case.reward, case.personality)


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf), the path as in `.alerts.code`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path), leaf


def unequal(a: Any, b: Any) -> list[str]:
    """Paths of the leaves that are not equal to the last bit."""
    if jax.tree.all(jax.tree.map(np.array_equal, a, b)):  # to name every leaf takes longer than to compare them
        return []
    return [path for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True) if not np.array_equal(x, y)]


def illegal(scenario: scenarios.Scenario, dims: Dims) -> np.ndarray:
    """Actions outside the table, and those of the table on entities that are padding."""
    ids = names.entity_names(scenario, dims)
    padding = [a for a, e in enumerate(actions.table(dims)[1].tolist()) if e >= 0 and ids[e] is None]
    return np.asarray([-1, -2, dims.actions, 10**6, -(2**31), 2**31 - 1, *padding], np.int32)


observe = jax.jit(env.observe, static_argnums=0)
