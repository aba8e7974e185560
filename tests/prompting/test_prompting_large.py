"""prompting: networks and batches of any size."""

import gc
import hashlib
import re
from collections.abc import Callable
from functools import partial
from itertools import count as count_from

import jax
import numpy as np
import pytest
from inventories import SMALL, growth, inventory_of, scenario_of
from observations import LARGE, facts, large, observation, read_compact, read_json

import prompting
import scenarios
from prompting import render
from prompting.render import LAYOUTS, MAX_LISTED

MOST = {"compact": 4_000, "json": 12_000}  # characters


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
