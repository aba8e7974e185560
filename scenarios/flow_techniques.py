"""The ATT&CK tactic and technique of a flow's action, in the pinned version: `resolve`."""

import re
from functools import cache
from typing import NamedTuple

from scenarios import attack
from scenarios.attack_flow import Node
from scenarios.wording import show

# As an attack goes, for a technique of several tactics.
KILL_CHAIN = (
    *("TA0043", "TA0042", "TA0001", "TA0002", "TA0003", "TA0004", "TA0005", "TA0112"),
    *("TA0006", "TA0007", "TA0008", "TA0009", "TA0011", "TA0010", "TA0040"),
)


class Resolved(NamedTuple):
    """A pair that the pinned table has, and what was changed to get there, by kind of change."""

    tactic: str
    technique: str
    changes: tuple[tuple[str, str], ...] = ()  # (kind, one line)


def resolve(action: Node) -> Resolved | str:
    """The pair of an action, or why it has none."""
    tactic, technique = _tactic(action.tactic), action.technique.strip().upper()
    changes = []
    known = attack.techniques()
    if not technique:
        technique = _by_name().get(_plain(action.name.rpartition(": ")[2]), "")
        if not technique:
            return "names no technique"
        changes.append(("technique by name", f"{technique} by the name {show(action.name)}"))
    if technique in attack.renamed():
        now = attack.renamed()[technique]
        changes.append(("technique renamed", f"{technique} is {now} now"))
        technique = now
    if technique not in known:
        return f"{show(action.technique)} is no technique of ATT&CK {attack.version()}"
    own = known[technique][1]
    if tactic in own:
        return Resolved(tactic, technique, tuple(changes))
    given = show(action.tactic) if action.tactic else "no tactic"
    if len(own) == 1:
        kind = "tactic mended" if action.tactic else "tactic by technique"
        changes.append((kind, f"{given}, and {technique} has only {own[0]}"))
        return Resolved(own[0], technique, tuple(changes))
    # The nearest to what was said, or else the first.
    place = KILL_CHAIN.index(tactic) if tactic in KILL_CHAIN else 0
    chosen = min(own, key=lambda one: (abs(KILL_CHAIN.index(one) - place), KILL_CHAIN.index(one)))
    changes.append(("tactic chosen", f"{given}, and {technique} has {', '.join(own)}: {chosen} is taken"))
    return Resolved(chosen, technique, tuple(changes))


def _tactic(written: str) -> str:
    return _tactics().get(_plain(written), written.strip().upper())


@cache
def _tactics() -> dict[str, str]:
    return {_plain(name): key for key, name in attack.tactics().items()}


@cache
def _by_name() -> dict[str, str]:
    """Techniques by name, those whose name is theirs alone."""
    found: dict[str, str] = {}
    for key, (name, _) in attack.techniques().items():
        found[_plain(name)] = "" if _plain(name) in found else key
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text[:200]).strip().lower()
