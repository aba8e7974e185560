"""Completion -> action, and action -> completion.

`parse` never raises and takes time linear in the text, whatever the text is: models write anything.
"""

import json
from typing import NamedTuple

from jaxsim import check
from jaxsim.actions import INVALID, table
from jaxsim.types import MONITOR, RESTORE, VERBS
from prompting.inventory import Inventory

NO_JSON, BROKEN_JSON, WRONG_SCHEMA = "no JSON", "broken JSON", "wrong schema"
UNKNOWN_VERB, UNKNOWN_TARGET, WRONG_KIND = "unknown verb", "unknown target", "wrong kind of target"
MISSING_TARGET, FORBIDDEN_TARGET = "missing target", "forbidden target"
REASONS = (
    NO_JSON,
    BROKEN_JSON,
    WRONG_SCHEMA,
    UNKNOWN_VERB,
    UNKNOWN_TARGET,
    WRONG_KIND,
    MISSING_TARGET,
    FORBIDDEN_TARGET,
)
FALLBACKS = (NO_JSON, BROKEN_JSON, WRONG_SCHEMA)  # nothing that could be called an action was said
MAX_STARTS = 16  # opening braces from which an object is looked for; a bound makes the time linear
THINK, THOUGHT = "<think>", "</think>"  # what a thought of a model stands between

_PAIRS = tuple[tuple[str, object], ...]


class Parsed(NamedTuple):
    """What a completion says: an action of the action table, or INVALID and the reason, one of REASONS."""

    action: int
    reason: str


def _no_number(_: str) -> int:
    """Which number it is means nothing here, and Python refuses to convert very long ones."""
    return 0


_DECODER = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_no_number, parse_float=_no_number, parse_constant=_no_number, strict=False
)


def _said(text: str) -> str:
    """What is left of a completion without its thoughts.

    A thought goes from <think> to </think>, or to the end where it was cut off. An end without a beginning ends one
    that the chat template began.
    """
    first, *others = text.split(THINK)
    parts = [first.partition(THOUGHT)[2] if THOUGHT in first else first]
    parts += [other.partition(THOUGHT)[2] for other in others]
    return "\n".join(parts)


def _first_object(text: str) -> _PAIRS | str:
    """The key-value pairs of the first JSON object in a text that says `action`, or the reason why there is none.

    What stands inside an object is not looked at, nor what stands in one as far as it is JSON before it breaks off.
    """
    start, reason = text.find("{"), NO_JSON
    for _ in range(MAX_STARTS):
        if start < 0:
            break
        try:
            pairs, end = _DECODER.raw_decode(text, start)
            if any(key == "action" for key, _ in pairs):
                return pairs
            reason = WRONG_SCHEMA
        except json.JSONDecodeError as error:
            reason = WRONG_SCHEMA if reason == WRONG_SCHEMA else BROKEN_JSON
            # The position is that of what breaks it, but for a text without an end that of its beginning.
            end = len(text) if error.msg.startswith("Unterminated string") else max(error.pos, start + 1)
        except (ValueError, RecursionError):  # nested too deep to be read
            return BROKEN_JSON
        start = text.find("{", end)
    return reason


def parse(text: str, inventory: Inventory) -> Parsed:
    """The action that a completion asks for. Never raises, but ValueError for what is no text or no inventory.

    It is that of the first JSON object that says `action`, after thoughts; what stands around it, and its other keys,
    are ignored.
    """
    if not isinstance(text, str) or not isinstance(inventory, Inventory):
        check.kind("text", text, str, "the completion")
        check.kind("inventory", inventory, Inventory, "that of prompting.inventory")
    found = _first_object(_said(text))
    if isinstance(found, str):
        return Parsed(INVALID, found)
    verbs = [value for key, value in found if key == "action"]
    targets = [value for key, value in found if key == "target"] or [None]
    if len(verbs) != 1 or len(targets) != 1:  # said twice is ambiguous
        return Parsed(INVALID, WRONG_SCHEMA)
    verb, target = verbs[0], targets[0]
    if not isinstance(verb, str) or not (target is None or isinstance(target, str)):
        return Parsed(INVALID, WRONG_SCHEMA)
    action = inventory.actions.get((verb, target))
    return Parsed(INVALID, _why_not(verb, target, inventory)) if action is None else Parsed(action, "")


def _why_not(verb: str, target: str | None, inventory: Inventory) -> str:
    if verb not in VERBS or (verb == VERBS[RESTORE] and not inventory.dims.restore):
        return UNKNOWN_VERB
    if verb == VERBS[MONITOR]:
        return FORBIDDEN_TARGET
    if target is None:
        return MISSING_TARGET
    return WRONG_KIND if target in inventory.entities else UNKNOWN_TARGET


def encode(action: int, inventory: Inventory) -> str:
    """The completion for an action; `parse(encode(a, i), i).action == a`. Raises ValueError for an invalid action."""
    check.kind("inventory", inventory, Inventory, "that of prompting.inventory")
    action = check.whole("action", action, -(2**31), 2**31 - 1)
    verbs, entities = table(inventory.dims)
    if not 0 <= action < len(verbs) or (entities[action] >= 0 and not inventory.names[entities[action]]):
        raise ValueError(f"action {action} is not legal here; give one of inventory.actions.values()")
    answer = {"action": VERBS[verbs[action]]}
    if entities[action] >= 0:
        answer["target"] = inventory.names[entities[action]]
    return json.dumps(answer)


def answers(inventory: Inventory) -> tuple[str, ...]:
    """What `encode` writes for each legal action of a network."""
    check.kind("inventory", inventory, Inventory, "that of prompting.inventory")
    return tuple(encode(action, inventory) for action in inventory.actions.values())
