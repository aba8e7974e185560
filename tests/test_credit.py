"""Return-to-go against a plain loop, what may not depend on hidden luck, and the bank's files."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scenarios
from grpo.rows import bank as banks
from grpo.rows import beliefs
from grpo.rows import credit as credits
from grpo.rows import redeal as redeals
from grpo.rows.bank import Bank, Groups
from grpo.rows.credit import Credit
from jaxsim import env, replay, reward
from jaxsim.actions import encode, legal_mask, table
from jaxsim.compile import dims_of
from jaxsim.noise import Noise
from jaxsim.policies import BASELINES, EVIDENCE, FARM, HEURISTIC
from jaxsim.rollouts import episode_keys, tick_noise
from jaxsim.telemetry import pack, unpack
from jaxsim.types import (
    BLOCK_EGRESS,
    CONFIRMED,
    CUT_OFF,
    HORIZON,
    IN_PROGRESS,
    INVESTIGATE,
    ISOLATE_ASSET,
    MONITOR,
    PATCHED,
    RUNNING,
    SUCCEEDED,
    Dims,
    Params,
    State,
)

CAMPAIGNS = [scenarios.load(n) for n in ("federated_identity_takeover", "insider_repo_pivot")]
DIMS = dims_of(CAMPAIGNS)
ENV = env.Env(DIMS)
KEY = jax.random.key(3)
PARAMETERS = BASELINES["evidence"][1]
FUTURES = 4
play = partial(credits.returns_to_go, DIMS, futures=FUTURES, chunk=8)  # nearly always these: one program to compile


def stacked(rules: str = "hardened") -> Params:
    return banks.stack([env.make_params(s, DIMS, rules, "operational", "any") for s in CAMPAIGNS])


HARDENED, CLASSIC = stacked(), stacked("classic")


@cache
def collected() -> Bank:
    return banks.collect_heuristic(ENV, HARDENED, *BASELINES["evidence"], KEY, 40, 3)


def scripted(key: Any) -> Bank:
    """One state of each of 30 episodes of each campaign under the classic rules."""
    return banks.collect_heuristic(ENV, CLASSIC, *BASELINES["heuristic"], key, 30)


def rows_of(campaign: int) -> Params:
    return jax.tree.map(lambda x: x[campaign], HARDENED)


def one(bank: Bank, row: int) -> State:
    return jax.tree.map(lambda x: jnp.asarray(x[row]), bank.state)


def as_bank(states: list[State], index: list[int]) -> Bank:
    n = np.arange(len(states), dtype=np.int32)
    return Bank(jax.tree.map(lambda *x: np.stack(x), *states), np.asarray(index, np.int32), n, n * 0)


def late_rows() -> np.ndarray:
    """Two rows of each campaign near the end, that a plain loop can play; the first campaign is the shorter one."""
    bank = collected()
    left = np.asarray(HARDENED.scenario.horizon)[bank.params_index] - bank.state.tick
    late = [np.flatnonzero((bank.params_index == p) & (left <= 14) & (left >= 5))[:2] for p in (0, 1)]
    return np.concatenate(late)


# --- against a plain loop -------------------------------------------------------------------------------------------

observe = jax.jit(partial(env.observe, DIMS))
transition = jax.jit(partial(env.transition, DIMS))
act = jax.jit(partial(EVIDENCE.act, DIMS, PARAMETERS))
redeal = jax.jit(partial(redeals.redeal, DIMS))
points = jax.jit(lambda signals, weights: reward.total(reward.channels(signals, weights), weights))


def played(state: State, action: int, params: Params, future: Any) -> float:
    """The return-to-go of one future, step by step."""
    choice, total, memory = jnp.int32(action), 0.0, None
    while True:
        block = tick_noise(future, state.tick + 1)
        if memory is not None:
            choice, memory = act(memory, observe(state, params), block[Noise.POLICY_VERB :])
        state, signals = transition(state, choice, block, params)
        total += float(points(signals, params.reward))
        if state.end != RUNNING:
            return total
        if memory is None:
            seen, memory = observe(state, params).forensics, EVIDENCE.init(DIMS, PARAMETERS)
            for number, entity in zip(seen.number, seen.entity, strict=True):
                memory = memory._replace(counts=memory.counts.at[entity].add(int(number >= 0)))


@pytest.mark.parametrize("redealt", [False, True])
def test_equals_a_plain_loop_on_the_same_noise(redealt: bool) -> None:
    bank = banks.take(collected(), late_rows())
    credit = play(HARDENED, bank, key=KEY, redealt=redealt)
    for row in range(4):
        params = rows_of(bank.params_index[row])
        legal = np.flatnonzero(legal_mask(DIMS, params.scenario.exists))
        np.testing.assert_array_equal(np.flatnonzero(credit.legal[row]), legal)
        some, returns = legal[row % 2 :: 5], []
        for future in episode_keys(jax.random.fold_in(KEY, row), FUTURES):
            state = one(bank, row)
            if redealt:
                state = redeal(state, params, jax.random.fold_in(future, credits.REDEAL))
            returns.append([played(state, action, params, future) for action in some])
        np.testing.assert_allclose(credit.q[row, some], np.mean(returns, axis=0), atol=1e-4)
    assert np.isnan(credit.q[~credit.legal]).all() and np.isfinite(credit.q[credit.legal]).all()
    assert (~credit.legal).any(), "the campaigns differ in size, so that some actions are not legal"


def test_se_is_of_the_paired_difference_to_the_mean() -> None:
    bank = banks.take(collected(), late_rows()[:1])
    credit = play(HARDENED, bank, key=KEY)
    params, state = rows_of(bank.params_index[0]), one(bank, 0)
    legal, totals = np.flatnonzero(credit.legal[0]), []
    for future in episode_keys(jax.random.fold_in(KEY, 0), FUTURES):
        dealt = redeal(state, params, jax.random.fold_in(future, credits.REDEAL))
        totals.append([played(dealt, action, params, future) for action in legal])
    apart = np.asarray(totals) - np.mean(totals, axis=1, keepdims=True)
    np.testing.assert_allclose(credit.se[0, legal], apart.std(axis=0, ddof=1) / np.sqrt(FUTURES), atol=1e-4)
    assert credit.futures.tolist() == [FUTURES] and credit.beliefs.tolist() == [1]


def test_the_same_action_has_the_same_futures() -> None:
    bank = collected()
    again = np.asarray([7, 0, 7, 0, 7], np.int32)
    row = credits._Row(one(bank, 0), jnp.int32(0), jnp.int32(0), jnp.asarray(again), jnp.int32(5))
    fork = jax.jit(partial(credits._fork, DIMS, EVIDENCE, FUTURES, True, PARAMETERS))
    mean, se = fork(HARDENED, KEY, row)
    assert mean[0] == mean[2] == mean[4] != mean[1] == mean[3]
    assert se[0] == se[2] == se[4]


def test_luck_is_a_rows_own_whatever_the_chunk() -> None:
    bank = banks.take(collected(), np.arange(9))
    whole = play(HARDENED, bank, key=KEY)
    for other in (play(HARDENED, bank, key=KEY, chunk=4), play(HARDENED, banks.take(bank, np.arange(5)), key=KEY)):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a[: len(b)], b, atol=1e-4)
    twice = play(HARDENED, banks.take(bank, [0, 0]), key=KEY)
    assert (twice.q[0] != twice.q[1])[twice.legal[0]].any(), "the same state in two rows has luck of two kinds"


def test_the_classic_rules_end_early_and_other_policies_go_on() -> None:
    bank = banks.take(scripted(KEY), np.arange(8))
    acting = play(CLASSIC, bank, key=KEY)
    idle = play(CLASSIC, bank, *BASELINES["monitor"], KEY)
    assert np.isfinite(idle.q[idle.legal]).all() and (idle.q != acting.q)[idle.legal].any()


# --- ranking --------------------------------------------------------------------------------------------------------


def before_exfil() -> tuple[State, int]:
    """Nothing in view, all stages but the exfil done and that one running; the action that stops it."""
    state = jax.jit(partial(env.reset, DIMS))(KEY, rows_of(0))
    exfil = int(np.flatnonzero(HARDENED.scenario.stage_exfil[0])[0])
    there = np.asarray(HARDENED.scenario.stage_exists[0])
    status = np.where(there, SUCCEEDED, np.asarray(state.status)).astype(np.int32)
    status[exfil] = IN_PROGRESS
    state = state._replace(
        tick=jnp.int32(40),
        attack=jnp.bool_(True),
        status=jnp.asarray(status),
        stage=jnp.int32(exfil),
        stage_end=jnp.int32(43),
        succeeded=jnp.int32(there.sum() - 1),
    )
    return state, int(encode(DIMS, jnp.int32(BLOCK_EGRESS), state.targets[0, exfil]))


def test_a_blind_guess_is_best_only_while_the_fork_may_peek() -> None:
    state, stops = before_exfil()
    bank = as_bank([state] * 24, [0] * 24)
    peeks, fair = (np.mean(play(HARDENED, bank, key=KEY, redealt=redealt).q, axis=0) for redealt in (False, True))
    assert peeks[stops] > peeks[0] + 2 and peeks[stops] == np.nanmax(peeks), "blocking the way out"
    assert fair[stops] < peeks[stops] - 2
    verbs, entities = table(DIMS)
    isolating = (verbs == ISOLATE_ASSET) & np.isfinite(fair)
    cost = 0.052 * 30 * np.asarray(HARDENED.scenario.value[0])[entities[isolating]]
    assert np.ptp(fair[isolating] + cost) < 2.5 < np.ptp(peeks[isolating] + cost), "but for the cost, guesses are alike"


def test_with_no_attack_a_control_only_costs() -> None:
    state, _ = before_exfil()
    calm = state._replace(attack=jnp.bool_(False), stage=jnp.int32(-1))
    credit = play(HARDENED, as_bank([calm], [0]), key=KEY)
    verbs, _ = table(DIMS)
    wait, look, cut = (credit.q[0, verbs == v] for v in (MONITOR, INVESTIGATE, ISOLATE_ASSET))
    assert wait > np.nanmax(cut) + 0.5 and np.nanmax(np.abs(look - wait)) < 0.5


# --- what the defender has not seen ---------------------------------------------------------------------------------


def test_redealing_shows_the_same_and_moves_only_unseen_roles() -> None:
    bank, moved = collected(), 0
    unseen_of = jax.jit(partial(redeals.unseen, DIMS))
    for row in range(0, len(bank.episode), 17):
        state, params = one(bank, row), rows_of(bank.params_index[row])
        obs, key = observe(state, params), jax.random.key(row)
        free = np.asarray(unseen_of(obs))
        after = redeal(state, params, key)
        jax.tree.map(np.testing.assert_array_equal, observe(after, params), obs)
        old, new = np.asarray(state.targets), np.asarray(after.targets)
        np.testing.assert_array_equal(new < 0, old < 0)
        place: dict[int, int] = {}
        for a, b in zip(old[old >= 0].tolist(), new[old >= 0].tolist(), strict=True):
            assert place.setdefault(a, b) == b and (a < DIMS.assets) == (b < DIMS.assets)
            assert a == b or (free[a] and free[b])
        assert len(set(place.values())) == len(place)
        for a, b in place.items():
            assert state.compromised[a] == after.compromised[b]
        assert state.compromised.sum() == after.compromised.sum()
        codes = [np.asarray(x) for x in (*unpack(DIMS, state.pending.code), *unpack(DIMS, after.pending.code))]
        for k in np.flatnonzero((np.asarray(state.pending.due) > int(state.tick)).any(axis=1)):
            assert codes[3][k] == codes[0][k]
            assert [codes[i][k] for i in (4, 5)] == [place.get(int(codes[i][k]), -1) for i in (1, 2)]
        moved += int((old != new).any())
        same = after._replace(targets=state.targets, compromised=state.compromised, pending=state.pending)
        jax.tree.map(np.testing.assert_array_equal, same, state)
        fixed = params._replace(rules=params.rules._replace(unknown_path=jnp.bool_(False)))
        jax.tree.map(np.testing.assert_array_equal, redeal(state, fixed, key), state)
    assert moved > 5


def test_redealing_is_uniform() -> None:
    state, _ = before_exfil()
    dealt = jax.jit(jax.vmap(partial(redeals.redeal, DIMS, state, rows_of(0))))(jax.random.split(KEY, 3000))
    exfil = int(state.stage)
    assets = int(HARDENED.scenario.asset_count[0])
    share = np.bincount(np.asarray(dealt.targets)[:, 0, exfil], minlength=assets) / 3000
    assert len(share) == assets and np.abs(share - 1 / assets).max() < 0.035
    alert = state.alerts._replace(
        code=state.alerts.code.at[0].set(pack(DIMS, 0, state.targets[0, exfil], jnp.int32(-1))), count=jnp.int32(1)
    )
    seen = redeal(state._replace(alerts=alert), rows_of(0), KEY)
    assert seen.targets[0, exfil] == state.targets[0, exfil]


def test_what_was_contained_and_restored_keeps_its_role() -> None:
    state, _ = before_exfil()
    way_out = state.targets[0, state.stage]
    touched = state._replace(touched=state.touched.at[way_out].set(True))
    for key in jax.random.split(KEY, 5):
        assert redeal(touched, rows_of(0), key).targets[0, state.stage] == way_out


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_redealing_leaves_as_many_episodes_believable_as_there_were(share: float) -> None:
    """And among those the way out, one of two services of the edge, is as often the one as the other."""
    params, episodes = rows_of(0), 4000
    params = params._replace(rules=params.rules._replace(believable_paths=jnp.float32(share)))
    roles, group = (np.asarray(x) for x in (params.scenario.targets, params.scenario.group))
    keys = jax.random.split(KEY, (2, episodes))
    began = jax.jit(jax.vmap(lambda key: env.reset(DIMS, key, params)))(keys[0])
    again = jax.jit(jax.vmap(lambda state, key: redeals.redeal(DIMS, state, params, key)))(began, keys[1])
    before, after = (
        ((group[np.asarray(s.targets)] == group[roles]) | (roles < 0)).all(axis=(1, 2)) for s in (began, again)
    )
    assert abs(after.mean() - before.mean()) <= 5 * np.sqrt(share * (1 - share) * 2 / episodes)
    exfil = int(np.flatnonzero(params.scenario.stage_exfil)[0])
    way_out, was = (np.asarray(s.targets)[:, 0, exfil] for s in (again, began))
    alike = np.flatnonzero(group == group[roles[0, exfil]])
    assert len(alike) == 2 and set(way_out[after].tolist()) == set(alike.tolist())
    for some in (before, before & (was == alike[0])):
        assert abs((way_out[some & after] == alike[0]).mean() - 0.5) < 5 * 0.5 / np.sqrt((some & after).sum())
    # An episode that is none of these is dealt among all.
    assert share == 1 or (len(set(way_out[~before].tolist())) == 6 and before.mean() > 0.4)


def test_memory_of_a_policy_switched_on_late() -> None:
    state, _ = before_exfil()
    ring = state.forensics._replace(entity=jnp.asarray([3, 7, 3, 5, 0, 0, 0, 0], jnp.int32), count=jnp.int32(3))
    obs = observe(state._replace(forensics=ring), rows_of(0))
    memory = credits.memory_at(DIMS, EVIDENCE, PARAMETERS, obs)
    assert memory.counts.tolist() == [2 if e == 3 else 1 if e == 7 else 0 for e in range(DIMS.entities)]
    assert not memory.since.any() and not memory.rebuilt.any()
    marks = obs.marks.at[CUT_OFF, 1:4].set(True).at[PATCHED, 2:5].set(True).at[CONFIRMED, 3].set(True)
    isolated = obs._replace(marks=marks)
    rebuilt = credits.memory_at(DIMS._replace(restore=True), EVIDENCE, PARAMETERS, isolated).rebuilt
    assert np.flatnonzero(rebuilt).tolist() == [2]
    assert np.flatnonzero(credits.memory_at(DIMS, HEURISTIC, None, obs)).tolist() == [3, 7]
    assert credits.memory_at(DIMS, FARM, None, obs) == 0


# --- groups ---------------------------------------------------------------------------------------------------------


def relisted(params: Params, state: State, place: np.ndarray) -> tuple[Params, State]:
    """The same with entity e listed at place[e]."""

    def to(x: Any) -> Any:
        x = np.asarray(x)
        return np.where(x >= 0, place[x], x).astype(np.int32)

    old = np.argsort(place)
    s = params.scenario
    s = s._replace(value=s.value[old], exists=s.exists[old], targets=to(s.targets))
    _, *ends = map(np.asarray, unpack(DIMS, state.alerts.code))
    signal = np.asarray(state.alerts.code) & 7
    moved = state._replace(
        marks=state.marks[:, old],
        targets=to(state.targets),
        compromised=state.compromised[old],
        alerts=state.alerts._replace(code=np.asarray(pack(DIMS, signal, to(ends[0]), to(ends[1])))),
        forensics=state.forensics._replace(entity=to(state.forensics.entity)),
    )
    return params._replace(scenario=s), moved


def test_groups_do_not_depend_on_the_order_of_entities() -> None:
    bank, rng = collected(), np.random.default_rng(0)
    verbs, entities = table(DIMS)
    index = {(v, e): a for a, (v, e) in enumerate(zip(verbs.tolist(), entities.tolist(), strict=True))}
    a, i = int(HARDENED.scenario.asset_count[0]), int(HARDENED.scenario.identity_count[0])
    place = np.arange(DIMS.entities)
    place[:a] = rng.permutation(a)
    place[DIMS.assets : DIMS.assets + i] = DIMS.assets + rng.permutation(i)
    rows = np.flatnonzero((bank.params_index == 0) & (bank.state.alerts.count > 2))[:12]
    mine = [one(bank, r) for r in rows]
    others = [relisted(rows_of(0), s, place) for s in mine]
    params = banks.stack([rows_of(0), others[0][0]])
    both = as_bank([*mine, *(s for _, s in others)], [0] * len(rows) + [1] * len(rows))
    found = banks.groups(DIMS, params, both, campaign=np.zeros(2))
    apart = banks.groups(DIMS, params, both)
    there = [index[v, int(place[e]) if e >= 0 else -1] for v, e in zip(verbs.tolist(), entities.tolist(), strict=True)]
    for r in range(len(rows)):
        assert found.group[r] == found.group[r + len(rows)] and apart.group[r] != apart.group[r + len(rows)]
        np.testing.assert_array_equal(found.slot[r], found.slot[r + len(rows)][there])
    np.testing.assert_array_equal(found.slot >= 0, credits.legal_actions(DIMS, params, both))


def test_groups_tell_apart_what_is_seen_and_nothing_else() -> None:
    state, _ = before_exfil()
    alert = state.alerts._replace(
        code=state.alerts.code.at[0].set(pack(DIMS, 1, jnp.int32(2), jnp.int32(DIMS.assets))),
        severity=state.alerts.severity.at[0].set(0.52),
        tick=state.alerts.tick.at[0].set(39),
        count=jnp.int32(1),
    )
    warned = state._replace(alerts=alert)
    states = [
        state,
        state._replace(attack=jnp.bool_(False), order=state.order[::-1], compromised=~state.compromised),
        warned,
        warned._replace(alerts=alert._replace(severity=alert.severity.at[0].set(0.54))),
        warned._replace(alerts=alert._replace(severity=alert.severity.at[0].set(0.56))),
        warned._replace(alerts=alert._replace(tick=alert.tick.at[0].set(38))),
        state._replace(tick=jnp.int32(41)),
        state._replace(marks=state.marks.at[CUT_OFF, 1].set(True)),
        state._replace(marks=state.marks.at[CONFIRMED, 1].set(True)),
    ]
    found = banks.groups(DIMS, HARDENED, as_bank(states, [0] * len(states)))
    assert found.group.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6]
    value, group = np.asarray(HARDENED.scenario.value[0]), np.asarray(HARDENED.scenario.group[0])
    rules = HARDENED.rules._replace(believable_paths=np.full(2, 0.5, np.float32))
    believable = banks.groups(DIMS, HARDENED._replace(rules=rules), as_bank(states, [0] * len(states)))
    assert believable.group.tolist() == found.group.tolist()
    isolate = [int(encode(DIMS, jnp.int32(ISOLATE_ASSET), jnp.int32(e))) for e in range(DIMS.assets)]
    for e in range(DIMS.assets):
        for f in range(e):
            if HARDENED.scenario.exists[0][e] and HARDENED.scenario.exists[0][f]:
                alike = found.slot[0, isolate[e]] == found.slot[0, isolate[f]]
                assert alike == (value[e] == value[f]), "unseen assets of one value are one"
                alike = believable.slot[0, isolate[e]] == believable.slot[0, isolate[f]]
                assert alike == (value[e] == value[f] and group[e] == group[f]), "and of one group, where that matters"
    classic = banks.groups(DIMS, CLASSIC, as_bank(states, [0] * len(states)))
    legal = credits.legal_actions(DIMS, CLASSIC, as_bank(states[:1], [0]))[0]
    assert len(set(classic.slot[0, legal].tolist())) == legal.sum(), "where roles are fixed, every place counts"


def by_hand(q: Any, se: Any) -> Credit:
    q, se = np.asarray(q, np.float32), np.asarray(se, np.float32)
    rows = np.ones(len(q), np.int32)
    return Credit(q, se, ~np.isnan(q), rows * 32, rows)


def test_pooling_by_hand() -> None:
    nan = np.nan
    credit = by_hand([[1, 2, 3, nan], [5, 0, 1, nan], [0, 4, 2, 6]], [[0.1] * 3 + [nan], [0.3] * 3 + [nan], [0.2] * 4])
    # Rows 0 and 1 show the same, with two entities exchanged; in row 2 two entities are alike.
    rows = Groups(np.asarray([0, 0, 1], np.int32), np.asarray([[0, 1, 2, -1], [0, 2, 1, -1], [0, 1, 1, 2]], np.int32))
    pooled = beliefs.pool_beliefs(credit, rows)
    np.testing.assert_allclose(pooled.q, [[3, 1.5, 1.5, nan], [3, 1.5, 1.5, nan], [0, 3, 3, 6]])
    # Less the rows' means of 2 each: (-1, 3), (0, -1), (1, -2). Their standard deviations by sqrt(2).
    apart = [2.0, 0.5, 1.5]
    np.testing.assert_allclose(pooled.se[0, :3], apart, rtol=1e-6)
    np.testing.assert_allclose(pooled.se[1, :3], [apart[0], apart[2], apart[1]], rtol=1e-6)
    np.testing.assert_allclose(pooled.se[2], 0.2, rtol=1e-6)
    assert pooled.beliefs.tolist() == [2, 2, 1] and np.isnan(pooled.se[:2, 3]).all()
    # Rows that agree have the luck of the futures left: sqrt(2 * 0.3^2) / 2.
    agree = by_hand([[1, 2], [1, 2]], [[0.3, 0.3]] * 2)
    same = Groups(np.zeros(2, np.int32), np.asarray([[0, 1]] * 2, np.int32))
    np.testing.assert_allclose(beliefs.pool_beliefs(agree, same).se, np.sqrt(0.18) / 2, rtol=1e-6)


def test_beliefs_average_over_reference_states_that_show_the_same() -> None:
    state, _ = before_exfil()
    calm = state._replace(attack=jnp.bool_(False), stage=jnp.int32(-1))
    bank, reference = as_bank([state], [0]), as_bank([calm] * 3, [0, 0, 1])
    few = {"futures": FUTURES, "reference_futures": FUTURES, "chunk": 8}
    average = partial(beliefs.beliefs, DIMS, HARDENED, bank, reference, key=KEY, **few)
    alone, some, both = average(most=0), average(most=1), average()
    assert [c.beliefs.tolist() for c in (alone, some, both)] == [[1], [2], [3]], "the last state is another campaign's"
    raw = play(HARDENED, bank, key=KEY)
    assert alone.q[0, 0] == raw.q[0, 0] and both.q[0, 0] > some.q[0, 0] > alone.q[0, 0], "no attack costs nothing"
    assert both.q.shape == raw.q.shape


# --- what the numbers say -------------------------------------------------------------------------------------------


def test_informative_by_hand() -> None:
    legal = 41
    q = np.zeros((5, legal + 1))
    q[:, 0], q[:, -1] = [4.0, 4.3, 0.0, 1e-5, 0.0], np.nan  # in units of an error of 1 of each action
    q[4, 1] = -300.0  # one very bad action lifts all others above the mean
    se = np.ones((5, legal + 1))
    se[3:] = 0.0
    credit = by_hand(q, se)
    assert credits.informative(credit).tolist() == [False, True, False, False, True]
    assert credits.informative(credit, least=4.25).tolist() == [False, False, False, False, True]
    assert credits.informative(credit, z=2.0).tolist() == [True, True, False, False, True]
    more = credit._replace(futures=credit.futures * 8)  # less uncertain about its own error
    assert credits.informative(more)[0]
    with pytest.raises(ValueError, match="z = 0 is not positive"):
        credits.informative(credit, z=0)


def test_regret_and_scale_by_hand() -> None:
    credit = by_hand([[1, 5, 3, np.nan], [2, 2, 2, 2]], np.zeros((2, 4)))
    rows, done = np.asarray([0, 0, 0, 1, 0]), np.asarray([1, 0, 3, 2, -1])
    np.testing.assert_allclose(credits.regret(credit, rows, done), [0, 4, np.nan, 0, np.nan])
    np.testing.assert_allclose(credits.scaled(credit), [[0, 1, 0.5, np.nan], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"futures": 1}, "futures = 1 is too few"),
        ({"chunk": 0}, "chunk = 0 is too few"),
    ],
)
def test_bad_numbers_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(HARDENED, collected(), **change)


def test_bad_rows_are_refused() -> None:
    bank = banks.take(collected(), [0, 1])
    with pytest.raises(ValueError, match="row 1 of the bank has ended"):
        play(HARDENED, bank._replace(state=bank.state._replace(end=np.asarray([RUNNING, HORIZON], np.int32))))
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        play(HARDENED, bank._replace(params_index=bank.params_index + 2))
    with pytest.raises(ValueError, match="rows of the bank = 0"):
        play(HARDENED, banks.take(bank, []))


# --- the bank -------------------------------------------------------------------------------------------------------


def test_collected_states_are_those_of_the_episodes() -> None:
    bank = banks.collect_heuristic(ENV, HARDENED, *BASELINES["monitor"], KEY, 5, 2)
    assert bank.params_index.tolist() == [0] * 10 + [1] * 10
    assert bank.episode.tolist() == [e for _ in range(2) for e in range(5) for _ in range(2)]
    assert (bank.state.tick % 2).tolist() == [0, 1] * 10, "no tick twice"
    assert (bank.state.end == RUNNING).all() and (bank.action == 0).all()
    for r in range(0, 20, 3):
        p, e, tick = int(bank.params_index[r]), int(bank.episode[r]), int(bank.state.tick[r])
        again = replay(ENV, rows_of(p), jax.random.fold_in(KEY, p), e, np.zeros(80, np.int32))
        jax.tree.map(lambda a, b, t=tick: np.testing.assert_array_equal(a[t], b), again.state, one(bank, r))


def test_ticks_are_chosen_evenly_and_by_the_seed() -> None:
    a, b, c = scripted(KEY), scripted(KEY), scripted(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a.state.tick != c.state.tick).any() and (a.state.end == RUNNING).all()
    ticks = collected().state.tick[collected().params_index == 0]
    assert abs(ticks.mean() - 34.5) < 5 and ticks.min() < 5 and ticks.max() > 64
    with pytest.raises(ValueError, match="snapshots = 0 is too few"):
        banks.collect_heuristic(ENV, CLASSIC, *BASELINES["heuristic"], KEY, 3, 0)


def test_rows_are_taken_and_put_together() -> None:
    bank = collected()
    some = banks.take(bank, bank.params_index == 1)
    assert (some.params_index == 1).all() and len(some.episode) == 120
    jax.tree.map(np.testing.assert_array_equal, banks.concatenate([banks.take(bank, np.arange(120)), some]), bank)
    with pytest.raises(ValueError, match="banks are empty"):
        banks.concatenate([])
    with pytest.raises(ValueError, match="other dims"):
        banks.concatenate([bank, bank._replace(state=bank.state._replace(marks=bank.state.marks[..., :-1]))])
    with pytest.raises(ValueError, match="params are empty"):
        banks.stack([])
    bigger = env.make_params(CAMPAIGNS[0], DIMS._replace(assets=9), "hardened", "operational", "any")
    with pytest.raises(ValueError, match=r"params\[1\]\.scenario\.exists has shape \(14,\)"):
        banks.stack([rows_of(0), bigger])


def saved(folder: Path, bank: Bank | None = None) -> Path:
    path = folder / "rows.npz"
    banks.save(path, banks.take(collected(), np.arange(100, 130)) if bank is None else bank, DIMS, HARDENED)
    return path


def test_a_bank_comes_back_from_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    back = banks.load(path, DIMS, HARDENED)
    jax.tree.map(np.testing.assert_array_equal, back, banks.take(collected(), np.arange(100, 130)))
    assert [x.dtype for x in jax.tree.leaves(back)] == [x.dtype for x in jax.tree.leaves(collected())]
    other = HARDENED._replace(reward=jax.tree.map(lambda x: x * 2, HARDENED.reward))
    banks.load(path, DIMS, other)  # the reward may change
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npz"]


def test_what_kills_a_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["rows.npz"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for content in (b"", b"PK", whole[:middle], whole[:-30], b"\x93NUMPY junk", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"rows\.npz: not a readable bank .*collect the bank again"):
            banks.load(path, DIMS, HARDENED)
    for at in range(50, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            back = banks.load(path, DIMS, HARDENED)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a byte that nothing reads
            jax.tree.map(np.testing.assert_array_equal, back, banks.take(collected(), np.arange(100, 130)))
    np.save(tmp_path / "one.npy", np.zeros(3))
    for missing in (tmp_path / "none.npz", tmp_path / "one.npy"):
        with pytest.raises(ValueError, match="not a readable bank"):
            banks.load(missing, DIMS, HARDENED)


def test_files_that_do_not_match_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)

    def refused(dims: Dims = DIMS, params: Params = HARDENED, **changes: Any) -> str:
        np.savez(path, allow_pickle=False, **{k: v for k, v in (arrays | changes).items() if v is not None})
        with pytest.raises(ValueError, match=r"rows\.npz: .*collect the bank again") as caught:
            banks.load(path, dims, params)
        return str(caught.value)

    assert "dims = [6, 5" in refused(DIMS._replace(assets=7))
    assert "params_digest" in refused(params=CLASSIC)
    assert "simulator_version = '0', but '1'" in refused(simulator_version=np.asarray("0"))
    assert "format = None" in refused(format=None)
    assert "action is missing" in refused(action=None)
    assert "state.tick is of shape (30,) and float64" in refused(**{"state.tick": np.zeros(30)})
    assert "state.marks is of shape (29, " in refused(**{"state.marks": arrays["state.marks"][1:]})
    assert "params_index = 2 is not in 0..1" in refused(params_index=arrays["params_index"] * 0 + np.int32(2))
    assert "state.targets = 99 is not" in refused(**{"state.targets": arrays["state.targets"] * 0 + np.int32(99)})
    assert "state.end = 3" in refused(**{"state.end": arrays["state.end"] * 0 + np.int32(HORIZON)})
    assert "state.tick = 80 is past" in refused(**{"state.tick": arrays["state.tick"] * 0 + np.int32(80)})
    assert "state.load holds" in refused(**{"state.load": arrays["state.load"] * np.float32(np.nan)})
