"""What a training step shows, and the alarm that stops a run which has found a shortcut."""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo.learning import signals
from grpo.learning.signals import CONTAINMENT, MARGIN, Completion
from grpo.rows.rows import Campaigns, Rows, confirmed, in_force, inventory_of
from jaxsim.actions import INVALID, table
from jaxsim.names import positional_text
from jaxsim.types import MONITOR, VERBS
from prompting import Parsed, encode, parse
from prompting.parse import BROKEN_JSON, FALLBACKS, NO_JSON

WINDOW = 16  # steps that the alarm looks back on
ENOUGH = 24  # containments, or rows, below which it says nothing
BLIND_SHARE = 0.5  # of the containments, with no alert in view
SAME_SHARE = 0.8  # of the completions, one and the same action that is not MONITOR
WAITING_SHARE = 0.98  # of the completions MONITOR,
ACTING_SHARE = 0.25  # though in so many of the rows another action is worth more
ERRORS = 3.0  # standard errors by which it has to be


class Tables(NamedTuple):
    """What the signals need of every row and action."""

    rows: Rows
    game: Campaigns
    repeated: np.ndarray  # (R, A) bool
    confirmed: np.ndarray  # (R, A) bool
    alerts: np.ndarray  # (R,) bool, an alert is in view


def tables(game: Campaigns, rows: Rows) -> Tables:
    """Work out the tables of a set of rows, once."""
    seen = np.asarray(rows.bank.state.alerts.count) > 0
    return Tables(rows, game, in_force(game, rows.bank), confirmed(game, rows.bank), seen)


def paid(known: Tables, row: int, weights: Mapping[str, float]) -> np.ndarray:
    """(actions + 1,) rewards of every action at a row, NaN where not legal; the last is that of an answer without JSON.

    `weights` are those of signals that look at one completion alone.
    """
    legal = inventory_of(known.game, known.rows, row)
    texts = {action: encode(action, legal) for action in legal.actions.values()} | {-1: ""}
    totals = signals.total([completion(known, row, 0, text)[0] for text in texts.values()], weights)
    found = np.full(known.game.dims.actions + 1, np.nan)
    found[list(texts)] = totals
    return found


def completion(known: Tables, row: int, group: int, text: str) -> tuple[Completion, Parsed]:
    """A completion at a row, as the signals see it."""
    parsed = parse(text, inventory_of(known.game, known.rows, row))
    a = parsed.action
    legal = a != INVALID
    verbs, entities = table(known.game.dims)
    q = known.rows.credit.q[row]
    made = Completion(
        json=parsed.reason not in (NO_JSON, BROKEN_JSON),
        schema=parsed.reason not in FALLBACKS,
        action=a if legal else None,
        verb=int(verbs[a]) if legal else None,
        entity=int(entities[a]) if legal and entities[a] >= 0 else None,
        repeated=bool(legal and known.repeated[row, a]),
        alerts=bool(known.alerts[row]),
        step_reward=float(known.rows.step_reward[row, a]) if legal else None,
        group=group,
        q=float(q[a]) if legal else None,
        worst=float(np.nanmin(q)),
    )
    return made, parsed


def within_group(values: Sequence[float], groups: Sequence[int]) -> tuple[float, float]:
    """(mean of the groups' standard deviations, share of groups without any): population, over each group."""
    by: dict[int, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by.setdefault(group, []).append(value)
    spreads = [float(np.std(v)) for v in by.values()]
    return float(np.mean(spreads)), float(np.mean([s < 1e-9 for s in spreads]))


def step_report(
    known: Tables, rows: Sequence[int], batch: Sequence[Completion], parsed: Sequence[Parsed], totals: Sequence[float]
) -> dict[str, Any]:
    """The diagnostics of one step's completions; `rows[i]` is the row of completion i."""
    said = np.zeros((len(batch), known.game.dims.actions + 1))
    said[np.arange(len(batch)), [-1 if c.action is None else c.action for c in batch]] = 1
    spread, still = within_group(totals, [c.group for c in batch])
    return {
        "reward_mean": float(np.mean(totals)),
        "group_std": spread,
        "zero_variance_groups": still,
        "parse_failures": dict(sorted(Counter(p.reason for p in parsed if p.reason).items())),
        **tally(known, rows, said),
    }


def expected_report(
    known: Tables, rows: Sequence[int], chances: np.ndarray, paid: np.ndarray, group: int
) -> dict[str, Any]:
    """What `step_report` says on average of `group` completions at each of the rows.

    `chances`, (n, actions + 1), of each action at each row, and of all else that may be said; `paid` their rewards.
    """
    mean = (chances * paid).sum(axis=1)
    spread = np.sqrt((chances * (paid - mean[:, None]) ** 2).sum(axis=1))
    return {
        "reward_mean": float(mean.mean()),
        "group_std": float(spread.mean()),
        "zero_variance_groups": float((spread < 1e-9).mean()),
        "parse_failures": {},
        **tally(known, rows, group * chances),
    }


def tally(known: Tables, rows: Sequence[int], said: np.ndarray) -> dict[str, Any]:
    """What was said how often: `said`, (n, actions + 1), counts each action at each row, and what is no legal one."""
    at, dims = list(rows), known.game.dims
    verbs, _ = table(dims)
    q, legal, total = known.rows.credit.q[at], said[:, :-1], float(said.sum())
    contained = legal * np.isin(verbs, sorted(CONTAINMENT))
    blind = contained * ~known.alerts[at][:, None]
    names = [*(positional_text(a, dims) for a in range(dims.actions)), "INVALID"]
    by_verb = {name: float(legal[:, verbs == v].sum()) for v, name in enumerate(VERBS)}
    by_verb["INVALID"] = float(said[:, -1].sum())
    share = said.sum(axis=0)[said.sum(axis=0) > 0] / total
    lost = np.where(legal > 0, np.nanmax(q, axis=1, keepdims=True) - q, 0.0)
    different = sorted(set(at))

    def commonest(counts: np.ndarray) -> tuple[str, float] | None:
        return (names[int(counts.argmax())], _count(counts.max())) if counts.sum() else None

    return {
        "completions": _count(total),
        "actions": {name: _count(n) for name, n in sorted(by_verb.items()) if _count(n)},
        "action_entropy": float(-(share * np.log(share)).sum()) + 0.0,
        "valid_rate": 1 - by_verb["INVALID"] / total,
        "regret": float((legal * lost).sum() / legal.sum()) if legal.any() else None,
        "q_range": float(np.mean([np.nanmax(x) - np.nanmin(x) for x in known.rows.credit.q[different]])),
        "q_se": float(np.nanmean(known.rows.credit.se[different])),
        "containments": _count(contained.sum()),
        "blind_containments": _count(blind.sum()),
        "evidence_backed": _count((contained * known.confirmed[at]).sum()),
        "rows": len(different),
        "rows_without_alert": len({r for r in at if not known.alerts[r]}),
        "rows_worth_acting": int(_worth_acting(known, different).sum()),
        "commonest": commonest(said.sum(axis=0)),
        "commonest_blind": commonest(blind.sum(axis=0)),
    }


def _worth_acting(known: Tables, rows: Sequence[int]) -> np.ndarray:
    """(n,) bool: an action is worth more than MONITOR there, beyond chance."""
    q, se = known.rows.credit.q[list(rows)], known.rows.credit.se[list(rows)]
    ahead = q - q[:, [MONITOR]] - ERRORS * np.hypot(se, se[:, [MONITOR]])
    ahead[:, MONITOR] = np.nan
    return np.nanmax(ahead, axis=1) > 0


def _count(number: float) -> float:
    """A count as it is, an expected one to a thousandth."""
    return int(number) if float(number).is_integer() else round(float(number), 3)


def rows_shuffle_drop(known: Tables, rows: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """What the answers at `rows` are worth there, and at the other rows of the same campaign.

    `own`: mean return-to-go of each answer at its own row. `other`: the same answers, each at the rows that it was not
    given for, so by a model that reads another state's evidence. `drop` is the difference, in points, with its standard
    error over rows. `waiting` is what MONITOR is worth there. What is not legal at a row counts as `signals.MARGIN`
    below its worst action.
    """
    legal = known.rows.credit.q[list(rows)]
    low = np.nanmin(legal, axis=1) - MARGIN
    q = np.where(np.isnan(legal), low[:, None], legal)
    campaign = known.rows.bank.params_index[list(rows)]
    said = [parse(text, known.game.inventories[int(p)]).action for p, text in zip(campaign, texts, strict=True)]
    worth = np.stack([low if a == INVALID else q[:, a] for a in said], axis=1)  # [row, whose answer]
    same = (campaign[:, None] == campaign[None, :]) & ~np.eye(len(q), dtype=bool)
    own = np.diag(worth)
    other = np.where(same, worth, 0.0).sum(axis=1) / np.maximum(same.sum(axis=1), 1)
    drops = (own - other)[same.any(axis=1)]
    return {
        "rows": len(drops),
        "own": float(own.mean()),
        "other": float(other.mean()),
        "waiting": float(q[:, MONITOR].mean()),
        "drop": float(drops.mean()),
        "drop_se": float(drops.std(ddof=1) / math.sqrt(len(drops))),
        "valid_rate": 1 - said.count(INVALID) / len(said),
    }


def alarm(recent: Sequence[Mapping[str, Any]]) -> str:
    """Why to stop, or '': the tells of a policy that does not read, over the last WINDOW steps.

    `recent`: step reports, oldest first. A shortcut is named by its action: most completions are one and the same
    action that is not MONITOR, whatever the row; nearly all are MONITOR where acting is worth more, which is putting
    off; or most containments come with no alert in view.
    """
    window = list(deque(recent, WINDOW))
    completions = sum(r["completions"] for r in window)
    contained, blind = (sum(r[k] for r in window) for k in ("containments", "blind_containments"))
    without = sum(r["rows_without_alert"] for r in window)
    places: Counter[str] = Counter()
    for r in window:
        places[r["commonest"][0]] += r["commonest"][1]
    place, times = places.most_common(1)[0] if places else ("", 0)
    if len(window) == WINDOW and place not in (VERBS[0], "INVALID") and times >= SAME_SHARE * completions:
        return (
            f"{place} in {times} of {completions} completions of the last {len(window)} steps, whatever the row shows"
        )
    worth, rows = (sum(r[k] for r in window) for k in ("rows_worth_acting", "rows"))
    waits = place == VERBS[0] and times >= WAITING_SHARE * completions
    if len(window) == WINDOW and waits and worth >= ACTING_SHARE * rows:
        return (
            f"{place} in {times} of {completions} completions of the last {len(window)} steps, though in {worth} "
            f"of {rows} rows another action is worth more"
        )
    # Blind containments are a tell only where there was something to wait for: rows with an alert as well.
    seen = sum(r["rows"] for r in window) - without
    if contained >= ENOUGH and seen and blind > BLIND_SHARE * contained:
        unseen: Counter[str] = Counter()
        for r in window:
            if r["commonest_blind"]:
                unseen[r["commonest_blind"][0]] += r["commonest_blind"][1]
        return (
            f"{blind} of {contained} containments of the last {len(window)} steps with no alert in view, mostly "
            f"{unseen.most_common(1)[0][0]}"
        )
    return ""
