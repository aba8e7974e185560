"""What an evaluation measures and writes: rows, tables, pictures.

Intervals are 95 % percentile bootstrap over episodes, see `jaxsim.audit.bootstrap`; over several campaigns it is
stratified: each is resampled by itself, and all weigh the same. IQM (the mean of the middle half) and P(improvement)
are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
All rows play the same episodes, so P is paired: the chance to get more of an episode than another policy, ties half.
"""

import csv
import io
import os
import platform
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.stats import trim_mean

from jaxsim import rollouts
from jaxsim.actions import table
from jaxsim.audit.bootstrap import RESAMPLES, Estimate, estimate, resampled_means
from jaxsim.env import transition
from jaxsim.rollouts import EpisodeStats
from jaxsim.types import EXFIL, VERBS, Dims, Params, State
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from prompting import FALLBACKS, FORMAT_VERSION, Inventory

Row = dict[str, Any]
ALL = "all campaigns"
TIE = 1e-4  # points; float32 sums of equal terms differ by less
SAID = (*VERBS, "INVALID")
ESTIMATES = (
    *("mean_return", "iqm_return", "shuffle_drop", "shuffle_loss"),
    *(f"{kind}_{other}" for other in ("monitor", "random", "base") for kind in ("over", "p_over")),
)
CHUNK = 100  # resamples at a time
LINEAR = 2.0  # points around 0 that are drawn to a linear scale
# Okabe and Ito's colours, told apart by colour-blind people as well, and a grey.
# fmt: off
COLOURS = {
    "random": "#999999", "monitor": "#000000", "heuristic": "#56B4E9", "open-loop": "#E69F00", "evidence": "#009E73",
    "learned": "#CC79A7", "base": "#0072B2", "trained": "#D55E00",
}
# fmt: on
# Of SAID.
VERB_COLOURS = ("#999999", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#000000")
PICTURES = {
    "returns.png": "Mean return and IQM with 95 % bands",
    "campaigns.png": "Mean return on each campaign",
    "lengths.png": "Return against length of every episode",
    "actions.png": "Actions before the first alert and after it",
}


class Told(NamedTuple):
    """What a policy did in the E episodes of a campaign."""

    policy: str
    scenario: str
    stats: EpisodeStats  # leading axis (E,)
    said: np.ndarray  # (T, E) index into SAID
    live: np.ndarray  # (T, E) bool, the episode was not over
    alerted: np.ndarray  # (T, E) bool, an alert was in view when acting
    containments: np.ndarray  # (T, E)
    shuffled: np.ndarray | None  # (E,) returns on another episode's evidence
    seconds: float = 0.0
    words: str = ""  # what the policy is
    reasons: Mapping[str, int] | None = None  # of a model: how often each reason, '' for a legal answer
    tokens: int = 0


@partial(jax.jit, static_argnames=("dims",))
def _watch(dims: Dims, params: Params, keys: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    def tick(state: State, action: jax.Array) -> Any:
        block = jax.vmap(rollouts.tick_noise)(keys, state.tick + 1)
        after, signals = jax.vmap(lambda s, a, b: transition(dims, s, a, b, params))(state, action, block)
        return after, (state.alerts.count > 0, signals.containments)

    first = jax.vmap(lambda key: rollouts.start(dims, key, params))(keys)
    rows: tuple[jax.Array, jax.Array] = jax.lax.scan(tick, first, actions)[1]
    return rows


def tell(
    inventory: Inventory, params: Params, keys: jax.Array, policy: str, scenario: str, stats: Any, actions: np.ndarray
) -> Told:
    """What is known of (T, E) actions in the episodes of `keys`."""
    longest = int(params.scenario.horizon)
    padded = np.pad(actions, ((0, longest - len(actions)), (0, 0)), constant_values=-1)
    alerted, containments = map(np.asarray, _watch(inventory.dims, params, keys, jnp.asarray(padded)))
    legal = np.isin(padded, list(inventory.actions.values()))
    said = np.where(legal, table(inventory.dims)[0][padded], SAID.index("INVALID"))
    return Told(policy, scenario, stats, said, np.arange(longest)[:, None] < stats.length, alerted, containments, None)


# --- numbers --------------------------------------------------------------------------------------------------------


def stratified(strata: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """((P,) means, (RESAMPLES, P) resampled means) of (E, P) samples of each stratum; all strata weigh the same."""
    rng = np.random.default_rng(0)
    boots = np.mean([resampled_means(s, rng) for s in strata], axis=0)
    return np.mean([s.mean(axis=0) for s in strata], axis=0), boots


def iqm(strata: Sequence[np.ndarray]) -> Estimate:
    """Interquartile mean of all samples, (E,) of each stratum."""
    rng, boots = np.random.default_rng(0), []
    for _ in range(0, RESAMPLES, CHUNK):
        drawn = [s[rng.integers(len(s), size=(CHUNK, len(s)))] for s in strata]
        boots.append(trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1))
    return estimate(trim_mean(np.concatenate(strata), 0.25), np.concatenate(boots))


def measure(many: Sequence[Told], others: Mapping[str, Sequence[Told]]) -> Row:
    """The row of a policy: of one campaign, or of several. `others`: those to compare it to, in the same episodes."""
    own = [t.stats.episode_return.astype(np.float64) for t in many]
    columns = {"mean_return": own}
    for name, theirs in others.items():
        gaps = [mine - t.stats.episode_return for mine, t in zip(own, theirs, strict=True)]
        columns[f"over_{name}"] = gaps
        columns[f"p_over_{name}"] = [(g > TIE) + 0.5 * (np.abs(g) <= TIE) for g in gaps]
    if all(t.shuffled is not None for t in many):
        columns["shuffle_loss"] = [mine - t.shuffled for mine, t in zip(own, many, strict=True)]
    means, boots = stratified([np.stack(s, axis=1) for s in zip(*columns.values(), strict=True)])
    found = {name: estimate(means[i], boots[:, i]) for i, name in enumerate(columns)}
    found["iqm_return"] = iqm(own)
    if "shuffle_loss" in found and "over_monitor" in found and found["over_monitor"].low > 0:
        gain, lost = (list(columns).index(name) for name in ("over_monitor", "shuffle_loss"))
        gaining = boots[boots[:, gain] > 0]  # nearly all
        found["shuffle_drop"] = estimate(means[lost] / means[gain], gaining[:, lost] / gaining[:, gain])

    stats = jax.tree.map(lambda *x: np.concatenate(x).astype(np.float64), *[t.stats for t in many])
    contained = stats.signals.containments.sum()
    reasons = sum((Counter(t.reasons) for t in many if t.reasons), Counter[str]())
    decisions, seconds = reasons.total(), sum(t.seconds for t in many)
    row: Row = {"scenario": many[0].scenario if len(many) == 1 else ALL, "policy": many[0].policy}
    row |= {"n": len(stats.length), "std_return": stats.episode_return.std()}
    for name in ESTIMATES:
        row[name] = found[name].value if name in found else None
        row[f"{name}_ci"] = list(found[name][1:]) if name in found else None
    row |= {
        "stages_succeeded": stats.succeeded.mean(),
        "exfil_rate": (stats.end == EXFIL).mean(),
        "downtime": stats.downtime.mean(),
        "length": stats.length.mean(),
        "channels": {k: v.mean() for k, v in stats.channels._asdict().items()},
        "invalid_rate": stats.signals.invalid.sum() / stats.length.sum(),
        "blind_rate": stats.blind.mean(),
        "contained_before_alert": _share(sum(t.containments[~t.alerted].sum() for t in many), contained),
        "evidence_backed": _share(stats.signals.evidence_backed.sum(), contained),
        "actions_before_alert": _actions(many, alerted=False),
        "actions_after_alert": _actions(many, alerted=True),
        "decisions": decisions or None,
        "fallback_rate": _share(sum(reasons[r] for r in FALLBACKS), decisions),
        "reasons": {r or "legal": n for r, n in sorted(reasons.items())} or None,
        "seconds": seconds,
        "decisions_per_second": _share(decisions, seconds) if decisions else None,
        "tokens_per_second": _share(sum(t.tokens for t in many), seconds) if decisions else None,
    }
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()}


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _actions(many: Sequence[Told], alerted: bool) -> dict[str, int]:
    count = sum(np.bincount(t.said[t.live & (t.alerted == alerted)], minlength=len(SAID)) for t in many)
    return dict(zip(SAID, np.asarray(count).tolist(), strict=True))


def rows_of(told: Mapping[str, Sequence[Told]]) -> list[Row]:
    """Each policy over all campaigns, then campaign by campaign. `told`: by policy, campaigns in one order."""
    campaigns = len(told["monitor"])
    cuts = [list(range(campaigns))] * (campaigns > 1) + [[i] for i in range(campaigns)]

    def row(name: str, cut: list[int]) -> Row:
        known = ("monitor", "random", "base") if name == "trained" else ("monitor", "random")
        compared = [other for other in known if other in told and other != name]
        return measure([told[name][i] for i in cut], {other: [told[other][i] for i in cut] for other in compared})

    return [row(name, cut) for cut in cuts for name in told]


# --- files ----------------------------------------------------------------------------------------------------------


def write(out: Path, given: Row, made: Row, told: Mapping[str, Sequence[Told]], pages: Mapping[str, str]) -> None:
    """All files of a report; rows.json last, so that it is there only when the rest is. `pages`: title by file.

    `given`: the settings; `made`: command, models and the like.
    """
    about = {k: given[k] for k in ("rules", "reward", "personality", "seed", "simulator_version")}
    rows = [{**row, **about, "version": cli.version()} for row in rows_of(told)]
    (out / "pictures").mkdir(exist_ok=True)
    figures = (returns_figure(rows), campaigns_figure(rows), lengths_figure(told), actions_figure(rows))
    for name, figure in zip(PICTURES, figures, strict=True):
        cli.write_whole(out / "pictures" / name, partial(figure.savefig, format="png", dpi=130, bbox_inches="tight"))
    cli.write_text(out / "rows.csv", _csv(rows))
    cli.write_text(out / "report.md", markdown(rows, given, made, told, pages))
    cli.write_json(out / "rows.json", rows)


def machine() -> Row:
    """What this runs on."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")
    except OSError:
        words = []
    processor = words[1].splitlines()[0] if len(words) > 1 else platform.machine()
    packages = ("jax", "torch", "transformers", "llguidance", "peft", "bitsandbytes")
    return {
        "versions": ", ".join(f"{p} {metadata.version(p)}" for p in packages if find_spec(p)),
        "project": f"{cli.version()}, simulator {SIMULATOR_VERSION}, format {FORMAT_VERSION}",
        "hardware": f"{processor}, {len(os.sched_getaffinity(0))} cores",
    }


def _csv(rows: Sequence[Row]) -> str:
    flat = []
    for row in rows:
        one: Row = {}
        for name, value in row.items():
            if name.endswith("_ci"):
                one[f"{name[:-3]}_low"], one[f"{name[:-3]}_high"] = value or (None, None)
            elif isinstance(value, dict):
                one |= {f"{name}_{k}".replace(" ", "_").lower(): v for k, v in value.items()}
            elif name != "reasons":
                one[name] = value
        flat.append(one)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for one in flat for k in one)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def number(row: Row, name: str, form: str = "+.2f") -> str:
    """A value of a row, with its interval where it has one."""
    if row[name] is None:
        return "–"
    ends = row.get(f"{name}_ci")
    return f"{row[name]:{form}}" + (f" [{', '.join(f'{x:{form}}' for x in ends)}]" if ends else "")


# fmt: off
RESULTS = {
    "return [95 %]": ("mean_return", "+.2f"), "std": ("std_return", ".2f"), "IQM [95 %]": ("iqm_return", "+.2f"),
    "over monitor [95 %]": ("over_monitor", "+.2f"), "P(over monitor)": ("p_over_monitor", ".2f"),
    "over random [95 %]": ("over_random", "+.2f"), "over base [95 %]": ("over_base", "+.2f"),
    "P(over base)": ("p_over_base", ".2f"), "exfil": ("exfil_rate", ".0%"), "stages": ("stages_succeeded", ".2f"),
    "downtime": ("downtime", ".1f"), "length": ("length", ".1f"),
}
CONDUCT = {
    "invalid": ("invalid_rate", ".1%"), "fallback": ("fallback_rate", ".1%"), "blind": ("blind_rate", ".0%"),
    "contained before alert": ("contained_before_alert", ".0%"), "evidence-backed": ("evidence_backed", ".0%"),
    "shuffle drop [95 %]": ("shuffle_drop", ".2f"), "shuffle loss [95 %]": ("shuffle_loss", "+.2f"),
    "decisions/s": ("decisions_per_second", ".2f"), "tokens/s": ("tokens_per_second", ".1f"),
    "seconds": ("seconds", ".1f"),
}
# fmt: on


def table_of(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """A Markdown table; columns in which no row has anything are left out."""
    kept = {head: spec for head, spec in columns.items() if any(r[spec[0]] is not None for r in rows)}
    lines = [f"| policy | {' | '.join(kept)} |", "|---" + "|---:" * len(kept) + "|"]
    return lines + [f"| {r['policy']} | {' | '.join(number(r, *spec) for spec in kept.values())} |" for r in rows]


LEGEND = """*over X*: mean difference to X in the same episodes. *P(over X)*: chance to earn more than X in an
episode, ties half (Agarwal et al. 2021, paired). *IQM*: mean of the middle half of the returns. *invalid*: share of
ticks without a legal action; *fallback*: share of answers with nothing that could be called an action. *blind*: share
of episodes whose first containment came before any alert; *contained before alert*: share of containments;
*evidence-backed*: share of containments of a target confirmed before. *shuffle drop*: share of the gain over monitor
that is lost on another episode's alerts and forensics, only where that gain is significant; *shuffle loss*: the same
loss in points. Intervals: 95 % bootstrap over episodes, stratified by campaign (2,000 resamples). Seconds, decisions
and tokens are those of answering; without a model, of playing, compiling included."""


def markdown(
    rows: Sequence[Row], given: Row, made: Row, told: Mapping[str, Sequence[Told]], pages: Mapping[str, str]
) -> str:
    """The report for people."""
    lines = [
        f"# {given['model']}{' with ' + given['adapter'] if given['adapter'] else ''} as a defender",
        "",
        f"{given['episodes']} episodes of each campaign, rules `{given['rules']}`, reward `{given['reward']}`, "
        f"attacker {given['personality']}; {'constrained' if given['constrained'] else 'free'} answers, temperature "
        f"{given['temperature']:g}, layout {given['layout']}, asked {given['asking']}.",
    ]
    for scenario in dict.fromkeys(r["scenario"] for r in rows):
        mine = [r for r in rows if r["scenario"] == scenario]
        lines += ["", f"## {scenario}", "", *table_of(mine, RESULTS), "", *table_of(mine, CONDUCT), ""]
        lines += [
            f"- {t.policy}: {t.words}" for many in told.values() for t in many if t.scenario == scenario and t.words
        ]
        for r in (r for r in mine if r["reasons"]):
            lines.append(f"- answers of {r['policy']}: {', '.join(f'{k} {v}' for k, v in r['reasons'].items())}")
    lines += ["", LEGEND, "", "## Pictures", ""]
    lines += [f"![{title}](pictures/{name})\n" for name, title in PICTURES.items()]
    if pages:
        lines += ["## Transcripts", "", *(f"- [{title}](transcripts/{name})" for name, title in pages.items()), ""]
    lines += ["## How it was made", "", "```sh", made["command"], "```", ""]
    lines += [f"- seed: {given['seed']}, of the episodes {made['seed']}"]
    lines += [f"- {k}: {v}" for k, v in machine().items()]
    lines += [f"- {row}: {', '.join(f'{k} {v}' for k, v in about.items())}" for row, about in made["models"].items()]
    return "\n".join([*lines, ""])


# --- pictures -------------------------------------------------------------------------------------------------------


def _axes(tall: float, wide: float = 8.5, many: int = 1) -> Any:
    figure = Figure(figsize=(wide, tall), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, many, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    return figure, *axes


def _legend(figure: Figure, axis: Any) -> Figure:
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _points(axis: Any, which: str, values: Any) -> None:
    """Scale an axis for returns: where some are far off, logarithmic away from 0."""
    low, high = float(np.min(values)), float(np.max(values))
    pad, scale = 0.05 * (high - low) + 0.05, getattr(axis, f"{which}axis")
    if high - low > 4 * LINEAR:
        getattr(axis, f"set_{which}scale")("symlog", linthresh=LINEAR, linscale=1.5)
        ticks = [sign * f * 10**e for sign in (-1, 1) for e in range(4) for f in (1, 2, 5)]
        ticks = [t for t in (0, *ticks) if low - pad <= t <= high + pad]
        scale.set_ticks(ticks, [f"{t:g}" for t in ticks])
        scale.set_minor_locator(NullLocator())
        scale.set_label_text(f"{scale.get_label_text()}\n(logarithmic beyond ±{LINEAR:g})")
        low, high, pad = low * 1.2 if low < 0 else low, high * 1.2, 0.2
    getattr(axis, f"set_{which}lim")(low - pad, high + pad)
    axis.grid(axis=which, color="#dddddd", linewidth=0.7)
    getattr(axis, f"ax{'v' if which == 'x' else 'h'}line")(0, color="#777777", linewidth=0.9)


def returns_figure(rows: Sequence[Row]) -> Figure:
    """Mean and IQM of every policy over all campaigns, with bands."""
    mine = [r for r in rows if r["scenario"] == rows[0]["scenario"]][::-1]
    figure, *axes = _axes(1.0 + 0.36 * len(mine), many=2)
    for axis, name, title in zip(axes, ("mean_return", "iqm_return"), ("mean", "interquartile mean"), strict=True):
        for y, r in enumerate(mine):
            low, high = r[f"{name}_ci"]
            axis.barh(y, high - low, 0.62, left=low, color=COLOURS[r["policy"]], alpha=0.4)
            axis.plot([r[name]] * 2, [y - 0.31, y + 0.31], color=COLOURS[r["policy"]], linewidth=2.5)
        axis.set_title(f"{title}, {rows[0]['scenario']}", fontsize=9, loc="left")
        axis.set_yticks(range(len(mine)), [r["policy"] for r in mine])
        axis.set_xlabel("return, points, with 95 % bands")
        _points(axis, "x", [r[f"{name}_ci"] for r in mine])
    return figure


def campaigns_figure(rows: Sequence[Row]) -> Figure:
    """Bars of mean return: a group for each campaign."""
    names = list(dict.fromkeys(r["scenario"] for r in rows if r["scenario"] != ALL))
    policies = list(dict.fromkeys(r["policy"] for r in rows))
    figure, axis = _axes(4.4, max(6.5, 2.4 * len(names)))
    mine, bar = [r for r in rows if r["scenario"] != ALL], 0.84 / len(policies)
    for r in mine:
        x = names.index(r["scenario"]) + (policies.index(r["policy"]) - (len(policies) - 1) / 2) * bar
        axis.bar(x, r["mean_return"], 0.9 * bar, color=COLOURS[r["policy"]], label=r["policy"])
        axis.plot([x, x], r["mean_return_ci"], color="#808080", linewidth=1.3)
    axis.set_xticks(range(len(names)), [textwrap.fill(n.replace("_", " "), 22) for n in names])
    axis.set_ylabel("mean return, points, 95 % interval")
    _points(axis, "y", [0.0, *(end for r in mine for end in r["mean_return_ci"])])
    return _legend(figure, axis)


def lengths_figure(told: Mapping[str, Sequence[Told]]) -> Figure:
    """Every episode: its return against its length."""
    figure, axis = _axes(4.6)
    returns = {name: np.concatenate([t.stats.episode_return for t in many]) for name, many in told.items()}
    for i, (name, many) in enumerate(told.items()):
        aside = 0.3 * (i - (len(told) - 1) / 2)
        x = np.concatenate([t.stats.length for t in many]) + aside
        axis.scatter(x, returns[name], 16, color=COLOURS[name], alpha=0.6, linewidths=0, label=name)
    axis.set_xlabel("length, ticks (policies of one length stand side by side)")
    axis.set_ylabel("return, points")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(x=0.1)
    _points(axis, "y", np.concatenate(list(returns.values())))
    return _legend(figure, axis)


def actions_figure(rows: Sequence[Row]) -> Figure:
    """What was done before the first alert and after it, as shares."""
    mine = [r for r in rows if r["scenario"] == rows[0]["scenario"]][::-1]
    figure, *axes = _axes(1.4 + 0.34 * len(mine), many=2)
    for axis, when, title in zip(axes, ("before", "after"), ("before the first alert", "after it"), strict=True):
        left = np.zeros(len(mine))
        for verb, colour in zip(SAID, VERB_COLOURS, strict=True):
            counts = [r[f"actions_{when}_alert"] for r in mine]
            share = np.asarray([c[verb] / max(1, sum(c.values())) for c in counts])
            axis.barh(range(len(mine)), share, 0.7, left=left, color=colour, label=verb)
            left += share
        axis.set_yticks(range(len(mine)), [r["policy"] for r in mine])
        axis.set_title(f"{title}, {rows[0]['scenario']}", fontsize=9, loc="left")
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axis.set_xlim(0, 1)
        axis.set_xlabel("share of ticks")
    return _legend(figure, axes[0])
