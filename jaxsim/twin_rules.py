"""What the scalar twin goes by, in plain Python: verbs, personalities, rules, the roles of an episode, and draws.

A draw u in [0, 1) becomes a value in one of three ways:

    happens with probability p      u < p
    real between a and b            a + u * (b - a)
    integer from low to high        min(high, low + floor(u * (high - low + 1)))
"""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    evidence_once: bool  # only the first containment of a target can be paid as evidence
    earned_clean: bool  # staying clean counts only if the defender stopped or found something
    foothold: bool  # a stage needs earlier ones to hold what they took, and is blocked when they lose it
    liftable: bool  # RESTORE is an action, and lifts isolation, egress block and revocation
    eradication: bool  # a patch of an isolated asset also rids it of the attacker
    believable_paths: float  # chance that under unknown_path only like plays like
    resumption: bool  # with RESTORE, a stage that was stopped in progress goes on where it was
    background_severity: tuple[float, float]  # least and most of a background alert
    background_paired: float  # share of those that name anyone that name an asset and an identity


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
    background_paired=0.0,
)
HARDENED1 = CLASSIC._replace(
    run_to_horizon=True,
    attack_probability=0.6,
    attack_delay=(0, 20),
    unknown_path=True,
    persistence=True,
    retry_delay=(3, 8),
    hide_personality=True,
    evidence_once=True,
    earned_clean=True,
)
HARDENED2 = HARDENED1._replace(foothold=True, liftable=True, eradication=True, resumption=True)
HARDENED = HARDENED2._replace(background_severity=(0.10, 0.90), background_paired=0.5)

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
