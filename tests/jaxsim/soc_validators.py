"""Validators of exports that we did not write, all of them offline. Each gives a list of problems."""

import contextlib
import io
import warnings
from functools import cache
from typing import Any

import jsonschema

with warnings.catch_warnings():  # theirs
    warnings.simplefilter("ignore")
    import countermap.emit.validate
    import mitreattack.navlayers
    import ocsf_json_schema
    import stix2validator


@cache
def _ocsf(class_uid: int) -> jsonschema.Draft202012Validator:
    known = ocsf_json_schema.OcsfJsonSchemaEmbedded(ocsf_json_schema.get_ocsf_schema(version="1.8.0"))
    name = known.lookup_class_name_from_uid(class_uid=class_uid)
    return jsonschema.Draft202012Validator(known.get_class_schema(class_name=name, profiles=[]))


def ocsf(event: dict[str, Any]) -> list[str]:
    """Of an event, by the JSON schema of its class in OCSF 1.8.0."""
    return [f"{list(e.absolute_path)}: {e.message}" for e in _ocsf(event["class_uid"]).iter_errors(event)]


def stix(bundle: dict[str, Any]) -> list[str]:
    """Of a STIX 2.1 bundle: what it must, and what it should but for ids that are random (ours are made of names)."""
    options = stix2validator.ValidationOptions(version="2.1", disabled="uuid-check", enforce_refs=True)
    found = stix2validator.validate_instance(bundle, options)
    return [str(x) for x in (*found.errors, *found.warnings)]


def attack_flow(bundle: dict[str, Any]) -> list[str]:
    """Of a bundle with one Attack Flow, by the schema of its language."""
    problems: list[str] = countermap.emit.validate.validate_attack_flow(bundle)
    return problems


def navigator(layer: dict[str, Any]) -> list[str]:
    """Of a layer: what MITRE's library says of it, and what it does not keep; it leaves out what it does not know."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        loaded = mitreattack.navlayers.Layer(layer, strict=True)
        kept = loaded.to_dict() if loaded.layer != "No Layer Loaded Yet!" else {}
    problems = said.getvalue().splitlines()
    return problems + [f"{k}: {v!r:.200} became {kept.get(k)!r:.200}" for k, v in layer.items() if kept.get(k) != v]
