"""The best of many policies under noise: a race on common episodes, and what the best of them can earn at most.

All arms play the same episodes, so that a difference between two is paired. Few episodes are given to all of them, more
to those that are left: sequential halving (Karnin, Koren & Somekh 2013, "Almost optimal exploration in multi-armed
bandits"), which also drops at once what is worse than the leader beyond doubt (Audibert & Bubeck 2010, "Best arm
identification in multi-armed bandits"). What an arm earns is measured as its difference to a reference policy whose
mean is known from many more episodes, so that much of the luck can be taken out (a control variate).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

# (rows, first, last) -> (len(rows), last - first, C): returns of some arms in episodes first to last - 1, by criterion.
Play = Callable[[np.ndarray, int, int], np.ndarray]
Protect = Callable[[np.ndarray], np.ndarray]  # returns of the first round, (M, n, C) -> rows that are never dropped

LEVEL = 0.05  # of all simultaneous statements about one race
HOPE = 2.0  # standard errors that a hopeful arm may be better by than it looks


class Raced(NamedTuple):
    """What a race of M arms found. Differences are to the reference, in points."""

    alive: np.ndarray  # (K,) int, the arms that reached the end, ascending
    returns: np.ndarray  # (K, E, C) float32, theirs in every episode
    first: np.ndarray  # (M, C) float32, mean return of every arm in the first round
    difference: np.ndarray  # (M, C) of every arm, as `differences` has it, over all episodes that it played
    error: np.ndarray  # (M, C) its standard error
    episodes: np.ndarray  # (M,) int, that it played
    rounds: int


class Bound(NamedTuple):
    """A simultaneous upper bound on what the best member of a class earns; differences to the reference, in points."""

    members: int
    best: np.ndarray  # (C,) the largest difference measured
    upper: np.ndarray  # (C,) the bound
    fewest: int  # episodes that the least measured member played


def rounds(first: int, last: int) -> tuple[int, ...]:
    """Episodes after each round: doubled from `first` until `last`."""
    ends = [min(first, last)]
    while ends[-1] < last:
        ends.append(min(2 * ends[-1], last))
    return tuple(ends)


def differences(returns: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((K, C) mean differences of arms to the reference, (K, C) their standard errors), in points.

    `returns` (K, n, C) are in the first n of the episodes of `reference`, (E, C), n <= E. Where the first n episodes
    are kinder than all E, as the reference shows, the difference is corrected by its regression on the reference
    (control variate; Lavenberg & Welch 1981, "A perspective on the use of control variables"). The error is as if one
    more episode had shown the largest difference of any arm: so it is above 0 for one whose rare success is to come.
    """
    mean, error, largest = _regressed(returns, reference)
    return mean, np.sqrt(np.square(error) + np.square(largest / returns.shape[1]))


def hopes(returns: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(K, C) what arms may earn, as `differences` has it: HOPE standard errors more than they did.

    Of arms that vary a lot the best looks worse in few episodes than many that hardly do anything. (An upper confidence
    bound, as those of LUCB: Kalyanakrishnan et al. 2012, "PAC subset selection in stochastic multi-armed bandits".)
    """
    mean, error, _ = _regressed(returns, reference)
    return mean + HOPE * error


def _regressed(returns: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((K, C) mean differences, (K, C) their standard errors, (C,) the largest difference in any episode of any arm)"""
    n, every = returns.shape[1], len(reference)
    difference = returns - reference[:n]
    kindness = reference[:n] - reference.mean(axis=0)
    mean, kind = difference.mean(axis=1), kindness.mean(axis=0)
    spread = np.maximum(kindness.var(axis=0), 1e-12)
    slope = (np.einsum("knc,nc->kc", difference, kindness) / n - mean * kind) / spread
    left = np.maximum(difference.var(axis=1) - np.square(slope) * spread, 0.0)
    largest = np.abs(difference).max(axis=(0, 1), initial=0.0)
    return mean - slope * kind, np.sqrt(left / n + np.square(slope) * spread / every), largest


def race(
    play: Play,
    reference: np.ndarray,
    arms: int,
    ends: tuple[int, ...],
    keep: int | np.ndarray,
    bounded: int = 0,
    protect: Protect | None = None,
    hopeful: bool = False,
) -> Raced:
    """Race `arms` arms over rounds that end after `ends` episodes; at the end `keep`, () or (C,), are left for each
    criterion.

    `reference` (E, C) are the returns of the policy that differences are taken to, in the same episodes and as many
    more as there are. From round to round the number of arms falls by the same factor. Those are kept as well that may
    earn more than the leader may at the end, under the first `bounded` criteria: which makes `bound` tight. And, if
    `hopeful`, as many more, of those with the best `hopes`.
    """
    looks = len(ends)
    z = float(norm.isf(LEVEL / (2 * max(1, arms * looks))))
    alive, done = np.arange(arms), 0
    kept = np.zeros((arms, 0, reference.shape[1]), np.float32)
    mean, error = np.zeros((2, arms, reference.shape[1]))
    episodes = np.zeros(arms, np.int64)
    first, protected = mean, alive[:0]
    for look, end in enumerate(ends):
        kept = np.concatenate([kept, play(alive, done, end)], axis=1)
        mean[alive], error[alive] = differences(kept, reference)
        episodes[alive] = done = end
        if look == 0:
            first = kept.mean(axis=1)
            protected = protect(kept) if protect else protected
        if look < looks - 1:
            most = np.ceil(keep * np.maximum(arms / keep, 1) ** ((looks - 2 - look) / (looks - 1)))
            stay = survivors(mean[alive], error[alive], z, most) | np.isin(alive, protected)
            if hopeful:
                stay[best_rows(hopes(kept, reference), most)] = True
            stay |= may_exceed(mean[alive, :bounded], error[alive, :bounded], z, end / ends[-1])
            alive, kept = alive[stay], kept[stay]
    return Raced(alive, kept, first, mean, error, episodes, looks)


def survivors(mean: np.ndarray, error: np.ndarray, z: float, most: np.ndarray) -> np.ndarray:
    """(K,) bool: for each criterion the best `most` arms, () or (C,), less those that the leader beats by more than `z`
    errors. Arms that are alike take one place."""
    column = np.arange(mean.shape[1])
    leader, upper = mean.argmax(axis=0), mean + z * error
    top = among_best(mean, most, first_of_alike(np.concatenate([mean, error], axis=1)))
    stay: np.ndarray = (top & (upper >= mean[leader, column] - z * error[leader, column])).any(axis=1)
    return stay


def best_rows(score: np.ndarray, most: int | np.ndarray) -> np.ndarray:
    """Indices of the `most` best rows, () or (C,), of each column of (M, C) scores, ascending, without repeats; of rows
    that are alike the first."""
    return np.flatnonzero(among_best(score, most, first_of_alike(score)).any(axis=1))


def among_best(score: np.ndarray, most: int | np.ndarray, one: np.ndarray) -> np.ndarray:
    """(M, C) bool: of the rows of `one`, (M,) bool, among the best `most`, () or (C,), of its column of scores."""
    rows, top = np.flatnonzero(one), np.zeros(score.shape, bool)
    order = rows[np.argsort(-score[rows], axis=0, kind="stable")]
    among = np.arange(len(order))[:, None] < np.broadcast_to(most, score.shape[1])
    np.put_along_axis(top, order, among, axis=0)
    return top


def first_of_alike(rows: np.ndarray) -> np.ndarray:
    """(M,) bool: in some column, (M, C), unlike every row before it.

    Means of common episodes are the same to the last digit for policies that do the same by other names, such as
    lifting what is not in force. Such ones would crowd out what is better than it looks.
    """
    alone = np.zeros(len(rows), bool)
    alone[np.unique(rows, axis=0, return_index=True)[1]] = True
    return alone


def may_exceed(mean: np.ndarray, error: np.ndarray, z: float, played: float) -> np.ndarray:
    """(K,) bool: whose upper bound, under any criterion, is above what that of the leader is going to be when all is
    played, of which the share `played` has been. The leader of many is lucky, and so counts for an error less."""
    column = np.arange(mean.shape[1])
    leader = mean.argmax(axis=0)
    at_the_end = mean[leader, column] + (z * np.sqrt(played) - 1) * error[leader, column]
    above: np.ndarray = (mean + z * error > at_the_end).any(axis=1)
    return above


def bound(raced: Raced, criteria: int) -> Bound:
    """The bound over all arms of a race, for the first `criteria`.

    The largest of mean + z errors, z for as many one-sided statements at once as there are arms and rounds at which an
    arm may have left (Bonferroni): so it holds although arms were dropped for what they earned. It rests on the normal
    approximation of means of at least as many episodes as the first round has.
    """
    arms = len(raced.episodes)
    z = float(norm.isf(LEVEL / max(1, arms * raced.rounds)))
    mean = raced.difference[:, :criteria]
    upper = (mean + z * raced.error[:, :criteria]).max(axis=0)
    return Bound(arms, mean.max(axis=0), upper, int(raced.episodes.min()))
