"""prompting: strings of every bad kind.

python tests/prompting/test_parsing_fuzz.py --fuzz 1000000 --seed 0   # parse that many strings of every bad kind
"""

import argparse
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import SMALL, growth, inventory_of, seconds_of

import prompting
from grpo.speed.prompting_speed import BUILT_IN
from jaxsim.actions import INVALID
from prompting import parse
from prompting.parse import (
    BROKEN_JSON,
    MAX_STARTS,
    NO_JSON,
    UNKNOWN_VERB,
)

PARSE_MODULE = sys.modules["prompting.parse"]

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
