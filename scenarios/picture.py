"""A picture of a scenario: its attack as a graph, and its network below. `picture` gives an SVG file's text.

>>> from scenarios.load import load
>>> from scenarios.picture import picture
>>> picture(load("insider_repo_pivot"))[:5]
'<?xml'

Needs Matplotlib. The text stays text, and the same scenario gives the same file.
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from scenarios import attack
from scenarios.model import Scenario, Stage

# Inches.
WIDE, HIGH = 2.1, 0.78  # of a stage
ACROSS, DOWN = 0.55, 0.2  # between two
THIN = 0.12  # height of a line that passes a column by
ENTITY, ROW = 2.3, 0.3  # width of an entity, height of its line
MARGIN, HEADING = 0.3, 0.32
CHARACTERS = 31  # of a line in a stage
COLUMNS = 8  # stages side by side: a longer attack goes on below
MAX_ENTITIES = 120  # drawn; of the others the number is told
MAX_LINES = 2000  # drawn, those of the nearest stages; of the others the number is told
# Okabe and Ito's colours, paler: told apart by colour-blind people as well.
LOSS, TAKES, PLAIN, BYSTANDER = "#F6C7A5", "#BFDDF0", "#FFFFFF", "#F2F2F2"
INK, FAINT = "#222222", "#777777"
ABOUT = (
    "Arrow: must have succeeded before; dashed: one of those must. Blue: success compromises it. Orange: the loss. "
    "p: chance of success; seen: strength of its alerts. Behind an entity: its worth, and in brackets the stages that "
    "work on it; B: benign activity does."
)

Place = tuple[str, int]  # a stage and its column, or a line from it and a column that the line passes by


def picture(scenario: Scenario) -> str:
    """The picture as SVG."""
    drawing = _layout(scenario.stages)
    number = {x.id: i for i, x in enumerate(scenario.stages, 1)}
    parts = list(_parts(scenario, number))
    wide = max(min(COLUMNS, 1 + drawing.last) * (WIDE + ACROSS), 3 * (ENTITY + ACROSS)) + 2 * MARGIN
    per_row = int((wide - 2 * MARGIN) // (ENTITY + ACROSS))
    rows = [parts[i : i + per_row] for i in range(0, len(parts), per_row)]
    title = textwrap.wrap(scenario.title, int(9 * wide - 9))
    hidden = sum(len(_needs(x)) for x in scenario.stages) - len(drawing.lines)
    more = f" {hidden:,} arrows, over the longest ways, are not drawn." if hidden else ""
    about = textwrap.wrap(f"{scenario.id}. {ABOUT}{more}", int(14 * wide - 14))
    top = MARGIN + 0.3 * len(title) + 0.16 * len(about) + HEADING
    graph = top + drawing.high + HEADING
    highs = [HEADING + ROW * max(len(lines) for _, lines in row) + DOWN for row in rows]
    high = graph + sum(highs) + MARGIN
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "scenario", "font.family": "DejaVu Sans"}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a viewer may have it
        figure = Figure((wide, high))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, wide), ylim=(high, 0))
        axes.axis("off")
        for i, line in enumerate(title):
            _text(axes, MARGIN, MARGIN + 0.3 * i, line, size=13, weight="bold")
        for i, line in enumerate(about):
            _text(axes, MARGIN, MARGIN + 0.3 * len(title) + 0.16 * i, line, size=7.5, color=FAINT)
        _graph(axes, scenario, drawing, number, top)
        for row, y in zip(rows, (graph + sum(highs[:i]) for i in range(len(highs))), strict=True):
            for i, (name, lines) in enumerate(row):
                _part(axes, MARGIN + i * (ENTITY + ACROSS), y, name, lines)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": scenario.title})
    return file.getvalue()


# --- the attack -------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    at: dict[Place, tuple[float, float]]  # inches from the left, and from the top to the middle
    column: dict[str, int]  # of each stage: the longest way to it
    bottom: list[float]  # of each band of columns
    high: float
    last: int  # column
    lines: list[tuple[str, Stage]]  # that are drawn: from a stage to one that needs it


def _needs(stage: Stage) -> tuple[str, ...]:
    return (*stage.prerequisites, *stage.any_prerequisites)


def _layout(stages: Sequence[Stage]) -> _Layout:
    """Places of the stages and of what passes them by, after Sugiyama et al. (1981), in bands of COLUMNS."""
    column: dict[str, int] = {}
    while len(column) < len(stages):  # no circle: that was checked
        for x in stages:
            if x.id not in column and all(name in column for name in _needs(x)):
                column[x.id] = 1 + max((column[name] for name in _needs(x)), default=-1)
    last = max(column.values())
    lines = [(name, x) for x in sorted(stages, key=lambda x: column[x.id]) for name in _needs(x)]
    if len(lines) > MAX_LINES:
        lines = sorted(lines, key=lambda line: column[line[1].id] - column[line[0]])[:MAX_LINES]
    columns: list[list[Place]] = [[] for _ in range(last + 1)]
    before: dict[Place, set[Place]] = {}
    after: dict[Place, set[Place]] = {}
    for x in sorted(stages, key=lambda x: column[x.id]):
        before[x.id, column[x.id]] = set()
    for name, x in lines:
        for a, b in pairwise(_way(name, x.id, column)):
            before.setdefault(b, set()).add(a)
            after.setdefault(a, set()).add(b)
    for place in before:
        columns[place[1]].append(place)
    order = {place: i - len(c) / 2 for c in columns for i, place in enumerate(c)}
    for sweep, beside in 3 * ((columns, before), (columns[::-1], after)):
        for c in sweep:
            c.sort(key=_middle(order, beside))
            order |= {place: i - len(c) / 2 for i, place in enumerate(c)}
    at: dict[Place, tuple[float, float]] = {}
    bottom, top = [], 0.0
    for first in range(0, len(columns), COLUMNS):
        band = columns[first : first + COLUMNS]
        tall = [sum(_tall(place, column) for place in c) for c in band]
        for i, c in enumerate(band):
            y = top + (max(tall) - tall[i]) / 2
            for place in c:
                at[place] = (MARGIN + i * (WIDE + ACROSS), y + _tall(place, column) / 2)
                y += _tall(place, column)
        top += max(tall) + DOWN
        bottom.append(top - DOWN / 2)
        top += DOWN
    return _Layout(at, column, bottom, top, last, lines)


def _way(a: str, b: str, column: Mapping[str, int]) -> list[Place]:
    """Where the line from a stage to another goes; all lines from one stage go together."""
    return [(a, i) for i in range(column[a], column[b])] + [(b, column[b])]


def _middle(order: Mapping[Place, float], beside: Mapping[Place, set[Place]]) -> Callable[[Place], float]:
    def middle(place: Place) -> float:
        near = [order[other] for other in beside.get(place, ())]
        return sum(near) / len(near) if near else order[place]

    return middle


def _tall(place: Place, column: Mapping[str, int]) -> float:
    return HIGH + DOWN if column[place[0]] == place[1] else THIN + DOWN


def _graph(axes: Any, s: Scenario, drawing: _Layout, number: Mapping[str, int], top: float) -> None:
    for name, x in drawing.lines:
        _line(axes, _way(name, x.id, drawing.column), drawing, top, name in x.prerequisites)
    for x in s.stages:
        left, middle = drawing.at[x.id, drawing.column[x.id]]
        _stage(axes, x, number[x.id], left, top + middle)


def _line(axes: Any, way: Sequence[Place], drawing: _Layout, top: float, every: bool) -> None:
    points: list[tuple[float, float]] = []
    for a, b in pairwise(way):
        (ax, ay), (bx, by) = drawing.at[a], drawing.at[b]
        points += [(ax + WIDE, ay)]
        if a[1] // COLUMNS != b[1] // COLUMNS:  # round to the band below
            between, y = ACROSS / 3, drawing.bottom[a[1] // COLUMNS]
            points += [(ax + WIDE + between, ay), (ax + WIDE + between, y), (bx - between, y), (bx - between, by)]
        points += [(bx, by)]
    axes.add_patch(
        FancyArrowPatch(
            path=Path([(x, top + y) for x, y in points]), arrowstyle="-|>", mutation_scale=8, linewidth=0.8, zorder=1,
            color=FAINT, linestyle="-" if every else (0, (4, 2)), joinstyle="round",
        )
    )  # fmt: skip


def _stage(axes: Any, x: Stage, number: int, left: float, middle: float) -> None:
    takes = x.compromises_asset or x.compromises_identity
    y = middle - HIGH / 2
    box = _box(axes, left, y, WIDE, HIGH, LOSS if x.loss else TAKES if takes else PLAIN)
    targets = " + ".join(filter(None, (x.asset, x.identity)))
    numbers = f"{x.dwell[0]}–{x.dwell[1]} ticks, p {x.success:g}, seen {x.detection:g}"
    tactic = f"{x.technique} {attack.tactics()[x.tactic]}"
    lines = [
        _short(f"{number} {x.id}", CHARACTERS - 4),
        *(_short(line, CHARACTERS) for line in (tactic, targets, numbers)),
    ]
    for i, line in enumerate(lines):
        style: Any = {"weight": "bold", "size": 8} if i == 0 else {"color": FAINT} if i == 3 else {}
        _text(axes, left + 0.07, y + 0.12 + 0.17 * i, line, box, **{"size": 7, **style})


# --- the network ------------------------------------------------------------------------------------------------------


def _parts(s: Scenario, number: dict[str, int]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Segments with their assets, and the identities by role: (heading, (text, colour) of each line)."""
    touched: dict[str, list[str]] = {}
    taken: set[str] = set()
    for x in s.stages:
        for name, takes in ((x.asset, x.compromises_asset), (x.identity, x.compromises_identity)):
            if name is not None:
                touched.setdefault(name, []).append(str(number[x.id]))
                taken |= {name} if takes else set()
    for b in s.benign:
        for name in filter(None, (b.asset, b.identity)):
            if "B" not in touched.setdefault(name, []):
                touched[name].append("B")
    entities = [(f"assets in {a.segment}", a.id, f"{a.kind} {a.criticality:g}") for a in s.assets]
    entities += [(f"identities, {i.role}", i.id, f"{i.privilege:g}") for i in s.identities]
    # What is touched comes first where there are too many.
    shown = sorted(range(len(entities)), key=lambda i: (entities[i][1] not in touched, i))[:MAX_ENTITIES]
    groups: dict[str, list[tuple[str, str]]] = {}
    for i in sorted(shown):
        group, name, about = entities[i]
        stages = f" [{_few(touched[name])}]" if name in touched else ""
        colour = TAKES if name in taken else PLAIN if name in touched else BYSTANDER
        room = CHARACTERS + 9 - len(stages) - len(about)
        line = f"{_short(name, max(8, room))} {about}{stages}"
        groups.setdefault(group, []).append((line, colour))
    yield from groups.items()
    if len(shown) < len(entities):
        yield "not drawn", [(f"{len(entities) - len(shown):,} entities", BYSTANDER)]


def _few(numbers: Sequence[str]) -> str:
    return " ".join(numbers[:4]) + (" …" if len(numbers) > 4 else "")


def _part(axes: Any, left: float, top: float, name: str, lines: Sequence[tuple[str, str]]) -> None:
    _text(axes, left, top + 0.12, _short(name, CHARACTERS), size=8, weight="bold")
    for i, (line, colour) in enumerate(lines):
        y = top + HEADING - 0.06 + i * ROW
        box = _box(axes, left, y, ENTITY, ROW - 0.06, colour)
        _text(axes, left + 0.06, y + (ROW - 0.06) / 2, line, box, size=7)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _box(axes: Any, left: float, top: float, wide: float, high: float, colour: str) -> Any:
    style: Any = {"boxstyle": "round,pad=0,rounding_size=0.05", "facecolor": colour, "edgecolor": INK, "linewidth": 0.6}
    return axes.add_patch(FancyBboxPatch((left, top), wide, high, zorder=2, **style))


def _text(axes: Any, x: float, y: float, text: str, box: Any = None, **style: Any) -> None:
    """A line of text; what a box has no room for is cut off."""
    # A dollar sign is one, and no mathematics.
    made = axes.text(x, y, text, **{"va": "center", "color": INK, "parse_math": False, "zorder": 3, **style})
    if box is not None:
        made.set_clip_path(box)
