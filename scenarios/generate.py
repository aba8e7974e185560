"""Generated networks as scenarios: names for what the arrays of `scenarios.networks` hold, and every check of a file.

    >>> from scenarios.generate import generate, scenario
    >>> from scenarios.networks import draw
    >>> scenario(draw(range(1000), entities=20), 3) == generate(3, entities=20)
    True

`scenario` takes a network of a batch, `generate` draws the one of a seed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from scenarios import attack
from scenarios.model import FORMAT, SIGNALS, Asset, Benign, Identity, Scenario, Signal, Stage
from scenarios.networks import (
    BENIGN,
    BENIGN_SIGNALS,
    EXFIL,
    HORIZON,
    JOBS,
    KINDS,
    LAYERS,
    ROLES,
    SEGMENTS,
    SPLITS,
    TEAMS,
    TECHNIQUES,
    Networks,
    draw,
)


def generate(seed: int, entities: int = 20, split: str = "train") -> Scenario:
    """The scenario of a seed. Raises ValueError for what is out of range."""
    return scenario(draw([seed], entities, split), 0)


def scenario(networks: Networks, k: int) -> Scenario:
    """Network k of a batch as a scenario, validated."""
    n = Networks(*(field[k] for field in networks))
    asset_ids = _numbered(
        f"{SEGMENTS[segment]}-{KINDS[kind]}"
        for segment, kind in zip(n.segment[: n.asset_count].tolist(), n.kind.tolist(), strict=False)
    )
    identity_ids = _numbered(
        f"svc-{JOBS[team]}" if ROLES[role] == "service-principal" else f"u-{TEAMS[team]}"
        for role, team in zip(n.role[: n.identity_count].tolist(), n.team.tolist(), strict=False)
    )
    split, size = SPLITS[int(n.held_out)], len(asset_ids) + len(identity_ids)
    return Scenario(
        format=FORMAT,
        id=f"generated-{split}-{size}-{n.seed}",
        title=f"Generated network of {size} entities, seed {n.seed}",
        description=f"Made by: python -m scenarios generate --entities {size} --seed {n.seed} --split {split}",
        held_out=bool(n.held_out),
        horizon=HORIZON,
        noise_rate=float(n.noise_rate),
        assets=tuple(
            Asset(id=name, kind=KINDS[kind], criticality=value, segment=SEGMENTS[segment])
            for name, kind, value, segment in zip(
                asset_ids, n.kind.tolist(), n.criticality.tolist(), n.segment.tolist(), strict=False
            )
        ),
        identities=tuple(
            Identity(id=name, role=ROLES[role], privilege=value)
            for name, role, value in zip(identity_ids, n.role.tolist(), n.privilege.tolist(), strict=False)
        ),
        stages=_stages(n, asset_ids, identity_ids),
        benign=tuple(
            Benign(
                id=BENIGN[n.benign[b]][0].lower().replace(" ", "-"),
                name=BENIGN[n.benign[b]][0],
                asset=_named(asset_ids, n.benign_asset[b]),
                identity=_named(identity_ids, n.benign_identity[b]),
                rate=float(n.benign_rate[b]),
                strength=float(n.benign_strength[b]),
                signal=_signal(BENIGN_SIGNALS[n.benign[b]]),
            )
            for b in range(n.benign_count)
        ),
    )


def _stages(n: Networks, asset_ids: Sequence[str], identity_ids: Sequence[str]) -> tuple[Stage, ...]:
    """The stages of one network, whose arrays have no batch axis."""
    known = attack.techniques()
    count = int(n.stage_count)
    ids = _numbered((LAYERS[layer] for layer in n.layer[:count]), width=1)
    stages = []
    for j in range(count):
        tactic, technique = TECHNIQUES[n.layer[j]][n.technique[j]]
        asset, identity = _named(asset_ids, n.asset[j]), _named(identity_ids, n.identity[j])
        where = " and ".join(filter(None, (asset, identity)))
        stage = Stage(
            id=ids[j],
            name=f"{known[technique][0]}: {where}",
            tactic=tactic,
            technique=technique,
            prerequisites=tuple(ids[i] for i in range(count) if n.required[i, j]),
            any_prerequisites=tuple(ids[i] for i in range(count) if n.options[i, j]),
            asset=asset,
            identity=identity,
            dwell=(int(n.dwell[j, 0]), int(n.dwell[j, 1])),
            success=float(n.success[j]),
            detection=float(n.detection[j]),
            lag=(int(n.lag[j, 0]), int(n.lag[j, 1])),
            compromises_asset=bool(n.compromises[j, 0]),
            compromises_identity=bool(n.compromises[j, 1]),
            exfil=bool(n.layer[j] == EXFIL),
            signal=_signal(n.signal[j]),
        )
        stages.append(stage)
    return tuple(stages)


def _named(ids: Sequence[str], index: int) -> str | None:
    return ids[index] if index >= 0 else None


def _signal(index: int) -> Signal:
    return cast(Signal, SIGNALS[index])


def _numbered(names: Iterable[str], width: int = 2) -> list[str]:
    """The names, each with the number of its occurrence: a-01, b-01, a-02."""
    seen: Counter[str] = Counter()
    ids = []
    for name in names:
        seen[name] += 1
        ids.append(f"{name}-{seen[name]:0{width}d}")
    return ids
