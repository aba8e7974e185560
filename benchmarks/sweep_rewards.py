"""Find the degenerate optima of a reward before an LLM does.

With no argument: every reward preset under its rules on every campaign, small budget, report in out/sweep.
"""

import sys
import time
from pathlib import Path
from typing import Any

import cli

for _package in ("scipy", "matplotlib", "rich"):
    cli.need(_package, "the sweep")

import jax
import numpy as np
import report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxsim import reward
from jaxsim.audit import rescore, search, verdict, witness
from jaxsim.policies import BASELINES
from jaxsim.replays import load_record, play_record
from jaxsim.rollouts import episode_keys
from jaxsim.version import SIMULATOR_VERSION

RULES_OF = {name: "classic" for name in reward.PRESETS}  # the rules that a preset was published for
GRID = 9  # values of each weight around every preset
EXPLOIT_POLICY = {verdict.OPEN_LOOP: "best_open_loop_name", verdict.FARMING: "farming"}


def main() -> None:
    """Parse, sweep (or replay), report; with --certify the exit code is 1 unless every verdict is certified."""
    args = arguments()
    # A pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 150)
    if args.replay:
        replay(console, args.replay)
        return
    out = report.prepare(args.out)
    began = time.perf_counter()
    rewards = args.reward or list(reward.PRESETS)
    chosen = cli.chosen(args.scenario)
    budget = search.BUDGETS[args.budget]
    rows: list[dict[str, Any]] = []
    clouds: list[report.Cloud] = []
    # One run of the search per set of rules; all its rewards are scored from the same rollouts.
    groups: dict[str, list[str]] = {}
    for name in rewards:
        groups.setdefault(args.rules or RULES_OF[name], []).append(name)
    for rules, names in groups.items():
        more_rows, more_clouds = sweep(console, chosen, rules, names, args.personality, budget, args.seed, out)
        rows += more_rows
        clouds += more_clouds
    document = {
        "simulator_version": SIMULATOR_VERSION,
        "version": cli.version(),
        "budget": {"name": args.budget, **budget._asdict()},
        "seed": args.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "verdicts": rows,
        "rescoring": [c.summary for c in clouds],
    }
    report.write(out, document, clouds)
    report.print_verdicts(console, rows)
    report.print_rescoring(console, clouds)
    console.print(
        f"{document['seconds']:.0f} s; report in [bold]{out}[/bold] (report.md, report.json)", highlight=False
    )
    if args.certify and any(r["verdict"] != verdict.CERTIFIED for r in rows):
        failed = sum(r["verdict"] != verdict.CERTIFIED for r in rows)
        console.print(f"[bold]not certified[/bold]: {failed} of {len(rows)} verdicts", highlight=False)
        raise SystemExit(1)


def arguments() -> Any:
    """The command line."""
    p = cli.parser(__doc__)
    cli.add_scenarios(p)
    p.add_argument("--rules", type=cli.one_of(RULES), metavar="NAME", help="rules (default: those of the reward)")
    p.add_argument(
        "--reward",
        type=cli.one_of(reward.PRESETS),
        nargs="+",
        metavar="NAME",
        help=f"rewards to audit: {', '.join(reward.PRESETS)} (default: all)",
    )
    cli.add_personality(p)
    p.add_argument("--budget", choices=list(search.BUDGETS), default="small", help="how hard to search")
    cli.add_seed(p)
    p.add_argument("--out", type=Path, default=Path("out/sweep"), metavar="DIR", help="folder of the report")
    p.add_argument("--certify", action="store_true", help="exit with 1 unless every verdict is certified")
    p.add_argument("--replay", type=Path, metavar="FILE", help="play a witness tick by tick and stop")
    return p.parse_args()


def sweep(
    console: Console,
    chosen: list[Any],
    rules: str,
    names: list[str],
    personality: str,
    budget: search.Budget,
    seed: int,
    out: Path,
) -> tuple[list[dict[str, Any]], list[report.Cloud]]:
    """Search, judge and re-score under one set of rules."""
    arenas = search.make_arenas(chosen, rules, {n: reward.weights(n) for n in names}, personality)
    rows: list[dict[str, Any]] = []
    clouds: list[report.Cloud] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(rules, total=search.steps(arenas) + (len(names) + 1) * len(arenas))

        def advance(what: str) -> None:
            progress.update(task, advance=1, description=what)

        found = search.search(arenas, budget, seed, advance)
        # The key of the report is another branch than that of the search: no episode is in both.
        report_seed = seed + 1_000_003
        keys = episode_keys(jax.random.key(report_seed), budget.report)
        for r, name in enumerate(names):
            for arena, best in zip(arenas, found, strict=True):
                advance(f"{arena.scenario.id}: verdict of {name}")
                rows.append(judged(arena, best, r, keys, seed, report_seed, out))
        for arena, best in zip(arenas, found, strict=True):
            advance(f"{arena.scenario.id}: re-scoring")
            clouds.append(rescored(arena, best, keys[: budget.select // 2], budget.configs, seed))
    return rows, clouds


def judged(
    arena: search.Arena, best: search.Found, r: int, keys: jax.Array, seed: int, report_seed: int, out: Path
) -> dict[str, Any]:
    """One verdict row, with what the best policies do in words and a witness file for every exploit."""
    named = verdict.finalists(best, r)
    row = verdict.judge(arena, verdict.play(arena, named, keys), r, seed)
    by_name = {p["policy"]: p for p in row["policies"]}

    def best_of(name: str) -> dict[str, Any]:
        p = by_name[name]
        return {"return": p["return"], "std": p["std"], **report.describe(named[name], arena)}

    row["best_open_loop"] = best_of(row["best_open_loop_name"])
    row["best_open_loop_std0"] = best_of("certain") if "certain" in by_name else None
    row["positional"] = best_of("positional")
    row["best_evidence"] = best_of(row["best_evidence_name"])
    row["farming"] = best_of("farming")
    row["tells"] = by_name[row["best_open_loop_name"]]["tells"]
    row["witness"] = {}
    for exploit in row["exploits"]:
        policy = row["harm_seeker"]["policy"] if exploit == verdict.HARM_SEEKING else EXPLOIT_POLICY[exploit]
        candidate = named[row.get(policy, policy) if policy.endswith("_name") else policy]
        record = witness.make_witness(arena, candidate, r, report_seed)
        name = f"{row['scenario']}-{row['rules']}-{row['reward']}-{exploit}.json"
        cli.write_json(out / "witnesses" / name, record)
        row["witness"][exploit] = f"witnesses/{name}"
    return row


def rescored(arena: search.Arena, best: search.Found, keys: jax.Array, configs: int, seed: int) -> report.Cloud:
    """EVG of thousands of weightings, from the rollouts of everything that survived the search."""
    monitor = search.Candidate("monitor", *BASELINES["monitor"])
    heuristic = search.Candidate("heuristic", *BASELINES["heuristic"])
    half = len(keys) // 2
    began = time.perf_counter()
    pool = [monitor, heuristic, *best.pool]
    ledgers = [rescore.record(arena, pool, k) for k in (keys[:half], keys[half:])]
    weights = rescore.sobol_weights(configs, seed)
    scored = time.perf_counter()
    evg, norm = rescore.gaps(ledgers[0], ledgers[1], weights)
    seconds = time.perf_counter() - scored
    grids: dict[str, dict[str, np.ndarray]] = {}
    for r, name in enumerate(arena.rewards):
        base = jax.tree.map(lambda x, r=r: x[r], arena.params.reward)
        moved, moves = rescore.grid_weights(base, GRID)
        gap, _ = rescore.gaps(ledgers[0], ledgers[1], moved)
        values = np.asarray([v for _, v in moves])
        grids[name] = {w: np.stack([values, gap])[:, [m == w for m, _ in moves]] for w in rescore.RANGES}
    summary = {
        "scenario": arena.scenario.id,
        "rules": arena.rules,
        "configurations": configs,
        "policies": len(pool),
        "episodes": half,
        "distinct_rows": len(ledgers[1].rows),
        "rollout_seconds": round(scored - began, 2),
        "configurations_per_minute": round(60 * configs / seconds),
        "share_evg_positive": float((evg > 0).mean()),
        "share_evg_norm_certifiable": float((np.nan_to_num(norm, nan=-1.0) >= verdict.CERTIFIED_EVG_NORM).mean()),
        "best_evg_norm": float(np.nanmax(norm)) if np.isfinite(norm).any() else None,
    }
    return report.Cloud(summary, {k: np.asarray(v) for k, v in weights._asdict().items()}, evg, grids)


def replay(console: Console, path: Path) -> None:
    """Print a witness tick by tick."""
    try:
        record = load_record(path)
        scenario, env, played = play_record(record)
    except ValueError as error:  # a ScenarioError is one
        cli.fail(str(error))
    report.print_replay(console, record, witness.tick_rows(scenario, env.dims, played), float(played.reward.sum()))


if __name__ == "__main__":
    cli.run(main)
