"""The race finds what is there under noise, its bound holds, the adversary climbs, and budgets contain each other."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import scenarios
from jaxsim import policies, reward
from jaxsim.audit import adversary, course, open_loop, plans, search, search_check
from jaxsim.audit.arena import Arena, make_arenas, take
from jaxsim.audit.budgets import BUDGETS, Budget, lineage
from jaxsim.audit.race import best_rows, bound, differences, hopes, race, rounds
from jaxsim.one_episode import episode_keys
from jaxsim.rollouts import LEFT_OUT, outcomes_many, returns_many, rollout_many
from jaxsim.types import INVESTIGATE, PATCH_ASSET, RESTORE

NOISE, PAYS = 3.0, 1.0  # points: standard deviation of a return, and what the needle earns


@pytest.fixture(scope="module")
def arena() -> Arena:
    rewards = {"operational1": reward.weights("operational1")}
    return make_arenas([scenarios.load("cloud_metadata_ssrf")], "hardened1", rewards)[0]


def noisy(means: np.ndarray, rng: np.random.Generator, luck: float = 0.0) -> Any:
    """Arms with these mean returns, (M,); a share `luck` of the variance of every episode is common to all arms."""
    common = rng.normal(size=65536) * NOISE * np.sqrt(luck)

    def play(rows: np.ndarray, first: int, last: int) -> np.ndarray:
        own = rng.normal(size=(len(rows), last - first)) * NOISE * np.sqrt(1 - luck)
        returns: np.ndarray = (means[rows, None] + common[first:last] + own)[:, :, None]
        return returns

    return play, common[:4096, None]


@pytest.mark.parametrize("name", ["tiny", "small", "full"])
def test_a_needle_among_all_single_actions_is_found(name: str) -> None:
    budget, found = BUDGETS[name], 0
    arms = 1 + 36 * len(budget.ticks)
    for trial in range(100):
        rng = np.random.default_rng((trial, arms))
        needle = int(rng.integers(1, arms))
        play, reference = noisy(np.where(np.arange(arms) == needle, PAYS, 0.0), rng)
        raced = race(play, reference, arms, rounds(budget.screen, budget.select), budget.kept)
        found += raced.alive[raced.returns.mean(axis=(1, 2)).argmax()] == needle
    assert found >= 95


def test_a_needle_is_found_among_many_that_do_the_same_by_other_names() -> None:
    """Nothing, in 200 ways, looks better than the needle where that has no luck: and takes one place of twelve."""
    budget, found, nothing = BUDGETS["tiny"], 0, 200
    for trial in range(100):
        rng = np.random.default_rng(trial)
        needle = int(rng.integers(nothing, nothing + 60))
        means = np.full(nothing + 60, -0.5)
        means[needle] = 0.5
        own, reference = noisy(means, rng)

        def play(rows: np.ndarray, first: int, last: int, own: Any = own, reference: Any = reference) -> np.ndarray:
            returns: np.ndarray = np.where(
                (rows < nothing)[:, None, None], reference[first:last], own(rows, first, last)
            )
            return returns

        raced = race(play, reference, len(means), rounds(budget.screen, budget.select), budget.kept)
        assert (raced.alive < nothing).sum() <= 1
        found += needle in raced.alive
    assert found >= 99


def test_a_hopeful_race_finds_a_needle_that_varies_among_many_that_hardly_do() -> None:
    """Of 60 that hardly do anything some are ahead, by luck, of one that is worth 0.2 points and varies a lot."""
    budget, found = BUDGETS["tiny"], np.zeros(3, int)
    spread = np.append(4.5, np.full(60, 0.5))
    for trial in range(100):
        rng = np.random.default_rng(trial)
        reference = rng.normal(size=(8 * budget.select, 1)) * NOISE
        every = reference[None] + rng.normal(size=(61, len(reference), 1)) * spread[:, None, None]
        every[0] += 0.2

        def play(rows: np.ndarray, first: int, last: int, every: np.ndarray = every) -> np.ndarray:
            return every[rows, first:last]

        few = hopes(every[:, : budget.select], reference)
        found[0] += 0 in best_rows(few, budget.kept)
        for i, hopeful in ((1, True), (2, False)):
            raced = race(play, reference, 61, rounds(2 * budget.select, len(reference)), budget.beam, hopeful=hopeful)
            found[i] += 0 in raced.alive
    assert found[0] >= 99 and found[1] >= 99 and found[2] <= 95


def test_of_rows_that_are_alike_the_first_is_among_the_best() -> None:
    means = np.asarray([[1.0, 0.0], [3.0, 0.0], [3.0, 0.0], [2.0, 5.0], [3.0, 1.0], [1.0, 0.0]])
    assert best_rows(means, 2).tolist() == [1, 3, 4]
    assert best_rows(means, np.asarray([3, 0])).tolist() == [1, 3, 4]
    assert best_rows(means, 9).tolist() == [0, 1, 3, 4]


@pytest.mark.slow
def test_a_needle_in_the_rules_is_found_by_the_whole_search(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules in which one secret action at one tick pays, all others nothing; every return under independent noise."""
    budget, length = BUDGETS["tiny"], 70
    keys = np.zeros((8 * budget.select, 2), np.uint32)
    monkeypatch.setattr(course, "_drawn", lambda dims, params, keys: (np.zeros(len(keys), int), keys[:, 0] == 0))
    found = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        tick, act = int(rng.choice(budget.ticks)), int(rng.integers(1, arena.env.dims.actions))

        def rules(env: Any, params: Any, policy: Any, loops: Any, keys: np.ndarray, **secret: Any) -> np.ndarray:
            pays = PAYS * (loops.prefix[:, secret["tick"]] == secret["act"])
            noise = secret["rng"].normal(size=(len(pays), len(keys))) * NOISE
            return np.repeat((pays[:, None] + noise)[:, :, None], 4, axis=2)

        monkeypatch.setattr(
            course, "returns_many", lambda *args, t=tick, a=act, r=rng, rules=rules: rules(*args, tick=t, act=a, rng=r)
        )
        laid = course.lay(arena, keys, length)
        opened = open_loop.open_plans(laid, budget)
        found_plans = open_loop.search_plans(laid, budget, opened, np.zeros((0, length), np.int32), 0)
        finalists = open_loop.play_off(laid, budget, found_plans)
        best = finalists.parameters[finalists.gain[:, 0].argmax()]
        found += best[tick] == act
    assert found >= 95


def test_the_bound_holds_whichever_arms_were_dropped() -> None:
    """In at least 95 % of races it is above what the best arm earns; an arm that was dropped early counts as well."""
    held = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        means = rng.normal(size=100) * 0.3
        play, reference = noisy(means, rng, luck=0.5)
        raced = race(play, reference, 100, rounds(64, 512), 5, bounded=1)
        found = bound(raced, 1)
        assert found.members == 100 and found.fewest == raced.episodes.min() < 512 and found.best[0] < found.upper[0]
        held += found.upper[0] >= means.max()
    assert held >= 190


def test_the_bound_is_nearly_that_of_playing_all_arms_to_the_end() -> None:
    ends, over = rounds(64, 1024), []
    for trial in range(20):
        rng = np.random.default_rng(trial)
        play, reference = noisy(rng.normal(size=300) * 0.1 - 0.3, rng)
        all_to_the_end, ours, short = (
            bound(race(play, reference, 300, ends, keep, bounded), 1).upper[0]
            for keep, bounded in ((300, 0), (5, 1), (5, 0))
        )
        over.append([(upper - all_to_the_end) / (short - all_to_the_end) for upper in (ours, short)])
    assert np.mean(over, axis=0)[0] < 0.5


def test_an_arm_that_never_varied_has_an_error() -> None:
    """What pays in one episode of a thousand has earned nothing yet in most samples of 64."""
    returns = np.zeros((2, 64, 1), np.float32)
    returns[1, 0] = 10.0
    mean, error = differences(returns, np.zeros((64, 1)))
    assert mean[0, 0] == 0 and error[0, 0] == pytest.approx(10 / 64)


def test_kind_episodes_are_told_by_the_reference() -> None:
    """Arms that save what the reference loses: their difference is judged as if the episodes had been like all."""
    rng = np.random.default_rng(0)
    lost = -6.0 * (rng.random(8192) < 0.4)[:, None]
    saves = (0.5 * -lost[:64, 0] + rng.normal(size=64) * 0.1)[None, :, None]
    mean, error = differences(lost[:64] + saves, lost)
    true = 0.5 * 6 * (lost < 0).mean()
    assert abs(mean[0, 0] - true) < 4 * error[0, 0] < 0.5 < 5 * saves.std() / 8
    assert error[0, 0] < 0.5 * saves.std() / 8


def test_the_adversary_climbs_to_what_pays() -> None:
    horizon, acts = 20, np.arange(12, dtype=np.int32)
    start = np.zeros(24, np.int32)
    rng = np.random.default_rng(3)

    def sample(some: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        gain = 1.0 * (some[:, 4] == 7) + 0.8 * (some[:, 11] == 2) - 0.3 * (some[:, :horizon] != 0).sum(axis=1)
        return gain[:, None] + rng.normal(size=(len(some), 32)), np.zeros(32)

    found = adversary.climb(sample, start, acts, horizon, 64, 128, np.random.default_rng(0))
    best = max(found, key=lambda plan: 1.0 * (plan[4] == 7) + 0.8 * (plan[11] == 2) - 0.3 * (plan != 0).sum())
    assert best[4] == 7 and best[11] == 2 and (best != 0).sum() <= 3 and not best[horizon:].any()


@pytest.mark.parametrize("episodes", [32, 45])
def test_whole_episodes_come_to_the_same_as_tick_by_tick(arena: Arena, episodes: int) -> None:
    keys = episode_keys(jax.random.key(7), episodes)
    some = plans.single_plans(np.arange(1, arena.env.dims.actions), (0, 3), 70)[:9]
    for policy, parameters in (
        (policies.PLAN, some),
        (policies.PLAN, some[:1]),
        (policies.FARM, take(search.farm_loops(arena, some[:1, :1], search.LONGEST_PREFIX), slice(8))),
        (policies.EVIDENCE, search.sample_family(8, 0)),
    ):
        together = outcomes_many(arena.env, arena.params, policy, parameters, np.asarray(jax.random.key_data(keys)))
        stats, _ = rollout_many(arena.env, arena.params, policy, parameters, keys)
        assert all(getattr(together, name) is None for name in LEFT_OUT)
        # Where a fraction is rounded depends on the program: in sums of points, not in what an episode is.
        close = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
        jax.tree.map(close, together, stats._replace(**LEFT_OUT))
        np.testing.assert_array_equal(together.length, stats.length)
        np.testing.assert_array_equal(together.succeeded, stats.succeeded)


@pytest.mark.parametrize("rules", ["classic", "hardened1", "hardened"])
def test_what_reads_no_alerts_is_paid_the_same_in_every_episode_without_an_attack(rules: str) -> None:
    """The search plays one of them for all: the returns are those of playing every episode."""
    weights = {name: reward.weights(name) for name in ("evidence", "operational")}
    [own] = make_arenas([scenarios.load("supply_chain_token_drift_hardened")], rules, weights)
    laid = course.lay(own, np.asarray(jax.random.key_data(episode_keys(jax.random.key(3), 64))), 70)
    assert laid.attack.all() if rules == "classic" else 0 < laid.attack.sum() < 60
    acts = np.random.default_rng(0).integers(-1, own.env.dims.actions, (24, 70)).astype(np.int32)
    loops = search.farm_loops(own, acts[:1, :2], 70)
    for policy, parameters, found in (
        (policies.PLAN, acts, course.plan_returns(laid, acts, 0, 64)[:, :, :2]),
        (policies.FARM, loops, course.policy_returns(laid, policies.FARM, loops, 0, 64)),
    ):
        every = returns_many(own.env, own.params, policy, parameters, laid.keys)
        np.testing.assert_array_equal(found, every)
        assert rules == "classic" or (np.ptp(every, axis=1) > 0).all()


def test_actions_on_what_a_network_lacks_are_no_plans_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [scenarios.load(name) for name in ("supply_chain_token_drift", "supply_chain_token_drift_hardened")]
    smaller, _ = make_arenas(both, "hardened", {"operational": reward.weights("operational")})
    legal = np.append(smaller.env.legal_actions(smaller.params), True)  # INVALID, the last, is an action everywhere
    worth = np.arange(len(legal), dtype=np.float32)

    def played(env: Any, params: Any, policy: Any, loops: policies.FarmParams, keys: np.ndarray) -> np.ndarray:
        some = np.asarray(loops.prefix)
        assert policy == policies.FARM and legal[some].all() and (loops.prefix_length == some.shape[1]).all()
        returns = (worth[some] * np.arange(1, 1 + some.shape[1])).sum(axis=1, dtype=np.float32)
        return np.broadcast_to(returns[:, None, None], (len(some), len(keys), 4))

    monkeypatch.setattr(course, "returns_many", played)
    laid = course.lay(smaller, np.zeros((64, 2), np.uint32), 30)
    budget = BUDGETS["tiny"]._replace(select=64, pairs=(len(legal) - 1) ** 2)
    opened = open_loop.open_plans(laid, budget)
    within = np.where(legal[opened.plans], opened.plans, 0)
    assert 0 < (within != opened.plans).any(axis=1).mean() < 1
    expected = played(None, None, policies.FARM, policies.as_loops(within), laid.keys)
    np.testing.assert_array_equal(opened.first[:, 0], expected[:, 0, 0])
    assert legal[opened.moves[:, 1]].all() and legal[opened.fills].all()
    acts, ticks = legal.sum() - 1, len(budget.ticks) - 1  # an episode of 30 ticks has none of that number
    assert opened.bounds[open_loop.SINGLES].members == 1 + acts * ticks
    assert opened.bounds[open_loop.PAIRS].members == (acts - 1) ** 2  # without INVALID


def test_the_plain_search_of_a_short_network_stays_within_it(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def played(env: Any, params: Any, policy: Any, some: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return np.repeat((some[:, 8] == 3).astype(np.float32)[:, None, None], len(keys), axis=1)

    monkeypatch.setattr(search_check, "returns_many", played)
    best = search_check.reference(arena, np.zeros((4, 2), np.uint32), 12)
    assert best.shape == (12,) and best[8] == 3


def test_a_larger_budget_contains_a_smaller_one() -> None:
    assert [len(lineage(BUDGETS[name])) for name in ("tiny", "small", "full")] == [1, 2, 3]
    for name in ("small", "full"):
        larger, smaller = BUDGETS[name], BUDGETS[BUDGETS[name].base]
        for field in ("pairs", "beam", "moves", "climb", "prefix", "family", "select", "kept", "report"):
            assert getattr(larger, field) >= getattr(smaller, field), field
        assert set(smaller.ticks) <= set(larger.ticks)


@pytest.mark.parametrize("restore", [False, True])
def test_a_family_begins_with_the_smaller_one(restore: bool) -> None:
    small, large = (search.sample_family(many, 5, restore) for many in (64, 256))
    for name, a, b, default in zip(small._fields, small, large, policies.DEFAULT_EVIDENCE, strict=True):
        np.testing.assert_array_equal(a, b[:64])
        assert a[0] == default and a.dtype == default.dtype
        assert len(set(b.tolist())) > 1 if restore or name not in search.RECOVERY else (b == default).all()


def test_what_only_restore_has_a_use_for_changes_nothing_without_it(arena: Arena) -> None:
    family = search.sample_family(8, 0)
    other = family._replace(rebuild=~family.rebuild, clean_at=family.clean_at + 2, hold=family.hold * 0 + 1)
    keys = episode_keys(jax.random.key(7), 32)
    one, two = (rollout_many(arena.env, arena.params, policies.EVIDENCE, p, keys)[0] for p in (family, other))
    np.testing.assert_array_equal(one.episode_return, two.episode_return)
    assert one.verbs[:, :, [PATCH_ASSET, RESTORE]].sum() == 0 < one.verbs[:, :, INVESTIGATE].sum()


def test_what_a_smaller_budget_found_takes_part(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that the larger budget would never come to by itself is its best, if the smaller one had it."""
    tiny = Budget("", (0,), 0, 1, 0, 1, 0, 0, 8, 32, 32, 1, 64, 64)
    gem = np.zeros(70, np.int32)
    gem[[5, 6, 7]] = 3
    larger = tiny._replace(base="tiny", ticks=(0, 1))
    monkeypatch.setitem(BUDGETS, "tiny", tiny)
    real = open_loop.search_plans

    def spied(laid: Any, budget: Budget, opened: Any, given: np.ndarray, seed: int) -> Any:
        if budget is tiny:
            nine = np.full((1, 32, laid.monitor.shape[1]), 9.0, np.float32)
            return course.Finalists(gem[None], nine, nine[:, 0])
        assert any(np.array_equal(plan, gem) for plan in given)
        return real(laid, budget, opened, given, seed)

    monkeypatch.setattr(search, "search_plans", spied)
    (found,) = search.search([arena], larger, 0)
    assert found.open_loop[0].parameters.shape == (70,)
