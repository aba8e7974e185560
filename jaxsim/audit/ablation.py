"""Which switch of the hardened rules mends which exploit? Each alone, and each left out.

Judges every preset of rules that differs from `classic` or from `hardened` in one switch, under a published reward and
under the project's own, on the same scenarios and seeds.

    jaxsim-soc ablate-rules --out out/ablation
"""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib

from jaxsim import options
from jaxsim_soc import cli

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxsim import noise, reward
from jaxsim.audit import report, search, verdict
from jaxsim.audit.arena import make_arenas
from jaxsim.audit.budgets import BUDGETS, Budget
from jaxsim.rules import PRESETS, SWITCHES
from jaxsim.version import SIMULATOR_VERSION

EXPLOITS = (verdict.OPEN_LOOP, verdict.FARMING, verdict.HARM_SEEKING)
REWARDS = ("evidence", "operational")
COLOURS = {"evidence": "#D55E00", "operational": "#009E73"}
VARIANTS = [
    "classic",
    *(f"classic+{s}" for s in SWITCHES),
    *(f"hardened{'-' if s in PRESETS['hardened'] else '+'}{s}" for s in SWITCHES),
    "hardened",
]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, judge every variant, write and print."""
    args = parser().parse_args(argv)
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    budget, many = BUDGETS[args.budget], options.chosen(args.scenario or [options.scenario("published")])
    keys = verdict.report_keys(noise.root(cli.another(args.seed, 1_000_003)), budget.report)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with cli.progress(len(args.variants)) as advance:
        for variant in args.variants:
            advance(variant, 0)
            rows += judged(variant, many, budget, keys, args.seed)
            advance(variant)
    document = {
        "simulator_version": SIMULATOR_VERSION,
        "budget": {"name": args.budget, **budget._asdict()},
        "seed": args.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": rows,
    }
    summaries = [summary(rows, v, name) for v in args.variants for name in REWARDS]
    cli.write_json(args.out / "ablation.json", document | {"summaries": summaries})
    cli.write_text(args.out / "ablation.csv", as_csv(rows))
    figure = picture(rows, args.variants)
    cli.write_whole(args.out / "ablation.png", lambda file: figure.savefig(file, format="png", dpi=130))
    cli.write_text(args.out / "ablation.md", markdown(summaries))
    show(console, summaries)
    console.print(f"{document['seconds']:.0f} s; in {args.out}", highlight=False, markup=False)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    options.add_scenarios(p, "published")
    p.add_argument(
        "--variants", type=options.rule_set, nargs="+", default=VARIANTS, metavar="RULES",
        help="rules to judge (default: classic and hardened, each with one switch changed, and as they are)",
    )  # fmt: skip
    p.add_argument("--budget", choices=list(BUDGETS), default="tiny", help="how hard to search (default: tiny)")
    options.add_seed(p)
    p.add_argument(
        "--out", type=cli.output_folder, default=Path("out/ablation"), metavar="DIR", help="folder of the report"
    )
    return p


def judged(variant: str, many: list[Any], budget: Budget, keys: jax.Array, seed: int) -> list[dict[str, Any]]:
    """A row for every scenario and reward under one variant of the rules."""
    arenas = make_arenas(many, variant, {n: reward.weights(n) for n in REWARDS})
    rows, whole = [], search.in_one(arenas, budget)
    for arena, found in zip(arenas, search.search(arenas, budget, seed), strict=True):
        finals = [verdict.finalists(found, r) for r in range(len(REWARDS))]
        others = verdict.crowd(arena, seed, keys, whole)
        for r, played in enumerate(verdict.play(arena, finals, keys)):
            row = verdict.judge(arena, played, r, seed, keys, found.bounds, others)
            kept = ("rules", "reward", "scenario", "verdict", "exploits", "evg", "evg_ci", "evg_norm", "evg_norm_ci")
            more = ("farming_growth", "farming_surplus", "outcome_tau", "best_open_loop_name", "best_evidence_name",
                    "voi_norm", "voi_norm_ci", "voi_of", "unmet")  # fmt: skip
            returns = {p["policy"]: p["return"] for p in row["policies"]}
            [looking] = (p for p in row["policies"] if p["policy"] == row["voi_of"][0])
            backed = {"evidence_backed_share": looking["tells"]["evidence_backed_share"]}
            rows.append({k: row[k] for k in (*kept, *more)} | backed | {"returns": returns})
    return [report.plain(row) for row in rows]


def summary(rows: list[dict[str, Any]], variant: str, name: str) -> dict[str, Any]:
    """One line of the table: over the scenarios."""
    mine = [r for r in rows if r["rules"] == variant and r["reward"] == name]

    def lowest(key: str) -> float | None:
        ends = [r[key][0] for r in mine]
        return None if None in ends else min(ends)

    return {
        "rules": variant,
        "reward": name,
        "evg": float(np.mean([r["evg"] for r in mine])),
        "evg_low": min(r["evg"] for r in mine),
        "evg_high": max(r["evg"] for r in mine),
        "evg_norm_lowest": lowest("evg_norm_ci"),
        "voi_norm_lowest": lowest("voi_norm_ci"),
        "evidence_backed_lowest": min(r["evidence_backed_share"] for r in mine),
        "certified": sum(r["verdict"] == verdict.CERTIFIED for r in mine),
        "scenarios": len(mine),
        **{e: sum(e in r["exploits"] for r in mine) for e in EXPLOITS},
    }


def as_csv(rows: list[dict[str, Any]]) -> str:
    """One line a verdict."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("rules", "reward", "scenario", "verdict", "exploits", "evg", "low", "high")
    writer.writerow((*head, "evg_norm", "voi_norm", "evidence_backed", "tau"))
    for r in rows:
        norms = (r["evg_norm"], r["voi_norm"], r["evidence_backed_share"])
        facts = (r["evg"], *r["evg_ci"], *norms, r["outcome_tau"])
        writer.writerow((r["rules"], r["reward"], r["scenario"], r["verdict"], " ".join(r["exploits"]), *facts))
    return text.getvalue()


HEAD = ("rules", "reward", "EVG mean (range)", "EVG_norm ≥", "VOI_norm ≥", "backed ≥", *EXPLOITS, "certified")


def cells(s: dict[str, Any]) -> list[str]:
    """A summary as text; what is at least so much is the worst scenario's, of the norms the lower 95 % end."""
    n, norms = s["scenarios"], [s["evg_norm_lowest"], s["voi_norm_lowest"]]
    return [
        s["rules"],
        s["reward"],
        f"{s['evg']:+.2f} ({s['evg_low']:+.2f} to {s['evg_high']:+.2f})",
        *("n/a" if lowest is None else f"{lowest:.2f}" for lowest in norms),
        f"{s['evidence_backed_lowest']:.0%}",
        *(f"{s[e]}/{n}" for e in (*EXPLOITS, "certified")),
    ]


def markdown(summaries: list[dict[str, Any]]) -> str:
    """The table for a README."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells(s)) + " |" for s in summaries), ""])


def show(console: Console, summaries: list[dict[str, Any]]) -> None:
    """The table on the terminal."""
    table = Table(title="Exploits shown, of so many scenarios")
    for name in HEAD:
        table.add_column(name)
    for s in summaries:
        table.add_row(*cells(s))
    console.print(table)


PANELS = (
    ("evg", "evidence", "EVG, points; above 0 evidence pays"),
    ("evg", "operational", "EVG, points; above 0 evidence pays"),
    ("voi_norm", "operational", "VOI_norm, share of the gain; above 0 investigating pays"),
)


def picture(rows: list[dict[str, Any]], variants: list[str]) -> Any:
    """EVG and VOI_norm of every variant: a dot for each scenario with its 95 % interval, a bar for the mean.

    Where reading earns no more than waiting there is no gain to share out, and no dot for VOI_norm.
    """
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 0.34 * len(variants) + 1.4), sharey=True)
    for axis, (quantity, name, label) in zip(axes, PANELS, strict=True):
        for y, variant in enumerate(variants):
            of_it = [r for r in rows if r["rules"] == variant and r["reward"] == name]
            mine = [r for r in of_it if r[quantity] is not None]
            if len(mine) == len(of_it):
                axis.barh(y, np.mean([r[quantity] for r in mine]), 0.62, color=COLOURS[name], alpha=0.35)
            for k, r in enumerate(mine):
                height = y + 0.16 * (k - (len(mine) - 1) / 2)
                axis.plot(r[f"{quantity}_ci"], [height, height], color=COLOURS[name], linewidth=1)
                axis.plot(r[quantity], height, "o", color=COLOURS[name], markersize=3.5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"reward {name}", fontsize=10, loc="left")
        axis.set_xlabel(f"{label} (95 % intervals)", fontsize=8.5)
        axis.spines[["top", "right"]].set_visible(False)
    # A gain that is hardly above 0 makes shares of any size.
    axes[-1].set_xlim(-0.5, 1.05)
    axes[0].set_yticks(range(len(variants)), variants, fontsize=8.5)
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    figure.tight_layout()
    return figure
