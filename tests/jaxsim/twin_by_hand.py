"""A network and plays of it by the scalar twin."""

from typing import Any

import scenarios
from jaxsim import twin, twin_rules, twin_state

# Each stage takes 3 ticks and succeeds, the first takes 1. Left alone, `enter` runs in ticks 1 to 2, `login` 2 to 5,
# `gather` 5 to 8, `send` 8 to 11; `probe` is the last choice.
NETWORK = scenarios.loads("""
format: 1
id: small
title: One way in, two to the middle
horizon: 40
noise_rate: 0.0
assets:
  - {id: door, kind: service, criticality: 0.4, segment: edge}
  - {id: desk, kind: host, criticality: 0.5, segment: office}
  - {id: pad, kind: host, criticality: 0.2, segment: office}
  - {id: vault, kind: datastore, criticality: 1.0, segment: data}
  - {id: kiosk, kind: host, criticality: 0.1, segment: edge}
identities:
  - {id: ann, role: clerk, privilege: 0.6}
  - {id: bob, role: admin, privilege: 1.0}
  - {id: cay, role: clerk, privilege: 0.2}
stages:
  - {id: enter, name: e, tactic: TA0001, technique: T1190, asset: door, dwell: [1, 1], success: 1.0, detection: 0.0,
     lag: [0, 0], compromises_asset: true}
  - {id: login, name: l, tactic: TA0006, technique: T1528, prerequisites: [enter], asset: desk, identity: ann,
     dwell: [3, 3], success: 1.0, detection: 0.0, lag: [0, 0], compromises_asset: true, compromises_identity: true}
  - {id: gather, name: g, tactic: TA0009, technique: T1213, prerequisites: [enter], any_prerequisites: [login, probe],
     asset: vault, identity: bob, dwell: [3, 3], success: 1.0, detection: 0.0, lag: [0, 0]}
  - {id: send, name: s, tactic: TA0010, technique: T1041, prerequisites: [enter, gather], asset: vault, dwell: [3, 3],
     success: 1.0, detection: 0.0, lag: [0, 0], exfil: true}
  - {id: probe, name: p, tactic: TA0007, technique: T1046, prerequisites: [enter], asset: pad, dwell: [3, 3],
     success: 1.0, detection: 0.0, lag: [0, 0]}
benign:
  - {id: backup, name: b, asset: pad, identity: cay, rate: 0.0, strength: 0.5, signal: data_staging}
""")

LASTING = twin_rules.CLASSIC._replace(run_to_horizon=True)

# Stages succeed, nobody pauses, nothing raises an alert, and forensics are right and sure.
CALM = twin_rules.Draws._make([0.99] * len(twin_rules.SLOTS))._replace(stage_success=0.0, dwell=0.0)


def begin(rules: twin_rules.Rules = LASTING, **switches: Any) -> twin_state.State:
    return twin_state.reset(NETWORK, "opportunistic", rules._replace(**switches))


def play(state: twin_state.State, *actions: str, u: twin_rules.Draws = CALM) -> twin_state.Tick:
    """One tick for each action; what happened on the last."""
    for text in actions:
        verb, _, target = text.partition(" ")
        tick = twin.step(state, (verb, target or None), u)
    return tick


def waiting(ticks: int, rules: twin_rules.Rules = LASTING, **switches: Any) -> twin_state.State:
    state = begin(rules, **switches)
    play(state, *["MONITOR"] * ticks)
    return state
