"""What an import assumes where an incident report gives no number: `priors.json`, by setting, each with its source.

>>> from scenarios import priors
>>> priors.attack_minutes("central")
Sourced(value=2880, source='unit42-2026')
"""

import json
import math
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from scenarios.model import MAX_LAG, TICK_MINUTES

SETTINGS = ("pessimistic", "central", "optimistic")


class Sourced(NamedTuple):
    value: Any
    source: str  # a key of `sources()`


@cache
def table() -> dict[str, Any]:
    """All of `priors.json`."""
    found: dict[str, Any] = json.loads(files("scenarios").joinpath("priors.json").read_text(encoding="utf-8"))
    return found


def sources() -> dict[str, str]:
    """What each source is, in a line."""
    return dict(table()["sources"])


def attack_minutes(setting: str) -> Sourced:
    """How long an undisturbed attack takes, from its first stage to the loss."""
    return Sourced(*table()["attack_minutes"][setting])


def attack_succeeds(setting: str) -> Sourced:
    """The chance that it comes to its loss at the first try."""
    return Sourced(*table()["attack_succeeds"][setting])


def detection(tactic: str, technique: str, setting: str) -> Sourced:
    """The strength with which a stage shows: each of its two draws of an alert has this chance."""
    told = table()["alerted"]
    parent = technique.partition(".")[0]
    of = told["techniques"]
    rate, source = of.get(technique) or of.get(parent) or told["tactics"].get(tactic) or told["all"]
    factor, why = told["factor"][setting]
    # One alert of two draws at d comes with 1 - (1 - d)^2.
    strength = 1 - math.sqrt(1 - min(1.0, rate * factor))
    return Sourced(round(strength, 3), source if factor == 1 or not rate else why)


def lag(setting: str) -> Sourced:
    """Ticks until an alert is seen, lowest and highest."""
    low, high, source = table()["lag_minutes"][setting]
    ticks = [min(MAX_LAG, math.floor(low / TICK_MINUTES + 0.5)), min(MAX_LAG, math.ceil(high / TICK_MINUTES))]
    return Sourced(ticks, source)


def true_alerts(which: str) -> Sourced:
    """A share: of the alerts that are of the attack (`all`), of the others that are benign, of the others if `raw`."""
    return Sourced(*table()["true_alerts"][which])


def worth(which: str) -> Sourced:
    """`criticality`, `loss_criticality` or `privilege` of an entity."""
    return Sourced(*table()["entities"][which])
