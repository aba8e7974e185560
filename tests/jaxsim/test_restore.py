"""Where the rules bring RESTORE: how groups and graphs are laid out, and what the investigate-then-contain family does.

Only the simulator has these; what the twin has as well is in test_parity.py.
"""

from typing import Any

import jax
import numpy as np
import pytest
from cells import ALL_ON, NO_IDENTITIES

import jaxsim
import scenarios
from jaxsim import actions, policies, rules
from jaxsim.compile import compile_scenario, dims_of, grouped
from jaxsim.one_episode import episode_keys
from jaxsim.policies import DEFAULT_EVIDENCE, EVIDENCE, EvidenceParams
from jaxsim.rollouts import rollout_many
from jaxsim.stages import packed
from jaxsim.types import CONFIRMED, CUT_OFF, INVESTIGATE, PATCH_ASSET, RESTORE, Dims

# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 31, 32, 33, 70])
def test_a_graph_has_a_bit_for_each_edge(stages: int) -> None:
    graph = np.random.default_rng(stages).random((2, stages, stages)) < 0.3
    words = packed(graph, np)
    np.testing.assert_array_equal(words, packed(jax.numpy.asarray(graph)))  # in a program
    assert words.shape == (2, stages, Dims(1, 1, stages, 1).words) and words.dtype == np.uint32
    bits = [(words[..., i // 32] >> np.uint32(i % 32)) & 1 for i in range(stages)]
    np.testing.assert_array_equal(np.stack(bits, axis=-1), graph)
    assert int(words.astype(object).sum()) == sum(2 ** (int(i) % 32) for *_, i in np.argwhere(graph))


def check_groups(group: np.ndarray, members: np.ndarray, labels: list[Any]) -> None:
    """One network's; `labels` of all entities, None for padding, assets and identities with none in common."""
    assert sorted(members.tolist()) == list(range(len(labels)))
    for e, label in enumerate(labels):
        own = [e] if label is None else [i for i, other in enumerate(labels) if other == label]
        first = int(group[e])
        assert members[first : first + len(own)].tolist() == own


def test_those_alike_lie_side_by_side() -> None:
    rng, dims = np.random.default_rng(0), Dims(assets=6, identities=4, stages=1, max_lag=1)
    assets, identities = rng.integers(-1, 3, (50, 6)), rng.integers(-1, 2, (50, 3))
    groups, members = grouped(dims, assets.astype(np.int32), identities.astype(np.int32))
    for k in range(50):
        kinds = [("asset", x) if x >= 0 else None for x in assets[k]]
        roles = [("identity", x) if x >= 0 else None for x in identities[k]]
        check_groups(groups[k], members[k], [*kinds, *roles, None])


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("name", [*scenarios.names(), *scenarios.names("hardened"), "no identities"])
def test_a_scenarios_groups_are_of_one_kind_and_segment_or_role(name: str, more: int) -> None:
    s = scenarios.loads(NO_IDENTITIES) if name == "no identities" else scenarios.load(name)
    dims = dims_of([s])
    dims = dims._replace(assets=dims.assets + more, identities=dims.identities + more)
    arrays = compile_scenario(s, dims)
    labels: list[Any] = [*((a.kind, a.segment) for a in s.assets), *[None] * more]
    check_groups(arrays.group, arrays.members, [*labels, *(i.role for i in s.identities), *[None] * more])


# --- the rules and their sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule_set", ["hardened", ALL_ON, "classic+liftable"])
def test_the_action_table_is_that_of_the_rules(rule_set: str) -> None:
    brings = rules.restores(rule_set)
    env, _ = jaxsim.make("insider_repo_pivot", rules=rule_set)
    assert env.dims.restore == brings and (RESTORE in actions.table(env.dims)[0]) == brings
    wrong = env.dims._replace(restore=not brings)
    with pytest.raises(ValueError, match=rf"does not fit rules .*; give Dims\(restore={brings}\)"):
        jaxsim.make("insider_repo_pivot", rules=rule_set, dims=wrong)


# --- the family ------------------------------------------------------------------------------------------------------

GAME = jaxsim.make("federated_identity_takeover_hardened", rules=f"{ALL_ON}-unknown_attack")
EPISODES = 64


class Tally:
    """How often a member did what, and the ticks from a containment to its RESTORE."""

    def __init__(self, member: EvidenceParams) -> None:
        env, params = GAME
        one, key = jax.tree.map(lambda x: np.asarray(x)[None], member), jax.random.key(4)
        stats, record = rollout_many(env, params, EVIDENCE, one, episode_keys(key, EPISODES), record=True)
        assert record is not None and stats.signals.invalid.sum() == 0
        self.verbs, self.held = stats.verbs[0].sum(axis=0), list[int]()
        self.rebuilt, self.acquitted, self.other = 0, 0, 0
        for e in range(EPISODES):
            self.read(jaxsim.replay(env, params, key, e, record.action[0, e, : stats.length[0, e]]), env.dims)

    def read(self, played: Any, dims: Dims) -> None:
        """Check each PATCH_ASSET and RESTORE of an episode."""
        verbs, entities = (x[played.action] for x in actions.table(dims))
        marks, truth, forensics = played.observation.marks, played.state.compromised, played.observation.forensics
        since, rebuilt = np.zeros(dims.entities, int), np.zeros(dims.entities, bool)
        for t, (verb, e) in enumerate(zip(verbs, entities, strict=True)):
            if verb == PATCH_ASSET:
                assert marks[t, CUT_OFF, e] and marks[t, CONFIRMED, e] and truth[t, e]
                assert not marks[t + 1, CONFIRMED, e] and not truth[t + 1, e]
                rebuilt[e] = True
            elif verb == RESTORE:
                assert marks[t, CUT_OFF, e] and not marks[t, CONFIRMED, e] and not marks[t + 1, CUT_OFF, e]
                mine = (forensics.number[t] >= 0) & (forensics.entity[t] == e) & (forensics.tick[t] > since[e])
                cleared = (mine & ~forensics.compromised[t]).any()
                self.held.append(t - since[e])
                self.rebuilt += rebuilt[e]
                self.acquitted += cleared and not rebuilt[e]
                self.other += not cleared and not rebuilt[e]
            elif verb > INVESTIGATE:
                assert not marks[t, CUT_OFF, e]
                since[e], rebuilt[e] = t, False


def test_the_family_contains_rebuilds_and_restores() -> None:
    """What is confirmed is isolated, rebuilt and restored; what was contained on suspicion is looked at, then freed."""
    found = Tally(DEFAULT_EVIDENCE)
    assert found.rebuilt > 10 and found.acquitted > 10 and found.other == 0
    assert found.verbs[PATCH_ASSET] >= found.rebuilt


def test_members_may_leave_each_way_back_alone() -> None:
    """Rebuilding, a verdict of clean, and time that has passed, each by itself."""
    never = DEFAULT_EVIDENCE._replace(rebuild=np.bool_(False), clean_at=np.float32(2.0))
    assert Tally(never).verbs[RESTORE] == 0
    rebuilds = Tally(never._replace(rebuild=np.bool_(True)))
    assert rebuilds.rebuilt > 10 and rebuilds.acquitted == rebuilds.other == 0
    acquits = Tally(never._replace(clean_at=np.float32(0.5)))
    assert acquits.acquitted > 10 and acquits.rebuilt == acquits.other == 0 == acquits.verbs[PATCH_ASSET]
    holds = Tally(never._replace(hold=np.int32(5)))
    assert holds.other + holds.acquitted > 10 and min(holds.held) == 5 and holds.rebuilt == 0


def test_the_random_policy_tries_all_that_is_legal() -> None:
    """In a padded network without identities, each legal action and no other."""
    s = scenarios.loads(NO_IDENTITIES)
    dims = dims_of([s], True)._replace(assets=4, identities=2)
    env, params = jaxsim.make(s, rules="classic+liftable+run_to_horizon", dims=dims)
    keys = episode_keys(jax.random.key(0), 64)
    _, record = rollout_many(env, params, policies.RANDOM, np.zeros(1, np.int32), keys, record=True)
    assert record is not None
    assert set(record.action.ravel().tolist()) == set(np.flatnonzero(env.legal_actions(params)).tolist())
