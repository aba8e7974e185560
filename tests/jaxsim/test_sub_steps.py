"""The simulator against its plain-Python twin on the same noise, sub-step by sub-step."""

import dataclasses
import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import CELLS, LIFTABLE_DIMS, SCENARIOS, STATUS, params_of
from parity import (
    RULES_ONLY,
    Reader,
    differences,
    in_set,
    named_action,
    on_an_edge,
    rows,
)
from random_play import MIXED_LIFTABLE, random_play, rules_of

from jaxsim import actions, attacker, telemetry, twin, twin_rules, twin_state
from jaxsim.defender import defend
from jaxsim.one_episode import episode_keys, tick_noise
from jaxsim.types import (
    CONFIRMED,
    RUNNING,
    Dims,
    Params,
    State,
)


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
    evidence_paid: jax.Array
    evidence_backed: jax.Array
    recontained: jax.Array
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
    reported = (d.acted, d.investigation, d.confirmed, d.containment, d.evidence_paid, d.evidence_backed)
    others = (d.recontained, d.false_positive, d.invalid, active, exfil, preemptive)
    return SubSteps(a, b, c, s, blocked, counted, joined, *reported, *others)


class Bank(NamedTuple):
    """States of running episodes and an action for each."""

    rules: list[twin_rules.Rules]
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
        u = twin_rules.Draws._make(block)
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


def check_sub_steps(reader: Reader, before: State, action: int, u: twin_rules.Draws, ours: SubSteps) -> None:
    state, tick = reader.read(before), twin_state.Tick()
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
        tick.evidence_paid,
        tick.evidence_backed,
        tick.recontained,
        tick.false_positives,
        tick.invalid,
    )
    assert ours[7:16] == reported
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
    sets = (s.patched, *s.taken, s.supported)
    return [(any(in_set(c, k) for c in s.controls), *(in_set(x, k) for x in sets)) for k in range(many)]
