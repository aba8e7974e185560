"""The files of an export, written as the episodes come: a line for each event, so that a million need no memory."""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsim.response import Response, hours
from jaxsim.soc import navigator, ocsf, stix
from jaxsim.soc.episodes import Episode
from jaxsim.soc.ocsf import Site
from jaxsim_soc import json_lines

Lines = Callable[[Site, Episode], Iterator[dict[str, Any]]]
NOTE = "export.json"  # what was exported; and what says that a folder is an export


class Format(NamedTuple):
    """A file of JSON lines."""

    file: str
    lines: Lines


def alerts(site: Site, played: Episode) -> Iterator[dict[str, Any]]:
    """The alerts of an episode as OCSF events: what the defender saw, and no truth."""
    return (ocsf.alert(site, played.number, seen) for seen in played.alerts)


def truth(site: Site, played: Episode) -> Iterator[dict[str, Any]]:
    """The cause of each alert, in the order of `alerts`, by its `metadata.uid`."""
    techniques = {s.id: s.technique for s in site.scenario.stages}
    for seen, cause in zip(played.alerts, played.causes, strict=True):
        uid = ocsf.alert_uid(site, played.number, seen.number)
        label = {"uid": uid, "malicious": cause.kind == "stage", "cause": cause.kind, "id": cause.id}
        yield label | ({"technique": techniques[str(cause.id)]} if cause.kind == "stage" else {})


def actions(site: Site, played: Episode) -> Iterator[dict[str, Any]]:
    """What the defender did, as OCSF events; no truth."""
    return (ocsf.action(site, played.number, done) for done in played.deeds)


def incidents(site: Site, played: Episode) -> Iterator[dict[str, Any]]:
    """The report of an episode as an OCSF event, if there is something to report."""
    return filter(None, [ocsf.incident(site, played)])


def bundles(site: Site, played: Episode) -> Iterator[dict[str, Any]]:
    """The report of an episode as a STIX bundle, if there was an attack."""
    return filter(None, [stix.bundle(site, played)])


FORMATS = {
    "alerts": Format("alerts.jsonl", alerts),
    "truth": Format("truth.jsonl", truth),
    "actions": Format("actions.jsonl", actions),
    "incidents": Format("incidents.jsonl", incidents),
    "stix": Format("stix.jsonl", bundles),
}
LAYERS = {"layers": ("campaign.layer.json", "stopped.layer.json")}
NAMES = (*FORMATS, *LAYERS)


def write(
    place: Path, site: Site, played: Iterable[Episode], about: dict[str, Any], only: Iterable[str] = NAMES
) -> dict[str, int]:
    """Write episodes into the folder `place`, which is there: the files of the formats `only` names, and a note.

    `about` goes into the note. Returns the number of lines of each file.
    """
    chosen = {name: form for name, form in FORMATS.items() if name in only}
    lines = dict.fromkeys((form.file for form in chosen.values()), 0)
    tallies: dict[navigator.Pair, navigator.Tally] = {}
    counts, responses = np.zeros(3, int), array("i")  # of all episodes, flat: five ints each
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(place / form.file, "wb")) for name, form in chosen.items()}
        for one in played:
            for name, form in chosen.items():
                for line in form.lines(site, one):
                    files[name].write(json_lines.encode([line]))
                    lines[form.file] += 1
            navigator.tally(tallies, site.scenario, one)
            responses.extend(one.response)
            counts += (one.containments, one.evidence_backed, one.false_containments)
    if "layers" in only:
        layers = navigator.campaign(site.scenario), navigator.stopped(site.scenario, site.defender, tallies)
        for file, layer in zip(LAYERS["layers"], layers, strict=True):
            _json(place / file, layer)
    contained, backed, false = (int(n) for n in counts)
    times = np.asarray(responses, int).reshape(-1, len(Response._fields))
    found: dict[str, Any] = {"episodes": len(times), **hours(Response(*times.T)), "containments": contained}
    found |= {"evidence_backed_containments": backed, "false_containments": false, "lines": lines}
    _json(place / NOTE, about | found)
    return lines


def _json(path: Path, value: Any) -> None:
    with open(path, "wb") as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
