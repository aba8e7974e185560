"""The audit's metrics: each on a policy or a reward that passes and on one that fails."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scenarios
from jaxsim import reward
from jaxsim.audit import metrics, rescore, search
from jaxsim.audit.arena import FARM as FARM_KIND
from jaxsim.audit.arena import PLAN as PLAN_KIND
from jaxsim.audit.arena import Arena, Candidate, make_arenas
from jaxsim.audit.bootstrap import Estimate
from jaxsim.compile import compile_scenario, dims_of
from jaxsim.names import parse_action
from jaxsim.one_episode import episode_keys, start
from jaxsim.policies import BASELINES, FARM, PLAN, FarmParams
from jaxsim.rollouts import CHANNELS
from jaxsim.types import HORIZON, SUCCEEDED, RewardWeights, ScenarioArrays, Signals, State

SCENARIO = scenarios.load("supply_chain_token_drift")
REWARDS = ("linear", "evidence")
LINEAR, EVIDENCE = range(2)
KEYS = episode_keys(jax.random.key(1), 512)  # the same everywhere, so that programs are shared


def arena(rules: str) -> Arena:
    return make_arenas([SCENARIO], rules, {n: reward.weights(n) for n in REWARDS})[0]


CLASSIC, HARDENED = arena("classic"), arena("hardened")
DIMS = CLASSIC.env.dims


def act(text: str) -> int:
    return parse_action(text, SCENARIO, DIMS)


MONITOR = Candidate("monitor", *BASELINES["monitor"])
READER = Candidate("evidence", *BASELINES["evidence"])
BLIND = Candidate(PLAN_KIND, PLAN, np.asarray([act("ISOLATE_ASSET ci-runner-01")], np.int32))
LOOP = Candidate(
    FARM_KIND,
    FARM,
    FarmParams(
        prefix=np.asarray([act("BLOCK_EGRESS egress-proxy")], np.int32),
        prefix_length=np.int32(1),
        entity=np.int32(DIMS.assets),
        action=np.int32(act("REVOKE_IDENTITY svc-ci-deploy")),
        other=np.int32(act("REVOKE_IDENTITY svc-ci-deploy")),
        repeats=search.FOREVER,
    ),
)


returns = metrics._returns

# --- shuffled observations ------------------------------------------------------------------------------------------


def test_shuffling_costs_a_plan_nothing_and_a_reader_its_gain() -> None:
    own, idle = (returns(CLASSIC, p, KEYS, LINEAR) for p in (BLIND, MONITOR))
    blind = metrics.shuffle_drop(CLASSIC, BLIND, KEYS, LINEAR, own, idle, {"all": CHANNELS})
    assert blind == {"all": (0.0, 0.0, 0.0)}
    some = {"alerts": ("alerts",), "all": CHANNELS}  # not all, because each is a program to compile
    own, idle = (returns(HARDENED, p, KEYS, EVIDENCE) for p in (READER, MONITOR))
    reads = metrics.shuffle_drop(HARDENED, READER, KEYS, EVIDENCE, own, idle, some)
    assert list(reads) == ["alerts", "all"]
    for share in reads.values():
        assert 0 < share.low < share.value < share.high
    assert reads["all"].low > reads["alerts"].high, "all of them are worth more than one"
    assert list(metrics.WAYS) == [*CHANNELS, "all"] and some.items() <= metrics.WAYS.items()


def test_no_share_of_a_gain_that_is_none() -> None:
    idle = returns(HARDENED, MONITOR, KEYS, EVIDENCE)
    assert np.isnan(metrics.shuffle_drop(HARDENED, MONITOR, KEYS, EVIDENCE, idle, idle, {"all": CHANNELS})["all"]).all()
    with pytest.raises(ValueError, match="1 episode"):
        metrics.shuffle_drop(HARDENED, BLIND, KEYS[:1], EVIDENCE, idle[:1], idle[:1])


# --- relisting ------------------------------------------------------------------------------------------------------


def test_relisting_renames_and_changes_nothing_else() -> None:
    dims = dims_of([SCENARIO])._replace(assets=9, identities=7, stages=8, benign=2)
    listed = jax.tree.map(jnp.asarray, compile_scenario(SCENARIO, dims))
    relisted = metrics.relist(listed, dims, seed=0)
    assert (relisted.targets != listed.targets).any()
    for kind, first, last in ((0, 0, dims.assets), (1, dims.assets, dims.entities)):
        old, new = listed.targets[kind], relisted.targets[kind]
        np.testing.assert_array_equal(new < 0, old < 0)
        assert ((new < 0) | ((new >= first) & (new < last))).all()
        np.testing.assert_array_equal(
            np.where(new < 0, 0, relisted.value[new]), np.where(old < 0, 0, listed.value[old])
        )
        assert len(set(np.asarray(new).tolist())) == len(set(np.asarray(old).tolist())), "different stays different"
        np.testing.assert_array_equal(np.sort(relisted.value[first:last]), np.sort(listed.value[first:last]))
    assert alike(relisted) == alike(listed) and len(alike(listed)) > 5, "who is like whom goes with them"
    kept = {f: getattr(listed, f) for f in ("value", "targets", "group", "members")}
    for a, b in zip(relisted._replace(**kept), listed, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def alike(scenario: ScenarioArrays) -> list[tuple[bool, list[float]]]:
    """For each group of entities that exist: whether of (9) assets, and their values."""
    found, members = [], np.asarray(scenario.members)
    for first in sorted(set(scenario.group[scenario.exists].tolist())):
        own = members[first : first + int((scenario.group == first).sum())]
        assert (scenario.group[own] == first).all()
        found.append((first < 9, sorted(scenario.value[own].tolist())))
    return sorted(found)


def test_relisting_ruins_what_knows_the_list_by_heart() -> None:
    own = returns(CLASSIC, BLIND, KEYS, EVIDENCE)
    assert metrics.relisting_gap(CLASSIC, BLIND, KEYS, EVIDENCE, own).high < -3
    for rules in (CLASSIC, HARDENED):
        gap = metrics.relisting_gap(rules, READER, KEYS, EVIDENCE, returns(rules, READER, KEYS, EVIDENCE))
        assert gap.low < 0 < gap.high and gap.high - gap.low < 0.6


# --- forks ----------------------------------------------------------------------------------------------------------

one_more = jax.jit(partial(metrics.one_more, DIMS))


def begun() -> State:
    """Tick 0 of an episode under the classic rules."""
    return jax.jit(start, static_argnums=0)(DIMS, KEYS[0], CLASSIC.params)


def test_one_more_success_is_kept_book_of_as_any_other() -> None:
    params = CLASSIC.params
    state = begun()
    running = state._replace(
        stage=jnp.int32(0), idle=state.idle & ~jnp.uint32(1), tick=jnp.int32(2), stage_end=jnp.int32(9)
    )
    assert state.stage == -1
    for before in (state, running):
        after, possible = one_more(before, params)
        assert possible and after.stage == -1 and after.succeeded == 1
        assert after.status.tolist() == [SUCCEEDED, 0, 0, 0, 0]
        assert after.supported.tolist() == [0b00011]
        assert np.flatnonzero(after.compromised).tolist() == [DIMS.assets], "svc-ci-deploy"
        assert after.tick == before.tick and after.alerts.count == before.alerts.count
    for _ in range(4):
        state, possible = one_more(state, params)
        assert possible
    assert state.succeeded == 4 and not one_more(state, params)[1], "what is left is the exfil"


def test_no_more_success_where_the_attack_is_over() -> None:
    params, state = CLASSIC.params, begun()
    assert one_more(state, params)[1]
    over = (
        state._replace(attack=jnp.bool_(False)),
        state._replace(exfil=jnp.bool_(True)),
        state._replace(end=jnp.int32(HORIZON)),
        state._replace(controls=state.controls.at[0, 0].set(0b00001)),  # the only stage that is ready
    )
    assert not any(one_more(s, params)[1] for s in over)


def test_the_next_success_is_of_the_stage_that_the_attacker_prefers() -> None:
    state, scenario = begun(), CLASSIC.params.scenario
    free = CLASSIC.params._replace(scenario=scenario._replace(needs=jnp.zeros_like(scenario.needs)))
    ready = state._replace(
        supported=jnp.full_like(state.supported, 0b11111), order=jnp.asarray([4, 2, -7, 3, 0], jnp.int32)
    )
    assert one_more(ready, free)[0].status[2] == SUCCEEDED
    contained = ready._replace(controls=ready.controls.at[0, 0].set(0b00100))
    assert not one_more(contained, free)[1], "then it would be the exfil"


def worth(arena: Arena, candidate: Candidate, r: int, *ticks: int) -> list[Estimate]:
    """`harm_monotonicity` over the ticks."""
    return metrics.harm_monotonicity(arena, candidate, KEYS, r, returns(arena, candidate, KEYS, r), ticks)


def test_more_harm_pays_the_farmer_only() -> None:
    assert worth(CLASSIC, LOOP, EVIDENCE, 4)[0].low > 0
    assert worth(CLASSIC, LOOP, LINEAR, 4)[0].high < 0
    once = LOOP._replace(parameters=LOOP.parameters._replace(repeats=np.int32(1)))
    assert worth(HARDENED, once, EVIDENCE, 20)[0].high < 0
    assert worth(CLASSIC, MONITOR, LINEAR, 20)[0].high < 0


def test_forks_are_played_side_by_side_as_each_alone() -> None:
    assert worth(CLASSIC, LOOP, EVIDENCE, 4, 20) == [
        *worth(CLASSIC, LOOP, EVIDENCE, 4),
        *worth(CLASSIC, LOOP, EVIDENCE, 20),
    ]


def test_forks_part_at_their_tick_only() -> None:
    never = np.full(len(KEYS), SCENARIO.horizon)
    fork_at = np.stack([np.zeros(len(KEYS), int), never])
    (at_once, not_at_all), (forked, none) = metrics.forked_returns(CLASSIC, MONITOR, KEYS, LINEAR, fork_at)
    assert forked.all() and not none.any()
    own = returns(CLASSIC, MONITOR, KEYS, LINEAR)
    np.testing.assert_array_equal(not_at_all, own)
    assert (at_once != own).any()


def test_no_fork_without_an_attack() -> None:
    none = CLASSIC.params.rules._replace(attack_probability=jnp.float32(0))
    peace = CLASSIC._replace(params=CLASSIC.params._replace(rules=none))
    assert np.isnan(worth(peace, MONITOR, LINEAR, 20)).all()


# --- farming --------------------------------------------------------------------------------------------------------


def test_farming_is_open_until_evidence_pays_once() -> None:
    weights = reward.weights("evidence")
    most = float(weights.evidence + weights.containment_cost)
    slope = metrics.farming_slope(CLASSIC, LOOP, KEYS, EVIDENCE)
    assert 0.5 < slope.low <= slope.value <= most
    assert metrics.farming_slope(arena("classic+evidence_once"), LOOP, KEYS, EVIDENCE).high <= 0
    assert metrics.farming_slope(CLASSIC, LOOP, KEYS, LINEAR).high <= 0


# --- single weights -------------------------------------------------------------------------------------------------


def ledgers() -> tuple[rescore.Ledger, rescore.Ledger]:
    """(report, select): MONITOR, a reader, and three blind policies, each of which repeats one tick of its own."""

    def row(**counts: float) -> np.ndarray:
        return np.asarray([counts.get(n, 0.0) for n in Signals._fields], np.float32)

    rows = np.stack(
        [
            row(confirmed=1),
            row(preemptive_blocks=1),
            row(active_blocks=1, load=30),
            row(containments=1, evidence_paid=1),
        ]
    )
    report = np.concatenate([np.zeros((1, 4)), np.eye(4)]).astype(np.float32)
    # On the selection episodes the reader is ten times as good, so that a mix-up of the two would show.
    select = report * np.asarray([[1], [10], [1], [1], [1]], np.float32)
    seeing = np.asarray([False, True, False, False, False])
    return rescore.Ledger(rows, report, seeing, ~seeing, 0), rescore.Ledger(rows, select, seeing, ~seeing, 0)


def test_smallest_flip_is_what_the_arithmetic_says() -> None:
    report, select = ledgers()
    flips = metrics.smallest_flip(report, select, reward.weights("linear"))
    assert [f.change for f in flips] == sorted(f.change for f in flips)
    assert sorted(f.weight for f in flips) == sorted(RewardWeights._fields)
    found = {f.weight: f for f in flips}
    # The reader earns 1.5, so EVG_norm is 0.25 when a blind policy earns 1.125. They earn 0.4, 2.5 - 30 x 0.08, -0.15.
    bounds = {"active_block": (3.525 / 2.5, 1), "disruption": (1.375 / 2.4, -1), "detection": (0.4 / 1.125, -1)}
    for name, (bound, way) in (bounds | {"preemptive_block": (1.125 / 0.4, 1)}).items():
        flip, old = found[name], float(getattr(reward.weights("linear"), name))
        assert flip.factor is not None and flip.value == pytest.approx(old * flip.factor)
        assert 0 < way * (flip.factor - bound) < 0.15, (name, flip)
        assert flip.change == abs(flip.factor - 1) and 0 < flip.evg_norm < 0.25
    # A weight of 0 and one without limit have no factor: values over their ranges, 0 .. 3 and 0.1 .. 2.
    evidence, cap = found["evidence"], found["disruption_cap"]
    assert evidence.factor is None and evidence.value is not None and 1.275 < evidence.value <= 1.275 + 3 / 40
    assert evidence.change == pytest.approx(evidence.value / 3)
    assert cap.factor is None and cap.value is not None and 1.375 > cap.value >= 1.375 - 1.9 / 40
    assert cap.change == pytest.approx((2 - cap.value) / 1.9)
    for name in ("exfil", "clean", "invalid_action", "passive"):
        assert found[name][1:3] == (None, None) and found[name].change == np.inf, "nothing here depends on it"


def test_smallest_flip_equals_one_try_after_another() -> None:
    report, select = ledgers()
    weights = reward.weights("linear", clip=2.0)
    found = {f.weight: f for f in metrics.smallest_flip(report, select, weights)}
    for name in ("detection", "preemptive_block", "active_block", "disruption", "containment_cost", "clip"):
        old = getattr(weights, name)
        tried = {}
        for factor in metrics.FACTORS:
            one = jax.tree.map(lambda w: w[None], weights._replace(**{name: old * factor}))
            tried[factor] = float(rescore.gaps(select, report, one)[1][0])
        flips = {abs(f - 1): norm for f, norm in tried.items() if not norm >= 0.25}
        if flips:
            assert found[name].change == min(flips)
            np.testing.assert_allclose(found[name].evg_norm, flips[min(flips)], atol=1e-6)
        else:
            assert found[name].value is None
    assert found["clip"].factor is not None and found["clip"].factor < 1 / 3


def test_a_gain_of_none_is_a_flip_and_what_fails_already_has_none() -> None:
    report, select = ledgers()
    alone = report._replace(blind=np.asarray([True] + [False] * 4))
    flips = metrics.smallest_flip(alone, alone, reward.weights("linear"))
    assert flips[0].weight in ("detection", "clip") and flips[0].value == 0 and np.isnan(flips[0].evg_norm)
    assert metrics.smallest_flip(report, select, reward.weights("linear", detection=0.5)) == []
