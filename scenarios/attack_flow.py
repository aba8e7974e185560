"""Attack Flow files to one plain graph, whichever of the two forms they have: `read_flow`.

A file is a STIX 2.1 bundle with the Attack Flow extension 2.0, or one of the Attack Flow Builder (.afb): JSON in UTF-8,
with the size limits of scenario files. https://center-for-threat-informed-defense.github.io/attack-flow/language/

Objects that say nothing about the order of actions or their targets, such as malware, are left out.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, NamedTuple, NoReturn

from scenarios.load import ScenarioError
from scenarios.read import Unreadable, file_text, printable, read, report
from scenarios.wording import show

ATTACK_FLOW = "extension-definition--fb9c968a-745b-4ade-9b25-c324172197f4"
# Of what a scenario has and Attack Flow has not; `scenarios.export_flow` writes it.
SCENARIO = "extension-definition--3a0d2c5e-6f0e-5a55-9c39-3c1b6f0e7d21"
MAX_NODES = 5_000  # far more than there can be stages, for operators and conditions
MAX_EDGES = 50_000

_BUILDER = "attack_flow_v2"
_ACCOUNTS = ("identity", "user-account")  # STIX types that are an identity here


class Node(NamedTuple):
    """An action, a condition or an operator."""

    id: str
    kind: Literal["action", "condition", "AND", "OR"]
    name: str  # of a condition its description
    tactic: str = ""  # as written
    technique: str = ""  # as written
    minutes: float | None = None  # from its start to its end, where the flow gives both
    things: tuple[str, ...] = ()  # ids of what it acts on
    extra: dict[str, Any] | None = None  # fields of a stage, in our own exports


class Thing(NamedTuple):
    """An asset or an identity that an action names."""

    id: str
    name: str
    identity: bool
    extra: dict[str, Any] | None = None  # fields of an asset or identity, in our own exports


class Edge(NamedTuple):
    source: str
    target: str
    holds: bool = True  # False: to be followed when the condition does not hold


class Flow(NamedTuple):
    """What a file says; `starts` are the nodes that it says it starts with."""

    source: str  # the file
    name: str
    description: str
    nodes: dict[str, Node]
    things: dict[str, Thing]
    edges: list[Edge]
    starts: tuple[str, ...] = ()
    loose: int = 0  # lines with an end that touches nothing
    extra: dict[str, Any] | None = None  # fields of a scenario, in our own exports


class _File(NamedTuple):
    source: str
    key: str  # the field that holds an object's id
    objects: dict[str, dict[str, Any]]  # by id


def read_flow(path: str | os.PathLike[str]) -> Flow:
    """The flow in a file. Raises ScenarioError: one line that says what to change."""
    name = os.fsdecode(path)
    try:
        text = file_text(name, "flow")
    except Unreadable as error:
        raise ScenarioError(str(error)) from None
    return parse_flow(text, name)


def parse_flow(text: str, source: str = "<string>") -> Flow:
    """The flow in a text; `source` names it in messages. Raises ScenarioError as `read_flow` does."""
    tree = read(text, as_json=True, noun="flow")
    if tree.problems:
        raise ScenarioError(report(tree.problems, tree, source)[0])
    data = tree.data if isinstance(tree.data, dict) else {}
    if data.get("type") == "bundle":
        flow = _from_stix(_file(source, data, "id", "type"))
    elif data.get("schema") == _BUILDER:
        flow = _from_builder(_file(source, data, "instance", "id"))
    else:
        found = f", got schema {show(data['schema'])}: save it again with Builder 3" if "schema" in data else ""
        _fail(source, f"is no flow; expected a STIX bundle or a file of Attack Flow Builder 3{found}")
    if len(flow.nodes) > MAX_NODES or len(flow.edges) > MAX_EDGES:
        _fail(
            source,
            f"has {len(flow.nodes):,} actions, conditions and operators with {len(flow.edges):,} lines between them, "
            f"the limits are {MAX_NODES:,} and {MAX_EDGES:,}; split the flow",
        )
    if not any(node.kind == "action" for node in flow.nodes.values()):
        _fail(source, "has no action, so there is nothing to play; add what the attacker did")
    return flow


# --- objects and their fields ---------------------------------------------------------------------------------------


def _fail(source: str, message: str) -> NoReturn:
    raise ScenarioError(f"{printable(source)}: {message}")


def _file(source: str, data: dict[str, Any], key: str, kind: str) -> _File:
    """The objects of a file by the field `key`; what each is must be in the field `kind`."""
    items = data.get("objects")
    if not isinstance(items, list):
        _fail(source, f"objects: got {show(items)}; expected the list of what is in the flow")
    objects: dict[str, dict[str, Any]] = {}
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            _fail(source, f"objects[{i}]: got {show(item)}; expected an object")
        name = item.get(key)
        if not isinstance(name, str) or not name:
            _fail(source, f"objects[{i}].{key}: got {show(name)}; give the object an id of its own")
        if not isinstance(item.get(kind), str):
            _fail(source, f"objects[{i}].{kind}: got {show(item.get(kind))}; say what the object is")
        if name in objects:
            _fail(source, f"objects[{i}].{key}: {show(name)} is there twice; remove one, or save the flow again")
        objects[name] = item
    return _File(source, key, objects)


def _text(file: _File, item: dict[str, Any], *fields: str) -> str:
    """The first of these fields that is there and not empty, which must be text; empty when none is."""
    for field in fields:
        value = item.get(field)
        if value is not None and not isinstance(value, str):
            _fail(file.source, f"{show(item.get(file.key))}.{field}: got {show(value)}; expected text")
        if value:
            return value
    return ""


def _refs(file: _File, item: dict[str, Any], field: str) -> list[str]:
    """A field that lists ids of objects in the file."""
    value = item.get(field)
    where = f"{show(item[file.key])}.{field}"
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        _fail(file.source, f"{where}: got {show(value)}; expected a list of ids")
    for name in value:
        if name not in file.objects:
            _fail(file.source, f"{where}: {show(name)} is not in the file; add that object or remove the reference")
    return list(dict.fromkeys(value))


def _minutes(start: str, end: str) -> float | None:
    """The time between two timestamps; None unless both can be read and stand in this order."""
    try:
        first, last = (datetime.fromisoformat(text[:40]) for text in (start, end))
        minutes = (last - first).total_seconds() / 60
    except (ValueError, TypeError, OverflowError):  # TypeError: one has a time zone, the other none
        return None
    return minutes if minutes > 0 else None


# --- STIX -------------------------------------------------------------------------------------------------------------


def _from_stix(file: _File) -> Flow:
    def of(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((name, item) for name, item in file.objects.items() if item.get("type") == kind)

    tops = [item for _, item in of("attack-flow")]
    if len(tops) != 1:
        _fail(file.source, f"has {len(tops)} objects of type attack-flow; give each flow a file of its own, with one")
    things = {}
    for name, item in of("attack-asset"):
        identity = _text(file, item, "object_ref").partition("--")[0] in _ACCOUNTS
        things[name] = Thing(name, _text(file, item, "name"), identity, _extra(file, item))
    accounts: dict[str, list[str]] = {}  # those that a relationship ties to an action
    for _, item in of("relationship"):
        action, account = _text(file, item, "source_ref"), _text(file, item, "target_ref")
        if file.objects.get(account, {}).get("type") == "user-account":
            things[account] = Thing(account, _account(file, file.objects[account]), True)
            accounts.setdefault(action, []).append(account)

    nodes = {}
    for name, item in file.objects.items():
        if item.get("type") == "attack-action":
            named = (*_refs(file, item, "asset_refs"), *accounts.get(name, ()))
            nodes[name] = Node(
                name,
                "action",
                _text(file, item, "name"),
                _text(file, item, "tactic_id"),
                _text(file, item, "technique_id"),
                _minutes(_text(file, item, "execution_start"), _text(file, item, "execution_end")),
                tuple(thing for thing in named if thing in things),
                _extra(file, item),
            )
        elif item.get("type") == "attack-condition":
            nodes[name] = Node(name, "condition", _text(file, item, "description"))
        elif item.get("type") == "attack-operator":
            operator = _text(file, item, "operator")
            if operator not in ("AND", "OR"):
                _fail(file.source, f"{show(name)}.operator: got {show(operator)}; write AND or OR")
            nodes[name] = Node(name, "AND" if operator == "AND" else "OR", operator)

    def targets(name: str, field: str) -> list[str]:
        found = _refs(file, file.objects[name], field)
        for target in found:
            if target not in nodes:
                kind = show(file.objects[target]["type"])
                _fail(
                    file.source,
                    f"{show(name)}.{field}: names a {kind}, but only actions, conditions and operators can "
                    "follow; remove the reference, or make it a relationship",
                )
        return found

    edges = [
        Edge(name, target, field != "on_false_refs")
        for name in nodes
        for field in ("effect_refs", "on_true_refs", "on_false_refs")
        for target in targets(name, field)
    ]
    starts = tuple(targets(tops[0]["id"], "start_refs"))
    title, about = _text(file, tops[0], "name"), _text(file, tops[0], "description")
    return Flow(file.source, title, about, nodes, things, edges, starts, extra=_extra(file, tops[0]))


def _account(file: _File, item: dict[str, Any]) -> str:
    return _text(file, item, "display_name", "account_login", "user_id")


def _extra(file: _File, item: dict[str, Any]) -> dict[str, Any] | None:
    extensions = item.get("extensions")
    found = extensions.get(SCENARIO) if isinstance(extensions, dict) else None
    if found is None:
        return None
    if not isinstance(found, dict):
        _fail(file.source, f"{show(item[file.key])}.extensions.{SCENARIO}: got {show(found)}; expected an object")
    return {name: value for name, value in found.items() if name != "extension_type"}


# --- Attack Flow Builder ----------------------------------------------------------------------------------------------


def _from_builder(file: _File) -> Flow:
    """A block has anchors, an anchor has latches, and a line joins two latches."""
    nodes, things, tops = dict[str, Node](), dict[str, Thing](), list[dict[str, Any]]()
    for name, item in file.objects.items():
        kind = item["id"]
        told = _properties(file, item)
        if kind == "action":
            ttp = _pairs(file, item, told.get("ttp"))
            nodes[name] = Node(
                name,
                "action",
                _text(file, told, "name"),
                _text(file, told, "tactic_id") or _text(file, ttp, "tactic"),
                _text(file, told, "technique_id") or _text(file, ttp, "technique"),
                _minutes(_text(file, told, "execution_start"), _text(file, told, "execution_end")),
            )
        elif kind == "condition":
            nodes[name] = Node(name, "condition", _text(file, told, "description"))
        elif kind in ("AND_operator", "OR_operator"):
            nodes[name] = Node(name, "AND", "AND") if kind == "AND_operator" else Node(name, "OR", "OR")
        elif kind == "asset":
            things[name] = Thing(name, _text(file, told, "name"), False)
        elif kind == "user_account":
            things[name] = Thing(name, _account(file, told), True)
        elif kind == "flow":
            tops.append(told)
    edges, named, loose = list[Edge](), dict[str, list[str]](), 0
    for source, place, target in _lines(file):
        if source is None or target is None:
            loose += 1
        elif source in nodes and target in nodes:
            edges.append(Edge(source, target, place != "branch:False"))
        elif source in nodes and target in things:
            named.setdefault(source, []).append(target)
        elif source in things and target in nodes:
            named.setdefault(target, []).append(source)
    for name, found in named.items():
        nodes[name] = nodes[name]._replace(things=tuple(dict.fromkeys(found)))
    if len(tops) > 1:
        _fail(file.source, f"has {len(tops)} flows; give each a file of its own")
    top = tops[0] if tops else {}
    title, about = _text(file, top, "name"), _text(file, top, "description")
    return Flow(file.source, title, about, nodes, things, list(dict.fromkeys(edges)), loose=loose)


def _lines(file: _File) -> Iterator[tuple[str | None, str, str | None]]:
    """The block that each line leaves, where on it, and the block that it comes to; None where it touches nothing."""
    held: dict[str, str] = {}  # latch -> anchor
    block: dict[str, tuple[str, str]] = {}  # anchor -> block, and where on it
    for name, item in file.objects.items():
        held |= dict.fromkeys(_refs(file, item, "latches"), name)
        anchors = item.get("anchors") or {}
        if not isinstance(anchors, dict):
            _fail(file.source, f"{show(name)}.anchors: got {show(anchors)}; expected a mapping of places to ids")
        for place, anchor in anchors.items():
            if not isinstance(anchor, str) or anchor not in file.objects:
                _fail(file.source, f"{show(name)}.anchors: {show(anchor)} is not in the file; save the flow again")
            block[anchor] = (name, place)
    for name, item in file.objects.items():
        if "source" not in item and "target" not in item:
            continue
        ends = []
        for field in ("source", "target"):
            latch = _text(file, item, field)
            if latch and latch not in file.objects:
                _fail(file.source, f"{show(name)}.{field}: {show(latch)} is not in the file; save the flow again")
            ends.append(block.get(held.get(latch, ""), (None, "")))
        yield ends[0][0], ends[0][1], ends[1][0]


def _properties(file: _File, item: dict[str, Any]) -> dict[str, Any]:
    return _pairs(file, item, item.get("properties"))


def _pairs(file: _File, item: dict[str, Any], pairs: Any) -> dict[str, Any]:
    """Pairs of a block as a mapping, with the block's id for messages."""
    pairs = pairs or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        _fail(file.source, f"{show(item[file.key])}.properties: got {show(pairs)}; expected pairs of name and value")
    return {name: value for name, value in pairs} | {file.key: item[file.key]}
