"""The critic of a view: it finds what is so on average, and what a policy becomes by it is worth more."""

from typing import Any

import jax
import numpy as np
import pytest

from grpo.rows import bank as banks
from grpo.rows import credit, critic, rows, surrogate, worth_teaching
from jaxsim import noise, recurrent
from jaxsim.actions import table
from jaxsim.policies import BASELINES
from jaxsim.recurrent import MEMORYLESS, SIGHTS, Learned
from jaxsim.rollouts import rollout_many
from jaxsim.types import CONFIRMED, INVESTIGATE, ISOLATE_ASSET, MONITOR, REVOKE_IDENTITY


@pytest.fixture(scope="module")
def seen(game: rows.Campaigns) -> banks.Bank:
    return banks.collect_heuristic(game.env, game.params, *BASELINES["evidence"], noise.root(5), 32, 16)


def test_luck_and_what_is_hidden_average_out(
    game: rows.Campaigns, seen: banks.Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting off is worth 2 where the target is confirmed, and -1 elsewhere; looking is worth nothing."""
    monkeypatch.setattr(critic, "STEPS", 300)
    verbs, entities = table(game.dims)
    legal = credit.legal_actions(game.dims, game.params, seen)
    confirmed = np.asarray(seen.state.marks)[:, CONFIRMED][:, np.maximum(entities, 0)]
    cut_off = np.isin(verbs, (ISOLATE_ASSET, REVOKE_IDENTITY))
    truth = np.where(cut_off, np.where(confirmed, 2.0, -1.0), 0.0)
    luck = np.random.default_rng(0).choice([-2.0, 2.0], legal.shape)
    luck[:, MONITOR] = 0
    q = np.where(legal, truth + luck, np.nan).astype(np.float32)
    none = np.zeros(len(q), np.int32)
    found = credit.Credit(q + 5, np.zeros_like(q), legal, none, none)  # 5 points, whatever is done
    made = critic.fit(game.dims, surrogate.features(game.dims, game.params, seen), found, jax.random.key(0))
    said = critic.credit(game.dims, game.params, seen, [made])
    assert (said.q[:, MONITOR] == 0).all() and (np.isnan(said.q) == ~legal).all()
    for which, worth in ((cut_off & confirmed, 2), (cut_off & ~confirmed, -1), ((verbs == INVESTIGATE)[None], 0)):
        of_these = said.q[which & legal]
        assert len(of_these) and of_these.mean() == pytest.approx(worth, abs=0.4)
    others = legal & (np.arange(game.dims.actions) != MONITOR)
    most = (truth[others] ** 2).mean() / ((truth + luck)[others] ** 2).mean()
    assert 0.5 * most < made.explained <= most + 0.02
    assert np.nanmean(said.se[:, 1:]) < 0.5
    twice = critic.credit(game.dims, game.params, seen, [made, made])
    np.testing.assert_allclose(twice.q, 2 * said.q, rtol=1e-5)
    np.testing.assert_allclose(twice.se, said.se * np.sqrt(2), rtol=1e-5)


def test_some_actions_are_tried_and_waiting_always() -> None:
    rng = np.random.default_rng(0)
    legal, chances = rng.random((400, 40)) < 0.8, np.full((400, 40), 0.01)
    legal[:, MONITOR], chances[:, 7] = True, 0.5
    some = critic.tried(legal, chances, 3)
    assert some[:, MONITOR].all() and not (some & ~legal).any()
    assert (some.sum(axis=1) == critic.TRIED).all()
    assert some[legal[:, 7], 7].mean() > 0.95 > 0.6 > some[legal[:, 9], 9].mean()
    few = np.arange(40) < np.asarray([[5], [1]])
    np.testing.assert_array_equal(critic.tried(few, chances[:2], 3), few)


def test_a_target_by_hand() -> None:
    q = np.asarray([[0.0, 1.0, np.nan, 0.5]], np.float32)
    legal = np.asarray([[True, True, False, True]])
    none = np.zeros(1, np.int32)
    wanted = np.asarray([[0.6 * 1, 0.4 * np.exp(2), 0, 0]])
    found = critic.target(np.asarray([[0.6, 0.4, 0.3, 0.0]]), credit.Credit(q, q, legal, none, none), 0.5)
    np.testing.assert_allclose(found, wanted / wanted.sum())


def returns(game: rows.Campaigns, who: Learned) -> float:
    one = jax.tree.map(lambda x: np.asarray(x)[None], who)
    stats, _ = rollout_many(game.env, game.of(0), surrogate.POLICY, one, rows.episodes_of(0, 128, 11))
    return float(np.asarray(stats.episode_return).mean())


@pytest.mark.slow
def test_a_policy_that_acts_at_random_becomes_better(game: rows.Campaigns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critic, "PLAY", 16)
    monkeypatch.setattr(critic, "STEPS", 300)
    monkeypatch.setattr(surrogate, "STEPS", 200)
    weights = recurrent.init_weights(jax.random.key(1), 8, game.dims.restore)._replace(wait_bias=np.float32(0))
    who = Learned(weights, np.bool_(False), SIGHTS[MEMORYLESS])
    given: dict[str, Any] = {"states": 160, "futures": 2, "eta": 1.0}
    better = critic.improve(game.env, game.params, who, 0, rounds=2, **given)
    assert len(better.critics) == len(better.rounds) == 2 and better.rounds[0]["explained"] > 0.2
    before, after = returns(game, who), returns(game, better.learned)
    assert before < -20 and after > before / 2
    again = critic.improve(game.env, game.params, who, 0, rounds=2, **given)
    jax.tree.map(np.testing.assert_array_equal, again, better)
    with pytest.raises(ValueError, match="7 states are too few to fit a critic to; give at least 8"):
        critic.learn(game.env, game.params, who, 0, states=7, futures=2)
    bank = critic.play_of(game.env, game.params, who, 5, 2)
    found, told = worth_teaching.improved(
        game, bank, [3, 1], who, rounds=1, many=10, seed=4, layout="compact", **given
    )  # fmt: skip
    assert len(found.prompts) == 12 and len(told.rounds) == 1
    np.testing.assert_array_equal(found.informative, np.arange(12) > 1)
    for i, r in enumerate((3, 1)):  # those kept apart come first, with returns-to-go
        assert found.prompts[i] == rows.prompts_of(game, banks.take(bank, np.asarray([r])), "compact")[0]
        assert found.credit.futures[i] == worth_teaching.FUTURES_APART
    assert (found.credit.q[2:, MONITOR] == 0).all() and (found.credit.futures[2:] == 0).all()


def test_what_is_worth_teaching_is_where_it_acts_or_differs(game: rows.Campaigns) -> None:
    verbs, _ = table(game.dims)
    acts, many = int(np.flatnonzero(verbs == ISOLATE_ASSET)[0]), 400
    first = np.zeros((many, game.dims.actions))
    first[:, MONITOR] = 1
    then = first.copy()
    then[100:130, [MONITOR, acts]] = 0.4, 0.6  # it acts
    then[200:230, [MONITOR, 1]] = 0.6, 0.4  # it looks oftener
    which = worth_teaching.worth_teaching(game, first, then, 300, 50, 0)
    assert len(set(which.tolist())) == 50 and (np.diff(which) > 0).all()
    of = [int(((which >= low) & (which < low + 30)).sum()) for low in (100, 200)]
    assert of[0] >= 20 and of[1] >= 10 and sum(of) >= 40
    same = worth_teaching.worth_teaching(game, first, first, 300, 50, 0)
    assert len(same) == 50
    assert len(worth_teaching.worth_teaching(game, first[:20], then[:20], 15, 50, 0)) == 20
    assert surrogate.agreement(first, then)["same"] == 1 - 30 / many
