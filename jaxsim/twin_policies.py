"""Policies for the scalar twin, in plain Python, and whole episodes played by one.

A policy reads of the state only what a defender may see: the tick, the controls, what is confirmed, the
alerts and the forensic results. Its memory is one set of targets, empty at reset.

Where the heuristic can be read in two ways, the reading taken is a switch below.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from jaxsim.twin import step
from jaxsim.twin_reward import CHANNELS, Weights, channels, total
from jaxsim.twin_rules import (
    BLOCK_EGRESS,
    CLASSIC,
    INVESTIGATE,
    ISOLATE,
    MONITOR,
    NOISE,
    PATCH,
    RESTORE,
    REVOKE,
    VERBS,
    Draws,
    Rules,
    deal,
    draw,
    pick,
)
from jaxsim.twin_state import Action, Alert, State, reset

# ---- readings ------------------------------------------------------------------------------------

CHOOSE_ONLY_TARGETED = False  # the alert it looks at is chosen among those that name a target
FALL_BACK_TO_IDENTITY = False  # once an alert's asset is isolated, go for the identity it also names
PATCH_ON_NOISE = True  # an asset named only by a background_noise alert is patched too

# ---- policies ------------------------------------------------------------------------------------

Policy = Callable[[State, set[str], Draws], Action]


def monitor(state: State, memory: set[str], u: Draws) -> Action:
    return MONITOR, None


def random_policy(state: State, memory: set[str], u: Draws) -> Action:
    assets, identities = list(state.criticality), list(state.privilege)
    targets: dict[str, Sequence[str | None]] = {
        MONITOR: [None],
        INVESTIGATE: assets + identities,
        ISOLATE: assets,
        BLOCK_EGRESS: assets,
        PATCH: assets,
        REVOKE: identities,
        RESTORE: assets + identities if state.rules.liftable else [],
    }
    verb = pick(u.policy_verb, [verb for verb in VERBS if targets[verb]])
    return verb, pick(u.policy_target, targets[verb])


def plan(actions: Sequence[Action]) -> Policy:
    """The given actions in order, then MONITOR."""

    def follow(state: State, memory: set[str], u: Draws) -> Action:
        return actions[state.tick] if state.tick < len(actions) else (MONITOR, None)

    return follow


def heuristic(state: State, memory: set[str], u: Draws) -> Action:
    """The first rule that applies; the memory holds what this policy has investigated."""
    return (
        contain_confirmed(state)
        or contain_suspect(state)
        or investigate_suspect(state, memory)
        or patch_named(state)
        or (MONITOR, None)
    )


def contain_confirmed(state: State) -> Action | None:
    if not state.confirmed:
        return None
    for asset in state.criticality:
        if asset in state.confirmed and asset not in state.isolated:
            return ISOLATE, asset
    for identity in state.privilege:
        if identity in state.confirmed and identity not in state.revoked:
            return REVOKE, identity
    return None


def worst_alert(state: State) -> Alert | None:
    """The alert in view of the highest severity, the earliest of equals, whether or not it names anything."""
    worst = None
    for alert in state.alerts:
        if alert.signal == NOISE or (CHOOSE_ONLY_TARGETED and not (alert.asset or alert.identity)):
            continue
        if worst is None or alert.severity > worst.severity:
            worst = alert
    return worst


def contain_suspect(state: State) -> Action | None:
    alert = worst_alert(state)
    if alert is None:
        return None
    asset, identity = alert.asset, alert.identity
    if asset and asset not in state.isolated and alert.severity >= 0.48:
        if alert.signal == "egress_anomaly" and asset not in state.egress_blocked:
            return BLOCK_EGRESS, asset
        return ISOLATE, asset
    by_identity = not asset or (FALL_BACK_TO_IDENTITY and asset in state.isolated)
    if by_identity and identity and identity not in state.revoked and alert.severity >= 0.52:
        return REVOKE, identity
    return None


def investigate_suspect(state: State, memory: set[str]) -> Action | None:
    alert = worst_alert(state)
    if alert is None or alert.severity < 0.26:
        return None
    target = alert.asset or alert.identity
    if target is None or target in memory:
        return None
    memory.add(target)
    return INVESTIGATE, target


def patch_named(state: State) -> Action | None:
    named = {alert.asset for alert in state.alerts if PATCH_ON_NOISE or alert.signal != NOISE}
    for asset in state.criticality:
        if asset in named and asset not in state.patched:
            return PATCH, asset
    return None


# ---- whole episodes ------------------------------------------------------------------------------


def episode(
    scenario: Any,
    personality: str,
    policy: Policy,
    weights: Weights,
    rng: random.Random,
    rules: Rules = CLASSIC,
) -> dict[str, float]:
    state, memory = reset(scenario, personality, rules, deal(scenario, rules, rng)), set[str]()
    sums = dict.fromkeys(("return", *CHANNELS, "newly_confirmed"), 0.0)
    while not state.done:
        u = draw(rng)
        tick = step(state, policy(state, memory, u), u)
        parts = channels(tick, weights)
        for name, value in parts.items():
            sums[name] += value
        sums["return"] += total(parts, weights)
        sums["newly_confirmed"] += tick.newly_confirmed
    return {
        **sums,
        "length": state.tick,
        "stages": tick.stages_succeeded,
        "exfil": float(state.out),
    }
