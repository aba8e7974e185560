"""The stages of a flow: which actions become one, what each needs, and which are the loss: `stages`.

Whatever the flow left open, or had to be changed, is a remark.
"""

from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from scenarios import attack
from scenarios.attack_flow import Flow
from scenarios.flow_graph import Formula, Order, order
from scenarios.flow_techniques import Resolved, resolve
from scenarios.load import ScenarioError
from scenarios.model import MAX_STAGES
from scenarios.read import printable
from scenarios.wording import show

LOSSES = {"TA0010": "exfil", "TA0040": "impact"}  # what a stage of the tactic does when it ends the attack


class Remark(NamedTuple):
    """A decision that the flow left to the import, or a part of it that was left out."""

    kind: str
    text: str  # one line


class Needs(NamedTuple):
    """Actions that must all have succeeded, and actions of which one must have."""

    every: list[str]
    one: list[str]

    def all(self) -> list[str]:
        return [*self.every, *self.one]


class Stages(NamedTuple):
    """Actions by their id in the flow."""

    pairs: dict[str, Resolved]
    needs: dict[str, Needs]  # in the order of the stages, each after those that it needs, but in our own exports
    losses: dict[str, str]  # exfil or impact; empty where the flow has none
    remarks: list[Remark]


def stages(flow: Flow, every: bool) -> Stages:
    """The stages of a flow. Raises ScenarioError for what a scenario cannot say."""
    pairs, unknown = dict[str, Resolved](), dict[str, str]()
    for name, node in flow.nodes.items():
        if node.kind == "action":
            found = resolve(node)
            if isinstance(found, str):
                unknown[name] = found
            else:
                pairs[name] = found
    found_order = order(flow, unknown, every)
    remarks = [*_of_actions(flow, pairs, unknown), *_of_order(flow, found_order, every)]
    kept = list(found_order.formulas)
    if 2 * len(kept) < len(pairs) + len(unknown):
        _too_few(flow, len(kept), unknown, found_order)
    if len(kept) > MAX_STAGES:
        refuse(flow, f"has {len(kept)} actions, but at most {MAX_STAGES} stages are allowed; split the flow")
    if flow.extra is not None:  # our own export: the order of its file is part of the game
        kept = [name for name in flow.nodes if name in found_order.formulas]
    place = {name: i for i, name in enumerate(kept)}
    needs = {name: _needs(flow, name, found_order, place) for name in kept}
    losses = {} if flow.extra is not None else _losses(flow, pairs, needs, remarks)
    if 2 * len(needs) < len(pairs) + len(unknown):
        _too_few(flow, len(needs), unknown, found_order, len(kept) - len(needs))
    return Stages(pairs, needs, losses, remarks)


def _too_few(flow: Flow, left: int, unknown: dict[str, str], found: Order, after: int = 0) -> NoReturn:
    """Refuse a flow of which `left` actions are left, `after` a loss so many."""
    why = [
        f"{count} {what}"
        for count, what in (
            (len(unknown), f"name no technique of ATT&CK {attack.version()}"),
            (len(found.dropped), "come only when a condition does not hold"),
            (after, "come after the loss"),
        )
        if count
    ]
    remedy = "give actions a technique, and draw what happened from the True end of a condition"
    remedy += ", and before the loss" if after else ""
    actions = sum(node.kind == "action" for node in flow.nodes.values())
    refuse(flow, f"of {actions} actions {left} are left ({' and '.join(why)}), too few for the incident; {remedy}")


def refuse(flow: Flow, message: str) -> NoReturn:
    raise ScenarioError(f"{printable(flow.source)}: {message}")


def named(flow: Flow, names: Iterable[str]) -> str:
    """Actions by their names, in a message."""
    listed = [show(flow.nodes[name].name or name) for name in names]
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def _of_actions(flow: Flow, pairs: dict[str, Resolved], unknown: dict[str, str]) -> list[Remark]:
    changed = [
        Remark(kind, f"{named(flow, [name])}: {text}") for name, pair in pairs.items() for kind, text in pair.changes
    ]
    return changed + [
        Remark("action left out", f"{named(flow, [name])} {why}; what follows it follows what comes before it")
        for name, why in unknown.items()
    ]


def _of_order(flow: Flow, found: Order, every: bool) -> list[Remark]:
    remarks = []
    for edge in found.cut:
        ends = " to ".join(named(flow, [end]) for end in (edge.source, edge.target))
        remarks.append(Remark("circle cut", f"the line from {ends} closes a circle and is left out"))
    if found.roots:
        text = f"a circle that nothing leads to begins with {named(flow, found.roots)}"
        remarks.append(Remark("beginning chosen", text))
    if found.dropped:
        text = f"{named(flow, found.dropped)}: only when a condition does not hold, so left out"
        remarks.append(Remark("condition did not hold", text))
    if found.joined:
        which = "all of them are" if every else "one of them is"
        text = f"several lines without an operator come to {named(flow, found.joined)}: {which} needed"
        remarks.append(Remark("lines joined", text))
    if found.idle:
        text = f"{named(flow, found.idle)}: nothing comes before, so that there is nothing to join"
        remarks.append(Remark("operators left out", text))
    if flow.loose:
        remarks.append(Remark("lines left out", f"{flow.loose} lines have an end that touches nothing"))
    return remarks


def _needs(flow: Flow, name: str, found: Order, place: dict[str, int]) -> Needs:
    """What an action needs, if a stage can say it: stages that it needs all, and one choice."""

    def listed(clause: Iterable[str]) -> list[str]:
        return sorted(clause, key=place.__getitem__)

    formula: Formula = found.formulas[name]
    choices = sorted(listed(clause) for clause in formula if len(clause) > 1)
    if len(choices) > 1 or name in found.complex:
        spelt = "".join(
            f", {which} one of ({named(flow, x)})" for which, x in zip(("needs", "and"), choices, strict=False)
        )
        refuse(
            flow,
            f"{named(flow, [name])} comes after an OR of ANDs, or after several ORs{spelt}, but a stage can have one "
            "choice only; draw the action once for each way to it, or join its lines by one operator",
        )
    needs = Needs(
        listed(one for clause in formula if len(clause) == 1 for one in clause), choices[0] if choices else []
    )
    return _as_written(flow, name, needs)


def _as_written(flow: Flow, name: str, needs: Needs) -> Needs:
    """The same needs in the form and order that our own export noted, if the graph still says the same."""
    noted = flow.nodes[name].extra
    if flow.extra is None or noted is None:
        return needs
    lists = [noted.get("prerequisites", []), noted.get("any_prerequisites", [])]
    by_id = {x: name for name, node in flow.nodes.items() if isinstance(x := (node.extra or {}).get("id"), str)}
    if not all(isinstance(ids, list) and all(isinstance(x, str) and x in by_id for x in ids) for ids in lists):
        return needs
    written = Needs(*([by_id[x] for x in ids] for ids in lists))
    return written if _formula(written) == _formula(needs) else needs


def _formula(needs: Needs) -> Formula:
    choice = {frozenset(needs.one)} if needs.one else set[frozenset[str]]()
    return frozenset({frozenset({x}) for x in needs.every} | choice)


def _losses(flow: Flow, pairs: dict[str, Resolved], needs: dict[str, Needs], remarks: list[Remark]) -> dict[str, str]:
    """The last exfiltration or impact on each way; what comes after it is taken out of `needs`."""
    follows: dict[str, list[str]] = {name: [] for name in needs}
    for name, need in needs.items():
        for before in need.all():
            follows[before].append(name)
    later: dict[str, bool] = {}  # whether a loss comes after it
    for name in reversed(needs):
        later[name] = any(later[x] or pairs[x].tactic in LOSSES for x in follows[name])
    of_loss = [name for name in needs if pairs[name].tactic in LOSSES]
    losses = {name: LOSSES[pairs[name].tactic] for name in of_loss if not later[name]}
    if passed := [name for name in of_loss if later[name]]:
        text = f"{named(flow, passed)}: a later loss ends the attack, so this is a stage like any other"
        remarks.append(Remark("earlier loss", text))
    gone, after = set(losses), []
    for name, need in list(needs.items()):
        left = [x for x in need.one if x not in gone]
        if gone & set(need.every) or (need.one and not left):
            gone.add(name)
            after.append(name)
            del needs[name]
        else:
            needs[name] = Needs(need.every, left)
    if after:
        remarks.append(Remark("after the loss", f"{named(flow, after)}: the loss ends the attack, so left out"))
    return losses
