"""The pinned MITRE ATT&CK table: which tactics and techniques exist, and which pairs belong together.

The table is `attack.json`, next to this file; its head names the ATT&CK version, how the table was made, and
MITRE's copyright and licence. `renamed.json` has the ids that are no longer. Nothing is fetched.
"""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from scenarios.wording import show


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files("scenarios").joinpath("attack.json").read_text(encoding="utf-8"))
    return table


def version() -> str:
    """The ATT&CK version of the table, such as `Enterprise v19`."""
    return str(_table()["attack_version"])


def tactics() -> dict[str, str]:
    """Every Enterprise tactic: id to name, such as TA0006 to Credential Access."""
    return dict(_table()["tactics"])


def techniques() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every current Enterprise technique and sub-technique: id to (name, ids of its tactics)."""
    return {key: (row[0], tuple(row[1:])) for key, row in _table()["techniques"].items()}


@cache
def renamed() -> dict[str, str]:
    """Techniques that ATT&CK no longer has: id to that of the current one that took its place."""
    text = files("scenarios").joinpath("renamed.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["renamed"])


def tactic_problem(tactic: str) -> str | None:
    """Why `tactic` is not an ATT&CK tactic id, with the remedy; None when it is one."""
    known = _table()["tactics"]
    if tactic in known:
        return None
    wanted = _plain(tactic)
    for key, name in known.items():
        if wanted in (_plain(name), _plain(key)):
            return f"{show(tactic)} is not a tactic id; for {name} write {key}"
    return f"{show(tactic)} is not a tactic of ATT&CK {version()}; use one of {_named(known)}"


def technique_problem(technique: str) -> str | None:
    """Why `technique` is not an ATT&CK technique id, with the remedy; None when it is one."""
    known = _table()["techniques"]
    if technique in known:
        return None
    if not re.fullmatch(r"T\d{4}(\.\d{3})?", technique):
        return f"{show(technique)} is not a technique id; write one like T1566 or T1566.002"
    parent = technique.partition(".")[0]
    family = [key for key in known if key == parent or key.startswith(parent + ".")]
    if family:
        remedy = f"use one of {', '.join(family)}"
    else:
        remedy = "it may be retired or renumbered; look it up at https://attack.mitre.org/techniques/enterprise/"
    return f"{show(technique)} is not a technique of ATT&CK {version()}; {remedy}"


def pair_problem(tactic: str, technique: str) -> str | None:
    """Why `technique` does not serve `tactic`, with the remedy; None when it does. Both ids must exist."""
    names = _table()["tactics"]
    name, *its_tactics = _table()["techniques"][technique]
    if tactic in its_tactics:
        return None
    own = _named({key: names[key] for key in its_tactics})
    return (
        f"{technique} ({name}) is not a technique of {tactic} ({names[tactic]}) in ATT&CK {version()}; "
        f"set tactic to {own}, or pick another technique"
    )


def _named(table: dict[str, str]) -> str:
    return ", ".join(f"{key} ({name})" for key, name in table.items())


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip().lower()
