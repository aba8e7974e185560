"""Reward signals of a batch of completions: the published ten, and return-to-go behind a format gate.

Each is a pure function from all completions of a batch to one number for each. Plain Python: neither torch nor JAX is
needed. "Parsed" below means that the completion says a verb in the right schema (`verb` is not None); "legal" that it
also names a target that the verb may have (`action` is not None).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import NamedTuple

# The verbs of jaxsim.types, said again because that module needs JAX.
MONITOR, INVESTIGATE, ISOLATE_ASSET, BLOCK_EGRESS, PATCH_ASSET, REVOKE_IDENTITY, RESTORE = range(7)
CONTAINMENT = frozenset((ISOLATE_ASSET, BLOCK_EGRESS, REVOKE_IDENTITY))  # of the published signals: a patch is none

STEP_CLIP = 2.0  # points
MARGIN = 1.0  # points that a completion without a legal action lies below the worst legal one


class Completion(NamedTuple):
    """What the signals need to know of one completion."""

    json: bool  # it holds a JSON object
    schema: bool  # of the right fields and types
    action: int | None  # index into the action table; None when not a legal action
    verb: int | None  # 0..6; None when not parsed
    entity: int | None  # of the target; None for MONITOR, and for a target that does not exist
    repeated: bool  # that control is already in force on that target
    alerts: bool  # an alert is in view
    step_reward: float | None  # points of that one step; None when it cannot be taken
    group: int  # completions of one prompt have the same number
    q: float | None = None  # points, return-to-go of the action at that row, see credit.Credit; None when not legal
    worst: float = 0.0  # points, the least return-to-go of the row's legal actions


Signal = Callable[[Sequence[Completion]], list[float]]

# --- format ---------------------------------------------------------------------------------------------------------


def json_valid(batch: Sequence[Completion]) -> list[float]:
    """1 with a JSON object in it, else 0."""
    return [float(c.json) for c in batch]


def schema_valid(batch: Sequence[Completion]) -> list[float]:
    """1 when that object has the right fields and types, else 0."""
    return [float(c.schema) for c in batch]


def target_in_valid_targets(batch: Sequence[Completion]) -> list[float]:
    """1 for a legal action, MONITOR among them, else 0."""
    return [float(c.action is not None) for c in batch]


# --- one action at a time -------------------------------------------------------------------------------------------


def no_redundant_containment(batch: Sequence[Completion]) -> list[float]:
    """0 for a control that is in force already, 0.5 for MONITOR, 1 for any other parsed action, 0 for none."""

    def one(c: Completion) -> float:
        if c.verb is None or c.repeated:
            return 0.0
        return 0.5 if c.verb == MONITOR else 1.0

    return [one(c) for c in batch]


def step_total(batch: Sequence[Completion]) -> list[float]:
    """The reward of the one step, clipped to -2..2 points; -1 when there is none, as for what cannot be parsed."""
    rewards = (c.step_reward for c in batch)
    return [-1.0 if r is None else max(-STEP_CLIP, min(STEP_CLIP, r)) for r in rewards]


def avoids_exfil_path(batch: Sequence[Completion]) -> list[float]:
    """With an alert in view 0.5 for isolation, egress block or revocation and 0.3 for INVESTIGATE; else 0.

    As published it asks for neither a legal nor a fresh target.
    """
    return [_under_alert(c, 0.5, 0.3, fresh=False) for c in batch]


def evidence_containment(batch: Sequence[Completion]) -> list[float]:
    """With an alert in view 0.8 for a containment that is not in force already, 0.4 for INVESTIGATE; else 0."""
    return [_under_alert(c, 0.8, 0.4, fresh=True) for c in batch]


def _under_alert(c: Completion, contain: float, investigate: float, fresh: bool) -> float:
    if not c.alerts:
        return 0.0
    if c.verb == INVESTIGATE:
        return investigate
    return contain if c.verb in CONTAINMENT and not (fresh and c.repeated) else 0.0


def observation_aware(batch: Sequence[Completion]) -> list[float]:
    """With an alert in view 1 for a legal action other than MONITOR and 0 for MONITOR; else 0.4 and 0.7.

    0 for what is not legal.
    """

    def one(c: Completion) -> float:
        if c.action is None:
            return 0.0
        if c.alerts:
            return float(c.verb != MONITOR)
        return 0.7 if c.verb == MONITOR else 0.4

    return [one(c) for c in batch]


# --- spread ---------------------------------------------------------------------------------------------------------


def _said(c: Completion) -> tuple[int | None, int | None]:
    """What makes two completions equal. Targets that do not exist are all alike."""
    return c.verb, c.entity


def action_diversity(batch: Sequence[Completion]) -> list[float]:
    """1 / how many completions of its group say the same, itself among them; 0 for what is not parsed."""
    count = Counter((c.group, _said(c)) for c in batch)
    return [0.0 if c.verb is None else 1.0 / count[c.group, _said(c)] for c in batch]


def batch_action_entropy(batch: Sequence[Completion]) -> list[float]:
    """2 ln(N / n) / ln N, where n of all N completions say the same: 0 when all do, 2 for the only one of a kind.

    0 for what is not parsed, though it counts in N, and for a batch of one, where ln N is 0.
    """
    if len(batch) < 2:
        return [0.0] * len(batch)
    count, total_ln = Counter(map(_said, batch)), math.log(len(batch))
    return [0.0 if c.verb is None else 2.0 * math.log(len(batch) / count[_said(c)]) / total_ln for c in batch]


# --- returns --------------------------------------------------------------------------------------------------------


def return_to_go(batch: Sequence[Completion]) -> list[float]:
    """Points still to come after a legal action; for any other completion those of the row's worst legal action."""
    return [c.worst if c.q is None or c.action is None else c.q for c in batch]


def format_gate(batch: Sequence[Completion]) -> list[float]:
    """0 for a legal action, else -MARGIN points: with `return_to_go` no legal action is worse than an illegal one."""
    return [0.0 if c.action is not None else -MARGIN for c in batch]


SIGNALS: dict[str, Signal] = {
    "json_valid": json_valid,
    "schema_valid": schema_valid,
    "target_in_valid_targets": target_in_valid_targets,
    "no_redundant_containment": no_redundant_containment,
    "step_total": step_total,
    "avoids_exfil_path": avoids_exfil_path,
    "action_diversity": action_diversity,
    "observation_aware": observation_aware,
    "batch_action_entropy": batch_action_entropy,
    "evidence_containment": evidence_containment,
    "return_to_go": return_to_go,
    "format": format_gate,
}
# These are equal for all legal actions: with weights of 0 and more they say what an answer looks like, and change
# nothing about which action is worth most.
FORMAT_ONLY = ("json_valid", "schema_valid", "target_in_valid_targets", "format")
SPREAD = ("action_diversity", "batch_action_entropy")  # these hang on what the others of a batch say
_RETURNS = ("return_to_go", "format")
PROFILES: dict[str, dict[str, float]] = {
    "returns": dict.fromkeys(_RETURNS, 1.0),
    "published": dict.fromkeys((name for name in SIGNALS if name not in _RETURNS), 1.0),
}


def values(batch: Sequence[Completion], names: Sequence[str]) -> dict[str, list[float]]:
    """Each named signal, one value for each completion, before any weight. Raises ValueError for an unknown name."""
    for name in names:
        if name not in SIGNALS:
            near = get_close_matches(name, SIGNALS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(SIGNALS)}"
            raise ValueError(f"reward signal {name!r} is unknown; {hint}")
    return {name: SIGNALS[name](batch) for name in names}


def beside_the_return(weights: Mapping[str, float]) -> list[str]:
    """What `weights` pay for beside return-to-go and form, in words; empty when an audit of the return covers them."""
    plain = [f"{name} x {w:g}" for name, w in weights.items() if name not in (*FORMAT_ONLY, "return_to_go") and w != 0]
    upside_down = [f"{name} x {weights[name]:g}" for name in FORMAT_ONLY if not weights.get(name, 0.0) >= 0]
    return [*plain, *upside_down] + ["no return_to_go"] * (not weights.get("return_to_go", 0.0) > 0)


def total(batch: Sequence[Completion], weights: Mapping[str, float]) -> list[float]:
    """The weighted sum of the signals that `weights` names, one for each completion.

    `weights` is one of PROFILES or any other choice. Raises ValueError for an unknown signal and for a weight that is
    no finite number.
    """
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise ValueError(f"weight of reward signal {name!r} = {weight!r} is not finite; give a number, such as 0.5")
    columns = values(batch, list(weights))
    return [sum(weights[name] * columns[name][i] for name in weights) for i in range(len(batch))]
