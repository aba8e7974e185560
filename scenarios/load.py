"""Scenario files in and out: `load`, `loads`, `in_queue`, `dump`, `digest`, and `ScenarioError`: what to change.

A file is YAML (.yaml, .yml) or JSON (.json), UTF-8, at most 16 MiB. Its structure is checked first, then its
fields, then what goes across fields, so correcting one round of problems may bring up the next.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from scenarios.checks import OWN_QUEUE, Loc, Problem
from scenarios.model import FORMAT, SIGNALS, Asset, Assumed, Benign, Identity, Queue, Scenario, Source, Stage, ticks_of
from scenarios.read import Odd, Tree, Unreadable, file_text, plain, printable, read, report
from scenarios.wording import did_you_mean, show

GROUPS = ("published", "hardened")
_PUBLISHED = (
    "supply_chain_token_drift",
    "federated_identity_takeover",
    "insider_repo_pivot",
    "cloud_metadata_ssrf",
)
# The file of each built-in scenario, below campaigns/, by group and name.
_FILES = {
    "published": {name: f"{name}.yaml" for name in _PUBLISHED},
    "hardened": {f"{name}_hardened": f"hardened/{name}_hardened.yaml" for name in _PUBLISHED},
}
_BUILT_IN = {name: file for group in GROUPS for name, file in _FILES[group].items()}
_SUFFIXES = (".yaml", ".yml", ".json")
_SECTIONS: dict[str | int, type[BaseModel]] = {
    "assets": Asset,
    "identities": Identity,
    "stages": Stage,
    "benign": Benign,
    "queues": Queue,
    "sources": Source,
    "assumed": Assumed,
}


class ScenarioError(ValueError):
    """A scenario cannot be used. `problems` holds one line for each thing wrong, at most 20 and a count.

    A line is `file:line: path: what is wrong; what to do`, without the parts that are not known.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


def names(group: str = "published") -> tuple[str, ...]:
    """The names of the built-in scenarios of a group: the published campaigns, or their hardened variants.

    Raises ValueError when there is no such group.
    """
    if group not in _FILES:
        remedy = did_you_mean(group, GROUPS)
        raise ValueError(f"{group!r} is not a group of built-in scenarios{remedy}; the groups are {', '.join(GROUPS)}")
    return tuple(_FILES[group])


def load(name_or_path: str | os.PathLike[str]) -> Scenario:
    """The scenario with this built-in name of any group, or in this .yaml, .yml or .json file.

    Behind either may stand `@` and the id of one of its queues, see `in_queue`. Raises ScenarioError when the name or
    queue is unknown, or the file cannot be read or is not a valid scenario.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ScenarioError(f"scenario = {show(name_or_path)} is no name; give that of a built-in one, or of a file")
    name = os.fsdecode(name_or_path)
    before, at, queue = name.rpartition("@")
    if at and (before in _BUILT_IN or before.lower().endswith(_SUFFIXES)):
        return in_queue(load(before), queue)
    if name in _BUILT_IN:
        return _load_built_in(name)
    if not name.lower().endswith(_SUFFIXES):
        raise ScenarioError(_unknown_name(name))
    try:
        text = file_text(name)
    except Unreadable as error:
        raise ScenarioError(str(error)) from None
    return loads(text, source=name)


def in_queue(scenario: Scenario, queue: str) -> Scenario:
    """The scenario as another of its queues shows its alerts; its own one is called "triaged".

    What is no attack raises its alerts `rate` times a tick in all, in the shares that noise_rate and the benign
    activities have of it. Raises ScenarioError when the scenario has no such queue.
    """
    if queue == OWN_QUEUE:
        return scenario
    rates = {q.id: q.rate for q in scenario.queues}
    if queue not in rates:
        remedy = did_you_mean(queue, [OWN_QUEUE, *rates]) or f"; its queues are {', '.join([OWN_QUEUE, *rates])}"
        raise ScenarioError(f"{scenario.id}: has no queue {show(queue)}{remedy}")
    own = [scenario.noise_rate, *(b.rate for b in scenario.benign)]
    factor = rates[queue] / (math.fsum(own) or 1.0)
    # Rounded down, so that the sum does not come out above 1.
    noise, *benign = (math.floor(1e9 * factor * rate) / 1e9 for rate in own)
    return scenario.model_copy(
        update={
            "id": f"{scenario.id}@{queue}",
            "noise_rate": noise,
            "benign": tuple(
                b.model_copy(update={"rate": rate}) for b, rate in zip(scenario.benign, benign, strict=True)
            ),
            "queues": (),
        }
    )


def renamed(scenario: Scenario) -> Scenario:
    """The same network with names that say nothing: asset-1, asset-2, … and identity-1, …, in listed order.

    Kinds, segments and roles stay. What depends on nothing else plays it as it plays the scenario.
    """
    new = {x.id: f"asset-{i}" for i, x in enumerate(scenario.assets, 1)}
    new |= {x.id: f"identity-{i}" for i, x in enumerate(scenario.identities, 1)}

    def all_of(parts: Iterable[Any], *fields: str) -> list[dict[str, Any]]:
        dumped = (part.model_dump() for part in parts)
        return [part | {field: new.get(part[field]) for field in fields} for part in dumped]

    parts = {name: all_of(getattr(scenario, name), "id") for name in ("assets", "identities")}
    parts |= {name: all_of(getattr(scenario, name), "asset", "identity") for name in ("stages", "benign")}
    return Scenario.model_validate(scenario.model_dump() | parts)


def loads(text: str, source: str = "<string>") -> Scenario:
    """The scenario in `text`: JSON if `source` ends in .json, else YAML. `source` names it in error messages.

    Raises ScenarioError when the text is not a valid scenario.
    """
    tree = read(text, as_json=source.lower().endswith(".json"))
    problems = tree.problems or _top_problems(tree.data)
    if problems:
        raise ScenarioError(*report(problems, tree, source))
    return from_tree(tree, source)


def from_tree(tree: Tree, source: str) -> Scenario:
    """The scenario that was read. Raises ScenarioError when a field of it is not valid."""
    try:
        return Scenario.model_validate(tree.data)
    except ValidationError as error:
        raise ScenarioError(*report(_field_problems(error, tree), tree, source)) from None


def dump(scenario: Scenario) -> str:
    """The scenario as YAML that `loads` reads back to an equal scenario. Defaults are left out."""
    text: str = yaml.dump(
        scenario.model_dump(exclude_defaults=True),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=110,
    )
    return re.sub(r"^(assets|identities|stages|benign|queues|sources):", r"\n\1:", text, flags=re.MULTILINE)


def digest(scenario: Scenario) -> str:
    """What the scenario is, as 64 hex digits: equal for equal content, however its file is written or called.

    Its other queues are no part of it: each is a scenario of its own. Nor is what was assumed, and why.
    """
    content = scenario.model_dump(mode="json", exclude={"queues", "sources"})
    parts = ("assets", "identities", "stages", "benign")
    for entry in (content, *(entry for part in parts for entry in content[part])):
        del entry["assumed"]
        if not entry.get("impact"):  # files without one have the digest that they had before there was one
            entry.pop("impact", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> yaml.Node:
    # Quotes around whatever `loads` would not read as text; the YAML library knows other such words than it.
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain(text) == text else '"')
    return node


_Dumper.add_representer(str, _represent_text)


@cache
def _load_built_in(name: str) -> Scenario:
    file = files("scenarios").joinpath("campaigns", *_BUILT_IN[name].split("/"))
    return loads(file.read_text(encoding="utf-8"), source=f"{name}.yaml")


def _unknown_name(name: str) -> str:
    close = get_close_matches(name[:100], _BUILT_IN, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    if os.path.isdir(name):
        meant = "that is a folder, so give the path of a file in it; "
    if os.path.isfile(name):
        meant = f"to read it as a file, let its name end in {', '.join(_SUFFIXES)}; "
    return (
        f"{printable(name) or '(empty name)'}: is not the name of a built-in scenario; {meant}"
        f"built-in are {', '.join(_BUILT_IN)}, anything else is a path that ends in {', '.join(_SUFFIXES)}"
    )


def _top_problems(data: Any) -> list[Problem]:
    """Problems that would make all others noise."""
    if not isinstance(data, dict):
        fields = ", ".join(Scenario.model_fields)
        return [Problem((), f"got {show(data)}; a scenario is a mapping with the fields {fields}")]
    version = data.get("format")
    if isinstance(version, int) and not isinstance(version, bool) and version != FORMAT:
        message = f"got {version}, but only format {FORMAT} is known here; write `format: {FORMAT}`, or update"
        return [Problem(("format",), f"{message} jaxsim-soc if the file is newer than it")]
    return []


def _field_problems(error: ValidationError, tree: Tree) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        loc = item["loc"]
        if item["type"] == "scenario":
            for problem in item["ctx"]["problems"]:
                yield Problem((*loc, *problem.loc), problem.message)
        elif item["type"] != "default_factory_not_called":  # this one only follows from another
            yield Problem(loc, _field_message(item["type"], loc, item["input"], tree))


def _field_message(kind: str, loc: Loc, value: Any, tree: Tree) -> str:
    """What to say of a value that pydantic refused with an error of this kind."""
    model = next((_SECTIONS[part] for part in reversed(loc[:-1]) if part in _SECTIONS), Scenario)
    field = next(str(part) for part in reversed(loc) if isinstance(part, str))
    if kind == "extra_forbidden":
        known = list(model.model_fields)
        remedy = did_you_mean(field, known) or f"; remove it (the fields are {', '.join(known)})"
        return f"is not a known field{remedy}"
    if kind == "model_type":
        return f"got {show(value)}; expected a mapping with the fields {', '.join(model.model_fields)}"
    about = model.model_fields[field]
    meaning = f"`{field}` is {about.description}"
    example = about.examples[0] if about.examples else None
    as_text = example if isinstance(example, str) else json.dumps(example)
    if kind == "missing":
        add = f"`{field}: {as_text}`" if about.examples else "it"
        return f"is missing; add {add}; {meaning}"
    if field == "signal" and isinstance(value, str) and did_you_mean(value, SIGNALS):
        return f"got {show(value)}{did_you_mean(value, SIGNALS)}"
    shown = f", for example `{field}: {as_text}`" if about.examples else ""
    return f"got {show(value)}{_hint(kind, value)}; {meaning}{shown}"


def _hint(kind: str, value: Any) -> str:
    """What is likely to be behind a value of the wrong type; empty when its limits are the matter."""
    if isinstance(value, Odd):
        return f", {value.why}"
    if kind == "int_type" and isinstance(value, str) and (ticks := ticks_of(value)) is not None:
        return f", which is {ticks:g} ticks"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str):
        wanted = (bool,) if kind == "bool_type" else (int, float)
        return ", which is text; remove the quotes" if isinstance(plain(value), wanted) else ", which is text"
    if kind == "string_type" and isinstance(value, int | float):
        return ", which is not text; put it in quotes"
    if kind == "int_type" and isinstance(value, float):
        return ", which is not written as a whole number"
    if kind == "tuple_type":
        return ", which is not a list"
    if kind == "too_long":
        return f", which is {len(value)} in all"
    return ""
