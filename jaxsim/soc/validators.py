"""Exports held against validators that are not ours, all of them offline. They are in the extra `soc`.

OCSF: the JSON schemas of 1.8.0, in `ocsf-json-schema`. STIX 2.1: `stix2-validator`. Attack Flow: the schema of its
language, in `countermap`. Layers of the Navigator: MITRE's own library, `mitreattack-python`.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jaxsim.soc.export import FORMATS, LAYERS
from jaxsim.soc.ocsf import VERSION

PACKAGES = ("jsonschema", "ocsf_json_schema", "stix2validator", "countermap", "mitreattack")
CLASSES = (2004, 2005, 7001, 7004)
Problems = list[str]


@cache
def _class(class_uid: int) -> Any:
    import jsonschema
    import ocsf_json_schema

    known = ocsf_json_schema.OcsfJsonSchemaEmbedded(ocsf_json_schema.get_ocsf_schema(version=VERSION))
    name = known.lookup_class_name_from_uid(class_uid=class_uid)
    return jsonschema.Draft202012Validator(known.get_class_schema(class_name=name, profiles=[]))


def ocsf(event: dict[str, Any]) -> Problems:
    """Of an event, by the JSON schema of its class."""
    if (uid := event.get("class_uid")) not in CLASSES:
        return [f"class_uid: {uid!r:.60} is none of {', '.join(map(str, CLASSES))}"]
    return [f"{list(e.absolute_path)}: {e.message}" for e in _class(uid).iter_errors(event)]


def stix(bundle: dict[str, Any]) -> Problems:
    """Of a STIX 2.1 bundle: what it must, and what it should but for ids that are random (ours are made of names)."""
    with warnings.catch_warnings():  # theirs
        warnings.simplefilter("ignore")
        import stix2validator
    options = stix2validator.ValidationOptions(version="2.1", disabled="uuid-check", enforce_refs=True)
    found = stix2validator.validate_instance(bundle, options)
    return [str(x) for x in (*found.errors, *found.warnings)]


def attack_flow(bundle: dict[str, Any]) -> Problems:
    """Of a bundle with one Attack Flow, by the schema of its language."""
    import countermap.emit.validate

    problems: Problems = countermap.emit.validate.validate_attack_flow(bundle)
    return problems


def navigator(layer: dict[str, Any]) -> Problems:
    """Of a layer: what MITRE's library says of it, and what it does not keep; it leaves out what it does not know."""
    with warnings.catch_warnings():  # theirs
        warnings.simplefilter("ignore")
        import mitreattack.navlayers
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        loaded = mitreattack.navlayers.Layer(layer, strict=True)
        read = loaded.layer != "No Layer Loaded Yet!"
        kept = loaded.to_dict() if read else {}
    problems = said.getvalue().splitlines() or ["no layer"] * (not read)
    return problems + [f"{k}: {v!r:.200} became {kept.get(k)!r:.200}" for k, v in layer.items() if kept.get(k) != v]


Validator = Callable[[dict[str, Any]], Problems]
VALIDATORS: dict[str, tuple[Validator, ...]] = {  # by the name of a file; truth has a format of our own
    **{FORMATS[name].file: (ocsf,) for name in ("alerts", "actions", "incidents")},
    FORMATS["stix"].file: (stix, attack_flow),
    **dict.fromkeys(LAYERS["layers"], (navigator,)),
}


def files(folder: Path) -> list[Path]:
    """What can be checked in a folder, and in folders in it."""
    return sorted(x for x in folder.rglob("*.json*") if x.name in VALIDATORS)


def check(path: Path) -> Iterator[Problems]:
    """Of each line of a file, or of a layer, what all validators of its format say."""
    with open(path, "rb") as file:
        for text in file if path.suffix == ".jsonl" else [file.read()]:
            yield _problems(path.name, text)


def _problems(file: str, text: bytes) -> Problems:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [f"no JSON ({error})"]
    if not isinstance(value, dict):
        return [f"is no JSON object but {value!r:.60}"]
    return [problem for validator in VALIDATORS[file] for problem in _asked(validator, value)]


def _asked(validator: Validator, value: dict[str, Any]) -> Problems:
    try:
        return validator(value)
    except Exception as error:  # of what is far from its format they raise, each in its own way
        return [f"{validator.__name__} cannot read it ({type(error).__name__}: {error})"]
