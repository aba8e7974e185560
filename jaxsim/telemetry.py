"""Alerts: raised by stages with a lag, joined by background noise, kept in a ring of the last K.

An alert's signal and entities are packed into one int32, so that moving an alert moves two words (code, severity).
"""

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim.attacker import Started
from jaxsim.noise import Noise, integer
from jaxsim.types import AlertRing, Alerts, Dims, Params, Pending, State

ENTITY_BITS = 14
MAX_OF_A_KIND = 2**ENTITY_BITS - 1  # assets, and identities; one code is kept for "none"
SIGNALS = 5


def pack(dims: Dims, signal: Array, asset: Array, identity: Array) -> Array:
    """Alert code, int32, of a signal, an asset entity or -1, and an identity entity or -1. NumPy or JAX arrays."""
    identity = jnp.maximum(identity - dims.assets + 1, 0)  # 0 for none
    return signal | ((asset + 1) << 3) | (identity << (3 + ENTITY_BITS))


def unpack(dims: Dims, code: Array) -> tuple[Array, Array, Array]:
    """(signal, asset entity or -1, identity entity or -1) of an alert code."""
    mask = 2**ENTITY_BITS - 1
    identity = (code >> (3 + ENTITY_BITS)) & mask
    return code & 7, ((code >> 3) & mask) - 1, jnp.where(identity > 0, identity + (dims.assets - 1), -1)


def raise_alerts(dims: Dims, state: State, started: Started, noise: Array, params: Params) -> Pending:
    """Put the 0 to 2 alerts of a stage that just started among those in flight. A finished state starts none."""
    scenario, k = params.scenario, started.stage
    strength = jnp.clip(scenario.stage_detection[k] * state.personality.detection, 0.0, 1.0)
    block = noise[Noise.ALERT_1 : Noise.SEVERITY_2 + 1].reshape(2, 3)
    fires = started.any & (block[:, 0] < strength)
    lag = integer(block[:, 1], scenario.stage_lag[k, 0], scenario.stage_lag[k, 1])
    new = Pending(
        code=pack(dims, scenario.stage_signal[k], state.targets[0, k], state.targets[1, k]),
        due=jnp.where(fires, state.tick + jnp.maximum(lag, 1), 0),
        severity=shown_severity(strength, block[:, 2]),
    )
    # What lay in the row, of L ticks ago, has become visible: no lag exceeds L.
    rows = len(state.pending.code)
    row = jnp.where(started.any, state.tick % rows, rows)
    return Pending(*(old.at[row].set(n, mode="drop") for n, old in zip(new, state.pending, strict=True)))


def background(dims: Dims, state: State, live: Array, noise: Array, params: Params) -> tuple[Array, Array, Array]:
    """Step 4: (fires () bool, code, severity) of the tick's background alert, or of benign activity."""
    scenario = params.scenario
    u, rate = noise[Noise.BACKGROUND], scenario.noise_rate
    fires = live & (u < rate)
    zero = jnp.zeros((), jnp.int32)
    signal = integer(u / jnp.where(fires, rate, 1.0), zero, zero + (SIGNALS - 1))

    share = params.rules.background_named
    named = noise[Noise.BACKGROUND_ENTITY] < share
    v = noise[Noise.BACKGROUND_ENTITY] / jnp.where(named, share, 1.0)
    # Some name two; of the others half an asset and half an identity, all one kind where there is none of the other.
    both = (scenario.asset_count > 0) & (scenario.identity_count > 0)
    two = jnp.where(both, params.rules.background_paired, 0.0)
    paired = v < two
    w = 2.0 * (v - two) / (1.0 - jnp.where(paired, 0.0, two))
    is_asset = (w < 1.0) & (scenario.asset_count > 0) | (scenario.identity_count == 0)
    count = jnp.where(is_asset, scenario.asset_count, scenario.identity_count)
    count = jnp.where(paired, scenario.asset_count * scenario.identity_count, count)
    within = jnp.where(paired, v / jnp.where(paired, two, 1.0), jnp.where(w < 1.0, w, w - 1.0))
    index = integer(within, zero, count - 1)
    each = jnp.where(paired, scenario.identity_count, 1)  # pairs of an asset
    asset = jnp.where(named & (paired | is_asset), index // each, -1)
    identity = jnp.where(named & (paired | ~is_asset), jnp.where(paired, index % each, index) + dims.assets, -1)
    code = pack(dims, signal, asset, identity)
    least, most = params.rules.background_severity[0], params.rules.background_severity[1]
    severity = least + noise[Noise.BACKGROUND_SEVERITY] * (most - least)

    # The draw that fires no background alert picks a benign activity, or none: [rate, 1) is cut up among them.
    edge = rate
    for b in range(dims.benign):
        column = dims.stages + b
        this = live & (u >= edge) & (u < edge + scenario.benign_rate[b])
        edge = edge + scenario.benign_rate[b]
        its_code = pack(dims, scenario.benign_signal[b], state.targets[0, column], state.targets[1, column])
        its_severity = shown_severity(scenario.benign_strength[b], noise[Noise.BACKGROUND_SEVERITY])
        fires, code, severity = fires | this, jnp.where(this, its_code, code), jnp.where(this, its_severity, severity)
    return fires, code, severity


def shown_severity(strength: Array, u: Array) -> Array:
    """Severity of an alert of activity of a strength, from a uniform."""
    return jnp.clip(strength + (u * 0.35 - 0.15), 0.05, 1.0)


def surface(dims: Dims, state: State, live: Array, extra: tuple[Array, Array, Array]) -> AlertRing:
    """Sub-step 3a: move the alerts whose time has come to the ring, oldest start first, then `extra`, the background.

    Unrolled over the alerts in flight: each is a mask over the ring's slots, which costs less than a scatter.
    """
    ring, pending, size = state.alerts, state.pending, dims.alerts
    places = [(row, i) for row in range(dims.max_lag) for i in (0, 1)]
    due = [live & (pending.due[place] == state.tick) for place in places]
    before = [jnp.zeros((), jnp.int32)]
    for d in due:
        before.append(before[-1] + d.astype(jnp.int32))
    staged = before.pop()
    count = ring.count + staged + extra[0].astype(jnp.int32)

    # The rows lie in order of start from this tick's row to the last, then from the first on.
    oldest = 2 * (state.tick % dims.max_lag)
    skipped = sum((d & (k < oldest)).astype(jnp.int32) for k, d in enumerate(due))
    ranks = [b - skipped + jnp.where(k < oldest, staged, 0) for k, b in enumerate(before)]
    events = [(d, r, pending.code[p[0]], pending.severity[p]) for d, r, p in zip(due, ranks, places, strict=True)]
    # Whom each slot waits for, by rank; below 0 is what it has already.
    awaited = ring_numbers(count, size) - ring.count
    code, severity = ring.code, ring.severity
    for arrives, rank, its_code, its_severity in [*events, (extra[0], staged, extra[1], extra[2])]:
        takes = arrives & (awaited == rank)
        code = jnp.where(takes, its_code, code)
        severity = jnp.where(takes, its_severity, severity)
    return AlertRing(code, severity, jnp.where(awaited >= 0, state.tick, ring.tick), count)


def view(dims: Dims, ring: AlertRing) -> Alerts:
    """What the defender sees of the ring."""
    signal, asset, identity = unpack(dims, ring.code)
    return Alerts(ring_numbers(ring.count, dims.alerts), signal, asset, identity, ring.severity, ring.tick)


def ring_numbers(count: Array, size: int) -> Array:
    """(size,) int32 arrival number of what lies in each slot of a ring after `count` arrivals, -1 if nothing."""
    newest = count - 1
    return jnp.maximum(newest - (newest - np.arange(size, dtype=np.int32)) % size, -1)
