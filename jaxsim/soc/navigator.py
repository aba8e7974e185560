"""Layers of the ATT&CK Navigator, format 4.5: what a campaign uses, and what of it a policy stopped."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import scenarios
from jaxsim.soc.episodes import Episode
from scenarios import attack

Layer = dict[str, Any]
Pair = tuple[str, str]  # technique, tactic


class Tally(NamedTuple):
    """Of a technique as a tactic: episodes in which it succeeds when nobody acts, and those of them that stopped it."""

    unopposed: int
    stopped: int


def campaign(scenario: scenarios.Scenario) -> Layer:
    """What a campaign uses; the score is the number of its stages."""
    stages: dict[Pair, list[str]] = {}
    for stage in scenario.stages:
        stages.setdefault((stage.technique, stage.tactic), []).append(stage.name)
    most = max(map(len, stages.values()))
    techniques = [_technique(pair, len(names), "; ".join(names)) for pair, names in stages.items()]
    return _layer(
        scenario.title, "What the campaign uses, by number of stages.", techniques, ("#ffe7cc", "#e6550d"), most
    )


def tally(so_far: dict[Pair, Tally], scenario: scenarios.Scenario, played: Episode) -> None:
    """Add an episode. What succeeds when nobody acts, and did not under the policy, is stopped by the policy.

    The luck is the same in both, so that the attacker's own failures are not counted.
    """
    done = {step.stage.id for step in played.steps if step.outcome == "succeeded"}
    happened = {(s.technique, s.tactic) for s in scenario.stages if s.id in done}
    for pair in {(s.technique, s.tactic) for s in scenario.stages if s.id in played.unopposed}:
        old = so_far.get(pair, Tally(0, 0))
        so_far[pair] = Tally(old.unopposed + 1, old.stopped + (pair not in happened))


def stopped(scenario: scenarios.Scenario, defender: str, tallies: dict[Pair, Tally]) -> Layer:
    """What a policy stopped; the score is the share, in whole per cent, of the episodes in which it happens unopposed.

    A technique that never does has no score.
    """
    techniques = []
    for pair in dict.fromkeys((s.technique, s.tactic) for s in scenario.stages):
        count = tallies.get(pair)
        share = round(100 * count.stopped / count.unopposed) if count else None
        said = f"stopped in {count.stopped} of {count.unopposed} episodes" if count else "never comes to it"
        techniques.append(_technique(pair, share, said))
    about = f"What {defender} stopped of what succeeds when the defender does nothing, per cent of episodes."
    return _layer(f"{scenario.title}: stopped", about, techniques, ("#ff6666", "#8ec843"), 100)


def _technique(pair: Pair, score: int | None, comment: str) -> dict[str, Any]:
    found = {"techniqueID": pair[0], "tactic": _short(pair[1]), "comment": comment, "enabled": True}
    return found if score is None else found | {"score": score}


def _layer(
    name: str, description: str, techniques: Iterable[dict[str, Any]], colours: tuple[str, str], most: int
) -> Layer:
    return {
        "name": name,
        "versions": {"attack": attack.version().removeprefix("Enterprise v"), "navigator": "5.1.0", "layer": "4.5"},
        "domain": "enterprise-attack",
        "description": description,
        "techniques": list(techniques),
        "gradient": {"colors": list(colours), "minValue": 0, "maxValue": most},
    }


def _short(tactic: str) -> str:
    """What the Navigator calls a tactic: credential-access."""
    return attack.tactics()[tactic].lower().replace(" ", "-")
