"""The pictures of an evaluation: figures of its rows and episodes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from grpo.reporting.measure import ALL, SAID, Row, Told

LINEAR = 2.0  # points around 0 that are drawn to a linear scale
# Okabe and Ito's colours, told apart by colour-blind people as well, and a grey.
# fmt: off
COLOURS = {
    "random": "#999999", "monitor": "#000000", "heuristic": "#56B4E9", "open-loop": "#E69F00", "evidence": "#009E73",
    "learned": "#CC79A7", "memoryless": "#F0E442", "base": "#0072B2", "trained": "#D55E00",
}
# fmt: on
# Of SAID.
VERB_COLOURS = ("#999999", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#000000")


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
