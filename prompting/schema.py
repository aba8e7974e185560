"""The JSON schema of the legal answers, for constrained decoding."""

from typing import Any

from jaxsim import check
from jaxsim.types import VERBS
from prompting.inventory import Inventory


def schema(inventory: Inventory) -> dict[str, Any]:
    """JSON schema (2020-12) of the legal answers and of nothing else; every entity of a verb's kind is a legal target.

    An answer that follows it, with the keys in that order and `json.dumps`'s separators, is what `encode` writes.
    """
    check.kind("inventory", inventory, Inventory, "that of prompting.inventory")
    targets: dict[str, list[str]] = {verb: [] for verb in VERBS}
    for verb, target in inventory.actions:
        if target is not None:
            targets[verb].append(target)
    # Verbs with the same targets share an alternative.
    verbs_of: dict[tuple[str, ...], list[str]] = {}
    for verb, names in targets.items():
        if names:
            verbs_of.setdefault(tuple(names), []).append(verb)
    return {"anyOf": [_answer([VERBS[0]], None), *(_answer(verbs, names) for names, verbs in verbs_of.items())]}


def _answer(verbs: list[str], names: tuple[str, ...] | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"action": {"enum": verbs}}
    if names:
        properties["target"] = {"enum": list(names)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
