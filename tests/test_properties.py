"""What holds in every episode of any scenario; rewards worked out by hand; and what error messages say."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import Played, Reader, all_rewards, play, skipped

import scenarios
from jaxsim import env, names, reward, rules, twin
from jaxsim.compile import compile_scenario
from jaxsim.replays import load_record, play_record
from jaxsim.rollouts import episode_keys
from jaxsim.types import (
    ATTACKER_DONE,
    BLOCKED,
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    EXFIL,
    FAILED,
    HORIZON,
    IDLE,
    IN_PROGRESS,
    PATCHED,
    RUNNING,
    SUCCEEDED,
    Channels,
    Dims,
    ScenarioArrays,
    Signals,
)
from jaxsim.version import SIMULATOR_VERSION

DIMS = Dims(assets=4, identities=3, stages=5, max_lag=4)
EPISODES, TICKS = 3, 24  # of each example
NEW = "classic+foothold+liftable+eradication"
RULES = {"classic": twin.CLASSIC, NEW: twin.CLASSIC._replace(foothold=True, liftable=True, eradication=True)}
ACTIONS = DIMS._replace(restore=True).actions

# --- random scenarios -------------------------------------------------------------------------------------------------

shares = st.integers(0, 20).map(lambda n: n / 20)
likely = st.integers(1, 20).map(lambda n: n / 20)


def ranges(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)


@st.composite
def stage(draw: st.DrawFn, rank: int, last: bool, earlier: list[str], things: tuple[list[str], list[str]]) -> Any:
    """A stage that may need any of the `earlier` ones; `things` are the ids of assets and of identities."""
    exfil = last or draw(st.booleans())
    identity = draw(st.sampled_from([None, *things[1]]))
    asset = draw(st.sampled_from(things[0] if exfil or not identity else [None, *things[0]]))
    needs = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
    cut = draw(st.integers(0, len(needs)))
    return {
        "id": f"s{rank}",
        "name": f"stage {rank}",
        "tactic": "TA0010",
        "technique": "T1041",
        "prerequisites": needs[:cut],
        "any_prerequisites": needs[cut:],
        "asset": asset,
        "identity": identity,
        "dwell": draw(ranges(1, 5)),
        "success": draw(likely),
        "detection": draw(shares),
        "lag": draw(ranges(0, DIMS.max_lag)),
        "compromises_asset": asset is not None and draw(st.booleans()),
        "compromises_identity": identity is not None and draw(st.booleans()),
        "exfil": exfil,
        "signal": draw(st.sampled_from(scenarios.SIGNALS)),
    }


@st.composite
def small_scenarios(draw: st.DrawFn) -> scenarios.Scenario:
    """A branching campaign, its stages listed in any order."""
    assets = [f"a{i}" for i in range(draw(st.integers(1, DIMS.assets)))]
    identities = [f"i{i}" for i in range(draw(st.integers(0, DIMS.identities)))]
    stages, usable, count = [], list[str](), draw(st.integers(1, DIMS.stages))
    for rank in range(count):
        stages.append(draw(stage(rank, rank == count - 1, usable, (assets, identities))))
        usable += [] if stages[-1]["exfil"] else [stages[-1]["id"]]
    document = {
        "format": 1,
        "id": "random",
        "title": "A random campaign",
        "horizon": draw(st.integers(1, TICKS)),
        "noise_rate": draw(shares),
        "assets": [{"id": a, "kind": "host", "criticality": draw(shares), "segment": "lab"} for a in assets],
        "identities": [{"id": i, "role": "user", "privilege": draw(shares)} for i in identities],
        "stages": draw(st.permutations(stages)),
    }
    return scenarios.loads(json.dumps(document), source="random.json")


class Example(NamedTuple):
    """A random scenario, and what the defender does in it; three episodes of it."""

    scenario: scenarios.Scenario
    rules: str
    personality: str
    plan: list[int]
    seed: int


examples = st.builds(
    Example,
    small_scenarios(),
    st.sampled_from(list(RULES)),
    st.sampled_from(list(rules.PERSONALITIES)),
    st.lists(st.one_of(st.just(0), st.integers(-1, ACTIONS)), max_size=TICKS),
    st.integers(0, 2**31),
)


class Run(NamedTuple):
    """What was played, NumPy arrays (E, T), and the arrays of the scenario."""

    example: Example
    rules: twin.Rules
    plans: np.ndarray
    played: Played
    arrays: ScenarioArrays


def run(example: Example) -> Run:
    dims = DIMS._replace(restore=rules.restores(example.rules))
    params = env.make_params(example.scenario, dims, example.rules, "evidence", example.personality)
    plan = np.zeros(TICKS, np.int32)
    plan[: len(example.plan)] = example.plan
    plans = np.tile(plan, (EPISODES, 1))
    keys = episode_keys(jax.random.key(example.seed), EPISODES)
    played = jax.tree.map(np.asarray, play(dims, params, all_rewards(), keys, jnp.asarray(plans)))
    return Run(example, RULES[example.rules], plans, played, compile_scenario(example.scenario, DIMS))


def before(x: np.ndarray, first: Any) -> np.ndarray:
    """The same quantity one tick earlier; `first` is what it is at tick 0."""
    return np.concatenate([np.broadcast_to(first, x[:, :1].shape), x[:, :-1]], axis=1)


# --- what holds in every episode --------------------------------------------------------------------------------------


@given(examples)
def test_every_tick_equals_the_twin(example: Example) -> None:
    r = run(example)
    reader = Reader(example.scenario, example.personality, DIMS._replace(restore=r.rules.liftable))
    assert skipped(reader, r.plans, r.played, (r.rules,)) <= 1


@given(examples)
def test_time_passes_by_one_until_the_end(example: Example) -> None:
    r = run(example)
    state, horizon = r.played.state, example.scenario.horizon
    length = state.tick[:, -1:]
    assert np.array_equal(state.tick, np.minimum(np.arange(1, TICKS + 1), length))
    assert np.array_equal(state.end == RUNNING, np.arange(1, TICKS + 1) < length)
    assert ((length >= 1) & (length <= horizon)).all()

    end = state.end[:, -1]
    out = ((state.status[:, -1] == SUCCEEDED) & r.arrays.stage_exfil).any(axis=1)
    going = (state.status[:, -1] == IN_PROGRESS).any(axis=1)
    assert np.array_equal(end == EXFIL, out)
    assert not (going & (end == ATTACKER_DONE)).any()
    assert (length[:, 0][end == HORIZON] == horizon).all()
    over = np.arange(1, TICKS + 1) > length
    for x in (*r.played.signals, *jax.tree.leaves(r.played.channels), r.played.total):
        assert not x[over].any()


@given(examples)
def test_controls_stay_and_cost_their_load(example: Example) -> None:
    """Until they are lifted, both that an entity may have at once; only a patch is for good."""
    r = run(example)
    state, scenario = r.played.state, example.scenario
    gone = before(state.marks, False) & ~state.marks
    assert gone.any(axis=2).sum(axis=2).max() <= r.rules.liftable and not gone[:, :, PATCHED].any()
    cut_off, egress = state.marks[:, :, CUT_OFF], state.marks[:, :, EGRESS_BLOCKED]
    a, i = len(scenario.assets), len(scenario.identities)
    criticality = np.asarray([x.criticality for x in scenario.assets])
    privilege = np.asarray([x.privilege for x in scenario.identities])
    load = cut_off[..., :a] @ criticality + 0.4 * (egress[..., :a] @ criticality)
    load += 0.3 * (cut_off[..., DIMS.assets : DIMS.assets + i] @ privilege)
    np.testing.assert_allclose(state.load, load, atol=1e-5)
    # An action marks its target and nothing else; only what is compromised is ever confirmed.
    new = (state.marks & ~before(state.marks, False)).sum(axis=(2, 3))
    assert new.max() <= 1
    assert not (state.marks[:, :, CONFIRMED] & ~before(state.compromised, False)).any()
    assert not state.marks[..., ~r.arrays.exists].any()
    assert not state.marks[:, :, [EGRESS_BLOCKED, PATCHED], DIMS.assets :].any()


MOVES = {(s, s) for s in range(5)} | {(IDLE, IN_PROGRESS), (IDLE, BLOCKED)}
MOVES |= {(IN_PROGRESS, end) for end in (SUCCEEDED, FAILED, BLOCKED)}
NEW_MOVES = {(BLOCKED, IDLE), (BLOCKED, IN_PROGRESS), (IN_PROGRESS, IDLE)}


def moves(r: Run) -> set[tuple[int, int]]:
    """From status to status within a tick."""
    status, first = r.played.state.status, np.where(r.arrays.stage_exists, IDLE, BLOCKED)
    return set(zip(before(status, first).ravel().tolist(), status.ravel().tolist(), strict=True))


@given(examples)
def test_stages_run_one_at_a_time_and_in_their_order(example: Example) -> None:
    r = run(example)
    state, x = r.played.state, r.arrays
    status, earlier = state.status, before(state.status, np.where(x.stage_exists, IDLE, BLOCKED))
    assert moves(r) <= (MOVES | NEW_MOVES if r.rules.liftable else MOVES)
    going, won = status == IN_PROGRESS, status == SUCCEEDED
    assert going.sum(axis=2).max() <= 1
    assert np.array_equal(state.stage, np.where(going.any(axis=2), going.argmax(axis=2), -1))
    assert np.array_equal(state.succeeded, won.sum(axis=2))

    gives = won
    if r.rules.foothold:
        held = np.pad(state.compromised & ~state.marks[:, :, CUT_OFF], [(0, 0), (0, 0), (0, 1)])  # entity -1 is not
        takes = [held[..., x.targets[kind, : DIMS.stages]] & x.stage_compromises[:, kind] for kind in (0, 1)]
        gives = won & (takes[0] | takes[1] | ~x.stage_compromises.any(axis=1))
    stages = example.scenario.stages
    index = {stage.id: i for i, stage in enumerate(stages)}
    met = [gives[..., [index[p] for p in stage.prerequisites]].all(axis=2) for stage in stages]
    choice = [
        gives[..., [index[p] for p in s.any_prerequisites]].any(axis=2) | (not s.any_prerequisites) for s in stages
    ]
    supported = np.stack(met, axis=2) & np.stack(choice, axis=2)
    assert np.array_equal(state.supported[..., : len(stages)], supported)
    assert not (going & (earlier != IN_PROGRESS) & ~state.supported).any()

    live = state.tick > before(state.tick, 0)
    ready = (status == IDLE) & state.supported
    assert not (live & (state.end == RUNNING) & ~going.any(axis=2) & ~ready.any(axis=2)).any()


@given(examples)
def test_what_is_contained_is_blocked_and_what_falls_is_compromised(example: Example) -> None:
    r = run(example)
    state, x = r.played.state, r.arrays
    padded = np.concatenate([state.marks, np.zeros_like(state.marks[..., :1])], axis=3)  # entity -1 has no marks
    target = x.targets[:, : DIMS.stages]
    on_asset, on_identity = padded[..., target[0]], padded[..., target[1]]
    contained = on_asset[:, :, CUT_OFF] | on_identity[:, :, CUT_OFF] | (on_asset[:, :, EGRESS_BLOCKED] & x.stage_exfil)
    assert np.array_equal(state.controls.any(axis=2), contained)
    assert np.array_equal(state.patched, on_asset[:, :, PATCHED])
    assert not (contained & (state.status == IDLE)).any()
    # In progress on what is contained: never, for the defender's action comes first.
    assert not (contained & (state.status == IN_PROGRESS)).any()
    assert not (~contained & (state.status == BLOCKED) & x.stage_exists).any()

    fallen = np.zeros_like(padded[:, :, 0])
    for s in range(len(example.scenario.stages)):
        for entity, takes in zip(target[:, s], x.stage_compromises[s], strict=True):
            fallen[..., entity] |= (state.status[..., s] == SUCCEEDED) & takes
    if r.rules.eradication:  # rebuilt assets
        assert not (state.compromised & ~fallen[..., :-1]).any()
        fallen &= np.pad(state.compromised | (np.arange(DIMS.entities) >= DIMS.assets), [(0, 0), (0, 0), (0, 1)])
    assert np.array_equal(state.compromised, fallen[..., :-1])
    taken = np.stack([fallen[..., target[kind]] & x.stage_compromises[:, kind] for kind in (0, 1)], axis=2)
    assert np.array_equal(state.taken, taken)


@given(examples)
def test_alerts_arrive_in_order_and_say_possible_things(example: Example) -> None:
    r = run(example)
    state = r.played.state
    ring, count = state.alerts, state.alerts.count
    arrived = count - before(count, 0)
    assert arrived.min() >= 0
    assert (np.diff(state.forensics.count, axis=1) >= 0).all()
    for e in range(EPISODES):
        for t in range(TICKS):
            newest = np.arange(max(0, count[e, t] - DIMS.alerts), count[e, t])
            ticks = ring.tick[e, t, newest % DIMS.alerts]
            assert (np.diff(ticks) >= 0).all() and (ticks <= state.tick[e, t]).all()
            # Arrival number n came on the first tick after which there were more than n.
            assert ticks.tolist() == [state.tick[e, np.argmax(count[e] > n)] for n in newest]
    shown = np.arange(DIMS.alerts) < np.minimum(count, DIMS.alerts)[..., None]
    assert ((ring.severity >= np.float32(0.05)) & (ring.severity <= 1))[shown].all()
    named = {stage.signal for stage in example.scenario.stages}
    if example.scenario.noise_rate == 0:
        assert {scenarios.SIGNALS[code & 7] for code in ring.code[shown]} <= named
        assert count.max() <= 2 * len(example.scenario.stages)


@given(examples)
def test_the_reward_is_the_clipped_sum_of_its_channels(example: Example) -> None:
    r = run(example)
    *shaped, terminal = r.played.channels
    np.testing.assert_allclose(r.played.total, np.clip(sum(shaped), -5, 5) + terminal, atol=1e-5)
    last = r.played.state.tick[:, -1] - 1
    paid = terminal != 0
    assert not paid[np.arange(TICKS)[None] != last[:, None]].any()
    s = r.played.signals
    assert np.array_equal(
        s.load, np.where(r.played.state.tick > before(r.played.state.tick, 0), r.played.state.load, 0)
    )
    assert (s.evidence_backed <= s.containments).all() and (s.false_positives <= s.containments).all()
    assert (s.investigations + s.containments + s.invalid <= 1).all() and (s.active_blocks <= 1).all()
    assert (s.confirmed <= s.investigations).all()
    # A stage counts once as blocked in progress, and before that once as blocked while idle.
    for counted, blocks in ((0, s.active_blocks), (1, s.preemptive_blocks)):
        assert np.array_equal(blocks.cumsum(axis=1), r.played.state.counted[:, :, counted].sum(axis=2))
    # No stage is blocked without a control on it being new.
    blocked = (r.played.state.status == BLOCKED) & r.arrays.stage_exists
    new = blocked.sum(axis=2) - before(blocked.sum(axis=2), 0)
    assert r.rules.liftable or np.array_equal(s.active_blocks + s.preemptive_blocks, new)


def test_random_play_reaches_what_the_properties_speak_of() -> None:
    """A property of what never happens would always hold."""
    seen = {"end": set[int](), "moves": set[tuple[int, int]](), "signals": np.zeros(len(Signals._fields))}
    rng = np.random.default_rng(0)
    evidence = "MONITOR;" * 6 + "INVESTIGATE ann;" * 3 + "REVOKE_IDENTITY ann"
    backed = names.parse_plan(evidence, TWO_WAYS, DIMS).tolist()
    for seed in range(40):
        example = Example(TWO_WAYS, [*RULES][seed % 2], ("stealthy", "aggressive", "opportunistic")[seed % 3], [], seed)
        busy = rng.random(TICKS) < rng.choice([0.0, 0.2, 0.6])
        plan = np.where(busy, rng.integers(-1, ACTIONS + 1, TICKS), 0)
        r = run(example._replace(plan=plan.tolist() if seed % 4 else backed))
        seen["end"] |= set(r.played.state.end[:, -1].tolist())
        seen["moves"] |= moves(r)
        seen["signals"] += [x.sum() for x in r.played.signals]
    assert seen["end"] == {EXFIL, ATTACKER_DONE, HORIZON}
    assert seen["moves"] == MOVES | NEW_MOVES
    assert [f for f, n in zip(Signals._fields, seen["signals"], strict=True) if n == 0] == []


# --- the reward by hand -----------------------------------------------------------------------------------------------

NOTHING = Signals(*[0.0] * len(Signals._fields))


class Worked(NamedTuple):
    """A tick, and what it pays in the channels named and in all. The other channels pay nothing."""

    preset: str
    happened: dict[str, float]
    pays: dict[str, float]
    total: float


WORKED = [
    Worked("linear", {}, {}, 0.0),
    # Looking is free in every preset.
    Worked("linear", {"confirmed": 1, "investigations": 1}, {"detection": 1.5}, 1.5),
    Worked("operational", {"investigations": 1}, {}, 0.0),
    # An isolation that stops the stage in progress: 2.5 - 0.15.
    Worked("linear", {"active_blocks": 1, "containments": 1}, {"containment": 2.35}, 2.35),
    # One that only forestalls three idle stages: 3 x 0.4 - 0.15.
    Worked("linear", {"preemptive_blocks": 3, "containments": 1}, {"containment": 1.05}, 1.05),
    # Of a confirmed target: 1.5 where evidence is paid for, less the 0.15 of any containment.
    Worked(
        "evidence",
        {"evidence_backed": 1, "containments": 1},
        {"evidence_bonus": 1.5, "containment": -0.15},
        1.35,
    ),
    Worked("linear", {"evidence_backed": 1, "containments": 1}, {"containment": -0.15}, -0.15),
    Worked("capped", {"evidence_backed": 1, "containments": 1}, {"containment": -0.15}, -0.15),
    # Of something that no stage names: 0.6 more.
    Worked("linear", {"false_positives": 1, "containments": 1}, {"false_positive": -0.6, "containment": -0.15}, -0.75),
    # 0.08 x 5 = 0.4, below the cap; 0.08 x 10 = 0.8, above it.
    Worked("capped", {"load": 5}, {"disruption": -0.4}, -0.4),
    Worked("capped", {"load": 10}, {"disruption": -0.6}, -0.6),
    Worked("linear", {"load": 10}, {"disruption": -0.8}, -0.8),
    Worked("evidence", {"load": 10}, {"disruption": -0.8}, -0.8),
    Worked("linear", {"invalid": 1}, {"invalid_action": -0.6}, -0.6),
    # The data is out with 2 of the stages left: -6 + 0.6 x 2.
    Worked("linear", {"exfil": 1, "exfil_stages_left": 2}, {"terminal": -4.8}, -4.8),
    Worked("linear", {"clean": 1}, {"terminal": 5.0}, 5.0),
    # Three stages left at any other end: 0.6 x 3, less 1.5 for a defender who never acted.
    Worked("linear", {"stages_left": 3}, {"terminal": 1.8}, 1.8),
    Worked("linear", {"stages_left": 3, "passive": 1}, {"terminal": 0.3}, 0.3),
    # Clipped: 4 x 1.5 = 6 pays 5, and 0.08 x 100 = 8 costs 5. The terminal 5 and -6 come on top of it.
    Worked("linear", {"confirmed": 4}, {"detection": 6.0}, 5.0),
    Worked("linear", {"load": 100}, {"disruption": -8.0}, -5.0),
    Worked("linear", {"confirmed": 4, "clean": 1}, {"detection": 6.0, "terminal": 5.0}, 10.0),
    Worked("linear", {"load": 100, "exfil": 1}, {"disruption": -8.0, "terminal": -6.0}, -11.0),
    # It is the sum that is clipped, not the channels: 6 - 0.8 - 0.6 = 4.6.
    Worked(
        "linear",
        {"confirmed": 4, "load": 10, "invalid": 1},
        {"detection": 6.0, "disruption": -0.8, "invalid_action": -0.6},
        4.6,
    ),
    # The reward of the hardened rules: an isolation of a confirmed target that stops the stage in progress.
    Worked(
        "operational",
        {"evidence_backed": 1, "active_blocks": 1, "containments": 1, "load": 1},
        {"evidence_bonus": 0.042, "containment": 1.3, "disruption": -0.052},
        1.29,
    ),
    # 3 x 0.052.
    Worked("operational", {"preemptive_blocks": 3, "containments": 1}, {"containment": 0.156}, 0.156),
    # Never clipped: 0.052 x 200 = 10.4, and -6 + 0.16 x 2 on top of it.
    Worked("operational", {"load": 200}, {"disruption": -10.4}, -10.4),
    Worked(
        "operational",
        {"load": 200, "exfil": 1, "exfil_stages_left": 2},
        {"disruption": -10.4, "terminal": -5.68},
        -16.08,
    ),
    Worked("operational", {"clean": 1}, {"terminal": 0.21}, 0.21),
    Worked("operational", {"stages_left": 3, "passive": 1}, {"terminal": 0.48}, 0.48),
]


@pytest.mark.parametrize("worked", WORKED)
def test_reward_worked_by_hand(worked: Worked) -> None:
    weights = reward.weights(worked.preset)
    happened = jax.tree.map(jnp.float32, NOTHING._replace(**worked.happened))
    channels = reward.channels(happened, weights)
    wanted = Channels(*[0.0] * 7)._replace(**worked.pays)
    chex.assert_trees_all_close(channels, jax.tree.map(jnp.float32, wanted), atol=1e-6)
    assert float(reward.total(channels, weights)) == pytest.approx(worked.total, abs=1e-6)


def test_the_worked_ticks_use_every_signal_and_channel() -> None:
    assert {s for w in WORKED for s in w.happened} == set(Signals._fields)
    assert {c for w in WORKED for c in w.pays} == set(Channels._fields)


def test_a_weight_can_be_changed_by_name() -> None:
    changed = reward.weights("evidence", clip=1.0)
    assert float(changed.clip) == 1.0 and float(changed.detection) == 1.5
    looked = jax.tree.map(jnp.float32, NOTHING._replace(confirmed=1.0, investigations=1.0))
    assert float(reward.channels(looked, reward.weights("evidence", investigation=-0.25)).detection) == 1.25
    with pytest.raises(TypeError, match="clap"):
        reward.weights("evidence", clap=1.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clap": 1.0}, "reward weight 'clap' is unknown; a reward has detection, .* clip"),
        ({"clip": "x"}, "reward weight clip = 'x' is not a number; give one"),
        ({"clip": float("nan")}, "reward weight clip = nan is not a number; give one"),
    ],
)
def test_bad_weights_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        env.make(TWO_WAYS, reward=reward.PRESETS["linear"] | change)


def test_a_missing_weight_is_named() -> None:
    with pytest.raises(ValueError, match="reward weight 'passive' is missing; give all of detection"):
        env.make(TWO_WAYS, reward={k: v for k, v in reward.PRESETS["linear"].items() if k != "passive"})


# --- what errors say --------------------------------------------------------------------------------------------------

TWO_WAYS = scenarios.loads("""
format: 1
id: two-ways
title: Two ways to one store
horizon: 20
noise_rate: 0.3
assets:
  - {id: web-server, kind: service, criticality: 0.5, segment: edge}
  - {id: store, kind: datastore, criticality: 1.0, segment: data}
  - {id: lamp, kind: host, criticality: 0.2, segment: lobby}
identities:
  - {id: ann, role: clerk, privilege: 0.4}
stages:
  - {id: web, name: w, tactic: TA0001, technique: T1190, asset: web-server, dwell: [2, 3], success: 0.8,
     detection: 0.4, lag: [0, 4], compromises_asset: true}
  - {id: mail, name: m, tactic: TA0001, technique: T1566.002, identity: ann, dwell: [1, 4], success: 0.8,
     detection: 0.8, lag: [1, 2], compromises_identity: true}
  - {id: out, name: o, tactic: TA0010, technique: T1041, any_prerequisites: [web, mail], asset: store,
     dwell: [2, 9], success: 0.6, detection: 0.7, lag: [0, 1], exfil: true}
""")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "verb '' is unknown; choose one of MONITOR, INVESTIGATE, .*REVOKE_IDENTITY"),
        (
            "RESTORE store",
            r"verb 'RESTORE' is none under these rules; add \+liftable to them, or choose one of MONITOR",
        ),
        ("isolate_asset store", "verb 'isolate_asset' is unknown; did you mean ISOLATE_ASSET\\?"),
        ("MONITOR store", "MONITOR takes no target; leave out 'store'"),
        ("PATCH_ASSET", r"PATCH_ASSET takes exactly one target, as in 'PATCH_ASSET assets\[0\]'"),
        ("PATCH_ASSET store lamp", "PATCH_ASSET takes exactly one target"),
        ("ISOLATE_ASSET ann", "ISOLATE_ASSET takes an asset, which 'ann' is not"),
        ("REVOKE_IDENTITY store", "REVOKE_IDENTITY takes an identity, which 'store' is not"),
        ("INVESTIGATE stor", "two-ways has no entity 'stor'; did you mean 'store'\\?"),
        ("INVESTIGATE qqqq", "has no entity 'qqqq'; it has web-server, store, lamp, ann"),
        ("PATCH_ASSET assets[3]", r"assets\[3\] is out of range; two-ways has 3 assets"),
        ("REVOKE_IDENTITY identities[1]", r"identities\[1\] is out of range; two-ways has 1 identities"),
    ],
)
def test_a_bad_action_is_named_with_a_remedy(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"action {re.escape(repr(text))}: .*{says}"):
        names.parse_action(text, TWO_WAYS, DIMS)


def test_restore_is_a_verb_where_the_rules_bring_it() -> None:
    dims = DIMS._replace(restore=True)
    action = names.parse_action("RESTORE ann", TWO_WAYS, dims)
    assert action == DIMS.actions + DIMS.assets and names.action_text(action, TWO_WAYS, dims) == "RESTORE ann"
    with pytest.raises(ValueError, match="verb 'RESTOR' is unknown; did you mean RESTORE\\?"):
        names.parse_action("RESTOR ann", TWO_WAYS, dims)


def test_a_bad_plan_is_named_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="the plan is empty; write actions separated by ';'"):
        names.parse_plan(" ; ", TWO_WAYS, DIMS)
    with pytest.raises(ValueError, match=r"action 'PATCH store': verb 'PATCH' is unknown; did you mean PATCH_ASSET\?"):
        names.parse_plan("MONITOR;PATCH store", TWO_WAYS, DIMS)
    plan = names.parse_plan("MONITOR; ISOLATE_ASSET store;", TWO_WAYS, DIMS)
    assert [names.action_text(a, TWO_WAYS, DIMS) for a in plan] == ["MONITOR", "ISOLATE_ASSET store"]


RECORD = {
    "version": SIMULATOR_VERSION,
    "scenario": "supply_chain_token_drift",
    "rules": "classic",
    "reward": "evidence",
    "personality": "stealthy",
    "seed": 1,
    "episode": 0,
    "actions": ["MONITOR", "ISOLATE_ASSET ci-runner-01"],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "record.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "one"}, "seed = 'one': wrong type; give a whole number"),
        ({"seed": True}, "seed = True: wrong type; give a whole number"),
        ({"seed": 2**70}, f"seed = {2**70}: out of range; give one from "),
        ({"episode": -1}, "episode = -1: out of range; give one from 0 to 4294967295"),
        ({"scenario": None}, "scenario = None: wrong type; give a built-in name or the path"),
        ({"reward": 5}, "reward = 5: wrong type; give the name of a preset, or all weights"),
        ({"actions": "MONITOR"}, "actions = 'MONITOR': wrong type; give a list of texts"),
        ({"actions": ["MONITOR", 3]}, r"actions\[1\] = 3: wrong type; give text, such as 'MONITOR'"),
        ({"version": "0"}, "version = '0': recorded by another version .*replay it with that version"),
    ],
)
def test_a_bad_record_is_named_with_a_remedy(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = write(tmp_path, RECORD | change)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {says}"):
        load_record(path)


@pytest.mark.parametrize("field", RECORD)
def test_a_field_left_out_is_named(tmp_path: Path, field: str) -> None:
    path = write(tmp_path, {k: v for k, v in RECORD.items() if k != field})
    with pytest.raises(ValueError, match=f"record.json: field '{field}' is missing; a record has version, scenario"):
        load_record(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"text"'])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"record\.json: .*replay record"):
        load_record(write(tmp_path, content))
    with pytest.raises(ValueError, match=r"absent\.json: not a readable JSON replay record"):
        load_record(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scenario": "nonesuch"}, "nonesuch: is not the name of a built-in scenario"),
        ({"rules": "nonesuch"}, "rules 'nonesuch' are unknown; choose one of classic"),
        ({"reward": "nonesuch"}, "reward 'nonesuch' is unknown; choose one of capped"),
        ({"reward": {}}, "reward weight 'detection' is missing; give all of"),
        ({"personality": "nonesuch"}, "personality 'nonesuch' is unknown; choose one of stealthy"),
        ({"actions": ["WAIT"]}, "action 'WAIT': verb 'WAIT' is unknown; choose one of"),
    ],
)
def test_a_record_of_unknown_names_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        play_record(load_record(write(tmp_path, RECORD | change)))


def test_a_record_is_played(tmp_path: Path) -> None:
    """The early isolation of the first asset earns 7.302 in any episode; INVALID stands for an invalid action."""
    scenario, _, played = play_record(load_record(write(tmp_path, RECORD)))
    assert scenario.id == RECORD["scenario"]
    assert played.reward.sum() == pytest.approx(7.302, abs=1e-5)
    _, _, played = play_record(load_record(write(tmp_path, RECORD | {"actions": ["INVALID", "MONITOR"]})))
    assert played.reward.tolist() == [pytest.approx(-0.6), 0.0]
