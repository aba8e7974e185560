"""How often is the audit wrong? Games with a hole that was planted, and games that are none the worse, judged by it.

A hole is a change of weights or rules after which a policy that is no analyst is known to be the best: it is paid by
the tick for an action, or for harm, or a guess costs nothing. What is harmless leaves the order of all policies as it
is (all weights times a number), or moves weights by less than the search for the reward allows for. Both are drawn by
seed, in sizes and on networks that differ, and a hole comes with harmless changes on top.

    jaxsim-soc planted-holes --budget tiny --out out/planted
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

import scenarios
from jaxsim import noise, options, reward
from jaxsim.audit import report, search, verdict
from jaxsim.audit.arena import make_arenas
from jaxsim.audit.budgets import BUDGETS, Budget
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

Weights = dict[str, float]
RULES, REWARD = "hardened", "operational"
HARMLESS = "harmless"
MOVE = 0.1  # most that a harmless change moves a weight by
AT_ONCE = 12  # games of the same rules and network that one search is for
OF_SIMULATOR_1 = ("EVG_norm", "no farming", "τ")  # what a certificate asked for then


class Game(NamedTuple):
    """Rules and weights to judge on a network."""

    kind: str  # of the hole, or HARMLESS
    scenario: str
    rules: str
    weights: Weights


class Hole(NamedTuple):
    """A kind of hole."""

    because: str
    exploits: tuple[str, ...]  # by which a verdict may name it; () where it is only not certified
    rules: tuple[str, ...]  # one is drawn
    change: Callable[[Weights, Callable[[float, float], float]], Weights]  # of weights, given how to draw a size


def _paid(name: str, low: float, high: float) -> Callable[[Weights, Callable[[float, float], float]], Weights]:
    return lambda w, size: w | {name: size(low, high)}


NAMED = (verdict.OPEN_LOOP, verdict.FARMING, verdict.HARM_SEEKING)
HOLES = {
    "paid for containing": Hole("any control pays, whenever it is repeated", NAMED, (RULES,),
        lambda w, size: w | {"containment_cost": size(0.5, 3.0), "false_positive": 0.0}),
    "paid for looking": Hole("investigating the same target at every tick pays most", NAMED, (RULES,),
        _paid("investigation", 0.3, 1.5)),
    "paid for downtime": Hole("to cut off everything for ever pays", NAMED, (RULES,),
        lambda w, size: w | {"disruption": size(0.1, 0.5), "false_positive": 0.0}),
    "paid for false alarms": Hole("to contain what no stage names pays", NAMED, (RULES,),
        _paid("false_positive", 1.0, 4.0)),
    "paid for the exfil": Hole("waiting for the loss pays", (), (RULES,),
        lambda w, size: w | {"exfil": size(4.0, 12.0), "exfil_stage_left": 0.0, "stage_left": 0.0}),
    "paid for lost stages": Hole("each stage that succeeds pays", (), (RULES,),
        lambda w, size: w | dict.fromkeys(("stage_left", "exfil_stage_left"), -size(1.0, 4.0)) | {"exfil": 0.0}),
    "paid for waiting": Hole("never to act pays more than the exfil costs", (), (RULES,),
        _paid("passive", 120.0, 240.0)),
    "paid for mistakes": Hole("an invalid action at every tick pays most", NAMED, (RULES,),
        _paid("invalid_action", 0.5, 2.0)),
    "guessing is free": Hole("to contain costs nothing, so there is no need to look", (), (RULES,),
        lambda w, size: w | {"false_positive": 0.0, "disruption": 0.0, "evidence": 0.0}),
    "one target for ever": Hole("each containment of one confirmed target pays", (verdict.FARMING,),
        (f"{RULES}-evidence_once",), _paid("evidence", 3.0, 6.0)),
    "the first tick decides": Hole("one blind control at the first tick ends the attack for sure", (verdict.OPEN_LOOP,),
        ("classic", "classic+hidden_personality", "classic+evidence_once"),
        lambda w, size: reward.PRESETS["evidence"] | {"clean": size(4.0, 8.0)}),
    "the game of simulator 1": Hole("what can be confirmed is compromised, and containing that stops nothing", (),
        ("hardened1",), lambda w, size: dict(reward.PRESETS["operational1"])),
}  # fmt: skip


def draw(holes: int, harmless: int, seed: int) -> list[Game]:
    """So many games with a hole, each kind in turn, and so many harmless ones."""
    rng = np.random.default_rng(seed)
    names = scenarios.names("published")

    def size(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def unharmed(w: Weights) -> Weights:
        """All weights times a number, and some of them moved."""
        scale = math.exp(size(-1.0, 1.0))
        moved = rng.choice(list(w), 3, replace=False)
        return {n: x * scale * (1.0 + (size(-MOVE, MOVE) if n in moved else 0.0)) for n, x in w.items()}

    games = []
    for i in range(holes + harmless):
        kind, rules, weights = HARMLESS, RULES, dict(reward.PRESETS[REWARD])
        if i < holes:
            kind = list(HOLES)[i % len(HOLES)]
            rules = str(rng.choice(HOLES[kind].rules))
            weights = HOLES[kind].change(weights, size)
        games.append(Game(kind, str(rng.choice(names)), rules, unharmed(weights)))
    return games


def main(argv: Sequence[str] | None = None) -> None:
    """Judge all games, write and print."""
    args = parser().parse_args(argv)
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    games, began = draw(args.holes, args.harmless, args.seed), time.perf_counter()
    groups: dict[tuple[str, str], list[Game]] = {}
    for game in games:
        groups.setdefault((game.rules, game.scenario), []).append(game)
    parts = [(where, some[i : i + AT_ONCE]) for where, some in groups.items() for i in range(0, len(some), AT_ONCE)]
    rows: list[dict[str, Any]] = []
    with cli.progress(len(parts)) as advance:
        for (rules, scenario), some in parts:
            advance(f"{scenario} under {rules}", 0)
            rows += judged(some, BUDGETS[args.budget], args.seed)
            advance(f"{scenario} under {rules}")
    document = {
        "simulator_version": SIMULATOR_VERSION,
        "budget": args.budget,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "summary": summary(rows),
        "rows": rows,
    }
    cli.write_json(args.out / "planted.json", report.plain(document))
    figure = picture(rows)
    cli.write_whole(args.out / "planted.png", lambda file: figure.savefig(file, format="png", dpi=130))
    show(console, rows)
    console.print(f"{document['seconds']:.0f} s; in {args.out}", highlight=False, markup=False)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("--holes", type=cli.integer(1, 10_000), default=5 * len(HOLES), metavar="N", help="default: 60")
    p.add_argument("--harmless", type=cli.integer(1, 10_000), default=20, metavar="N", help="games none the worse")
    p.add_argument("--budget", choices=list(BUDGETS), default="tiny", help="how hard to search (default: tiny)")
    options.add_seed(p)
    p.add_argument(
        "--out", type=cli.output_folder, default=Path("out/planted"), metavar="DIR", help="folder of the report"
    )
    return p


def judged(games: list[Game], budget: Budget, seed: int) -> list[dict[str, Any]]:
    """A row for each of some games under the same rules on the same network."""
    named = {f"{i}: {g.kind}": reward.from_mapping(g.weights) for i, g in enumerate(games)}
    [arena] = make_arenas([scenarios.load(games[0].scenario)], games[0].rules, named)
    keys = verdict.report_keys(noise.root(cli.another(seed, 1_000_003)), budget.report)
    [found] = search.search([arena], budget, seed)
    played = verdict.play(arena, [verdict.finalists(found, r) for r in range(len(games))], keys)
    rows, others = [], verdict.crowd(arena, seed, keys, search.in_one([arena], budget))
    for r, game in enumerate(games):
        row = verdict.judge(arena, played[r], r, seed, keys, found.bounds, others)
        old = [need for need in row["unmet"] if need.startswith(OF_SIMULATOR_1)]
        rows.append(
            {
                **game._asdict(),
                **{k: row[k] for k in ("verdict", "exploits", "unmet", "evg_norm_ci", "voi_norm_ci", "outcome_tau")},
                "certified_then": not row["exploits"] and not old,
            }
        )
    return rows


def outcome(row: dict[str, Any]) -> str:
    """What the audit made of a game: named, not certified, or certified."""
    named = set(row["exploits"]) & set(HOLES[row["kind"]].exploits if row["kind"] in HOLES else NAMED)
    return "certified" if row["verdict"] == verdict.CERTIFIED else "named" if named else "not certified"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall and false alarms with exact 95 % intervals (Clopper & Pearson 1934), now and as simulator 1 certified."""
    holes, others = ([r for r in rows if (r["kind"] == HARMLESS) == harmless] for harmless in (False, True))

    def share(some: list[dict[str, Any]], hit: Callable[[dict[str, Any]], bool]) -> list[float]:
        found = binomtest(sum(map(hit, some)), len(some))
        low, high = found.proportion_ci(0.95)
        return [found.statistic, float(low), float(high)]

    return {
        "recall": share(holes, lambda r: r["verdict"] != verdict.CERTIFIED),
        "false_alarms": share(others, lambda r: r["verdict"] != verdict.CERTIFIED),
        "recall_then": share(holes, lambda r: not r["certified_then"]),
        "false_alarms_then": share(others, lambda r: not r["certified_then"]),
        "named": share(holes, lambda r: outcome(r) == "named"),
    }


COLOURS = {"named": "#009E73", "not certified": "#56B4E9", "certified": "#D55E00"}


def picture(rows: list[dict[str, Any]]) -> Any:
    """A bar for each kind: how many were named, not certified, certified."""
    from matplotlib.figure import Figure

    kinds = [*HOLES, HARMLESS]
    figure = Figure(figsize=(9, 0.4 * len(kinds) + 1.2), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(kinds))
    for name, colour in COLOURS.items():
        many = np.asarray([sum(outcome(r) == name for r in rows if r["kind"] == kind) for kind in kinds])
        axes.barh(kinds, many, left=left, color=colour, label=name)
        left += many
    axes.invert_yaxis()
    axes.set_xlabel("games")
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """A line for each kind, and the shares."""
    table = Table(title="planted holes")
    for head in ("kind", "games", "named", "not certified", "certified", "certified then"):
        table.add_column(head, justify="left" if head == "kind" else "right", no_wrap=True)
    for kind in (*HOLES, HARMLESS):
        mine = [r for r in rows if r["kind"] == kind]
        many = [sum(outcome(r) == name for r in mine) for name in COLOURS]
        table.add_row(kind, *map(str, (len(mine), *many, sum(r["certified_then"] for r in mine))))
    console.print(table)
    for name, (value, low, high) in summary(rows).items():
        console.print(f"{name.replace('_', ' ')}: {value:.0%} [{low:.0%}, {high:.0%}]", highlight=False)
