"""The report of a training run: report.md, metrics.json, the model card and four pictures."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpo.reporting.measure import SAID
from grpo.reporting.pictures import VERB_COLOURS, campaigns_figure, returns_figure
from grpo.reporting.report import number
from grpo.training.settings import Settings
from jaxsim_soc import cli
from prompting import FORMAT_VERSION

Row = dict[str, Any]
PAIRED = ("monitor", "random", "base", "trained")


def write(out: Path, chosen: Settings, log: Sequence[Row], rows: Sequence[Row], manifest: Row, alarm: str) -> None:
    """All files of the report; metrics.json last, so that it is there only when the rest is."""
    for name, figure in (
        ("aggregate_performance.png", returns_figure(rows)),
        ("baseline_curves.png", curves_figure(log, rows)),
        (
            "before_after.png",
            campaigns_figure([r for r in rows if r["policy"] in PAIRED]),
        ),
        ("training_diagnostics.png", diagnostics_figure(log)),
    ):
        cli.write_whole(out / name, partial(figure.savefig, format="png", dpi=130, bbox_inches="tight"))
    cli.write_text(out / "report.md", markdown(chosen, log, rows, manifest, alarm))
    cli.write_json(out / "metrics.json", {"alarm": alarm, "steps": len(log), "rows": list(rows)})


def overall(rows: Sequence[Row], policy: str) -> Row:
    """A policy's row over all campaigns."""
    return next(r for r in rows if r["policy"] == policy)


def markdown(chosen: Settings, log: Sequence[Row], rows: Sequence[Row], manifest: Row, alarm: str) -> str:
    """The report for people."""
    base, trained = overall(rows, "base"), overall(rows, "trained")
    text = [
        "# Training report",
        "",
        f"Model `{chosen.model}`, rules `{chosen.rules}`, reward `{chosen.reward}`, profile `{chosen.profile}`; "
        f"{', '.join(chosen.campaigns)}; seed {chosen.seed}. The model was asked: {chosen.asking}.",
        "",
        paid_in_words(chosen, manifest["audit"]),
        "",
    ]
    if alarm:
        text += [f"**The alarm stopped this run: {alarm}.**", ""]
    low, high = trained["over_base_ci"]
    better = "above" if low > 0 else "below" if high < 0 else "not told apart from"
    text += [
        f"Trained, the model's return is {better} its base's: {number(trained, 'over_base')}; "
        f"against random: {number(trained, 'over_random')}; against waiting: {number(trained, 'over_monitor')} "
        f"(paired differences over {trained['n']} episodes that nothing was trained on, 95 % intervals). "
        f"Valid actions: {1 - trained['invalid_rate']:.1%} (base {1 - base['invalid_rate']:.1%})."
        + (
            f" Shuffle drop: {number(trained, 'shuffle_drop')}, in points {number(trained, 'shuffle_loss')}."
            if chosen.evaluate_shuffle
            else " Shuffle drop: below, at rows kept apart."
        ),
        "",
        *results(rows),
    ]
    text += ["", "![Returns](aggregate_performance.png)", "", "![Before and after](before_after.png)", ""]
    text += [
        "![Training](training_diagnostics.png)",
        "",
        "![Training return against baselines](baseline_curves.png)",
        "",
    ]
    text += validations([x for x in log if x["phase"] in ("start", "validation")])
    text += stand_ins([x for x in log if x["phase"] == "credit"])
    text += improvements([x for x in log if x["phase"] == "improved" and "improved" in x])
    text += checks([x for x in log if x["phase"] == "check"])
    text += ["Seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in manifest["seconds"].items()) + ".", ""]
    text += ["Everything said in the evaluation, with transcripts: [evaluation/report.md](evaluation/report.md).", ""]
    text += ["| file | what |", "|---|---|", *(f"| `{f}` | {what} |" for f, what in FILES.items()), ""]
    return "\n".join(text)


def results(rows: Sequence[Row]) -> list[str]:
    """The table of all rows of the evaluation."""
    lines = [
        "| campaign | policy | return [95 %] | over base | over monitor | invalid | exfil | contained before alert |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        blind = r["contained_before_alert"]
        lines.append(
            f"| {r['scenario']} | {r['policy']} | {number(r, 'mean_return')} | {number(r, 'over_base')} | "
            f"{number(r, 'over_monitor')} | {r['invalid_rate']:.1%} | {r['exfil_rate']:.0%} | "
            f"{'–' if blind is None else f'{blind:.0%}'} |"
        )
    return lines


def validations(log: Sequence[Row]) -> list[str]:
    """The table of the episodes that decided which loop's adapter is kept; nothing without one."""
    if not log:
        return []
    after = [-1 if x["phase"] == "start" else x["loop"] for x in log]
    best, kept = max(zip(log, after, strict=True), key=lambda pair: (pair[0]["mean_return"], pair[1]))
    over = [name for name in ("monitor", "teacher") if f"over_{name}" in best]
    which = "the one that the run began with" if kept < 0 else f"that of loop {kept}"
    return [
        f"Validation, on episodes that nothing else uses: the adapter is {which}. Differences ± standard error.",
        "",
        f"| after loop | episodes | return |{''.join(f' over {name} |' for name in over)}",
        "|---|---|---|" + "---|" * len(over),
        *(
            f"| {'none yet' if loop < 0 else loop} | {x['episodes']} | {x['mean_return']:+.2f} |"
            + "".join(f" {x[f'over_{name}']:+.2f} ± {x[f'over_{name}_se']:.2f} |" for name in over)
            for x, loop in zip(log, after, strict=True)
        ),
        "",
    ]


def stand_ins(log: Sequence[Row]) -> list[str]:
    """How far from the model whoever played on in its place was; nothing where that was not a stand-in."""
    return [
        f"Loop {x['loop']}: in the futures a stand-in for the model played on. At {x['rows']} states that it was not "
        f"fitted to it is {x['distance']:.2f} from the model (total variation), and does the same in {x['same']:.0%}.\n"
        for x in log
    ]


def improvements(log: Sequence[Row]) -> list[str]:
    """What became of the stand-in, which the model was then to follow; nothing without that."""
    return [
        f"Loop {x['loop']}: the stand-in earns {x['stand_in']:+.2f} ± {x['stand_in_se']:.2f} (standard error), and "
        f"{x['improved']:+.2f} ± {x['improved_se']:.2f} after {x['round']} rounds of policy iteration in the "
        "simulator, of which the model was taught the advantages.\n"
        for x in log
    ]


def checks(log: Sequence[Row]) -> list[str]:
    """The table of the shuffle drops after each loop; nothing without one."""
    if not log:
        return []
    return [
        "Shuffle drop at rows that nothing was trained on: how much more a greedy answer is worth at its own row "
        "than at others of its campaign, in return-to-go.",
        "",
        "| after loop | rows | own, points | other rows | waiting | drop ± standard error | valid |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {x['loop']} | {x['rows']} | {x['own']:+.2f} | {x['other']:+.2f} | {x['waiting']:+.2f} | "
            f"{x['drop']:.2f} ± {x['drop_se']:.2f} | {x['valid_rate']:.0%} |"
            for x in log
        ),
        "",
    ]


FILES = {
    "adapter/": "the adapter (PEFT, safetensors), with its model card",
    "run_manifest.json": "settings, versions, hardware, seconds, the audit's verdict",
    "training_log.jsonl": "one line a step",
    "metrics.json": "the rows of this report",
    "loop*/rows/": "prompts, bank of states, return-to-go",
    "loop*/play-*.jsonl": "what the model said in its own play",
    "loop0/start-*.jsonl": "what the adapter that it began with said in validation",
    "loop*/validation-*.jsonl": "what it said in validation",
    "evaluation/": "rows, pictures, transcripts",
}


def paid_in_words(chosen: Settings, verdict: Sequence[Row]) -> str:
    """What GRPO paid for, and what the audit says of that."""
    audited = "; ".join(f"{r['scenario']}: {r['verdict']}" for r in verdict)
    audit = f"The audit is of the return under reward `{chosen.reward}` and rules `{chosen.rules}` ({audited})."
    if not chosen.steps:
        return f"GRPO took no step, and nothing was paid. {audit}"
    paid = ", ".join(f"{name} x {weight:g}" for name, weight in chosen.weights.items())
    covers = "What was paid is that return, and the form of the answers."
    if chosen.not_covered:
        covers = f"**It does not cover what was paid: {', '.join(chosen.not_covered)}.**"
    return f"Paid for: {paid}. {audit} {covers}"


def card(chosen: Settings, verdict: Sequence[Row], alarm: str) -> str:
    """The adapter's model card, which is made to be passed on: of a base in a folder it says the last name."""
    base = Path(chosen.model).name if os.path.isabs(chosen.model) else chosen.model
    return "\n".join(
        [
            "---",
            f"base_model: {base}",
            "library_name: peft",
            "tags: [security, soc, grpo, lora]",
            "---",
            "",
            "# SOC analyst adapter",
            "",
            f"{'Trained by GRPO' if chosen.steps else 'Taught'} in a simulator, rules `{chosen.rules}`, reward "
            f"`{chosen.reward}`, on {', '.join(chosen.campaigns)}.",
            "",
            paid_in_words(chosen, verdict),
            *([f"**The alarm stopped the training: {alarm}.**"] if alarm else []),
            "",
            f"It answers the prompts of `prompting`, format {FORMAT_VERSION} (one JSON action), and knows nothing of "
            "real networks: use it for research, not to defend anything.",
            "",
        ]
    )


# --- pictures -------------------------------------------------------------------------------------------------------


def _figure(wide: float, tall: float) -> Figure:
    figure = Figure(figsize=(wide, tall), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _steps(log: Sequence[Row]) -> list[Row]:
    return [x for x in log if x["phase"] == "grpo"]


def curves_figure(log: Sequence[Row], rows: Sequence[Row]) -> Figure:
    """What the completions of each step are worth, as regret, and the returns of evaluation as levels."""
    figure = _figure(8.5, 3.6)
    left, right = figure.subplots(1, 2)
    steps = _steps(log)
    regret = [x["regret"] for x in steps]
    left.plot(range(1, len(steps) + 1), [float("nan") if r is None else r for r in regret], color="#0072B2")
    left.set_title("regret of the completions, points", fontsize=10, loc="left")
    left.set_xlabel("GRPO step")
    names = [r["policy"] for r in rows if r["scenario"] == rows[0]["scenario"]]
    for y, name in enumerate(names[::-1]):
        r = overall(rows, name)
        low, high = r["mean_return_ci"]
        right.plot([low, high], [y, y], color="#0072B2", linewidth=5, alpha=0.4)
        right.plot(r["mean_return"], y, "o", color="#0072B2")
    right.set_yticks(range(len(names)), names[::-1])
    right.set_title("return after training, all campaigns", fontsize=10, loc="left")
    right.set_xlabel("points, 95 % intervals")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def diagnostics_figure(log: Sequence[Row]) -> Figure:
    """Loss, reward and its spread, actions, valid rate, KL and entropy, step by step."""
    figure = _figure(11, 6.2)
    axes = figure.subplots(2, 3).ravel()
    warm, steps = [x for x in log if x["phase"] == "warm"], _steps(log)
    at = range(1, len(steps) + 1)
    axes[0].plot(range(1, len(warm) + 1), [x["loss"] for x in warm], color="#009E73")
    axes[0].set_title("warm start: loss", fontsize=10, loc="left")
    axes[1].plot(at, [x["reward_mean"] for x in steps], color="#0072B2")
    axes[1].set_title("GRPO: mean reward, points", fontsize=10, loc="left")
    axes[2].plot(at, [x["group_std"] for x in steps], color="#0072B2", label="spread within groups")
    axes[2].plot(at, [x["zero_variance_groups"] for x in steps], color="#D55E00", label="share without spread")
    axes[2].set_title("what there is to learn from", fontsize=10, loc="left")
    axes[2].legend(fontsize=8, frameon=False)
    counts = [[x["actions"].get(said, 0) / x["completions"] for x in steps] for said in SAID]
    if steps:
        axes[3].stackplot(at, *counts, colors=VERB_COLOURS, labels=[x.lower().replace("_", " ") for x in SAID])
        axes[3].legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes[3].set_title("actions", fontsize=10, loc="left")
    axes[4].plot(at, [x["valid_rate"] for x in steps], color="#0072B2")
    axes[4].set_ylim(-0.02, 1.02)
    axes[4].set_title("valid actions", fontsize=10, loc="left")
    for key, colour in (("kl", "#D55E00"), ("entropy", "#009E73"), ("action_entropy", "#0072B2")):
        axes[5].plot(
            at,
            [x.get(key) if x.get(key) is not None else float("nan") for x in steps],
            color=colour,
            label=key.replace("_", " "),
        )
    axes[5].set_title("KL and entropies, nats", fontsize=10, loc="left")
    axes[5].legend(fontsize=8, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure
