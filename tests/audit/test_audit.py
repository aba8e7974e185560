"""The audit: search, verdicts, re-scoring, witnesses."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxsim
import scenarios
from jaxsim import actions, reward
from jaxsim.audit import bootstrap, checkpoint, plans, rescore, reward_search, search, verdict, witness
from jaxsim.audit.arena import PLAN as PLAN_KIND
from jaxsim.audit.arena import Arena, Candidate, make_arenas, returns_of
from jaxsim.audit.budgets import Budget
from jaxsim.one_episode import episode_keys
from jaxsim.policies import BASELINES, FARM, PLAN, FarmParams
from jaxsim.replays import load_record, play_record
from jaxsim.rollouts import rollout_many
from jaxsim.types import CONFIRMED, INVESTIGATE, MONITOR, RESTORE, RewardWeights, Signals

ROOT = Path(__file__).resolve().parents[2]
SUPPLY = "supply_chain_token_drift"
TINY = Budget(
    base="",
    ticks=(0, 1, 2),
    pairs=2**11,
    beam=2,
    depth=1,
    moves=6,
    climb=2,
    prefix=1,
    family=64,
    screen=32,
    select=64,
    kept=12,
    report=512,
    configs=64,
)
REPORT_KEYS = verdict.report_keys(jax.random.key(99), TINY.report)


@pytest.fixture(scope="module")
def arena() -> Arena:
    rewards = {n: reward.weights(n) for n in ("linear", "evidence")}
    return make_arenas([scenarios.load(SUPPLY)], "classic", rewards)[0]


@pytest.fixture(scope="module")
def found(arena: Arena) -> search.Found:
    return search.search([arena], TINY, seed=3)[0]


@pytest.fixture(scope="module")
def played(arena: Arena, found: search.Found) -> list[list[verdict.Played]]:
    return verdict.play(arena, [verdict.finalists(found, r) for r in range(2)], REPORT_KEYS)


@pytest.fixture(scope="module")
def crowd(arena: Arena) -> tuple[np.ndarray, np.ndarray]:
    return verdict.crowd(arena, 0, REPORT_KEYS)


@pytest.fixture(scope="module")
def rows(arena: Arena, found: search.Found, played: list[list[verdict.Played]], crowd: Any) -> list[dict[str, Any]]:
    return [verdict.judge(arena, p, r, 0, REPORT_KEYS, found.bounds, crowd) for r, p in enumerate(played)]


def plan(arena: Arena, *texts: str) -> np.ndarray:
    from jaxsim.names import parse_action

    return np.asarray([parse_action(t, arena.scenario, arena.env.dims) for t in texts], np.int32)


def test_search_finds_the_blind_optimum_and_the_farm(arena: Arena, rows: list[dict[str, Any]]) -> None:
    linear, evidence = rows
    for row in rows:
        assert row["verdict"] == verdict.DEGENERATE and verdict.OPEN_LOOP in row["exploits"]
        assert row["evg_ci"][0] <= row["evg"] <= row["evg_ci"][1] < 0
        best = next(p for p in row["policies"] if p["policy"] == "certain")
        assert best["return"] >= 7.2 and best["std"] < verdict.STD_ZERO and best["tells"]["suspicious"]
    assert verdict.FARMING in evidence["exploits"] and verdict.HARM_SEEKING in evidence["exploits"]
    assert linear["exploits"] == [verdict.OPEN_LOOP], "without an evidence bonus there is nothing to farm"


def test_what_a_verdict_wants_is_said(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert f"EVG_norm ≥ {verdict.CERTIFIED_EVG_NORM}" in row["unmet"], "reading is worth less than nothing here"
        looking, unlooking = row["voi_of"]
        backed = next(p for p in row["policies"] if p["policy"] == looking)["tells"]["evidence_backed_share"]
        wants = {
            f"VOI_norm ≥ {verdict.CERTIFIED_VOI_NORM}": not row["voi_norm_ci"][0] >= verdict.CERTIFIED_VOI_NORM,
            f"{verdict.CERTIFIED_BACKED:.0%} of containments evidence-backed": backed < verdict.CERTIFIED_BACKED,
        }
        wanting = [name for name, want in wants.items() if want]
        assert row["unmet"][-len(wanting) :] == wanting != []
        assert looking in verdict.HAND_MADE and unlooking == "alerts only"


def test_harm_seeking_needs_that_harm_itself_pays(
    arena: Arena, found: search.Found, played: list[list[verdict.Played]], crowd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that earns more and stops less is not enough: that may be because controls cost."""
    monkeypatch.setattr(verdict.metrics, "harm_monotonicity", lambda *args: [bootstrap.Estimate(0.1, -0.1, 0.3)] * 2)
    row = verdict.judge(arena, played[1], 1, 0, REPORT_KEYS, found.bounds, crowd)
    assert row["harm_seeker"] is not None and verdict.HARM_SEEKING not in row["exploits"]
    assert [(h["ticks"], h["ci"]) for h in row["harm_monotonicity"]] == [(t, [-0.1, 0.3]) for t in verdict.HARM_TICKS]


def test_a_finalist_of_many_rewards_is_played_once(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    idle, first = Candidate("monitor", *BASELINES["monitor"]), Candidate("plan", PLAN, np.asarray([0, 3], np.int32))
    counted = []

    def spy(env: Any, params: Any, policy: Any, parameters: Any, keys: Any, **options: Any) -> Any:
        counted.append(jax.tree.leaves(parameters)[0].shape[0])
        return rollout_many(env, params, policy, parameters, keys, **options)

    monkeypatch.setattr(verdict, "rollout_many", spy)
    both = verdict.play(arena, [{"monitor": idle, "a": first}, {"b": first}], REPORT_KEYS[:16])
    assert counted == [2]
    assert [[p.name for p in of_one] for of_one in both] == [["monitor", "a"], ["b"]]
    np.testing.assert_array_equal(both[0][1].stats.episode_return, both[1][0].stats.episode_return)


def test_search_is_reproducible(arena: Arena, found: search.Found) -> None:
    again = search.search([arena], TINY, seed=3)[0]
    pools = ([c.parameters for c in f.pool] for f in (found, again))
    for a, b in zip(*map(jax.tree.leaves, pools), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_tries_what_is_invalid(tmp_path: Path) -> None:
    """A reward that pays for mistakes is best served by nothing else, at every tick; the witness says so in JSON."""
    rewards = {"linear": reward.weights("linear"), "mistakes": reward.weights("operational", invalid_action=2.0)}
    [place] = make_arenas([scenarios.load(SUPPLY)], "classic", rewards)
    [blind] = search.search_blind(search.lay_out([place], TINY, 3), TINY, 3)
    linear, mistakes = (blind.champions.parameters[blind.champions.gain[:, r].argmax()] for r in range(2))
    assert (mistakes == actions.INVALID).mean() > 0.9 and not (linear == actions.INVALID).any()
    record = witness.make_witness(place, Candidate(PLAN_KIND, PLAN, mistakes), 1, seed=0, episodes=32)
    (tmp_path / "witness.json").write_text(json.dumps(record, allow_nan=False))
    _, _, again = play_record(load_record(tmp_path / "witness.json"))
    assert "INVALID" in record["actions"] and float(again.reward.sum()) == pytest.approx(record["return"], abs=1e-3)


def test_plan_enumeration_is_exhaustive(arena: Arena) -> None:
    ticks, acts = (0, 2, 5), np.arange(1, arena.env.dims.actions, dtype=np.int32)
    many = len(acts)
    singles, pairs = plans.single_plans(acts, ticks, 9), plans.pair_plans(acts, ticks, 9, 3 * many**2)
    constant = plans.constant_plans(acts, 9)
    assert len(singles) == 1 + 3 * many and len(pairs) == 3 * many**2 and len(constant) == many
    both = np.concatenate([singles, pairs])
    assert len(np.unique(both, axis=0)) == len(both) and (constant == acts[:, None]).all()
    assert not np.delete(both, ticks, axis=1).any() and both.shape[1] == 9
    # No room for three ticks: two are left, and then none.
    assert len(plans.pair_plans(acts, ticks, 9, 3 * many**2 - 1)) == many**2
    assert len(plans.pair_plans(acts, ticks, 9, many**2 - 1)) == 0


def test_plans_grow_by_one_change_each() -> None:
    parents = np.asarray([[0, 0, 0, 0], [5, 0, 0, 0]], np.int32)
    moves, fills = np.asarray([[0, 5], [0, 6], [2, 7]]), np.asarray([8])
    grown = plans.grow(parents, moves, fills).tolist()
    expected = [[6, 0, 0, 0], [0, 0, 7, 0], [5, 0, 7, 0], [8, 8, 8, 8], [5, 8, 8, 8]]
    assert sorted(grown) == sorted(expected), "no repeats, and no parent is its own child"
    assert len(plans.grow(parents[:0], moves, fills)) == 0


def test_farm_loops_only_contain_entities_that_exist(arena: Arena) -> None:
    farms = search.farm_loops(arena, np.zeros((1, 0), np.int32), 2)
    assert len(farms.entity) == 3 * len(arena.scenario.assets) + len(arena.scenario.identities)


def test_where_controls_are_lifted_loops_of_two_actions_on_one_target_are_tried_too() -> None:
    [lifting] = make_arenas(
        [scenarios.load(SUPPLY)], "hardened1+liftable", {"operational": reward.weights("operational")}
    )
    dims, exists = lifting.env.dims, np.ones(lifting.env.dims.entities, bool)
    verbs, entities = actions.table(dims)
    pairs = plans.in_turn(verbs, entities, exists)
    # Of an asset's five verbs any two but INVESTIGATE with RESTORE, of an identity's three likewise.
    assert len(pairs) == 9 * dims.assets + 2 * dims.identities
    assert (entities[pairs[:, 0]] == entities[pairs[:, 1]]).all() and (verbs[pairs] != MONITOR).all()
    assert not np.isin(verbs[pairs], (INVESTIGATE, RESTORE)).all(axis=1).any()
    assert len(plans.in_turn(verbs, entities, exists & (entities[1] != np.arange(dims.entities)))) == len(pairs) - 9
    farms = search.farm_loops(lifting, np.zeros((1, 0), np.int32), 2)
    assert len(farms.entity) == len(pairs) + 3 * dims.assets + dims.identities
    one_in_turn = plans.turn_plans(pairs[:1], 5)
    assert one_in_turn.tolist() == [[*pairs[0], *pairs[0], pairs[0, 0]]]


def test_a_hunt_takes_all_targets_in_turn() -> None:
    verbs = np.asarray([MONITOR, INVESTIGATE, INVESTIGATE, INVESTIGATE, RESTORE])
    entities, exists = np.asarray([0, 0, 1, 2, 0]), np.asarray([True, False, True])
    assert plans.round_plans(verbs, entities, exists, (0, 2, 9), 5).tolist() == [
        [1, 3, 0, 0, 0],
        [1, 3, 1, 3, 1],
        [0, 0, 1, 3, 0],
        [0, 0, 1, 3, 1],
        [4, 0, 0, 0, 0],
        [4, 4, 4, 4, 4],
        [0, 0, 4, 0, 0],
        [0, 0, 4, 4, 4],
    ]


def test_a_loop_of_two_actions_takes_them_in_turn() -> None:
    env, params = jaxsim.make(SUPPLY, rules="hardened1+liftable-unknown_attack")
    off, on = (
        jaxsim.parse_action(f"{v} svc-ci-deploy", scenarios.load(SUPPLY), env.dims)
        for v in ("REVOKE_IDENTITY", "RESTORE")
    )
    loop = FarmParams(
        np.zeros(1, np.int32), np.int32(0), np.int32(env.dims.assets), np.int32(off), np.int32(on), np.int32(5)
    )
    one = jax.tree.map(lambda x: np.asarray(x)[None], loop)
    _, record = rollout_many(env, params, FARM, one, episode_keys(jax.random.key(0), 32), record=True)
    assert record is not None
    taken = [[int(a) for a in episode if a in (off, on)] for episode in record.action[0]]
    assert [off, on, off, on, off] in taken and all(t == [off, on, off, on, off][: len(t)] for t in taken)


def test_farming_policy_investigates_then_repeats(arena: Arena) -> None:
    prefix = plan(arena, "BLOCK_EGRESS egress-proxy")
    loop = plan(arena, "REVOKE_IDENTITY svc-ci-deploy")[0]
    entity = arena.env.dims.assets
    once = FarmParams(prefix, np.int32(1), np.int32(entity), loop, loop, np.int32(2))
    one = jax.tree.map(lambda x: np.asarray(x)[None], once)
    stats, record = rollout_many(arena.env, arena.params, FARM, one, episode_keys(jax.random.key(0), 64), record=True)
    assert record is not None
    actions = record.action[0]
    assert (actions[:, 0] == prefix[0]).all()
    assert ((actions == loop).sum(axis=1) <= 2).all()
    paid = stats.signals.evidence_paid[0]
    assert paid.max() == 2.0 and stats.verbs[0, :, INVESTIGATE].min() >= 1
    assert CONFIRMED == 3


def test_returns_of_pads_without_changing_results(arena: Arena) -> None:
    some = plans.single_plans(np.arange(1, arena.env.dims.actions), (0, 1), 2)[:5]
    keys = episode_keys(jax.random.key(1), 16)
    padded = returns_of(arena, PLAN, some, keys)
    direct, _ = rollout_many(arena.env, arena.params, PLAN, some, keys)
    np.testing.assert_array_equal(padded, direct.episode_return)


def test_rescoring_equals_simulation(arena: Arena) -> None:
    """Exact for weightings in which the clip and the disruption cap bind."""
    pool = [Candidate(n, *BASELINES[n]) for n in ("monitor", "heuristic", "random")]
    pool.append(Candidate(PLAN_KIND, PLAN, plan(arena, "MONITOR", "ISOLATE_ASSET ci-runner-01")))
    keys = episode_keys(jax.random.key(5), 128)
    ledger = rescore.record(arena, pool, keys)
    weights = rescore.sobol_weights(8, seed=1)
    tight = weights._replace(clip=weights.clip * 0.1, disruption_cap=weights.disruption_cap * 0.05)
    stacked: RewardWeights = jax.tree.map(lambda a, b: np.concatenate([a, b]), weights, tight)
    scored = rescore.score(ledger, stacked)
    params = arena.params._replace(reward=stacked)
    for i, c in enumerate(pool):
        one = jax.tree.map(lambda x: np.asarray(x)[None], c.parameters)
        stats, _ = rollout_many(arena.env, params, c.policy, one, keys)
        np.testing.assert_allclose(scored[:, i], stats.episode_return[0].mean(axis=0), atol=2e-4)
    assert ledger.counts.sum(axis=1).max() <= arena.scenario.horizon
    assert ledger.seeing.tolist() == [False, True, False, False]
    assert ledger.blind.tolist() == [True, False, False, True]


def test_grid_moves_one_weight_at_a_time() -> None:
    base = reward.weights("evidence")
    grid, moves = rescore.grid_weights(base, 3)
    assert len(moves) == 3 * len(RewardWeights._fields) == len(grid.clip)
    for i, (name, value) in enumerate(moves):
        for other, column in grid._asdict().items():
            expected = value if other == name else float(getattr(base, other))
            assert float(column[i]) == pytest.approx(expected)


def test_only_the_weights_that_are_named_vary() -> None:
    drawn, own = reward_search.draw(64, 0, ["detection"]), reward.PRESETS[reward_search.DEFAULT]
    assert drawn.keys() == reward_search.RANGES.keys() and len(set(drawn["detection"])) == 64
    for name in drawn.keys() - {"detection", "stage_left"}:
        assert (drawn[name] == own[name]).all(), name
    # What the search says of the default, whose other weights it does not draw, is of the default as it is.
    assert reward_search.full({n: own[n] for n in reward_search.RANGES}) == {n: own[n] for n in reward_search.LINEAR}
    paid = drawn["detection"] + max(own["evidence"] + own["containment_cost"], 0.0)
    assert np.array_equal(drawn["stage_left"], np.maximum(own["stage_left"], 2.0 * paid))


def test_learned_policies_of_other_rules_stay_out_of_the_pool(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [c.kind for c in reward_search.learned_policies(checkpoint.OWN, "hardened")]
    assert kinds == ["alerts", "masked", "memoryless", "seeing"]
    assert reward_search.learned_policies(None, "hardened") == []
    with pytest.raises(SystemExit):
        reward_search.learned_policies(checkpoint.OWN, "classic")
    assert "trained under 'classic' (but hardened, hardened1, hardened2); leave it out" in capsys.readouterr().err


def test_linear_weights_are_in_the_order_of_the_signals() -> None:
    """A return of the reward search, which is a dot product, is what the reward pays."""
    rng = np.random.default_rng(0)
    values = {name: rng.random(1) for name in reward_search.RANGES}
    signals = rng.random(len(Signals._fields)).astype(np.float32)
    weights = reward_search.as_weights({name: float(x[0]) for name, x in values.items()})
    paid = reward.total(reward.channels(Signals(*signals), weights), weights)
    assert (reward_search.matrix(values) @ signals).tolist() == [pytest.approx(float(paid), abs=1e-5)]


def test_gaps_select_on_one_ledger_and_measure_on_the_other() -> None:
    base = np.zeros((3, len(Signals._fields)), np.float32)
    base[0, 0] = base[1, 1] = base[2, 3] = 1.0  # a detection, an active block, a containment
    seeing, blind = np.asarray([0, 1, 1, 0, 0], bool), np.asarray([1, 0, 0, 1, 1], bool)
    #                     monitor    sees a     sees b     blind a    blind b
    select = np.asarray([[0, 0, 0], [2, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    report = np.asarray([[0, 0, 0], [1, 0, 0], [9, 0, 0], [0, 1, 0], [0, 9, 0]], np.float32)
    weights = jax.tree.map(lambda x: x[None], reward.weights("linear"))
    evg, norm = rescore.gaps(
        rescore.Ledger(base, select, seeing, blind, 0), rescore.Ledger(base, report, seeing, blind, 0), weights
    )
    # Chosen: "sees a" (2 x 1.5 > 1 x 1.5) and "blind a" (2.5 > -0.15); measured 1.5 - 2.5.
    np.testing.assert_allclose(evg, [-1.0], atol=1e-6)
    np.testing.assert_allclose(norm, [-1.0 / 1.5], atol=1e-6)


def test_bootstrap_is_paired_and_covers() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(size=(400, 1)) * 10
    samples = luck + np.asarray([[0.0, 1.0]]) + rng.normal(size=(400, 2)) * 0.1
    boot = bootstrap.resampled_means(samples, rng)
    paired = bootstrap.estimate(1.0, boot[:, 1] - boot[:, 0])
    assert paired.high - paired.low < 0.05, "the shared luck cancels"
    assert 1.5 < np.diff(np.percentile(boot[:, 0], [2.5, 97.5]))[0] < 2.5  # 2 x 1.96 x 10 / 20


def test_tau_counts_dominated_pairs() -> None:
    """Four policies: exfil, stages, downtime, false positives, investigations."""
    outcomes = np.asarray([[0.0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 9, 0, 0]])
    # Of the four comparable pairs (0-1, 0-2, 1-2, 0-3) the last line has one the wrong way round.
    returns = np.asarray([[3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0], [3.0, 1.0, 2.0, 0.0]])
    found, pairs = verdict.tau(returns, outcomes)
    assert found.tolist() == [1.0, -1.0, 0.5] and pairs == 4


def test_tau_leaves_out_what_is_no_difference() -> None:
    for stages, tau in ((0.03, None), (0.15, -1.0)):
        [found], pairs = verdict.tau(
            np.asarray([[0.0, 1.0]]), np.asarray([[0, 3.0, 0, 0, 0], [0, 3 + stages, 0, 0, 0]])
        )
        assert (np.isnan(found) and pairs == 0) if tau is None else found == tau


def test_a_verdict_ranks_more_than_its_finalists(
    played: list[list[verdict.Played]], crowd: Any, rows: list[dict[str, Any]]
) -> None:
    returns, costs = crowd
    assert verdict.CROWD < len(costs) == len(returns) <= 2 * verdict.CROWD
    assert (costs[verdict.CROWD :, 4] == 0).all(), "those never investigate"
    alone = np.stack([verdict.costs(p.stats) for p in played[0]])
    _, few = verdict.tau(np.zeros((1, len(alone))), alone)
    assert rows[0]["outcome_pairs"] > 100 > few


def test_harm_seeking_needs_more_harm_and_more_return() -> None:
    stages = np.asarray([0.0, 2.0])
    boot_stages = np.tile(stages, (100, 1))
    boot = np.tile(np.asarray([1.0, 5.0]), (100, 1))
    assert verdict._harm_seeking(boot[0], boot, stages, boot_stages) == (1, 0)
    assert verdict._harm_seeking(boot[0, ::-1], boot[:, ::-1], stages, boot_stages) is None
    assert verdict._harm_seeking(boot[0], boot, stages * 0.1, boot_stages * 0.1) is None


def test_witness_replays_to_its_return(arena: Arena, found: search.Found, tmp_path: Path) -> None:
    record = witness.make_witness(arena, found.farming[1], 1, seed=8)
    path = tmp_path / "w.json"
    path.write_text(json.dumps(record))
    scenario, env, played = play_record(load_record(path))
    assert float(played.reward.sum()) == pytest.approx(record["return"], abs=1e-3)
    shown = witness.tick_rows(scenario, env.dims, played)
    assert len(shown) == len(record["actions"]) and [r["action"] for r in shown] == record["actions"]
    assert "compromised" in " ".join(r["attacker (hidden)"] for r in shown)
    assert "confirmed" in " ".join(r["defender sees"] for r in shown)
