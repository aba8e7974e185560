"""Names that say nothing: the same network for whoever does not read them."""

import json

import pytest

import prompting
import scenarios
from jaxsim.compile import compile_scenario, dims_of

NAMES = [name for group in scenarios.GROUPS for name in scenarios.names(group)]


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_network_is_the_same_game(name: str) -> None:
    own = scenarios.load(name)
    new, dims = scenarios.renamed(own), dims_of([own])
    for before, after in zip(compile_scenario(own, dims), compile_scenario(new, dims), strict=True):
        assert (before == after).all()
    names = [x.id for x in (*own.assets, *own.identities)]
    text = json.dumps(new.model_dump(include={"assets", "identities"}))
    text += json.dumps([x.model_dump(include={"asset", "identity"}) for x in (*new.stages, *new.benign)])
    assert not [x for x in names if f'"{x}"' in text]
    assert [x.id for x in new.assets] == [f"asset-{i + 1}" for i in range(len(own.assets))]


def test_a_prompt_says_the_new_names_and_no_old_one() -> None:
    own = scenarios.load("insider_repo_pivot")
    dims = dims_of([own])
    new, actions = prompting.inventory(scenarios.renamed(own), dims), prompting.inventory(own, dims).actions
    assert sorted(new.actions.values()) == sorted(actions.values())
    answer = prompting.parse('{"action": "INVESTIGATE", "target": "asset-2"}', new)
    assert answer.action == actions["INVESTIGATE", "secrets-vault"]
