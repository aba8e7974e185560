"""Files that are no flow, or a bad one: each is one clear line, in bounded time and memory."""

import io
import json
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow_files import NODES, builder, chain, stix, text, uid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scenarios
from scenarios.attack_flow import MAX_NODES, SCENARIO, parse_flow
from scenarios.export_flow import export_flow
from scenarios.imported import from_flow, import_flow

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # of processor time; a fraction of it is needed
PHISH, OUT = ("TA0001", "T1566.001"), ("TA0010", "T1041")


def edited(change: Callable[[list[dict[str, Any]]], Any], form: Callable[[], dict[str, Any]] = stix) -> str:
    data = form()
    change(data["objects"])
    return text(data)


def find(objects: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return next(x for x in objects if all(x.get(name) == value for name, value in fields.items()))


def action(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return find(objects, name="Run a loader")


def own(**values: Any) -> str:
    """An export of a scenario with other values of its first stage."""
    data = json.loads(export_flow(from_flow(parse_flow(text(stix()))).scenario))
    find(data["objects"], name="Phish a clerk")["extensions"][SCENARIO] |= values
    return text(data)


def many(count: int) -> dict[str, Any]:
    return {f"a{i}": PHISH for i in range(count)}


def small(count: int) -> str:
    """Actions with nothing but an id."""
    objects = [{"type": "attack-flow", "id": "f"}, *({"type": "attack-action", "id": f"a{i}"} for i in range(count))]
    return text({"type": "bundle", "objects": objects})


def wide(count: int) -> str:
    """Actions in two columns, each of the first before each of the second."""
    nodes = many(2 * count)
    return text(stix(nodes, [(f"a{i}", f"a{count + j}") for i in range(count) for j in range(count)]))


def ladder(count: int) -> str:
    """ORs of ANDs, one in the other: 2 to the power of `count` ways."""
    nodes: dict[str, Any] = {"start": PHISH}
    edges = []
    for i in range(count):
        nodes |= {f"x{i}": PHISH, f"y{i}": PHISH, f"and{i}": "AND", f"or{i}": "OR"}
        edges += [("start", f"x{i}"), ("start", f"y{i}"), (f"x{i}", f"or{i}"), (f"y{i}", f"or{i}"), (f"or{i}", "all")]
    nodes |= {"all": "AND", "third": PHISH, "last": "OR", "Send": OUT}
    return text(stix(nodes, [*edges, ("all", "last"), ("third", "last"), ("last", "Send")]))


def crowd(count: int) -> str:
    """More assets, all of one name, and so of many ids that are to be made."""
    data = stix()
    data["objects"] += [{"type": "attack-asset", "id": f"attack-asset--{i}", "name": "pc"} for i in range(count)]
    return text(data)


def zipped() -> bytes:
    """A bomb: 50 MB of spaces."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flow.json", b" " * 50_000_000)
    return file.getvalue()


DEEP = 100_000
DEEP_PROPERTY = {"id": "action", "instance": "a", "properties": [["x", json.loads("[" * 20 + "]" * 20)]]}
BEHIND: dict[str, Any] = {"A": PHISH, "B": None, "C": PHISH, "D": PHISH, "E": OUT}
AHEAD = [("A", "B"), *chain("C", "D", "E")]
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the file is empty; write a flow into it"),
    "blank": (" \n\t", "the file is empty"),
    "nul": (b"\x00" * 64, "character U+0000 is not allowed"),
    "binary": (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text"),
    "latin-1": ('{"name": "caf\xe9"}'.encode("latin-1"), "is not UTF-8 text (byte 0xe9); save the file as UTF-8"),
    "utf-16": ("{}".encode("utf-16"), "looks like UTF-16"),
    "not json": ("objects: []", "is not JSON at column 1"),
    "cut off": (text(stix())[:700], "is not JSON"),
    "a list": ("[]", "is no flow; expected a STIX bundle"),
    "a number": ("1", "is no flow"),
    "null": ("null", "is no flow"),
    "an object of something": ('{"type": "indicator"}', "is no flow"),
    "an old builder": ('{"schema": "attack_flow_v1", "objects": []}', "got schema 'attack_flow_v1': save it again"),
    "schema of a wrong type": ('{"schema": [1]}', "got schema [1]"),
    "deep lists": ("[" * DEEP + "]" * DEEP, "is nested more than 16 levels deep"),
    "deep objects": ('{"a":' * DEEP + "1" + "}" * DEEP, "is nested more than 16 levels deep"),
    "deep properties": (text({"schema": "attack_flow_v2", "objects": [DEEP_PROPERTY]}), "more than 16 levels deep"),
    "a million values": ("[" + "0," * 1_000_001 + "0]", "has more than 1,000,000 values"),
    "too many bytes": (" " * (16 * 1024 * 1024 + 1), "is 16,777,217 bytes long"),
    "repeated field": ('{"type": "bundle", "type": "bundle"}', "field 'type' is given twice"),
    "no objects": ('{"type": "bundle"}', "objects: got null; expected the list"),
    "objects of a wrong type": ('{"type": "bundle", "objects": {"a": 1}}', "objects: got a mapping of 1 field"),
    "an object that is none": ('{"type": "bundle", "objects": [1]}', "objects[0]: got 1; expected an object"),
    "no id": ('{"type": "bundle", "objects": [{}]}', "objects[0].id: got null; give the object an id"),
    "id of a wrong type": ('{"type": "bundle", "objects": [{"id": 7}]}', "objects[0].id: got 7"),
    "same id": (edited(lambda x: x.append(x[3])), "is there twice; remove one"),
    "no flow": (edited(lambda x: x.pop(0)), "has 0 objects of type attack-flow"),
    "two flows": (edited(lambda x: x.append(x[0] | {"id": "other"})), "has 2 objects of type attack-flow"),
    "no actions": (text(stix({}, [])), "has no action, so there is nothing to play"),
    "name is a number": (edited(lambda x: action(x).update(name=7)), "'attack-action--run-a-loader'.name: got 7"),
    "name is NaN": (edited(lambda x: action(x).update(name=float("nan"))), ".name: got NaN; expected text"),
    "technique is a huge number": (edited(lambda x: action(x).update(technique_id=10**400)), ".technique_id: got 1000"),
    "tactic is a list": (edited(lambda x: action(x).update(tactic_id=["TA0002"])), ".tactic_id: got ['TA0002']"),
    "references are text": (edited(lambda x: action(x).update(effect_refs="x")), ".effect_refs: got 'x'; expected a"),
    "references are numbers": (edited(lambda x: action(x).update(effect_refs=[1])), "expected a list of ids"),
    "dangling effect": (edited(lambda x: action(x).update(effect_refs=["gone"])), "'gone' is not in the file; add"),
    "dangling asset": (edited(lambda x: action(x).update(asset_refs=["gone"])), "asset_refs: 'gone' is not in"),
    "dangling start": (edited(lambda x: x[0].update(start_refs=["gone"])), "start_refs: 'gone' is not in the file"),
    "effect on an asset": (
        edited(lambda x: action(x).update(effect_refs=[uid("attack-asset", "clerk-pc")])),
        "names a 'attack-asset', but only actions, conditions and operators can follow",
    ),
    "unknown operator": (edited(lambda x: find(x, operator="OR").update(operator="XOR")), "got 'XOR'; write AND or OR"),
    "no technique at all": (text(stix({"A": ("", ""), "B": ("", "")}, [("A", "B")])), "of 2 actions 0 are left"),
    "all behind a False": (text(stix(BEHIND, AHEAD, no=[("B", "C")])), "3 come only when a condition does not hold)"),
    "more stages than allowed": (text(stix(many(257), chain(*many(257)))), "has 257 actions, but at most 256 stages"),
    "100,000 actions": (small(100_000), "has 100,000 actions, conditions and operators with 0 lines between them"),
    "actions in a row": (text(stix(many(MAX_NODES), chain(*many(MAX_NODES)))), "has 5000 actions, but at"),
    "90,000 lines": (wide(300), "has 600 actions, conditions and operators with 90,000 lines between them, the limits"),
    "very many ways": (ladder(16), "'Send' comes after an OR of ANDs"),
    "type is a list": (edited(lambda x: action(x).update(type=["attack-action"])), ".type: got ['attack-action']; say"),
    "no type": (edited(lambda x: action(x).pop("type")), ".type: got null; say what the object is"),
    "start at an asset": (
        edited(lambda x: x[0].update(start_refs=[uid("attack-asset", "clerk-pc")])),
        "start_refs: names a 'attack-asset', but only actions",
    ),
    "most of it after the loss": (
        text(stix({"E": OUT, "A": PHISH, "B": PHISH}, chain("E", "A", "B"))),
        "of 3 actions 1 are left (2 come after the loss), too few",
    ),
    "a thousand years": (
        edited(lambda x: action(x).update(execution_start="1026-01-01", execution_end="2026-01-01")),
        "its actions last 365,243 days in all, 'Run a loader' the longest, and 208 are the most",
    ),
    "100,000 assets of one name": (crowd(100_000), "assets: has 100004 entries, but at most 16383 are allowed"),
    "zip": (zipped(), "is not UTF-8 text"),
    "values that are no mapping": (
        edited(lambda x: action(x).update(extensions={SCENARIO: 1})),
        f"extensions.{SCENARIO}: got 1; expected an object",
    ),
    "values out of range": (own(dwell=[5, 1]), "dwell (phish-a-clerk): the low end 5 is above the high end 1"),
    "values of a wrong type": (own(success="yes"), "success (phish-a-clerk): got 'yes', which is text"),
    "an unknown value": (own(cost=1), "cost (phish-a-clerk): is not a known field"),
    "id of a wrong type in an export": (own(id=[1]), "got [1]"),
    "builder: no id": ('{"schema": "attack_flow_v2", "objects": [{"id": "action"}]}', "objects[0].instance: got null"),
    "builder: two flows": (
        edited(lambda x: x.append(find(x, id="flow") | {"instance": "other"}), builder),
        "has 2 flows; give each a file of its own",
    ),
    "builder: id is a number": (edited(lambda x: find(x, id="action").update(id=1), builder), ".id: got 1; say what"),
    "builder: dangling anchor": (
        edited(lambda x: find(x, id="action").update(anchors={"0": "gone"}), builder),
        "anchors: 'gone' is not in the file; save the flow again",
    ),
    "builder: dangling latch": (
        edited(lambda x: find(x, id="dynamic_line").update(source="gone"), builder),
        ".source: 'gone' is not in the file",
    ),
    "builder: anchors are a list": (
        edited(lambda x: find(x, id="action").update(anchors=[1]), builder),
        "anchors: got [1]; expected a mapping",
    ),
    "builder: properties are a mapping": (
        edited(lambda x: find(x, id="action").update(properties={"name": "x"}), builder),
        "properties: got a mapping of 1 field; expected pairs of name and value",
    ),
    "builder: a property is a number": (
        edited(lambda x: find(x, id="action").update(properties=[["name", 5]]), builder),
        ".name: got 5; expected text",
    ),
}  # fmt: skip


def test_there_are_many() -> None:
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_clear_line(name: str, tmp_path: Path) -> None:
    content, expected = HOSTILE[name]
    path = tmp_path / "flow.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.process_time()
    with pytest.raises(scenarios.ScenarioError) as caught:
        import_flow(path)
    assert time.process_time() - began < SECONDS
    (problem,) = caught.value.problems
    assert problem.startswith(str(path)) and expected in problem
    assert problem.isprintable() and len(problem) < 700 + len(str(path))


def test_what_is_odd_and_harmless_is_imported() -> None:
    """Circles, loose lines, long names, objects of other kinds."""
    data = builder()
    loose = {"id": "dynamic_line", "instance": "loose", "source": None, "target": data["objects"][-2]["instance"]}
    data["objects"].append(loose)
    data["objects"].append({"id": "note", "instance": "note", "properties": [["text", "x" * 10_000]]})
    data["objects"][0]["properties"][0][1] = "\u202ename\x85 " + "long " * 1000
    found = from_flow(parse_flow(text(data)))
    assert "lines left out" in {remark.kind for remark in found.remarks}
    assert len(found.scenario.title) <= 120 and found.scenario.title.isprintable()
    assert len(found.scenario.stages) == sum(isinstance(node, tuple) for node in NODES.values())


def test_memory_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(HOSTILE["100,000 actions"][0])  # type: ignore[arg-type]
    (tmp_path / "b.json").write_text(HOSTILE["90,000 lines"][0])  # type: ignore[arg-type]
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); "
    code += "from scenarios.__main__ import main; sys.exit(main(sys.argv[1:]))"
    assert resource.RLIMIT_AS is not None
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    command = [sys.executable, "-c", code, "import", *files, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 2 and "Traceback" not in done.stderr


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([stix, builder]), st.data())
def test_a_damaged_flow_is_imported_or_refused_in_one_line(form: Any, data: st.DataObject) -> None:
    flow = form()
    for _ in range(data.draw(st.integers(1, 3))):
        item = data.draw(st.sampled_from(flow["objects"]))
        field = data.draw(st.sampled_from(sorted(item)))
        other = data.draw(st.sampled_from(flow["objects"]))
        item[field] = data.draw(values | st.just(other.get(field)) | st.just([other.get("id", "")]))
    try:
        found = from_flow(parse_flow(text(flow), "a.json"))
    except scenarios.ScenarioError as error:
        assert all(problem.isprintable() for problem in error.problems)
    else:
        assert scenarios.loads(scenarios.dump(found.scenario)) == found.scenario
