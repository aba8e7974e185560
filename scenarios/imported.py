"""An incident as a scenario: `import_flow` reads an Attack Flow, fills in what it does not say, and says so.

    >>> from scenarios.imported import import_flow
    >>> incident = import_flow("incident.afb")            # doctest: +SKIP
    >>> incident.scenario.stages[0].assumed               # doctest: +SKIP

Every value that the flow did not give stands in the scenario with its source (`assumed`), and every decision about its
structure is a remark. What a scenario cannot say is refused by name.
"""

import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from scenarios import attack, priors
from scenarios.attack_flow import Flow, read_flow
from scenarios.flow_stages import Needs, Remark, Stages, named, refuse, stages
from scenarios.flow_techniques import Resolved
from scenarios.load import ScenarioError, from_tree
from scenarios.model import FORMAT, MAX_TICKS, TICK_MINUTES, Scenario
from scenarios.read import Tree
from scenarios.wording import show

# Tactics whose success gives the attacker the asset, and that whose success gives it the identity.
TAKES_ASSET = ("TA0001", "TA0002", "TA0003", "TA0004", "TA0008", "TA0009")
LATERAL, CREDENTIALS, ACCOUNTS = "TA0008", "TA0006", "T1078"
EXFIL = Resolved("TA0010", "T1041")  # of an attack whose flow has no loss
MIN_HORIZON = 20
MIN_BYSTANDERS = 4  # assets, and identities, that the attack does not touch

RULE, TABLE = "import", "attack"  # sources that are the import's own
_OWN = {
    RULE: "A rule of the import of incidents: see `Incidents` in the documentation",
    TABLE: f"ATT&CK {attack.version()}: what became of a technique, its name, its tactics",
}
# Routine work that looks like a stage: id, name, signal.
_BENIGN = (
    ("admin-login", "An administrator logs in at night", "auth_anomaly"),
    ("software-rollout", "Software is rolled out", "lateral_movement"),
    ("backup", "A backup reads many files", "data_staging"),
    ("large-upload", "A large upload to a partner", "egress_anomaly"),
)

Data = dict[str, Any]


class Imported(NamedTuple):
    source: str  # the file
    scenario: Scenario
    remarks: tuple[Remark, ...]


def import_flow(
    path: str | os.PathLike[str], prior: str = "central", every: bool = False, minutes: int | None = None
) -> Imported:
    """The incident in an Attack Flow file as a scenario.

    `prior` is a setting of `scenarios.priors`; `minutes` how long the attack took in all, where that is known. With
    `every` an action that several lines come to needs all of them, rather than one. Raises ScenarioError for a file
    that cannot be a scenario, ValueError for another argument out of range.
    """
    return from_flow(read_flow(path), prior, every, minutes)


def from_flow(flow: Flow, prior: str = "central", every: bool = False, minutes: int | None = None) -> Imported:
    """A flow that was read, as a scenario; see `import_flow`."""
    if prior not in priors.SETTINGS:
        raise ValueError(f"prior = {show(prior)} is unknown; choose one of {', '.join(priors.SETTINGS)}")
    if minutes is not None and not 1 <= minutes <= TICK_MINUTES * MAX_TICKS:
        raise ValueError(f"minutes = {show(minutes)} is not possible; give 1 to {TICK_MINUTES * MAX_TICKS}")
    found = stages(flow, every)
    if flow.extra is not None:
        document = _own(flow, found)
    else:
        document = _filled_in(flow, found, prior, minutes)
        found.remarks.extend(_said(document))
    try:
        scenario = from_tree(Tree(document, [], {}), flow.source)
    except ScenarioError as error:
        first, *more = error.problems
        raise ScenarioError(first + (f" (and {len(more)} more)" if more else "")) from None
    return Imported(flow.source, scenario, tuple(found.remarks))


# --- our own exports ------------------------------------------------------------------------------------------------


def _own(flow: Flow, found: Stages) -> Data:
    """What `scenarios.export_flow` wrote: values from the extension, structure from the flow."""
    missing = [name for name in found.needs if flow.nodes[name].extra is None]
    if missing or any(thing.extra is None for thing in flow.things.values()):
        what = named(flow, missing[:3]) if missing else "an asset"
        refuse(
            flow,
            f"is an export of a scenario, but {what} has none of its values; add them, or remove the extension from "
            "the object of type attack-flow to import it as any other flow",
        )
    ids = {name: (node.extra or {}).get("id") for name, node in flow.nodes.items()}
    things = {name: thing.extra or {} for name, thing in flow.things.items()}
    listed = []
    for name, need in found.needs.items():
        node, pair = flow.nodes[name], found.pairs[name]
        stage = (node.extra or {}) | {"name": node.name, "tactic": pair.tactic, "technique": pair.technique}
        stage |= {"prerequisites": [ids[x] for x in need.every], "any_prerequisites": [ids[x] for x in need.one]}
        for x in node.things:
            stage["identity" if flow.things[x].identity else "asset"] = things[x].get("id")
        listed.append(stage)
    return flow.extra | {  # type: ignore[operator]  # it is not None
        "title": flow.name,
        "description": flow.description,
        "assets": [things[x] for x, thing in flow.things.items() if not thing.identity],
        "identities": [things[x] for x, thing in flow.things.items() if thing.identity],
        "stages": listed,
    }


# --- flows of others --------------------------------------------------------------------------------------------------


def _filled_in(flow: Flow, found: Stages, prior: str, minutes: int | None) -> Data:
    """The scenario as plain data; `assumed` are mappings of source to fields until the end."""
    taken: dict[str, int] = {}
    network = _Network({}, {}, taken)
    for key, thing in flow.things.items():
        network.add(key, thing.name, thing.identity)
    made: dict[str, Data] = {}
    for name, need in found.needs.items():
        made[name] = _stage(flow, name, found.pairs[name], [made[x] for x in need.all()], network)
        made[name] |= {"prerequisites": [made[x]["id"] for x in need.every]}
        made[name] |= {"any_prerequisites": [made[x]["id"] for x in need.one]}
        if name in found.losses:
            made[name][found.losses[name]] = True
            _gives_nothing(made[name])
    needs = dict(found.needs)
    if not found.losses:
        last = _last(needs)
        needs[""] = Needs([last], [])
        made[""] = _loss(made[last], network)
        text = f"the flow ends in no loss, so that data leaves after {named(flow, [last])}, the end of its longest way"
        found.remarks.append(Remark("loss assumed", text))
    listed = list(made.values())
    _numbers(flow, made, needs, prior, minutes)
    network.fill(listed)
    document = _whole(flow, listed, network, prior)
    _cite(document)
    return document


def _assume(entry: Data, source: str, *fields: str) -> None:
    entry.setdefault("assumed", {}).setdefault(source, []).extend(fields)


def _id(name: str, otherwise: str, taken: dict[str, int]) -> str:
    """An id made of a name, that is not taken; `taken` has the last number that was tried with each."""
    stem = re.sub(r"[^a-z0-9]+", "-", name[:200].lower()).strip("-")[:40].strip("-") or otherwise
    made, count = stem, taken.get(stem, 1)
    while made in taken:
        count += 1
        made = f"{stem}-{count}"
    taken |= {stem: count, made: taken.get(made, 1)}
    return made


def _line(text: str, limit: int = 120) -> str:
    """A text as one line that a scenario may hold."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:limit].strip()


class _Network(NamedTuple):
    """The entities so far, by their id in the flow or here."""

    assets: dict[str, Data]
    identities: dict[str, Data]
    taken: dict[str, int]

    def add(self, key: str, name: str, identity: bool, guess: bool = False) -> str:
        """A new entity; its id. Of one that the flow does not name the existence is a guess too."""
        made = _id(name, "identity" if identity else "asset", self.taken)
        value = priors.worth("privilege" if identity else "criticality")
        entry: Data = {"id": made}
        if identity:
            entry |= {"role": "user", "privilege": value.value}
            _assume(entry, RULE, *(["id"] if guess else []), "role")
            _assume(entry, value.source, "privilege")
        else:
            entry |= {"kind": "host", "criticality": value.value, "segment": "internal"}
            _assume(entry, RULE, *(["id"] if guess else []), "kind", "segment")
            _assume(entry, value.source, "criticality")
        (self.identities if identity else self.assets)[key or made] = entry
        return made

    def fill(self, listed: Sequence[Data]) -> None:
        """Bystanders: as many assets and identities as the attack touches, so that it has to be found."""
        touched = {stage.get(field) for stage in listed for field in ("asset", "identity")}
        for entries, name, identity in ((self.assets, "host", False), (self.identities, "user", True)):
            involved = sum(entry["id"] in touched for entry in entries.values())
            for _ in range(max(MIN_BYSTANDERS, involved) - (len(entries) - involved)):
                self.add("", name, identity, guess=True)


def _stage(flow: Flow, name: str, pair: Resolved, before: Sequence[Data], network: _Network) -> Data:
    """One stage without its numbers. What the flow does not name is carried on from the stage before."""
    node = flow.nodes[name]
    stage: Data = {
        "id": _id(node.name, "stage", network.taken),
        "name": _line(node.name) or f"{attack.techniques()[pair.technique][0]}",
        "tactic": pair.tactic,
        "technique": pair.technique,
    }
    _assume(stage, RULE, "signal", *([] if _line(node.name) else ["name"]))
    for kind, _ in pair.changes:
        _assume(stage, TABLE, kind.partition(" ")[0])
    assets = [network.assets[x]["id"] for x in node.things if x in network.assets]
    identities = [network.identities[x]["id"] for x in node.things if x in network.identities]
    came = before[-1] if before else {}
    if not assets:
        asset = came.get("asset")
        if asset is None or pair.tactic == LATERAL:
            first = "first host"  # that of every beginning
            known = network.assets.get(first) if asset is None else None
            asset = known["id"] if known else network.add(first if asset is None else "", "host", False, guess=True)
        assets = [asset]
        _assume(stage, RULE, "asset")
    account = pair.technique.partition(".")[0] == ACCOUNTS
    if not identities and (pair.tactic == CREDENTIALS or account):
        held = came.get("_identity") if account else None
        identities = [held or network.add("", "account", True, guess=True)]
        _assume(stage, RULE, "identity")
    stage |= {"asset": assets[0], "_identity": identities[0] if identities else came.get("_identity")}
    if identities:
        stage["identity"] = identities[0]
    if pair.tactic in TAKES_ASSET:
        stage["compromises_asset"] = True
        _assume(stage, RULE, "compromises_asset")
    if identities and (pair.tactic == CREDENTIALS or account):
        stage["compromises_identity"] = True
        _assume(stage, RULE, "compromises_identity")
    return stage


def _gives_nothing(stage: Data) -> None:
    for field in ("compromises_asset", "compromises_identity"):
        if stage.pop(field, None):
            stage["assumed"][RULE].remove(field)


def _last(needs: dict[str, Needs]) -> str:
    """The end of the longest way."""
    depth: dict[str, int] = {}
    for name, need in needs.items():
        depth[name] = 1 + max((depth[x] for x in need.all()), default=0)
    return max(depth, key=lambda name: depth[name])


def _loss(before: Data, network: _Network) -> Data:
    stage = {
        "id": _id("exfiltration", "stage", network.taken),
        "name": "Send the data out",
        "tactic": EXFIL.tactic,
        "technique": EXFIL.technique,
        "prerequisites": [before["id"]],
        "any_prerequisites": [],
        "asset": before["asset"],
        "exfil": True,
    }
    _assume(stage, RULE, "id", "name", "tactic", "technique", "prerequisites", "asset", "exfil", "signal")
    return stage


def _numbers(flow: Flow, made: dict[str, Data], needs: dict[str, Needs], prior: str, minutes: int | None) -> None:
    """Dwell, success, detection and lag of each stage."""
    total = priors.attack_minutes(prior) if minutes is None else priors.Sourced(minutes, RULE)
    chance = priors.attack_succeeds(prior)
    given = {name: flow.nodes[name].minutes for name in needs if name}
    _bound_times(flow, given)
    free = sum(given.get(name) is None for name in needs)
    left = max(0.0, total.value - sum(x for x in given.values() if x is not None))
    success = round(chance.value ** (1 / _shortest(made, needs)), 4)
    lag = priors.lag(prior)
    for name, stage in made.items():
        took = given.get(name)
        if took is None:
            each = left / free / TICK_MINUTES
            dwell = [_ticks(each / 2), _ticks(1.5 * each)]
            _assume(stage, total.source, "dwell")
        else:
            dwell = [_ticks(took / TICK_MINUTES)] * 2
        seen = priors.detection(stage["tactic"], stage["technique"], prior)
        stage |= {"dwell": dwell, "success": success, "detection": seen.value, "lag": lag.value}
        for field, source in (("success", chance.source), ("detection", seen.source), ("lag", lag.source)):
            _assume(stage, source, field)


def _bound_times(flow: Flow, given: dict[str, float | None]) -> None:
    """Refuse times of a flow that no game has: the attack would never come to its loss."""
    known = {name: minutes for name, minutes in given.items() if minutes is not None}
    total, day = sum(known.values()), 24 * 60
    if total > TICK_MINUTES * MAX_TICKS:
        longest = named(flow, [max(known, key=lambda name: known[name])])
        refuse(
            flow,
            f"its actions last {total / day:,.0f} days in all, {longest} the longest, and "
            f"{TICK_MINUTES * MAX_TICKS // day} are the most; correct execution_start and execution_end, or remove "
            "them",
        )


def _ticks(ticks: float) -> int:
    return min(MAX_TICKS, max(1, round(ticks)))


def _shortest(made: dict[str, Data], needs: dict[str, Needs]) -> int:
    """How many stages must succeed for a loss, at the least."""
    way: dict[str, frozenset[str]] = {}
    for name, need in needs.items():
        found = frozenset({name}).union(*(way[x] for x in need.every))
        way[name] = found | min((way[x] for x in need.one), key=lambda x: len(x | found), default=frozenset())
    return min(len(way[name]) for name, stage in made.items() if stage.get("exfil") or stage.get("impact"))


def _whole(flow: Flow, listed: list[Data], network: _Network, prior: str) -> Data:
    """The scenario around the stages."""
    for stage in listed:
        stage.pop("_identity", None)
        stage.setdefault("prerequisites", [])
        if stage.get("exfil") or stage.get("impact"):
            entry = next(x for x in network.assets.values() if x["id"] == stage["asset"])
            entry["criticality"] = priors.worth("loss_criticality").value
    ticks = sum(sum(stage["dwell"]) / 2 for stage in listed)
    true = priors.true_alerts("all")
    # As many alerts of the attack as are raised while it runs, and the others in proportion.
    of_attack = sum(2 * stage["detection"] for stage in listed) / ticks
    others = min(0.9, max(0.02, of_attack * (1 - true.value) / true.value))
    benign = others * priors.true_alerts("benign").value
    raw = priors.true_alerts("raw")
    title = _line(flow.name) or "An incident"
    about = "\n".join(_line(row, 2000) for row in flow.description.splitlines())[:4000].strip()
    document: Data = {
        "format": FORMAT,
        "id": _id(flow.name, "incident", {}),
        "title": title,
        "description": about,
        "horizon": min(MAX_TICKS, max(MIN_HORIZON, math.ceil(2 * ticks))),
        "noise_rate": round(others - benign, 4),
        "assets": list(network.assets.values()),
        "identities": list(network.identities.values()),
        "stages": listed,
        "benign": _benign(listed, network, round(benign / len(_BENIGN), 4), true.source),
        "queues": [{"id": "raw", "rate": raw.value, "source": priors.sources()[raw.source]}],
    }
    _assume(document, RULE, "horizon")
    _assume(document, true.source, "noise_rate")
    return document


def _benign(listed: list[Data], network: _Network, rate: float, source: str) -> list[Data]:
    """Routine work on involved entities and bystanders in turn, as severe as the stages are on average."""
    strength = round(sum(stage["detection"] for stage in listed) / len(listed), 3)
    assets, identities = list(network.assets.values()), list(network.identities.values())
    found = []
    for i, (name, title, signal) in enumerate(_BENIGN):
        asset, identity = ((x[0] if i % 2 else x[-1 - i // 2])["id"] for x in (assets, identities))
        entry: Data = {"id": name, "name": title, "asset": asset, "identity": identity}
        entry |= {"rate": rate, "strength": strength, "signal": signal}
        _assume(entry, RULE, "id", "name", "asset", "identity", "strength", "signal")
        _assume(entry, source, "rate")
        found.append(entry)
    return found


def _cite(document: Data) -> None:
    """Turn what is assumed into what the format has, and list the sources that are used."""
    known, used = _OWN | priors.sources(), dict[str, None]()
    for entry in (document, *(x for part in ("assets", "identities", "stages", "benign") for x in document[part])):
        found = {source: fields for source, fields in entry.pop("assumed", {}).items() if fields}
        used |= dict.fromkeys(found)
        entry["assumed"] = [{"source": source, "fields": list(dict.fromkeys(x))} for source, x in found.items()]
    document["sources"] = [{"id": source, "text": known[source]} for source in known if source in used]


def _said(document: Data) -> list[Remark]:
    """What is assumed of the entities."""

    def guessed(part: str, field: str) -> int:
        return sum(any(field in a["fields"] for a in entry["assumed"]) for entry in document[part])

    remarks = []
    if count := guessed("stages", "asset"):
        text = f"{count} of {len(document['stages'])} stages name no asset: that of the stage before, or a new host"
        remarks.append(Remark("assets assumed", text))
    if count := guessed("stages", "identity"):
        remarks.append(Remark("identities assumed", f"{count} stages of credentials or accounts name no identity"))
    return remarks
