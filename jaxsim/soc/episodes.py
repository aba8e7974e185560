"""Episodes that have been played, as plain data: what the defender saw and did, and what was true."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

import scenarios
from jaxsim import actions, check, env, one_episode, telemetry
from jaxsim.names import end_name, entity_names
from jaxsim.noise import Noise
from jaxsim.response import Response, mark, no_response
from jaxsim.rules import PERSONALITIES
from jaxsim.types import (
    CUT_OFF,
    IDLE,
    IN_PROGRESS,
    INVESTIGATE,
    MONITOR,
    PATCH_ASSET,
    RUNNING,
    STATUSES,
    SUCCEEDED,
    VERBS,
    Alerts,
    Dims,
    Params,
    Signals,
    State,
)

INVALID = "INVALID"  # the verb of an action that is none


class Alert(NamedTuple):
    """An alert as the defender sees it."""

    number: int  # in order of arrival, from 0
    tick: int  # when it became visible
    signal: str  # one of scenarios.SIGNALS
    asset: str | None  # id
    identity: str | None  # id
    severity: float  # 0..1


class Deed(NamedTuple):
    """What the defender did in a tick, and what it was told of it."""

    tick: int
    verb: str  # one of jaxsim.types.VERBS but MONITOR, or INVALID
    target: str | None  # id of an asset or identity
    changed: bool  # a control was set or lifted, or the target confirmed as compromised
    rebuilt: bool  # the patch was of an isolated asset, and the rules rebuild it
    verdict: bool | None  # of an investigation: compromised
    confidence: float | None  # of an investigation, 0..1


class Cause(NamedTuple):
    """Where an alert comes from: a stage, a benign activity, each with its id, or the background."""

    kind: Literal["stage", "benign", "background"]
    id: str | None


class Step(NamedTuple):
    """A stage that the attacker began, with the targets of this episode."""

    stage: scenarios.Stage
    asset: str | None
    identity: str | None
    begun: tuple[int, ...]  # ticks, one for each try
    ended: int | None  # tick on which it last succeeded, failed or was blocked; None while in progress
    outcome: str  # succeeded, failed, blocked or in progress
    after: tuple[str, ...]  # ids of the stages that it needed and that had succeeded


class Episode(NamedTuple):
    """An episode, number `number` of its key."""

    number: int
    ticks: int
    alerts: tuple[Alert, ...]
    deeds: tuple[Deed, ...]
    # The truth from here on.
    causes: tuple[Cause, ...]  # of the alerts
    attack: bool
    personality: str
    steps: tuple[Step, ...]  # in order of beginning
    end: str  # exfil, impact, attacker done, horizon or running
    containments: int
    evidence_backed: int  # containments of what was confirmed before
    false_containments: int
    response: Response  # ints
    unopposed: tuple[str, ...]  # ids of the stages that succeed when the defender does nothing


class Tick(NamedTuple):
    """What is kept of a tick, an axis T in front. Rows after the end of an episode repeat its last state."""

    alerts: Alerts  # in view
    count: Array  # () int32, alerts so far
    status: Array  # (S,) int8, stage status
    begun: Array  # () int32, stage that began anew, -1 if none
    due: Array  # (2,) int32, ticks on which its alerts become visible, 0 = no alert
    background: Array  # () float32, the draw that decides on an alert that no stage raises
    verb: Array  # () int32
    target: Array  # () int32, entity
    valid: Array  # () bool
    changed: Array  # () bool
    rebuilt: Array  # () bool
    verdict: Array  # () bool, the newest forensic result
    confidence: Array  # () float32, its confidence
    signals: Signals
    live: Array  # () bool, the episode went on in this tick


def _tick(dims: Dims, params: Params, before: State, action: Array, block: Array) -> tuple[State, Tick]:
    verb, target, valid = actions.decode(dims, action, params.scenario.exists)
    after, signals = env.transition(dims, before, action, block, params)
    k = jnp.maximum(after.stage, 0)
    begins = (after.stage >= 0) & (before.status[k] != IN_PROGRESS) & (before.left[k] == 0)
    newest = (after.forensics.count - 1) % dims.forensics
    return after, Tick(
        alerts=telemetry.view(dims, after.alerts),
        count=after.alerts.count,
        status=after.status.astype(jnp.int8),
        begun=jnp.where(begins, k, -1),
        due=after.pending.due[after.tick % dims.max_lag],
        background=block[Noise.BACKGROUND],
        verb=verb,
        target=target,
        valid=valid,
        changed=jnp.any(after.marks != before.marks),
        rebuilt=(verb == PATCH_ASSET) & before.marks[CUT_OFF, target] & params.rules.eradication,
        verdict=after.forensics.compromised[newest],
        confidence=after.forensics.confidence[newest],
        signals=signals,
        live=before.end == RUNNING,
    )


@partial(jax.jit, static_argnames=("dims", "impl"))
def _watch(dims: Dims, params: Params, keys: Array, impl: str, plans: Array) -> tuple[State, Response, Tick]:
    """(last state, response, ticks) of episodes, (E,) each."""

    def one(key: Array, plan: Array) -> tuple[State, Response, Tick]:
        def tick(carry: tuple[State, Response], action: Array) -> Any:
            before, so_far = carry
            block = one_episode.tick_noise(key, before.tick + 1)
            after, row = _tick(dims, params, before, action, block)
            return (after, mark(dims, so_far, before, after)), row

        first = one_episode.start(dims, key, params)
        (last, response), ticks = jax.lax.scan(tick, (first, no_response()), plan)
        return last, response, ticks

    watched: tuple[State, Response, Tick] = jax.vmap(one)(jax.random.wrap_key_data(keys, impl=impl), plans)
    return watched


def episodes(
    scenario: scenarios.Scenario, env_: env.Env, params: Params, key: Array, first: int, plans: Array
) -> Iterator[Episode]:
    """Episodes first .. first + E - 1 of `key`, in which `plans`, (E, T) int32, were taken.

    The actions are those of `rollouts.Trajectory`. Raises ValueError for an argument that is no such thing.
    """
    check.kind("scenario", scenario, scenarios.Scenario, "one of `load_scenario`")
    check.kind("env_", env_, env.Env, "the one that `make` returns")
    check.kind("params", params, Params, "those that `make` returns")
    check.key("key", key)
    check.actions("plans", plans, (None, None))
    dims, keys = env_.dims, one_episode.episode_keys(key, len(plans), first)
    bare = params._replace(reward=None)  # type: ignore[arg-type]  # no export knows of points
    data, impl = jax.random.key_data(keys), str(jax.random.key_impl(keys))
    chosen = jnp.asarray(plans, jnp.int32)
    played = jax.tree.map(np.asarray, _watch(dims, bare, data, impl, chosen))
    idle = jax.tree.map(np.asarray, _watch(dims, bare, data, impl, jnp.full_like(chosen, MONITOR))[0]).status
    for e in range(len(plans)):
        last, response, ticks = jax.tree.map(lambda x, e=e: x[e], played)
        yield _episode(scenario, dims, first + e, last, response, ticks, idle[e])


def _episode(
    scenario: scenarios.Scenario, dims: Dims, number: int, last: State, response: Response, ticks: Tick, idle: Any
) -> Episode:
    length = int(last.tick)
    rows = jax.tree.map(lambda x: x[:length], ticks)
    names = entity_names(scenario, dims)
    alerts, causes = _alerts(scenario, dims, names, rows)

    def total(signal: np.ndarray) -> int:
        return round(float(signal.sum(dtype=float)))

    return Episode(
        number=number,
        ticks=length,
        alerts=tuple(alerts),
        deeds=tuple(_deeds(names, rows)),
        causes=tuple(causes),
        attack=bool(last.attack),
        personality=list(PERSONALITIES)[int(last.who)],
        steps=tuple(_steps(scenario, names, last, rows)),
        end=end_name(scenario, int(last.end), last.status),
        containments=total(rows.signals.containments),
        evidence_backed=total(rows.signals.evidence_backed),
        false_containments=total(rows.signals.false_positives),
        response=Response(*map(int, response)),
        unopposed=tuple(s.id for s, now in zip(scenario.stages, idle, strict=False) if now == SUCCEEDED),
    )


def _alerts(
    scenario: scenarios.Scenario, dims: Dims, names: list[str | None], rows: Tick
) -> tuple[list[Alert], list[Cause]]:
    """The alerts that came into view, and their causes.

    In a tick those come first that stages raised, the one that began first before the others: `telemetry.surface`.
    """
    alerts, causes = list[Alert](), list[Cause]()
    raised: list[list[Cause]] = [[] for _ in range(len(rows.begun) + dims.max_lag + 1)]  # by tick
    before = 0
    for t, (begun, due, u, count) in enumerate(zip(rows.begun, rows.due, rows.background, rows.count, strict=True), 1):
        view, whose = rows.alerts, raised[t]
        if len(whose) < count - before:
            whose = [*whose, _routine(scenario, u)]
        cause_of = dict(zip(range(before, count), whose, strict=True))
        number = view.number[t - 1]
        for slot in sorted(np.flatnonzero(number >= before), key=lambda slot: number[slot]):
            asset, identity = (
                names[e] if e >= 0 else None for e in (view.asset[t - 1, slot], view.identity[t - 1, slot])
            )
            signal, severity = scenarios.SIGNALS[view.signal[t - 1, slot]], float(view.severity[t - 1, slot])
            alerts.append(Alert(int(number[slot]), t, signal, asset, identity, severity))
            causes.append(cause_of[int(number[slot])])
        before = int(count)
        if begun >= 0:
            for d in due[due > 0]:
                raised[d].append(Cause("stage", scenario.stages[begun].id))
    return alerts, causes


def _routine(scenario: scenarios.Scenario, u: Any) -> Cause:
    """What an alert that no stage raised comes from, by the draw that decided on it: see `telemetry.background`."""
    edge = np.float32(scenario.noise_rate)
    for activity in scenario.benign:
        before, edge = edge, edge + np.float32(activity.rate)
        if before <= u < edge:
            return Cause("benign", activity.id)
    return Cause("background", None)


def _deeds(names: list[str | None], rows: Tick) -> Iterator[Deed]:
    for t, (verb, target, valid, changed, rebuilt, verdict, confidence) in enumerate(
        zip(rows.verb, rows.target, rows.valid, rows.changed, rows.rebuilt, rows.verdict, rows.confidence, strict=True),
        start=1,
    ):
        if not valid:
            yield Deed(t, INVALID, None, False, False, None, None)
        elif verb != MONITOR:
            result = (bool(verdict), float(confidence)) if verb == INVESTIGATE else (None, None)
            yield Deed(t, VERBS[verb], names[target], bool(changed), bool(rebuilt), *result)


def _steps(scenario: scenarios.Scenario, names: list[str | None], last: State, rows: Tick) -> list[Step]:
    found = []
    for k, stage in enumerate(scenario.stages):
        begun = np.flatnonzero(rows.begun == k)
        if not len(begun):
            continue
        running = rows.status[:, k] == IN_PROGRESS
        stopped = np.flatnonzero(running[:-1] & ~running[1:])
        now = int(last.status[k])  # IDLE: it could be tried again
        had = {s.id for s, x in zip(scenario.stages, rows.status[begun[0]], strict=False) if x == SUCCEEDED}
        needed = [x for x in (*stage.prerequisites, *stage.any_prerequisites) if x in had]
        who = [names[e] if e >= 0 else None for e in last.targets[:, k]]
        found.append(
            Step(
                stage=stage,
                asset=who[0],
                identity=who[1],
                begun=tuple(int(t) + 1 for t in begun),
                ended=int(stopped[-1]) + 2 if len(stopped) and not running[-1] else None,
                outcome="blocked" if last.left[k] else "failed" if now == IDLE else STATUSES[now],
                after=tuple(needed),
            )
        )
    return sorted(found, key=lambda step: step.begun[0])
