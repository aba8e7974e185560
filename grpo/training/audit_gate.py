"""The audit's gate: no training on a reward that pays for something other than reading the evidence.

The project's own verdicts come from reports of the sweep, later ones replacing earlier ones:

    jaxsim-soc gate out/classic/report.json out/hardened/report.json > jaxsim/audit/verdicts.json

A verdict is about a network, not about its name: rows are found by the digest of the scenario's content.
"""

import json
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import scenarios
from jaxsim.rules import ANY
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

OWN = Path(str(files("jaxsim.audit"))) / "verdicts.json"  # the project's own collection
KEPT = ("scenario", "rules", "reward", "verdict", "exploits", "evg_norm_ci")
BEST = ("best_open_loop", "best_open_loop_std0", "best_evidence", "farming")
NOT_AUDITED = "not audited"
AUDIT = "out/audit"  # where the remedy writes

Row = dict[str, Any]


def verdicts(path: Path, rules: str, reward: str, campaigns: Sequence[str]) -> tuple[list[Row], list[str]]:
    """(a row for each of these campaigns, names or files; what speaks against training, in words).

    `path` is the report.json of a sweep, read beside the project's own collection of verdicts, or that. Raises
    ValueError when it is neither.
    """
    every = (rows_of(OWN) if path != OWN else []) + rows_of(path)
    # Training meets every attacker, and so must the audit.
    keyed = {(r.get("digest"), r["rules"], r["reward"]): r for r in every if r.get("personality", ANY) == ANY}
    called = {(r["scenario"], r["rules"], r["reward"]): r for r in every}
    found, objections = [], []
    for name in campaigns:
        scenario = scenarios.load(name)
        digest = scenarios.digest(scenario)
        row = keyed.get((digest, rules, reward))
        if row is not None:
            found.append({k: row[k] for k in KEPT} | {"digest": digest})
            objections += [] if row["verdict"] == "certified" else [_objection(row)]
            continue
        gaps: Row = dict.fromkeys(KEPT) | {"scenario": scenario.id, "rules": rules, "reward": reward, "exploits": []}
        found.append(gaps | {"verdict": NOT_AUDITED, "digest": digest})
        text = f"reward {reward!r} under rules {rules!r} on {_in_words(scenario.id, name)} has not been audited"
        other = called.get((scenario.id, rules, reward))
        objections.append(text + (f": {_difference(other, digest)}" if other else ""))
    return found, objections


def remedy(rules: str, reward: str, found: Sequence[Row], campaigns: Sequence[str]) -> str:
    """What to do about the objections to these rows, those of `campaigns`."""
    missing = [name for row, name in zip(found, campaigns, strict=True) if row["verdict"] == NOT_AUDITED]
    if not missing:
        return "choose a certified reward"
    what = shlex.join(["--scenario", *missing, "--rules", rules, "--reward", reward, "--certify"])
    return f"audit it (jaxsim-soc audit {what} --out out/audit), then give --audit out/audit/report.json"


def rows_of(path: Path) -> list[Row]:
    """The verdicts of a report. Raises ValueError when it is none, or of another simulator."""
    every: list[Row] = _document(path)["verdicts"]
    return every


def _document(path: Path) -> Row:
    try:
        document: Row = json.loads(path.read_text("utf-8"))
        version = document["simulator_version"]
        for row in document["verdicts"]:
            if missing := [k for k in KEPT if k not in row]:
                raise ValueError(f"a verdict has no {missing[0]}")
            hash((row.get("digest"), row["scenario"], row["rules"], row["reward"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not the report of a sweep ({error}); give its report.json") from None
    if version != SIMULATOR_VERSION:
        raise ValueError(f"{path}: simulator_version = {version!r}, but this is {SIMULATOR_VERSION!r}; audit again")
    return document


def _in_words(identity: str, name: str) -> str:
    return identity if name == identity else f"{identity} ({name})"


def _difference(other: Row, digest: str) -> str:
    """Why the verdict on a network of the same id is none on this one."""
    if not other.get("digest"):
        return "a report of an earlier version has this id, but not what the network was"
    if other["digest"] == digest:
        return f"it has been against the attacker {other['personality']!r} alone"
    return f"a network of this id has been, with other content (digest {other['digest']:.12}, this one {digest:.12})"


def _objection(row: Row) -> str:
    text = f"reward {row['reward']!r} under rules {row['rules']!r} on {row['scenario']} is {row['verdict']}"
    if row["verdict"] == "undecided" and row.get("unmet"):
        text += f" for want of {', '.join(row['unmet'])}"
    best = row.get("farming") if "open-loop" not in row["exploits"] else None
    # Luck explains nothing of a plan whose return never varies, if that earns more than reading as well.
    certain, reads = row.get("best_open_loop_std0"), row.get("best_evidence")
    if certain and reads and certain["return"] > reads["return"]:
        best = best or certain
    best = best or row.get("best_open_loop")
    if not row["exploits"] or not best:
        return text
    plan = [a for a in best.get("plan", []) if a]
    short = "; ".join(plan[:4]) + ("; …" if len(plan) > 4 else "")
    witness = f"{short or best.get('params')}, return {best['return']:.2f}"
    return f"{text} ({', '.join(row['exploits'])}); its witness: {witness}"


def collection(reports: Sequence[Path]) -> Row:
    """What the gate needs of several reports, as a document of its own. Raises ValueError for what is no report."""
    rows: dict[tuple[str, str, str], Row] = {}
    for path in reports:
        document = _document(path)
        fields = ("plan", "params", "return")
        try:
            about = {"budget": document["budget"]["name"], "seed": document["seed"]}
            for row in document["verdicts"]:
                best = {k: row[k] and {f: row[k][f] for f in fields if f in row[k]} for k in BEST}
                kept = {k: row[k] for k in (*KEPT, "unmet", "digest", "personality")}
                rows[row["digest"], row["rules"], row["reward"]] = kept | best | about
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the report of this version's sweep ({error}); audit again") from None
    return {"simulator_version": SIMULATOR_VERSION, "verdicts": list(rows.values())}


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("reports", type=cli.input_file, nargs="+", metavar="report.json", help="of a sweep")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Print the collection of the reports that the command line names."""
    args = parser().parse_args(argv)
    try:
        print(json.dumps(collection(args.reports), indent=1))
    except ValueError as error:
        cli.fail(str(error))
