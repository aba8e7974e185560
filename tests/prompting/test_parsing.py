"""prompting: answers read back, whatever stands around them."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import ANY_SIZE, SMALL, inventory_of, scenario_of

import prompting
from grpo.speed.prompting_speed import BUILT_IN
from jaxsim import parse_action
from jaxsim.actions import INVALID, legal_mask
from jaxsim.compile import compile_scenario, dims_of
from prompting import parse
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
