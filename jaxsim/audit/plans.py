"""Open-loop plans as arrays: which there are, and what grows from them. A plan is (T,) int32, an action for each tick.

MONITOR, action 0, is "no action": a plan of zeros is the policy that does nothing.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from jaxsim.types import INVESTIGATE, MONITOR, RESTORE, VERBS


def single_plans(acts: np.ndarray, ticks: Sequence[int], length: int) -> np.ndarray:
    """MONITOR only, and every one of the actions at every one of the ticks: (1 + len(ticks) * len(acts), length)."""
    plans = np.zeros((len(ticks), len(acts), length), np.int32)
    for i, t in enumerate(ticks):
        plans[i, :, t] = acts
    return np.concatenate([np.zeros((1, length), np.int32), plans.reshape(-1, length)])


def constant_plans(acts: np.ndarray, length: int) -> np.ndarray:
    """Each of the actions at every tick: (len(acts), length)."""
    return np.repeat(acts[:, None].astype(np.int32), length, axis=1)


def in_turn(verbs: np.ndarray, entities: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """Every two actions on one target, one of them a containment at least: (N, 2) int32.

    `verbs` and `entities` are the table of actions, (A,) each; `exists` (N,) bool.
    """
    of = np.full((len(VERBS), len(exists)), -1)
    targeted = (verbs != MONITOR) & exists[entities]
    of[verbs[targeted], entities[targeted]] = np.flatnonzero(targeted)
    idle = {MONITOR, INVESTIGATE, RESTORE}
    both = [of[[a, b]].T for a, b in combinations(range(len(VERBS)), 2) if not {a, b} <= idle]
    pairs = np.concatenate(both)
    return pairs[(pairs >= 0).all(axis=1)].astype(np.int32)


def turn_plans(pairs: np.ndarray, length: int) -> np.ndarray:
    """Two actions in turn, at every tick, for each of (N, 2): (N, length)."""
    return np.tile(pairs.astype(np.int32), (1, -(-length // 2)))[:, :length]


def round_plans(
    verbs: np.ndarray, entities: np.ndarray, exists: np.ndarray, ticks: Sequence[int], length: int
) -> np.ndarray:
    """Each verb on all that it can target in turn, from each of the ticks on, once and over and over: (N, length).

    The arguments are those of `in_turn`. To look at everything in turn is what a blind hunt for a bounty looks like.
    """
    made = [np.zeros((0, length), np.int32)]
    for verb in np.unique(verbs[verbs != MONITOR]):
        acts = np.flatnonzero((verbs == verb) & exists[entities])
        for t in (t for t in ticks if len(acts) and t < length):
            over = np.zeros((2, length), np.int32)
            over[:, t:] = np.resize(acts, length - t)
            over[0, t + len(acts) :] = 0
            made.append(over)
    return np.concatenate(made)


def pair_plans(acts: np.ndarray, ticks: Sequence[int], length: int, most: int) -> np.ndarray:
    """Every two actions at every two of the leading ticks, of as many ticks as make at most `most` plans."""
    window = max((w for w in range(len(ticks) + 1) if w * (w - 1) // 2 * len(acts) ** 2 <= most), default=0)
    first, second = (x.ravel() for x in np.meshgrid(acts, acts, indexing="ij"))
    parts = [np.zeros((0, length), np.int32)]
    for t1, t2 in combinations(ticks[:window], 2):
        plans = np.zeros((len(first), length), np.int32)
        plans[:, t1], plans[:, t2] = first, second
        parts.append(plans)
    return np.concatenate(parts)


def grow(parents: np.ndarray, moves: np.ndarray, fills: np.ndarray) -> np.ndarray:
    """Every parent changed once, without repeats and without the parents: (M, T).

    `moves` (N, 2) are (tick, action) pairs to put into a plan, in place of what is there; `fills` (F,) actions to put
    at every tick at which a plan does nothing.
    """
    made = []
    for parent in parents:
        moved = np.repeat(parent[None], len(moves), axis=0)
        moved[np.arange(len(moves)), moves[:, 0]] = moves[:, 1]
        made += [moved, np.where(parent == 0, fills[:, None].astype(np.int32), parent)]
    grown = np.unique(np.concatenate(made), axis=0) if made else parents[:0]
    return grown[~contains(parents, grown)]


def rows_of(known: np.ndarray, plans: np.ndarray) -> np.ndarray:
    """(M,) int: where among the known ones, (K, T), each of the plans is. Raises KeyError for one that is not."""
    row = {plan.tobytes(): i for i, plan in enumerate(known)}
    return np.asarray([row[plan.tobytes()] for plan in plans])


def contains(known: np.ndarray, plans: np.ndarray) -> np.ndarray:
    """(M,) bool: which of the plans are among the known ones."""
    seen = {plan.tobytes() for plan in known}
    return np.asarray([plan.tobytes() in seen for plan in plans], bool)
