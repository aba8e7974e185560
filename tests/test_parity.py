"""The simulator against its plain-Python twin on the same noise: each tick, each sub-step, each choice of a policy."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import (
    ALL_ON,
    CELLS,
    DIMS,
    END,
    LIFTABLE_DIMS,
    PLAN_TICKS,
    POLICIES,
    PRESETS,
    RULES_ONLY,
    SCENARIOS,
    STATUS,
    SWITCHES,
    Played,
    Reader,
    all_rewards,
    deal,
    differences,
    first_difference,
    is_close_call,
    named_action,
    on_an_edge,
    params_of,
    play,
    rows,
    skipped,
    twin_policy,
)

from jaxsim import actions, attacker, env, policies, rules, telemetry, twin
from jaxsim.defender import defend
from jaxsim.names import entity_names
from jaxsim.rollouts import episode_keys, start, tick_noise
from jaxsim.types import (
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    PATCHED,
    RUNNING,
    Dims,
    Observation,
    Params,
    Rules,
    Signals,
    State,
)

EPISODES = 200  # of each cell, step by step
SWITCHED = 45  # of each cell, step by step, each under other rules; and as many that bring RESTORE
OFF, ON = twin.CLASSIC, PRESETS[ALL_ON]
RULES = [
    *PRESETS.values(),
    *(OFF._replace(**{s: getattr(ON, s)}) for s in SWITCHES),  # each alone
    *(ON._replace(**{s: getattr(OFF, s)}) for s in SWITCHES),  # each left out
]
CLASSIC, MIXED, MIXED_LIFTABLE = "classic", "mixed", "mixed, liftable"  # rules of random play


# --- play under all rules --------------------------------------------------------------------------------------------


def rules_of(many: Sequence[twin.Rules]) -> Rules:
    """The simulator's form of rules, with a leading axis; that they are `liftable` is in its Dims."""
    classic = jax.tree.map(np.asarray, rules.rules("classic"))
    own = [s for s in SWITCHES if s != "liftable"]
    switched = {s: np.asarray([getattr(r, s) for r in many], getattr(classic, s).dtype) for s in own}
    return jax.tree.map(lambda x: np.broadcast_to(x, (len(many), *x.shape)), classic)._replace(**switched)


def all_rules(rng: np.random.Generator, count: int, liftable: bool) -> list[twin.Rules]:
    """Each switch alone and each left out, then any mix of them."""
    choices = [[*pair] for pair in zip(OFF, ON, strict=True)]
    choices[SWITCHES.index("believable_paths")].append(1.0)
    mixed = [twin.Rules._make(c[rng.integers(len(c))] for c in choices) for _ in range(count)]
    return [*(r for r in RULES if r.liftable == liftable), *(r._replace(liftable=liftable) for r in mixed)][:count]


def random_plans(rng: np.random.Generator, dims: Dims, episodes: int, ticks: int) -> np.ndarray:
    """Plans from passive to frantic, (E, T), one action in ten of the frantic ones outside the table."""
    busy = rng.choice([0.0, 0.1, 0.3, 1.0], (episodes, 1))
    drawn = rng.integers(-2, dims.actions + 2, (episodes, ticks))
    return np.where(rng.random((episodes, ticks)) < busy, drawn, 0).astype(np.int32)


def focused_plans(rng: np.random.Generator, dims: Dims, name: str, episodes: int, ticks: int) -> np.ndarray:
    """Random plans on three entities each, which are found out and contained again and again."""
    plans, entities = random_plans(rng, dims, episodes, ticks), actions.table(dims)[1]
    there = [i for i, entity in enumerate(entity_names(SCENARIOS[name], dims)) if entity]
    for plan in plans:
        few = np.flatnonzero(np.isin(entities, rng.choice(there, min(3, len(there)), replace=False)))
        plan[plan > 0] = rng.choice(few, (plan > 0).sum())
    return plans


def orderly_plans(rng: np.random.Generator, dims: Dims, name: str, episodes: int, ticks: int) -> np.ndarray:
    """Entity after entity, from some tick on: looked at, contained in every way and, where that goes, restored."""
    plans, entities = np.zeros((episodes, ticks), np.int32), actions.table(dims)[1]
    there = [i for i, entity in enumerate(entity_names(SCENARIOS[name], dims)) if entity]
    for plan in plans:
        course = np.concatenate([np.flatnonzero(entities == e) for e in rng.choice(there, ticks)])
        busy = rng.random(ticks) < np.where(np.arange(ticks) < rng.integers(ticks // 3), 0.0, rng.choice([0.5, 1.0]))
        plan[busy] = course[: busy.sum()]
    return plans


class RandomPlay(NamedTuple):
    """Episodes of random plans, as NumPy arrays."""

    reader: Reader
    plans: np.ndarray
    rules: list[twin.Rules]
    played: Played


@lru_cache(maxsize=len(CELLS))  # of one kind of rules: more is not asked for again
def random_play(name: str, personality: str, under: str) -> RandomPlay:
    """Episodes of a cell, under classic rules or under rules of every kind, without RESTORE or with it."""
    ticks, dims = max(s.horizon for s in SCENARIOS.values()), LIFTABLE_DIMS if under == MIXED_LIFTABLE else DIMS
    rng = np.random.default_rng(CELLS.index((name, personality)))
    if under == CLASSIC:
        plans, each = random_plans(rng, dims, EPISODES, ticks), [twin.CLASSIC] * EPISODES
    else:
        size = SWITCHED // 3, ticks
        thirds = random_plans(rng, dims, *size), *(f(rng, dims, name, *size) for f in (focused_plans, orderly_plans))
        plans, each = np.stack(thirds, axis=1).reshape(SWITCHED, ticks), all_rules(rng, SWITCHED, dims.restore)
    params = params_of(name, personality)._replace(rules=rules_of(each))
    keys = episode_keys(jax.random.key((MIXED, CLASSIC, MIXED_LIFTABLE).index(under) + 11), len(each))
    played = play(dims, params, all_rewards(), keys, jnp.asarray(plans))
    reader = Reader(SCENARIOS[name], personality, dims)
    return RandomPlay(reader, plans, each, jax.tree.map(np.asarray, played))


# --- tick by tick ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under", [CLASSIC, MIXED, MIXED_LIFTABLE])
@pytest.mark.parametrize(("name", "personality"), CELLS)
def test_every_tick_equals_the_twin(name: str, personality: str, under: str) -> None:
    """State, alerts in arrival order, forensics, signals, channels and totals of every tick, under four rewards."""
    reader, plans, each, played = random_play(name, personality, under)
    assert (played.state.end[:, -1] != RUNNING).all()
    assert skipped(reader, plans, played, each) < 0.01 * EPISODES


def test_random_play_leaves_nothing_out() -> None:
    """Over all cells every signal, end and control occurs, and views run over."""
    signals, ends, marks, most = np.zeros(len(Signals._fields)), set[int](), np.zeros(4, bool), (0, 0)
    for cell in CELLS:
        played = random_play(*cell, CLASSIC).played
        signals += [x.sum() for x in played.signals]
        ends |= set(played.state.end.ravel().tolist())
        marks |= played.state.marks.any(axis=(0, 1, 3))
        most = max(most[0], played.state.alerts.count.max()), max(most[1], played.state.forensics.count.max())
    assert [field for field, n in zip(Signals._fields, signals, strict=True) if n == 0] == []
    assert ends == set(range(len(END))) and marks.all()
    assert most[0] > DIMS.alerts and most[1] > DIMS.forensics


def test_liftable_random_play_lifts_and_rebuilds() -> None:
    """All marks but a patch go again, what fell is won back, and stages are freed."""
    gone, won_back, freed = np.zeros(4, int), 0, 0
    for cell in CELLS:
        state = random_play(*cell, MIXED_LIFTABLE).played.state
        gone += (state.marks[:, :-1] & ~state.marks[:, 1:]).sum(axis=(0, 1, 3))
        won_back += (state.compromised[:, :-1] & ~state.compromised[:, 1:]).sum()
        freed += ((state.status[:, :-1] == STATUS.index("blocked")) & (state.status[:, 1:] == 0)).sum()
    assert gone[PATCHED] == 0 and min(*gone[[CUT_OFF, EGRESS_BLOCKED, CONFIRMED]], won_back, freed) > 20


# Not who knows the personality, and not how roles are dealt: an episode is read as it was dealt.
@pytest.mark.parametrize("switch", [s for s in SWITCHES if s not in ("hide_personality", "believable_paths")])
@pytest.mark.parametrize("personality", ["stealthy", "opportunistic"])
def test_a_wrong_switch_is_noticed(switch: str, personality: str) -> None:
    """In random play each switch makes a difference that the comparison sees, in one scenario or another."""
    assert any(is_noticed(name, switch, personality) for name in ("routine", "branching", "supply_chain_token_drift"))


def is_noticed(name: str, switch: str, personality: str) -> bool:
    """Whether the twin with the switch off differs somewhere from an episode with the switch on."""
    reader, plans, each, played = random_play(name, personality, MIXED_LIFTABLE)
    for e, own in enumerate(each):
        if getattr(own, switch) == getattr(ON, switch):
            episode = rows(jax.tree.map(lambda x, e=e: x[e], played), int(played.state.tick[e, -1]))
            flipped = own._replace(**{switch: getattr(OFF, switch)})
            try:
                if first_difference(reader, plans[e].tolist(), episode, flipped) is not None:
                    return True
            except AssertionError:  # not even dealt by such rules, or over too soon
                return True
    return False


WATCHED = (
    *("tick", "end", "acted", "status", "stage", "compromised", "marks", "load"),
    *("attack", "targets", "next_start", "exfil", "earned", "touched", "counted", "left"),
    *("alerts.code", "alerts.severity", "alerts.tick", "alerts.count"),
    *("forensics.entity", "forensics.compromised", "forensics.confidence", "forensics.tick", "forensics.count"),
)


def test_a_difference_is_noticed() -> None:
    """The comparison itself: one number changed anywhere in the record of one tick must be reported."""
    personality, middle = "opportunistic", 15
    reader, plans, each, played = random_play("branching", personality, MIXED_LIFTABLE)
    attacked = played.state.attack[:, 0] & [r.run_to_horizon and r.unknown_path for r in each]
    attacked &= played.state.stage[:, middle] + 1 < len(reader.stages)  # so that there is a next one
    e = int(np.argmax(attacked * np.minimum(played.state.alerts.count, played.state.forensics.count)[:, middle]))
    length = int(played.state.tick[e, -1])
    episode = jax.tree.map(lambda x: x[e], played)

    def goes_unnoticed(changed: Played) -> bool:
        return first_difference(reader, plans[e].tolist(), rows(changed, length), each[e]) is None

    assert goes_unnoticed(episode)
    watched = [f"state.{field}" for field in WATCHED]
    for group in ("signals", "channels"):
        watched += [f"{group}.{field}" for field in getattr(episode, group)._fields]
    assert [field for field in (*watched, "total") if goes_unnoticed(spoil(episode, field, middle))] == []
    order = episode.state.order.copy()
    order[middle] *= -1
    assert not goes_unnoticed(episode._replace(state=episode.state._replace(order=order)))


def spoil(tree: Any, path: str, tick: int) -> Any:
    """The tree with the first number of one leaf changed at one tick, to another that the leaf might hold."""
    head, _, rest = path.partition(".")
    if rest:
        return tree._replace(**{head: spoil(getattr(tree, head), rest, tick)})
    old = getattr(tree, head)
    x = old.copy().reshape(len(old), -1)
    # The low bits of an alert's code are its signal, one of five.
    x[tick, 0] = not x[tick, 0] if x.dtype == bool else x[tick, 0] + (-1 if x[tick, 0] % 8 == 4 else 1)
    return tree._replace(**{head: x.reshape(old.shape)})


@pytest.mark.parametrize("personality", ["stealthy", "opportunistic"])
def test_what_failed_last_is_preferred_as_by_the_twin(personality: str) -> None:
    """Three ways in fail again and again: one attacker insists on the last of them, the other tries what did not."""
    persistent = rules.rules("classic+persistence")
    params = params_of("routine", personality)._replace(rules=persistent)
    reader = Reader(SCENARIOS["routine"], personality)
    theirs = twin.reset(reader.scenario, personality, twin.CLASSIC._replace(persistence=True))
    state, fails = jax.jit(start, static_argnums=0)(DIMS, jax.random.key(0), params), jnp.full(16, 0.999, jnp.float32)
    progress = jax.jit(lambda s: attacker.progress(DIMS, s, jnp.bool_(True), fails, params)[0])
    for k in (1, 2, 0, 1, 1, 0):
        state = progress(state._replace(stage=jnp.int32(k)))
        twin.reorder(theirs, theirs.stages[reader.stages[k]])
        assert reader.order(jax.tree.map(lambda x: x.tolist(), state)) == theirs.order


def test_presets_are_the_twins() -> None:
    for name, preset in PRESETS.items():
        ours = rules.rules(name)._asdict() | {"liftable": rules.restores(name)}
        for switch in SWITCHES:
            np.testing.assert_allclose(ours[switch], getattr(preset, switch), rtol=1e-6, err_msg=switch)


def test_episodes_are_dealt_evenly() -> None:
    """Whether there is an attack, its delay, who plays which role and the order of preference, and any two of them."""
    episodes, scenario, chance = 40_000, SCENARIOS["routine"], twin.HARDENED.attack_probability
    params = params_of("routine", "stealthy")._replace(rules=rules.rules("hardened"))
    dealt = jax.tree.map(np.asarray, deal(DIMS, params, episode_keys(jax.random.key(61), episodes)))
    attack, stages = dealt.attack, np.arange(len(scenario.stages))
    assert abs(attack.mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / episodes)
    delay = dealt.next_start[:, None]
    # Of four roles, three say all: relay, laptop and portal. So do two of three: dave and erin.
    assets, identities = dealt.targets[:, 0, [2, 3, 0]], dealt.targets[:, 1, [1, 3]]
    order = np.argsort(dealt.order[:, stages], axis=1, kind="stable")
    parts = [(delay, 21), (assets, 24), (identities, 6), *((order[:, pair], 56) for pair in ([0, 1], [3, 7]))]
    for (a, n), (b, m) in itertools.combinations(parts[:4], 2):
        assert is_even(np.hstack([a, b]), n * m)
    for values, n in parts:
        assert is_even(values[attack], n) and is_even(values[~attack], n)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_believable_episodes_are_dealt_evenly_among_those_alike(share: float) -> None:
    """Two services of the edge, two hosts of the office and two clerks play for each other, each pair for itself."""
    episodes, scenario = 40_000, SCENARIOS["branching"]
    hardened = rules.rules("hardened")._replace(believable_paths=jnp.float32(share))
    params = params_of("branching", "stealthy")._replace(rules=hardened)
    dealt = jax.tree.map(np.asarray, deal(DIMS, params, episode_keys(jax.random.key(62), episodes)))
    mailer, proxy, ledger, desktop = dealt.targets[:, 0, [0, 1, 2, 3]].T
    bob, alice = dealt.targets[:, 1, [1, 4]].T - DIMS.assets
    pairs = np.stack([mailer, desktop, alice], axis=1)
    believable = (ledger == 3) & (bob == 1) & np.isin(mailer, [0, 1]) & np.isin(proxy, [0, 1])
    believable &= np.isin(desktop, [2, 4]) & np.isin(alice, [0, 2])
    # Of those dealt among all, 4 of 5! casts of assets and 2 of 3! of identities are so by luck.
    chance = share + (1 - share) / 90
    for some in (dealt.attack, ~dealt.attack):
        assert abs(believable[some].mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / some.sum())
        assert is_even(pairs[believable & some], 8)
    order = np.argsort(dealt.order[:, : len(scenario.stages)], axis=1, kind="stable")[:, [0, 1]]
    assert is_even(np.hstack([pairs, order])[believable], 8 * 30)
    assert share == 1 or is_even(order[~believable], 30)


def is_even(values: np.ndarray, kinds: int) -> bool:
    """Whether the rows fall on so many kinds of row as even chance would have it."""
    counts = np.unique(values, axis=0, return_counts=True)[1]
    mean = len(values) / kinds
    chi_square = ((counts - mean) ** 2 / mean).sum()
    return len(counts) == kinds and abs(chi_square - kinds + 1) < 5 * math.sqrt(2 * (kinds - 1))


@pytest.mark.parametrize("personality", twin.PERSONALITIES)
def test_the_personality_seen_is_the_twins(personality: str) -> None:
    params = params_of("routine", personality)
    seen = see(DIMS, params._replace(rules=rules_of(RULES)), jax.random.key(7)).personality
    for ours, own in zip(seen.tolist(), RULES, strict=True):
        theirs = twin.personality_seen(twin.reset(SCENARIOS["routine"], personality, own))
        assert ours == (-1 if theirs is None else list(twin.PERSONALITIES).index(theirs))


@partial(jax.jit, static_argnames="dims")
@partial(jax.vmap, in_axes=(None, RULES_ONLY, None))
def see(dims: Dims, params: Params, key: jax.Array) -> Observation:
    """What is seen of an episode at tick 0."""
    return env.observe(dims, start(dims, key, params), params)


# --- sub-step by sub-step --------------------------------------------------------------------------------------------


class SubSteps(NamedTuple):
    """One tick taken apart: the state after each sub-step, and what each reports."""

    defended: State
    surfaced: State
    progressed: State
    started: State
    blocked: State
    counted: State
    joined: State  # by the background alert
    acted: jax.Array  # so that the attacker may pause
    investigation: jax.Array
    confirmed: jax.Array
    containment: jax.Array
    evidence_backed: jax.Array
    false_positive: jax.Array
    invalid: jax.Array
    active: jax.Array
    exfil: jax.Array
    preemptive: jax.Array


@partial(jax.jit, static_argnames="dims")
@partial(jax.vmap, in_axes=(None, RULES_ONLY, 0, 0, 0))
def sub_steps(dims: Dims, params: Params, state: State, action: jax.Array, block: jax.Array) -> SubSteps:
    live = state.end == RUNNING
    nothing = (jnp.zeros((), bool), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))
    landed = jax.tree.map(jnp.zeros_like, state.pending)
    a, d = defend(dims, state._replace(tick=state.tick + 1), action, live, block, params)
    b = a._replace(alerts=telemetry.surface(dims, a, live, nothing))
    c, active, exfil = attacker.progress(dims, b, live, block, params)
    s, started = attacker.start(dims, c, live, d.acted, block, params)
    s = s._replace(pending=telemetry.raise_alerts(dims, s, started, block, params))
    blocked, idle = attacker.block_contained(s, live)
    counted, active, preemptive = attacker.count(blocked, b.stage, active, idle)
    # The background alert alone: what the stages raised has surfaced already.
    extra = telemetry.background(dims, counted, live, block, params)
    alone = telemetry.surface(dims, counted._replace(pending=landed), live, extra)
    joined = counted._replace(alerts=alone)
    reported = (d.acted, d.investigation, d.confirmed, d.containment, d.evidence_backed, d.false_positive, d.invalid)
    return SubSteps(a, b, c, s, blocked, counted, joined, *reported, active, exfil, preemptive)


class Bank(NamedTuple):
    """States of running episodes and an action for each."""

    rules: list[twin.Rules]
    firsts: State  # of tick 1 of the same episode
    states: State
    actions: np.ndarray


def bank(name: str, personality: str, size: int) -> Bank:
    """Drawn from random play under rules that bring RESTORE."""
    rng = np.random.default_rng(99)
    _, _, each, played = random_play(name, personality, MIXED_LIFTABLE)
    state = played.state
    e, t = np.nonzero(state.end == RUNNING)
    chosen = rng.choice(len(e), size)
    picked = jax.tree.map(lambda x: x[e[chosen], t[chosen]], state)
    # Half of the actions on states with a confirmed entity are aimed at one.
    table, many = actions.table(LIFTABLE_DIMS)[1], LIFTABLE_DIMS.actions
    aimed = (table >= 0) & picked.marks[:, CONFIRMED][:, table]
    drawn = [rng.choice(np.flatnonzero(a)) if a.any() and rng.random() < 0.5 else rng.integers(-1, many) for a in aimed]
    firsts = jax.tree.map(lambda x: x[e[chosen], 0], state)
    return Bank([each[i] for i in e[chosen]], firsts, picked, np.asarray(drawn, np.int32))


def sub_stepped(name: str, personality: str, size: int) -> tuple[Bank, np.ndarray, SubSteps]:
    """(states and actions, noise, sub-steps from there), leading axis `size`."""
    begun = bank(name, personality, size)
    blocks = jax.vmap(lambda key: tick_noise(key, jnp.int32(1)))(episode_keys(jax.random.key(31), size))
    params = params_of(name, personality)._replace(rules=rules_of(begun.rules))
    steps = sub_steps(LIFTABLE_DIMS, params, begun.states, jnp.asarray(begun.actions), blocks)
    return begun, np.asarray(blocks), jax.tree.map(np.asarray, steps)


SUB_STEPPED = 100  # states of each cell


@pytest.mark.parametrize(("name", "personality"), CELLS)
def test_every_sub_step_equals_the_twin(name: str, personality: str) -> None:
    """The sub-steps one by one, from the same states on the same fresh noise."""
    begun, blocks, steps = sub_stepped(name, personality, SUB_STEPPED)
    reader, left_out = Reader(SCENARIOS[name], personality, LIFTABLE_DIMS), 0
    firsts, befores, afters = (rows(tree, SUB_STEPPED) for tree in (begun.firsts, begun.states, steps))
    chosen = zip(begun.rules, firsts, befores, begun.actions.tolist(), blocks.tolist(), afters, strict=True)
    for own, first, before, action, block, after in chosen:
        reader.reset(first, own)
        u = twin.Draws._make(block)
        if on_an_edge(reader.scenario, reader.fresh.personality, u):
            left_out += 1
        else:
            check_sub_steps(reader, before, action, u, after)
    assert left_out <= 1


def test_the_sub_steps_do_something() -> None:
    """Over all cells: every event that a sub-step reports, and every outcome of a stage."""
    happened, moves = dict.fromkeys(SubSteps._fields[7:], 0), set[tuple[int, int]]()
    arrived, joined = 0, 0
    for cell in CELLS:
        begun, _, steps = sub_stepped(*cell, SUB_STEPPED)
        for field in happened:
            happened[field] += int(getattr(steps, field).sum())
        arrived += int((steps.surfaced.alerts.count - begun.states.alerts.count).sum())
        joined += int((steps.joined.alerts.count - steps.blocked.alerts.count).sum())
        for a, b in itertools.pairwise((begun.states, *steps[:5])):
            moves |= set(zip(a.status.ravel().tolist(), b.status.ravel().tolist(), strict=True))
    assert [field for field, n in happened.items() if n == 0] == []
    assert min(arrived, joined) > 100
    idle, going, *ends = range(len(STATUS))
    back_and_forth = {(idle, going), (going, idle), (idle, ends[-1]), (ends[-1], idle)}
    assert {*back_and_forth, *((going, end) for end in ends)} <= moves


def check_sub_steps(reader: Reader, before: State, action: int, u: twin.Draws, ours: SubSteps) -> None:
    state, tick = reader.read(before), twin.Tick()
    state.tick += 1

    def agree(after: State, what: str, in_flight: bool = False, over: bool = False) -> None:
        # Alerts in flight are laid out by age, which counts up when the next stage has had its chance to start.
        # What has counted, and whether the clean bonus is earned, is put down when the tick is over.
        ours = reader.read(after, in_flight)
        later = {f: getattr(ours, f) for f in ("active_counted", "preemptive_counted") if not over}
        later |= {"earned": ours.earned, "pending": state.pending if in_flight else []}
        assert differences(ours, dataclasses.replace(state, **later)) == [], what

    moved = twin.defend(state, named_action(reader.scenario, reader.dims, action), u, tick)
    agree(ours.defended, "defend")
    reported = (
        moved,
        tick.investigations,
        tick.newly_confirmed,
        tick.containments,
        tick.evidence_backed,
        tick.false_positives,
        tick.invalid,
    )
    assert ours[7:14] == reported
    twin.surface_alerts(state)
    agree(ours.surfaced, "surface")
    twin.progress_stage(state, u, tick)
    agree(ours.progressed, "progress")
    assert ours.exfil == tick.exfil
    if state.current is None:
        twin.start_stage(state, moved, u)
    agree(ours.started, "start", in_flight=True)
    twin.block_contained(state, tick)
    agree(ours.blocked, "block_contained", in_flight=True)
    agree(ours.counted, "count", in_flight=True, over=True)
    assert (ours.active, ours.preemptive) == (tick.active_blocks, tick.preemptive_blocks)
    assert of_stages(ours.blocked, len(state.stages)) == [
        (
            twin.is_contained(state, stage),
            stage.asset in state.patched,
            stage.compromises_asset and stage.asset in state.compromised,
            stage.compromises_identity and stage.identity in state.compromised,
            twin.is_supported(state, stage),
        )
        for stage in state.stages.values()
    ]
    twin.background(state, u)
    agree(ours.joined, "background")


def of_stages(s: State, many: int) -> list[tuple[bool, ...]]:
    """What the simulator keeps of each stage and the twin works out: contained, patched, taken, supported."""
    contained = map(any, zip(*s.controls, strict=True))
    return list(zip(contained, s.patched, *s.taken, s.supported, strict=True))[:many]


# --- what the baselines choose ---------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("dims", "policy"))
@partial(jax.vmap, in_axes=(None, None, None, 0))
def choose(dims: Dims, policy: policies.Policy, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(action, noise) at every tick of an episode played by a policy, (T,) and (T, 16)."""
    nothing = jnp.zeros((), jnp.int32)

    def tick(carry: Any, _: None) -> Any:
        state, memory = carry
        block = tick_noise(key, state.tick + 1)
        action, memory = policy.act(dims, nothing, memory, env.observe(dims, state, params), block[-2:])
        state, _ = env.transition(dims, state, action, block, params)
        return (state, memory), (action, block)

    carry = (start(dims, key, params), policy.init(dims, nothing))
    chosen: tuple[jax.Array, jax.Array] = jax.lax.scan(tick, carry, length=PLAN_TICKS)[1]
    return chosen


@pytest.mark.parametrize(("policy", "dims"), [*((policy, DIMS) for policy in POLICIES), ("random", LIFTABLE_DIMS)])
def test_every_choice_of_a_policy_equals_the_twins(policy: str, dims: Dims) -> None:
    """On the same state and noise, at every tick of every cell."""
    episodes, left_out, verbs = 60, 0, set[str]()
    keys, own = episode_keys(jax.random.key(41), episodes), twin.CLASSIC._replace(liftable=dims.restore)
    for name, personality in CELLS:
        scenario = SCENARIOS[name]
        chosen, blocks = map(np.asarray, choose(dims, POLICIES[policy], params_of(name, personality), keys))
        for e in range(episodes):
            state, memory = twin.reset(scenario, personality, own), set[str]()
            while not state.done:
                u = twin.Draws._make(blocks[e, state.tick].tolist())
                ours = named_action(scenario, dims, int(chosen[e, state.tick]))
                theirs = twin_policy(name, policy)(state, memory, u)
                if ours != theirs or on_an_edge(scenario, state.personality, u):
                    edge = is_close_call(state, u) or on_an_edge(scenario, state.personality, u)
                    assert edge, f"{name}, {personality}, episode {e}, tick {state.tick}: {ours} != {theirs}"
                    left_out += 1
                    break
                verbs.add(ours[0])
                twin.step(state, theirs, u)
    assert left_out < 0.01 * episodes * len(CELLS)
    assert verbs == set(twin.VERBS) - ({twin.RESTORE} if not dims.restore else set())
