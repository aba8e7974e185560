"""jaxsim/rollouts.py: whatever the number of policies and episodes, each result is in its place."""

import numpy as np
import pytest

from jaxsim import rollouts
from jaxsim.rollouts import BLOCK, GROUPS, PLANS, Batch


@pytest.mark.parametrize("sizes", [GROUPS, PLANS])
@pytest.mark.parametrize("many", [1, 2, 8, 9, 32, 33, 130])
@pytest.mark.parametrize("episodes", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_results_lie_by_policy_and_episode(many: int, episodes: int, sizes: tuple[int, ...]) -> None:
    batches = rollouts._batches(many, episodes, sizes)
    assert {len(b.policy) for b in batches} <= set(sizes)

    def play(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        return np.broadcast_to(batch.policy[:, None], batch.episode.shape), batch.episode

    policy, episode = rollouts._in_batches(play, batches, many, episodes)
    assert policy.shape == episode.shape == (many, episodes)
    np.testing.assert_array_equal(policy, np.broadcast_to(np.arange(many)[:, None], policy.shape))
    np.testing.assert_array_equal(episode, np.broadcast_to(np.arange(episodes), episode.shape))
