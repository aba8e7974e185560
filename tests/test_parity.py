"""The simulator against its plain-Python twin: step by step on the same noise, then in the mean on their own.

    python tests/test_parity.py --episodes 20000 --jobs 2

runs the comparison of means at full size and prints it; `pytest` runs it with fewer episodes of the slower twin.
"""

import argparse
import dataclasses
import itertools
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twin

import scenarios
from jaxsim import actions, attacker, env, policies, reward, rules, telemetry
from jaxsim.compile import dims_of
from jaxsim.defender import defend
from jaxsim.names import action_text, entity_names, parse_plan
from jaxsim.rollouts import EpisodeStats, episode_keys, rollout_many, start, tick_noise
from jaxsim.types import (
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    EXFIL,
    PATCHED,
    RUNNING,
    Channels,
    Dims,
    Observation,
    Params,
    RewardWeights,
    Rules,
    Signals,
    State,
)

BRANCHING = """
format: 1
id: branching
title: Two ways in, a join of each kind, two ways out
horizon: 40
noise_rate: 0.5
assets:
  - {id: mailer, kind: service, criticality: 0.35, segment: edge}
  - {id: proxy, kind: service, criticality: 0.4, segment: edge}
  - {id: desktop, kind: host, criticality: 0.6, segment: office}
  - {id: ledger, kind: datastore, criticality: 1.0, segment: data}
  - {id: printer, kind: host, criticality: 0.1, segment: office}
identities:
  - {id: alice, role: clerk, privilege: 0.5}
  - {id: bob, role: admin, privilege: 1.0}
  - {id: carol, role: auditor, privilege: 0.0}
stages: # listed against the order in which they can run
  - {id: out-by-mail, name: m, tactic: TA0010, technique: T1041, prerequisites: [foothold],
     any_prerequisites: [spray, collect], asset: mailer, dwell: [3, 3], success: 0.5, detection: 0.9, lag: [0, 0],
     exfil: true}
  - {id: out-by-web, name: w, tactic: TA0010, technique: T1041, prerequisites: [collect, phish], asset: proxy,
     identity: bob, dwell: [1, 2], success: 0.6, detection: 1.0, lag: [1, 7], exfil: true}
  - {id: collect, name: c, tactic: TA0009, technique: T1213, prerequisites: [foothold], asset: ledger,
     identity: bob, dwell: [1, 6], success: 0.9, detection: 0.6, lag: [0, 3], compromises_asset: true,
     compromises_identity: true}
  - {id: foothold, name: f, tactic: TA0002, technique: T1610, any_prerequisites: [phish, spray], asset: desktop,
     dwell: [1, 1], success: 1.0, detection: 0.1, lag: [0, 4], compromises_asset: true, signal: background_noise}
  - {id: phish, name: p, tactic: TA0001, technique: T1566.002, identity: alice, dwell: [2, 4], success: 0.7,
     detection: 0.5, lag: [1, 2], compromises_identity: true}
  - {id: spray, name: s, tactic: TA0006, technique: T1621, asset: proxy, identity: alice, dwell: [1, 5],
     success: 0.3, detection: 0.3, lag: [2, 6]}
"""

NO_IDENTITIES = """
format: 1
id: no-identities
title: Nobody to revoke, and a background alert at every tick
horizon: 12
noise_rate: 1.0
assets:
  - {id: box, kind: host, criticality: 0.5, segment: lab}
  - {id: door, kind: host, criticality: 0.25, segment: lab}
stages:
  - {id: in, name: i, tactic: TA0009, technique: T1213, asset: box, dwell: [1, 9], success: 0.3, detection: 0.7,
     lag: [0, 5], compromises_asset: true}
  - {id: out, name: o, tactic: TA0010, technique: T1041, prerequisites: [in], asset: door, dwell: [2, 4],
     success: 0.9, detection: 0.5, lag: [0, 1], exfil: true}
"""

ROUTINE = """
format: 1
id: routine
title: Three ways in, two to the middle, two out, and much work that looks like an attack
horizon: 36
noise_rate: 0.2
assets:
  - {id: portal, kind: service, criticality: 0.3, segment: edge}
  - {id: laptop, kind: host, criticality: 0.2, segment: office}
  - {id: vault, kind: datastore, criticality: 0.9, segment: data}
  - {id: relay, kind: service, criticality: 0.5, segment: edge}
identities:
  - {id: dave, role: engineer, privilege: 0.4}
  - {id: erin, role: admin, privilege: 0.8}
  - {id: cron, role: service, privilege: 0.6}
stages:
  - {id: guess, name: g, tactic: TA0006, technique: T1110, asset: portal, identity: dave, dwell: [1, 3], success: 0.4,
     detection: 0.5, lag: [0, 3], compromises_asset: true, compromises_identity: true}
  - {id: lure, name: l, tactic: TA0001, technique: T1566.002, identity: dave, dwell: [1, 2], success: 0.5,
     detection: 0.3, lag: [1, 2], compromises_identity: true}
  - {id: exploit, name: e, tactic: TA0001, technique: T1190, asset: relay, dwell: [1, 4], success: 0.3,
     detection: 0.7, lag: [0, 1], compromises_asset: true}
  - {id: borrow, name: b, tactic: TA0006, technique: T1528, any_prerequisites: [guess, lure, exploit], asset: laptop,
     identity: erin, dwell: [1, 2], success: 0.7, detection: 0.4, lag: [1, 4], compromises_identity: true}
  - {id: hop, name: h, tactic: TA0008, technique: T1021, any_prerequisites: [guess, exploit], asset: laptop,
     dwell: [2, 3], success: 0.6, detection: 0.6, lag: [0, 2], compromises_asset: true}
  - {id: gather, name: a, tactic: TA0009, technique: T1213, any_prerequisites: [borrow, hop], asset: vault,
     identity: erin, dwell: [1, 3], success: 0.8, detection: 0.5, lag: [0, 2], compromises_asset: true}
  - {id: send, name: s, tactic: TA0010, technique: T1041, prerequisites: [gather], asset: relay, dwell: [1, 3],
     success: 0.4, detection: 0.9, lag: [0, 1], exfil: true}
  - {id: post, name: p, tactic: TA0010, technique: T1041, prerequisites: [gather, borrow], asset: portal,
     dwell: [1, 2], success: 0.6, detection: 0.6, lag: [1, 3], exfil: true}
benign:
  - {id: backup, name: b, asset: vault, identity: cron, rate: 0.3, strength: 0.6, signal: data_staging}
  - {id: scan, name: s, asset: relay, rate: 0.15, strength: 0.9, signal: lateral_movement}
  - {id: sign-in, name: i, identity: erin, rate: 0.05, strength: 0.0, signal: background_noise}
"""

CAMPAIGNS = {name: scenarios.load(name) for name in scenarios.names()}
SCENARIOS = CAMPAIGNS | {s.id: s for s in map(scenarios.loads, (BRANCHING, NO_IDENTITIES, ROUTINE))}
DIMS = dims_of(list(SCENARIOS.values()))  # one size for all, so that each program here is compiled once
CELLS = list(itertools.product(SCENARIOS, twin.PERSONALITIES))
# Means are compared on these, the hardened campaigns under hardened rules.
HARDENED = {name: scenarios.load(name) for name in scenarios.names("hardened")}
HARDENED_DIMS = dims_of(list(HARDENED.values()))
CAMPAIGN_CELLS = list(itertools.product(CAMPAIGNS | HARDENED, twin.PERSONALITIES))
# Of these pytest takes one personality for each hardened campaign, where episodes are long; `--episodes` takes all.
TESTED_CELLS = [
    *itertools.product(CAMPAIGNS, twin.PERSONALITIES),
    *zip(HARDENED, itertools.cycle(twin.PERSONALITIES)),
]

EPISODES = 300  # of each cell, step by step
SWITCHED = 80  # of each cell, step by step, each under other rules
TOLERANCE = 1e-5  # single against double precision
EDGE = 1e-6  # draws this near to a threshold may fall on either side of it
STATUS = ("idle", "in_progress", "succeeded", "failed", "blocked")
END = (None, "exfil", "attacker_done", "horizon")
PRESETS = {"classic": twin.CLASSIC, "hardened": twin.HARDENED}
SWITCHES = twin.Rules._fields
RULES = [
    *PRESETS.values(),
    *(twin.CLASSIC._replace(**{s: getattr(twin.HARDENED, s)}) for s in SWITCHES),  # each alone
    *(twin.HARDENED._replace(**{s: getattr(twin.CLASSIC, s)}) for s in SWITCHES),  # each left out
]


# --- the simulator: whole episodes of given actions ----------------------------------------------------------------


class Played(NamedTuple):
    """Ticks 1, 2, ... of an episode; rows after its end repeat the last state."""

    state: State
    signals: Signals
    channels: Channels  # under each of the rewards
    total: jax.Array
    block: jax.Array  # the noise of the tick


def stack(many: Sequence[Any]) -> Any:
    """A pytree of the same kind with a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *many)


def three_rewards() -> RewardWeights:
    rewards: RewardWeights = stack([reward.weights(name) for name in twin.REWARDS])
    return rewards


def play_one(dims: Dims, params: Params, weights: RewardWeights, key: jax.Array, plan: jax.Array) -> Played:
    def tick(state: State, action: jax.Array) -> tuple[State, Played]:
        block = tick_noise(key, state.tick + 1)
        after, signals = env.transition(dims, state, action, block, params)
        channels = reward.channels(signals, weights)
        return after, Played(after, signals, channels, reward.total(channels, weights), block)

    played: Played = jax.lax.scan(tick, start(dims, key, params), plan)[1]
    return played


@partial(jax.jit, static_argnames="dims")
def play(dims: Dims, params: Params, weights: RewardWeights, keys: jax.Array, plans: jax.Array) -> Played:
    """Episodes, plans (E, T): every leaf gets the axes (E, T). Rules may have the axis E as well."""
    axes = RULES_ONLY if params.rules.run_to_horizon.ndim else None
    one = jax.vmap(partial(play_one, dims), in_axes=(axes, None, 0, 0))
    played: Played = one(params, weights, keys, plans)
    return played


RULES_ONLY = Params(scenario=None, rules=0, reward=None, personalities=None, personality_weights=None)


@cache
def params_of(name: str, personality: str) -> Params:
    return env.make_params(scenario_of(name), dims_for(name), preset_of(name), "evidence", personality)


def scenario_of(name: str) -> scenarios.Scenario:
    return (SCENARIOS | HARDENED)[name]


def dims_for(name: str) -> Dims:
    return HARDENED_DIMS if name in HARDENED else DIMS


def preset_of(name: str) -> str:
    return "hardened" if name in HARDENED else "classic"


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


# --- both in one tongue ----------------------------------------------------------------------------------------------


def named_action(scenario: scenarios.Scenario, dims: Dims, action: int) -> twin.Action:
    """The twin's form of an action; what is not in the table becomes an action on nobody."""
    text = action_text(action, scenario, dims)
    if text == "INVALID":
        return twin.INVESTIGATE, "nobody"
    verb, _, target = text.partition(" ")
    return verb, target or None


class Reader:
    """Reads states of the simulator, as plain lists, into states of the twin."""

    def __init__(self, scenario: scenarios.Scenario, personality: str, dims: Dims = DIMS) -> None:
        self.scenario, self.personality, self.dims = scenario, personality, dims
        self.fresh = twin.reset(scenario, personality)
        self.places: list[int] = []  # of the stages in the order of preference at reset
        self.entities = entity_names(scenario, dims)
        self.stages = [stage.id for stage in scenario.stages]

    def reset(self, first: State, rules: twin.Rules) -> twin.State:
        """The twin of tick 0, and what `read` is to take for granted from now on.

        It is read from the state of tick 1, in which nothing of what an episode is dealt can have changed.
        """
        targets = [(self.name(asset), self.name(identity)) for asset, identity in zip(*first.targets, strict=True)]
        benign = self.dims.stages + len(self.scenario.benign)
        dealt = twin.Dealt(
            attack=first.attack,
            first_start=first.next_start,
            stages=tuple(targets[: len(self.stages)]),
            benign=tuple(targets[self.dims.stages : benign]),
            order=tuple(self.order(first)),
        )
        self.places = first.order
        self.fresh = twin.reset(self.scenario, self.personality, rules, dealt)
        return twin.reset(self.scenario, self.personality, rules, dealt)

    def order(self, s: State) -> list[str]:
        """The lowest first, the first listed of equals."""
        return [x for _, x in sorted(zip(s.order, self.stages, strict=False), key=lambda pair: pair[0])]

    def names(self, mask: list[bool]) -> set[str]:
        return {str(self.entities[i]) for i, on in enumerate(mask) if on}

    def name(self, entity: int) -> str | None:
        return self.entities[entity] if entity >= 0 else None

    def read(self, s: State, pending: bool = True) -> twin.State:
        """The twin of a state; `pending` False leaves the alerts in flight out."""
        cut_off = self.names(s.marks[CUT_OFF])
        return twin.State(
            scenario=self.scenario,
            personality_name=self.personality,
            personality=self.fresh.personality,
            rules=self.fresh.rules,
            dealt=self.fresh.dealt,
            stages=self.fresh.stages,
            benign=self.fresh.benign,
            order=self.order(s),
            next_start=s.next_start,
            criticality=self.fresh.criticality,
            privilege=self.fresh.privilege,
            named=self.fresh.named,
            status={x: STATUS[k] for x, k in zip(self.stages, s.status, strict=False)},
            tick=s.tick,
            done=s.end != RUNNING,
            end=END[s.end],
            current=self.fresh.stages[self.stages[s.stage]] if s.stage >= 0 else None,
            stage_end=s.stage_end,
            out=s.exfil,
            earned=s.earned,
            acted=s.acted,
            put_off={x for x, old, new in zip(self.stages, self.places, s.order, strict=False) if old != new},
            isolated=cut_off & self.fresh.criticality.keys(),
            egress_blocked=self.names(s.marks[EGRESS_BLOCKED]),
            patched=self.names(s.marks[PATCHED]),
            revoked=cut_off - self.fresh.criticality.keys(),
            compromised=self.names(s.compromised),
            confirmed=self.names(s.marks[CONFIRMED]),
            pending=self.in_flight(s) if pending else [],
            alerts=self.in_view(s),
            forensics=self.results(s),
        )

    def alert(self, code: int, severity: float, visible: int) -> twin.Alert:
        signal, asset, identity = code & 7, (code >> 3 & 2**14 - 1) - 1, code >> 17
        at = identity + self.dims.assets - 1 if identity else -1
        return twin.Alert(twin.SIGNALS[signal], self.name(asset), self.name(at), severity, visible)

    def in_flight(self, s: State) -> list[twin.Alert]:
        """Oldest first: row t mod L holds the stage that started at tick t."""
        code, due, severities = s.pending
        rows = [t % self.dims.max_lag for t in range(s.tick - self.dims.max_lag + 1, s.tick + 1)]
        return [
            self.alert(code[row], severities[row][i], due[row][i])
            for row in rows
            for i in (0, 1)
            if due[row][i] > s.tick
        ]

    def in_view(self, s: State) -> list[twin.Alert]:
        code, severity, tick, count = s.alerts
        slots = [n % self.dims.alerts for n in range(max(0, count - self.dims.alerts), count)]
        return [self.alert(code[i], severity[i], tick[i]) for i in slots]

    def results(self, s: State) -> list[twin.Forensic]:
        entity, compromised, confidence, tick, count = s.forensics
        slots = [n % self.dims.forensics for n in range(max(0, count - self.dims.forensics), count)]
        verdict = ("clean", "compromised")
        return [
            twin.Forensic(str(self.name(entity[i])), verdict[compromised[i]], confidence[i], tick[i]) for i in slots
        ]


def rows(tree: Any, length: int) -> list[Any]:
    """The first `length` entries along the leading axis, leaves as plain Python."""
    leaves, shape = jax.tree.flatten(tree)
    return [shape.unflatten(row) for row in zip(*(x[:length].tolist() for x in leaves), strict=True)]


EXACT = (
    *("status", "tick", "done", "end", "current", "stage_end", "acted", "isolated", "egress_blocked"),
    *("patched", "revoked", "compromised", "confirmed", "next_start", "out", "earned"),
)


def differences(ours: twin.State, theirs: twin.State) -> list[str]:
    """What two states do not agree in: all but severities and confidences to the letter."""
    found = [f for f in EXACT if getattr(ours, f) != getattr(theirs, f)]
    if choices(ours) != choices(theirs):
        found.append("order")
    for f in ("pending", "alerts", "forensics"):
        a, b = getattr(ours, f), getattr(theirs, f)
        if len(a) != len(b) or not all(map(same_record, a, b)):
            found.append(f)
    return found


def choices(state: twin.State) -> list[str]:
    """The stages that may still start, the most preferred first."""
    return [name for name in state.order if state.status[name] in ("idle", "in_progress")]


def same_record(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Alerts or forensic results alike but for the rounding of the one real number in them."""
    return a[-1] == b[-1] and a[:-2] == b[:-2] and abs(a[-2] - b[-2]) < TOLERANCE


def signals_of(tick: twin.Tick) -> Signals:
    """A tick of the twin in the simulator's terms."""
    left = tick.stages_total - tick.stages_succeeded
    return Signals(
        confirmed=tick.newly_confirmed,
        active_blocks=tick.active_blocks,
        preemptive_blocks=tick.preemptive_blocks,
        containments=tick.containments,
        evidence_backed=tick.evidence_backed,
        false_positives=tick.false_positives,
        load=tick.load,
        invalid=tick.invalid,
        exfil=tick.exfil,
        exfil_stages_left=left * tick.exfil,
        clean=tick.clean,
        stages_left=left * tick.other,
        passive=tick.other and not tick.acted,
    )


def points_of(tick: twin.Tick) -> list[float]:
    """The seven channels and the total under each reward, the rewards one after the other."""
    found: list[float] = []
    for weights in twin.REWARDS.values():
        parts = twin.channels(tick, weights)
        found += [*(parts[name] for name in Channels._fields), twin.total(parts, weights)]
    return found


def near(u: float, *thresholds: float) -> bool:
    return any(abs(u - t) < EDGE for t in thresholds)


def near_step(u: float, count: float) -> bool:
    """Whether a draw lies where floor(u x count) jumps."""
    return near(u * count / max(count, 1.0), round(u * count) / max(count, 1.0))


def on_an_edge(scenario: scenarios.Scenario, who: twin.Personality, u: twin.Draws) -> bool:
    """Whether single and double precision may part ways on these draws: one of them lies on a threshold."""
    rates = itertools.accumulate([scenario.noise_rate, *(activity.rate for activity in scenario.benign)])
    if near(u.forensic_error, 0.15, 0.12) or near(u.pause, who.pause) or near(u.background, *rates):
        return True
    low, high = twin.HARDENED.retry_delay
    if near_step(u.dwell, high - low + 1):
        return True
    for s in scenario.stages:
        p = twin.clip(s.success + who.bias, 0.05, 0.99)
        strength = twin.clip(s.detection * who.detection, 0.0, 1.0)
        low, high = (max(1, round(d * who.dwell)) for d in s.dwell)
        span = s.lag[1] - s.lag[0] + 1
        if near(u.stage_success, p, max(0.05, p - 0.3)) or near_step(u.dwell, high - low + 1):
            return True
        if any(near(x, strength) for x in (u.alert_1, u.alert_2)):
            return True
        if any(near_step(x, span) for x in (u.lag_1, u.lag_2)):
            return True
    w = 2 * u.background_entity / 0.7
    counts = (len(scenario.assets), len(scenario.identities))
    return (
        near_step(u.background / max(scenario.noise_rate, EDGE), 5)
        or near(w, 1, 2)
        or any(near_step(w % 1, n) for n in counts if n)
    )


# --- (a) step by step ------------------------------------------------------------------------------------------------


def first_difference(
    reader: Reader, plan: list[int], played: list[Played], rules: twin.Rules = twin.CLASSIC
) -> tuple[str, twin.Draws] | None:
    """Play an episode again with the twin, on the noise of the simulator's, until they differ."""
    first = played[0].state
    state = reader.reset(first, rules)
    assert dealt_by(rules, reader.scenario, state.dealt)
    for action, row in zip(plan, played, strict=False):
        u = twin.Draws._make(row.block)
        tick = twin.step(state, named_action(reader.scenario, reader.dims, action), u)
        found = differences(reader.read(row.state), state)
        found += [f for f, a, b in zip(Signals._fields, row.signals, signals_of(tick), strict=True) if differ(a, b)]
        ours = [x for r in range(len(twin.REWARDS)) for x in (*(c[r] for c in row.channels), row.total[r])]
        if any(map(differ, ours, points_of(tick))):
            found.append("points")
        if differ(row.state.load, tick.load):
            found.append("load")
        if row.state.attack != first.attack or row.state.targets != first.targets:
            found.append("dealt")
        if found:
            return f"tick {state.tick}, {action_text(action, reader.scenario, reader.dims)}: {found}, {rules}", u
    assert state.done, "the simulator ended an episode that the twin goes on with"
    return None


def dealt_by(rules: twin.Rules, scenario: scenarios.Scenario, dealt: twin.Dealt) -> bool:
    """Whether an episode may begin like this."""
    listed, (low, high) = twin.as_listed(scenario), rules.attack_delay
    if not low <= dealt.first_start - 1 <= high or dealt.attack < rules.attack_probability - 0.99:
        return False
    if not rules.unknown_path:
        return dealt[2:] == listed[2:]
    cast = set[tuple[str | None, str | None]]()
    for group in ("stages", "benign"):
        for role, player in zip(getattr(listed, group), getattr(dealt, group), strict=True):
            cast |= set(zip(role, player, strict=True))
    kinds = [{x.id for x in group} for group in (scenario.assets, scenario.identities)]
    roles, players = zip(*cast, strict=True)
    one_each = len(cast) == len(set(roles)) == len(set(players))
    same_kind = all(a in kind if b in kind else a not in kind for a, b in cast for kind in kinds)
    return one_each and same_kind and sorted(dealt.order) == sorted(listed.order)


def differ(a: float, b: float) -> bool:
    return abs(a - b) > TOLERANCE


def skipped(reader: Reader, plans: np.ndarray, played: Played, each: Sequence[twin.Rules] = (twin.CLASSIC,)) -> int:
    """Compare every episode; how many went apart on the edge of a threshold. Any other difference fails.

    The rules of the episodes are `each` in turn.
    """
    who, count = twin.PERSONALITIES[reader.personality], 0
    for e, length in enumerate(played.state.tick[:, -1].tolist()):
        episode = rows(jax.tree.map(lambda x, e=e: x[e], played), length)
        found = first_difference(reader, plans[e].tolist(), episode, each[e % len(each)])
        if found is not None:
            message, u = found
            assert on_an_edge(reader.scenario, who, u), f"episode {e}: {message}"
            count += 1
    return count


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


# --- (a) sub-step by sub-step ----------------------------------------------------------------------------------------


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


# --- (a) what the baselines choose -----------------------------------------------------------------------------------

POLICIES = {"random": policies.RANDOM, "heuristic": policies.HEURISTIC}
PLANS = {
    "monitor": "MONITOR",
    "early isolation": "MONITOR;ISOLATE_ASSET assets[0]",
    "scattered": "REVOKE_IDENTITY identities[1];PATCH_ASSET assets[3];MONITOR;MONITOR;INVESTIGATE identities[0];"
    "BLOCK_EGRESS assets[5];INVESTIGATE assets[1];MONITOR;ISOLATE_ASSET assets[4]",
    "farming": "MONITOR;" * 9
    + "INVESTIGATE identities[0];INVESTIGATE identities[2];INVESTIGATE assets[1];"
    + "PATCH_ASSET assets[1];REVOKE_IDENTITY identities[0];REVOKE_IDENTITY identities[2];" * 19,
}
PLAN_TICKS = 80


def plan_array(name: str, text: str) -> np.ndarray:
    plan = parse_plan(text, scenario_of(name), dims_for(name))
    return np.pad(plan, (0, PLAN_TICKS - len(plan)))


def twin_policy(name: str, policy: str) -> twin.Policy:
    if policy in PLANS:
        plan = plan_array(name, PLANS[policy])
        return twin.plan([named_action(scenario_of(name), dims_for(name), int(a)) for a in plan])
    return {"random": twin.random_policy, "heuristic": twin.heuristic}[policy]


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


def is_close_call(state: twin.State, u: twin.Draws) -> bool:
    """Whether rounding may change a choice: a severity on a threshold, two all but equal, or a draw on a step."""
    severities = [alert.severity for alert in state.alerts]
    pairs = itertools.combinations(severities, 2)
    counts = {len(state.criticality), len(state.privilege), len(state.criticality) + len(state.privilege)}
    return (
        any(near(s, 0.26, 0.48, 0.52) for s in severities)
        or any(0 < abs(a - b) < EDGE for a, b in pairs)
        or near_step(u.policy_verb, 6)
        or near_step(u.policy_verb, 5)
        or any(near_step(u.policy_target, n) for n in counts)
    )


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


# --- (b) in the mean -------------------------------------------------------------------------------------------------

OUR_EPISODES = 20_000
TWIN_EPISODES = int(os.environ.get("JAXSIM_TWIN_EPISODES", "400"))
HARDENED_SHARE = 0.25  # of that many under hardened rules, where each episode lasts to the horizon
ALL_POLICIES = (*PLANS, *POLICIES)
METRICS = ("return", *Channels._fields, "length", "stages", "exfil", "newly_confirmed")
COMPARISONS = len(CAMPAIGN_CELLS) * len(ALL_POLICIES) * len(METRICS)
FAMILY_LEVEL = 0.01  # chance that any of all comparisons fails although nothing is wrong (Bonferroni)
Z_LIMIT = NormalDist().inv_cdf(1 - FAMILY_LEVEL / COMPARISONS / 2)  # about 4.4 combined standard errors


@cache
def our_sample(name: str, personality: str, policy: str) -> np.ndarray:
    """(metric, episode) of the simulator; the plans of a cell are played together."""
    played = our_plans(name, personality) if policy in PLANS else our_policy(name, personality, policy)
    m = list(PLANS).index(policy) if policy in PLANS else 0
    s = jax.tree.map(lambda x: x[m], played)
    confirmed, exfil = s.signals.confirmed, s.end == EXFIL
    return np.asarray([s.episode_return, *s.channels, s.length, s.succeeded, exfil, confirmed], np.float64)


@cache
def our_plans(name: str, personality: str) -> EpisodeStats:
    plans = np.stack([plan_array(name, text) for text in PLANS.values()])
    return our_rollout(name, personality, policies.PLAN, plans)


@cache
def our_policy(name: str, personality: str, policy: str) -> EpisodeStats:
    return our_rollout(name, personality, POLICIES[policy], np.zeros(1, np.int32))


def our_rollout(name: str, personality: str, policy: policies.Policy, parameters: np.ndarray) -> EpisodeStats:
    episodes = int(OUR_EPISODES * (HARDENED_SHARE if name in HARDENED else 1))
    keys, lanes = episode_keys(jax.random.key(51), episodes), len(PLANS) * episodes
    return rollout_many(env.Env(dims_for(name)), params_of(name, personality), policy, parameters, keys, lanes=lanes)[0]


def twin_sample(name: str, personality: str, policy: str, episodes: int) -> np.ndarray:
    """(metric, episode) of the twin, on random numbers of its own."""
    rng = random.Random(f"{name} {personality} {policy}")
    scenario, weights, rules_ = scenario_of(name), twin.REWARDS["evidence"], PRESETS[preset_of(name)]
    choice = twin_policy(name, policy)
    played = [twin.episode(scenario, personality, choice, weights, rng, rules_) for _ in range(episodes)]
    return np.asarray([[row[m] for row in played] for m in METRICS])


class Compared(NamedTuple):
    """One metric of one policy in one cell, in both simulators."""

    what: str
    ours: float
    theirs: float
    z: float  # difference in standard errors; 0 when equal, inf when two constants differ
    allowed: float  # standard errors


def compare(what: str, a: np.ndarray, b: np.ndarray) -> Compared:
    """Two samples of what should be the same quantity.

    The standard error is that of the pooled sample. To Z_LIMIT of them comes Bernstein's term for a quantity that is
    almost always the same and now and then far off, for which a few hundred episodes are not yet normal.
    """
    both = np.concatenate([a, b])
    difference, sd, reach = abs(a.mean() - b.mean()), both.std(), np.abs(both - both.mean()).max()
    if reach < TOLERANCE * max(1.0, abs(both.mean())):  # constant
        return Compared(what, a.mean(), b.mean(), 0.0 if difference < TOLERANCE * 10 else math.inf, Z_LIMIT)
    share = 1 / len(a) + 1 / len(b)
    se = sd * math.sqrt(share)
    return Compared(what, a.mean(), b.mean(), difference / se, Z_LIMIT + Z_LIMIT**2 * reach * share / 3 / se)


def compare_all(name: str, personality: str, policy: str, theirs: np.ndarray) -> list[Compared]:
    label = f"{name} {personality} {policy}"
    ours = our_sample(name, personality, policy)
    return [compare(f"{label}: {m}", a, b) for m, a, b in zip(METRICS, ours, theirs, strict=True)]


@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize(("name", "personality"), TESTED_CELLS)
def test_means_equal_the_twins(name: str, personality: str, policy: str) -> None:
    episodes = int(TWIN_EPISODES * (HARDENED_SHARE if name in HARDENED else 1))
    compared = compare_all(name, personality, policy, twin_sample(name, personality, policy, episodes))
    assert [c for c in compared if c.z > c.allowed] == []


@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize(("name", "personality"), TESTED_CELLS)
def test_a_rollout_adds_up_what_the_twin_does(name: str, personality: str, policy: str) -> None:
    """The first episodes of the same rollouts, one by one on the same noise: every number that is kept of them."""
    episodes, left_out = 10, 0
    played = our_plans(name, personality) if policy in PLANS else our_policy(name, personality, policy)
    m = list(PLANS).index(policy) if policy in PLANS else 0
    keys = episode_keys(jax.random.key(51), episodes)
    blocks, firsts = (
        np.asarray(noise_of(keys)),
        rows(deal(dims_for(name), params_of(name, personality), keys), episodes),
    )
    reader = Reader(scenario_of(name), personality, dims_for(name))
    for e in range(episodes):
        ours = jax.tree.map(lambda x, e=e: x[m, e], played)
        state = reader.reset(firsts[e], PRESETS[preset_of(name)])
        theirs, edge = twin_stats(state, twin_policy(name, policy), blocks[e])
        same = jax.tree.map(lambda a, b: abs(a - b) < 1e-3, ours, theirs)
        wrong = [f for f in EpisodeStats._fields if not all(map(np.all, jax.tree.leaves(getattr(same, f))))]
        assert edge or wrong == [], f"episode {e}"
        left_out += bool(wrong)
    assert left_out <= 1


@jax.jit
@jax.vmap
def noise_of(key: jax.Array) -> jax.Array:
    """(T, 16) noise of an episode, ticks 1 .. T."""
    return jax.vmap(partial(tick_noise, key))(jnp.arange(1, PLAN_TICKS + 1))


@partial(jax.jit, static_argnames="dims")
def deal(dims: Dims, params: Params, keys: jax.Array) -> State:
    """Tick 0 of episodes, (E,)."""
    states: State = jax.vmap(lambda key: start(dims, key, params))(keys)
    return states


def twin_stats(state: twin.State, choice: twin.Policy, blocks: np.ndarray) -> tuple[EpisodeStats, bool]:
    """An episode of the twin in the terms of a rollout, and whether rounding may have changed its course."""
    scenario, weights, memory = state.scenario, twin.REWARDS["evidence"], set[str]()
    ticks, points, verbs, edge = list[twin.Tick](), list[list[float]](), [0] * 6, False
    first, blind = scenario.horizon + 1, False
    while not state.done:
        u = twin.Draws._make(blocks[state.tick].tolist())
        edge |= on_an_edge(scenario, state.personality, u) or is_close_call(state, u)
        in_view = len(state.alerts)
        action = choice(state, memory, u)
        verbs[twin.VERBS.index(action[0])] += 1
        ticks.append(twin.step(state, action, u))
        parts = twin.channels(ticks[-1], weights)
        points.append([*parts.values(), twin.total(parts, weights)])
        if ticks[-1].containments and first > scenario.horizon:
            first, blind = state.tick, in_view == 0
    sums = np.sum(points, axis=0)
    left = scenario.horizon - state.tick
    return EpisodeStats(
        episode_return=sums[-1],
        channels=Channels(*sums[:-1]),
        signals=Signals(*np.sum([signals_of(t) for t in ticks], axis=0)),
        length=state.tick,
        end=END.index(state.end),
        succeeded=ticks[-1].stages_succeeded,
        downtime=sum(t.load for t in ticks) + ticks[-1].load * left,
        verbs=np.asarray(verbs),
        first_containment=first,
        blind=int(blind),
    ), edge


# --- (c) the published figures ---------------------------------------------------------------------------------------

FIRST = "supply_chain_token_drift"
RETURN_ERROR = 0.06  # standard error of the published mean returns
PUBLISHED_EPISODES = 4_000
PUBLISHED = [  # scenario, personality, policy, metric, figure
    (FIRST, "stealthy", "monitor", "return", -1.167),
    (FIRST, "aggressive", "monitor", "return", -3.216),
    (FIRST, "opportunistic", "monitor", "return", -2.284),
    (FIRST, "stealthy", "heuristic", "return", 1.622),
    (FIRST, "aggressive", "heuristic", "return", 3.900),
    (FIRST, "opportunistic", "heuristic", "return", 3.566),
    (FIRST, "stealthy", "random", "return", 2.062),
    (FIRST, "stealthy", "monitor", "exfil", 0.311),
    (FIRST, "aggressive", "monitor", "exfil", 0.5685),
    (FIRST, "opportunistic", "monitor", "exfil", 0.447),
    (FIRST, "stealthy", "monitor", "length", 31.79),
    (FIRST, "aggressive", "monitor", "length", 15.25),
    (FIRST, "opportunistic", "monitor", "length", 23.55),
]
PUBLISHED_N30 = [  # mean return of 30 episodes, the personality drawn anew in each
    ("supply_chain_token_drift", "random", 2.156),
    ("supply_chain_token_drift", "heuristic", 2.872),
    ("federated_identity_takeover", "random", 0.198),
    ("federated_identity_takeover", "heuristic", 2.985),
    ("insider_repo_pivot", "random", 2.905),
    ("insider_repo_pivot", "heuristic", 3.057),
    ("cloud_metadata_ssrf", "random", 1.723),
    ("cloud_metadata_ssrf", "heuristic", 3.048),
]
# Of all these figures together one in a hundred correct simulators would miss one.
PUBLISHED_LIMIT = 3.5


@pytest.mark.parametrize(("name", "personality", "policy", "metric", "figure"), PUBLISHED)
def test_published_figures(name: str, personality: str, policy: str, metric: str, figure: float) -> None:
    sample = our_sample(name, personality, policy)[METRICS.index(metric)]
    theirs = RETURN_ERROR if metric == "return" else sample.std() / math.sqrt(PUBLISHED_EPISODES)
    error = math.hypot(theirs, sample.std() / math.sqrt(len(sample)))
    assert abs(sample.mean() - figure) < PUBLISHED_LIMIT * error


@pytest.mark.parametrize(("name", "policy", "figure"), PUBLISHED_N30)
def test_published_figures_of_thirty_episodes(name: str, policy: str, figure: float) -> None:
    sample = our_sample(name, "any", policy)[0]
    error = sample.std() * math.sqrt(1 / 30 + 1 / len(sample))
    assert abs(sample.mean() - figure) < PUBLISHED_LIMIT * error


def test_early_isolation_always_earns_the_same() -> None:
    """Tick 1 nothing; tick 2 blocks the first stage in progress. 2.5 - 0.15 + 5 for no stage, less 0.08 x 0.6."""
    for personality in twin.PERSONALITIES:
        returns = our_sample(FIRST, personality, "early isolation")[0]
        assert returns.std() < 1e-6
        assert returns.mean() == pytest.approx(7.302, abs=1e-5)


# --- at full size ----------------------------------------------------------------------------------------------------


def compare_cells(episodes: int, jobs: int) -> Iterator[list[Compared]]:
    cells = [(*cell, policy) for cell in CAMPAIGN_CELLS for policy in ALL_POLICIES]
    # Fresh processes: JAX runs threads, which a fork would not survive.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        samples = pool.imap(partial(_sample_of, episodes), cells)
        for cell, theirs in zip(cells, samples, strict=True):
            yield compare_all(*cell, theirs)


def _sample_of(episodes: int, cell: tuple[str, str, str]) -> np.ndarray:
    return twin_sample(*cell, episodes)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare all means of both simulators and print how far they are apart."
    )
    parser.add_argument("--episodes", type=int, default=OUR_EPISODES, help="of the twin, for each cell and policy")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the twin")
    options = parser.parse_args()
    began, everything = time.time(), list[Compared]()
    print(f"{'largest |z|':>11}  cell and policy, {COMPARISONS} comparisons, {OUR_EPISODES} against {options.episodes}")
    print(f"{'':>11}  under hardened rules {int(OUR_EPISODES * HARDENED_SHARE)} against {options.episodes}")
    for compared in compare_cells(options.episodes, options.jobs):
        everything += compared
        worst = max(compared, key=lambda c: c.z)
        print(f"{worst.z:11.2f}  {worst.what}  {worst.ours:.4f} / {worst.theirs:.4f}", flush=True)
    ranked = sorted(everything, key=lambda c: -c.z)
    print(f"\nlargest |z| of all: {ranked[0].z:.2f}; limit {Z_LIMIT:.2f} (family-wise level {FAMILY_LEVEL})")
    for c in ranked[:10]:
        print(f"{c.z:11.2f}  {c.what}  {c.ours:.4f} / {c.theirs:.4f}")
    print(f"{sum(c.z > 1.96 for c in everything) / COMPARISONS:.3f} of |z| above 1.96; {time.time() - began:.0f} s")
    return int(any(c.z > c.allowed for c in everything))


if __name__ == "__main__":
    sys.exit(main())
