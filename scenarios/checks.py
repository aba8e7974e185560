"""What must be true of a scenario beyond its single fields: references, rates, and a path to a loss.

Every check yields `Problem`s and is linear in the size of the scenario.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from scenarios import attack
from scenarios.wording import did_you_mean

Loc = tuple[str | int, ...]
MAX_PROBLEMS = 20  # reported at a time
OWN_QUEUE = "triaged"  # that of a scenario's own rates


class Problem(NamedTuple):
    """One thing wrong: where (a path of field names and list positions), and what to do about it."""

    loc: Loc
    message: str
    line: int = 0  # in the file, from 1; 0 when not known


# What the checks read of `scenarios.model`, which imports them.


class Named(Protocol):
    @property
    def id(self) -> str: ...


class Assumed(Protocol):
    @property
    def source(self) -> str: ...
    @property
    def fields(self) -> tuple[str, ...]: ...


class Sourced(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def assumed(self) -> Sequence[Assumed]: ...


class Targets(Named, Protocol):
    @property
    def asset(self) -> str | None: ...
    @property
    def identity(self) -> str | None: ...


class Benign(Targets, Sourced, Protocol):
    @property
    def rate(self) -> float: ...


class Queue(Named, Protocol):
    @property
    def rate(self) -> float: ...


class Stage(Targets, Sourced, Protocol):
    @property
    def tactic(self) -> str: ...
    @property
    def technique(self) -> str: ...
    @property
    def prerequisites(self) -> tuple[str, ...]: ...
    @property
    def any_prerequisites(self) -> tuple[str, ...]: ...
    @property
    def success(self) -> float: ...
    @property
    def compromises_asset(self) -> bool: ...
    @property
    def compromises_identity(self) -> bool: ...
    @property
    def exfil(self) -> bool: ...
    @property
    def impact(self) -> bool: ...


class Scenario(Sourced, Protocol):
    @property
    def noise_rate(self) -> float: ...
    @property
    def assets(self) -> Sequence[Sourced]: ...
    @property
    def identities(self) -> Sequence[Sourced]: ...
    @property
    def stages(self) -> Sequence[Stage]: ...
    @property
    def benign(self) -> Sequence[Benign]: ...
    @property
    def queues(self) -> Sequence[Queue]: ...
    @property
    def sources(self) -> Sequence[Named]: ...


def stage_problems(stage: Stage) -> Iterator[Problem]:
    """What is wrong within one stage whose fields are each well formed."""
    if stage.asset is None and stage.identity is None:
        yield Problem((), "targets nothing; give `asset:` or `identity:` (or both)")
    if stage.compromises_asset and stage.asset is None:
        yield Problem(("compromises_asset",), "is true but the stage has no asset; add `asset:` or remove this line")
    if stage.compromises_identity and stage.identity is None:
        yield Problem(
            ("compromises_identity",),
            "is true but the stage has no identity; add `identity:` or remove this line",
        )
    if stage.exfil and stage.asset is None:
        yield Problem(
            ("exfil",),
            "is true but the stage has no asset, so its egress could never be blocked; "
            "add `asset:`, the asset the data leaves through",
        )
    if stage.exfil and stage.impact:
        yield Problem(("impact",), "is true and so is exfil, but an episode ends with one loss; remove one of the two")
    pair = attack.pair_problem(stage.tactic, stage.technique)
    if pair:
        yield Problem(("technique",), pair)
    yield from _repeats("prerequisites", stage.prerequisites)
    yield from _repeats("any_prerequisites", stage.any_prerequisites)
    both = set(stage.prerequisites)
    for i, name in enumerate(stage.any_prerequisites):
        if name in both:
            yield Problem(
                ("any_prerequisites", i),
                f"{name!r} is in prerequisites too, so the choice means nothing; keep it in one of the two",
            )


def benign_problems(benign: Benign) -> Iterator[Problem]:
    """What is wrong within one benign activity whose fields are each well formed."""
    if benign.asset is None and benign.identity is None:
        yield Problem((), "names nothing; give `asset:` or `identity:` (or both)")


def scenario_problems(scenario: Scenario) -> Iterator[Problem]:
    """What is wrong across a scenario whose parts are each well formed.

    The graph is looked at only when every reference is good: a wrong name would bring follow-on problems.
    """
    references = [*_unique_ids(scenario), *_references(scenario)]
    yield from references
    yield from _rates(scenario)
    yield from _queues(scenario)
    yield from _sources(scenario)
    if references:
        return
    if not any(map(_is_loss, scenario.stages)):
        yield Problem(
            ("stages",),
            "no stage has `exfil: true`; mark the stage in which the data leaves the enterprise, or by `impact: true` "
            "that in which it is encrypted or destroyed",
        )
    order = _order(scenario.stages)
    if len(order) < len(scenario.stages):
        yield Problem(
            ("stages",),
            f"prerequisites go in a circle: {' -> '.join(_circle(scenario.stages, set(order)))} "
            "(each is needed by the next); remove one of these prerequisites",
        )
        return
    yield from _unreachable(scenario.stages, order)


def _repeats(field: str, names: Sequence[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            yield Problem((field, i), f"{name!r} is listed twice; remove one")
        seen.add(name)


def _unique_ids(scenario: Scenario) -> Iterator[Problem]:
    first: dict[str, str] = {}
    asset_ids = [asset.id for asset in scenario.assets]
    identity_ids = [identity.id for identity in scenario.identities]
    for kind, ids in (("assets", asset_ids), ("identities", identity_ids)):
        for i, name in enumerate(ids):
            place = f"{kind}[{i}]"
            before = first.setdefault(name, place)
            if before != place:
                yield Problem(
                    (kind, i, "id"),
                    f"{name!r} is already the id of {before}; assets and identities share one set of "
                    "ids, rename one of the two",
                )
    yield from _same_ids("stages", [stage.id for stage in scenario.stages])
    yield from _same_ids("benign", [benign.id for benign in scenario.benign])


def _same_ids(section: str, ids: Sequence[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for i, name in enumerate(ids):
        before = first.setdefault(name, i)
        if before != i:
            message = f"{name!r} is already the id of {section}[{before}]; rename one of the two"
            yield Problem((section, i, "id"), message)


def _references(scenario: Scenario) -> Iterator[Problem]:
    assets = {asset.id: None for asset in scenario.assets}
    identities = {identity.id: None for identity in scenario.identities}
    stages = {stage.id: None for stage in scenario.stages}

    def targets(section: str, i: int, entry: Targets) -> Iterator[Problem]:
        if entry.asset is not None and entry.asset not in assets:
            yield Problem((section, i, "asset"), _unknown(entry.asset, "asset", assets, "identity", identities))
        if entry.identity is not None and entry.identity not in identities:
            yield Problem((section, i, "identity"), _unknown(entry.identity, "identity", identities, "asset", assets))

    for i, stage in enumerate(scenario.stages):
        yield from targets("stages", i, stage)
        for field, names in (
            ("prerequisites", stage.prerequisites),
            ("any_prerequisites", stage.any_prerequisites),
        ):
            for j, name in enumerate(names):
                if name not in stages:
                    remedy = did_you_mean(name, list(stages)) or "; use the id of a stage of this file"
                    yield Problem(("stages", i, field, j), f"{name!r} is not the id of any stage{remedy}")
    for i, benign in enumerate(scenario.benign):
        yield from targets("benign", i, benign)


def _rates(scenario: Scenario) -> Iterator[Problem]:
    """Background and benign alerts share one draw each tick, so their rates must fit into 1."""
    # fsum, because 0.2 + 0.4 + 0.3 + 0.1 comes out above 1.
    total = math.fsum([scenario.noise_rate, *(benign.rate for benign in scenario.benign)])
    if total > 1:
        yield Problem(
            ("benign",),
            f"noise_rate and the rates of the benign activities add up to {total:.12g}, but at most one such alert is "
            "raised a tick; lower `noise_rate` or a `rate` until the sum is at most 1",
        )


def _queues(scenario: Scenario) -> Iterator[Problem]:
    """Other queues have names of their own, and something to let through."""
    yield from _same_ids("queues", [queue.id for queue in scenario.queues])
    quiet = not math.fsum([scenario.noise_rate, *(benign.rate for benign in scenario.benign)])
    for i, queue in enumerate(scenario.queues):
        if queue.id == OWN_QUEUE:
            yield Problem(
                ("queues", i, "id"), f"{OWN_QUEUE!r} is the queue of noise_rate and benign; choose another name"
            )
        if queue.rate and quiet:
            yield Problem(
                ("queues", i, "rate"),
                "scales noise_rate and the rates of benign activities, which are all 0; give a `noise_rate` above 0",
            )


def _sources(scenario: Scenario) -> Iterator[Problem]:
    """What is assumed are fields of their entry, each from a source of the file."""
    yield from _same_ids("sources", [source.id for source in scenario.sources])
    sources = {source.id: None for source in scenario.sources}
    entries: list[tuple[Loc, Sourced]] = [((), scenario)]
    for section in ("assets", "identities", "stages", "benign"):
        entries += [((section, i), entry) for i, entry in enumerate(getattr(scenario, section))]
    for loc, entry in entries:
        known = [name for name in getattr(type(entry), "model_fields", {}) if name != "assumed"]
        seen: set[str] = set()
        for j, assumed in enumerate(entry.assumed):
            at = (*loc, "assumed", j)
            if assumed.source not in sources:
                remedy = did_you_mean(assumed.source, list(sources)) or "; add it under `sources:`, with id and text"
                yield Problem((*at, "source"), f"{assumed.source!r} is not the id of any source{remedy}")
            for k, name in enumerate(assumed.fields):
                if name not in known:
                    remedy = did_you_mean(name, known) or f"; the fields are {', '.join(known)}"
                    yield Problem((*at, "fields", k), f"{name!r} is no field of this entry{remedy}")
                if name in seen:
                    yield Problem((*at, "fields", k), f"{name!r} is listed twice; keep it under one source")
                seen.add(name)


def _is_loss(stage: Stage) -> bool:
    return stage.exfil or stage.impact


def _unknown(name: str, kind: str, known: dict[str, None], other: str, others: dict[str, None]) -> str:
    if name in others:
        return f"{name!r} is an {other}, not an {kind}; give it as `{other}: {name}`"
    section = {"asset": "assets", "identity": "identities"}[kind]
    remedy = did_you_mean(name, list(known)) or f"; use a listed id, or add it under `{section}:`"
    return f"{name!r} is not the id of any {kind}{remedy}"


def _needs(stage: Stage) -> tuple[str, ...]:
    return (*stage.prerequisites, *stage.any_prerequisites)


def _order(stages: Sequence[Stage]) -> list[str]:
    """The ids with each after those it needs; stages on or behind a circle of prerequisites are left out."""
    waiting = {stage.id: len(_needs(stage)) for stage in stages}
    wanted_by: dict[str, list[str]] = {stage.id: [] for stage in stages}
    for stage in stages:
        for need in _needs(stage):
            wanted_by[need].append(stage.id)
    order = [name for name, count in waiting.items() if count == 0]
    for done in order:  # grows as it is walked
        for name in wanted_by[done]:
            waiting[name] -= 1
            if waiting[name] == 0:
                order.append(name)
    return order


def _circle(stages: Sequence[Stage], ordered: set[str]) -> list[str]:
    """The ids around one circle among the stages not in `ordered`, the first repeated at the end."""
    needs = {stage.id: _needs(stage) for stage in stages}
    # Each stage left over needs another one left over, so walking back must come round.
    name = next(name for name in needs if name not in ordered)
    walk: dict[str, None] = {}
    while name not in walk:
        walk[name] = None
        name = next(need for need in needs[name] if need not in ordered)
    circle = list(walk)[list(walk).index(name) :]
    return [name, *reversed(circle)]


def _unreachable(stages: Sequence[Stage], order: Sequence[str]) -> Iterator[Problem]:
    """Stages that can never start, in the order of the file, and the lack of a possible loss."""
    by_id = {stage.id: stage for stage in stages}
    why_never: dict[str, str] = {}

    def bar(need: str) -> str:
        """Why a stage that needs `need` can never start; empty when it can."""
        if _is_loss(by_id[need]):
            kind = "exfil" if by_id[need].exfil else "impact"
            return f"{need!r} is an {kind} stage and the episode ends when it succeeds"
        if by_id[need].success == 0:
            return f"{need!r} has success 0, so it never succeeds"
        return f"{need!r} can never start itself" if need in why_never else ""

    for name in order:
        every = [why for need in by_id[name].prerequisites if (why := bar(need))]
        choice = [bar(need) for need in by_id[name].any_prerequisites]
        if every:
            why_never[name] = f"of its prerequisites, {every[0]}"
        elif choice and all(choice):
            why_never[name] = f"none of its any_prerequisites can be met: {', '.join(choice[:3])}"
    for i, stage in enumerate(stages):
        if stage.id in why_never:
            yield Problem(
                ("stages", i),
                f"can never start: {why_never[stage.id]}; change its prerequisites or remove the stage",
            )
    losses = [stage for stage in stages if _is_loss(stage)]
    if losses and not any(stage.success > 0 and stage.id not in why_never for stage in losses):
        kind = "exfil" if all(stage.exfil for stage in losses) else "exfil or impact"
        yield Problem(
            ("stages",),
            f"no {kind} stage can ever succeed ({', '.join(stage.id for stage in losses[:3])}); "
            "give one a success above 0 and prerequisites that can be met",
        )
