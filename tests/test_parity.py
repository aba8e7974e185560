"""The simulator against its plain-Python twin on the same noise: each tick, each sub-step, each choice of a policy."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import (
    CELLS,
    DIMS,
    END,
    PLAN_TICKS,
    POLICIES,
    PRESETS,
    RULES_ONLY,
    SCENARIOS,
    STATUS,
    SWITCHES,
    Played,
    Reader,
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
    three_rewards,
    twin_policy,
)

from jaxsim import actions, attacker, env, policies, rules, telemetry, twin
from jaxsim.defender import defend
from jaxsim.names import entity_names
from jaxsim.rollouts import episode_keys, start, tick_noise
from jaxsim.types import CONFIRMED, RUNNING, Dims, Observation, Params, Rules, Signals, State

EPISODES = 300  # of each cell, step by step
SWITCHED = 80  # of each cell, step by step, each under other rules
RULES = [
    *PRESETS.values(),
    *(twin.CLASSIC._replace(**{s: getattr(twin.HARDENED, s)}) for s in SWITCHES),  # each alone
    *(twin.HARDENED._replace(**{s: getattr(twin.CLASSIC, s)}) for s in SWITCHES),  # each left out
]


# --- play under all rules --------------------------------------------------------------------------------------------


def rules_of(many: Sequence[twin.Rules]) -> Rules:
    """The simulator's form of rules, with a leading axis."""
    classic = jax.tree.map(np.asarray, rules.rules("classic"))
    switched = {s: np.asarray([getattr(r, s) for r in many], getattr(classic, s).dtype) for s in SWITCHES}
    return jax.tree.map(lambda x: np.broadcast_to(x, (len(many), *x.shape)), classic)._replace(**switched)


def all_rules(rng: np.random.Generator, count: int) -> list[twin.Rules]:
    """Each switch alone and each left out, then any mix of them, again and again."""
    pairs = list(zip(twin.CLASSIC, twin.HARDENED, strict=True))
    mixed = [twin.Rules._make(pair[rng.integers(2)] for pair in pairs) for _ in range(count)]
    return [RULES[e % 60] if e % 60 < len(RULES) else mixed[e] for e in range(count)]


def random_plans(rng: np.random.Generator, episodes: int, ticks: int) -> np.ndarray:
    """Plans from passive to frantic, (E, T), one action in ten of the frantic ones outside the table."""
    busy = rng.choice([0.0, 0.1, 0.3, 1.0], (episodes, 1))
    drawn = rng.integers(-2, DIMS.actions + 2, (episodes, ticks))
    return np.where(rng.random((episodes, ticks)) < busy, drawn, 0).astype(np.int32)


def focused_plans(rng: np.random.Generator, name: str, episodes: int, ticks: int) -> np.ndarray:
    """Random plans on three entities each, which are found out and contained again and again."""
    plans, entities = random_plans(rng, episodes, ticks), actions.table(DIMS)[1]
    there = [i for i, entity in enumerate(entity_names(SCENARIOS[name], DIMS)) if entity]
    for plan in plans:
        few = np.flatnonzero(np.isin(entities, rng.choice(there, min(3, len(there)), replace=False)))
        plan[plan > 0] = rng.choice(few, (plan > 0).sum())
    return plans


class RandomPlay(NamedTuple):
    """Episodes of random plans, as NumPy arrays."""

    plans: np.ndarray
    rules: list[twin.Rules]
    played: Played


def random_play(name: str, personality: str, classic: bool) -> RandomPlay:
    """Episodes of a cell, under classic rules or under rules of every kind."""
    ticks = max(s.horizon for s in SCENARIOS.values())
    rng = np.random.default_rng(CELLS.index((name, personality)))
    if classic:
        plans, each = random_plans(rng, EPISODES, ticks), [twin.CLASSIC] * EPISODES
    else:
        halves = random_plans(rng, SWITCHED // 2, ticks), focused_plans(rng, name, SWITCHED // 2, ticks)
        plans, each = np.stack(halves, axis=1).reshape(SWITCHED, ticks), all_rules(rng, SWITCHED)
    params = params_of(name, personality)._replace(rules=rules_of(each))
    keys = episode_keys(jax.random.key(11 + classic), len(each))
    played = play(DIMS, params, three_rewards(), keys, jnp.asarray(plans))
    return RandomPlay(plans, each, jax.tree.map(np.asarray, played))


# --- tick by tick ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classic", [True, False])
@pytest.mark.parametrize(("name", "personality"), CELLS)
def test_every_tick_equals_the_twin(name: str, personality: str, classic: bool) -> None:
    """State, alerts in arrival order, forensics, signals, channels and totals of every tick, under three rewards."""
    plans, each, played = random_play(name, personality, classic)
    assert (played.state.end[:, -1] != RUNNING).all()
    assert skipped(Reader(SCENARIOS[name], personality), plans, played, each) < 0.01 * EPISODES


def test_random_play_leaves_nothing_out() -> None:
    """Over all cells every signal, end and control occurs, and views run over."""
    signals, ends, marks, most = np.zeros(len(Signals._fields)), set[int](), np.zeros(4, bool), (0, 0)
    for cell in CELLS:
        played = random_play(*cell, classic=True).played
        signals += [x.sum() for x in played.signals]
        ends |= set(played.state.end.ravel().tolist())
        marks |= played.state.marks.any(axis=(0, 1, 3))
        most = max(most[0], played.state.alerts.count.max()), max(most[1], played.state.forensics.count.max())
    assert [field for field, n in zip(Signals._fields, signals, strict=True) if n == 0] == []
    assert ends == set(range(len(END))) and marks.all()
    assert most[0] > DIMS.alerts and most[1] > DIMS.forensics


@pytest.mark.parametrize("switch", [s for s in SWITCHES if s != "hide_personality"])
@pytest.mark.parametrize("personality", ["stealthy", "opportunistic"])
def test_a_wrong_switch_is_noticed(switch: str, personality: str) -> None:
    """In random play each switch makes a difference that the comparison sees, in one scenario or another."""
    assert any(is_noticed(name, switch, personality) for name in ("routine", "branching", "supply_chain_token_drift"))


def is_noticed(name: str, switch: str, personality: str) -> bool:
    """Whether the twin with the switch off differs somewhere from an episode with the switch on."""
    plans, each, played = random_play(name, personality, classic=False)
    reader = Reader(SCENARIOS[name], personality)
    for e, own in enumerate(each):
        if getattr(own, switch) == getattr(twin.HARDENED, switch):
            episode = rows(jax.tree.map(lambda x, e=e: x[e], played), int(played.state.tick[e, -1]))
            flipped = own._replace(**{switch: getattr(twin.CLASSIC, switch)})
            try:
                if first_difference(reader, plans[e].tolist(), episode, flipped) is not None:
                    return True
            except AssertionError:  # not even dealt by such rules, or over too soon
                return True
    return False


WATCHED = (
    *("tick", "end", "acted", "status", "stage", "compromised", "marks", "load"),
    *("attack", "targets", "next_start", "exfil", "earned"),
    *("alerts.code", "alerts.severity", "alerts.tick", "alerts.count"),
    *("forensics.entity", "forensics.compromised", "forensics.confidence", "forensics.tick", "forensics.count"),
)


def test_a_difference_is_noticed() -> None:
    """The comparison itself: one number changed anywhere in the record of one tick must be reported."""
    personality, middle = "opportunistic", 15
    plans, each, played = random_play("branching", personality, classic=False)
    attacked = played.state.attack[:, 0] & [r.run_to_horizon and r.unknown_path for r in each]
    e = int(np.argmax(attacked * np.minimum(played.state.alerts.count, played.state.forensics.count)[:, middle]))
    reader, length = Reader(SCENARIOS["branching"], personality), int(played.state.tick[e, -1])
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


def test_presets_are_the_twins() -> None:
    for name, preset in PRESETS.items():
        ours = rules.rules(name)
        for switch in SWITCHES:
            np.testing.assert_allclose(getattr(ours, switch), getattr(preset, switch), rtol=1e-6, err_msg=switch)


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
    joined: State  # by the background alert
    acted: jax.Array
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
    blocked, preemptive = attacker.block_contained(s, live)
    # The background alert alone: what the stages raised has surfaced already.
    extra = telemetry.background(dims, blocked, live, block, params)
    alone = telemetry.surface(dims, blocked._replace(pending=landed), live, extra)
    reported = (d.acted, d.confirmed, d.containment, d.evidence_backed, d.false_positive, d.invalid)
    return SubSteps(a, b, c, s, blocked, blocked._replace(alerts=alone), *reported, active, exfil, preemptive)


class Bank(NamedTuple):
    """States of running episodes and an action for each."""

    rules: list[twin.Rules]
    firsts: State  # of tick 1 of the same episode
    states: State
    actions: np.ndarray


def bank(name: str, personality: str, size: int) -> Bank:
    """Drawn from random play."""
    rng = np.random.default_rng(99)
    _, each, played = random_play(name, personality, classic=False)
    state = played.state
    e, t = np.nonzero(state.end == RUNNING)
    chosen = rng.choice(len(e), size)
    picked = jax.tree.map(lambda x: x[e[chosen], t[chosen]], state)
    # Half of the actions on states with a confirmed entity are aimed at one.
    table = actions.table(DIMS)[1]
    aimed = (table >= 0) & picked.marks[:, CONFIRMED][:, table]
    drawn = [
        rng.choice(np.flatnonzero(a)) if a.any() and rng.random() < 0.5 else rng.integers(-1, DIMS.actions)
        for a in aimed
    ]
    firsts = jax.tree.map(lambda x: x[e[chosen], 0], state)
    return Bank([each[i] for i in e[chosen]], firsts, picked, np.asarray(drawn, np.int32))


def sub_stepped(name: str, personality: str, size: int) -> tuple[Bank, np.ndarray, SubSteps]:
    """(states and actions, noise, sub-steps from there), leading axis `size`."""
    begun = bank(name, personality, size)
    blocks = jax.vmap(lambda key: tick_noise(key, jnp.int32(1)))(episode_keys(jax.random.key(31), size))
    params = params_of(name, personality)._replace(rules=rules_of(begun.rules))
    steps = sub_steps(DIMS, params, begun.states, jnp.asarray(begun.actions), blocks)
    return begun, np.asarray(blocks), jax.tree.map(np.asarray, steps)


SUB_STEPPED = 100  # states of each cell


@pytest.mark.parametrize(("name", "personality"), CELLS)
def test_every_sub_step_equals_the_twin(name: str, personality: str) -> None:
    """The sub-steps one by one, from the same states on the same fresh noise."""
    begun, blocks, steps = sub_stepped(name, personality, SUB_STEPPED)
    reader, left_out = Reader(SCENARIOS[name], personality), 0
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
    happened, moves = dict.fromkeys(SubSteps._fields[6:], 0), set[tuple[int, int]]()
    arrived, joined = 0, 0
    for cell in CELLS:
        begun, _, steps = sub_stepped(*cell, SUB_STEPPED)
        for field in happened:
            happened[field] += int(getattr(steps, field).sum())
        arrived += int((steps.surfaced.alerts.count - begun.states.alerts.count).sum())
        joined += int((steps.joined.alerts.count - steps.blocked.alerts.count).sum())
        for a, b in itertools.pairwise((steps.surfaced, steps.progressed, steps.started, steps.blocked)):
            moves |= set(zip(a.status.ravel().tolist(), b.status.ravel().tolist(), strict=True))
    assert [field for field, n in happened.items() if n == 0] == []
    assert min(arrived, joined) > 100
    idle, going, *ends = range(len(STATUS))
    assert {(idle, going), (going, idle), (idle, ends[-1]), *((going, end) for end in ends)} <= moves


def check_sub_steps(reader: Reader, before: State, action: int, u: twin.Draws, ours: SubSteps) -> None:
    state, tick = reader.read(before), twin.Tick()
    state.tick += 1

    def agree(after: State, what: str, in_flight: bool = False) -> None:
        # Alerts in flight are laid out by age, which counts up when the next stage has had its chance to start.
        # Whether the clean bonus is earned is put down when the tick is over.
        theirs = dataclasses.replace(state, earned=after.earned, pending=state.pending if in_flight else [])
        assert differences(reader.read(after, in_flight), theirs) == [], what

    moved = twin.defend(state, named_action(reader.scenario, reader.dims, action), u, tick)
    agree(ours.defended, "defend")
    reported = (
        moved,
        tick.newly_confirmed,
        tick.containments,
        tick.evidence_backed,
        tick.false_positives,
        tick.invalid,
    )
    assert ours[6:12] == reported
    twin.surface_alerts(state)
    agree(ours.surfaced, "surface")
    twin.progress_stage(state, u, tick)
    agree(ours.progressed, "progress")
    assert (ours.active, ours.exfil) == (tick.active_blocks, tick.exfil)
    if state.current is None:
        twin.start_stage(state, moved, u)
    agree(ours.started, "start", in_flight=True)
    twin.block_contained(state, tick)
    agree(ours.blocked, "block_contained", in_flight=True)
    assert ours.preemptive == tick.preemptive_blocks
    twin.background(state, u)
    agree(ours.joined, "background")


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


@pytest.mark.parametrize("policy", POLICIES)
def test_every_choice_of_a_policy_equals_the_twins(policy: str) -> None:
    """On the same state and noise, at every tick of every cell."""
    episodes, left_out, verbs = 60, 0, set[str]()
    keys = episode_keys(jax.random.key(41), episodes)
    for name, personality in CELLS:
        scenario = SCENARIOS[name]
        chosen, blocks = map(np.asarray, choose(DIMS, POLICIES[policy], params_of(name, personality), keys))
        for e in range(episodes):
            state, memory = twin.reset(scenario, personality), set[str]()
            while not state.done:
                u = twin.Draws._make(blocks[e, state.tick].tolist())
                ours = named_action(scenario, DIMS, int(chosen[e, state.tick]))
                theirs = twin_policy(name, policy)(state, memory, u)
                if ours != theirs or on_an_edge(scenario, state.personality, u):
                    edge = is_close_call(state, u) or on_an_edge(scenario, state.personality, u)
                    assert edge, f"{name}, {personality}, episode {e}, tick {state.tick}: {ours} != {theirs}"
                    left_out += 1
                    break
                verbs.add(ours[0])
                twin.step(state, theirs, u)
    assert left_out < 0.01 * episodes * len(CELLS)
    assert verbs == set(twin.VERBS)
