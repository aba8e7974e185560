"""Validated scenario -> arrays padded to `Dims`. NumPy only; nothing here is traced."""

from collections.abc import Hashable, Sequence

import numpy as np

import scenarios
from jaxsim import check, stages
from jaxsim.telemetry import MAX_OF_A_KIND
from jaxsim.types import Dims, ScenarioArrays


def dims_of(many: Sequence[scenarios.Scenario], restore: bool = False) -> Dims:
    """The least sizes that hold all the given scenarios; `restore`: see `rules.restores`."""
    return Dims(
        assets=max(len(s.assets) for s in many),
        identities=max(len(s.identities) for s in many),
        stages=max(len(s.stages) for s in many),
        max_lag=max(1, max(stage.lag[1] for s in many for stage in s.stages)),
        benign=max(len(s.benign) for s in many),
        restore=restore,
    )


def check_dims(dims: Dims) -> Dims:
    """The sizes themselves. Raises ValueError for what are none."""
    check.kind("dims", dims, Dims, "Dims(assets=, identities=, stages=, max_lag=)")
    check.kind("dims.restore", dims.restore, bool, "True or False")
    sizes = {k: v for k, v in dims._asdict().items() if k != "restore"}
    for field, value in sizes.items():
        check.whole(f"dims.{field}", value, int(field in ("stages", "max_lag", "alerts", "forensics")))
    return dims


def check_fits(scenario: scenarios.Scenario, dims: Dims) -> None:
    """Raise ScenarioError, naming the size, when a scenario does not fit `dims`."""
    check_sizes(scenario.id, dims_of([scenario]), dims)


def check_sizes(what: str, own: Dims, dims: Dims) -> None:
    """Raise ScenarioError, naming the size, when what needs the sizes `own` does not fit `dims`."""
    for field in ("assets", "identities", "stages", "max_lag", "benign"):
        size, room = getattr(own, field), getattr(dims, field)
        if size > room:
            raise scenarios.ScenarioError(
                f"{what}: {field} = {size} does not fit the padding of {room}; "
                f"compile it with Dims({field}={size}) or more"
            )
    if max(dims.assets, dims.identities) > MAX_OF_A_KIND:
        raise scenarios.ScenarioError(f"{what}: at most {MAX_OF_A_KIND} assets and as many identities")


def compile_scenario(scenario: scenarios.Scenario, dims: Dims) -> ScenarioArrays:
    """Arrays of one scenario. Raises ScenarioError when it does not fit `dims`."""
    check_fits(scenario, dims)
    a, n, s = dims.assets, dims.entities, dims.stages
    asset = {x.id: i for i, x in enumerate(scenario.assets)}
    identity = {x.id: a + i for i, x in enumerate(scenario.identities)}
    stage = {x.id: i for i, x in enumerate(scenario.stages)}

    value, exists = np.zeros(n, np.float32), np.zeros(n, bool)
    value[: len(asset)] = [x.criticality for x in scenario.assets]
    value[a : a + len(identity)] = [x.privilege for x in scenario.identities]
    exists[: len(asset)] = exists[a : a + len(identity)] = True

    targets = np.full((2, s + dims.benign), -1, np.int32)
    activities: list[tuple[int, scenarios.Stage | scenarios.Benign]] = [*enumerate(scenario.stages)]
    for column, activity in [*activities, *enumerate(scenario.benign, start=s)]:
        if activity.asset is not None:
            targets[0, column] = asset[activity.asset]
        if activity.identity is not None:
            targets[1, column] = identity[activity.identity]
    benign = np.zeros((3, dims.benign))
    for b, activity in enumerate(scenario.benign):
        benign[:, b] = activity.rate, activity.strength, scenarios.SIGNALS.index(activity.signal)
    dwell, lag = np.ones((s, 2), np.int32), np.zeros((s, 2), np.int32)
    success, detection = np.zeros(s, np.float32), np.zeros(s, np.float32)
    signal, compromises = np.zeros(s, np.int32), np.zeros((s, 2), bool)
    exfil, loss = np.zeros(s, bool), np.zeros(s, bool)
    required, options = np.zeros((s, s), bool), np.zeros((s, s), bool)
    for j, x in enumerate(scenario.stages):
        dwell[j], lag[j], success[j], detection[j] = x.dwell, x.lag, x.success, x.detection
        signal[j], exfil[j], loss[j] = scenarios.SIGNALS.index(x.signal), x.exfil, x.loss is not None
        compromises[j] = x.compromises_asset, x.compromises_identity
        required[j, [stage[p] for p in x.prerequisites]] = True
        options[j, [stage[p] for p in x.any_prerequisites]] = True
    kinds = [numbered([(x.kind, x.segment) for x in scenario.assets]), numbered([x.role for x in scenario.identities])]
    group, members = (x[0] for x in grouped(dims, *(np.asarray([k], np.int32) for k in kinds)))

    return ScenarioArrays(
        horizon=np.int32(scenario.horizon),
        noise_rate=np.float32(scenario.noise_rate),
        asset_count=np.int32(len(asset)),
        identity_count=np.int32(len(identity)),
        exists=exists,
        value=value,
        group=group,
        members=members,
        targets=targets,
        stage_exists=np.arange(s) < len(stage),
        stage_dwell=dwell,
        stage_success=success,
        stage_detection=detection,
        stage_lag=lag,
        stage_signal=signal,
        stage_exfil=exfil,
        stage_loss=loss,
        stage_compromises=compromises,
        needs=stages.packed(required, np),
        options=stages.packed(options, np),
        benign_rate=benign[0].astype(np.float32),
        benign_strength=benign[1].astype(np.float32),
        benign_signal=benign[2].astype(np.int32),
    )


def numbered(labels: Sequence[Hashable]) -> list[int]:
    """A number for each different label."""
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [number[label] for label in labels]


def grouped(dims: Dims, assets: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`group` and `members` of `ScenarioArrays`, (K, N) int32 each, of K networks.

    `assets` (K, at most A) and `identities` (K, at most I) are labels, int32, -1 where there is none: those with the
    same label are a group. Groups lie in the order of their first members; padding is a group of its own, each.
    """
    found = []
    for labels, first, size in ((assets, 0, dims.assets), (identities, dims.assets, dims.identities)):
        own = np.tile(2**32 + np.arange(size), (len(labels), 1))
        own[:, : labels.shape[1]] = np.where(labels < 0, own[:, : labels.shape[1]], labels)
        leader, order = _runs(own)
        group, members = _runs(np.take_along_axis(order, leader, axis=1))
        found.append((first + group, first + members))
    groups, both = (np.concatenate(x, axis=1).astype(np.int32) for x in zip(*found, strict=True))
    return groups, both


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where in the sorted row the run of each label begins, the columns in sorted order), (K, size) each."""
    order = np.argsort(labels, axis=1, kind="stable")
    ordered = np.take_along_axis(labels, order, axis=1)
    begins = np.diff(ordered, axis=1, prepend=-1) != 0
    place = np.maximum.accumulate(np.where(begins, np.arange(labels.shape[1]), 0), axis=1)
    group = np.empty_like(order)
    np.put_along_axis(group, order, place, axis=1)
    return group, order
