"""Networks and attack campaigns drawn at random, thousands a second: the tables, the arrays, `draw`. NumPy only.

    >>> from scenarios.networks import draw
    >>> networks = draw(range(1000), entities=20)  # arrays, for jaxsim.generated

Each network depends on its (seed, entities, split) and on nothing else, whatever is drawn beside it. What there is, and
what of it is attacked, are independent draws: names, kinds and values say nothing of the attack.

The stages go in five layers, from entry to exfil. A plain stage may start after any one of two or more plain stages of
earlier layers, so that there is a way round any single stage; a joint stage, which needs all of one or two stages, is
one more way to a plain stage. Stages are listed from the goal back: an attacker that takes the first stage that can
start goes as deep as it can.

Letters: K networks, A assets, I identities, S stages, B benign activities, each the most of the batch; what is beyond a
network's own count is padding.
"""

import operator
from collections.abc import Sequence
from enum import IntEnum, auto
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scenarios.model import DEFAULT_SIGNALS, SIGNALS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Group = tuple[
    Integers, Integers, Integers
]  # of assets or identities: (K, most) random order, (K,) count, (K,) most named

SPLITS = ("train", "held_out")
MIN_ENTITIES, MAX_ENTITIES = 10, 10_000
MAX_SEED = 2**63 - 1
HORIZON = 70  # ticks

ENTRY, CREDENTIAL, LATERAL, COLLECTION, EXFIL = range(5)
LAYERS = ("entry", "credential", "lateral", "collection", "exfil")
# ATT&CK tactic and techniques of each layer; all layers have as many.
TECHNIQUES = tuple(
    tuple((tactic, technique) for tactic, row in rows.items() for technique in row.split())
    for rows in (
        {"TA0001": "T1190 T1133 T1078.004 T1566.002 T1199"},
        {"TA0006": "T1528 T1552.001 T1003", "TA0002": "T1059 T1610"},
        {"TA0008": "T1021.004 T1021.007 T1072 T1550.001 T1210"},
        {"TA0009": "T1213.006 T1530 T1005 T1213.003 T1074"},
        {"TA0010": "T1041 T1048.003 T1567.002 T1537 T1020"},
    )
)
# The signal of each layer's techniques, index into SIGNALS.
_SIGNALS = np.asarray([[SIGNALS.index(DEFAULT_SIGNALS[tactic]) for tactic, _ in row] for row in TECHNIQUES])

# Ranges of each layer, inclusive, as in the published campaigns.
_DWELL_LOW = np.asarray([(2, 3), (3, 5), (5, 7), (4, 6), (2, 2)])  # ticks
_DWELL_SPAN = np.asarray([(3, 4), (4, 5), (5, 7), (5, 6), (3, 4)])  # ticks, high end less low end
_LAG_LOW = np.asarray([(2, 3), (1, 2), (1, 2), (2, 3), (0, 0)])  # ticks
_LAG_SPAN = np.asarray([(3, 4), (2, 4), (3, 3), (3, 4), (2, 2)])  # ticks
_SUCCESS = np.asarray([(0.90, 0.95), (0.70, 0.85), (0.65, 0.85), (0.80, 0.85), (0.90, 0.90)])
_DETECTION = np.asarray([(0.20, 0.30), (0.40, 0.55), (0.40, 0.60), (0.40, 0.55), (0.65, 0.70)])

SEGMENTS = (
    *("edge", "office", "prod", "build", "data", "core", "stage", "saas", "backup"),
    *("dev", "partner", "branch", "plant", "lab", "payments", "archive", "voice", "guest"),
)
# Share, and range of criticality or privilege.
_KINDS = {
    "service": (0.35, 0.40, 0.95),
    "workstation": (0.25, 0.10, 0.40),
    "datastore": (0.20, 0.60, 0.95),
    "repo": (0.08, 0.50, 0.90),
    "gateway": (0.07, 0.40, 0.85),
    "directory": (0.05, 0.80, 0.95),
}
_ROLES = {
    "service-principal": (0.40, 0.30, 0.95),
    "engineer": (0.20, 0.40, 0.85),
    "analyst": (0.15, 0.20, 0.50),
    "operator": (0.10, 0.40, 0.70),
    "executive": (0.08, 0.60, 0.90),
    "admin": (0.07, 0.70, 0.95),
}
KINDS, ROLES = tuple(_KINDS), tuple(_ROLES)
JOBS = ("deploy", "backup", "payments", "reports", "sync", "monitor", "build", "mail")  # of service principals
TEAMS = ("finance", "sales", "hr", "platform", "data", "support", "legal", "it")  # of people; as many as jobs

# Benign activities: name, signal, and whether their alerts name an asset and an identity.
BENIGN = (
    ("Nightly backup", "data_staging", True, False),
    ("Data export for analysts", "data_staging", True, True),
    ("Software rollout", "lateral_movement", True, True),
    ("Vulnerability scan", "lateral_movement", True, False),
    ("Report upload to a partner", "egress_anomaly", True, False),
    ("Log shipping", "egress_anomaly", True, False),
    ("Sign-ins while travelling", "auth_anomaly", False, True),
    ("Batch job sign-ins", "auth_anomaly", True, True),
)
BENIGN_SIGNALS = np.asarray([SIGNALS.index(row[1]) for row in BENIGN])
_BENIGN_NAMES = np.asarray([row[2:] for row in BENIGN])

# Least and most stages by the logarithm of the number of entities.
_LOG_ENTITIES = np.log10([10, 20, 1000])
_LEAST_STAGES, _MOST_STAGES = (6, 8, 20), (6, 10, 24)
_UNHURRIED = 10  # stages; with more, dwell times shrink


class Networks(NamedTuple):
    """Networks and campaigns as arrays; an index is of the network's own assets, identities or stages, -1 for none."""

    seed: Words  # (K,)
    held_out: Bools  # (K,)
    noise_rate: Floats  # (K,) background alerts per tick
    asset_count: Integers  # (K,)
    identity_count: Integers  # (K,)
    stage_count: Integers  # (K,)
    benign_count: Integers  # (K,)
    criticality: Floats  # (K, A) 0..1
    kind: Integers  # (K, A) index into KINDS
    segment: Integers  # (K, A) index into SEGMENTS
    privilege: Floats  # (K, I) 0..1
    role: Integers  # (K, I) index into ROLES
    team: Integers  # (K, I) index into JOBS of a service principal, into TEAMS of a person
    layer: Integers  # (K, S) index into LAYERS, -1 for padding
    technique: Integers  # (K, S) index into TECHNIQUES of the layer
    signal: Integers  # (K, S) index into SIGNALS
    asset: Integers  # (K, S) asset or -1
    identity: Integers  # (K, S) identity or -1
    dwell: Integers  # (K, S, 2) ticks, inclusive range
    success: Floats  # (K, S) probability
    detection: Floats  # (K, S) probability
    lag: Integers  # (K, S, 2) ticks, inclusive range
    compromises: Bools  # (K, S, 2) its asset, its identity
    required: Bools  # (K, S, S) [i, j]: stage j needs stage i
    options: Bools  # (K, S, S) [i, j]: stage j needs stage i or another of its options
    benign: Integers  # (K, B) index into BENIGN
    benign_asset: Integers  # (K, B) asset or -1
    benign_identity: Integers  # (K, B) identity or -1
    benign_rate: Floats  # (K, B) alerts per tick
    benign_strength: Floats  # (K, B) 0..1


# --- randomness -----------------------------------------------------------------------------------------------------


class _Field(IntEnum):
    """What a draw is for. A new one goes to the end, or every network changes."""

    STAGES = auto()
    ENTRIES = auto()
    EXFILS = auto()
    KIND = auto()
    CRITICALITY = auto()
    SEGMENT = auto()
    ROLE = auto()
    PRIVILEGE = auto()
    TEAM = auto()
    TECHNIQUE = auto()
    JOINT = auto()
    NEEDS_ALL = auto()
    SKIPS = auto()
    BEFORE = auto()
    AFTER = auto()
    TARGETS = auto()
    ASSET_ORDER = auto()
    IDENTITY_ORDER = auto()
    DWELL_LOW = auto()
    DWELL_SPAN = auto()
    LAG_LOW = auto()
    LAG_SPAN = auto()
    SUCCESS = auto()
    DETECTION = auto()
    COMPROMISES_ASSET = auto()
    COMPROMISES_IDENTITY = auto()
    NOISE_RATE = auto()
    BENIGN_COUNT = auto()
    BENIGN_ORDER = auto()
    BENIGN_ASSET = auto()
    BENIGN_IDENTITY = auto()
    BENIGN_TOTAL = auto()
    BENIGN_SHARE = auto()
    BENIGN_STRENGTH = auto()


_COLUMN_BITS = 20
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_PAIR = 32  # of stages i and j: column 32 i + j


def _mix(x: Words) -> Words:
    """The 64-bit finaliser of MurmurHash3 (Appleby, public domain): a bijection whose output bits are all alike."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def _keys(seeds: Words, entities: Integers, split: int) -> Words:
    """(K, 1) keys. For any one size no two pairs of seed and split have the same key: each step is a bijection."""
    key = _mix(seeds * np.uint64(len(SPLITS)) + np.uint64(split))
    return _mix(key + _WEYL * entities.astype(np.uint64))[:, None]


def _words(keys: Words, field: _Field, columns: Integers | range) -> Words:
    """(K, columns) random words: a hash of key, field and column, so that padding changes nothing."""
    counter = np.asarray(columns, np.uint64) + np.uint64(field << _COLUMN_BITS)
    return _mix(keys + _WEYL * counter)


def _unit(keys: Words, field: _Field, columns: Integers | range = range(1)) -> Floats:
    """(K, columns) uniforms in [0, 1)."""
    return (_words(keys, field, columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _integer(u: Floats, low: ArrayLike, high: ArrayLike) -> Integers:
    """Uniform integers in [low, high] from uniforms in [0, 1)."""
    low, high = np.asarray(low), np.asarray(high)
    return low + np.floor(u * (high - low + 1)).astype(np.int64)


def _decimal(u: Floats, bounds: Floats, digits: int = 2) -> Floats:
    """Uniform in bounds[..., 0] to bounds[..., 1], rounded so that files are short."""
    value: Floats = bounds[..., 0] + u * (bounds[..., 1] - bounds[..., 0])
    return value.round(digits)


def _shuffled(keys: Words, field: _Field, counts: Integers) -> Integers:
    """(K, most) a random permutation of 0..count-1 in each row, padding behind it."""
    columns = np.arange(counts.max())
    words = _words(keys, field, columns)
    return np.argsort(np.where(columns < counts[:, None], words, np.iinfo(np.uint64).max), axis=1, kind="stable")


def _largest(score: Floats, counts: Integers | int, axis: int) -> Bools:
    """Mask of the `counts` largest scores along an axis, -inf never among them."""
    rank = np.argsort(np.argsort(-score, axis=axis, kind="stable"), axis=axis, kind="stable")
    return (rank < counts) & (score > -np.inf)


# --- networks -------------------------------------------------------------------------------------------------------


def draw(seeds: Sequence[int] | NDArray[Any], entities: ArrayLike, split: str = "train") -> Networks:
    """One network for each seed, 0 to 2**63 - 1, of 10 to 10,000 entities each (one number, or one for each seed).

    Memory goes with the number of seeds times the most entities. Raises ValueError for what is out of range.
    """
    keys, size, seed = _checked(seeds, entities, split)
    assets = (6 * size + 5) // 10
    identities = size - assets
    inventory = _inventory(keys, size, assets, identities)
    layer, stages = _layers(keys, size)
    required, options = _graph(keys, layer)
    technique = _integer(_unit(keys, _Field.TECHNIQUE, range(layer.shape[1])), 0, len(TECHNIQUES[0]) - 1)
    # At least a third of each kind are decoys.
    assets_of = (_shuffled(keys, _Field.ASSET_ORDER, assets), assets, 2 * assets // 3)
    identities_of = (_shuffled(keys, _Field.IDENTITY_ORDER, identities), identities, 2 * identities // 3)
    asset, identity = _targets(keys, layer, assets_of, identities_of)
    return Networks(
        seed=seed,
        held_out=np.full(len(seed), split == "held_out"),
        noise_rate=_decimal(_unit(keys, _Field.NOISE_RATE)[:, 0], np.asarray((0.10, 0.20))),
        asset_count=assets,
        identity_count=identities,
        stage_count=stages,
        **inventory,
        layer=layer,
        technique=technique,
        signal=_SIGNALS[layer, technique],
        asset=asset,
        identity=identity,
        **_numbers(keys, layer, asset, identity),
        required=required,
        options=options,
        **_benign(keys, (assets_of, identities_of), (asset, identity)),
    )


def _checked(seeds: Sequence[int] | NDArray[Any], entities: ArrayLike, split: str) -> tuple[Words, Integers, Words]:
    """Keys (K, 1), numbers of entities (K,) and seeds (K,)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    given = [operator.index(seed) for seed in seeds]
    if not given:
        raise ValueError("there is no seed; give at least one")
    if min(given) < 0 or max(given) > MAX_SEED:
        raise ValueError(f"seed {min(given) if min(given) < 0 else max(given)} is not in 0..{MAX_SEED}")
    sizes = np.asarray(entities)
    if sizes.dtype.kind not in "iu" or sizes.shape not in ((), (len(given),)):
        raise ValueError(f"entities must be one whole number or {len(given)} of them, one for each seed")
    if sizes.min() < MIN_ENTITIES or sizes.max() > MAX_ENTITIES:
        wrong = sizes.min() if sizes.min() < MIN_ENTITIES else sizes.max()
        raise ValueError(f"entities = {wrong} is not in {MIN_ENTITIES}..{MAX_ENTITIES}")
    size = np.broadcast_to(sizes, len(given)).astype(np.int64)
    seed = np.asarray(given, np.uint64)
    return _keys(seed, size, SPLITS.index(split)), size, seed


def _inventory(keys: Words, size: Integers, assets: Integers, identities: Integers) -> dict[str, Any]:
    """Who and what there is."""
    a, i = range(assets.max()), range(identities.max())
    segments = np.clip(np.round(6 * np.log10(size)) - 3, 3, len(SEGMENTS))[:, None]
    kind, criticality = _sort_and_value(_unit(keys, _Field.KIND, a), _unit(keys, _Field.CRITICALITY, a), _KINDS)
    role, privilege = _sort_and_value(_unit(keys, _Field.ROLE, i), _unit(keys, _Field.PRIVILEGE, i), _ROLES)
    return {
        "kind": kind,
        "criticality": criticality,
        "segment": _integer(_unit(keys, _Field.SEGMENT, a), 0, segments - 1),
        "role": role,
        "privilege": privilege,
        "team": _integer(_unit(keys, _Field.TEAM, i), 0, len(TEAMS) - 1),
    }


def _sort_and_value(
    sort: Floats, value: Floats, table: dict[str, tuple[float, float, float]]
) -> tuple[Integers, Floats]:
    """Index into the table by its shares, and a number from that row's range; both as `sort`, from uniforms."""
    rows = np.asarray(list(table.values()))
    index = np.searchsorted(np.cumsum(rows[:-1, 0]), sort, side="right")
    return index, _decimal(value, rows[index, 1:])


def _layers(keys: Words, size: Integers) -> tuple[Integers, Integers]:
    """Layer of each stage, (K, S), and the number of stages, (K,)."""
    bounds = [np.round(np.interp(np.log10(size), _LOG_ENTITIES, ends)) for ends in (_LEAST_STAGES, _MOST_STAGES)]
    stages = _integer(_unit(keys, _Field.STAGES)[:, 0], *(b.astype(np.int64) for b in bounds))
    entries = _integer(_unit(keys, _Field.ENTRIES)[:, 0], 2, np.minimum(4, stages // 3))
    exfils = _integer(_unit(keys, _Field.EXFILS)[:, 0], np.maximum(1, stages // 12), np.maximum(1, stages // 8))
    j, between = np.arange(stages.max()), (stages - entries - exfils)[:, None]
    back = between - 1 - (j - exfils[:, None])  # place among the stages in between, the earliest 0
    layer = np.where(j < exfils[:, None], EXFIL, np.where(back < 0, ENTRY, CREDENTIAL + 3 * back // between))
    return np.where(j < stages[:, None], layer, -1), stages


def _graph(keys: Words, layer: Integers) -> tuple[Bools, Bools]:
    """Which stages a stage needs all of, and which it needs one of, (K, S, S) each.

    By induction over the layers every plain stage can be reached whichever single stage is left out: at least one of
    its two plain options is still there, and there are two entries.
    """
    s = layer.shape[1]
    exists, entry = layer >= 0, layer == ENTRY
    deep = (layer == LATERAL) | (layer == COLLECTION)
    count = np.maximum(1, (exists & ~entry & (layer != EXFIL)).sum(1, keepdims=True) // 4)
    joint = _largest(np.where(deep, _unit(keys, _Field.JOINT, range(s)), -np.inf), count, axis=1)
    plain = exists & ~joint
    j = np.arange(s)
    pairs = (_PAIR * j[:, None] + j).ravel()
    before, after = (_unit(keys, field, pairs).reshape(-1, s, s) for field in (_Field.BEFORE, _Field.AFTER))

    # Before a stage come plain ones of earlier layers: of the nearest layer, now and then of the one before it.
    earlier = (layer[:, :, None] < layer[:, None, :]) & exists[:, :, None] & exists[:, None, :]
    skips = (_unit(keys, _Field.SKIPS, range(s)) < 0.3) & (layer != EXFIL)
    score = layer[:, :, None] + before * np.where(skips, 1.5, 1.0)[:, None, :]
    score = np.where(earlier & plain[:, :, None], score, -np.inf)
    needed = np.where(joint, _integer(_unit(keys, _Field.NEEDS_ALL, range(s)), 1, 2), 0)[:, None, :]
    required = _largest(score, needed, axis=1)
    # A joint stage that needs one stage has options besides.
    options = _largest(score, np.where(needed == 2, 0, needed + 2), axis=1) & ~required

    # Every stage but exfil leads somewhere: to a plain stage of the nearest later layer.
    score = np.where(earlier & plain[:, None, :], after - layer[:, None, :], -np.inf)
    return required, options | _largest(score, 1, axis=2)


def _targets(keys: Words, layer: Integers, assets: Group, identities: Group) -> tuple[Integers, Integers]:
    """Asset and identity of each stage, (K, S): the first ones of the random orders, none for more than two stages."""
    u = _unit(keys, _Field.TARGETS, range(layer.shape[1]))
    exists, exfil = layer >= 0, layer == EXFIL
    on_asset = exists & (exfil | (u < 0.45) | (u >= 0.6))
    on_identity = exists & ~exfil & (u >= 0.45)
    (asset_order, _, asset_room), (identity_order, _, identity_room) = assets, identities
    # When no fresh identity is left the stage takes an asset; when no fresh asset is left, the identity alone will do.
    left = _rank(on_identity) < identity_room[:, None]
    on_asset, on_identity = on_asset | (on_identity & ~left), on_identity & left
    on_asset &= ~on_identity | (_rank(on_asset) < asset_room[:, None])
    asset = np.take_along_axis(asset_order, _rank(on_asset) % asset_room[:, None], axis=1)
    identity = np.take_along_axis(identity_order, _rank(on_identity) % identity_room[:, None], axis=1)
    return np.where(on_asset, asset, -1), np.where(on_identity, identity, -1)


def _rank(mask: Bools) -> Integers:
    """(K, S) how many come before each in its row, of those in the mask."""
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def _numbers(keys: Words, layer: Integers, asset: Integers, identity: Integers) -> dict[str, Any]:
    """What a stage takes, and what it leaves behind."""
    stages = range(layer.shape[1])

    def whole(low: Integers, span: Integers, fields: tuple[_Field, _Field]) -> Integers:
        """(K, S, 2) inclusive ranges."""
        first, more = (
            _integer(_unit(keys, field, stages), table[layer, 0], table[layer, 1])
            for table, field in zip((low, span), fields, strict=True)
        )
        return np.stack([first, first + more], axis=-1)

    # The more stages there are the less time each takes, or an attack on a large network would never end in time.
    pace = np.minimum(1, _UNHURRIED / (layer >= 0).sum(1))[:, None, None]
    dwell = whole(_DWELL_LOW, _DWELL_SPAN, (_Field.DWELL_LOW, _Field.DWELL_SPAN))
    takes_identity = (identity >= 0) & (_unit(keys, _Field.COMPROMISES_IDENTITY, stages) < 0.8)
    takes_asset = (asset >= 0) & (layer != EXFIL) & (_unit(keys, _Field.COMPROMISES_ASSET, stages) < 0.7)
    # A stage before exfil takes at least one of its targets, or an investigation could never find it.
    neither = ~takes_identity & ~takes_asset & (layer != EXFIL) & (layer >= 0)
    takes_asset |= neither & (asset >= 0)
    takes_identity |= neither & (asset < 0)
    return {
        "dwell": np.maximum(1, np.round(dwell * pace)).astype(np.int64),
        "lag": whole(_LAG_LOW, _LAG_SPAN, (_Field.LAG_LOW, _Field.LAG_SPAN)),
        "success": _decimal(_unit(keys, _Field.SUCCESS, stages), _SUCCESS[layer]),
        "detection": _decimal(_unit(keys, _Field.DETECTION, stages), _DETECTION[layer]),
        "compromises": np.stack([takes_asset, takes_identity], axis=-1),
    }


def _benign(keys: Words, groups: tuple[Group, Group], of_stages: tuple[Integers, Integers]) -> dict[str, Any]:
    """Benign activities, from the assets and identities there are, and those of each stage."""
    count = _integer(_unit(keys, _Field.BENIGN_COUNT)[:, 0], 2, 4)
    b = np.arange(count.max())
    exists = b < count[:, None]
    benign = _shuffled(keys, _Field.BENIGN_ORDER, np.full(len(keys), len(BENIGN)))[:, : len(b)]
    asset, identity = (
        np.where(exists & _BENIGN_NAMES[benign, i], _worked_on(_unit(keys, field, b), groups[i], of_stages[i]), -1)
        for i, field in enumerate((_Field.BENIGN_ASSET, _Field.BENIGN_IDENTITY))
    )
    share = np.where(exists, 0.5 + _unit(keys, _Field.BENIGN_SHARE, b), 0.0)
    total = 0.085 + 0.06 * _unit(keys, _Field.BENIGN_TOTAL)  # rounding stays within 0.08 to 0.15
    return {
        "benign_count": count,
        "benign": benign,
        "benign_asset": asset,
        "benign_identity": identity,
        "benign_rate": np.round(total * share / share.sum(1, keepdims=True), 3),
        "benign_strength": _decimal(_unit(keys, _Field.BENIGN_STRENGTH, b), np.asarray((0.3, 0.6))),
    }


def _worked_on(u: Floats, group: Group, of_stages: Integers) -> Integers:
    """(K, B) entities of benign activities: half of them some stage names, if there are such; the rest none does."""
    order, count, room = group
    named = np.minimum((of_stages >= 0).sum(1), room)[:, None]  # the first ones of the order
    half = u < 0.5
    w = np.where(half, 2 * u, 2 * u - 1)
    decoy = _integer(w, named, count[:, None] - 1)
    return np.take_along_axis(order, np.where(half & (named > 0), _integer(w, 0, named - 1), decoy), axis=1)
