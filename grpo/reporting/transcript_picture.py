"""An episode as a picture: the running return, and under it what attacker and defender did. SVG."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import scenarios
from grpo.reporting.escaped import shown
from jaxsim import replays
from jaxsim.actions import table
from jaxsim.names import action_text
from jaxsim.types import BLOCKED, IN_PROGRESS, INVESTIGATE, SUCCEEDED, Dims

TO_LEFT, TO_RIGHT, WIDE, CURVE, LANE = 88, 14, 960, 170, 22  # of the picture, in its own units


class Event(NamedTuple):
    """A mark in the picture."""

    tick: int
    lane: int
    shape: str
    colour: str  # a variable of the style sheet
    filled: bool
    text: str


def events(scenario: scenarios.Scenario, dims: Dims, played: replays.Replay, ticks: int) -> list[Event]:
    """What is marked in the lanes: the attack, what the defender learnt, what it did."""
    marks = {
        IN_PROGRESS: ("circle", "--attack", False, "started"),
        SUCCEEDED: ("circle", "--attack", True, "succeeded"),
        BLOCKED: ("square", "--good", True, "blocked"),
    }
    verbs, _ = table(dims)
    found = []
    for t in range(ticks):
        was, now = np.asarray(played.state.status[t]), np.asarray(played.state.status[t + 1])
        for stage, before, after in zip(scenario.stages, was.tolist(), now.tolist(), strict=False):
            if before != after and after in marks:
                shape, colour, filled, what = marks[after]
                found.append(Event(t + 1, 0, shape, colour, filled, f"{stage.id} {what}"))
        for ring, what, colour in (
            (played.state.alerts, "alert", "--mark"),
            (played.state.forensics, "forensics", "--act"),
        ):
            if arrived := int(ring.count[t + 1] - ring.count[t]):
                found.append(Event(t + 1, 1, "bar", colour, True, f"{arrived} × {what}"))
        action = int(played.action[t])
        text = action_text(action, scenario, dims)
        if float(played.signals.invalid[t]):
            found.append(Event(t + 1, 2, "square", "--bad", False, "invalid"))
        elif verbs[action] >= INVESTIGATE:
            contains = float(played.signals.containments[t]) > 0
            found.append(Event(t + 1, 2, "square" if contains else "circle", "--act", contains, text))
    return sorted(found, key=lambda event: event.filled)  # what is filled goes on top


def picture(played: replays.Replay, found: Sequence[Event], ticks: int) -> str:
    """The running return over ticks, and the lanes of events under it, as SVG."""
    running = [0.0, *np.cumsum(np.asarray(played.reward[:ticks], np.float64)).tolist()]
    low, high = min(running), max(running)
    room = max(high - low, 0.1) * 0.08
    low, high = low - room, high + room

    def x(tick: float) -> float:
        return TO_LEFT + (WIDE - TO_LEFT - TO_RIGHT) * tick / max(ticks, 1)

    def y(points: float) -> float:
        return 8 + (CURVE - 16) * (high - points) / (high - low)

    tall = CURVE + 3 * LANE + 26
    parts = [f'<svg viewBox="0 0 {WIDE} {tall}" role="img" aria-label="running return over ticks, with events">']
    for value in steps(low, high, 4):
        colour = "var(--faint)" if value == 0 else "var(--line)"
        parts.append(f'<path d="M{TO_LEFT} {y(value):.1f}H{WIDE - TO_RIGHT}" stroke="{colour}" stroke-width="1"/>')
        parts.append(f'<text x="{TO_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts.append(f'<text transform="translate(14 {CURVE / 2}) rotate(-90)" text-anchor="middle">return</text>')
    path = "".join(f"{'ML'[t > 0]}{x(t):.1f} {y(v):.1f}" for t, v in enumerate(running))
    parts.append(f'<path d="{path}" fill="none" stroke="var(--ink)" stroke-width="1.8"/>')
    for lane, name in enumerate(("attack", "evidence", "actions")):
        middle = CURVE + LANE * (lane + 0.5)
        parts.append(f'<text x="{TO_LEFT - 6}" y="{middle + 4}" text-anchor="end">{name}</text>')
        parts.append(f'<path d="M{TO_LEFT} {middle}H{WIDE - TO_RIGHT}" stroke="var(--line)" stroke-width="1"/>')
    marks = [_mark(event, x(event.tick), CURVE + LANE * (event.lane + 0.5)) for event in found]
    clock = [f'<text x="{x(t):.1f}" y="{tall - 8}" text-anchor="middle">{t:g}</text>' for t in steps(0, ticks, 8)]
    return "".join([*parts, *marks, *clock, "</svg>"])


def steps(low: float, high: float, many: int) -> list[float]:
    """About `many` round numbers from low to high."""
    rough = (high - low) / many
    size = 10.0 ** np.floor(np.log10(rough)) if rough > 0 else 1.0
    step = next(size * f for f in (1, 2, 5, 10) if size * f >= rough)
    return [round(step * i, 9) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _mark(event: Event, x: float, y: float) -> str:
    fill = f"var({event.colour})" if event.filled else "var(--paper)"
    look = f'fill="{fill}" stroke="var({event.colour})" stroke-width="1.5"'
    title = f"<title>tick {event.tick}: {shown(event.text)}</title>"
    if event.shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" {look}>{title}</circle>'
    width, height = (9, 9) if event.shape == "square" else (2.5, 14)
    return f'<rect x="{x - width / 2:.1f}" y="{y - height / 2}" width="{width}" height="{height}" {look}>{title}</rect>'


LEGEND = (
    "Attack: hollow circle = stage started, filled = succeeded, square = blocked. Evidence: yellow bar = alert, blue = "
    "forensics. Actions: filled square = containment, hollow circle = another action, hollow square = invalid. "
    "Point at a mark to read it."
)
