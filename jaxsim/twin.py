"""The rules in plain Python: slow, readable, and written apart from the simulator it checks.

One tick takes a state, an action and one named set of uniform draws, so a test can hand the same draws to
both simulators and compare them step by step.

Where the rules can be read in two ways, the reading taken is a switch below.
"""

from typing import Any

from jaxsim.twin_rules import (
    ALERTS_SEEN,
    ASSET_VERBS,
    BLOCK_EGRESS,
    FORENSICS_SEEN,
    INVESTIGATE,
    ISOLATE,
    MONITOR,
    PATCH,
    RESTORE,
    REVOKE,
    SIGNALS,
    Draws,
    clip,
    integer,
    pick,
    real,
)
from jaxsim.twin_state import Action, Alert, Forensic, State, Tick

# ---- readings ------------------------------------------------------------------------------------

START_AFTER_END = True  # the next stage may start on the very tick on which one ended
BACKGROUND_DELAY = 0  # ticks until a background alert is seen
ACTED_MEANS_CONTAINED = False  # "the defender acted": only containments count, not INVESTIGATE
START_AFTER_EXFIL = True  # so it may on the tick on which the data got out, where that ends the episode
MOVED_KEEP_ORDER = True  # stages put last one after the other stay in the order in which they were preferred
COUNT_UNSUPPORTED = True  # under foothold an idle stage that gets contained is a preemptive block, supported or not

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
    backed = target in state.confirmed
    tick.recontained += verb != PATCH and target in state.ever_contained and not in_force(state, target)
    paid = backed and not (state.rules.evidence_once and target in state.ever_contained)
    controls[verb].add(target)
    state.ever_contained.add(target)
    if state.rules.eradication and verb == PATCH and target in state.isolated:
        state.compromised.discard(target)
        state.confirmed.discard(target)
    state.earned = state.earned or paid
    tick.containments += 1
    tick.evidence_paid += paid
    tick.evidence_backed += backed
    tick.false_positives += not state.dealt.attack or target not in state.named


def in_force(state: State, target: str) -> list[set[str]]:
    """The controls that a RESTORE of the target would lift."""
    return [control for control in (state.isolated, state.egress_blocked, state.revoked) if target in control]


def restore(state: State, target: str) -> None:
    """Lift what is in force on the target and free the stages that it alone held; with nothing to lift do nothing."""
    if not (controls := in_force(state, target)):
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
        if stage.loss:
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
    """An asset, an identity, both or neither; a kind of which there is none leaves its share to the other."""
    if u >= 0.7:
        return None, None
    w = u / 0.7
    assets, identities = state.scenario.assets, state.scenario.identities
    two = state.rules.background_paired if assets and identities else 0.0
    if w < two:
        asset, identity = pick(w / two, [(a.id, i.id) for a in assets for i in identities])
        return asset, identity
    w = (w - two) / (1 - two)
    first_half = w < 0.5
    within = 2 * w if first_half else 2 * w - 1
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
