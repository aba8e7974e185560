"""Observations to write down, and what the tests of the texts share."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from inventories import inventory_of, scenario_of

import scenarios
from jaxsim.compile import compile_scenario
from jaxsim.rules import PERSONALITIES
from jaxsim.types import Alerts, Forensics, Observation
from prompting import Inventory
from prompting.render import MAX_LISTED, MAX_MARKED

RENDER_MODULE = sys.modules["prompting.render"]
LARGE = 10_000  # entities


def observation(name: str, rng: np.random.Generator, episodes: int, busy: float | None = None, **more: bool) -> Any:
    """Observations of a scenario that nothing played: any marks, alerts and forensics. `busy` is the share of marks."""
    inventory = inventory_of(name, **more)
    dims, arrays = inventory.dims, compile_scenario(scenario_of(name), inventory.dims)
    real = np.flatnonzero(arrays.exists)
    asset, identity = real[real < dims.assets], real[real >= dims.assets]
    tick = rng.integers(0, 80, episodes, dtype=np.int32)

    def ring(size: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrival numbers and ticks, (E, size): older ones came no later."""
        count = rng.integers(0, 3 * size, episodes)[:, None]
        newest = count - 1
        number = np.maximum(newest - (newest - np.arange(size)) % size, -1).astype(np.int32)
        ages = np.sort(rng.integers(0, 80, (episodes, size)), axis=1) % (tick[:, None] + 1)
        when = np.take_along_axis(tick[:, None] - np.sort(ages, axis=1), np.maximum(newest - number, 0) % size, axis=1)
        return number, when.astype(np.int32)

    def pick(entities: np.ndarray, size: int, none: float) -> np.ndarray:
        if not len(entities):
            return np.full((episodes, size), -1, np.int32)
        few = rng.choice(entities, 5)  # so that some alerts are alike
        return np.where(rng.random((episodes, size)) < none, -1, rng.choice(few, (episodes, size))).astype(np.int32)

    shares = rng.random((episodes, 1, 1)) ** 3 if busy is None else busy
    marks = (rng.random((episodes, 4, dims.entities)) < shares) & arrays.exists
    marks[:, 1:3, dims.assets :] = False  # no control of an identity
    k, f = dims.alerts, dims.forensics
    (number, when), (f_number, f_when) = ring(k), ring(f)
    return Observation(
        tick=tick,
        horizon=np.full(episodes, 80, np.int32),
        personality=rng.integers(-1, len(PERSONALITIES), episodes, dtype=np.int32),
        exists=np.tile(arrays.exists, (episodes, 1)),
        value=np.tile(arrays.value, (episodes, 1)),
        marks=marks,
        alerts=Alerts(
            number,
            rng.integers(0, len(scenarios.SIGNALS), (episodes, k), dtype=np.int32),
            pick(asset, k, 0.5),
            pick(identity, k, 0.5),
            rng.random((episodes, k), np.float32),
            when,
        ),
        forensics=Forensics(
            f_number,
            np.maximum(pick(real, f, 0), 0),
            rng.random((episodes, f)) < 0.5,
            rng.random((episodes, f), np.float32),
            f_when,
        ),
    )


def percent(x: Any) -> int:
    return int(np.rint(100 * np.float32(x)))


def facts(obs: Observation, e: int, inventory: Inventory) -> dict[str, Any]:
    """What one episode's observation says, worked out one thing at a time, with no limit but those on the network."""
    names, a = inventory.names, inventory.dims.assets
    kinds = {"assets": range(a), "identities": range(a, len(names))}
    real = {kind: [i for i in ids if obs.exists[e, i]] for kind, ids in kinds.items()}
    value = {i: percent(obs.value[e, i]) for ids in real.values() for i in ids}
    best = {kind: sorted(ids, key=lambda i: -value[i])[:MAX_LISTED] for kind, ids in real.items()}
    alerts = sorted(
        (i for i in range(inventory.dims.alerts) if obs.alerts.number[e, i] >= 0), key=numbered(obs.alerts, e)
    )
    found = sorted(
        (i for i in range(inventory.dims.forensics) if obs.forensics.number[e, i] >= 0), key=numbered(obs.forensics, e)
    )
    now, listed = int(obs.tick[e]), {i for ids in best.values() for i in ids}
    entity = {i: (names[i], inventory.labels[i], value[i]) for i in value}
    named = [int(x) for ring in (obs.alerts.asset, obs.alerts.identity) for x in ring[e][alerts] if x >= 0]
    named += [int(x) for x in obs.forensics.entity[e][found]]
    marked = {
        "Confirmed": obs.marks[e, 3],
        "Isolated": obs.marks[e, 0] & (np.arange(len(names)) < a),
        "Revoked": obs.marks[e, 0] & (np.arange(len(names)) >= a),
        "Egress blocked": obs.marks[e, 1],
        "Patched": obs.marks[e, 2],
    }
    return {
        **{kind: [entity[i] for i in sorted(ids)] for kind, ids in best.items()},
        "unlisted": len(value) - len(listed),
        "also": sorted({entity[i] for i in named if i not in listed}),
        "tick": now,
        "horizon": int(obs.horizon[e]),
        "attacker": list(PERSONALITIES)[obs.personality[e]] if obs.personality[e] >= 0 else None,
        "marks": {
            mark: [names[i] for i in sorted(sorted(np.flatnonzero(row).tolist(), key=lambda i: -value[i])[:MAX_MARKED])]
            for mark, row in marked.items()
            if row.any()
        },
        "more": {mark: int(row.sum()) - MAX_MARKED for mark, row in marked.items() if row.sum() > MAX_MARKED},
        "alerts": [
            (
                scenarios.SIGNALS[obs.alerts.signal[e, i]],
                names[obs.alerts.asset[e, i]] if obs.alerts.asset[e, i] >= 0 else None,
                names[obs.alerts.identity[e, i]] if obs.alerts.identity[e, i] >= 0 else None,
                percent(obs.alerts.severity[e, i]),
                now - int(obs.alerts.tick[e, i]),
            )
            for i in alerts
        ],
        "forensics": [
            (
                names[obs.forensics.entity[e, i]],
                "compromised" if obs.forensics.compromised[e, i] else "clean",
                percent(obs.forensics.confidence[e, i]),
                now - int(obs.forensics.tick[e, i]),
            )
            for i in found
        ],
    }


def numbered(ring: Any, e: int) -> Callable[[int], int]:
    return lambda i: -int(ring.number[e, i])


def read_json(text: str) -> dict[str, Any]:
    """The facts in a text of the JSON layout."""
    said = json.loads(text)

    def names(controls: dict[str, Any]) -> dict[str, Any]:
        return {key.capitalize().replace("_", " "): value for key, value in controls.items()}

    def entity(x: dict[str, Any], value: str) -> tuple[str, tuple[str, ...], int]:
        labels = (x.pop("role"),) if "role" in x else (x.pop("kind"), x.pop("segment"))
        assert [*x] == ["id", value]
        return x["id"], labels, round(100 * x[value])

    return {
        "assets": [entity(x, "criticality") for x in said.pop("assets")],
        "identities": [entity(x, "privilege") for x in said.pop("identities")],
        "unlisted": said.pop("unlisted_entities"),
        "also": [entity(x, "value") for x in said.pop("also_named")],
        "attacker": said.pop("attacker_personality"),
        "marks": names(said.pop("controls")),
        "more": names(said.pop("more_controls")),
        "alerts": [
            (x["signal"], x["asset"], x["identity"], round(100 * x["severity"]), x["ticks_ago"])
            for x in said.pop("alerts")
        ],
        "forensics": [
            (x["target"], x["verdict"], round(100 * x["confidence"]), x["ticks_ago"]) for x in said.pop("forensics")
        ],
        **said,
    }


def read_compact(text: str, inventory: Inventory) -> dict[str, Any]:
    """The facts in a text of the compact layout; `hidden` counts what it left out, by mark and list."""
    said: dict[str, Any] = {"assets": [], "identities": [], "unlisted": 0, "also": [], "attacker": None}
    said |= {"marks": {}, "hidden": Counter(), "alerts": [], "forensics": []}
    valued = {
        "Assets (kind, segment: criticality %):": "assets",
        "Identities (role: privilege %):": "identities",
        "Also named (value %):": "also",
    }
    section = ""
    for line in text.split("\n"):
        head, _, rest = line.partition(": ")
        if line in valued:
            section = valued[line]
        elif match := re.fullmatch(r"and (\d+) less valuable ones", line):
            said["unlisted"], section = int(match[1]), ""
        elif section in valued.values() and not line.startswith("Tick "):
            labels = tuple(head.split(", "))
            assert labels not in {x[1] for x in said[section]}, "a group has one line"
            said[section] += [(n, labels, int(v)) for n, v in (item.split(" ") for item in rest.split(", "))]
        elif head == "Attacker":
            said["attacker"] = rest
        elif line.startswith("Tick "):
            said["tick"], said["horizon"] = (int(x) for x in re.findall(r"\d+", line))
            section = ""
        elif match := re.fullmatch(r"(Isolated|Revoked|Egress blocked|Patched|Confirmed): (.*)", line):
            some = re.fullmatch(r"(?:(.*?)(?: and (\d+) more)?|(\d+))", match[2])
            alone = match[2].isdecimal() and match[2] not in inventory.entities
            said["marks"][match[1]] = [] if alone or not some else some[1].split(", ")
            said["hidden"][match[1]] = int(match[2]) if alone else int((some and some[2]) or 0)
        elif line.startswith(("Alerts (", "Forensics (", "No alerts")):
            section = line.split(" ")[0].lower()
        elif match := re.fullmatch(r"and (\d+) older", line):
            said["hidden"][section] = int(match[1])
        elif section == "alerts":
            signal, *on = head.split(" ")
            asset = next((n for n in on if inventory.entities.get(n, 10**9) < inventory.dims.assets), None)
            identity = next((n for n in on if inventory.entities.get(n, -1) >= inventory.dims.assets), None)
            assert asset or identity or on == ["unknown"]
            times = [tuple(map(int, x.split("@"))) for x in rest.split(" ")]
            said["alerts"] += [(signal, asset, identity, *x) for x in times]
        else:
            assert section == "forensics", line
            name, verdict = head.split(" ")
            said["forensics"].append((name, verdict, *map(int, rest.split("@"))))
    return said


def large(busy: float, episodes: int = 2) -> tuple[Any, Inventory]:
    name = f"0/{LARGE}"
    return observation(name, np.random.default_rng(3), episodes, busy), inventory_of(name)
