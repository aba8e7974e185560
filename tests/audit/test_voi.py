"""What investigating is worth: who never investigates, and the numbers of a verdict and of the search for a reward."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim
from jaxsim import actions, noise, policies, recurrent
from jaxsim.audit import evaluation, reward_search, search, verdict
from jaxsim.audit.arena import Candidate, alike
from jaxsim.audit.report import runs
from jaxsim.compile import dims_of
from jaxsim.one_episode import EpisodeStats, episode_keys
from jaxsim.replays import load_record, plan_of
from jaxsim.rollouts import rollout_many
from jaxsim.types import CONFIRMED, INVESTIGATE, RewardWeights, Signals

ENV, PARAMS = jaxsim.make("insider_repo_pivot_hardened", rules="hardened1+foothold+liftable")
KEYS = episode_keys(jax.random.key(4), 32)


@pytest.mark.parametrize("restore", [False, True])
def test_members_without_forensics_are_all_different(restore: bool) -> None:
    family = search.sample_family(64, 3, restore)
    quiet = search.without_forensics(family)
    rows = {tuple(float(x) for x in row) for row in zip(*quiet, strict=True)}
    assert len(rows) == len(quiet.repeats) <= 64
    same = {(float(c), int(w)) for c, w in zip(family.contain_at, family.window, strict=True)}
    assert {(float(c), int(w)) for c, w in zip(quiet.contain_at, quiet.window, strict=True)} == same


def test_they_never_investigate_and_still_contain() -> None:
    quiet = jax.tree.map(lambda x: x[:8], search.without_forensics(search.sample_family(16, 3, True)))
    stats, _ = rollout_many(ENV, PARAMS, policies.EVIDENCE, quiet, KEYS)
    assert not stats.signals.investigations.any() and not stats.verbs[..., INVESTIGATE].any()
    assert stats.signals.containments.any()


def seen(tick: int) -> Any:
    """An observation of the middle of an episode in which something was investigated."""
    obs, state = jax.jit(ENV.reset)(jax.random.key(1), PARAMS)
    step = jax.jit(ENV.step)
    for t in range(tick):
        obs, state, *_ = step(jax.random.key(t), state, jnp.int32(1 + t % ENV.dims.entities), PARAMS)
    return obs


def test_a_policy_that_sees_alerts_only_is_told_nothing_of_forensics() -> None:
    obs = seen(20)
    weights = recurrent.init_weights(jax.random.key(0), 8, restore=True)
    none = obs.forensics._replace(number=jnp.full_like(obs.forensics.number, -1))
    other = obs._replace(forensics=none, marks=obs.marks.at[CONFIRMED].set(~obs.marks[CONFIRMED] & obs.exists))
    quiet = obs._replace(alerts=obs.alerts._replace(number=jnp.full_like(obs.alerts.number, -1)))
    memory = recurrent.no_history(ENV.dims, weights)

    def logits(view: str, o: Any) -> np.ndarray:
        return np.asarray(
            recurrent.forward(ENV.dims, weights, memory, recurrent.features(ENV.dims, recurrent.SIGHTS[view], o))[0]
        )

    np.testing.assert_array_equal(logits(recurrent.ALERTS, obs), logits(recurrent.ALERTS, other))
    assert not np.array_equal(logits(recurrent.SEEING, obs), logits(recurrent.SEEING, other))
    assert not np.array_equal(logits(recurrent.ALERTS, obs), logits(recurrent.ALERTS, quiet))
    looks = actions.table(ENV.dims)[0] == INVESTIGATE
    assert (logits(recurrent.ALERTS, obs)[looks] == recurrent.ILLEGAL).all()
    assert (logits(recurrent.SEEING, obs)[looks] > recurrent.ILLEGAL).any()


def test_what_is_played_at_once_plays_as_each_does_alone() -> None:
    """Views share a program, networks of other sizes do not, and shorter plans are filled up."""

    def network(view: str, width: int) -> Candidate:
        weights = recurrent.init_weights(jax.random.key(width), width, restore=True)
        parameters = recurrent.Learned(weights, np.bool_(True), recurrent.SIGHTS[view])
        return Candidate(view, recurrent.POLICIES[view], jax.tree.map(np.asarray, parameters))

    plans = [Candidate("plan", policies.PLAN, np.asarray(p, np.int32)) for p in ([1, 2], [3])]
    pool = [
        network(recurrent.SEEING, 4),
        plans[0],
        network(recurrent.ALERTS, 4),
        network(recurrent.MASKED, 6),
        plans[1],
    ]
    groups = alike(pool)
    assert [rows for rows, *_ in groups] == [[0, 2], [1, 4], [3]]
    for rows, policy, parameters in groups:
        stats, _ = rollout_many(ENV, PARAMS, policy, parameters, KEYS[:8])
        for k, i in enumerate(rows):
            one = jax.tree.map(lambda x: np.asarray(x)[None], pool[i].parameters)
            alone, _ = rollout_many(ENV, PARAMS, pool[i].policy, one, KEYS[:8])
            np.testing.assert_array_equal(stats.verbs[k], alone.verbs[0])


def played(name: str, returns: np.ndarray) -> verdict.Played:
    """What `compare` reads of a policy's episodes."""
    stats = EpisodeStats(*[None] * len(EpisodeStats._fields))._replace(  # type: ignore[arg-type]
        episode_return=returns[:, None], succeeded=np.zeros(len(returns), np.int32)
    )
    return verdict.Played(name, Candidate(name, policies.PLAN, np.zeros(1, np.int32)), stats)


def test_voi_is_over_the_best_that_never_investigates() -> None:
    luck = np.random.default_rng(0).normal(size=400)
    worth = {"monitor": -2.0, "open-loop": -1.5, "positional": -1.7, "briefed": -1.6, "heuristic": -1.0}
    worth |= {"evidence": 1.0, "alerts only": 0.0, recurrent.ALERTS: 0.25, "farming": -1.9, "farming x1": -1.9}
    found = verdict.compare([played(n, x + luck) for n, x in worth.items()], 0, 0, "evidence", "evidence")
    assert list(worth)[found.unlooking] == recurrent.ALERTS
    assert found.voi == pytest.approx((0.75, 0.75, 0.75)) and found.voi_norm == pytest.approx((0.25, 0.25, 0.25))
    assert found.evg.value == pytest.approx(2.5) and found.evg_norm.value == pytest.approx(2.5 / 3.0)
    # Where the best never investigates, investigating is worth nothing: not less.
    best = verdict.compare(
        [played(n, x + luck) for n, x in (worth | {"alerts only": 1.5}).items()], 0, 0, "alerts only", "alerts only"
    )
    assert best.voi.value == 0.0 and best.voi_norm.value == 0.0


def test_who_reads_best_may_be_one_that_never_investigates() -> None:
    some = [played(n, np.full(4, x)) for n, x in (("evidence", 0.1), ("alerts only", 0.3), ("open-loop", 9.0))]
    assert verdict.choose(some, 0) == ("alerts only", "alerts only")


def test_of_policies_that_earn_the_same_the_first_is_chosen() -> None:
    named = [played(n, np.full(4, 0.3)) for n in verdict.HAND_MADE]
    for some in itertools.permutations(named):
        assert verdict.choose([*some], 0) == (some[0].name, some[0].name)


def test_what_learning_is_worth_is_no_voi() -> None:
    worth = {"monitor": -2.0, "open-loop": -1.5, "positional": -1.7, "briefed": -1.6, "heuristic": -1.0}
    worth |= {"evidence": 0.25, "alerts only": 0.0, recurrent.SEEING: 2.0, "farming": -1.9, "farming x1": -1.9}
    some = [played(n, np.random.default_rng(0).normal(size=400) + x) for n, x in worth.items()]
    assert verdict.choose(some, 0) == (recurrent.SEEING, "evidence")
    found = verdict.compare(some, 0, 0, *verdict.choose(some, 0))
    assert found.voi.value == pytest.approx(0.25) and found.voi_norm.value == pytest.approx(0.25 / 2.25)
    assert found.evg.value == pytest.approx(3.5)
    # With a learned one that reads alerts only, like is compared with like.
    some.append(played(recurrent.ALERTS, np.random.default_rng(0).normal(size=400) + 1.5))
    assert verdict.choose(some, 0) == (recurrent.SEEING, recurrent.SEEING)
    assert verdict.compare(some, 0, 0, *verdict.choose(some, 0)).voi.value == pytest.approx(0.5)


def ground() -> reward_search.Ground:
    """Waiting, a blind plan, one that reads alerts only and one that investigates; all by hand."""
    names = Signals._fields
    signals = np.zeros((4, len(names)))
    rows: list[dict[str, float]] = [
        {"exfil": 0.4},
        {"exfil": 0.3, "containments": 1.0},
        {"exfil": 0.2, "containments": 2.0},
        {"exfil": 0.1, "containments": 2.0, "evidence_backed": 1.5, "recontained": 0.2, "investigations": 10.0},
    ]
    for row, values in zip(signals, rows, strict=True):
        for name, value in values.items():
            row[names.index(name)] = value
    outcomes = np.zeros((4, 5))
    outcomes[:, 0] = signals[:, names.index("exfil")]
    outcomes[:, 4] = signals[:, names.index("investigations")]
    each = np.arange(4)
    return reward_search.Ground("by hand", signals, signals, outcomes, each >= 2, each < 2, each == 2)


def test_nobody_calls_endless_investigating_harmless() -> None:
    """Who prevents a little more by investigating all day long has another outcome, not a better one."""
    outcomes = np.asarray([[0.30, 1, 0, 0, 0], [0.25, 1, 0, 0, 70], [0.30, 1, 0, 0, 70], [0.295, 1, 0, 0, 0]])
    # Left to compare: investigating in vain with all others, two of which are alike.
    assert verdict.tau(np.asarray([[3.0, 1, 0, 2], [0, 2, 3, 1]]), outcomes)[0].tolist() == [1.0, -1.0]


def test_a_weighting_is_scored_by_what_investigating_adds() -> None:
    values = {n: np.zeros(1) for n in reward_search.RANGES} | {"investigation": np.asarray([-0.01])}
    score = reward_search.score_one(ground(), reward_search.matrix(values))
    # Of -2.4, -1.8, -1.2 and -0.6 - 0.1 points.
    assert score.evg_norm[0] == pytest.approx(1.1 / 1.7) and score.voi_norm[0] == pytest.approx(0.5 / 1.7)
    assert score.backed[0] == 0.75 and score.once[0] == pytest.approx(0.9)
    assert score.prevented[0] == pytest.approx(0.75) and score.tau[0] == 1.0
    assert reward_search.margin(score, voi=True)[0] == pytest.approx(0.5 / 1.7 - reward_search.MARGIN_VOI)
    assert reward_search.margin(score, voi=False)[0] == pytest.approx(0.9 - reward_search.MARGIN_ONCE)
    all_once = score._replace(once=score.once + 0.1, evg_norm=score.evg_norm - 0.1)
    assert reward_search.margin(all_once, voi=False)[0] == pytest.approx(1.1 / 1.7 - 0.1 - reward_search.MARGIN)
    assert reward_search.share_met(score, voi=True) == {
        "evg_norm": 1.0, "once": 1.0, "voi_norm": 1.0, "backed": 1.0, "tau": 1.0, "together": 1.0,
    }  # fmt: skip
    dear = values | {"investigation": np.asarray([-0.2])}
    assert (
        reward_search.share_met(reward_search.score_one(ground(), reward_search.matrix(dear)), voi=True)["voi_norm"]
        == 0
    )


def test_who_contains_the_same_again_and_again_does_not_hold() -> None:
    """Unless a containment costs so much that somebody else is better."""
    toggles = ground()
    toggles.measured[3, [Signals._fields.index(n) for n in ("containments", "recontained")]] = 20, 19
    free = dict.fromkeys(reward_search.RANGES, np.zeros(1))
    score = reward_search.score_one(toggles, reward_search.matrix(free))
    assert score.once[0] == pytest.approx(0.05) and reward_search.margin(score, voi=True)[0] == pytest.approx(-0.7)
    assert reward_search.share_met(score, voi=True)["once"] == 0
    dear = reward_search.matrix(free | {"containment_cost": np.asarray([-0.1])})
    assert reward_search.score_one(toggles, dear).once[0] == 1  # of -1.4 and -2.6 points the former


def test_a_choice_is_told_in_as_few_digits_as_it_holds_with() -> None:
    """With containment at -0.26 a look may cost 0.03583 points, for 0.043 is too much by a fifth of the gain."""
    of_looks = dict.fromkeys(reward_search.RANGES, 0.0) | {"containment_cost": -0.26}
    for investigation, told in ((-0.0123, -0.012), (-0.0357, -0.0357), (-0.035712, -0.0357)):
        chosen, held = reward_search.rounded([ground()], of_looks | {"investigation": investigation}, True)
        assert chosen == of_looks | {"investigation": told} and held == reward_search.held_to([ground()], chosen)
    short = reward_search.held_to([ground()], of_looks | {"investigation": -0.036})["worst_when_moved"]
    assert short["voi_norm"] < reward_search.MARGIN_VOI


def test_weights_lie_in_the_order_of_the_signals_they_pay() -> None:
    pays = {"detection": "confirmed", "containment_cost": "containments", "evidence": "evidence_paid"}
    pays |= {
        "false_positive": "false_positives",
        "disruption": "load",
        "exfil": "exfil",
        "investigation": "investigations",
    }
    assert len(reward_search.LINEAR) == len(Signals._fields) - 2
    assert Signals._fields[-2:] == ("evidence_backed", "recontained")
    for weight, signal in pays.items():
        assert weight in RewardWeights._fields
        assert reward_search.LINEAR.index(weight) == Signals._fields.index(signal)


def test_a_pool_of_other_signals_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, kept = tmp_path / "pool.npz", ground()
    np.savez(path, **{f"{kept.name}/{field}": getattr(kept, field) for field in kept._fields[1:]})
    for a, b in zip(reward_search.reread(path)[0], kept, strict=True):
        np.testing.assert_array_equal(a, b)
    older = kept._replace(chosen=kept.chosen[:, :-1], measured=kept.measured[:, :-1])
    np.savez(path, **{f"{kept.name}/{field}": getattr(older, field) for field in kept._fields[1:]})
    with pytest.raises(SystemExit):
        reward_search.reread(path)
    assert "its signals are those of another version" in capsys.readouterr().err


def test_confirm_isolate_rebuild_and_restore_is_wholly_evidence_backed() -> None:
    """The episode of the page on the certificate: its rebuild counts, though evidence is paid once a target."""
    record = load_record(Path(__file__).parents[2] / "docs" / "lifecycle.json")
    _, env, params, plan = plan_of(record)
    key = episode_keys(noise.root(record["seed"]), 1, record["episode"])
    many, _ = rollout_many(env, params, policies.PLAN, plan[None], key)
    stats = jax.tree.map(lambda x: x[0], many)
    assert (stats.signals.containments.sum(), stats.signals.evidence_paid.sum()) == (3, 2)
    stats = stats._replace(episode_return=stats.episode_return[:, None])
    told = verdict.tells(verdict.Played("it", Candidate("it", policies.PLAN, plan), stats), 0, len(plan))
    assert told["evidence_backed_share"] == 1.0 and not told["never_restores"] and told["recontained_share"] == 0.0
    assert evaluation.outcome(stats)["evidence_backed"] == 1.0


def test_a_repeated_action_is_written_once() -> None:
    assert runs(["A", "A", "A", "B", "A"]) == ["A × 3", "B", "A"] and runs([]) == []


def test_dims_follow_the_rules() -> None:
    scenario = jaxsim.load_scenario("insider_repo_pivot_hardened")
    assert ENV.dims == dims_of([scenario], restore=True)
    with pytest.raises(
        ValueError, match=r"dims\.restore = True does not fit rules 'hardened1'; give Dims\(restore=False"
    ):
        jaxsim.make(scenario, rules="hardened1", dims=ENV.dims)
