"""Does the audit's search find what is there? Its best blind plans beside those of a plain exhaustive search.

The reference plays every single action at a few ticks on 1,024 episodes, then adds to the two best plans every action
at every one of those ticks, twice, each time keeping the two best: slow, simple, and written apart from the search.
Both are reported on the same fresh episodes, in which nobody chose.

    jaxsim-soc search-check --budget tiny small --seeds 3 --out out/search_check.json
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import scenarios
from jaxsim import noise, options, reward
from jaxsim.audit import search
from jaxsim.audit.arena import Arena, make_arenas
from jaxsim.audit.budgets import BUDGETS
from jaxsim.names import action_text
from jaxsim.one_episode import episode_keys
from jaxsim.policies import PLAN
from jaxsim.rollouts import returns_many
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

TICKS = (0, 2, 4, 8, 16)
EPISODES, FRESH = 1024, 4096
DEPTH, BEST = 3, 2  # actions of a plan, and plans that are kept


def main(argv: Sequence[str] | None = None) -> None:
    """Search both ways, play what was found, write and print."""
    args = parser().parse_args(argv)
    console = Console()
    many = options.chosen(args.scenario) if args.scenario else [scenarios.load(n) for n in scenarios.names()]
    arenas = make_arenas(many, args.rules, {args.reward: reward.weights(args.reward)}, args.personality)
    length = max(int(a.params.scenario.horizon) for a in arenas)
    reference_keys = data(cli.another(args.seed, 4_000_003), EPISODES)
    fresh = data(cli.another(args.seed, 3_000_003), FRESH)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    seconds: dict[str, float] = {}
    with cli.progress() as advance:
        began = time.perf_counter()
        for arena in arenas:
            advance(f"{arena.scenario.id}: reference")
            found[arena.scenario.id, "reference"] = [reference(arena, reference_keys, length)]
        seconds["reference"] = time.perf_counter() - began
        for budget in args.budget:
            began = time.perf_counter()
            for seed in (cli.another(args.seed, i) for i in range(args.seeds)):
                courses = search.lay_out(arenas, BUDGETS[budget], seed)
                blind = search.search_blind(courses, BUDGETS[budget], seed, advance)
                for arena, best in zip(arenas, blind, strict=True):
                    plan = best.champions.parameters[best.champions.gain[:, 0].argmax()]
                    found.setdefault((arena.scenario.id, budget), []).append(plan)
            seconds[budget] = (time.perf_counter() - began) / args.seeds
    rows = [row for arena in arenas for row in judged(arena, found, fresh)]
    document = {
        "simulator_version": SIMULATOR_VERSION,
        "rules": args.rules,
        "reward": args.reward,
        "seed": args.seed,
        "seconds_per_search_of_all_scenarios": {k: round(v, 1) for k, v in seconds.items()},
        "rows": rows,
    }
    if args.out:
        cli.write_json(args.out, document)
    show(console, rows)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    options.add_scenarios(p)
    options.add_rules(p)
    options.add_reward(p)
    options.add_personality(p)
    p.add_argument(
        "--budget", type=cli.one_of(BUDGETS), nargs="+", default=["tiny"], metavar="NAME",
        help=f"of the search: {', '.join(BUDGETS)} (default: tiny)",
    )  # fmt: skip
    p.add_argument("--seeds", type=cli.integer(1, 100), default=3, metavar="N", help="searches of each (default: 3)")
    options.add_seed(p)
    p.add_argument("--out", type=cli.output_path, metavar="FILE", help="write the rows as JSON")
    return p


def data(seed: int, episodes: int) -> np.ndarray:
    """(E, ...) uint32 key data of episodes."""
    return np.asarray(jax.random.key_data(episode_keys(noise.root(seed), episodes)))


def reference(arena: Arena, keys: np.ndarray, length: int) -> np.ndarray:
    """(length,) the best plan of the plain search."""
    acts = np.flatnonzero(np.asarray(arena.env.legal_actions(arena.params)))[1:]
    best = np.zeros((1, length), np.int32)
    for _ in range(DEPTH):
        tried = [best]
        for t in (t for t in TICKS if t < length):
            more = np.repeat(best, len(acts), axis=0)
            more[:, t] = np.tile(acts, len(best))
            tried.append(more)
        some = np.unique(np.concatenate(tried), axis=0)
        mean = returns_many(arena.env, arena.params, PLAN, some, keys)[:, :, 0].mean(axis=1)
        best = some[np.argsort(-mean, kind="stable")[:BEST]]
    return best[0]


def judged(arena: Arena, found: dict[tuple[str, str], list[np.ndarray]], fresh: np.ndarray) -> list[dict[str, Any]]:
    """A row for every search of a scenario: what its plan earns in the fresh episodes."""
    mine = [
        (way, i, plan)
        for (name, way), plans in found.items()
        if name == arena.scenario.id
        for i, plan in enumerate(plans)
    ]
    some = np.stack([np.zeros_like(mine[0][2]), *(plan for _, _, plan in mine)])
    returns = returns_many(arena.env, arena.params, PLAN, some, fresh)[:, :, 0].astype(np.float64)
    rows = []
    for k, (way, i, plan) in enumerate(mine, start=1):
        behind = returns[k] - returns[1]  # the reference is the first
        rows.append(
            {
                "scenario": arena.scenario.id,
                "search": way,
                "seed": i,
                "monitor": float(returns[0].mean()),
                "return": float(returns[k].mean()),
                "over_reference": float(behind.mean()),
                "error": float(behind.std() / np.sqrt(len(fresh))),
                "plan": [
                    [int(t), action_text(int(plan[t]), arena.scenario, arena.env.dims)] for t in np.flatnonzero(plan)
                ],
            }
        )
    return rows


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """A line for every scenario and search: the worst of its seeds."""
    table = Table(title=f"Best blind plan found, mean return in {FRESH:,} fresh episodes")
    for name in ("scenario", "monitor", "search", "return (worst seed)", "over the reference (worst seed)"):
        table.add_column(name)
    for scenario, way in dict.fromkeys((r["scenario"], r["search"]) for r in rows):
        worst = min((r for r in rows if (r["scenario"], r["search"]) == (scenario, way)), key=lambda r: r["return"])
        over = f"{worst['over_reference']:+.3f} ± {worst['error']:.3f}"
        table.add_row(scenario, f"{worst['monitor']:.2f}", way, f"{worst['return']:.3f}", over)
    console.print(table)
