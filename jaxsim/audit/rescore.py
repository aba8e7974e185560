"""Search on the reward side: thousands of weightings scored from the same rollouts, exactly.

Dynamics do not depend on the reward, and the clip and the disruption cap bind per tick. So all that a return needs is
how often each distinct row of per-tick signals occurs: a (P, U) table of counts for P policies and U distinct rows.
A weighting then costs U evaluations of `reward.total` and one matrix product, whatever the number of episodes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

from jaxsim import recurrent, reward
from jaxsim.audit.arena import BRIEFED, EVIDENCE, PLAN, Arena, Candidate, alike
from jaxsim.rollouts import rollout_many
from jaxsim.types import RewardWeights, Signals

AT_ONCE = 64  # weightings scored together
CERTIFIED_EVG_NORM = 0.25  # the share of what a defender can gain that has to come from the evidence
CERTIFIED_VOI_NORM = 0.15  # and from investigating

# Range of each weight that the Sobol sample covers; costs are negative.
RANGES: dict[str, tuple[float, float]] = {
    "detection": (0.0, 3.0),
    "active_block": (0.0, 5.0),
    "preemptive_block": (0.0, 2.0),
    "containment_cost": (-1.0, 0.0),
    "evidence": (0.0, 3.0),
    "false_positive": (-2.0, 0.0),
    "disruption": (-0.5, 0.0),
    "disruption_cap": (0.1, 2.0),
    "invalid_action": (-1.0, 0.0),
    "exfil": (-12.0, 0.0),
    "exfil_stage_left": (0.0, 1.5),
    "clean": (0.0, 10.0),
    "stage_left": (0.0, 1.5),
    "passive": (-3.0, 0.0),
    "clip": (2.0, 10.0),
    "investigation": (-0.3, 0.0),
}


class Ledger(NamedTuple):
    """What a pool of policies did, as counts of distinct per-tick signal rows."""

    rows: np.ndarray  # (U, 16) float32, distinct rows of Signals
    counts: np.ndarray  # (P, U) float32, mean occurrences per episode
    seeing: np.ndarray  # (P,) bool, an honest evidence-using policy
    blind: np.ndarray  # (P,) bool, an open-loop policy
    monitor: int  # row of the policy that does nothing


def record(arena: Arena, pool: list[Candidate], keys: jax.Array) -> Ledger:
    """Play the pool and count its signal rows; `pool[0]` must be MONITOR for ever."""
    blocks: list[tuple[int, np.ndarray]] = []
    for members, policy, parameters in alike(pool):
        _, trajectory = rollout_many(arena.env, arena.params, policy, parameters, keys, record=True)
        assert trajectory is not None
        signals = np.stack(trajectory.signals, axis=-1).reshape(len(members), -1, len(Signals._fields))
        blocks += [(i, signals[m]) for m, i in enumerate(members)]
    flat = np.concatenate([b for _, b in sorted(blocks, key=lambda x: x[0])])
    owner = np.repeat(np.arange(len(pool)), blocks[0][1].shape[0])

    used = flat.any(axis=1)
    flat, owner = flat[used], owner[used]
    # One random projection in double precision tells rows apart; the check below would catch a collision.
    mark = flat.astype(np.float64) @ np.random.default_rng(0).random(flat.shape[1])
    _, first, inverse = np.unique(mark, return_index=True, return_inverse=True)
    rows = flat[first]
    if not np.array_equal(rows[inverse], flat):
        raise RuntimeError("two different signal rows have the same projection; change the seed of the projection")
    counts = np.zeros((len(pool), len(rows)))
    np.add.at(counts, (owner, inverse), 1.0 / len(keys))
    seeing, blind = (np.asarray([f(c.kind) for c in pool]) for f in (is_seeing, is_blind))
    return Ledger(rows, counts.astype(np.float32), seeing, blind, 0)


def is_seeing(kind: str) -> bool:
    """Whether candidates of a kind are honest and read their evidence."""
    return kind in (EVIDENCE, "heuristic", recurrent.SEEING, recurrent.ALERTS)


def is_blind(kind: str) -> bool:
    """Whether candidates of a kind are open-loop."""
    return kind in (PLAN, BRIEFED, "monitor", recurrent.MASKED)


def sobol_weights(many: int, seed: int) -> RewardWeights:
    """(C,) weightings spread evenly over RANGES; `many` a power of two. One in two has no disruption cap."""
    u = qmc.Sobol(len(RANGES) + 1, rng=np.random.default_rng(seed)).random(many)
    columns = {n: lo + (hi - lo) * u[:, i] for i, (n, (lo, hi)) in enumerate(RANGES.items())}
    columns["disruption_cap"] = np.where(u[:, -1] < 0.5, np.inf, columns["disruption_cap"])
    return RewardWeights(**{n: jnp.asarray(columns[n], jnp.float32) for n in RewardWeights._fields})


def grid_weights(base: RewardWeights, points: int) -> tuple[RewardWeights, list[tuple[str, float]]]:
    """Each weight of `base` in turn at `points` values over its range, the others as they are.

    Returns the (16 * points,) weightings and, for each, which weight it moves and to what.
    """
    moves = [(n, float(v)) for n, (lo, hi) in RANGES.items() for v in np.linspace(lo, hi, points)]
    columns = {n: np.full(len(moves), float(v), np.float32) for n, v in base._asdict().items()}
    for row, (name, value) in enumerate(moves):
        columns[name][row] = value
    return RewardWeights(**{n: jnp.asarray(v) for n, v in columns.items()}), moves


@jax.jit
def _score(rows: jax.Array, counts: jax.Array, weights: RewardWeights) -> jax.Array:
    signals = Signals(*rows.T)
    return jax.vmap(lambda w: counts @ reward.total(reward.channels(signals, w), w))(weights)


def score(ledger: Ledger, weights: RewardWeights) -> np.ndarray:
    """(C, P) mean return of every policy under every weighting."""
    many = len(weights.clip)
    # As many at once for every C: a ledger has one program, whether a grid is scored or thousands of weightings.
    padded = [np.pad(np.asarray(w), (0, -many % AT_ONCE), mode="edge") for w in weights]
    rows, counts = jnp.asarray(ledger.rows), jnp.asarray(ledger.counts)
    scored = [
        _score(rows, counts, RewardWeights(*(w[i : i + AT_ONCE] for w in padded))) for i in range(0, many, AT_ONCE)
    ]
    return np.concatenate(scored)[:many]


def gaps(select: Ledger, report: Ledger, weights: RewardWeights) -> tuple[np.ndarray, np.ndarray]:
    """(EVG, EVG_norm), each (C,): best of each side chosen on one ledger's episodes, measured on the other's.

    EVG_norm is NaN where the best evidence-using policy gains nothing over monitor.
    """
    chosen, measured = score(select, weights), score(report, weights)
    row = np.arange(len(chosen))
    seeing = np.where(select.seeing, chosen, -np.inf).argmax(axis=1)
    blind = np.where(select.blind, chosen, -np.inf).argmax(axis=1)
    evg = measured[row, seeing] - measured[row, blind]
    gain = measured[row, seeing] - measured[:, report.monitor]
    return evg, np.where(gain > 0, evg / np.where(gain > 0, gain, 1.0), np.nan)
