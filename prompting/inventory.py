"""What a prompt and its answer speak of: a scenario's entities by name, and the actions that there are."""

from collections.abc import Mapping
from typing import NamedTuple

import scenarios
from jaxsim import check
from jaxsim.actions import table
from jaxsim.compile import check_dims, check_fits, dims_of
from jaxsim.names import entity_names
from jaxsim.types import INVESTIGATE, VERBS, Dims


class Inventory(NamedTuple):
    """What is known of a scenario's entities before anything is observed, and the action of every legal answer."""

    dims: Dims
    names: tuple[str, ...]  # N, of each entity in the order of the arrays; '' for padding
    labels: tuple[tuple[str, ...], ...]  # N: kind and segment of an asset, role of an identity; () for padding
    entities: Mapping[str, int]  # entity of each name
    actions: Mapping[tuple[str, str | None], int]  # of the action table, by verb and target; MONITOR's target is None


def inventory(scenario: scenarios.Scenario, dims: Dims | None = None) -> Inventory:
    """The inventory of a scenario, padded to `dims` (default: its own sizes, without RESTORE).

    `Env.dims` are those that fit the rules. Raises ScenarioError when the scenario does not fit `dims`.
    """
    check.kind("scenario", scenario, scenarios.Scenario, "one of jaxsim.load_scenario")
    dims = dims_of([scenario]) if dims is None else check_dims(dims)
    check_fits(scenario, dims)
    names = tuple(name or "" for name in entity_names(scenario, dims))
    label = {x.id: (x.kind, x.segment) for x in scenario.assets} | {x.id: (x.role,) for x in scenario.identities}
    verbs, entities = table(dims)
    actions: dict[tuple[str, str | None], int] = {(VERBS[0], None): 0}
    for action, (verb, entity) in enumerate(zip(verbs.tolist(), entities.tolist(), strict=True)):
        if verb >= INVESTIGATE and names[entity]:
            actions[VERBS[verb], names[entity]] = action
    labels = tuple(label.get(name, ()) for name in names)
    return Inventory(dims, names, labels, {name: i for i, name in enumerate(names) if name}, actions)
