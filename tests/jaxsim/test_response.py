"""The times that a SOC counts, against a plain reading of the same episodes tick by tick."""

import jax
import numpy as np
import pytest

import jaxsim
from jaxsim import policies, response
from jaxsim.names import parse_action
from jaxsim.one_episode import episode_keys
from jaxsim.response import NEVER, Response
from jaxsim.rollouts import rollout_many
from jaxsim.types import CONFIRMED, CUT_OFF, EGRESS_BLOCKED

EPISODES = 24
SCENARIO = jaxsim.load_scenario("supply_chain_token_drift")
GAME = jaxsim.make(SCENARIO, rules="hardened-unknown_attack", personality="aggressive")
KEY = jax.random.key(5)


def read(episode: int, plan: np.ndarray) -> Response:
    """Of one episode, from the states of its replay."""
    played = jaxsim.replay(*GAME, KEY, episode, plan)
    compromised = detected = contained = recovered = NEVER
    dwell = 0
    for t in range(1, len(plan) + 1):
        if played.state.end[t - 1]:
            break
        taken, marks = played.state.compromised[t], played.state.marks[t]
        at_large = bool((taken & ~marks[CUT_OFF]).any())
        before = compromised != NEVER
        if not before and taken.any():
            compromised = t
        if detected == NEVER and (taken & marks[CONFIRMED]).any():
            detected = t
        if contained == NEVER and before and not at_large:
            contained = t
        identity = np.arange(len(taken)) >= GAME[0].dims.assets
        needless = (marks[CUT_OFF] | marks[EGRESS_BLOCKED]) & ~(taken & identity)
        if recovered == NEVER and contained != NEVER and not (taken & ~identity).any() and not needless.any():
            recovered = t
        dwell += at_large
    return Response(*map(np.int32, (compromised, detected, contained, recovered, dwell)))


@pytest.mark.parametrize("policy", ["evidence", "random", "monitor"])
def test_equals_a_reading_of_the_replay(policy: str) -> None:
    chosen = (policies.EVIDENCE, reader()) if policy == "evidence" else policies.BASELINES[policy]
    one = jax.tree.map(lambda x: np.asarray(x)[None], chosen[1])
    keys = episode_keys(KEY, EPISODES)
    _, trajectory = rollout_many(*GAME, chosen[0], one, keys, record=True)
    assert trajectory is not None
    plans = trajectory.action[0]
    seen = response.watched(*GAME, keys, plans)
    found = seen.response
    for e in range(EPISODES):
        assert Response(*(x[e] for x in found)) == read(e, plans[e])
    played = jaxsim.replay(*GAME, KEY, 3, plans[3])
    np.testing.assert_array_equal(seen.alerted[3], played.state.alerts.count[:-1] > 0)
    np.testing.assert_array_equal(seen.containments[3], played.signals.containments)
    counts = [(x != NEVER).sum() for x in found[:4]]
    assert counts[0] > EPISODES / 2 and (policy == "monitor") == (counts[1] == 0)
    assert policy != "evidence" or counts[3] > 0, "some recover"


def reader() -> policies.EvidenceParams:
    """A member of the family that does all: investigates, contains, rebuilds and restores."""
    from jaxsim.audit.search import sample_family

    family = sample_family(8, 2, restore=True)
    keys = episode_keys(jax.random.key(6), 16)
    stats, _ = rollout_many(*GAME, policies.EVIDENCE, family, keys)
    best = int(stats.episode_return.mean(axis=1).argmax())
    return jax.tree.map(lambda x: np.asarray(x)[best], family)


def test_hours_are_of_the_episodes_in_which_it_happened() -> None:
    r = Response(*map(np.asarray, ([2, 4, NEVER], [6, NEVER, NEVER], [8, 5, NEVER], [NEVER, 9, NEVER], [6, 1, 0])))
    assert response.hours(r) == {
        "detected": 0.5, "contained": 1.0, "recovered": 0.5,
        "hours_to_detect": 2.0, "hours_to_contain": 1.75, "hours_to_recover": 2.0, "hours_of_dwell": 1.75,
    }  # fmt: skip
    nobody = response.hours(jax.tree.map(lambda x: x[2:], r))
    assert set(nobody.values()) == {None}


def test_bad_arguments_are_named() -> None:
    keys, action = episode_keys(KEY, 2), parse_action("MONITOR", SCENARIO, GAME[0].dims)
    with pytest.raises(ValueError, match=r"^actions = "):
        response.watched(*GAME, keys, np.full((3, 4), action))
    with pytest.raises(ValueError, match=r"^keys = "):
        response.watched(*GAME, KEY, np.full((2, 4), action))
