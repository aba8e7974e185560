"""Generated networks -> arrays padded to `Dims`, without a detour through scenarios. NumPy only; nothing is traced.

    networks = scenarios.networks.draw(range(1000), entities=20)
    dims = dims_of_networks(networks)
    arrays = compile_networks(networks, dims)

Row k is what `compile_scenario(scenario(networks, k), dims)` gives.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jaxsim import stages
from jaxsim.compile import check_sizes, grouped
from jaxsim.types import Dims, ScenarioArrays
from scenarios.networks import BENIGN_SIGNALS, EXFIL, HORIZON, SEGMENTS, Networks


def dims_of_networks(networks: Networks, restore: bool = False) -> Dims:
    """The least sizes that hold all the given networks; `restore`: see `rules.restores`."""
    return Dims(
        assets=int(networks.asset_count.max()),
        identities=int(networks.identity_count.max()),
        stages=int(networks.stage_count.max()),
        max_lag=max(1, int(np.where(networks.layer >= 0, networks.lag[..., 1], 0).max())),
        benign=int(networks.benign_count.max()),
        restore=restore,
    )


def compile_networks(networks: Networks, dims: Dims) -> ScenarioArrays:
    """Arrays of all the networks, leading axis K. Raises ScenarioError when one does not fit `dims`."""
    check_sizes("generated networks", dims_of_networks(networks), dims)
    n, a, s = networks, dims.assets, dims.stages
    here = [_within(n.asset_count, a), _within(n.identity_count, dims.identities)]
    stage, benign = _within(n.stage_count, s), _within(n.benign_count, dims.benign)

    def of_stages(values: NDArray[Any], dtype: DTypeLike, fill: float = 0) -> NDArray[Any]:
        """(K, S, ...) per stage, padded."""
        return _padded(values, stage, fill, dtype)

    def of_benign(values: NDArray[Any], dtype: DTypeLike, fill: float = 0) -> NDArray[Any]:
        """(K, B) per benign activity, padded."""
        return _padded(values, benign, fill, dtype)

    def graph(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(K, S, S), padded."""
        wide = np.zeros((len(edges), s, s), bool)
        most = min(s, edges.shape[1])
        wide[:, :most, :most] = edges[:, :most, :most]
        return wide

    values = [_padded(v, mask, 0, np.float32) for v, mask in zip((n.criticality, n.privilege), here, strict=True)]
    first = np.asarray([0, a])  # entity of the first asset and of the first identity
    named = [
        np.concatenate([of_stages(of_stage, np.int32, -1), of_benign(of_activity, np.int32, -1)], axis=1)
        for of_stage, of_activity in ((n.asset, n.benign_asset), (n.identity, n.benign_identity))
    ]
    targets = np.stack([np.where(x >= 0, x + f, -1) for x, f in zip(named, first, strict=True)], axis=1)
    kinds = np.where(_within(n.asset_count, n.kind.shape[1]), n.kind * len(SEGMENTS) + n.segment, -1)
    roles = np.where(_within(n.identity_count, n.role.shape[1]), n.role, -1)
    group, members = grouped(dims, kinds[:, :a], roles[:, : dims.identities])
    return ScenarioArrays(
        horizon=np.full(len(n.seed), HORIZON, np.int32),
        noise_rate=n.noise_rate.astype(np.float32),
        asset_count=n.asset_count.astype(np.int32),
        identity_count=n.identity_count.astype(np.int32),
        exists=np.concatenate(here, axis=1),
        value=np.concatenate(values, axis=1),
        group=group,
        members=members,
        targets=targets.astype(np.int32),
        stage_exists=stage,
        stage_dwell=of_stages(n.dwell, np.int32, 1),
        stage_success=of_stages(n.success, np.float32),
        stage_detection=of_stages(n.detection, np.float32),
        stage_lag=of_stages(n.lag, np.int32),
        stage_signal=of_stages(n.signal, np.int32),
        stage_exfil=of_stages(np.equal(n.layer, EXFIL), bool),
        stage_loss=of_stages(np.equal(n.layer, EXFIL), bool),
        stage_compromises=of_stages(n.compromises, bool),
        needs=stages.packed(graph(n.required).swapaxes(1, 2), np),
        options=stages.packed(graph(n.options).swapaxes(1, 2), np),
        benign_rate=of_benign(n.benign_rate, np.float32),
        benign_strength=of_benign(n.benign_strength, np.float32),
        benign_signal=of_benign(BENIGN_SIGNALS[n.benign], np.int32),
    )


def _within(count: NDArray[np.int64], room: int) -> NDArray[np.bool_]:
    """(K, room) mask of what exists."""
    return np.arange(room) < count[:, None]


def _padded(values: NDArray[Any], exists: NDArray[np.bool_], fill: float, dtype: DTypeLike) -> NDArray[Any]:
    """Columns of `values`, (K, any, ...), where `exists`, (K, room), and `fill` elsewhere: (K, room, ...)."""
    most = min(values.shape[1], exists.shape[1])
    wide = np.full((*exists.shape, *values.shape[2:]), fill, dtype)
    mask = exists[:, :most].reshape(len(values), most, *[1] * (values.ndim - 2))
    wide[:, :most] = np.where(mask, values[:, :most], fill)
    return wide
