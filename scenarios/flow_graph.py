"""The order of a flow, without circles: what each action needs to have succeeded first, by `order`.

What a flow says is a formula of AND and OR over actions. It is kept as clauses that must all hold, each of which holds
when one of its actions has succeeded (conjunctive normal form).
"""

from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

from scenarios.attack_flow import Edge, Flow, Node

Clause = frozenset[str]
Formula = frozenset[Clause]

ALWAYS: Formula = frozenset()
MAX_CLAUSES = 64  # of a formula, before it is called too complex


class TooComplex(ValueError):
    """A formula with very many clauses."""


class Order(NamedTuple):
    """Actions in an order in which they can happen, the formula of each, and what was changed to get there."""

    formulas: dict[str, Formula]  # of what must have succeeded before the action; listed in order
    cut: list[Edge]  # of circles
    roots: list[str]  # with which a circle without a beginning was begun
    dropped: list[str]  # actions that only follow when a condition does not hold
    joined: list[str]  # actions that several lines come to, without an operator
    complex: list[str]  # actions whose formula is too complex; they have none
    idle: list[str]  # operators with nothing before them; they are left out


def order(flow: Flow, skipped: Collection[str], every: bool = False) -> Order:
    """The order of the actions that are not `skipped`; what follows one that is follows what came before it.

    Where several lines come to an action or condition, one of them is enough, or else, with `every`, all are needed.
    """
    reached, cut, roots = _walk(flow)
    dropped = [name for name, node in flow.nodes.items() if node.kind == "action" and name not in reached]
    gone = set(cut)
    into: dict[str, list[str]] = {name: [] for name in reached}
    out: dict[str, list[str]] = {name: [] for name in reached}
    for edge in flow.edges:
        if edge.holds and edge not in gone and edge.source in reached and edge.target not in into[edge.source]:
            into[edge.target].append(edge.source)
            out[edge.source].append(edge.target)
    result = Order({}, cut, roots, dropped, [], [], [])
    begins, formulas = set(flow.starts), dict[str, Formula]()  # what holds when a node is over
    for name in _sorted(flow.nodes, into, out):
        node = flow.nodes[name]
        before = [formulas[source] for source in dict.fromkeys(into[name]) if source in formulas]
        plain = node.kind in ("action", "condition")
        if not (plain or before or name in begins):
            result.idle.append(name)
            continue
        if plain and len(before) > 1 and name not in skipped and node.kind == "action":
            result.joined.append(name)
        try:
            if name in begins or not before:
                needed = ALWAYS
            elif node.kind == "AND" or (plain and every):
                needed = minimal(clause for formula in before for clause in formula)
            else:
                needed = one_of(before)
        except TooComplex:
            result.complex.append(name)
            needed = ALWAYS
        formulas[name] = needed
        if node.kind == "action" and name not in skipped:
            result.formulas[name] = needed
            formulas[name] = frozenset({frozenset({name})})
    return result


def one_of(formulas: Iterable[Formula]) -> Formula:
    """The formula that holds when one of these does. Raises TooComplex."""
    first, *others = formulas
    for other in others:
        if not first or not other:
            return ALWAYS
        if len(first) * len(other) > MAX_CLAUSES**2:
            raise TooComplex
        first = minimal(a | b for a in first for b in other)
        if len(first) > MAX_CLAUSES:
            raise TooComplex
    return first


def minimal(clauses: Iterable[Clause]) -> Formula:
    """All of these clauses, without those that follow from another of them."""
    kept: list[Clause] = []
    for clause in sorted(set(clauses), key=len):
        if not any(other <= clause for other in kept):
            kept.append(clause)
    return frozenset(kept)


def _walk(flow: Flow) -> tuple[set[str], list[Edge], list[str]]:
    """The nodes that can be reached, the edges that close a circle, and beginnings chosen for lack of one."""
    follows: dict[str, list[Edge]] = {name: [] for name in flow.nodes}
    later: set[str] = set()
    for edge in flow.edges:
        follows[edge.source].append(edge)
        later.add(edge.target)
    reached: set[str] = set()
    barred: set[str] = set()  # reached only over what a condition rules out
    cut: list[Edge] = []
    chosen: list[str] = []

    def go(root: str, seen: set[str], over_all: bool) -> None:
        open_: set[str] = {root}
        seen.add(root)
        stack = [(root, iter(follows[root]))]
        while stack:
            name, edges = stack[-1]
            for edge in edges:
                if not (edge.holds or over_all):
                    continue
                if edge.target in open_ and not over_all:
                    cut.append(edge)
                elif edge.target not in seen:
                    seen.add(edge.target)
                    open_.add(edge.target)
                    stack.append((edge.target, iter(follows[edge.target])))
                    break
            else:
                open_.discard(name)
                stack.pop()

    for name in dict.fromkeys([*flow.starts, *(name for name in flow.nodes if name not in later)]):
        if name not in reached:
            go(name, reached, over_all=False)
        if name not in barred:
            go(name, barred, over_all=True)
    for name in flow.nodes:  # on a circle that nothing leads to
        if name not in reached and name not in barred:
            chosen.append(name)
            go(name, reached, over_all=False)
            go(name, barred, over_all=True)
    return reached, cut, chosen


def _sorted(nodes: dict[str, Node], into: dict[str, list[str]], out: dict[str, list[str]]) -> list[str]:
    """The nodes of a graph without circles, each after those that lead to it, else as they are listed."""
    waiting = {name: len(into[name]) for name in nodes if name in into}
    ready = deque(name for name, count in waiting.items() if not count)
    done = []
    while ready:
        name = ready.popleft()
        done.append(name)
        for target in out[name]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    return done
