"""prompting: answers read back, whatever stands around them, and strings of every bad kind.

python tests/test_parsing.py --fuzz 1000000 --seed 0   # parse that many strings of every bad kind
"""

# ruff: noqa: E402
import argparse
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prompting
import scenarios
from grpo.speed.prompting_speed import BUILT_IN, DIMS
from jaxsim import parse_action
from jaxsim.actions import INVALID, legal_mask
from jaxsim.compile import compile_scenario, dims_of
from prompting import Inventory, parse
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
from scenarios.generate import generate

PARSE_MODULE = sys.modules["prompting.parse"]


@cache
def scenario_of(name: str) -> scenarios.Scenario:
    """A built-in scenario, or a generated one: 'SEED/ENTITIES'."""
    seed, _, entities = name.partition("/")
    return generate(int(seed), int(entities)) if entities else scenarios.load(name)


@cache
def inventory_of(name: str, padded: bool = False, restore: bool = False) -> Inventory:
    dims = DIMS if padded else dims_of([scenario_of(name)])
    return prompting.inventory(scenario_of(name), dims._replace(restore=restore))


SMALL = "supply_chain_token_drift"
ANY_SIZE = [*BUILT_IN, "0/10", "1/20", "2/60", "3/300"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_action_is_read_back(name: str, padded: bool, restore: bool) -> None:
    inventory, scenario = inventory_of(name, padded, restore), scenario_of(name)
    legal = np.flatnonzero(legal_mask(inventory.dims, compile_scenario(scenario, inventory.dims).exists))
    assert sorted(inventory.actions.values()) == legal.tolist()
    for action in legal.tolist():
        text = prompting.encode(action, inventory)
        assert parse(text, inventory) == (action, "")
        said = json.loads(text)
        assert parse_action(" ".join(said.values()), scenario, inventory.dims) == action


@given(st.integers(0, 2**31), st.integers(10, 120), st.booleans())
def test_every_action_of_a_generated_network_is_read_back(seed: int, entities: int, restore: bool) -> None:
    scenario = generate(seed, entities)
    inventory = prompting.inventory(scenario, dims_of([scenario], restore))
    assert len(inventory.actions) == inventory.dims.actions
    for action in range(inventory.dims.actions):
        assert parse(prompting.encode(action, inventory), inventory) == (action, "")


@pytest.mark.parametrize("restore", [False, True])
def test_what_is_not_legal_has_no_answer(restore: bool) -> None:
    inventory = inventory_of(SMALL, padded=True, restore=restore)
    illegal = set(range(-2, inventory.dims.actions + 2)) - set(inventory.actions.values())
    assert len(illegal) > 4
    for action in illegal:
        with pytest.raises(ValueError, match=f"action {action} is not legal"):
            prompting.encode(action, inventory)


def test_names_and_labels_are_those_of_the_scenario() -> None:
    for name in ANY_SIZE:
        scenario, inventory = scenario_of(name), inventory_of(name, padded=name in BUILT_IN)
        pairs = [*zip(inventory.names, inventory.labels, strict=True)]
        wanted = [(x.id, (x.kind, x.segment)) for x in scenario.assets] + [
            (x.id, (x.role,)) for x in scenario.identities
        ]
        assert [pair for pair in pairs if pair != ("", ())] == wanted
        assert inventory.entities == {x: i for i, (x, _) in enumerate(pairs) if x}
        assert all(
            parse_action(f"INVESTIGATE {x}", scenario, inventory.dims) == 1 + i for x, i in inventory.entities.items()
        )


# Of the scenario SMALL, where there is no RESTORE.
EXAMPLES = {
    NO_JSON: [
        "",
        "MONITOR",
        "I would wait.",
        "[]",
        '"action": "MONITOR"',
        '<think>{"action": "MONITOR"}',
        ' <think>{"action": "MONITOR"}</think>',
        'Is it {"action": "MONITOR"}? Yes.</think>',
        '<think>no</think> <think>{"action": "MONITOR"}',
    ],
    BROKEN_JSON: [
        "{",
        "{'action': 'MONITOR'}",
        '{"action": "MONITOR"',
        '{"action": "MONITOR",}',
        '{"action": MONITOR}',
        "{x} " * MAX_STARTS + '{"action": "MONITOR"}',
        '{"plan": {"action": "MONITOR"}',
        '{"plan": [{"action": "MONITOR"}, {"action"',
        '{"plan": {"action": "MONITOR"}, "why": "cut o',
        '{"plan": {"action": "MONITOR"}, "why": "cut {} o\\',
        '{"plan": {"action": "MONITOR"}, "sure": tru',
        '{"plan": {"action": "MONITOR"}; "sure": 1}',
        '<think>none</think> {"action": "MONIT',
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
        '{} {"action": null} {"action": "MONITOR"}',
        '{} {"plan": {"action": "MONITOR"}} {',
        '{"x": 1} {"action": "MONIT',
        "{} " * MAX_STARTS + '{"action": "MONITOR"}',
    ],
    UNKNOWN_VERB: [
        '{"action": ""}',
        '{"action": "monitor"}',
        '{"action": "MONITOR "}',
        '{"action": "RESTORE"}',
        '{"action": "RESTORE", "target": "ci-runner-01"}',
        '{"action": "RESTORE", "target": "no-such"}',
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


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in EXAMPLES.items() for t in texts])
def test_where_there_is_restore_the_rest_is_refused_as_elsewhere(reason: str, text: str) -> None:
    found = parse(text, inventory_of(SMALL, restore=True))
    assert found == (INVALID, reason) or '"RESTORE"' in text


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (', "target": "ci-runner-01"', ""),
        (', "target": "svc-ci-deploy"', ""),
        ("", MISSING_TARGET),
        (', "target": null', MISSING_TARGET),
        (', "target": "no-such"', UNKNOWN_TARGET),
        (', "target": 3', WRONG_SCHEMA),
    ],
)
def test_restore_where_there_is_one(target: str, reason: str) -> None:
    inventory = inventory_of(SMALL, restore=True)
    action, why = parse(f'{{"action": "RESTORE"{target}}}', inventory)
    assert why == reason
    assert (action >= inventory_of(SMALL).dims.actions) if not reason else (action == INVALID)


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
        f'<think>First: {{"action": "MONITOR"}}. No.</think>\n\n{ISOLATE}',
        f'<think>{{"action": "MONITOR"</think>{ISOLATE}',
        f'Perhaps {{"action": "MONITOR"}}?\n</think>\n{ISOLATE}',
        f'<think>{{</think> so <think>{{"action": "MONITOR"}}</think>{ISOLATE}</think>',
        f"{ISOLATE} <think>cut off",
        f"{{}} {ISOLATE}",
        f'{{"plan": {{"action": "MONITOR"}}}} {ISOLATE}',
        f'{{"alerts": ["a", {{"b": 1}}], "worst": null}}\n{ISOLATE}',
        f"{{{ISOLATE}}}",
    ],
)
def test_what_stands_around_the_answer_is_ignored(text: str) -> None:
    inventory = inventory_of(SMALL)
    assert parse(text, inventory) == (inventory.actions["ISOLATE_ASSET", "ci-runner-01"], "")


def test_an_answer_that_is_cut_off_is_broken_wherever_that_is() -> None:
    inventory = inventory_of(SMALL)
    text = '{"why": {"action": "MONITOR"}, "x": ["\\u00e9\\n", -1.5e9, true, {}, NaN], "action": "MONITOR", "y": [{}]}'
    assert parse(text, inventory) == (0, "")
    for size in range(1, len(text)):
        assert parse(text[:size], inventory) == (INVALID, BROKEN_JSON), text[:size]


@given(st.text(st.characters(exclude_characters="<")), st.sampled_from(["<think>", ""]), st.data())
def test_no_thought_is_an_answer(thought: str, begin: str, data: Any) -> None:
    inventory = inventory_of(SMALL)
    draft, action = (data.draw(st.sampled_from(sorted(inventory.actions.values()))) for _ in range(2))
    said = f"{begin}{thought} {prompting.encode(draft, inventory)}</think>"
    assert parse(said + prompting.encode(action, inventory), inventory) == (action, "")
    assert parse(said, inventory) == (INVALID, NO_JSON)


def test_a_target_may_be_null_where_there_is_none() -> None:
    assert parse('{"action": "MONITOR", "target": null}', inventory_of(SMALL)) == (0, "")


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("name", [*BUILT_IN, "1/20"])
def test_the_schema_allows_the_legal_answers_and_no_others(name: str, restore: bool) -> None:
    inventory = inventory_of(name, restore=restore)
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
    "<think>",
    "</think>",
    '{"',
    '"}',
]
LEGAL = ['{"action": "MONITOR"}', '{"action": "INVESTIGATE", "target": "ci-runner-01"}']
RESTORES = ['{"action": "RESTORE"}', '{"action": "RESTORE", "target": "ci-runner-01"}']
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
    values = [
        "MONITOR",
        "INVESTIGATE",
        "REVOKE_IDENTITY",
        "RESTORE",
        "",
        "ci-runner-01",
        "svc-ci-deploy",
        "\ud83d",
        None,
        True,
    ]
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


def fuzz(count: int, seed: int, restore: bool = False) -> Fuzzed:
    """Parse `count` strings of every kind. Strings of all lengths up to some 200,000 characters."""
    rng, inventory = random.Random(seed), inventory_of(SMALL, restore=restore)
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


@pytest.mark.parametrize("restore", [False, True])
def test_no_string_makes_parse_raise(restore: bool) -> None:
    found = fuzz(40_000, seed=1, restore=restore)
    assert found.exceptions == []
    assert set(found.reasons) == {"", *prompting.REASONS}, "every reason comes up"


def test_the_fuzzer_would_notice_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARSE_MODULE, "_DECODER", json.JSONDecoder(object_pairs_hook=tuple))  # 4,300 digits at most
    text = '{"action": ' + "9" * 5000
    assert parse(text, inventory_of(SMALL)) == (INVALID, BROKEN_JSON)
    monkeypatch.setattr(PARSE_MODULE, "_first_object", lambda text: json.loads(text) and NO_JSON)
    assert fuzz(100, seed=1).exceptions


of_any_characters = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(of_any_characters | st.lists(st.sampled_from([*PIECES, *NESTS, *LEGAL, *RESTORES])).map("".join))
def test_any_text_is_parsed(text: str) -> None:
    """RESTORE changes what texts say that speak of it, and nothing else."""
    action, reason = parse(text, inventory_of(SMALL))
    assert (action == INVALID) == bool(reason) and (not reason or reason in prompting.REASONS)
    with_restore = parse(text, inventory_of(SMALL, restore=True))
    assert with_restore == (action, reason) or (reason == UNKNOWN_VERB and "RESTORE" in text)


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
    st.booleans(),
    st.data(),
)
def test_an_answer_among_anything_is_read(
    before: str, after: str, more: dict[str, Any], name: str, restore: bool, data: Any
) -> None:
    inventory = inventory_of(name, restore=restore)
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
    "thoughts": "<think>",
    "ends of thoughts": "</think>",
    "whole thoughts": "<think>{</think>",
    "other objects": '{"x":{"y":[]}}',
}
OPENINGS = ["", '{"a": "', '{"a": [', '{"action": ', "{x} " * (MAX_STARTS - 1) + '{"']


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Collections take longer the more a test run holds, and would be counted as the parser's time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("opening", range(len(OPENINGS)))
@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_parse_takes_linear_time(unit: str, opening: int) -> None:
    inventory = inventory_of(SMALL)

    def make(size: int) -> Callable[[], object]:
        return partial(parse, OPENINGS[opening] + unit * (size // len(unit)), inventory)

    # 8 times the size: linear is 8, quadratic 64.
    assert growth(make, 1 << 15, limit=20) < 20 or seconds_of(make(1 << 20), 3) < 0.002
    assert parse(OPENINGS[opening] + unit * (1_000_000 // len(unit)), inventory).action == INVALID


@pytest.mark.usefixtures("_no_collector")
def test_a_parser_without_a_bound_on_starts_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARSE_MODULE, "MAX_STARTS", 1 << 30)
    inventory = inventory_of(SMALL)
    one, eight = partial(parse, "{" * (1 << 13), inventory), partial(parse, "{" * (1 << 16), inventory)
    assert any(seconds_of(eight, 1) / seconds_of(one) > 20 for _ in range(4))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fuzz", type=int, default=1_000_000, metavar="N", help="parse N strings")
    p.add_argument("--seed", type=int, default=0, metavar="K", help="of the strings")
    args = p.parse_args()
    gc.disable()  # its pauses would be counted as a string's
    found = fuzz(args.fuzz, args.seed)
    print(f"{args.fuzz:,} strings in {found.seconds:.1f} s; the slowest took {found.slowest * 1000:.1f} ms")
    for reason, many in found.reasons.most_common():
        print(f"{many:>9,} {reason or 'an action'}")
    print(f"{len(found.exceptions):>9,} exceptions", *map(ascii, found.exceptions[:5]), sep="\n")
    raise SystemExit(bool(found.exceptions))


if __name__ == "__main__":
    main()
