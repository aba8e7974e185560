"""The rules in plain Python: slow, readable, and written apart from the simulator it checks.

One tick takes a state, an action and one named set of uniform draws, so a test can hand the same draws to
both simulators and compare them step by step. A draw u in [0, 1) becomes a value in one of three ways:

    happens with probability p      u < p
    real between a and b            a + u * (b - a)
    integer from low to high        min(high, low + floor(u * (high - low + 1)))

Where the rules can be read in two ways, the reading taken is a switch below.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# ---- readings ------------------------------------------------------------------------------------

START_AFTER_END = True  # the next stage may start on the very tick on which one ended
BACKGROUND_DELAY = 0  # ticks until a background alert is seen
ACTED_MEANS_CONTAINED = False  # "the defender acted": only containments count, not INVESTIGATE
PASSIVE_ON_EXFIL = False  # the penalty for never acting is paid when the data got out as well
START_AFTER_EXFIL = True  # so it may on the tick on which the data got out, where that ends the episode
MOVED_KEEP_ORDER = True  # stages put last one after the other stay in the order in which they were preferred
COUNT_UNSUPPORTED = True  # under foothold an idle stage that gets contained is a preemptive block, supported or not

# ---- constants -----------------------------------------------------------------------------------

MONITOR = "MONITOR"
INVESTIGATE = "INVESTIGATE"
ISOLATE = "ISOLATE_ASSET"
BLOCK_EGRESS = "BLOCK_EGRESS"
PATCH = "PATCH_ASSET"
REVOKE = "REVOKE_IDENTITY"
RESTORE = "RESTORE"
VERBS = (MONITOR, INVESTIGATE, ISOLATE, BLOCK_EGRESS, PATCH, REVOKE, RESTORE)
ASSET_VERBS = (ISOLATE, BLOCK_EGRESS, PATCH)

NOISE = "background_noise"
SIGNALS = ("auth_anomaly", "lateral_movement", "data_staging", "egress_anomaly", NOISE)

ALERTS_SEEN = 12
FORENSICS_SEEN = 8


class Personality(NamedTuple):
    dwell: float  # multiplies the dwell of a stage
    detection: float  # multiplies the strength at which a stage shows
    bias: float  # added to the chance of success
    pause: float  # chance to hold still on a tick on which the defender acted
    reroutes: bool  # under persistence it leaves a stage that failed for last, else it insists on it


PERSONALITIES = {
    "stealthy": Personality(dwell=1.5, detection=0.55, bias=-0.05, pause=0.50, reroutes=False),
    "aggressive": Personality(dwell=0.6, detection=1.30, bias=0.05, pause=0.00, reroutes=False),
    "opportunistic": Personality(dwell=1.0, detection=1.00, bias=0.00, pause=0.15, reroutes=True),
}

# ---- rules ----------------------------------------------------------------------------------------


class Rules(NamedTuple):
    run_to_horizon: bool  # neither the data getting out nor an attacker at a loss ends an episode
    attack_probability: float
    attack_delay: tuple[int, int]  # ticks before the first stage may start
    unknown_path: bool  # who plays which role, and the attacker's order of preference, are drawn anew
    persistence: bool  # a stage that failed is tried again, and a failure or a block costs time
    retry_delay: tuple[int, int]  # that time, in ticks
    hide_personality: bool
    evidence_once: bool  # only the first containment of a target can be evidence-backed
    earned_clean: bool  # staying clean counts only if the defender stopped or found something
    foothold: bool  # a stage needs earlier ones to hold what they took, and is blocked when they lose it
    liftable: bool  # RESTORE is an action, and lifts isolation, egress block and revocation
    eradication: bool  # a patch of an isolated asset also rids it of the attacker
    believable_paths: float  # chance that under unknown_path only like plays like
    resumption: bool  # with RESTORE, a stage that was stopped in progress goes on where it was
    background_severity: tuple[float, float]  # least and most of a background alert


CLASSIC = Rules(
    run_to_horizon=False,
    attack_probability=1.0,
    attack_delay=(0, 0),
    unknown_path=False,
    persistence=False,
    retry_delay=(1, 1),
    hide_personality=False,
    evidence_once=False,
    earned_clean=False,
    foothold=False,
    liftable=False,
    eradication=False,
    believable_paths=0.0,
    resumption=False,
    background_severity=(0.10, 0.45),
)
HARDENED = Rules(
    run_to_horizon=True,
    attack_probability=0.6,
    attack_delay=(0, 20),
    unknown_path=True,
    persistence=True,
    retry_delay=(3, 8),
    hide_personality=True,
    evidence_once=True,
    earned_clean=True,
    foothold=False,
    liftable=False,
    eradication=False,
    believable_paths=0.0,
    resumption=False,
    background_severity=(0.10, 0.45),
)

Target = tuple[str | None, str | None]  # an asset and an identity


class Dealt(NamedTuple):
    """What is settled before the first tick of an episode."""

    attack: bool
    first_start: int  # tick before which no stage starts
    stages: tuple[Target, ...]  # in listed order
    benign: tuple[Target, ...]  # in listed order
    order: tuple[str, ...]  # stages, most preferred first


def as_listed(scenario: Any) -> Dealt:
    stages = tuple((stage.asset, stage.identity) for stage in scenario.stages)
    benign = tuple((activity.asset, activity.identity) for activity in scenario.benign)
    return Dealt(True, 1, stages, benign, tuple(stage.id for stage in scenario.stages))


def deal(scenario: Any, rules: Rules, rng: random.Random) -> Dealt:
    attack = rng.random() < rules.attack_probability
    dealt = as_listed(scenario)._replace(attack=attack, first_start=1 + rng.randint(*rules.attack_delay))
    if not rules.unknown_path:
        return dealt
    believable = rules.believable_paths > 0 and rng.random() < rules.believable_paths
    played_by: dict[str | None, str | None] = {None: None}
    for ids in interchangeable(scenario, believable):
        played_by.update(zip(ids, shuffled(ids, rng), strict=True))
    return dealt._replace(
        stages=tuple((played_by[asset], played_by[identity]) for asset, identity in dealt.stages),
        benign=tuple((played_by[asset], played_by[identity]) for asset, identity in dealt.benign),
        order=tuple(shuffled(dealt.order, rng)),
    )


def interchangeable(scenario: Any, believable: bool) -> list[list[str]]:
    """Groups of those who may play each other's roles."""
    sorts: dict[str, tuple[str, ...]] = {asset.id: ("asset", asset.kind, asset.segment) for asset in scenario.assets}
    sorts |= {identity.id: ("identity", identity.role) for identity in scenario.identities}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, sort in sorts.items():
        groups.setdefault(sort if believable else sort[:1], []).append(name)
    return list(groups.values())


def shuffled(items: Sequence[Any], rng: random.Random) -> list[Any]:
    return rng.sample(items, len(items))


# ---- noise ---------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """Every uniform number one tick may need; most ticks need few of them."""

    forensic_error: float
    forensic_confidence: float
    stage_success: float
    pause: float
    dwell: float
    alert_1: float
    lag_1: float
    severity_1: float
    alert_2: float
    lag_2: float
    severity_2: float
    background: float
    background_entity: float
    background_severity: float
    policy_verb: float
    policy_target: float


SLOTS = Draws._fields


def draw(rng: random.Random) -> Draws:
    return Draws._make([rng.random() for _ in SLOTS])


def real(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def integer(u: float, low: int, high: int) -> int:
    return min(high, low + math.floor(u * (high - low + 1)))


def pick(u: float, items: Sequence[Any]) -> Any:
    return items[min(len(items) - 1, math.floor(u * len(items)))]


def clip(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


# ---- state ---------------------------------------------------------------------------------------

Action = tuple[str, str | None]


class Alert(NamedTuple):
    signal: str
    asset: str | None
    identity: str | None
    severity: float
    visible: int  # first tick on which the defender sees it


class Forensic(NamedTuple):
    target: str
    verdict: str  # "compromised" or "clean"
    confidence: float
    tick: int


@dataclass(slots=True)
class State:
    scenario: Any
    personality_name: str
    personality: Personality
    rules: Rules
    dealt: Dealt
    stages: dict[str, Any]  # by id, with the targets of this episode, in listed order
    benign: list[Any]  # likewise
    order: list[str]  # stages, most preferred first
    next_start: int  # tick before which no stage starts
    criticality: dict[str, float]  # by asset, in listed order
    privilege: dict[str, float]  # by identity, in listed order
    named: set[str]  # targets that some stage names
    status: dict[str, str]  # by stage: idle, in_progress, succeeded, failed or blocked
    tick: int = 0
    done: bool = False
    end: str | None = None  # exfil, attacker_done or horizon
    current: Any = None  # the stage in progress
    left: dict[str, int] = field(default_factory=dict)  # by stage that was stopped: ticks of its dwell that are left
    stage_end: int = 0  # tick on which its dwell is over
    out: bool = False  # the data got out
    earned: bool = False  # a stage was blocked in progress or a containment was evidence-backed
    acted: bool = False  # the defender has taken a valid action other than MONITOR, or than a RESTORE of nothing
    put_off: set[str] = field(default_factory=set)  # stages left for last
    active_counted: set[str] = field(default_factory=set)  # stages that have counted as an active block
    preemptive_counted: set[str] = field(default_factory=set)  # likewise as a preemptive one
    ever_contained: set[str] = field(default_factory=set)  # targets, whether or not a control is still in force
    isolated: set[str] = field(default_factory=set)
    egress_blocked: set[str] = field(default_factory=set)
    patched: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    compromised: set[str] = field(default_factory=set)
    confirmed: set[str] = field(default_factory=set)
    pending: list[Alert] = field(default_factory=list)  # raised, not yet seen
    alerts: list[Alert] = field(default_factory=list)  # in view, oldest first
    forensics: list[Forensic] = field(default_factory=list)  # in view, oldest first


@dataclass(slots=True)
class Tick:
    """What happened on one tick. After the end of an episode every field keeps its zero."""

    newly_confirmed: int = 0
    investigations: int = 0
    active_blocks: int = 0
    preemptive_blocks: int = 0
    containments: int = 0
    evidence_backed: int = 0
    false_positives: int = 0
    invalid: bool = False
    load: float = 0.0
    done: bool = False  # the episode ended on this tick
    exfil: bool = False  # the data got out on this tick
    clean: bool = False  # the episode ended on this tick and no stage succeeded, as far as that counts
    other: bool = False  # it ended on this tick, neither so nor with the data out
    stages_succeeded: int = 0
    stages_total: int = 0
    acted: bool = False  # on this tick or an earlier one


def reset(scenario: Any, personality_name: str, rules: Rules = CLASSIC, dealt: Dealt | None = None) -> State:
    """Tick 0. Without `dealt` there is an attack at once, everyone in the role the scenario lists."""
    dealt = dealt or as_listed(scenario)
    return State(
        scenario=scenario,
        personality_name=personality_name,
        personality=PERSONALITIES[personality_name],
        rules=rules,
        dealt=dealt,
        stages={stage.id: aimed(stage, target) for stage, target in zip(scenario.stages, dealt.stages, strict=True)},
        benign=[aimed(activity, target) for activity, target in zip(scenario.benign, dealt.benign, strict=True)],
        order=list(dealt.order),
        next_start=dealt.first_start,
        criticality={asset.id: asset.criticality for asset in scenario.assets},
        privilege={identity.id: identity.privilege for identity in scenario.identities},
        named={target for targets in dealt.stages for target in targets if target},
        status={stage.id: "idle" for stage in scenario.stages},
    )


def aimed(activity: Any, target: Target) -> Any:
    """The stage or benign activity on this target."""
    if target == (activity.asset, activity.identity):
        return activity
    return activity.model_copy(update={"asset": target[0], "identity": target[1]})


def personality_seen(state: State) -> str | None:
    """What the defender is told of the attacker."""
    return None if state.rules.hide_personality else state.personality_name


# ---- one tick ------------------------------------------------------------------------------------


def step(state: State, action: Action, u: Draws) -> Tick:
    tick = Tick()
    if state.done:
        return tick
    state.tick += 1
    defender_moved = defend(state, action, u, tick)
    surface_alerts(state)
    ended = progress_stage(state, u, tick)
    if state.current is None and (START_AFTER_END or not ended):
        start_stage(state, defender_moved, u)
    block_contained(state, tick)
    background(state, u)
    tick.load = load(state)
    end_check(state, tick)
    return tick


def defend(state: State, action: Action, u: Draws, tick: Tick) -> bool:
    """Apply the action and say whether the attacker may pause over it: a valid one other than MONITOR and RESTORE."""
    verb, target = action
    if not is_valid(state, action):
        tick.invalid = True
        return False
    if target is None:
        return False
    if verb == RESTORE:
        restore(state, target)
        return False
    if verb == INVESTIGATE:
        investigate(state, target, u, tick)
    else:
        contain(state, verb, target, tick)
    state.acted = state.acted or verb != INVESTIGATE or not ACTED_MEANS_CONTAINED
    return True


def is_valid(state: State, action: Action) -> bool:
    verb, target = action
    if verb == MONITOR:
        return target is None
    if verb == RESTORE and not state.rules.liftable:
        return False
    if verb in (INVESTIGATE, RESTORE):
        return target in state.criticality or target in state.privilege
    if verb == REVOKE:
        return target in state.privilege
    return verb in ASSET_VERBS and target in state.criticality


def investigate(state: State, target: str, u: Draws, tick: Tick) -> None:
    tick.investigations += 1
    truly = target in state.compromised
    wrong = u.forensic_error < (0.15 if truly else 0.12)
    if truly:
        low, high = (0.40, 0.65) if wrong else (0.60, 0.95)
    else:
        low, high = (0.40, 0.60) if wrong else (0.55, 0.85)
    verdict = "compromised" if truly != wrong else "clean"
    confidence = real(u.forensic_confidence, low, high)
    state.forensics.append(Forensic(target, verdict, confidence, state.tick))
    del state.forensics[:-FORENSICS_SEEN]
    if truly and verdict == "compromised" and confidence >= 0.6 and target not in state.confirmed:
        state.confirmed.add(target)
        tick.newly_confirmed += 1


def contain(state: State, verb: str, target: str, tick: Tick) -> None:
    controls = {
        ISOLATE: state.isolated,
        BLOCK_EGRESS: state.egress_blocked,
        PATCH: state.patched,
        REVOKE: state.revoked,
    }
    backed = target in state.confirmed and not (state.rules.evidence_once and target in state.ever_contained)
    controls[verb].add(target)
    state.ever_contained.add(target)
    if state.rules.eradication and verb == PATCH and target in state.isolated:
        state.compromised.discard(target)
        state.confirmed.discard(target)
    state.earned = state.earned or backed
    tick.containments += 1
    tick.evidence_backed += backed
    tick.false_positives += not state.dealt.attack or target not in state.named


def restore(state: State, target: str) -> None:
    """Lift what is in force on the target and free the stages that it alone held; with nothing to lift do nothing."""
    controls = (state.isolated, state.egress_blocked, state.revoked)
    if not any(target in control for control in controls):
        return
    for control in controls:
        control.discard(target)
    state.acted = True
    for stage in state.stages.values():
        was_held = state.status[stage.id] == "blocked" and target in (stage.asset, stage.identity)
        if was_held and not is_contained(state, stage):
            state.status[stage.id] = "idle"


def surface_alerts(state: State) -> None:
    due = [alert for alert in state.pending if alert.visible <= state.tick]
    if due:
        state.pending = [alert for alert in state.pending if alert.visible > state.tick]
        show(state, due)


def show(state: State, alerts: list[Alert]) -> None:
    state.alerts.extend(alerts)
    del state.alerts[:-ALERTS_SEEN]


def is_contained(state: State, stage: Any) -> bool:
    return (
        stage.asset in state.isolated
        or stage.identity in state.revoked
        or (stage.exfil and stage.asset in state.egress_blocked)
    )


def is_ready(state: State, stage: Any) -> bool:
    """Whether a stage may start but for the controls on it."""
    return state.status[stage.id] == "idle" and is_supported(state, stage)


def is_supported(state: State, stage: Any) -> bool:
    """Whether a stage has what it needs from earlier ones."""
    for needed in stage.prerequisites:
        if not gives_foothold(state, needed):
            return False
    return not stage.any_prerequisites or any(gives_foothold(state, name) for name in stage.any_prerequisites)


def gives_foothold(state: State, name: str) -> bool:
    """Whether a stage succeeded and, as far as that counts, something that it took is held and not cut off."""
    if state.status[name] != "succeeded":
        return False
    if not state.rules.foothold:
        return True
    stage = state.stages[name]
    taken = [stage.asset] * stage.compromises_asset + [stage.identity] * stage.compromises_identity
    held = state.compromised - state.isolated - state.revoked
    return not taken or any(target in held for target in taken)


def progress_stage(state: State, u: Draws, tick: Tick) -> bool:
    """Block or finish the stage in progress and say whether it ended."""
    stage = state.current
    if stage is None:
        return False
    contained = is_contained(state, stage)
    if contained or not is_supported(state, stage):
        # One that has only lost its foothold may start again when it has another.
        state.status[stage.id] = "blocked" if contained else "idle"
        state.earned = True
        tick.active_blocks += stage.id not in state.active_counted
        state.active_counted.add(stage.id)
        if state.rules.resumption and state.rules.liftable:
            state.left[stage.id] = max(1, state.stage_end - state.tick)
        else:
            hold_off(state, u)
    elif state.tick < state.stage_end:
        return False
    elif u.stage_success < success_chance(state, stage):
        state.status[stage.id] = "succeeded"
        if stage.compromises_asset:
            state.compromised.add(stage.asset)
        if stage.compromises_identity:
            state.compromised.add(stage.identity)
        if stage.exfil:
            state.out = tick.exfil = True
    elif state.rules.persistence:
        state.status[stage.id] = "idle"
        reorder(state, stage)
        hold_off(state, u)
    else:
        state.status[stage.id] = "failed"
    state.current = None
    return True


def reorder(state: State, stage: Any) -> None:
    """Prefer a stage that just failed to none, or to all, of the others."""
    state.order.remove(stage.id)
    if not state.personality.reroutes:
        state.order.insert(0, stage.id)
        return
    state.order.append(stage.id)
    state.put_off.add(stage.id)
    if MOVED_KEEP_ORDER:
        place = state.dealt.order.index
        state.order.sort(key=lambda name: (name in state.put_off, place(name)))


def hold_off(state: State, u: Draws) -> None:
    if state.rules.persistence:
        state.next_start = state.tick + integer(u.dwell, *state.rules.retry_delay)


def success_chance(state: State, stage: Any) -> float:
    chance = clip(stage.success + state.personality.bias, 0.05, 0.99)
    return max(0.05, chance - 0.3) if stage.asset in state.patched else chance


def start_stage(state: State, defender_moved: bool, u: Draws) -> None:
    if not state.dealt.attack or state.tick < state.next_start:
        return
    if state.out and (state.rules.run_to_horizon or not START_AFTER_EXFIL):
        return
    if defender_moved and u.pause < state.personality.pause:
        return
    for name in state.order:
        stage = state.stages[name]
        if is_ready(state, stage) and not is_contained(state, stage):
            break
    else:
        return
    low, high = stage.dwell
    low = max(1, round(low * state.personality.dwell))
    high = max(low, round(high * state.personality.dwell))
    state.status[stage.id] = "in_progress"
    state.current = stage
    if stage.id in state.left:  # it goes on, which is no event to be seen
        state.stage_end = state.tick + state.left.pop(stage.id)
        return
    state.stage_end = state.tick + integer(u.dwell, low, high)

    strength = clip(stage.detection * state.personality.detection, 0.0, 1.0)
    if u.alert_1 < strength:
        raise_alert(state, stage, strength, u.lag_1, u.severity_1)
    if u.alert_2 < strength:
        raise_alert(state, stage, strength, u.lag_2, u.severity_2)


def raise_alert(state: State, stage: Any, strength: float, lag: float, severity: float) -> None:
    visible = state.tick + max(1, integer(lag, *stage.lag))
    state.pending.append(Alert(stage.signal, stage.asset, stage.identity, seen_as(strength, severity), visible))


def seen_as(strength: float, u: float) -> float:
    """Severity of an alert of something that shows with this strength."""
    return clip(strength + real(u, -0.15, 0.20), 0.05, 1.0)


def block_contained(state: State, tick: Tick) -> None:
    if not state.dealt.attack:
        return
    for stage in state.stages.values():
        if state.status[stage.id] == "idle" and is_contained(state, stage):
            state.status[stage.id] = "blocked"
            counted = stage.id in state.preemptive_counted or stage.id in state.active_counted
            if not counted and (COUNT_UNSUPPORTED or not state.rules.foothold or is_supported(state, stage)):
                tick.preemptive_blocks += 1
                state.preemptive_counted.add(stage.id)


def background(state: State, u: Draws) -> None:
    rate = state.scenario.noise_rate
    if u.background < rate:
        signal = pick(u.background / rate, SIGNALS)
        asset, identity = background_entity(state, u.background_entity)
        severity = real(u.background_severity, *state.rules.background_severity)
        show_routine(state, Alert(signal, asset, identity, severity, state.tick + BACKGROUND_DELAY))
        return
    for activity in state.benign:
        rate += activity.rate
        if u.background < rate:
            severity = seen_as(activity.strength, u.background_severity)
            visible = state.tick + BACKGROUND_DELAY
            show_routine(state, Alert(activity.signal, activity.asset, activity.identity, severity, visible))
            return


def show_routine(state: State, alert: Alert) -> None:
    if BACKGROUND_DELAY:
        state.pending.append(alert)
    else:
        show(state, [alert])


def background_entity(state: State, u: float) -> tuple[str | None, str | None]:
    """An asset, an identity or neither; a kind of which there is none leaves its share to the other."""
    if u >= 0.7:
        return None, None
    w = u / 0.7
    first_half = w < 0.5
    within = 2 * w if first_half else 2 * w - 1
    assets, identities = state.scenario.assets, state.scenario.identities
    if assets and (first_half or not identities):
        return pick(within, assets).id, None
    if identities:
        return None, pick(within, identities).id
    return None, None


def load(state: State) -> float:
    total = 0.0
    if state.isolated:
        total += sum(c for asset, c in state.criticality.items() if asset in state.isolated)
    if state.egress_blocked:
        total += 0.4 * sum(c for asset, c in state.criticality.items() if asset in state.egress_blocked)
    if state.revoked:
        total += 0.3 * sum(p for identity, p in state.privilege.items() if identity in state.revoked)
    return total


def end_check(state: State, tick: Tick) -> None:
    over = state.tick >= state.scenario.horizon
    if state.out and (over or not state.rules.run_to_horizon):
        state.end = "exfil"
    elif not state.rules.run_to_horizon and is_at_a_loss(state):
        state.end = "attacker_done"
    elif over:
        state.end = "horizon"
    state.done = tick.done = state.end is not None
    tick.stages_succeeded = list(state.status.values()).count("succeeded")
    tick.stages_total = len(state.stages)
    tick.acted = state.acted
    if state.done and not state.out:
        tick.clean = tick.stages_succeeded == 0 and (state.earned or not state.rules.earned_clean)
        tick.other = not tick.clean


def is_at_a_loss(state: State) -> bool:
    return state.current is None and not any(is_ready(state, stage) for stage in state.stages.values())


# ---- reward --------------------------------------------------------------------------------------

Weights = dict[str, float]

CHANNELS = (
    "detection",
    "containment",
    "evidence_bonus",
    "false_positive",
    "disruption",
    "invalid_action",
    "terminal",
)

LINEAR: Weights = {
    "newly_confirmed": 1.5,
    "investigation": 0.0,
    "active_block": 2.5,
    "preemptive_block": 0.4,
    "containment": -0.15,
    "evidence_backed": 0.0,
    "false_positive": -0.6,
    "load": -0.08,
    "disruption_floor": -math.inf,  # the disruption channel is never below it
    "invalid": -0.6,
    "exfil": -6.0,
    "untouched": 5.0,  # a clean end
    "stage_saved": 0.6,  # for each stage that did not succeed
    "passive": -1.5,  # the defender never acted
    "clip": 5.0,  # bound of a tick's reward without the terminal channel
}

REWARDS: dict[str, Weights] = {
    "capped": {**LINEAR, "disruption_floor": -0.6},
    "linear": LINEAR,
    "evidence": {**LINEAR, "evidence_backed": 1.5},
}


def channels(tick: Tick, weights: Weights) -> dict[str, float]:
    return {
        "detection": weights["newly_confirmed"] * tick.newly_confirmed + weights["investigation"] * tick.investigations,
        "containment": weights["active_block"] * tick.active_blocks
        + weights["preemptive_block"] * tick.preemptive_blocks
        + weights["containment"] * tick.containments,
        "evidence_bonus": weights["evidence_backed"] * tick.evidence_backed,
        "false_positive": weights["false_positive"] * tick.false_positives,
        "disruption": max(weights["disruption_floor"], weights["load"] * tick.load),
        "invalid_action": weights["invalid"] * tick.invalid,
        "terminal": terminal(tick, weights),
    }


def terminal(tick: Tick, weights: Weights) -> float:
    saved = weights["stage_saved"] * (tick.stages_total - tick.stages_succeeded)
    passive = 0.0 if tick.acted else weights["passive"]
    if tick.exfil:
        return weights["exfil"] + saved + (passive if PASSIVE_ON_EXFIL else 0.0)
    if tick.clean:
        return weights["untouched"]
    return saved + passive if tick.other else 0.0


def total(channels: dict[str, float], weights: Weights) -> float:
    bound = weights["clip"]
    return clip(sum(channels.values()) - channels["terminal"], -bound, bound) + channels["terminal"]
