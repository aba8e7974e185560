"""What holds in every episode of any scenario."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cells import all_rewards
from hypothesis import given
from hypothesis import strategies as st
from parity import Played, Reader, play, skipped
from two_ways import DIMS, TWO_WAYS

import scenarios
from jaxsim import env, names, rules, twin_rules
from jaxsim.compile import compile_scenario
from jaxsim.one_episode import episode_keys
from jaxsim.stages import unpacked
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
    ScenarioArrays,
    Signals,
)

EPISODES, TICKS = 3, 24  # of each example
NEW = "classic+evidence_once+foothold+liftable+eradication"
RULES = {
    "classic": twin_rules.CLASSIC,
    NEW: twin_rules.CLASSIC._replace(evidence_once=True, foothold=True, liftable=True, eradication=True),
}
ACTIONS = DIMS._replace(restore=True).actions


# --- random scenarios -------------------------------------------------------------------------------------------------

shares = st.integers(0, 20).map(lambda n: n / 20)
likely = st.integers(1, 20).map(lambda n: n / 20)


def ranges(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)


@st.composite
def stage(draw: st.DrawFn, rank: int, last: bool, earlier: list[str], things: tuple[list[str], list[str]]) -> Any:
    """A stage that may need any of the `earlier` ones; `things` are the ids of assets and of identities."""
    loss = draw(st.sampled_from(["exfil", "impact"])) if last or draw(st.booleans()) else None
    identity = draw(st.sampled_from([None, *things[1]]))
    asset = draw(st.sampled_from(things[0] if loss == "exfil" or not identity else [None, *things[0]]))
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
        "exfil": loss == "exfil",
        "impact": loss == "impact",
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
        usable += [] if stages[-1]["exfil"] or stages[-1]["impact"] else [stages[-1]["id"]]
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
    rules: twin_rules.Rules
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
    out = ((state.status[:, -1] == SUCCEEDED) & r.arrays.stage_loss).any(axis=1)
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
    able = unpacked(state.supported, DIMS.stages)
    assert np.array_equal(able[..., : len(stages)], supported)
    assert not (going & (earlier != IN_PROGRESS) & ~able).any()

    live = state.tick > before(state.tick, 0)
    ready = (status == IDLE) & able
    assert not (live & (state.end == RUNNING) & ~going.any(axis=2) & ~ready.any(axis=2)).any()


@given(examples)
def test_what_is_contained_is_blocked_and_what_falls_is_compromised(example: Example) -> None:
    r = run(example)
    state, x = r.played.state, r.arrays
    padded = np.concatenate([state.marks, np.zeros_like(state.marks[..., :1])], axis=3)  # entity -1 has no marks
    target = x.targets[:, : DIMS.stages]
    on_asset, on_identity = padded[..., target[0]], padded[..., target[1]]
    contained = on_asset[:, :, CUT_OFF] | on_identity[:, :, CUT_OFF] | (on_asset[:, :, EGRESS_BLOCKED] & x.stage_exfil)
    assert np.array_equal(unpacked(state.controls, DIMS.stages).any(axis=2), contained)
    assert np.array_equal(unpacked(state.patched, DIMS.stages), on_asset[:, :, PATCHED])
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
    assert np.array_equal(unpacked(state.taken, DIMS.stages), taken)


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
    assert (s.recontained <= s.containments).all() and s.recontained[:, 0].max() == 0
    # What is paid as evidence is evidence-backed; without `evidence_once` all of it is paid.
    assert (s.evidence_paid <= s.evidence_backed).all()
    assert r.rules.evidence_once or np.array_equal(s.evidence_paid, s.evidence_backed)
    assert (s.investigations + s.containments + s.invalid <= 1).all() and (s.active_blocks <= 1).all()
    assert (s.confirmed <= s.investigations).all()
    # A stage counts once as blocked in progress, and before that once as blocked while idle.
    counted = unpacked(r.played.state.counted, DIMS.stages).sum(axis=3)
    for kind, blocks in enumerate((s.active_blocks, s.preemptive_blocks)):
        assert np.array_equal(blocks.cumsum(axis=1), counted[:, :, kind])
    # No stage is blocked without a control on it being new.
    blocked = (r.played.state.status == BLOCKED) & r.arrays.stage_exists
    new = blocked.sum(axis=2) - before(blocked.sum(axis=2), 0)
    assert r.rules.liftable or np.array_equal(s.active_blocks + s.preemptive_blocks, new)


def test_random_play_reaches_what_the_properties_speak_of() -> None:
    """A property of what never happens would always hold."""
    seen = {"end": set[int](), "moves": set[tuple[int, int]](), "signals": np.zeros(len(Signals._fields))}
    rng = np.random.default_rng(0)
    evidence = "MONITOR;" * 6 + "INVESTIGATE ann;" * 3 + "REVOKE_IDENTITY ann"
    again = "REVOKE_IDENTITY ann;RESTORE ann;REVOKE_IDENTITY ann"
    scripts = [names.parse_plan(text, TWO_WAYS, DIMS._replace(restore=True)).tolist() for text in (evidence, again)]
    for seed in range(40):
        example = Example(TWO_WAYS, [*RULES][seed % 2], ("stealthy", "aggressive", "opportunistic")[seed % 3], [], seed)
        busy = rng.random(TICKS) < rng.choice([0.0, 0.2, 0.6])
        plan = np.where(busy, rng.integers(-1, ACTIONS + 1, TICKS), 0)
        r = run(example._replace(plan=plan.tolist() if seed % 4 > 1 else scripts[seed % 2]))
        seen["end"] |= set(r.played.state.end[:, -1].tolist())
        seen["moves"] |= moves(r)
        seen["signals"] += [x.sum() for x in r.played.signals]
    assert seen["end"] == {EXFIL, ATTACKER_DONE, HORIZON}
    assert seen["moves"] == MOVES | NEW_MOVES
    assert [f for f, n in zip(Signals._fields, seen["signals"], strict=True) if n == 0] == []
