"""What every part of the audit speaks of: a scenario under rules and rewards, and a policy with its parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import scenarios
from jaxsim import env
from jaxsim.compile import dims_of
from jaxsim.one_episode import EpisodeStats
from jaxsim.policies import Policy
from jaxsim.rollouts import outcomes_many, rollout_many
from jaxsim.rules import restores
from jaxsim.types import Params, RewardWeights

PLAN, BRIEFED, FARM, EVIDENCE = "plan", "briefed", "farm", "evidence"


class Arena(NamedTuple):
    """One scenario under one set of rules, scored by R rewards at once."""

    scenario: scenarios.Scenario
    env: env.Env
    params: Params  # reward weights (R,)
    rewards: tuple[str, ...]
    personality: str
    rules: str


class Candidate(NamedTuple):
    """A policy with its parameters, as the search found it."""

    kind: str  # PLAN, BRIEFED, FARM, EVIDENCE, a view of `recurrent`, or the name of a baseline
    policy: Policy
    parameters: Any  # one policy's, no leading axis


def make_arenas(
    many: list[scenarios.Scenario], rules: str, rewards: dict[str, RewardWeights], personality: str = "any"
) -> list[Arena]:
    """One arena a scenario, all of the same `Dims`, so that one compiled program serves them all."""
    dims = dims_of(many, restores(rules))
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *rewards.values())
    arenas = []
    for scenario in many:
        params = env.make_params(scenario, dims, rules, "evidence", personality)._replace(reward=stacked)
        arenas.append(Arena(scenario, env.Env(dims), params, tuple(rewards), personality, rules))
    return arenas


def returns_of(
    arena: Arena, policy: Policy, parameters: Any, keys: jax.Array, shuffle: tuple[str, ...] = ()
) -> np.ndarray:
    """(M, E, R) returns of M policies in the E episodes of `keys`; `shuffle` as in `rollout_many`."""
    stats, _ = rollout_many(arena.env, arena.params, policy, parameters, keys, shuffle=shuffle)
    return stats.episode_return


def outcomes_of(arena: Arena, policy: Policy, parameters: Any, keys: np.ndarray, whole: bool) -> EpisodeStats:
    """What M policies come to in the E episodes of `keys`, key data: by a program of `whole` episodes, or of ticks."""
    if whole:
        return outcomes_many(arena.env, arena.params, policy, parameters, keys)
    return rollout_many(arena.env, arena.params, policy, parameters, jax.device_put(keys))[0]


def mean_returns(arena: Arena, policy: Policy, parameters: Any, keys: jax.Array) -> np.ndarray:
    """(M, R) mean returns of M policies over the episodes of `keys`."""
    return returns_of(arena, policy, parameters, keys).mean(axis=1)


def take(parameters: Any, rows: Any) -> Any:
    """Rows of every leaf of a policy pytree."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], parameters)


def alike(some: list[Candidate]) -> list[tuple[list[int], Policy, Any]]:
    """The candidates by what can be played at once, of one policy, and networks of one size: their indices, the policy,
    and their parameters with a leading axis."""
    groups: dict[Any, list[int]] = {}
    for i, c in enumerate(some):
        matrices = tuple(np.shape(x) for x in jax.tree.leaves(c.parameters) if np.ndim(x) > 1)
        groups.setdefault((c.policy, matrices), []).append(i)
    return [(rows, key[0], _stacked([some[i].parameters for i in rows])) for key, rows in groups.items()]


def _stacked(rows: list[Any]) -> Any:
    """A plan is MONITOR, action 0, after its end: shorter plans are filled up with it."""

    def join(*leaves: Any) -> np.ndarray:
        arrays = [np.asarray(x) for x in leaves]
        if arrays[0].ndim == 0:
            return np.stack(arrays)
        longest = max(len(a) for a in arrays)
        return np.stack([np.pad(a, (0, longest - len(a))) for a in arrays])

    return jax.tree.map(join, *rows)
