"""What the sweep writes and prints: JSON, CSV, Markdown, pictures, terminal tables."""

import argparse
import csv
import io
import math
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from jaxsim_soc import cli

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxsim.audit.arena import BRIEFED, FARM, PLAN, Arena, Candidate
from jaxsim.names import action_text, positional_text
from jaxsim.recurrent import VIEWS
from jaxsim.rules import PERSONALITIES

# Colour-blind-safe (Okabe and Ito).
COLOURS = {
    "monitor": "#999999",
    "heuristic": "#56B4E9",
    "best evidence-using": "#009E73",
    "best open-loop": "#D55E00",
    "best farming loop": "#CC79A7",
}
MARKDOWN_HEAD = (
    "| reward | scenario | verdict | exploits | EVG [95 %] | EVG_norm [95 %] | open-loop | evidence | farming |"
)


class Cloud(NamedTuple):
    """EVG of many weightings on one scenario."""

    summary: dict[str, Any]
    weights: dict[str, np.ndarray]  # each (C,)
    evg: np.ndarray  # (C,)
    grids: dict[str, dict[str, np.ndarray]]  # by reward, then weight: (2, G), its values and EVG with the others fixed


def prepare(out: Path) -> Path:
    """Create the report's folder, or fail before any work is done."""
    try:
        (out / "witnesses").mkdir(parents=True, exist_ok=True)
        cli.output_path(str(out / "report.json"))
    except OSError as error:
        cli.fail(f"--out {str(out)!r}: {error.strerror}; choose a folder that can be written")
    except argparse.ArgumentTypeError as error:
        cli.fail(f"--out {error}")
    return out


def describe(candidate: Candidate, arena: Arena) -> dict[str, Any]:
    """A candidate in words: `plan` for open-loop and farming policies, `params` for the evidence family."""
    p, dims = candidate.parameters, arena.env.dims
    if candidate.kind == PLAN:
        last = int(np.max(np.flatnonzero(p), initial=-1)) + 1
        return {
            "plan": [action_text(int(a), arena.scenario, dims) for a in p[:last]],
            "positions": [positional_text(int(a), dims) for a in p[:last]],
        }
    if candidate.kind == BRIEFED:
        each = [[action_text(int(a), arena.scenario, dims) for a in np.trim_zeros(plan, "b")] for plan in p]
        return {"plan": [f"{who}: {', '.join(runs(plan))}" for who, plan in zip(PERSONALITIES, each, strict=True)]}
    if candidate.kind in VIEWS:
        return {"params": f"learned, {candidate.kind}"}
    if candidate.kind == FARM:
        prefix = [action_text(int(a), arena.scenario, dims) for a in p.prefix[: p.prefix_length]]
        loop = [action_text(int(a), arena.scenario, dims) for a in dict.fromkeys((int(p.action), int(p.other)))]
        target = loop[0].split()[-1]
        return {"plan": [*prefix, f"INVESTIGATE {target} until confirmed", f"{' and '.join(loop)} for ever"]}
    if hasattr(p, "_asdict"):
        return {"params": {k: np.asarray(v).item() for k, v in p._asdict().items()}}
    return {"params": candidate.kind}


def plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def write(out: Path, document: dict[str, Any], clouds: list[Cloud]) -> None:
    """All files of a report; report.json last, so that it is there only when the rest is."""
    rows = document["verdicts"]
    _picture(out / "returns.png", returns_figure(rows))
    for cloud in clouds:
        _picture(out / f"evg_by_weight-{cloud.summary['scenario']}-{cloud.summary['rules']}.png", weights_figure(cloud))
    cli.write_text(out / "verdicts.csv", _csv(rows))
    cli.write_text(out / "report.md", markdown(document, clouds, out))
    cli.write_json(out / "report.json", plain(document))


def _picture(path: Path, figure: Any) -> None:
    cli.write_whole(path, lambda file: figure.savefig(file, format="png", dpi=130))
    plt.close(figure)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("scenario", "rules", "reward", "verdict", "exploits", "policy", "return", "low", "high", "std", "length")
    harms = ("exfil_rate", "stages_succeeded", "downtime", "false_positive_containments", "investigations")
    facts = (*harms, "first_containment")
    writer.writerow([*head, *facts])
    for r in rows:
        for p in r["policies"]:
            first = [r["scenario"], r["rules"], r["reward"], r["verdict"], " ".join(r["exploits"]), p["policy"]]
            writer.writerow([*first, p["return"], *p["return_ci"], p["std"], p["length"], *[p[f] for f in facts]])
    return text.getvalue()


def interval(pair: list[float]) -> str:
    """`[low, high]` to two places."""
    return "[" + ", ".join("n/a" if math.isnan(x) else f"{x:+.2f}" for x in pair) + "]"


def runs(plan: list[str]) -> list[str]:
    """A plan with an action that is repeated written once."""
    many = [(action, len(list(same))) for action, same in groupby(plan)]
    return [action if n == 1 else f"{action} × {n}" for action, n in many]


def plan_text(best: dict[str, Any]) -> str:
    """A best policy in one line."""
    if "plan" in best:
        return "; ".join(runs(best["plan"]))
    if isinstance(best["params"], str):
        return str(best["params"])
    return ", ".join(f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in best["params"].items())


def share(row: dict[str, Any], of: str = "evg_norm") -> str:
    """EVG_norm or VOI_norm with its interval."""
    return "n/a" if math.isnan(row[of]) else f"{row[of]:.2f} {interval(row[f'{of}_ci'])}"


def bound_lines(row: dict[str, Any]) -> list[str]:
    """What the best plan of each class that was searched exhaustively may earn at most."""
    return [
        f"- of all {b['members']} plans of the class *{name}* none earns more than {b['upper']:+.2f} over monitor "
        f"(95 %, all at once; best measured {b['best']:+.2f}; at least {b['fewest_episodes']} episodes each), which "
        f"leaves EVG_norm ≥ {b['evg_norm']:.2f}"
        for name, b in row["open_loop_bounds"].items()
    ]


def metric_lines(row: dict[str, Any]) -> list[str]:
    """What tells reading from not reading, and what holds when single weights move."""
    lines = []
    if metrics := row["metrics"]:
        drops = ", ".join(f"{k} {v[0]:.2f} {interval(v[1:])}" for k, v in metrics["shuffle_drop"].items())
        harm = ", ".join(
            f"first {t} ticks {v[0]:+.2f} {interval(v[1:])}" for t, v in metrics["harm_monotonicity"].items()
        )
        own, slope = metrics["relisting_gap"], metrics["farming_slope"]
        lines += [
            f"- {metrics['policy']}, share of its gain lost on another episode's observations: {drops}",
            f"- {metrics['policy']}, worth of one more compromise (must not be above 0): {harm}",
            f"- {metrics['policy']}, return with the entities listed otherwise, less its own: {own[0]:+.2f} "
            f"{interval(own[1:])}",
            f"- points per further repeat of the best farming loop: {slope[0]:+.3f} {interval(slope[1:])}",
        ]
    if moved := row["moved"]:
        lowest = moved["lowest_evg_norm"]
        lines.append(
            f"- {moved['weightings']} weightings with one weight {moved['share']:.0%} off: {moved['same_verdict']} "
            "with the same verdict; lowest EVG_norm "
            f"{lowest['value']:.2f} {interval(lowest['ci'])} ({lowest['reward']})"
        )
    return lines


def markdown(document: dict[str, Any], clouds: list[Cloud], out: Path) -> str:
    """The report for people."""
    rows = document["verdicts"]
    lines = [
        "# Reward audit",
        "",
        f"Simulator version {document['simulator_version']}, budget `{document['budget']['name']}`, "
        f"seed {document['seed']}, {document['seconds']} s. "
        "Policies were chosen on other episodes than those reported.",
        "",
        MARKDOWN_HEAD,
        "|---" * (MARKDOWN_HEAD.count("|") - 1) + "|",
    ]
    lines += [
        f"| {r['reward']} | {r['scenario']} | **{r['verdict']}** | {', '.join(r['exploits']) or '–'} | "
        f"{r['evg']:+.2f} {interval(r['evg_ci'])} | {share(r)} | {r['best_open_loop']['return']:.2f} "
        f"(std {r['best_open_loop']['std']:.2f}) | {r['best_evidence']['return']:.2f} | {r['farming']['return']:.2f} |"
        for r in rows
    ]
    lines += ["", "![Returns of open-loop against evidence-using policies](returns.png)", "", "## Witnesses", ""]
    for r in rows:
        lines += [f"### {r['reward']} on {r['scenario']} ({r['rules']} rules)", ""]
        for title, key in (
            ("best open-loop", "best_open_loop"),
            ("best without variance", "best_open_loop_std0"),
            ("positional", "positional"),
            ("best evidence-using", "best_evidence"),
            ("farming", "farming"),
        ):
            if r[key]:
                lines.append(f"- {title}, return {r[key]['return']:.2f} (std {r[key]['std']:.2f}): {plan_text(r[key])}")
        returns = {p["policy"]: p for p in r["policies"]}
        told = returns[r["voi_of"][0]]["tells"]
        if r["unmet"] and not r["exploits"]:
            lines.append(f"- not certified, for want of: {'; '.join(r['unmet'])}")
        lines.append(
            f"- worth of investigating, {r['voi_of'][0]} over {r['voi_of'][1]}: VOI "
            f"{r['voi']:+.2f} {interval(r['voi_ci'])}, VOI_norm {share(r, 'voi_norm')}; of the containments of "
            f"{r['voi_of'][0]} {told['evidence_backed_share']:.0%} are evidence-backed, and "
            f"{told['recontained_share']:.0%} of what it had contained and restored before"
        )
        lines += [f"- learned, {v}: return {returns[v]['return']:.2f}" for v in VIEWS if v in returns]
        tells = ", ".join(f"{k} {v if isinstance(v, bool) else round(v, 3)}" for k, v in r["tells"].items())
        lines.append(f"- tells of the best open-loop policy: {tells}")
        lines += bound_lines(r) + metric_lines(r)
        lines += [f"- replay {e}: `jaxsim-soc replay {out / f}`" for e, f in r["witness"].items()]
        lines.append("")
    lines += [
        "## Reward side",
        "",
        "Every policy that survived the search, under weightings it was not searched for. Plans and evidence-using "
        "policies that a weighting alone would favour are missing, so these gaps point and do not prove: run the sweep "
        "on a weighting before trusting it.",
        "",
    ]
    for c in clouds:
        s = c.summary
        lines += [
            f"- {s['scenario']} ({s['rules']} rules): {s['configurations']} weightings of {s['policies']} policies; "
            f"EVG > 0 in {s['share_evg_positive']:.1%}, EVG_norm ≥ 0.25 in {s['share_evg_norm_certifiable']:.1%}; "
            f"{s['configurations_per_minute']:,} weightings re-scored per minute",
            *(f"  - {flip_text(name, flips)}" for name, flips in s["smallest_flips"].items()),
            "",
            f"  ![EVG against each weight](evg_by_weight-{s['scenario']}-{s['rules']}.png)",
        ]
    return "\n".join([*lines, ""])


def flip_text(name: str, flips: list[dict[str, Any]]) -> str:
    """The smallest change of one weight that takes EVG_norm below the bound."""
    if not flips:
        return f"{name}: EVG_norm is below the bound as it is"
    first = flips[0]
    if first["value"] is None:
        return f"{name}: no change of a single weight, from nothing to four times, takes EVG_norm below the bound"
    factor = "" if first["factor"] is None else f" (× {first['factor']:.2f})"
    return f"{name}: the smallest flip is {first['weight']} = {first['value']:.3g}{factor}"


# --- pictures -------------------------------------------------------------------------------------------------------


def returns_figure(rows: list[dict[str, Any]]) -> Any:
    """Bars of return with 95 % intervals: one panel a reward, one group a scenario."""
    rewards = list(dict.fromkeys((r["reward"], r["rules"]) for r in rows))
    names = list(dict.fromkeys(r["scenario"] for r in rows))
    wide = min(40.0, max(7.5, 1.9 * len(names)))
    figure, axes = plt.subplots(len(rewards), 1, figsize=(wide, 2.5 * len(rewards) + 0.9), squeeze=False, sharex=True)
    for axis, (reward, rules) in zip(axes[:, 0], rewards, strict=True):
        for x, name in enumerate(names):
            mine = [r for r in rows if (r["reward"], r["rules"], r["scenario"]) == (reward, rules, name)]
            if not mine:
                continue
            row = mine[0]
            by_name = {p["policy"]: p for p in row["policies"]}
            shown = ("monitor", "heuristic", row["best_evidence_name"], row["best_open_loop_name"], "farming")
            for k, (label, policy) in enumerate(zip(COLOURS, shown, strict=True)):
                p = by_name[policy]
                low, high = p["return_ci"]
                axis.bar(x + 0.16 * (k - 2), p["return"], 0.15, color=COLOURS[label], label=label if x == 0 else None)
                error = [[max(0.0, p["return"] - low)], [max(0.0, high - p["return"])]]
                axis.errorbar(x + 0.16 * (k - 2), p["return"], error, color="black", linewidth=0.8, capsize=1.5)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_ylabel("mean return")
        axis.set_title(f"reward {reward}, {rules} rules", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xticks(range(len(names)), [n.replace("_", "\n") for n in names], fontsize=7.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=5, fontsize=8.5, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    return figure


def weights_figure(cloud: Cloud) -> Any:
    """EVG against each weight: median and central 80 % over all other weights."""
    names = list(cloud.weights)
    figure, axes = plt.subplots(4, 4, figsize=(10.5, 8.6), sharey=True)
    low, high = np.percentile(cloud.evg, [1, 99])
    for axis, name in zip(axes.ravel(), names, strict=True):
        value, finite = cloud.weights[name], np.isfinite(cloud.weights[name])
        edges = np.quantile(value[finite], np.linspace(0, 1, 13))
        which = np.clip(np.searchsorted(edges, value[finite], side="right") - 1, 0, 11)
        evg = cloud.evg[finite]
        bands = np.stack([np.percentile(evg[which == b], [10, 50, 90]) for b in range(12)], axis=1)
        middle = (edges[:-1] + edges[1:]) / 2
        axis.fill_between(middle, bands[0], bands[2], color="#56B4E9", alpha=0.35, linewidth=0)
        axis.plot(middle, bands[1], color="#0072B2", label="median of all weightings")
        for (reward, grid), style in zip(cloud.grids.items(), ("-", "--", ":", "-."), strict=False):
            axis.plot(*grid[name], style, color="#D55E00", linewidth=1.2, label=f"around {reward}")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylim(min(low, -0.5), max(high, 0.5))
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    s = cloud.summary
    figure.suptitle(
        f"EVG against each weight, {s['scenario']}, {s['rules']} rules: median and central 80 % of "
        f"{s['configurations']:,} weightings",
        fontsize=10,
    )
    figure.supylabel("EVG (points); above 0 evidence pays", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=8.5, frameon=False)
    figure.tight_layout(rect=(0, 0.035, 1, 1))
    return figure


# --- terminal -------------------------------------------------------------------------------------------------------


def print_verdicts(console: Console, rows: list[dict[str, Any]]) -> None:
    """The verdict table."""
    table = Table(title="Does the reward pay for reading the evidence?", show_lines=False)
    left = ("reward", "scenario", "verdict", "exploits")
    for name in (*left, "EVG [95 %]", "EVG_norm [95 %]", "open-loop (std)", "evidence", "farming"):
        table.add_column(name, justify="left" if name in left else "right")
    for r in rows:
        ol = r["best_open_loop"]
        table.add_row(
            r["reward"],
            r["scenario"],
            r["verdict"],
            ", ".join(r["exploits"]) or "–",
            f"{r['evg']:+.2f} {interval(r['evg_ci'])}",
            share(r),
            f"{ol['return']:.2f} ({ol['std']:.2f})",
            f"{r['best_evidence']['return']:.2f}",
            f"{r['farming']['return']:.2f}",
        )
    console.print(table)
    for r in rows:
        unmet = f"; not certified for want of {'; '.join(r['unmet'])}" if r["unmet"] and not r["exploits"] else ""
        console.print(f"{r['reward']}, {r['scenario']}: {plan_text(r['best_open_loop'])}{unmet}", highlight=False)


def print_rescoring(console: Console, clouds: list[Cloud]) -> None:
    """What weights alone can do."""
    for c in clouds:
        s = c.summary
        console.print(
            f"{s['scenario']}, {s['rules']} rules: EVG > 0 in {s['share_evg_positive']:.1%} of {s['configurations']:,} "
            f"weightings ({s['configurations_per_minute']:,} a minute)",
            highlight=False,
        )
