"""What tells a reward that pays for reading and defending from one that pays for something else.

Every metric is a difference of mean returns over the same episodes, in points of reward r of the arena, or a share of
one. Intervals are 95 % percentile bootstrap over episodes, see `bootstrap`: paired, because both sides meet the same
luck. J(p) is the mean return of policy p.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import attacker, stages
from jaxsim.audit import rescore
from jaxsim.audit.arena import Arena, Candidate, returns_of
from jaxsim.audit.bootstrap import NONE, Estimate, estimate, resampled_means
from jaxsim.audit.rescore import CERTIFIED_EVG_NORM
from jaxsim.noise import Noise
from jaxsim.rollouts import CHANNELS, Batch, Change, rollout_many
from jaxsim.types import RUNNING, Dims, Params, RewardWeights, ScenarioArrays, State

WAYS = {name: (name,) for name in CHANNELS} | {"all": CHANNELS}  # to exchange observations
RELISTINGS = 4  # random orders of the entities
# Of a weight: 2^(1/16) apart, from a sixteenth to four times as much, and nothing at all.
FACTORS = (0.0, *(2.0 ** (np.delete(np.arange(-64, 33), 64) / 16)).tolist())
STEPS = 41  # values tried over its range for a weight that no factor moves


def _returns(arena: Arena, candidate: Candidate, keys: Array, r: int, shuffle: tuple[str, ...] = ()) -> np.ndarray:
    """(E,) returns of one policy."""
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], candidate.parameters)
    return returns_of(arena, candidate.policy, one, keys, shuffle)[0, :, r]


def _mean(samples: np.ndarray) -> Estimate:
    """Mean of (E,) samples."""
    return estimate(samples.mean(), resampled_means(samples[:, None], np.random.default_rng(0))[:, 0])


# --- does it read? --------------------------------------------------------------------------------------------------


def shuffle_drop(
    arena: Arena,
    candidate: Candidate,
    keys: Array,
    r: int,
    own: np.ndarray,
    idle: np.ndarray,
    ways: Mapping[str, tuple[str, ...]] = WAYS,
) -> dict[str, Estimate]:
    """Share of a policy's gain that is lost on another episode's observations: (J - J_shuffled) / (J - J(monitor)).

    One share for each of `ways`: a name for some of `rollouts.CHANNELS`, exchanged together. By default each channel
    alone, and "all" of them. The share is 0 for a policy that does not read, and above 1 for one that, misled, does
    worse than MONITOR for ever. A share of the gain over MONITOR for ever, not of the return, because returns may be
    negative; NaN where that gain is not significant. `own` and `idle` are the (E,) returns of the policy and of MONITOR
    for ever in the same episodes. The donor of an episode is a neighbour, see `rollouts.donors`; that neighbours so
    share luck is left out of the interval. Raises ValueError for fewer than two keys and for an unknown channel.
    """
    if len(keys) < 2:
        raise ValueError(f"{len(keys)} episode has no other to exchange observations with; give at least 2")
    lost = [own - _returns(arena, candidate, keys, r, shuffle) for shuffle in ways.values()]
    samples = np.stack([own - idle, *lost], axis=1)
    mean, boot = samples.mean(axis=0), resampled_means(samples, np.random.default_rng(0))
    if estimate(mean[0], boot[:, 0]).low <= 0:
        return dict.fromkeys(ways, NONE)
    return {name: estimate(mean[i] / mean[0], boot[:, i] / boot[:, 0]) for i, name in enumerate(ways, start=1)}


def relist(scenario: ScenarioArrays, dims: Dims, seed: int) -> ScenarioArrays:
    """The same scenario with its assets, and its identities, listed in a random order; padding stays behind each."""
    rng = np.random.default_rng(seed)
    place = np.arange(dims.entities, dtype=np.int32)  # new index of each entity
    for first, count in ((0, int(scenario.asset_count)), (dims.assets, int(scenario.identity_count))):
        place[first : first + count] = rng.permutation(place[first : first + count])
    old, targets = np.argsort(place), np.asarray(scenario.targets)
    return scenario._replace(
        value=jnp.asarray(scenario.value)[old],
        exists=jnp.asarray(scenario.exists)[old],
        group=jnp.asarray(scenario.group)[old],
        members=jnp.asarray(place)[scenario.members],
        targets=jnp.asarray(np.where(targets >= 0, place[targets], targets)),
    )


def relisting_gap(arena: Arena, candidate: Candidate, keys: Array, r: int, own: np.ndarray) -> Estimate:
    """J with the scenario's entities listed in another order, less J on the scenario as it is, in points.

    `own` are the (E,) returns on the scenario as it is.
    The mean over RELISTINGS random orders, always the same ones: the interval is over episodes only. About 0 for a
    policy that reads; far below 0 for one that has learned the list by heart.
    """
    orders = [relist(arena.params.scenario, arena.env.dims, seed) for seed in range(RELISTINGS)]
    others = [arena._replace(params=arena.params._replace(scenario=o)) for o in orders]
    relisted = np.mean([_returns(other, candidate, keys, r) for other in others], axis=0)
    return _mean(relisted - own)


# --- does it pay for harm? ------------------------------------------------------------------------------------------


def one_more(dims: Dims, state: State, params: Params) -> tuple[State, Array]:
    """(the state in which the attacker has succeeded once more, whether that is possible), the latter () bool.

    It is the stage in progress that has succeeded on the spot, or else the stage that the attacker would start next.
    Not possible without an attack, once it is over, or if that stage is the loss.
    """
    able = stages.unpacked(attacker.ready(state) & ~attacker.in_force(state), dims.stages)
    preferred = jnp.argmin(jnp.where(able, state.order, np.iinfo(np.int32).max)).astype(jnp.int32)
    stage = jnp.where(state.stage >= 0, state.stage, preferred)
    possible = (state.stage >= 0) | jnp.any(able)
    possible &= state.attack & (state.end == RUNNING) & ~state.exfil & ~params.scenario.stage_loss[stage]
    # Its dwell over and a draw of 0 is a certain success, for which the rules have the bookkeeping.
    due = state._replace(stage=stage, stage_end=state.tick, idle=state.idle & ~stages.only(stage, dims.words))
    done, _, _ = attacker.progress(dims, due, jnp.bool_(True), jnp.zeros(len(Noise), jnp.float32), params)
    return done, possible


@partial(jax.jit, static_argnames=("dims",), donate_argnames=("state",))
def _harm(dims: Dims, params: Params, state: State, parts: Array) -> tuple[State, Array]:
    """(states, leaves (G, B, ...), where those of `parts`, (G, B) bool, have one more success; (G, B) bool, which)."""
    after, possible = jax.vmap(jax.vmap(lambda s: one_more(dims, s, params)))(state)
    parts &= possible

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(parts.reshape(parts.shape + (1,) * (new.ndim - 2)), new, old)

    return jax.tree.map(chosen, after, state), parts


def forked_returns(
    arena: Arena, candidate: Candidate, keys: Array, r: int, fork_at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((F, E) returns with one more success at tick `fork_at`, (F, E) int; (F, E) bool, there is a fork)."""
    forked = np.zeros(fork_at.shape, bool)

    def meddle(batch: Batch, tick: int) -> Change | None:
        # Played from tick 0 on: until it parts it is the episode as it is, so the difference is all to come.
        fork = np.broadcast_to(batch.policy[:, None], batch.episode.shape)
        parts = fork_at[fork, batch.episode] == tick

        def harm(state: State) -> State:
            state, parted = _harm(arena.env.dims, arena.params, state, parts)
            parted = np.asarray(parted)
            forked[fork[parted], batch.episode[parted]] = True
            return state

        return harm if parts.any() else None

    every = jax.tree.map(lambda x: np.stack([x] * len(fork_at)), candidate.parameters)
    stats, _ = rollout_many(arena.env, arena.params, candidate.policy, every, keys, meddle=meddle)
    return stats.episode_return[:, :, r], forked


def harm_monotonicity(
    arena: Arena, candidate: Candidate, keys: Array, r: int, own: np.ndarray, ticks: tuple[int, ...]
) -> list[Estimate]:
    """What one more success of the attacker is worth to a policy: V(one more) - V(as is), in points; must not be > 0.

    V is the return to come. Each episode is played up to a tick of its own (0 .. t - 1 in turn, for each t of `ticks`)
    and forked: the attacker has succeeded once more, see `one_more`, and it goes on to the end with the same policy,
    its memory of before, and the same noise. `own` are the (E,) returns without that. The mean is over the episodes in
    which that was possible; NaN if there is none.
    """
    fork_at = np.arange(len(keys)) % np.asarray(ticks)[:, None]
    harmed, forked = forked_returns(arena, candidate, keys, r, fork_at)
    return [_mean((h - own)[f]) if f.any() else NONE for h, f in zip(harmed, forked, strict=True)]


def farming_slope(
    arena: Arena, candidate: Candidate, keys: Array, r: int, repeats: tuple[int, ...] = (1, 2, 4, 8, 16)
) -> Estimate:
    """Points per repeat that a farming loop may do more: least-squares slope of return on `FarmParams.repeats`.

    0 or less: the loop is closed.
    """
    farm = candidate.parameters
    loops = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], len(repeats), axis=0), farm)
    loops = loops._replace(repeats=np.asarray(repeats, np.int32))
    returns = returns_of(arena, candidate.policy, loops, keys)
    x = np.asarray(repeats, np.float64) - np.mean(repeats)
    # The slope is linear in the returns, so the mean of the episodes' slopes is the slope of the mean.
    return _mean(x @ returns[:, :, r] / (x @ x))


# --- does it hang on one number? ------------------------------------------------------------------------------------


class Flip(NamedTuple):
    """The smallest change of one weight alone that takes EVG_norm below `rescore.CERTIFIED_EVG_NORM`."""

    weight: str
    value: float | None  # its new value, None if none does it
    factor: float | None  # new by old value, None where the old one is 0 or infinite
    evg_norm: float  # there, NaN where reading gains nothing over MONITOR for ever
    change: float  # |factor - 1|; without a factor a share of the weight's range; inf if none does it


def _moves(name: str, old: float) -> list[tuple[float, float | None, float]]:
    """(value, factor, change) of all that is tried for a weight."""
    if old != 0 and np.isfinite(old):
        return [(old * f, f, abs(f - 1)) for f in FACTORS]
    lo, hi = rescore.RANGES[name]
    near = min(max(old, lo), hi)  # no finite value is near infinity: an unlimited cap is as good as the loosest
    return [(float(v), None, abs(float(v) - near) / (hi - lo)) for v in np.linspace(lo, hi, STEPS) if v != old]


def smallest_flip(report: rescore.Ledger, select: rescore.Ledger, weights: RewardWeights) -> list[Flip]:
    """For each weight the smallest change of it alone that flips the verdict on EVG_norm, smallest first.

    Tried are FACTORS of the weight, or values over `rescore.RANGES` for a weight that is 0 or infinite. Where EVG_norm
    is NaN the verdict has flipped as well. Empty if the weights, () each, do not pass as they are.
    """
    base = {name: float(w) for name, w in weights._asdict().items()}
    tried = [(name, *move) for name, old in base.items() for move in _moves(name, old)]
    columns = {name: np.full(len(tried) + 1, old, np.float32) for name, old in base.items()}
    for row, (name, value, _, _) in enumerate(tried):
        columns[name][row] = value
    _, norms = rescore.gaps(select, report, RewardWeights(**{n: jnp.asarray(c) for n, c in columns.items()}))
    passes = norms >= CERTIFIED_EVG_NORM
    if not passes[-1]:  # the last row is the weights as they are
        return []
    best = {name: Flip(name, None, None, float("nan"), float("inf")) for name in base}
    for (name, value, factor, change), norm, fine in zip(tried, norms, passes, strict=False):
        if not fine and change < best[name].change:
            best[name] = Flip(name, value, factor, float(norm), change)
    return sorted(best.values(), key=lambda f: f.change)
