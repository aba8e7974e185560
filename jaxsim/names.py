"""Actions as text: `VERB`, `VERB entity-id`, or `VERB assets[0]` / `VERB identities[2]`; ends as text."""

import re
from difflib import get_close_matches

import numpy as np

import scenarios
from jaxsim import check
from jaxsim.actions import table
from jaxsim.compile import check_dims, check_fits
from jaxsim.types import ENDS, EXFIL, INVESTIGATE, MONITOR, REVOKE_IDENTITY, SUCCEEDED, VERBS, Dims

_POSITION = re.compile(r"(assets|identities)\[(\d{1,6})\]")


def _belongs(scenario: scenarios.Scenario, dims: Dims) -> None:
    check.kind("scenario", scenario, scenarios.Scenario, "one of `load_scenario`")
    check_fits(scenario, check_dims(dims))


def loss_name(scenario: scenarios.Scenario, status: np.ndarray) -> str | None:
    """The loss that has come, "exfil" or "impact", by the (S,) status of the stages; None if none has."""
    stages = zip(scenario.stages, status, strict=False)  # there may be padding
    return next((stage.loss for stage, now in stages if stage.loss and now == SUCCEEDED), None)


def end_name(scenario: scenarios.Scenario, end: int, status: np.ndarray) -> str:
    """How an episode ended; of a loss, which."""
    return (end == EXFIL and loss_name(scenario, status)) or ENDS[end]


def entity_names(scenario: scenarios.Scenario, dims: Dims) -> list[str | None]:
    """Id of each entity, in the order of the arrays; None for padding."""
    a, i = [x.id for x in scenario.assets], [x.id for x in scenario.identities]
    return [*a, *[None] * (dims.assets - len(a)), *i, *[None] * (dims.identities - len(i))]


def action_text(action: int, scenario: scenarios.Scenario, dims: Dims) -> str:
    """`VERB entity-id` of an action; `INVALID` for one outside the table or of an entity that does not exist."""
    action = check.whole("action", action, -(2**31), 2**31 - 1)
    _belongs(scenario, dims)
    verbs, entities = table(dims)
    if not 0 <= action < len(verbs):
        return "INVALID"
    verb, entity = VERBS[verbs[action]], entities[action]
    if entity < 0:
        return verb
    name = entity_names(scenario, dims)[entity]
    return f"{verb} {name}" if name else "INVALID"


def positional_text(action: int, dims: Dims) -> str:
    """`VERB assets[i]` or `VERB identities[i]`: an action without the scenario's names."""
    verbs, entities = table(dims)
    if not 0 <= action < len(verbs):
        return "INVALID"
    verb, entity = VERBS[verbs[action]], entities[action]
    if entity < 0:
        return verb
    place = f"assets[{entity}]" if entity < dims.assets else f"identities[{entity - dims.assets}]"
    return f"{verb} {place}"


def parse_action(text: str, scenario: scenarios.Scenario, dims: Dims) -> int:
    """The action that a text names. Raises ValueError naming the word at fault and what would be right."""
    check.kind("action", text, str, "text, such as 'ISOLATE_ASSET assets[0]'")
    _belongs(scenario, dims)
    words = text.split()
    verb = words[0] if words else ""
    verbs, entities = table(dims)
    usable = [name for i, name in enumerate(VERBS) if i in verbs]
    if verb not in usable:
        near = get_close_matches(verb.upper(), usable, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(usable)}"
        what = "is none under these rules; add +liftable to them, or" if verb in VERBS else "is unknown;"
        raise ValueError(f"action {text!r}: verb {verb!r} {what} {hint}")
    if VERBS.index(verb) == MONITOR:
        if len(words) > 1:
            raise ValueError(f"action {text!r}: MONITOR takes no target; leave out {words[1]!r}")
        return 0
    if len(words) != 2:
        raise ValueError(f"action {text!r}: {verb} takes exactly one target, as in '{verb} assets[0]'")
    entity = _entity(words[1], text, scenario, dims)
    found = np.flatnonzero((verbs == VERBS.index(verb)) & (entities == entity))
    if not len(found):
        kind = "an identity" if VERBS.index(verb) == REVOKE_IDENTITY else "an asset"
        raise ValueError(f"action {text!r}: {verb} takes {kind}, which {words[1]!r} is not")
    return int(found[0])


def _entity(word: str, text: str, scenario: scenarios.Scenario, dims: Dims) -> int:
    names = entity_names(scenario, dims)
    if word in names:
        return names.index(word)
    if position := _POSITION.fullmatch(word):
        group, index = position[1], int(position[2])
        size = len(getattr(scenario, group))
        if index < size:
            return index + (dims.assets if group == "identities" else 0)
        raise ValueError(f"action {text!r}: {word} is out of range; {scenario.id} has {size} {group}")
    known = [n for n in names if n]
    near = get_close_matches(word, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:12])}"
    raise ValueError(f"action {text!r}: {scenario.id} has no entity {word!r}; {hint}")


def parse_plan(text: str, scenario: scenarios.Scenario, dims: Dims) -> np.ndarray:
    """(T,) int32 actions of `ACTION;ACTION;…`, one a tick. Raises ValueError for the first bad action or no action."""
    check.kind("plan", text, str, "text, such as 'MONITOR;ISOLATE_ASSET assets[0]'")
    _belongs(scenario, dims)
    parts = [p.strip() for p in text.split(";")]
    if not any(parts):
        raise ValueError("the plan is empty; write actions separated by ';', as in 'MONITOR;ISOLATE_ASSET assets[0]'")
    return np.asarray([parse_action(p, scenario, dims) for p in parts if p], np.int32)


def legal_verbs(entity: int, dims: Dims) -> list[int]:
    """Verbs that may target an entity."""
    verbs, entities = table(dims)
    return sorted(int(v) for v in verbs[entities == entity] if v >= INVESTIGATE)
