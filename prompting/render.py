"""Observation -> the user message: deterministic, and complete for what a policy may know.

A layout writes what never changes in an episode first, so that a model can keep the encoding of that part. Numbers
between 0 and 1 are written as whole percent. Texts are bounded whatever the size of the network: see the limits.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

import scenarios
from jaxsim import check
from jaxsim.rules import PERSONALITIES
from jaxsim.types import CUT_OFF, Observation
from prompting.inventory import Inventory

MAX_LISTED = 24  # assets, and identities, of the network: the most valuable ones
MAX_MARKED = 12  # entities under a control or confirmed, of each: the most valuable ones
MAX_ALERTS = 12  # the newest
MAX_FORENSICS = 8  # the newest
# Tokens of what changes from tick to tick in the compact layout. What forensics leave over alerts may use.
DYNAMIC_BUDGET, CONTROLS_BUDGET, FORENSICS_BUDGET = 150, 50, 40

ATTACKERS = tuple(PERSONALITIES)
MARKS = ("Confirmed", "Isolated", "Revoked", "Egress blocked", "Patched")  # in the order in which they are written
_MARK_OF_ROW = np.asarray([1, 3, 4, 0])  # of each row of `Observation.marks`; an identity that is cut off is "Revoked"
_PIECES = re.compile(r"[A-Za-z]{1,5}|\d|[^A-Za-z\d]")
_AT_ONCE = 256  # episodes; few live objects keep the garbage collector away


class Entity(NamedTuple):
    """An asset or an identity, in plain Python."""

    name: str
    labels: tuple[str, ...]  # kind and segment of an asset, role of an identity
    value: int  # criticality or privilege in percent


class Network(NamedTuple):
    """What does not change in an episode, in plain Python."""

    assets: list[Entity]  # in the order of the arrays, at most MAX_LISTED
    identities: list[Entity]
    unlisted: int  # entities of the network that are not among those


class View(NamedTuple):
    """One episode's observation in plain Python: what a layout writes."""

    network: Network
    tick: int
    horizon: int
    attacker: str | None  # the attacker's personality where the rules show it
    also: list[Entity]  # unlisted ones that alerts and forensics name, by name
    marks: dict[str, list[str]]  # names by kind of mark, at most MAX_MARKED each
    more: dict[str, int]  # how many more of that mark
    # Newest first: signal, asset or '', identity or '', severity in percent, age in ticks.
    alerts: list[tuple[str, str, str, int, int]]
    # Newest first: entity, compromised, confidence in percent, age in ticks.
    forensics: list[tuple[str, bool, int, int]]


class Layout(NamedTuple):
    """The two halves of a text."""

    network: Callable[[Network], str]
    tick: Callable[[View], str]


def render(observation: Observation, inventory: Inventory, layout: str = "compact") -> list[str]:
    """The user message of each episode of a batch: every field has a leading axis E.

    Raises ValueError for an unknown layout, or when the observation is not of the inventory's sizes or has no batch
    axis.
    """
    check.known("layout", layout, LAYOUTS)
    check.kind("inventory", inventory, Inventory, "that of prompting.inventory")
    check.kind("observation", observation, Observation, "that of a batch of episodes")
    _check_shapes(observation, inventory)
    write = LAYOUTS[layout]
    network, head, texts = None, "", []
    for view in views(observation, inventory):
        if view.network is not network:
            network, head = view.network, write.network(view.network)
        texts.append(head + write.tick(view))
    return texts


def _check_shapes(observation: Observation, inventory: Inventory) -> None:
    dims, shape = inventory.dims, np.shape(observation.exists)
    per_entity = (*shape[:1], dims.entities)
    if shape != per_entity or len(shape) != 2:
        raise ValueError(
            f"observation.exists has shape {shape}, not (episodes, {dims.entities}); give a batch of this scenario"
        )
    single, alerts, forensics = shape[:1], (shape[0], dims.alerts), (shape[0], dims.forensics)
    wanted = {"exists": per_entity, "value": per_entity, "marks": (shape[0], len(_MARK_OF_ROW), dims.entities)}
    parts = [(name, x, wanted.get(name, single)) for name, x in observation._asdict().items() if hasattr(x, "shape")]
    parts += [(f"alerts.{name}", x, alerts) for name, x in observation.alerts._asdict().items()]
    parts += [(f"forensics.{name}", x, forensics) for name, x in observation.forensics._asdict().items()]
    for name, x, its in parts:
        if np.shape(x) != its:
            raise ValueError(f"observation.{name} has shape {np.shape(x)}, not {its}; give a batch of this scenario")
        if x.dtype == np.float32 and not np.isfinite(x).all():
            raise ValueError(f"observation.{name} holds a number that is not finite; give what `Env.step` returns")


def views(observation: Observation, inventory: Inventory) -> Iterator[View]:
    """Each episode of a batch in plain Python. Neighbours of one network share the object."""
    obs: Any = jax.tree.map(np.asarray, observation)
    for first in range(0, len(obs.tick), _AT_ONCE):
        yield from _views(jax.tree.map(lambda x, i=first: x[i : i + _AT_ONCE], obs), inventory)


def _views(obs: Any, inventory: Inventory) -> Iterator[View]:
    names, signals = (*inventory.names, ""), scenarios.SIGNALS  # names[-1]: none
    networks = _networks(obs.exists, obs.value, inventory)
    marked = _marked(obs.marks, [percent for _, percent in networks], names, inventory.dims.assets)
    a, f = obs.alerts, obs.forensics
    age = [obs.tick[:, None] - ring.tick for ring in (a, f)]
    alerts = _newest(a.number, MAX_ALERTS, a.signal, a.asset, a.identity, _percent(a.severity), age[0])
    results = _newest(f.number, MAX_FORENSICS, f.entity, f.compromised, _percent(f.confidence), age[1])
    clock = zip(obs.tick.tolist(), obs.horizon.tolist(), obs.personality.tolist(), strict=True)
    for (network, percent), (tick, horizon, who), marks, its_alerts, its_results in zip(
        networks, clock, marked, alerts, results, strict=True
    ):
        seen = [(signals[s], names[asset], names[identity], v, t) for s, asset, identity, v, t in its_alerts]
        found = [(names[entity], verdict, sure, t) for entity, verdict, sure, t in its_results]
        also: list[Entity] = []
        if network.unlisted:
            named = {name for x in seen for name in x[1:3] if name} | {x[0] for x in found}
            named -= {entity.name for entity in (*network.assets, *network.identities)}
            also = _described([inventory.entities[name] for name in sorted(named)], percent, inventory)
        yield View(network, tick, horizon, ATTACKERS[who] if who >= 0 else None, also, *marks, seen, found)


# --- arrays -> lists ------------------------------------------------------------------------------------------------


def _percent(share: np.ndarray) -> np.ndarray:
    return np.rint(100 * share).astype(np.int64)


def _networks(exists: np.ndarray, value: np.ndarray, inventory: Inventory) -> list[tuple[Network, np.ndarray]]:
    """Network and values in percent, (N,), of each episode; worked out once for neighbours that share it."""
    same = (exists[1:] == exists[:-1]).all(1) & (value[1:] == value[:-1]).all(1)
    found: list[tuple[Network, np.ndarray]] = []
    for e, repeated in enumerate([False, *same.tolist()]):
        found.append(found[-1] if repeated else _network(exists[e], _percent(value[e]), inventory))
    return found


def _network(there: np.ndarray, percent: np.ndarray, inventory: Inventory) -> tuple[Network, np.ndarray]:
    a = inventory.dims.assets
    assets, identities = np.flatnonzero(there[:a]), a + np.flatnonzero(there[a:])
    kept = [_most_valuable(x, percent, MAX_LISTED) for x in (assets, identities)]
    listed = [_described(x, percent, inventory) for x in kept]
    return Network(listed[0], listed[1], int(there.sum()) - sum(map(len, kept))), percent


def _described(entities: Iterable[int], percent: np.ndarray, inventory: Inventory) -> list[Entity]:
    return [Entity(inventory.names[i], inventory.labels[i], int(percent[i])) for i in entities]


def _most_valuable(entities: np.ndarray, value: np.ndarray, many: int) -> np.ndarray:
    """At most `many` of the entities, in their order; of equals the first listed."""
    if len(entities) <= many:
        return entities
    return np.sort(entities[np.argsort(-value[entities], kind="stable")[:many]])


def _marked(
    marks: np.ndarray, percents: Sequence[np.ndarray], names: Sequence[str], assets: int
) -> Iterator[tuple[dict[str, list[str]], dict[str, int]]]:
    """Of each episode: the names under each mark, and how many more there are."""
    episodes, rows, entities = np.nonzero(marks)
    which = _MARK_OF_ROW[rows] + ((rows == CUT_OFF) & (entities >= assets))
    by_episode: list[list[list[int]]] = [[[] for _ in MARKS] for _ in marks]
    for e, kind, entity in zip(episodes.tolist(), which.tolist(), entities.tolist(), strict=True):
        by_episode[e][kind].append(entity)
    for kinds, percent in zip(by_episode, percents, strict=True):
        shown: dict[str, list[str]] = {}
        more: dict[str, int] = {}
        for mark, ids in zip(MARKS, kinds, strict=True):
            if len(ids) > MAX_MARKED:
                more[mark] = len(ids) - MAX_MARKED
                ids = _most_valuable(np.asarray(ids), percent, MAX_MARKED).tolist()
            if ids:
                shown[mark] = [names[i] for i in ids]
        yield shown, more


def _newest(number: np.ndarray, many: int, *columns: np.ndarray) -> Iterator[list[tuple[Any, ...]]]:
    """The newest rows of each episode's ring, empty slots (number -1) left out."""
    order = np.argsort(-number, axis=1, kind="stable")[:, :many]
    filled = np.take_along_axis(number, order, axis=1) >= 0
    rows = list(zip(*(np.take_along_axis(x, order, axis=1)[filled].tolist() for x in columns), strict=True))
    ends = filled.sum(axis=1).cumsum().tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        yield rows[start:end]


# --- layouts --------------------------------------------------------------------------------------------------------


def compact_network(network: Network) -> str:
    """A line for the entities of each kind and segment, or role."""
    lines = []
    if network.assets:
        lines += ["Assets (kind, segment: criticality %):", *_grouped(network.assets)]
    if network.identities:
        lines += ["Identities (role: privilege %):", *_grouped(network.identities)]
    if network.unlisted:
        lines.append(f"and {network.unlisted} less valuable ones")
    return "\n".join([*lines, ""])


def compact_tick(view: View) -> str:
    """Few tokens: alerts of one kind together. What overruns DYNAMIC_BUDGET is counted, not shown.

    Of alerts, and of forensics, the newest is shown in any case.
    """
    lines = [f"Tick {view.tick} of {view.horizon}"]
    if view.attacker:
        lines.append(f"Attacker: {view.attacker}")

    left = CONTROLS_BUDGET
    for mark, names in view.marks.items():
        left -= 4
        shown = 0
        for name in names:
            cost = tokens(name)
            if cost > left:
                break
            left -= cost
            shown += 1
        hidden = view.more.get(mark, 0) + len(names) - shown
        some = ", ".join(names[:shown])
        lines.append(f"{mark}: {some} and {hidden} more" if hidden and some else f"{mark}: {some or hidden}")

    left += FORENSICS_BUDGET
    results: list[str] = []
    for name, compromised, confidence, age in view.forensics:
        cost = 11 + tokens(name)
        if cost > left and results:
            break
        left -= cost
        results.append(f"{name} {'compromised' if compromised else 'clean'}: {confidence}@{age}")

    left += DYNAMIC_BUDGET - CONTROLS_BUDGET - FORENSICS_BUDGET
    groups: dict[tuple[str, str, str], str] = {}
    shown = 0
    for signal, asset, identity, severity, age in view.alerts:
        kind = (signal, asset, identity)
        before = groups.get(kind)
        cost = 6 if before else 12 + tokens(asset) + tokens(identity)
        if cost > left and shown:
            break
        left -= cost
        shown += 1
        groups[kind] = f"{before} {severity}@{age}" if before else f"{severity}@{age}"
    if view.alerts:
        lines.append("Alerts (severity % @ ticks ago):")
        for (signal, asset, identity), times in groups.items():
            on = f"{asset} {identity}" if asset and identity else asset or identity or "unknown"
            lines.append(f"{signal} {on}: {times}")
        if shown < len(view.alerts):
            lines.append(f"and {len(view.alerts) - shown} older")
    else:
        lines.append("No alerts")
    if results:
        lines.append("Forensics (confidence % @ ticks ago):")
        lines += results
        if len(results) < len(view.forensics):
            lines.append(f"and {len(view.forensics) - len(results)} older")
    if view.also:
        lines += ["Also named (value %):", *_grouped(view.also)]
    return "\n".join(lines)


def _grouped(entities: list[Entity]) -> list[str]:
    """A line for each group of entities with the same labels, where the first of them stands."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, labels, value in entities:
        groups.setdefault(labels, []).append(f"{name} {value}")
    return [f"{', '.join(labels)}: {', '.join(names)}" for labels, names in groups.items()]


@lru_cache(65536)
def tokens(name: str) -> int:
    """About how many tokens a tokenizer needs for a name, rather too many than too few."""
    return len(_PIECES.findall(name))


def json_network(network: Network) -> str:
    """The beginning of one JSON object with everything spelled out, as agent environments commonly show it."""
    fields = {
        "assets": [_spelled(asset, "criticality") for asset in network.assets],
        "identities": [_spelled(identity, "privilege") for identity in network.identities],
        "unlisted_entities": network.unlisted,
    }
    return json.dumps(fields).removesuffix("}") + ", "


def _spelled(entity: Entity, value: str) -> dict[str, str | float]:
    kinds = ("kind", "segment") if len(entity.labels) == 2 else ("role",)
    return {"id": entity.name, **dict(zip(kinds, entity.labels, strict=True)), value: entity.value / 100}


def json_tick(view: View) -> str:
    """The rest of the object. Most is written by hand, which is faster; `_quoted` does what escaping there is."""
    controls = {mark.lower().replace(" ", "_"): names for mark, names in view.marks.items()}
    more = {mark.lower().replace(" ", "_"): many for mark, many in view.more.items()}
    alerts = [
        f'{{"signal": "{signal}", "asset": {_quoted(asset)}, "identity": {_quoted(identity)}, '
        f'"severity": {severity / 100}, "ticks_ago": {age}}}'
        for signal, asset, identity, severity, age in view.alerts
    ]
    forensics = [
        f'{{"target": {_quoted(name)}, "verdict": "{"compromised" if compromised else "clean"}", '
        f'"confidence": {confidence / 100}, "ticks_ago": {age}}}'
        for name, compromised, confidence, age in view.forensics
    ]
    also = [_spelled(entity, "value") for entity in view.also]
    return (
        f'"tick": {view.tick}, "horizon": {view.horizon}, "attacker_personality": {_quoted(view.attacker or "")}, '
        f'"controls": {json.dumps(controls)}, "more_controls": {json.dumps(more)}, '
        f'"alerts": [{", ".join(alerts)}], "forensics": [{", ".join(forensics)}], "also_named": {json.dumps(also)}}}'
    )


@lru_cache(65536)
def _quoted(name: str) -> str:
    return json.dumps(name or None)


LAYOUTS = {"compact": Layout(compact_network, compact_tick), "json": Layout(json_network, json_tick)}
