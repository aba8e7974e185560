"""Episodes of random plans under rules of every kind."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cells import ALL_ON, CELLS, DIMS, LIFTABLE_DIMS, PRESETS, SCENARIOS, SWITCHES, all_rewards, params_of
from parity import Played, Reader, play

from jaxsim import actions, rules, twin_rules
from jaxsim.names import entity_names
from jaxsim.one_episode import episode_keys
from jaxsim.types import (
    Dims,
    Rules,
)

EPISODES = 200  # of each cell, step by step
SWITCHED = 45  # of each cell, step by step, each under other rules; and as many that bring RESTORE
OFF, ON = twin_rules.CLASSIC, PRESETS[ALL_ON]
RULES = [
    *PRESETS.values(),
    *(OFF._replace(**{s: getattr(ON, s)}) for s in SWITCHES),  # each alone
    *(ON._replace(**{s: getattr(OFF, s)}) for s in SWITCHES),  # each left out
]
CLASSIC, MIXED, MIXED_LIFTABLE = "classic", "mixed", "mixed, liftable"  # rules of random play


def rules_of(many: Sequence[twin_rules.Rules]) -> Rules:
    """The simulator's form of rules, with a leading axis; that they are `liftable` is in its Dims."""
    classic = jax.tree.map(np.asarray, rules.rules("classic"))
    own = [s for s in SWITCHES if s != "liftable"]
    switched = {s: np.asarray([getattr(r, s) for r in many], getattr(classic, s).dtype) for s in own}
    return jax.tree.map(lambda x: np.broadcast_to(x, (len(many), *x.shape)), classic)._replace(**switched)


def all_rules(rng: np.random.Generator, count: int, liftable: bool) -> list[twin_rules.Rules]:
    """Each switch alone and each left out, then any mix of them."""
    choices = [[*pair] for pair in zip(OFF, ON, strict=True)]
    choices[SWITCHES.index("believable_paths")].append(1.0)
    mixed = [twin_rules.Rules._make(c[rng.integers(len(c))] for c in choices) for _ in range(count)]
    return [*(r for r in RULES if r.liftable == liftable), *(r._replace(liftable=liftable) for r in mixed)][:count]


def random_plans(rng: np.random.Generator, dims: Dims, episodes: int, ticks: int) -> np.ndarray:
    """Plans from passive to frantic, (E, T), one action in ten of the frantic ones outside the table."""
    busy = rng.choice([0.0, 0.1, 0.3, 1.0], (episodes, 1))
    drawn = rng.integers(-2, dims.actions + 2, (episodes, ticks))
    return np.where(rng.random((episodes, ticks)) < busy, drawn, 0).astype(np.int32)


def focused_plans(rng: np.random.Generator, dims: Dims, name: str, episodes: int, ticks: int) -> np.ndarray:
    """Random plans on three entities each, which are found out and contained again and again."""
    plans, entities = random_plans(rng, dims, episodes, ticks), actions.table(dims)[1]
    there = [i for i, entity in enumerate(entity_names(SCENARIOS[name], dims)) if entity]
    for plan in plans:
        few = np.flatnonzero(np.isin(entities, rng.choice(there, min(3, len(there)), replace=False)))
        plan[plan > 0] = rng.choice(few, (plan > 0).sum())
    return plans


def orderly_plans(rng: np.random.Generator, dims: Dims, name: str, episodes: int, ticks: int) -> np.ndarray:
    """Entity after entity, from some tick on: looked at, contained in every way and, where that goes, restored."""
    plans, entities = np.zeros((episodes, ticks), np.int32), actions.table(dims)[1]
    there = [i for i, entity in enumerate(entity_names(SCENARIOS[name], dims)) if entity]
    for plan in plans:
        course = np.concatenate([np.flatnonzero(entities == e) for e in rng.choice(there, ticks)])
        busy = rng.random(ticks) < np.where(np.arange(ticks) < rng.integers(ticks // 3), 0.0, rng.choice([0.5, 1.0]))
        plan[busy] = course[: busy.sum()]
    return plans


class RandomPlay(NamedTuple):
    """Episodes of random plans, as NumPy arrays."""

    reader: Reader
    plans: np.ndarray
    rules: list[twin_rules.Rules]
    played: Played


@lru_cache(maxsize=len(CELLS))  # of one kind of rules: more is not asked for again
def random_play(name: str, personality: str, under: str) -> RandomPlay:
    """Episodes of a cell, under classic rules or under rules of every kind, without RESTORE or with it."""
    ticks, dims = max(s.horizon for s in SCENARIOS.values()), LIFTABLE_DIMS if under == MIXED_LIFTABLE else DIMS
    rng = np.random.default_rng(CELLS.index((name, personality)))
    if under == CLASSIC:
        plans, each = random_plans(rng, dims, EPISODES, ticks), [twin_rules.CLASSIC] * EPISODES
    else:
        size = SWITCHED // 3, ticks
        thirds = random_plans(rng, dims, *size), *(f(rng, dims, name, *size) for f in (focused_plans, orderly_plans))
        plans, each = np.stack(thirds, axis=1).reshape(SWITCHED, ticks), all_rules(rng, SWITCHED, dims.restore)
    params = params_of(name, personality)._replace(rules=rules_of(each))
    keys = episode_keys(jax.random.key((MIXED, CLASSIC, MIXED_LIFTABLE).index(under) + 11), len(each))
    played = play(dims, params, all_rewards(), keys, jnp.asarray(plans))
    reader = Reader(SCENARIOS[name], personality, dims)
    return RandomPlay(reader, plans, each, jax.tree.map(np.asarray, played))
