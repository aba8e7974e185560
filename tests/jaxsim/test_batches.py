"""jaxsim/rollouts.py: whatever the number of policies and episodes, each result is in its place."""

from typing import Any

import numpy as np
import pytest

from jaxsim import rollouts
from jaxsim.env import make
from jaxsim.policies import PLAN, Policy
from jaxsim.rollouts import BLOCK, GROUPS, WHOLE, Batch


@pytest.mark.parametrize("many", [1, 2, 8, 9, 32, 33, 130])
@pytest.mark.parametrize("episodes", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_results_lie_by_policy_and_episode(many: int, episodes: int) -> None:
    batches = rollouts._batches(many, episodes)
    assert {len(b.policy) for b in batches} <= set(GROUPS)

    def play(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        return np.broadcast_to(batch.policy[:, None], batch.episode.shape), batch.episode

    policy, episode = rollouts._in_batches(play, batches, many, episodes)
    assert policy.shape == episode.shape == (many, episodes)
    np.testing.assert_array_equal(policy, np.broadcast_to(np.arange(many)[:, None], policy.shape))
    np.testing.assert_array_equal(episode, np.broadcast_to(np.arange(episodes), episode.shape))


@pytest.mark.parametrize("many", [1, 33, 130])
@pytest.mark.parametrize("episodes", [1, 32, 33, 1025])
def test_returns_of_plans_lie_by_plan_and_episode(monkeypatch: pytest.MonkeyPatch, many: int, episodes: int) -> None:
    def played(dims: object, policy: Policy, plans: np.ndarray, params: object, keys: np.ndarray, *static: Any) -> Any:
        assert policy is PLAN
        assert len(plans) == len(keys) == WHOLE
        return np.stack([plans[:, 0], keys[:, 1].astype(np.int32)], axis=-1)

    monkeypatch.setattr(rollouts, "_whole", played)
    plans = np.repeat(np.arange(many, dtype=np.int32)[:, None], 3, axis=1)
    keys = np.stack([np.zeros(episodes, np.uint32), np.arange(episodes, dtype=np.uint32)], axis=1)
    returns = rollouts.returns_many(*make("supply_chain_token_drift"), PLAN, plans, keys)
    assert returns.shape == (many, episodes, 2)
    np.testing.assert_array_equal(returns[..., 0], np.broadcast_to(plans[:, :1], (many, episodes)))
    np.testing.assert_array_equal(returns[..., 1], np.broadcast_to(keys[:, 1], (many, episodes)))
