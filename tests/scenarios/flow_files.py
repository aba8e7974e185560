"""Small Attack Flows in both forms, written from one description of a graph, and what becomes of them."""

import itertools
import json
from typing import Any

from scenarios.attack_flow import ATTACK_FLOW, parse_flow
from scenarios.imported import Imported, from_flow

NEW_SDO = {ATTACK_FLOW: {"extension_type": "new-sdo"}}
# What an incident report might say: two ways in, credentials, a host, data out. Kinds: an action is
# (tactic, technique, *names of assets), a condition is None, an operator its name.
NODES: dict[str, Any] = {
    "Phish a clerk": ("TA0001", "T1566.001", "clerk-pc"),
    "Use a leaked password": ("TA0001", "T1078"),
    "OR": "OR",
    "Run a loader": ("TA0002", "T1059.001"),
    "Dump credentials": ("TA0006", "T1003.001"),
    "A domain account is found": None,
    "Move by RDP": ("TA0008", "T1021.001"),
    "Gather the files": ("TA0009", "T1005", "file-server"),
    "AND": "AND",
    "Archive them": ("TA0009", "T1560"),
    "Upload them": ("TA0010", "T1567.002"),
}
EDGES = [
    ("Phish a clerk", "OR"),
    ("Use a leaked password", "OR"),
    ("OR", "Run a loader"),
    ("Run a loader", "Dump credentials"),
    ("Dump credentials", "A domain account is found"),
    ("A domain account is found", "Move by RDP"),
    ("Move by RDP", "Gather the files"),
    ("Move by RDP", "Archive them"),
    ("Gather the files", "AND"),
    ("Archive them", "AND"),
    ("AND", "Upload them"),
]
Edges = list[tuple[str, str]]


def chain(*names: str) -> Edges:
    return list(itertools.pairwise(names))


def follows(edges: Edges) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for a, b in edges:
        found.setdefault(a, []).append(b)
    return found


def uid(kind: str, name: str) -> str:
    return f"{kind}--{name.lower().replace(' ', '-')}"


def stix(nodes: dict[str, Any] = NODES, edges: Edges = EDGES, no: Edges = (), **top: Any) -> dict[str, Any]:  # type: ignore[assignment]
    """A bundle; `no` are lines from the False end of a condition, `top` more fields of the flow."""

    def kind(name: str) -> str:
        node = nodes[name]
        return "attack-action" if isinstance(node, tuple) else "attack-operator" if node else "attack-condition"

    def targets(name: str, lines: dict[str, list[str]]) -> list[str]:
        return [uid(kind(b), b) for b in lines.get(name, ())]

    flow = {"type": "attack-flow", "id": "attack-flow--1", "name": "A small incident", "scope": "incident"}
    objects = [flow | {"description": "Written for a test.\nTwo ways in."} | top]
    assets = dict.fromkeys(asset for node in nodes.values() if isinstance(node, tuple) for asset in node[2:])
    objects += [{"type": "attack-asset", "id": uid("attack-asset", a), "name": a} for a in assets]
    yes_lines, no_lines = follows(edges), follows(no)
    for name, node in nodes.items():
        item: dict[str, Any] = {"type": kind(name), "id": uid(kind(name), name), "extensions": NEW_SDO}
        field = "on_true_refs" if node is None else "effect_refs"
        item |= {
            key: found
            for key, lines in ((field, yes_lines), ("on_false_refs", no_lines))
            if (found := targets(name, lines))
        }
        if isinstance(node, tuple):
            tactic, technique, *named = node
            item |= {"name": name, "tactic_id": tactic, "technique_id": technique}
            item |= {"asset_refs": [uid("attack-asset", a) for a in named]} if named else {}
        elif node is None:
            item["description"] = name
        else:
            item["operator"] = node
        objects.append(item)
    return {"type": "bundle", "id": "bundle--1", "objects": objects}


def builder(nodes: dict[str, Any] = NODES, edges: Edges = EDGES, no: Edges = ()) -> dict[str, Any]:  # type: ignore[assignment]
    """The same as a file of Attack Flow Builder."""
    properties = [["name", "A small incident"], ["description", "Written for a test.\nTwo ways in."]]
    blocks: dict[str, dict[str, Any]] = {"flow": {"id": "flow", "instance": "flow", "properties": properties}}
    others: list[dict[str, Any]] = []
    number = itertools.count()

    def block(name: str, kind: str, properties: list[Any]) -> None:
        blocks[name] = {"id": kind, "instance": uid("block", name), "properties": properties, "anchors": {}}

    def latch(name: str, place: str) -> str:
        anchors = blocks[name]["anchors"]
        if place not in anchors:
            anchors[place] = f"anchor-{next(number)}"
            others.append({"id": "horizontal_anchor", "instance": anchors[place], "latches": []})
        made = f"latch-{next(number)}"
        others.append({"id": "generic_latch", "instance": made})
        next(x for x in others if x["instance"] == anchors[place])["latches"].append(made)
        return made

    def line(a: str, b: str, place: str) -> None:
        ends = {"source": latch(a, place), "target": latch(b, "180")}
        others.append({"id": "dynamic_line", "instance": f"line-{next(number)}", **ends})

    for name, node in nodes.items():
        if isinstance(node, tuple):
            tactic, technique, *named = node
            told = [["name", name], ["tactic_id", tactic], ["technique_id", technique], ["execution_start", None]]
            block(name, "action", told)
            for asset in named:
                block(asset, "asset", [["name", asset], ["description", None]])
        elif node is None:
            block(name, "condition", [["description", name]])
        else:
            block(name, f"{node}_operator", [["operator", node]])
    for name, node in nodes.items():
        for asset in node[2:] if isinstance(node, tuple) else ():
            line(name, asset, "0")
    for a, b in edges:
        line(a, b, "branch:True" if nodes[a] is None else "0")
    for a, b in no:
        line(a, b, "branch:False")
    return {"schema": "attack_flow_v2", "theme": "dark_theme", "objects": [*blocks.values(), *others], "layout": {}}


def text(data: Any) -> str:
    return json.dumps(data)


def imported(data: Any, **options: Any) -> Imported:
    return from_flow(parse_flow(text(data)), **options)


def kinds(found: Imported) -> set[str]:
    return {remark.kind for remark in found.remarks}
