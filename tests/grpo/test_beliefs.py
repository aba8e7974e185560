"""What may not depend on hidden luck: roles dealt anew, and averages over what shows the same."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forks import (
    CLASSIC,
    DIMS,
    FUTURES,
    HARDENED,
    KEY,
    PARAMETERS,
    as_bank,
    before_exfil,
    by_hand,
    collected,
    observe,
    one,
    play,
    redeal,
    rows_of,
)

from grpo.rows import bank as banks
from grpo.rows import beliefs
from grpo.rows import credit as credits
from grpo.rows import redeal as redeals
from grpo.rows.bank import Groups
from jaxsim import env
from jaxsim.actions import encode, table
from jaxsim.policies import EVIDENCE, FARM, HEURISTIC
from jaxsim.telemetry import pack, unpack
from jaxsim.types import (
    CONFIRMED,
    CUT_OFF,
    ISOLATE_ASSET,
    PATCHED,
    Params,
    State,
)

# --- what the defender has not seen -----------------------------------------------------------------------------------


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


# --- groups -----------------------------------------------------------------------------------------------------------


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
