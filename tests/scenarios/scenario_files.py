"""What the tests of scenario files share."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

import scenarios

ROOT = Path(__file__).resolve().parents[2]

CAMPAIGNS = ROOT / "scenarios" / "campaigns"
NAMES = scenarios.names()
HARDENED = scenarios.names("hardened")
FILES = {name: CAMPAIGNS / f"{name}.yaml" for name in NAMES} | {
    name: CAMPAIGNS / "hardened" / f"{name}.yaml" for name in HARDENED
}
BACKUP = {"id": "backup", "name": "Back up", "asset": "web", "rate": 0.1, "strength": 0.4, "signal": "data_staging"}


def base() -> dict[str, Any]:
    """A small valid scenario as plain data: a root, a collection stage, and exfiltration."""
    common = {"success": 0.9, "detection": 0.3, "lag": [1, 4]}
    web = {"id": "web", "kind": "service", "criticality": 0.7, "segment": "edge"}
    alice = {"id": "alice", "role": "engineer", "privilege": 0.6}
    enter = {"tactic": "TA0001", "technique": "T1566.002", "identity": "alice", "dwell": [2, 5]}
    gather = {"tactic": "TA0009", "technique": "T1213.006", "asset": "web", "dwell": [3, 6]}
    leave = {"tactic": "TA0010", "technique": "T1041", "asset": "web", "dwell": [1, 1], "exfil": True}
    return {
        "format": 1,
        "id": "sample",
        "title": "A short campaign",
        "horizon": 40,
        "noise_rate": 0.1,
        "assets": [web],
        "identities": [alice],
        "stages": [
            {"id": "phish", "name": "Phish", **enter, **common},
            {"id": "collect", "name": "Collect", "prerequisites": ["phish"], **gather, **common},
            {"id": "exfil", "name": "Leave", "prerequisites": ["collect"], **leave, **common},
        ],
    }


def as_yaml(data: Any) -> str:
    # The detour parts values that share memory, which would become anchors and aliases.
    return yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False)


def read(data: Any) -> scenarios.Scenario:
    return scenarios.loads(as_yaml(data))


word = st.one_of(
    st.sampled_from(["no", "1e5", "0x1F", "1_000", "12", "2024-01-31", "null", "True", "1.0", "0o7", "on", "1e-3"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
)

GOOD = scenarios.dump(scenarios.load(NAMES[2]))
