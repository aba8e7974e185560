"""The audit's gate: no training on a reward that pays for something other than reading the evidence.

The project's own verdicts come from reports of the sweep, later ones replacing earlier ones:

    python grpo/gate.py out/classic/report.json out/hardened/report.json > benchmarks/results/verdicts.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from jaxsim.version import SIMULATOR_VERSION

OWN = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "verdicts.json"


def verdicts(path: Path, rules: str, reward: str, campaigns: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """(the audit's rows for these campaigns, what speaks against training, in words).

    `path` is the report.json of a sweep, or the project's own collection of verdicts. Raises ValueError when it is
    neither.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        every = document["verdicts"]
        version = document["simulator_version"]
        keyed = {(r["scenario"], r["rules"], r["reward"]): r for r in every}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the report of a sweep ({error}); give its report.json") from None
    if version != SIMULATOR_VERSION:
        raise ValueError(f"{path}: simulator_version = {version!r}, but this is {SIMULATOR_VERSION!r}; audit again")
    found, objections = [], []
    for name in campaigns:
        row = keyed.get((name, rules, reward))
        if row is None:
            objections.append(f"reward {reward!r} under rules {rules!r} on {name} has not been audited")
            continue
        found.append({k: row[k] for k in ("scenario", "rules", "reward", "verdict", "exploits", "evg_norm_ci")})
        if row["verdict"] != "certified":
            objections.append(_objection(row))
    return found, objections


def _objection(row: dict[str, Any]) -> str:
    text = f"reward {row['reward']!r} under rules {row['rules']!r} on {row['scenario']} is {row['verdict']}"
    if not row["exploits"]:
        return text
    best = row["farming"] if "open-loop" not in row["exploits"] and row.get("farming") else row["best_open_loop"]
    plan = [a for a in best.get("plan", []) if a]
    short = "; ".join(plan[:4]) + ("; …" if len(plan) > 4 else "")
    witness = f"{short or best.get('params')}, return {best['return']:.2f}"
    return f"{text} ({', '.join(row['exploits'])}); its witness: {witness}"


def collection(reports: Sequence[Path]) -> dict[str, Any]:
    """What the gate needs of several reports, as a document of its own. Raises ValueError when versions differ."""
    kept = ("scenario", "rules", "reward", "verdict", "exploits", "evg_norm_ci")
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in reports:
        document = json.loads(path.read_text("utf-8"))
        if document["simulator_version"] != SIMULATOR_VERSION:
            raise ValueError(f"{path}: simulator_version = {document['simulator_version']!r}; audit again")
        for row in document["verdicts"]:
            fields = ("plan", "params", "return")
            best = {k: {f: row[k][f] for f in fields if f in row[k]} for k in ("best_open_loop", "farming")}
            about = {"budget": document["budget"]["name"], "seed": document["seed"]}
            rows[row["scenario"], row["rules"], row["reward"]] = {k: row[k] for k in kept} | best | about
    return {"simulator_version": SIMULATOR_VERSION, "verdicts": list(rows.values())}


if __name__ == "__main__":
    print(json.dumps(collection([Path(a) for a in sys.argv[1:]]), indent=1))
