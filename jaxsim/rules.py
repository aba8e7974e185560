"""Presets of rules, the switches they are made of, and attacker personalities, as plain values."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
from chex import Array

from jaxsim.check import known, said
from jaxsim.types import Personality, Rules

Value = float | bool | tuple[int, int] | tuple[float, float]


class Switch(NamedTuple):
    """One hardening of the rules."""

    on: dict[str, Value]  # fields of Rules that it changes, and to what; none: it brings a verb, see `restores`
    closes: str  # the exploit
    costs: str  # in realism


_CLASSIC: dict[str, Value] = {
    "false_negative": 0.15,
    "false_positive": 0.12,
    "patch_penalty": 0.3,
    "background_named": 0.7,
    "load_isolated": 1.0,
    "load_egress": 0.4,
    "load_revoked": 0.3,
    "run_to_horizon": False,
    "attack_probability": 1.0,
    "attack_delay": (0, 0),
    "unknown_path": False,
    "persistence": False,
    "retry_delay": (1, 1),
    "hide_personality": False,
    "evidence_once": False,
    "earned_clean": False,
    "foothold": False,
    "eradication": False,
    "believable_paths": 0.0,
    "resumption": False,
    "background_severity": (0.10, 0.45),
    "background_paired": 0.0,
}
SWITCHES: dict[str, Switch] = {
    "run_to_horizon": Switch(
        {"run_to_horizon": True},
        "a blind containment that ends the episode is charged for one tick only",
        "a control can never be lifted, so it costs until the horizon even when the attack is long beaten; and nobody "
        "notices the exfil",
    ),
    "unknown_attack": Switch(
        {"attack_probability": 0.6, "attack_delay": (0, 20)},
        "acting at once is always right, because the attack always begins at tick 1",
        "six episodes in ten hold an attack; in a real network it is far fewer",
    ),
    "unknown_path": Switch(
        {"unknown_path": True},
        "a fixed list of targets beats reading, because the roles and their order never change",
        "an entity's name and kind say nothing about its part in the attack, and any asset can be the way out",
    ),
    "persistence": Switch(
        {"persistence": True, "retry_delay": (3, 8)},
        "luck or one block ends an attack; `reroutes` changes nothing",
        "the attacker never gives up, and a failure teaches it nothing",
    ),
    "hidden_personality": Switch(
        {"hide_personality": True},
        "a plan can be chosen by the attacker's personality, which the observation names",
        "none: no defender is told",
    ),
    "evidence_once": Switch(
        {"evidence_once": True},
        "one confirmed target is contained again and again, paid each time",
        "a second control on a confirmed target is not credited, though it may be right",
    ),
    "earned_clean": Switch(
        {"earned_clean": True},
        "the clean bonus is paid for an attack that failed by itself, or for a blind early containment",
        "deterrence that leaves no trace is not credited",
    ),
    "foothold": Switch(
        {"foothold": True},
        "investigating is worthless: what can be confirmed is compromised already, and cutting that off stops nothing",
        "an attacker has no second way back to what it lost but the alternatives of the scenario",
    ),
    "liftable": Switch(
        {},
        "a wrong containment costs until the end whatever is found out later, so it is no worse to guess than to look",
        "a control is lifted within a tick",
    ),
    "eradication": Switch(
        {"eradication": True},
        "what was confirmed must stay cut off for ever, so that containing and waiting is all there is to do",
        "a rebuild takes one tick and always works, and there is none of an identity",
    ),
    "believable_paths": Switch(
        {"believable_paths": 0.5},
        "names and kinds mean nothing, so that nothing known of networks helps",
        "in a small network few entities are alike, so that a list of targets is worth something again",
    ),
    "resumption": Switch(
        {"resumption": True},
        "with RESTORE, to cut off for one tick throws an attack back by a whole stage, whoever is compromised",
        "an attacker that is cut off loses nothing but time, however long it lasts",
    ),
    "severe_background": Switch(
        {"background_severity": (0.10, 0.90)},
        "a severe alert is of an attack, or of benign activity where the network has some, and needs no second look",
        "severity says nothing of background alerts, where a tuned sensor would rank them lower",
    ),
    "paired_background": Switch(
        {"background_paired": 0.5},
        "an alert that names two, an asset and an identity, is of an attack, or of benign activity where the network "
        "has some, and needs no second look",
        "any identity is seen at any asset, where in a real network each has its own",
    ),
}
# The default until simulator 1; witnesses, policies and adapters of that game keep a home.
_HARDENED1 = (
    "run_to_horizon",
    "unknown_attack",
    "unknown_path",
    "persistence",
    "hidden_personality",
    "evidence_once",
    "earned_clean",
)
# The default until simulator 2, likewise.
_HARDENED2 = (*_HARDENED1, "foothold", "liftable", "eradication", "resumption")
PRESETS: dict[str, tuple[str, ...]] = {
    "classic": (),
    "hardened1": _HARDENED1,
    "hardened2": _HARDENED2,
    "hardened": (*_HARDENED2, "severe_background", "paired_background"),
}

PERSONALITIES: dict[str, dict[str, float | bool]] = {
    "stealthy": {"dwell": 1.5, "detection": 0.55, "success": -0.05, "pause": 0.50, "reroutes": False},
    "aggressive": {"dwell": 0.6, "detection": 1.30, "success": 0.05, "pause": 0.00, "reroutes": False},
    "opportunistic": {"dwell": 1.0, "detection": 1.00, "success": 0.00, "pause": 0.15, "reroutes": True},
}
ANY = "any"


def switches(name: str) -> tuple[str, ...]:
    """The switches that are on under rules of a name: a preset, then any number of `+switch` and `-switch`.

    So `classic+persistence` has one on and `hardened-evidence_once` all but one. Raises ValueError for an unknown name,
    and for a switch that is on or off already.
    """
    preset, *changes = re.split("(?=[+-])", name) if isinstance(name, str) else [name]
    if not isinstance(name, str) or preset not in PRESETS:
        raise ValueError(f"rules {said(name)} are unknown; choose one of {', '.join(PRESETS)}, with +switch or -switch")
    on = dict.fromkeys(PRESETS[preset])
    for change in changes:
        switch = change[1:]
        if switch not in SWITCHES:
            raise ValueError(f"rules {name!r}: switch {switch!r} is unknown; choose one of {', '.join(SWITCHES)}")
        if (change[0] == "+") == (switch in on):
            raise ValueError(f"rules {name!r}: switch {switch!r} is {'on' if switch in on else 'off'} already")
        if change[0] == "+":
            on[switch] = None
        else:
            del on[switch]
    return tuple(on)


def restores(name: str) -> bool:
    """Whether the rules of a name bring the verb RESTORE: `Dims.restore`. Raises ValueError as `switches` does."""
    return "liftable" in switches(name)


def rules(name: str) -> Rules:
    """The rules of a name, see `switches`. Raises ValueError for an unknown name."""
    values = dict(_CLASSIC)
    for switch in switches(name):
        values |= SWITCHES[switch].on
    return Rules(**jax.device_put({k: _plain(v) for k, v in values.items()}))


def _plain(value: Value) -> Any:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, tuple):
        return np.asarray(value, np.float32 if isinstance(value[0], float) else np.int32)
    return np.float32(value)


def personalities(name: str) -> tuple[Personality, Array]:
    """All personalities, fields (P,), and the (P,) probabilities of `name`; "any" draws uniformly at each reset.

    Raises ValueError for an unknown name.
    """
    known("personality", name, (*PERSONALITIES, ANY))
    rows = list(PERSONALITIES.values())
    table = {k: np.asarray([r[k] for r in rows], bool if k == "reroutes" else np.float32) for k in Personality._fields}
    chosen = np.asarray([name in (p, ANY) for p in PERSONALITIES], np.float32)
    both: tuple[Personality, Array] = jax.device_put((Personality(**table), chosen / chosen.sum()))
    return both
