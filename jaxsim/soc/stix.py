"""An episode as a STIX 2.1 bundle: an incident, its Attack Flow, and what the defender did.

The stages that the attacker began are actions, with the targets, times and order of this episode; where several came
before one, an AND operator joins them. Controls that the defender set or lifted are courses of action. The bundle can
be imported again as a scenario: `scenarios.imported`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from jaxsim.soc.episodes import Episode, Step
from jaxsim.soc.ocsf import Site, countermeasures, report, story, technique_name
from scenarios.export_flow import flow_object, head, stix_object

Object = dict[str, Any]


def bundle(site: Site, played: Episode) -> Object | None:
    """The bundle of an episode; None where the attacker began nothing, for there is no flow without an action."""
    if not played.steps:
        return None
    objects = [*head(), *_objects(site, played)]
    return {"type": "bundle", "id": _id(site, played, "bundle", ""), "objects": objects}


def _objects(site: Site, played: Episode) -> Iterator[Object]:
    def name(kind: str, entry: str = "") -> str:
        return _id(site, played, kind, entry)

    over = _time(site.at(played.ticks))
    when = {"created": over, "modified": over}
    title = f"{site.scenario.title}, episode {played.number}"
    says = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in report(played).items() if v)
    yield stix_object(name("incident"), name=title, description=f"{story(played)} {says}", **when)
    actions = {step.stage.id: name("attack-action", step.stage.id) for step in played.steps}
    yield flow_object(
        name("attack-flow"),
        None,
        name=title,
        description=story(played),
        scope="incident",
        start_refs=[actions[step.stage.id] for step in played.steps if not step.after],
        **when,
    )
    yield stix_object(
        name("relationship", "flow"),
        relationship_type="related-to",
        source_ref=name("incident"),
        target_ref=name("attack-flow"),
        **when,
    )
    for technique in dict.fromkeys(step.stage.technique for step in played.steps):
        outside = {"source_name": "mitre-attack", "external_id": technique}
        uid = name("attack-pattern", technique)
        yield stix_object(uid, name=technique_name(technique), external_references=[outside], **when)
    for asset in dict.fromkeys(step.asset for step in played.steps if step.asset):
        yield flow_object(name("attack-asset", asset), None, name=asset, **when)
    for identity in dict.fromkeys(step.identity for step in played.steps if step.identity):
        account = name("user-account", identity)
        yield {"type": "user-account", "spec_version": "2.1", "id": account, "user_id": identity}
        yield flow_object(name("attack-asset", identity), None, name=identity, object_ref=account, **when)
    follows = {uid: list[str]() for uid in actions.values()}
    for step in played.steps:
        target = actions[step.stage.id]
        if len(step.after) > 1:
            operator = name("attack-operator", step.stage.id)
            yield flow_object(operator, None, operator="AND", effect_refs=[target], **when)
            target = operator
        for before in step.after:
            follows[actions[before]].append(target)
    for step in played.steps:
        effects = follows[actions[step.stage.id]]
        yield flow_object(
            actions[step.stage.id],
            None,
            name=step.stage.name,
            description=_tries(step),
            tactic_id=step.stage.tactic,
            technique_id=step.stage.technique,
            technique_ref=name("attack-pattern", step.stage.technique),
            confidence=100,
            execution_start=_time(site.at(step.begun[0])),
            execution_end=_time(site.at(played.ticks if step.ended is None else step.ended)),
            asset_refs=[name("attack-asset", x) for x in (step.asset, step.identity) if x],
            **({"effect_refs": effects} if effects else {}),
            **when,
        )
    for done in played.deeds:
        if not done.changed or done.verdict is not None:
            continue
        uid, at = name("course-of-action", str(done.tick)), _time(site.at(done.tick))
        measures = [{"source_name": "mitre-d3fend", "external_id": x[2]} for x in countermeasures(site, done)]
        said = f"{done.verb} {done.target}"
        yield stix_object(uid, name=said, external_references=measures, created=at, modified=at)
        yield stix_object(
            name("relationship", str(done.tick)),
            relationship_type="related-to",
            source_ref=uid,
            target_ref=name("incident"),
            **when,
        )


def _tries(step: Step) -> str:
    tries = len(step.begun)
    return step.outcome if tries == 1 else f"{step.outcome}, {tries} tries"


def _id(site: Site, played: Episode, kind: str, entry: str) -> str:
    return f"{kind}--{site.uid(played.number, f'{kind}/{entry}')}"


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
