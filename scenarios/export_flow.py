"""A scenario as an Attack Flow: `export_flow` gives a STIX 2.1 bundle that `scenarios.imported` reads back.

Stages are actions, assets and identities are assets (an identity by a user account), prerequisites are joined by AND,
and alternatives by OR. What Attack Flow cannot say, above all the numbers, stands in an extension of our own, so that
the same game comes back.
"""

import json
from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from scenarios.attack_flow import ATTACK_FLOW, SCENARIO
from scenarios.model import Scenario, Stage

# The same scenario gives the same file.
_CREATED = "2026-01-01T00:00:00.000Z"
_AUTHOR = "identity--5b1f0c1e-9d8e-5b7a-8a43-0d7a3c2e6f15"
_DOCS = "https://center-for-threat-informed-defense.github.io/attack-flow"

Object = dict[str, Any]


def export_flow(scenario: Scenario) -> str:
    """The scenario as the text of a STIX bundle."""
    objects = [*head(), _own(), *_objects(scenario)]
    bundle = {"type": "bundle", "id": _name(scenario, "bundle", ""), "objects": objects}
    return json.dumps(bundle, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _name(scenario: Scenario, kind: str, entry: str) -> str:
    return f"{kind}--{uuid5(NAMESPACE_URL, f'jaxsim-soc/{scenario.id}/{kind}/{entry}')}"


def stix_object(uid: str, **fields: Any) -> Object:
    """An object that the project made; `fields` may have other times."""
    head = {"type": uid.partition("--")[0], "spec_version": "2.1", "id": uid, "created_by_ref": _AUTHOR}
    return head | {"created": _CREATED, "modified": _CREATED} | fields


def flow_object(uid: str, own: Object | None, **fields: Any) -> Object:
    """An object that Attack Flow brings, with fields of a scenario if there are any."""
    extensions: Object = {ATTACK_FLOW: {"extension_type": "new-sdo"}}
    if own is not None:
        extensions[SCENARIO] = {"extension_type": "property-extension"} | own
    return stix_object(uid, extensions=extensions, **fields)


def head() -> Iterator[Object]:
    """Author and language of a flow."""
    yield stix_object(_AUTHOR, name="jaxsim-soc", identity_class="system")
    yield stix_object(
        ATTACK_FLOW,
        name="Attack Flow",
        description="Actions, conditions and assets of an attack, and what follows what.",
        schema=f"{_DOCS}/stix/attack-flow-schema-2.0.0.json",
        version="2.0.0",
        extension_types=["new-sdo"],
    )


def _own() -> Object:
    return stix_object(
        SCENARIO,
        name="Scenario of jaxsim-soc",
        description="Fields of a scenario, an asset, an identity or a stage that Attack Flow does not have.",
        schema="scenarios/schema.json of the Python package jaxsim-soc",
        version="1.0.0",
        extension_types=["property-extension"],
    )


def _objects(scenario: Scenario) -> Iterator[Object]:
    plain = scenario.model_dump(mode="json", exclude_defaults=True)
    actions = {stage.id: _name(scenario, "attack-action", stage.id) for stage in scenario.stages}
    yield flow_object(
        _name(scenario, "attack-flow", ""),
        _without(plain, "title", "description", "assets", "identities", "stages"),
        name=scenario.title,
        description=scenario.description,
        scope="campaign",
        start_refs=[actions[x.id] for x in scenario.stages if not (x.prerequisites or x.any_prerequisites)],
    )
    for asset in plain["assets"]:
        yield flow_object(_name(scenario, "attack-asset", asset["id"]), asset, name=asset["id"])
    for identity in plain.get("identities", ()):
        account = _name(scenario, "user-account", identity["id"])
        yield {"type": "user-account", "spec_version": "2.1", "id": account, "user_id": identity["id"]}
        uid = _name(scenario, "attack-asset", identity["id"])
        yield flow_object(uid, identity, name=identity["id"], object_ref=account)

    operators, follows = list[Object](), {uid: list[str]() for uid in actions.values()}
    for stage in scenario.stages:
        edges, between = _joined(scenario, stage, actions)
        operators += between
        for before, after in edges:
            follows[before].append(after)
    for stage, fields in zip(scenario.stages, plain["stages"], strict=True):
        targets = [_name(scenario, "attack-asset", x) for x in (stage.asset, stage.identity) if x is not None]
        effects = follows[actions[stage.id]]
        yield flow_object(
            actions[stage.id],
            _without(fields, "name", "tactic", "technique", "asset", "identity"),
            name=stage.name,
            tactic_id=stage.tactic,
            technique_id=stage.technique,
            asset_refs=targets,
            **({"effect_refs": effects} if effects else {}),
        )
    yield from operators


def _without(fields: Object, *names: str) -> Object:
    return {name: value for name, value in fields.items() if name not in names}


def _joined(scenario: Scenario, stage: Stage, actions: dict[str, str]) -> tuple[list[tuple[str, str]], list[Object]]:
    """Lines from actions to the stage or to an operator before it, and these operators."""
    operators = []

    def operator(which: str, after: str) -> str:
        uid = _name(scenario, "attack-operator", f"{stage.id}/{which}")
        operators.append(flow_object(uid, None, operator=which, effect_refs=[after]))
        return uid

    target = actions[stage.id]
    every, one = stage.prerequisites, stage.any_prerequisites
    if len(every) + bool(one) > 1:
        target = operator("AND", target)
    edges = [(actions[x], target) for x in every]
    if len(one) > 1:
        target = operator("OR", target)
    return edges + [(actions[x], target) for x in one], operators
