"""The simulator beside its plain-Python twin: episodes, either one's terms in the other's, and both side by side."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from cells import DIMS, EDGE, END, REWARDS, TOLERANCE, dims_for, scenario_of

import scenarios
from jaxsim import env, policies, reward, twin, twin_policies, twin_reward, twin_rules, twin_state
from jaxsim.names import action_text, entity_names, parse_plan
from jaxsim.one_episode import start, tick_noise
from jaxsim.types import (
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    PATCHED,
    RUNNING,
    Channels,
    Dims,
    Params,
    RewardWeights,
    Signals,
    State,
)

# --- the simulator: whole episodes of given actions ------------------------------------------------------------------


class Played(NamedTuple):
    """Ticks 1, 2, ... of an episode; rows after its end repeat the last state."""

    state: State
    signals: Signals
    channels: Channels  # under each of the rewards
    total: jax.Array
    block: jax.Array  # the noise of the tick


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


@partial(jax.jit, static_argnames="dims")
def deal(dims: Dims, params: Params, keys: jax.Array) -> State:
    """Tick 0 of episodes, (E,)."""
    states: State = jax.vmap(lambda key: start(dims, key, params))(keys)
    return states


# --- both in one tongue ----------------------------------------------------------------------------------------------


def named_action(scenario: scenarios.Scenario, dims: Dims, action: int) -> twin_state.Action:
    """The twin's form of an action; what is not in the table becomes an action on nobody."""
    text = action_text(action, scenario, dims)
    if text == "INVALID":
        return twin_rules.INVESTIGATE, "nobody"
    verb, _, target = text.partition(" ")
    return verb, target or None


class Reader:
    """Reads states of the simulator, as plain lists, into states of the twin."""

    def __init__(self, scenario: scenarios.Scenario, personality: str, dims: Dims = DIMS) -> None:
        self.scenario, self.personality, self.dims = scenario, personality, dims
        self.fresh = twin_state.reset(scenario, personality)
        self.places: list[int] = []  # of the stages in the order of preference at reset
        self.entities = entity_names(scenario, dims)
        self.stages = [stage.id for stage in scenario.stages]

    def reset(self, first: State, rules: twin_rules.Rules) -> twin_state.State:
        """The twin of tick 0, and what `read` is to take for granted from now on.

        It is read from the state of tick 1, in which nothing of what an episode is dealt can have changed.
        """
        targets = [(self.name(asset), self.name(identity)) for asset, identity in zip(*first.targets, strict=True)]
        benign = self.dims.stages + len(self.scenario.benign)
        dealt = twin_rules.Dealt(
            attack=first.attack,
            first_start=first.next_start,
            stages=tuple(targets[: len(self.stages)]),
            benign=tuple(targets[self.dims.stages : benign]),
            order=tuple(self.order(first)),
        )
        self.places = first.order
        self.fresh = twin_state.reset(self.scenario, self.personality, rules, dealt)
        return twin_state.reset(self.scenario, self.personality, rules, dealt)

    def order(self, s: State) -> list[str]:
        """The lowest first, the first listed of equals."""
        return [x for _, x in sorted(zip(s.order, self.stages, strict=False), key=lambda pair: pair[0])]

    def names(self, mask: list[bool]) -> set[str]:
        return {str(self.entities[i]) for i, on in enumerate(mask) if on}

    def name(self, entity: int) -> str | None:
        return self.entities[entity] if entity >= 0 else None

    def read(self, s: State, pending: bool = True) -> twin_state.State:
        """The twin of a state; `pending` False leaves the alerts in flight out."""
        cut_off = self.names(s.marks[CUT_OFF])
        return twin_state.State(
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
            status={x: status_of(s, k) for k, x in enumerate(self.stages)},
            tick=s.tick,
            done=s.end != RUNNING,
            end=END[s.end],
            current=self.fresh.stages[self.stages[s.stage]] if s.stage >= 0 else None,
            stage_end=s.stage_end,
            left={x: ticks for x, ticks in zip(self.stages, s.left, strict=False) if ticks},
            out=s.exfil,
            earned=s.earned,
            acted=s.acted,
            put_off={x for x, old, new in zip(self.stages, self.places, s.order, strict=False) if old != new},
            active_counted={x for k, x in enumerate(self.stages) if in_set(s.counted[0], k)},
            preemptive_counted={x for k, x in enumerate(self.stages) if in_set(s.counted[1], k)},
            ever_contained=self.names(s.touched),
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

    def alert(self, code: int, severity: float, visible: int) -> twin_state.Alert:
        signal, asset, identity = code & 7, (code >> 3 & 2**14 - 1) - 1, code >> 17
        at = identity + self.dims.assets - 1 if identity else -1
        return twin_state.Alert(twin_rules.SIGNALS[signal], self.name(asset), self.name(at), severity, visible)

    def in_flight(self, s: State) -> list[twin_state.Alert]:
        """Oldest first: row t mod L holds the stage that started at tick t."""
        code, due, severities = s.pending
        rows = [t % self.dims.max_lag for t in range(s.tick - self.dims.max_lag + 1, s.tick + 1)]
        return [
            self.alert(code[row], severities[row][i], due[row][i])
            for row in rows
            for i in (0, 1)
            if due[row][i] > s.tick
        ]

    def in_view(self, s: State) -> list[twin_state.Alert]:
        code, severity, tick, count = s.alerts
        slots = [n % self.dims.alerts for n in range(max(0, count - self.dims.alerts), count)]
        return [self.alert(code[i], severity[i], tick[i]) for i in slots]

    def results(self, s: State) -> list[twin_state.Forensic]:
        entity, compromised, confidence, tick, count = s.forensics
        slots = [n % self.dims.forensics for n in range(max(0, count - self.dims.forensics), count)]
        verdict = ("clean", "compromised")
        return [
            twin_state.Forensic(str(self.name(entity[i])), verdict[compromised[i]], confidence[i], tick[i])
            for i in slots
        ]


def in_set(words: list[int], stage: int) -> bool:
    """Whether a stage is in a set as `jaxsim.stages` keeps it."""
    return bool(words[stage // 32] >> stage % 32 & 1)


def status_of(state: State, stage: int) -> str:
    """The status of a stage, by name, of a state in plain Python; of one in several sets, several."""
    sets = {"idle": state.idle, "succeeded": state.done, "blocked": state.blocked}
    found = [name for name, words in sets.items() if in_set(words, stage)]
    found += ["in_progress"] * (state.stage == stage)
    return " and ".join(found) or "failed"


def rows(tree: Any, length: int) -> list[Any]:
    """The first `length` entries along the leading axis, leaves as plain Python."""
    leaves, shape = jax.tree.flatten(tree)
    return [shape.unflatten(row) for row in zip(*(x[:length].tolist() for x in leaves), strict=True)]


EXACT = (
    *("status", "tick", "done", "end", "current", "stage_end", "left", "acted", "isolated", "egress_blocked"),
    *("patched", "revoked", "compromised", "confirmed", "next_start", "out", "earned"),
    *("active_counted", "preemptive_counted", "ever_contained"),
)


def differences(ours: twin_state.State, theirs: twin_state.State) -> list[str]:
    """What two states do not agree in: all but severities and confidences to the letter."""
    found = [f for f in EXACT if getattr(ours, f) != getattr(theirs, f)]
    if choices(ours) != choices(theirs):
        found.append("order")
    for f in ("pending", "alerts", "forensics"):
        a, b = getattr(ours, f), getattr(theirs, f)
        if len(a) != len(b) or not all(map(same_record, a, b)):
            found.append(f)
    return found


def choices(state: twin_state.State) -> list[str]:
    """The stages that may still start, the most preferred first."""
    return [name for name in state.order if state.status[name] in ("idle", "in_progress")]


def same_record(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Alerts or forensic results alike but for the rounding of the one real number in them."""
    return a[-1] == b[-1] and a[:-2] == b[:-2] and abs(a[-2] - b[-2]) < TOLERANCE


def signals_of(tick: twin_state.Tick) -> Signals:
    """A tick of the twin in the simulator's terms."""
    left = tick.stages_total - tick.stages_succeeded
    return Signals(
        confirmed=tick.newly_confirmed,
        active_blocks=tick.active_blocks,
        preemptive_blocks=tick.preemptive_blocks,
        containments=tick.containments,
        evidence_paid=tick.evidence_paid,
        false_positives=tick.false_positives,
        load=tick.load,
        invalid=tick.invalid,
        exfil=tick.exfil,
        exfil_stages_left=left * tick.exfil,
        clean=tick.clean,
        stages_left=left * tick.other,
        passive=tick.other and not tick.acted,
        investigations=tick.investigations,
        evidence_backed=tick.evidence_backed,
        recontained=tick.recontained,
    )


def points_of(tick: twin_state.Tick) -> list[float]:
    """The seven channels and the total under each reward, the rewards one after the other."""
    found: list[float] = []
    for weights in REWARDS.values():
        parts = twin_reward.channels(tick, weights)
        found += [*(parts[name] for name in Channels._fields), twin_reward.total(parts, weights)]
    return found


def near(u: float, *thresholds: float) -> bool:
    return any(abs(u - t) < EDGE for t in thresholds)


def near_step(u: float, count: float) -> bool:
    """Whether a draw lies where floor(u x count) jumps."""
    return near(u * count / max(count, 1.0), round(u * count) / max(count, 1.0))


def on_an_edge(scenario: scenarios.Scenario, who: twin_rules.Personality, u: twin_rules.Draws) -> bool:
    """Whether single and double precision may part ways on these draws: one of them lies on a threshold."""
    rates = itertools.accumulate([scenario.noise_rate, *(activity.rate for activity in scenario.benign)])
    if near(u.forensic_error, 0.15, 0.12) or near(u.pause, who.pause) or near(u.background, *rates):
        return True
    low, high = twin_rules.HARDENED.retry_delay
    if near_step(u.dwell, high - low + 1):
        return True
    for s in scenario.stages:
        p = twin_rules.clip(s.success + who.bias, 0.05, 0.99)
        strength = twin_rules.clip(s.detection * who.detection, 0.0, 1.0)
        low, high = (max(1, round(d * who.dwell)) for d in s.dwell)
        span = s.lag[1] - s.lag[0] + 1
        if near(u.stage_success, p, max(0.05, p - 0.3)) or near_step(u.dwell, high - low + 1):
            return True
        if any(near(x, strength) for x in (u.alert_1, u.alert_2)):
            return True
        if any(near_step(x, span) for x in (u.lag_1, u.lag_2)):
            return True
    v, two = u.background_entity / 0.7, twin_rules.HARDENED.background_paired
    counts = [len(many) for many in (scenario.assets, scenario.identities) if many]
    pairs = math.prod(counts) if len(counts) == 2 else 1
    singles = (2 * v, 2 * (v - two) / (1 - two))  # where no alert names two, and where some do
    return (
        near_step(u.background / max(scenario.noise_rate, EDGE), 5)
        or near(v, two, 1)
        or near_step(v / two, pairs)
        or any(near(w, 1, 2) or near_step(w % 1, n) for w in singles for n in counts)
    )


# --- an episode with both --------------------------------------------------------------------------------------------


def first_difference(
    reader: Reader, plan: list[int], played: list[Played], rules: twin_rules.Rules = twin_rules.CLASSIC
) -> tuple[str, twin_rules.Draws] | None:
    """Play an episode again with the twin, on the noise of the simulator's, until they differ."""
    first = played[0].state
    state = reader.reset(first, rules)
    assert dealt_by(rules, reader.scenario, state.dealt)
    for action, row in zip(plan, played, strict=False):
        u = twin_rules.Draws._make(row.block)
        tick = twin.step(state, named_action(reader.scenario, reader.dims, action), u)
        found = differences(reader.read(row.state), state)
        found += [f for f, a, b in zip(Signals._fields, row.signals, signals_of(tick), strict=True) if differ(a, b)]
        ours = [x for r in range(len(REWARDS)) for x in (*(c[r] for c in row.channels), row.total[r])]
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


def dealt_by(rules: twin_rules.Rules, scenario: scenarios.Scenario, dealt: twin_rules.Dealt) -> bool:
    """Whether an episode may begin like this."""
    listed, (low, high) = twin_rules.as_listed(scenario), rules.attack_delay
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
    like: dict[str | None, Any] = {x.id: (x.kind, x.segment) for x in scenario.assets}
    like |= {x.id: x.role for x in scenario.identities} | {None: None}
    believable = rules.believable_paths < 1 or all(like[a] == like[b] for a, b in cast)
    return one_each and same_kind and believable and sorted(dealt.order) == sorted(listed.order)


def differ(a: float, b: float) -> bool:
    return abs(a - b) > TOLERANCE


def skipped(
    reader: Reader, plans: np.ndarray, played: Played, each: Sequence[twin_rules.Rules] = (twin_rules.CLASSIC,)
) -> int:
    """Compare every episode; how many went apart on the edge of a threshold. Any other difference fails.

    The rules of the episodes are `each` in turn.
    """
    who, count = twin_rules.PERSONALITIES[reader.personality], 0
    for e, length in enumerate(played.state.tick[:, -1].tolist()):
        episode = rows(jax.tree.map(lambda x, e=e: x[e], played), length)
        found = first_difference(reader, plans[e].tolist(), episode, each[e % len(each)])
        if found is not None:
            message, u = found
            assert on_an_edge(reader.scenario, who, u), f"episode {e}: {message}"
            count += 1
    return count


# --- policies of both ------------------------------------------------------------------------------------------------

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


def twin_policy(name: str, policy: str) -> twin_policies.Policy:
    if policy in PLANS:
        plan = plan_array(name, PLANS[policy])
        return twin_policies.plan([named_action(scenario_of(name), dims_for(name), int(a)) for a in plan])
    return {"random": twin_policies.random_policy, "heuristic": twin_policies.heuristic}[policy]


def is_close_call(state: twin_state.State, u: twin_rules.Draws) -> bool:
    """Whether rounding may change a choice: a severity on a threshold, two all but equal, or a draw on a step."""
    severities = [alert.severity for alert in state.alerts]
    pairs = itertools.combinations(severities, 2)
    counts = {len(state.criticality), len(state.privilege), len(state.criticality) + len(state.privilege)}
    return (
        any(near(s, 0.26, 0.48, 0.52) for s in severities)
        or any(0 < abs(a - b) < EDGE for a, b in pairs)
        or any(near_step(u.policy_verb, n) for n in (5, 6, 7))
        or any(near_step(u.policy_target, n) for n in counts)
    )
