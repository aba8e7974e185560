"""Find the degenerate optima of a reward before an LLM does.

With no argument: the published rewards and our own, each under its rules on every campaign, budget small, report in
out/sweep.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.markup import escape

import scenarios
from jaxsim import noise, options, recurrent, reward
from jaxsim.audit import checkpoint, metrics, replay, report, rescore, search, verdict, witness
from jaxsim.audit.arena import Arena, Candidate, make_arenas
from jaxsim.audit.bootstrap import Estimate
from jaxsim.audit.budgets import BUDGETS, Budget
from jaxsim.policies import BASELINES
from jaxsim.rollouts import side_by_side
from jaxsim.types import RewardWeights
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from scenarios.generate import generate

# The rules that a preset was made for.
RULES_OF = dict.fromkeys(reward.PRESETS, "classic") | {"operational1": "hardened1", "operational": "hardened"}
REWARDS = [name for name in reward.PRESETS if name != "operational1"]  # audited by default
GRID = 9  # values of each weight around every preset
METRIC_EPISODES = 1024
EXPLOIT_POLICY = {verdict.OPEN_LOOP: "best_open_loop_name", verdict.FARMING: "farming"}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, sweep (or replay), report; with --certify the exit code is 1 unless every verdict is certified."""
    args = parser().parse_args(argv)
    console = replay.terminal()
    if args.replay:
        replay.replay(console, args.replay)
        return
    out = report.prepare(args.out)
    began = time.perf_counter()
    budget = BUDGETS[args.budget]
    rows: list[dict[str, Any]] = []
    clouds: list[report.Cloud] = []
    # One run of the search per set of rules; all its rewards are scored from the same rollouts.
    groups: dict[str, list[str]] = {}
    for name in args.reward or REWARDS:
        groups.setdefault(args.rules or RULES_OF[name], []).append(name)
    for rules, names in groups.items():
        more_rows, more_clouds = sweep(chosen(args, rules), rules, names, budget, out, args)
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
        f"{document['seconds']:.0f} s; report in [bold]{escape(str(out))}[/bold] (report.md, report.json)",
        highlight=False,
    )
    failed = sum(not certified(r) for r in rows)
    if args.certify and failed:
        console.print(f"[bold]not certified[/bold]: {failed} of {len(rows)} verdicts", highlight=False)
        raise SystemExit(1)


def certified(row: dict[str, Any]) -> bool:
    """Whether a verdict holds, also when single weights move, if that was asked for."""
    return bool(row["verdict"] == verdict.CERTIFIED and not (row["moved"] and row["moved"]["not_certified"]))


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    options.add_scenarios(p, "the four published campaigns; under hardened rules their variants as well")
    p.add_argument("--generated", type=cli.integer(0, 10_000), default=0, metavar="N", help="generated networks")
    p.add_argument(
        "--entities", type=cli.integer(10, 10_000), default=20, metavar="N", help="size of these (default: 20)"
    )
    p.add_argument(
        "--rules", type=options.rule_set, metavar="NAME", help=f"{options.RULES_HELP} (default: the reward's own)"
    )
    p.add_argument(
        "--reward",
        type=cli.one_of(reward.PRESETS),
        nargs="+",
        metavar="NAME",
        help=f"rewards to audit: {', '.join(reward.PRESETS)} (default: {', '.join(REWARDS)})",
    )
    options.add_personality(p)
    p.add_argument("--budget", choices=list(BUDGETS), default="small", help="how hard to search")
    p.add_argument(
        "--move",
        type=cli.fraction,
        default=0.0,
        metavar="SHARE",
        help="judge again with each weight this much off",
    )
    p.add_argument(
        "--policies", type=cli.input_folder, default=checkpoint.OWN, metavar="DIR",
        help="learned policies to play as well, <rules>-<reward>-<view>.safetensors (default: those of the project)",
    )  # fmt: skip
    p.add_argument("--brief", action="store_true", help="verdicts only: no metrics of policies, no other weightings")
    options.add_seed(p)
    p.add_argument(
        "--out", type=cli.output_folder, default=Path("out/sweep"), metavar="DIR", help="folder of the report"
    )
    p.add_argument("--certify", action="store_true", help="exit with 1 unless every verdict is certified")
    p.add_argument("--replay", type=cli.input_file, metavar="FILE", help="play a witness tick by tick and stop")
    return p


def chosen(args: Any, rules: str) -> list[scenarios.Scenario]:
    """The scenarios to audit under some rules; generated ones are of the held-out split."""
    if args.scenario:
        many = options.chosen(args.scenario)
    elif args.generated:
        many = []
    else:
        groups = ("published",) if rules.startswith("classic") else scenarios.GROUPS
        many = [scenarios.load(name) for group in groups for name in scenarios.names(group)]
    return many + [generate(seed, args.entities, "held_out") for seed in range(args.generated)]


def learned(folder: Path, rules: str, name: str) -> dict[str, Candidate]:
    """The learned policies for some rules and a reward, by view; none if the folder has none."""
    found = {}
    for view in recurrent.VIEWS:
        path = checkpoint.own(rules, name, view, folder)
        if path.exists():
            try:
                found[view] = Candidate(view, recurrent.POLICIES[view], checkpoint.load(path).learned)
            except ValueError as error:
                cli.fail(str(error))
    return found


def moved_weights(name: str, share: float) -> dict[str, RewardWeights]:
    """A preset's weighting with each weight in turn moved up and down; moving 0 or infinity changes nothing."""
    base = reward.PRESETS[name]
    moves = [(n, f) for n, w in base.items() for f in (1 - share, 1 + share) if share and w and np.isfinite(w)]
    return {f"{name} {n}×{f:g}": reward.weights(name, **{n: base[n] * f}) for n, f in moves}


def sweep(
    chosen: list[Any], rules: str, names: list[str], budget: Budget, out: Path, args: Any
) -> tuple[list[dict[str, Any]], list[report.Cloud]]:
    """Search, judge and re-score under one set of rules."""
    moved = {name: moved_weights(name, args.move) for name in names}
    rewards = {n: reward.weights(n) for n in names} | {k: w for m in moved.values() for k, w in m.items()}
    owner = names + [name for name, m in moved.items() for _ in m]  # the preset of each reward
    arenas = make_arenas(chosen, rules, rewards, args.personality)
    known = {name: learned(args.policies, rules, name) for name in names}
    with cli.progress(search.steps(arenas, budget) + (1 if args.brief else 2) * len(arenas)) as advance:
        found = search.search(arenas, budget, args.seed, advance)
        # The key of the report is another branch than that of the search: no episode is in both.
        report_seed = cli.another(args.seed, 1_000_003)
        keys = verdict.report_keys(noise.root(report_seed), budget.report)

        def judge(of: tuple[Arena, search.Found]) -> tuple[list[dict[str, Any]], list[report.Cloud]]:
            arena, best = of
            advance(f"{arena.scenario.id}: verdict")
            finals = [verdict.finalists(best, r, known[name]) for r, name in enumerate(owner)]
            played = verdict.play(arena, finals, keys)
            others = verdict.crowd(arena, args.seed, keys, search.in_one(arenas, budget))
            judged = [verdict.judge(arena, p, r, args.seed, keys, best.bounds, others) for r, p in enumerate(played)]
            for r, name in enumerate(names):
                row = judged[r]
                describe(row, arena, finals[r], r, report_seed, out)
                shifted = [j for j, o in zip(judged[len(names) :], owner[len(names) :], strict=True) if o == name]
                row["moved"] = summary_of_moves(row, shifted, args.move) if shifted else None
                # Of a degenerate reward the witnesses say enough.
                skipped = args.brief or row["verdict"] == verdict.DEGENERATE
                row["metrics"] = None if skipped else measured(row, arena, played[r], r, keys[:METRIC_EPISODES])
            if args.brief:
                return judged[: len(names)], []
            advance(f"{arena.scenario.id}: re-scoring")
            pool = [*best.pool, *(c for n in names for v, c in known[n].items() if v != recurrent.PRIVILEGED)]
            few = keys[: budget.select // 2]
            return judged[: len(names)], [rescored(arena, pool, names, few, budget.configs, args.seed)]

        parts = side_by_side(judge, list(zip(arenas, found, strict=True)))
    rows = [row for some, _ in parts for row in some]
    clouds = [cloud for _, some in parts for cloud in some]
    rows.sort(key=lambda row: names.index(row["reward"]))
    return rows, clouds


def describe(
    row: dict[str, Any], arena: Arena, named: dict[str, Candidate], r: int, report_seed: int, out: Path
) -> None:
    """Put into a row what the best policies do, in words, and write a witness file for every exploit."""
    row["digest"] = scenarios.digest(arena.scenario)
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


def summary_of_moves(row: dict[str, Any], others: list[dict[str, Any]], share: float) -> dict[str, Any]:
    """How a verdict fares when single weights move."""
    lowest = min(others, key=lambda j: j["evg_norm_ci"][0] if np.isfinite(j["evg_norm_ci"][0]) else -np.inf)
    return {
        "share": share,
        "weightings": len(others),
        "same_verdict": sum(j["verdict"] == row["verdict"] for j in others),
        "not_certified": [j["reward"] for j in others if j["verdict"] != verdict.CERTIFIED],
        "lowest_evg_norm": {"reward": lowest["reward"], "value": lowest["evg_norm"], "ci": lowest["evg_norm_ci"]},
    }


def measured(
    row: dict[str, Any], arena: Arena, played: list[verdict.Played], r: int, keys: jax.Array
) -> dict[str, Any]:
    """What tells a policy that reads, of the best evidence-using policy; and how far the open-loop one is from it.

    `keys` are the first episodes of `played`.
    """
    by_name = {p.name: p for p in played}
    best, plan = by_name[row["best_evidence_name"]], by_name["open-loop"]

    def own(p: verdict.Played) -> np.ndarray:
        returns: np.ndarray = p.stats.episode_return[: len(keys), r]
        return returns

    def gap(p: verdict.Played) -> list[float]:
        return plain(metrics.relisting_gap(arena, p.candidate, keys, r, own(p)))

    def plain(e: Estimate) -> list[float]:
        return [float(x) for x in e]

    drops = metrics.shuffle_drop(arena, best.candidate, keys, r, own(best), own(by_name["monitor"]))
    return {
        "policy": best.name,
        "shuffle_drop": {k: plain(e) for k, e in drops.items()},
        "harm_monotonicity": {t: plain(e) for t, e in verdict.harm_worth(arena, best, keys, r).items()},
        "relisting_gap": gap(best),
        "relisting_gap_open_loop": gap(plan) if plan.candidate.kind == "plan" else None,
        "farming_slope": plain(metrics.farming_slope(arena, by_name["farming"].candidate, keys, r)),
    }


def rescored(
    arena: Arena, survivors: list[Candidate], names: list[str], keys: jax.Array, configs: int, seed: int
) -> report.Cloud:
    """EVG of thousands of weightings, from the rollouts of everything that survived the search."""
    monitor = Candidate("monitor", *BASELINES["monitor"])
    heuristic = Candidate("heuristic", *BASELINES["heuristic"])
    half = len(keys) // 2
    began = time.perf_counter()
    pool = [monitor, heuristic, *survivors]
    ledgers = [rescore.record(arena, pool, k) for k in (keys[:half], keys[half:])]
    rollout_seconds = time.perf_counter() - began
    grids: dict[str, dict[str, np.ndarray]] = {}
    flips: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        base = reward.weights(name)
        flips[name] = [f._asdict() for f in metrics.smallest_flip(ledgers[1], ledgers[0], base)]
        moved, moves = rescore.grid_weights(base, GRID)
        gap, _ = rescore.gaps(ledgers[0], ledgers[1], moved)
        values = np.asarray([v for _, v in moves])
        grids[name] = {w: np.stack([values, gap])[:, [m == w for m, _ in moves]] for w in rescore.RANGES}
    # Last, when the programs of these ledgers are there: the rate is that of scoring, not of compiling; other networks
    # may have a core meanwhile.
    weights = rescore.sobol_weights(configs, seed)
    began = time.perf_counter()
    evg, norm = rescore.gaps(ledgers[0], ledgers[1], weights)
    seconds = time.perf_counter() - began
    summary = {
        "scenario": arena.scenario.id,
        "rules": arena.rules,
        "configurations": configs,
        "policies": len(pool),
        "episodes": half,
        "distinct_rows": len(ledgers[1].rows),
        "rollout_seconds": round(rollout_seconds, 2),
        "configurations_per_minute": round(60 * configs / seconds),
        "share_evg_positive": float((evg > 0).mean()),
        "share_evg_norm_certifiable": float((np.nan_to_num(norm, nan=-1.0) >= rescore.CERTIFIED_EVG_NORM).mean()),
        "smallest_flips": flips,
        "best_evg_norm": float(np.nanmax(norm)) if np.isfinite(norm).any() else None,
    }
    return report.Cloud(summary, {k: np.asarray(v) for k, v in weights._asdict().items()}, evg, grids)
