"""Rollouts: replayed alike, whatever the batch, the policies and the rewards, and compiled once."""

import itertools
from functools import partial
from typing import Any

import chex
import jax
import numpy as np
import pytest
from cases import CASES, DIMS, EVERY, PLANS, Case, observe, params_of, sizes, unequal
from cells import ALL_ON, stack

from jaxsim import env, policies, reward, rules
from jaxsim.one_episode import EpisodeStats, episode_keys
from jaxsim.replays import replay
from jaxsim.rollouts import BLOCK, Trajectory, rollout, rollout_many
from jaxsim.types import Dims, Observation

EVERY_70 = [name for name, s in EVERY.items() if s.horizon == 70]  # one program for all of them


@pytest.mark.parametrize(("name", "rule_set"), [*itertools.product(EVERY_70, rules.PRESETS), (EVERY_70[-1], ALL_ON)])
def test_a_replay_plays_the_episode_of_the_rollout(name: str, rule_set: str) -> None:
    environment, params = env.make(name, rules=rule_set, dims=DIMS._replace(restore=rules.restores(rule_set)))
    key, parameters = jax.random.key(61), np.zeros(1, np.int32)
    stats, record = rollout_many(environment, params, policies.RANDOM, parameters, episode_keys(key, 6), record=True)
    assert isinstance(record, Trajectory)
    for e in range(6):
        again = replay(environment, params, key, e, record.action[0, e])
        assert unequal(again.signals, jax.tree.map(lambda x, e=e: x[0, e], record.signals)) == []
        assert again.reward.sum() == pytest.approx(stats.episode_return[0, e], abs=1e-4)
        assert (again.state.tick[-1], again.state.end[-1]) == (stats.length[0, e], stats.end[0, e])
        assert again.state.succeeded[-1] == stats.succeeded[0, e]
        assert len(again.state.tick) == len(again.action) + 1 and int(again.state.tick[0]) == 0
        for t in (0, int(stats.length[0, e])):
            state, obs = (jax.tree.map(lambda x, t=t: x[t], tree) for tree in (again.state, again.observation))
            assert unequal(obs, observe(DIMS, state, params)) == []


def test_a_rollout_does_not_depend_on_its_batch() -> None:
    environment, params = env.make("federated_identity_takeover", dims=DIMS._replace(restore=True))
    run = partial(rollout, environment, params, policies.RANDOM, np.zeros(1, np.int32), jax.random.key(71))
    whole, part, many = run(80), run(8), run(80 * BLOCK)
    assert len(whole.length) == 80 and len(np.unique(whole.episode_return)) > 8
    assert unequal(jax.tree.map(lambda x: x[:80], many), whole) == []
    assert unequal(part, jax.tree.map(lambda x: x[:8], whole)) == []


def test_many_policies_at_once_equal_one_at_a_time() -> None:
    environment, params = env.make("insider_repo_pivot", dims=DIMS._replace(restore=True))
    keys = episode_keys(jax.random.key(81), 16)
    plans = np.random.default_rng(9).integers(0, DIMS.actions, (3, 6)).astype(np.int32)
    # A batch is filled up with a policy that must not be reported.
    many = rollout_many(environment, params, policies.PLAN, plans, keys)[0]
    assert many.length.shape == (3, 16)
    assert len({many.episode_return[m].tobytes() for m in range(3)}) == 3
    for m in range(3):
        alone: EpisodeStats = rollout_many(environment, params, policies.PLAN, plans[m : m + 1], keys)[0]
        assert unequal(jax.tree.map(lambda x: x[0], alone), jax.tree.map(lambda x, m=m: x[m], many)) == []


def test_many_rewards_at_once_equal_one_at_a_time() -> None:
    """Weights with an axis score the same episodes under each reward."""
    keys, plan = episode_keys(jax.random.key(82), 16), PLANS[-1:, :6]
    cases = [Case("insider_repo_pivot", "classic", name, "any") for name in reward.PRESETS]
    together = params_of(cases[0])._replace(reward=stack([params_of(case).reward for case in cases]))
    many = rollout_many(env.Env(DIMS), together, policies.PLAN, plan, keys)[0]
    for r, case in enumerate(cases):
        alone = rollout_many(env.Env(DIMS), params_of(case), policies.PLAN, plan, keys)[0]
        np.testing.assert_array_equal(many.episode_return[..., r], alone.episode_return)
        chex.assert_trees_all_equal(jax.tree.map(lambda x, r=r: x[..., r], many.channels), alone.channels)
        assert unequal(many.signals, alone.signals) == []


def test_a_rollout_is_compiled_once_for_all_values() -> None:
    """Other scenarios, rewards and personalities of the same sizes, and other keys, reuse the program."""
    traces = []

    def act(dims: Dims, parameters: Any, memory: Any, obs: Observation, noise: chex.Array) -> Any:
        traces.append(dims)
        return policies.act_random(dims, parameters, memory, obs, noise)

    policy, counts = policies.Policy(policies.no_memory, act), set[int]()
    for i, case in enumerate(c for c in CASES if sizes(c) == DIMS):
        rollout(env.Env(DIMS), params_of(case), policy, np.zeros(1, np.int32), jax.random.key(i), 4)
        counts.add(len(traces))
    assert len(counts) == 1 and 0 not in counts
