"""Campaigns, small scenarios of every kind, rules and rewards that the simulator and its twin are compared under."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

import scenarios
from jaxsim import env, reward, twin_reward, twin_rules
from jaxsim.compile import dims_of
from jaxsim.types import (
    Dims,
    Params,
    RewardWeights,
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
  - {id: carol, role: clerk, privilege: 0.0}
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
LIFTABLE_DIMS = DIMS._replace(restore=True)  # and once more for rules that bring RESTORE
CELLS = list(itertools.product(SCENARIOS, twin_rules.PERSONALITIES))

# Played under hardened rules; and, under names of their own, with all switches on.
HARDENED = {name: scenarios.load(name) for name in scenarios.names("hardened")}
HARDENED_DIMS = dims_of(list(HARDENED.values()), restore=True)
EVERY_SWITCH = {f"{name}, all on": scenario for name, scenario in HARDENED.items()}

TOLERANCE = 1e-5  # single against double precision
EDGE = 1e-6  # draws this near to a threshold may fall on either side of it
STATUS = ("idle", "in_progress", "succeeded", "failed", "blocked")
END = (None, "exfil", "attacker_done", "horizon")
ALL_ON = "hardened+believable_paths"
PRESETS = {
    "classic": twin_rules.CLASSIC,
    "hardened1": twin_rules.HARDENED1,
    "hardened2": twin_rules.HARDENED2,
    "hardened": twin_rules.HARDENED,
    ALL_ON: twin_rules.HARDENED._replace(believable_paths=0.5),
}
SWITCHES = twin_rules.Rules._fields
LOOKING = {"investigation": -0.25}  # what no preset charges for
REWARDS = {**twin_reward.REWARDS, "looking": twin_reward.LINEAR | LOOKING}


def stack(many: Sequence[Any]) -> Any:
    """A pytree of the same kind with a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *many)


@cache
def all_rewards() -> RewardWeights:
    """Those of REWARDS, in that order."""
    rewards: RewardWeights = stack([*map(reward.weights, twin_reward.REWARDS), reward.weights("linear", **LOOKING)])
    return rewards


@cache
def params_of(name: str, personality: str) -> Params:
    return env.make_params(scenario_of(name), dims_for(name), preset_of(name), "evidence", personality)


def scenario_of(name: str) -> scenarios.Scenario:
    return (SCENARIOS | HARDENED | EVERY_SWITCH)[name]


def dims_for(name: str) -> Dims:
    return DIMS if name in SCENARIOS else HARDENED_DIMS


def preset_of(name: str) -> str:
    return "classic" if name in SCENARIOS else ALL_ON if name in EVERY_SWITCH else "hardened"
