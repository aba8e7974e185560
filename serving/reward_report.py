"""Tests of a reward as OpenEnv's RFC 008 proposes them, from what an audit has already measured; nothing is played.

    jaxsim-soc reward-report out/sweep

reads the report of `jaxsim-soc audit` and writes, for each of its rewards, five checks by the RFC's ids:

semantic.oracle_max           the golden solution (told the truth, or else the best that reads) earns the most of all
semantic.floor_gap            doing nothing earns less than it
statistical.adversarial_floor policies that read nothing stay at what doing nothing earns
semantic.canary_floor         so do known ways of gaming: one containment again and again, and random play
statistical.gameability_gap   returns rank policies as what happened does (Kendall's tau)

The RFC's floor is absolute, and a network that is known beforehand always lets a plan earn something: what passes
is the share of the golden solution's gain that a certified reward may leave to plans. `at_floor` is the RFC's own.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from jaxsim import recurrent
from jaxsim.audit.rescore import CERTIFIED_EVG_NORM
from jaxsim.audit.verdict import CERTIFIED_TAU, READING
from jaxsim_soc import cli

FORMAT = "1"
NOTHING = "monitor"
GOLDEN = (recurrent.PRIVILEGED, *READING)
BLIND = ("open-loop", "positional", "briefed", "certain", recurrent.MASKED)
CANARIES = ("random", "farming", "farming x1", "farming x4")
TOLERANCE = 0.1  # of the golden solution's gain, the most that RFC 008 allows
LEFT = 1 - CERTIFIED_EVG_NORM  # of that gain, to those who read nothing


def checks(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks of one reward, from its row of the `verdicts` of an audit's report.json; each as RFC 008's
    CheckResult. Gains are in points over doing nothing. Upper ends of the 95 % intervals count for whoever games.

    Raises ValueError for a row without its policies.
    """
    found = {p["policy"]: p for p in row["policies"]}
    golden = max((found[x] for x in GOLDEN if x in found), key=_mean, default=None)
    if golden is None or NOTHING not in found:
        raise ValueError(f"verdict of {row['scenario']}: no {NOTHING} or nobody who reads; audit it again")
    floor, best = _mean(found[NOTHING]), max(found.values(), key=_mean)
    gain = _mean(golden) - floor
    short = _mean(best) - _mean(golden)
    at_best = {"golden": _told(golden), "maximum": _told(best), "floor": floor, "tolerance": TOLERANCE}
    tau = row["outcome_tau"]
    tau = math.nan if tau is None else float(tau)
    return [
        _check(
            "semantic.oracle_max",
            gain > 0 and short <= TOLERANCE * gain,
            at_best,
            f"{golden['policy']} earns {_mean(golden):+.2f}, the most of all is {_mean(best):+.2f} ({best['policy']})",
            "something earns more than solving the task; the audit's witness shows it",
        ),
        _check(
            "semantic.floor_gap",
            golden["return_ci"][0] > found[NOTHING]["return_ci"][1],
            {"golden": _told(golden), "floor": _told(found[NOTHING]), "gap": gain},
            f"doing nothing earns {floor:+.2f}, {gain:.2f} points less than the golden solution",
            "the reward pays as much for doing nothing as for the best known defence",
        ),
        _stays("statistical.adversarial_floor", [found[x] for x in BLIND if x in found], floor, gain, row),
        _stays("semantic.canary_floor", [found[x] for x in CANARIES if x in found], floor, gain, row),
        _check(
            "statistical.gameability_gap",
            tau >= CERTIFIED_TAU,
            {
                "kendall_tau": None if math.isnan(tau) else tau,
                "bound": CERTIFIED_TAU,
                "harm_seeker": row["harm_seeker"],
            },
            "no policy is comparable" if math.isnan(tau) else f"tau of returns and outcomes {tau:.2f}",
            "policies with worse outcomes earn more",
        ),
    ]


def _mean(policy: dict[str, Any]) -> float:
    return float(policy["return"])


def _told(policy: dict[str, Any]) -> dict[str, Any]:
    return {"policy": policy["policy"], "return": policy["return"], "return_ci": policy["return_ci"]}


def _stays(name: str, panel: list[dict[str, Any]], floor: float, gain: float, row: dict[str, Any]) -> dict[str, Any]:
    """Whether a panel stays near the floor."""
    worst = max(panel, key=lambda p: p["return_ci"][1])
    share = (worst["return_ci"][1] - floor) / gain if gain > 0 else math.inf
    measured = {
        "panel": [_told(p) for p in panel],
        "floor": floor,
        "share_of_gain": share if math.isfinite(share) else None,
        "allowed": LEFT,
        "at_floor": all(p["return_ci"][0] <= floor for p in panel),
        "witness": row.get("witness"),
    }
    said = f"{worst['policy']} earns at most {worst['return_ci'][1]:+.2f}, the floor is {floor:+.2f}"
    return _check(name, share <= LEFT, measured, said, "playing without reading earns too much of what reading earns")


def _check(name: str, passed: bool, measured: dict[str, Any], said: str, remedy: str) -> dict[str, Any]:
    return {
        "check_id": name,
        "status": "pass" if passed else "fail",
        "measured": measured,
        "evidence": [said],
        "remediation": None if passed else remedy,
    }


def reward_report(document: dict[str, Any]) -> dict[str, Any]:
    """The report for a hub, from the whole report.json of an audit. Raises ValueError for what is none."""
    try:
        rows = [
            {name: row[name] for name in ("scenario", "rules", "reward", "personality", "episodes", "verdict")}
            | {"results": checks(row)}
            for row in document["verdicts"]
        ]
        head = {name: document[name] for name in ("simulator_version", "version", "budget", "seed")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing or wrong; give the folder that jaxsim-soc audit wrote") from None
    for row in rows:
        row["passed"] = all(result["status"] == "pass" for result in row["results"])
    return {"reward_report_version": FORMAT, "follows": "OpenEnv RFC 008", **head, "rewards": rows}


def read(source: Path) -> dict[str, Any]:
    """The report from a file of an audit. Ends the program, in one line, for what is none."""
    try:
        return reward_report(json.loads(source.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        cli.fail(f"{source}: {error}")


def parser() -> cli.Parser:
    """Options of the command."""
    p = cli.parser(__doc__)
    p.add_argument("folder", type=cli.input_folder, metavar="DIR", help="the --out of an audit")
    p.add_argument("--out", type=cli.output_path, metavar="FILE", help="default: DIR/reward-report.json")
    return p


def main() -> int:
    """Write the report, say what it finds. Exit code 1 where a check failed."""
    args: argparse.Namespace = parser().parse_args()
    report = read(args.folder / "report.json")
    cli.write_json(args.out or args.folder / "reward-report.json", report)
    for row in report["rewards"]:
        game = f"{row['scenario']} {row['rules']} {row['reward']}"
        for result in row["results"]:
            print(f"{game}: {result['status']} {result['check_id']}: {result['evidence'][0]}")
    return 0 if all(row["passed"] for row in report["rewards"]) else 1
