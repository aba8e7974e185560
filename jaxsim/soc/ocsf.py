"""Events of the Open Cybersecurity Schema Framework: alerts, incidents and remediation actions. https://schema.ocsf.io

An alert, class 2004, is made of an `episodes.Alert`, which holds what the defender saw and no more: its tactic is that
of its signal, true alert or not. A remediation action, classes 7001 and 7004, is made of an `episodes.Deed`, what the
defender did and was told. An incident, class 2005, is the report of an episode that is over, and tells the truth.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import numpy as np

import scenarios
from jaxsim.response import NEVER, Response, hours
from jaxsim.soc.episodes import INVALID, Alert, Deed, Episode, Step
from scenarios import attack
from scenarios.model import TICK_MINUTES

VERSION = "1.8.0"
Event = dict[str, Any]

# What an alert of a signal suggests; a stage of another tactic may raise it, and so may what is no attack.
TACTICS = {
    "auth_anomaly": "TA0006",
    "lateral_movement": "TA0008",
    "data_staging": "TA0009",
    "egress_anomaly": "TA0010",
}
SEVERITIES = ("Informational", "Low", "Medium", "High", "Critical")  # severity_id 1 to 5, a fifth of 0..1 each
# MITRE D3FEND, https://d3fend.mitre.org: (activity_id, tactic, technique, name, its name in the ontology).
ISOLATE, EVICT, RESTORED, HARDEN, DETECT, OTHER = 1, 2, 3, 4, 5, 99
Countermeasure = tuple[int, str, str, str, str]
NETWORK_ISOLATION = (ISOLATE, "Isolate", "D3-NI", "Network Isolation", "NetworkIsolation")
OUTBOUND_FILTERING = (ISOLATE, "Isolate", "D3-OTF", "Outbound Traffic Filtering", "OutboundTrafficFiltering")
SOFTWARE_UPDATE = (HARDEN, "Harden", "D3-SU", "Software Update", "SoftwareUpdate")
DISK_IMAGE = (RESTORED, "Restore", "D3-RDI", "Restore Disk Image", "RestoreDiskImage")
ACCOUNT_LOCKING = (EVICT, "Evict", "D3-AL", "Account Locking", "AccountLocking")
NETWORK_ACCESS = (RESTORED, "Restore", "D3-RNA", "Restore Network Access", "RestoreNetworkAccess")
UNLOCK_ACCOUNT = (RESTORED, "Restore", "D3-ULA", "Unlock Account", "UnlockAccount")
PLATFORM_MONITORING = (DETECT, "Detect", "D3-PM", "Platform Monitoring", "PlatformMonitoring")
USER_BEHAVIOR = (DETECT, "Detect", "D3-UBA", "User Behavior Analysis", "UserBehaviorAnalysis")
COUNTERMEASURES: dict[tuple[str, bool], Countermeasure] = {  # by verb, and whether the target is an identity
    ("INVESTIGATE", False): PLATFORM_MONITORING,
    ("INVESTIGATE", True): USER_BEHAVIOR,
    ("ISOLATE_ASSET", False): NETWORK_ISOLATION,
    ("BLOCK_EGRESS", False): OUTBOUND_FILTERING,
    ("PATCH_ASSET", False): SOFTWARE_UPDATE,
    ("REVOKE_IDENTITY", True): ACCOUNT_LOCKING,
    ("RESTORE", False): NETWORK_ACCESS,
    ("RESTORE", True): UNLOCK_ACCOUNT,
}


class Site(NamedTuple):
    """Where episodes were played: what every export of them says, and what gives the same events the same ids."""

    scenario: scenarios.Scenario
    defender: str
    game: str  # tells these episodes from all others, such as rules, attacker and seed
    start: datetime  # of tick 0 of every episode, with a time zone
    version: str  # of this software
    inventory: dict[str, tuple[Event, Event]]  # by id: an entity as a resource and as an observable

    def uid(self, episode: int, what: str) -> str:
        """A UUID, the same for the same game."""
        return str(uuid5(NAMESPACE_URL, f"jaxsim-soc/{self.game}/{self.defender}/{episode}/{what}"))

    def at(self, tick: int) -> datetime:
        """When a tick was."""
        return self.start + timedelta(minutes=TICK_MINUTES * tick)

    def millis(self, tick: int) -> int:
        """When a tick was, in milliseconds since 1970."""
        return round(self.at(tick).timestamp() * 1000)


def make_site(scenario: scenarios.Scenario, defender: str, game: str, start: datetime, version: str) -> Site:
    """The place of a scenario."""
    assets = {
        x.id: (
            {"uid": x.id, "name": x.id, "type": x.kind, "namespace": x.segment},
            {"type_id": 1, "type": "Hostname", "value": x.id},
        )
        for x in scenario.assets
    }
    identities = {
        x.id: (
            {"uid": x.id, "name": x.id, "type": "identity", "role": x.role},
            {"type_id": 4, "type": "User Name", "value": x.id},
        )
        for x in scenario.identities
    }
    return Site(scenario, defender, game, start, version, assets | identities)


def alert(site: Site, episode: int, seen: Alert) -> Event:
    """A Detection Finding (2004) of an alert."""
    severity = min(1 + int(seen.severity * len(SEVERITIES)), len(SEVERITIES))
    uid = alert_uid(site, episode, seen.number)
    finding: Event = {
        "uid": uid,
        "title": seen.signal,
        "analytic": {"name": seen.signal, "type_id": 2, "type": "Behavioral"},
    }
    if seen.signal in TACTICS:
        finding["attacks"] = [{"version": _attack_version(), "tactic": _tactic(TACTICS[seen.signal])}]
    named = [x for x in (seen.asset, seen.identity) if x]
    return {
        **_head(site, episode, 2, 2004, 1, "Create", seen.tick, uid, seen.number),
        "severity_id": severity,
        "severity": SEVERITIES[severity - 1],
        "status_id": 1,
        "is_alert": True,
        "message": " ".join([seen.signal, *named]),
        "finding_info": finding,
        "resources": [site.inventory[name][0] for name in named],
        "observables": _observables(site, named, name="resources.name"),
        "unmapped": {"severity": seen.severity},
    }


def alert_uid(site: Site, episode: int, number: int) -> str:
    """The id of an alert, by which its truth is found."""
    return site.uid(episode, f"alert/{number}")


def action(site: Site, episode: int, done: Deed) -> Event:
    """A Remediation Activity (7001) of what the defender did; of an egress block, of the network (7004)."""
    uid = site.uid(episode, f"action/{done.tick}")
    measures = countermeasures(site, done)
    kind, name = (measures[-1][0], measures[-1][1]) if measures else (OTHER, INVALID)
    class_uid = 7004 if done.verb == "BLOCK_EGRESS" else 7001
    event = _head(site, episode, 7, class_uid, kind, name, done.tick, uid, done.tick) | {
        "severity_id": 1,
        "command_uid": uid,
        "message": f"{done.verb} {done.target}" if done.target else done.verb,
        "status_id": 1 if measures else 2,  # success, failure
        "status": "Success" if measures else "Failure",
        "observables": _observables(site, [done.target] if done.target else []),
    }
    if measures:
        event["countermeasures"] = [_d3fend(x) for x in measures]
    if class_uid == 7004:
        event["connection_info"] = {"direction_id": 2, "direction": "Outbound"}
    if done.verdict is not None:
        verdict = "compromised" if done.verdict else "clean"
        told = {"confidence": done.confidence, "confirmed": done.changed}
        event["enrichments"] = [{"name": "observables.value", "value": str(done.target), "type": verdict, "data": told}]
        event["status_detail"] = f"{verdict}, confidence {done.confidence:.2f}"
    elif not done.changed:
        event["status_detail"] = "nothing changed"
    return event


def countermeasures(site: Site, done: Deed) -> list[Countermeasure]:
    """What D3FEND calls an action; the last one is the most telling. None of an action that is invalid."""
    if done.verb == INVALID:
        return []
    identity = "role" in site.inventory[str(done.target)][0]
    return [COUNTERMEASURES[done.verb, identity], *[DISK_IMAGE] * done.rebuilt]


def incident(site: Site, played: Episode) -> Event | None:
    """An Incident Finding (2005) of an episode that is over.

    None of one in which the attacker began nothing and the defender contained nothing.
    """
    if not played.steps and not played.containments:
        return None
    uid = site.uid(played.number, "incident")
    state, status, activity, did = _progress(played)
    loss = played.end in ("exfil", "impact")
    severity = 5 if loss else 4 if played.response.compromised != NEVER else 3 if played.steps else 1
    began = played.steps[0].begun[0] if played.steps else next((a.tick for a in played.alerts), 0)
    return {
        **_head(site, played.number, 2, 2005, activity, did, played.ticks, uid, 0),
        "severity_id": severity,
        "severity": SEVERITIES[severity - 1],
        "status_id": state,
        "status": status,
        "verdict_id": 2 if played.steps else 1,
        "verdict": "True Positive" if played.steps else "False Positive",
        "is_suspected_breach": loss,
        "message": site.scenario.title if played.steps else "Containment, but no stage was begun",
        "desc": story(played),
        "assignee_group": {"name": site.defender},
        "start_time": site.millis(began),
        "end_time": site.millis(played.ticks),
        "duration": site.millis(played.ticks) - site.millis(began),
        "attacks": _distinct([attack_of(step.stage) for step in played.steps]),
        "finding_info_list": [_finding(site, played, step) for step in played.steps]
        or [
            {
                "uid": uid,
                "title": "No stage was begun",
                "related_events": _events(site, played, range(len(played.alerts))),
            }
        ],
        "observables": _observables(
            site, dict.fromkeys(x for step in played.steps for x in (step.asset, step.identity) if x)
        ),
        "unmapped": report(played),
    }


def _progress(played: Episode) -> tuple[int, str, int, str]:
    """(status_id, status, activity_id, its name) of an incident."""
    r = played.response
    if r.recovered != NEVER or not played.steps:
        return 4, "Resolved", 3, "Close"
    if r.detected != NEVER or r.contained != NEVER:
        return 2, "In Progress", 2, "Update"
    return 1, "New", 1, "Create"


def report(played: Episode) -> dict[str, Any]:
    """The times and counts that a SOC reports of an incident."""
    times = hours(Response(*(np.asarray([x]) for x in played.response)))
    return {
        "end": played.end,
        **{name: value for name, value in times.items() if name.startswith("hours")},
        "containments": played.containments,
        "evidence_backed_containments": played.evidence_backed,
        "false_containments": played.false_containments,
    }


def story(played: Episode) -> str:
    """The attack in a sentence, its stages by outcome."""
    if not played.steps:
        return "The attacker began nothing."
    steps = "; ".join(f"{step.stage.name} ({step.outcome})" for step in played.steps)
    return f"{steps}. End: {played.end}."


def attack_of(stage: scenarios.Stage) -> Event:
    """The ATT&CK object of a stage."""
    parent, _, sub = stage.technique.partition(".")
    found = {"version": _attack_version(), "tactic": _tactic(stage.tactic)}
    found["technique"] = {"uid": parent, "name": technique_name(parent)}
    if sub:
        found["sub_technique"] = {"uid": stage.technique, "name": technique_name(stage.technique)}
    return found


def technique_name(technique: str) -> str:
    """The name of a technique of ATT&CK."""
    return _techniques()[technique][0]


@cache
def _techniques() -> dict[str, tuple[str, tuple[str, ...]]]:
    return attack.techniques()


@cache
def _tactics() -> dict[str, str]:
    return attack.tactics()


def _finding(site: Site, played: Episode, step: Step) -> Event:
    own = [i for i, x in enumerate(played.causes) if x.kind == "stage" and x.id == step.stage.id]
    last = played.ticks if step.ended is None else step.ended
    finding: Event = {
        "uid": site.uid(played.number, f"step/{step.stage.id}"),
        "title": step.stage.name,
        "desc": step.outcome,
        "attacks": [attack_of(step.stage)],
        "first_seen_time": site.millis(step.begun[0]),
        "last_seen_time": site.millis(last),
        "related_events_count": len(own),
    }
    return finding | ({"related_events": _events(site, played, own)} if own else {})


def _events(site: Site, played: Episode, which: Iterable[int]) -> list[Event]:
    uids = (alert_uid(site, played.number, played.alerts[i].number) for i in which)
    return [{"uid": uid, "type_uid": 200401, "type": "Detection Finding"} for uid in uids]


def _head(
    site: Site, episode: int, category: int, class_uid: int, activity: int, name: str, tick: int, uid: str, number: int
) -> Event:
    """What every event begins with."""
    return {
        "category_uid": category,
        "class_uid": class_uid,
        "activity_id": activity,
        "activity_name": name,
        "type_uid": 100 * class_uid + activity,
        "time": site.millis(tick),
        "timezone_offset": 0,
        "metadata": {
            "version": VERSION,
            "product": {"name": "jaxsim-soc", "vendor_name": "jaxsim-soc", "version": site.version},
            "uid": uid,
            "tenant_uid": f"episode-{episode}",
            "sequence": number,
        },
    }


def _observables(site: Site, names: Iterable[str], **more: str) -> list[Event]:
    return [more | site.inventory[name][1] for name in names]


def _d3fend(measure: Countermeasure) -> Event:
    _, tactic, uid, name, term = measure
    url = f"https://d3fend.mitre.org/technique/d3f:{term}/"
    return {"d3f_tactic": {"name": tactic}, "d3f_technique": {"uid": uid, "name": name, "src_url": url}}


def _tactic(uid: str) -> Event:
    return {"uid": uid, "name": _tactics()[uid]}


@cache
def _attack_version() -> str:
    return attack.version().removeprefix("Enterprise v")


def _distinct(many: list[Event]) -> list[Event]:
    return [x for i, x in enumerate(many) if x not in many[:i]]
