"""prompting: texts that say what was observed."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import ANY_SIZE, SMALL, inventory_of, scenario_of
from observations import RENDER_MODULE, facts, observation, read_compact, read_json

import prompting
import scenarios
from grpo.speed.prompting_speed import BUILT_IN, played
from jaxsim.types import Dims
from prompting import render
from prompting.render import LAYOUTS, MAX_LISTED


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
