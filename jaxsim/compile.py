"""Validated scenario -> arrays padded to `Dims`. NumPy only; nothing here is traced."""

from collections.abc import Sequence

import numpy as np

import scenarios
from jaxsim import check
from jaxsim.telemetry import MAX_OF_A_KIND
from jaxsim.types import Dims, ScenarioArrays


def dims_of(many: Sequence[scenarios.Scenario]) -> Dims:
    """The least sizes that hold all the given scenarios."""
    return Dims(
        assets=max(len(s.assets) for s in many),
        identities=max(len(s.identities) for s in many),
        stages=max(len(s.stages) for s in many),
        max_lag=max(1, max(stage.lag[1] for s in many for stage in s.stages)),
        benign=max(len(s.benign) for s in many),
    )


def check_dims(dims: Dims) -> Dims:
    """The sizes themselves. Raises ValueError for what are none."""
    check.kind("dims", dims, Dims, "Dims(assets=, identities=, stages=, max_lag=)")
    for field, value in dims._asdict().items():
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
    signal, exfil, compromises = np.zeros(s, np.int32), np.zeros(s, bool), np.zeros((s, 2), bool)
    required_by, option_of = np.zeros((s, s), bool), np.zeros((s, s), bool)
    for j, x in enumerate(scenario.stages):
        dwell[j], lag[j], success[j], detection[j] = x.dwell, x.lag, x.success, x.detection
        signal[j], exfil[j] = scenarios.SIGNALS.index(x.signal), x.exfil
        compromises[j] = x.compromises_asset, x.compromises_identity
        required_by[[stage[p] for p in x.prerequisites], j] = True
        option_of[[stage[p] for p in x.any_prerequisites], j] = True

    return ScenarioArrays(
        horizon=np.int32(scenario.horizon),
        noise_rate=np.float32(scenario.noise_rate),
        asset_count=np.int32(len(asset)),
        identity_count=np.int32(len(identity)),
        exists=exists,
        value=value,
        targets=targets,
        stage_exists=np.arange(s) < len(stage),
        stage_dwell=dwell,
        stage_success=success,
        stage_detection=detection,
        stage_lag=lag,
        stage_signal=signal,
        stage_exfil=exfil,
        stage_compromises=compromises,
        required_by=required_by,
        option_of=option_of,
        required=required_by.sum(0, dtype=np.int32),
        has_options=option_of.any(0),
        benign_rate=benign[0].astype(np.float32),
        benign_strength=benign[1].astype(np.float32),
        benign_signal=benign[2].astype(np.int32),
    )
