"""The scalar twin's rewards: what a tick pays in each channel.

Where the rules can be read in two ways, the reading taken is a switch below.
"""

import math

from jaxsim.twin_rules import clip
from jaxsim.twin_state import Tick

PASSIVE_ON_EXFIL = False  # the penalty for never acting is paid when the data got out as well

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
    "evidence_paid": 0.0,
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
    "evidence": {**LINEAR, "evidence_paid": 1.5},
}


def channels(tick: Tick, weights: Weights) -> dict[str, float]:
    return {
        "detection": weights["newly_confirmed"] * tick.newly_confirmed + weights["investigation"] * tick.investigations,
        "containment": weights["active_block"] * tick.active_blocks
        + weights["preemptive_block"] * tick.preemptive_blocks
        + weights["containment"] * tick.containments,
        "evidence_bonus": weights["evidence_paid"] * tick.evidence_paid,
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
