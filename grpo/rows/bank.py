"""A bank of simulator states: what a training row's integer id stands for.

All states of a bank are padded to common `Dims`; each belongs to one of the P campaigns of a stack of `Params`. Banks
are plain data, NumPy arrays with a leading axis R = rows, and are kept as NPZ files without pickles.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import actions, check, env
from jaxsim.noise import Noise
from jaxsim.one_episode import episode_keys, start, tick_noise
from jaxsim.policies import Policy
from jaxsim.types import RUNNING, Dims, Observation, Params, State
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc.write import whole

FORMAT = "jaxsim-soc state bank 3"
BLOCK = 64  # episodes, or rows, of a program at once: whatever their number, few programs are compiled
SLOTS = 16  # the same of snapshots, where there are several
CHOICE = 2**31 - 1  # folded into an episode's key for the choice of ticks; no tick is so late
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Bank(NamedTuple):
    """R states before a decision of the defender's. NumPy arrays."""

    state: State  # leaves (R, ...)
    params_index: Array  # (R,) int32, campaign of each, 0..P-1
    episode: Array  # (R,) int32, number of the episode within its campaign
    action: Array  # (R,) int32, what was done there, an index into the action table or -1


# --- plain operations -----------------------------------------------------------------------------------------------


def stack(params: Sequence[Params]) -> Params:
    """Parameters of several campaigns as one, leading axis P. Raises ValueError for none and for other paddings."""
    if not params:
        raise ValueError("params are empty; give those of at least one campaign")
    for i, one in enumerate(params):
        for (path, a), b in zip(jax.tree.leaves_with_path(params[0]), jax.tree.leaves(one), strict=True):
            if np.shape(a) != np.shape(b):
                raise ValueError(
                    f"params[{i}]{jax.tree_util.keystr(path)} has shape {np.shape(b)}, params[0] has {np.shape(a)}; "
                    "make all of them with the same dims"
                )
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *params)


def take(bank: Bank, rows: Array) -> Bank:
    """The given rows, (n,) indices or an (R,) bool mask."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], bank)


def concatenate(banks: Sequence[Bank]) -> Bank:
    """All rows one after the other. Raises ValueError for no bank and for banks of different dims."""
    if not banks:
        raise ValueError("banks are empty; give at least one")
    for i, bank in enumerate(banks):
        for a, b in zip(jax.tree.leaves(banks[0]), jax.tree.leaves(bank), strict=True):
            if np.shape(a)[1:] != np.shape(b)[1:]:
                raise ValueError(f"banks[{i}] is padded to other dims than banks[0]; collect both with the same dims")
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(y) for y in x]), *banks)


@partial(jax.jit, static_argnums=0)
def _observe(dims: Dims, params: Params, state: State, index: Array) -> Observation:
    return jax.vmap(lambda s, p: env.observe(dims, s, jax.tree.map(lambda x: x[p], params)))(state, index)


def blocks(many: int) -> Array:
    """(B, BLOCK) int32, the numbers of so many episodes or rows; the last one again as often as it takes to fill up."""
    return np.minimum(np.arange(-(-many // BLOCK) * BLOCK, dtype=np.int32), many - 1).reshape(-1, BLOCK)


def observe(dims: Dims, params: Params, bank: Bank) -> Observation:
    """What the defender sees in each row; NumPy arrays, leaves (R, ...). `params` has leading axis P."""
    many = len(bank.params_index)
    filled = take(bank, blocks(many).ravel())
    found = _observe(dims, params, filled.state, filled.params_index)
    return jax.tree.map(lambda x: np.asarray(x)[:many], found)


# --- what cannot be told apart --------------------------------------------------------------------------------------


class Groups(NamedTuple):
    """Which rows show the same, and which of their actions correspond. NumPy arrays."""

    group: Array  # (R,) int32, rows of the same number show the same
    slot: Array  # (R, A) int32, actions of a group with the same number correspond; -1 for one that is not legal


def groups(dims: Dims, params: Params, bank: Bank, *, campaign: Array | None = None, digits: int = 1) -> Groups:
    """Group rows by what the defender sees, up to names and order of the entities.

    Two rows are of one group when tick, alerts and forensic results in view, their ages and severities or confidences
    to `digits` decimals, and the controls and confirmations on every entity are the same, once the entities that alerts
    or results name are numbered by first appearance. All others are told apart by kind, value and marks only. Where
    the rules do not deal the roles anew each episode, an entity's place in the list matters as well, and where they may
    deal them among those alike, its group does. `campaign`, (P,) numbers, equal for params that differ only in the
    order of their entities; by default all campaigns differ.
    """
    number = np.arange(len(params.personality_weights)) if campaign is None else np.asarray(campaign)
    obs, rules = observe(dims, params, bank), params.rules
    anew, alike = (np.asarray(x)[:, None] for x in (rules.unknown_path, rules.believable_paths > 0))
    listed = np.arange(dims.entities)
    place = np.where(anew, np.where(alike, params.scenario.group, -1), listed).tolist()
    verbs, entities = (x.tolist() for x in actions.table(dims))
    group_of: dict[Any, int] = {}
    slot_of: dict[Any, int] = {}
    group = np.zeros(len(bank.params_index), np.int32)
    slot = np.full((len(group), dims.actions), -1, np.int32)
    for r, p in enumerate(bank.params_index.tolist()):
        shown, names = _canonical(dims, jax.tree.map(lambda x, r=r: x[r].tolist(), obs), place[p], digits)
        group[r] = group_of.setdefault((int(number[p]), shown), len(group_of))
        for a, (verb, entity) in enumerate(zip(verbs, entities, strict=True)):
            if entity < 0 or entity in names:
                slot[r, a] = slot_of.setdefault((verb, names.get(entity)), len(slot_of))
    return Groups(group, slot)


def _canonical(dims: Dims, obs: Observation, place: list[int], digits: int) -> tuple[Any, dict[int, Any]]:
    """(what a row shows, hashable; a name for each entity that exists). `obs` holds lists and numbers of one row."""
    looks = {
        e: (e >= dims.assets, round(obs.value[e], 6), tuple(row[e] for row in obs.marks), place[e])
        for e in range(dims.entities)
        if obs.exists[e]
    }
    names: dict[int, Any] = {-1: -1}

    def named(entity: int) -> int:
        return names.setdefault(entity, len(names) - 1)

    def listed(ring: Any) -> list[Any]:
        return [event[1:] for event in sorted(zip(*ring, strict=True)) if event[0] >= 0]

    alerts = [
        (signal, named(asset), named(identity), round(severity, digits), obs.tick - tick)
        for signal, asset, identity, severity, tick in listed(obs.alerts)
    ]
    results = [
        (named(entity), verdict, round(confidence, digits), obs.tick - tick)
        for entity, verdict, confidence, tick in listed(obs.forensics)
    ]
    first = [looks[e] for e in names if e >= 0]
    others = {e: look for e, look in looks.items() if e not in names}
    shown = (obs.tick, obs.personality, tuple(alerts), tuple(results), tuple(first), tuple(sorted(others.values())))
    return shown, {**{e: n for e, n in names.items() if e >= 0}, **others}


# --- collecting -----------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("dims", "policy", "slots"))
def _collect(
    dims: Dims, policy: Policy, slots: int, parameters: Any, params: Params, keys: Array, snapshots: Array
) -> tuple[State, Array, Array]:
    """States (P, E, slots, ...) and actions there; how many ticks each was chosen from, 0 for none.

    The first () int32 `snapshots` of the slots are used.
    """

    def begin(params: Params, key: Array) -> Any:
        state = start(dims, key, params)
        kept = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (slots, *x.shape)), state)
        none = jnp.zeros(slots, jnp.int32)
        return state, policy.init(dims, parameters), kept, none, none

    def tick(params: Params, key: Array, carry: Any) -> Any:
        state, memory, kept, chosen, seen = carry
        block, obs = tick_noise(key, state.tick + 1), env.observe(dims, state, params)
        shown = (obs, state) if policy.privileged else obs
        action, memory = policy.act(dims, parameters, memory, shown, block[Noise.POLICY_VERB :])

        # Reservoir sampling: each live tick is kept with the same chance, whenever the episode ends. Snapshot s
        # chooses among the ticks s, s + snapshots, ..., so that no state is kept twice.
        mine = (np.arange(slots, dtype=np.int32) == state.tick % snapshots) & (state.end == RUNNING)
        seen += mine.astype(jnp.int32)
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, CHOICE), state.tick), (), jnp.float32)
        keep = mine & (u * seen.astype(jnp.float32) < 1.0)
        kept = jax.tree.map(lambda old, new: jnp.where(keep.reshape(-1, *[1] * new.ndim), new[None], old), kept, state)
        after, _ = env.transition(dims, state, action, block, params)
        return after, memory, kept, jnp.where(keep, action, chosen), seen

    carry = jax.vmap(jax.vmap(begin, (None, 0)))(params, keys)
    step = jax.vmap(jax.vmap(tick, (None, 0, 0)))
    carry = jax.lax.while_loop(lambda c: jnp.any(c[0].end == RUNNING), lambda c: step(params, keys, c), carry)
    _, _, kept, chosen, seen = carry
    return kept, chosen, seen


def collect_heuristic(
    env_: env.Env, params: Params, policy: Policy, parameters: Any, key: Array, episodes: int, snapshots: int = 1
) -> Bank:
    """States from a scripted policy's play: `episodes` of each campaign, `snapshots` different live ticks of each.

    `params` has leading axis P; `parameters` is the policy's own pytree, see `policies.BASELINES`. The ticks are drawn
    from `key`, uniformly over an episode (with several snapshots, over as many interleaved parts of it). So there are
    P x episodes x snapshots rows, campaigns one after the other; fewer only where an episode ended before a snapshot's
    first tick. Raises ValueError for a count below 1.
    """
    for name, count in (("episodes", episodes), ("snapshots", snapshots)):
        if count < 1:
            raise ValueError(f"{name} = {count} is too few; give at least 1")
    check.key("key", key)
    check.parameters("parameters", parameters)
    campaigns = len(params.personality_weights)
    keys = jnp.stack([episode_keys(jax.random.fold_in(key, p), episodes) for p in range(campaigns)])
    slots = 1 if snapshots == 1 else -(-snapshots // SLOTS) * SLOTS
    program = partial(_collect, env_.dims, policy, slots, jax.tree.map(jnp.asarray, parameters), params)
    parts = [jax.tree.map(np.asarray, program(keys[:, some], np.int32(snapshots))) for some in blocks(episodes)]
    found = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :episodes], *parts)
    state, action, seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), found)
    place = np.indices((campaigns, episodes, slots), np.int32)
    return take(Bank(state, place[0].ravel(), place[1].ravel(), action), np.flatnonzero(seen))


# --- files ----------------------------------------------------------------------------------------------------------


def _digests(params: Params) -> list[str]:
    """A hash of each campaign's scenario and rules: what a state means hangs on these, not on the reward."""
    leaves = [np.asarray(x) for x in jax.tree.leaves((params.scenario, params.rules))]
    return [hashlib.sha256(b"".join(x[p].tobytes() for x in leaves)).hexdigest() for p in range(len(leaves[0]))]


def _names(bank: Bank) -> list[str]:
    return [jax.tree_util.keystr(path).lstrip(".") for path, _ in jax.tree.leaves_with_path(bank)]


def save(path: str | os.PathLike[str], bank: Bank, dims: Dims, params: Params) -> None:
    """Write a bank as NPZ, whole or not at all: on any failure, `path` stays as it was. `params` has leading axis P."""
    path = Path(path)
    arrays = dict(zip(_names(bank), map(np.asarray, jax.tree.leaves(bank)), strict=True))
    about = {"format": FORMAT, "simulator_version": SIMULATOR_VERSION, "dims": dims, "params_digest": _digests(params)}
    everything = {**arrays, **{k: np.asarray(v) for k, v in about.items()}}
    whole(path, lambda file: np.savez_compressed(file, allow_pickle=False, **everything))


def load(path: str | os.PathLike[str], dims: Dims, params: Params) -> Bank:
    """Read a bank that was saved for these `dims` and these campaigns, `params` with leading axis P.

    Raises ValueError, naming file, field, value and remedy, for a file that is damaged, is of another simulator, of
    other dims or campaigns, or holds what no bank can. The reward may differ from the one at saving.
    """
    remedy = "collect the bank again"
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (*_UNREADABLE, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable bank ({' '.join(str(error).split()):.120}); {remedy}") from None
    wanted = {"format": FORMAT, "simulator_version": SIMULATOR_VERSION, "dims": list(dims)}
    for field, value in {**wanted, "params_digest": _digests(params)}.items():
        got = found[field].tolist() if field in found else None
        if got != value:
            raise ValueError(f"{path}: {field} = {got!r:.100}, but {value!r:.100} is wanted; {remedy} or load it so")

    key, first = jax.random.key(0), jax.tree.map(lambda x: x[0], params)
    number = np.zeros((), np.int32)
    shapes = Bank(jax.eval_shape(lambda: env.reset(dims, key, first)), number, number, number)
    leaves = dict(zip(_names(shapes), jax.tree.leaves(shapes), strict=True))
    rows = len(np.atleast_1d(found.get("action", number)))
    for name, leaf in sorted(leaves.items()):  # "action" comes first
        x, shape = found.get(name), (rows, *leaf.shape)
        if x is None or x.shape != shape or x.dtype != leaf.dtype:
            got = "missing" if x is None else f"of shape {x.shape} and {x.dtype}"
            raise ValueError(f"{path}: {name} is {got}, but {shape} and {leaf.dtype} are wanted; {remedy}")
    bank: Bank = jax.tree.unflatten(jax.tree.structure(shapes), [found[name] for name in leaves])
    _check(path, bank, dims, params)
    return bank


def _check(path: str | os.PathLike[str], bank: Bank, dims: Dims, params: Params) -> None:
    """Raise ValueError for the first number that is out of its range, so that no index of the simulator's is."""
    state, campaigns = bank.state, len(params.personality_weights)
    spans: dict[str, tuple[Array, int, int]] = {
        "params_index": (bank.params_index, 0, campaigns - 1),
        "episode": (bank.episode, 0, 2**31 - 1),
        "action": (bank.action, -1, dims.actions - 1),
        "state.end": (state.end, RUNNING, RUNNING),
        "state.tick": (state.tick, 0, 2**31 - 1),
        "state.targets": (state.targets, -1, dims.entities - 1),
        "state.stage": (state.stage, -1, dims.stages - 1),
        "state.forensics.entity": (state.forensics.entity, 0, dims.entities - 1),
    }
    for name, (values, low, high) in spans.items():
        wrong = values[(values < low) | (values > high)]
        if wrong.size:
            raise ValueError(f"{path}: {name} = {wrong[0]} is not in {low}..{high}; collect the bank again")
    late = state.tick >= np.asarray(params.scenario.horizon)[bank.params_index]
    if late.any():
        raise ValueError(f"{path}: state.tick = {state.tick[late][0]} is past the horizon; collect the bank again")
    for name, leaf in zip(_names(bank), jax.tree.leaves(bank), strict=True):
        if leaf.dtype == np.float32 and not np.isfinite(leaf).all():
            raise ValueError(f"{path}: {name} holds a number that is not finite; collect the bank again")
