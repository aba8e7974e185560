"""The search for the best plan that reads nothing: exhaustive classes, plans that grow from the best, a learned one."""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from jaxsim.actions import INVALID, table
from jaxsim.audit import adversary, plans
from jaxsim.audit.arena import take
from jaxsim.audit.budgets import Budget
from jaxsim.audit.course import Course, Finalists, merged, plan_returns
from jaxsim.audit.race import Bound, Raced, best_rows, bound, differences, hopes, race, rounds
from jaxsim.rollouts import BLOCK
from jaxsim.types import MONITOR

# Classes searched exhaustively.
SINGLES, CONSTANT, TURNS, PAIRS = "single actions", "one action at every tick", "two in turn on one target", "pairs"
STEADY = 1e-4  # points; float32 sums of equal terms differ by less
SAMPLES = 128  # plans, BLOCK episodes of each, in a step of the learned adversary
STARTS = 3  # rewards, at most, from whose best plans the learned adversary begins


class Opened(NamedTuple):
    """The exhaustive classes of plans, raced; the same plans in the same order for every arena of the same `Dims`."""

    plans: np.ndarray  # (M, T) int32: singles, constant ones, two in turn, pairs
    first: np.ndarray  # (M, R) float32, mean returns in the first round, of what is legal in this arena
    finalists: Finalists
    moves: np.ndarray  # (N, 2) int, (tick, action) of the best single actions
    fills: np.ndarray  # (F,) int32, the best actions to repeat at every tick
    bounds: dict[str, Bound]  # by class, over MONITOR, under the R rewards


def race_plans(course: Course, budget: Budget, some: np.ndarray, screen: int, bounded: bool) -> Raced:
    """Race plans, (M, T), from `screen` episodes on; `bounded`, so that what any of them may earn becomes known."""

    def play(rows: np.ndarray, first: int, last: int) -> np.ndarray:
        return plan_returns(course, some[rows], first, last)

    def steady(returns: np.ndarray) -> np.ndarray:
        # The best plan may vary; the best of those that never do is a finding of its own.
        mean = steady_means(course, returns)
        rows = best_rows(mean, budget.beam)
        kept: np.ndarray = rows[np.isfinite(mean[rows]).any(axis=1)]
        return kept

    return race(
        play,
        course.monitor,
        len(some),
        rounds(screen, budget.select),
        finalists_of(course, budget),
        course.own if bounded else 0,
        steady,
    )


def finalists_of(course: Course, budget: Budget) -> np.ndarray:
    """(C,) int: how many plans are left for each criterion at the end of a race: those of `scout` only become parents,
    for which `beam` are enough."""
    kept = np.full(course.monitor.shape[1], budget.kept)
    kept[course.own : len(course.arena.rewards)] = budget.beam
    return kept


def finalists(some: np.ndarray, raced: Raced) -> Finalists:
    """The plans that reached the end of a race of `some`."""
    return Finalists(some[raced.alive], raced.returns, raced.difference[raced.alive])


def play_off(course: Course, budget: Budget, found: Finalists) -> Finalists:
    """The best of some finalists for each criterion after a race over all episodes of the course.

    Plans that contain different entities may be nearer to each other than few episodes can tell, and each of them comes
    with many that differ from it in little.
    """
    done = found.returns.shape[1]  # episodes that they have played

    def play(rows: np.ndarray, first: int, last: int) -> np.ndarray:
        new = plan_returns(course, found.parameters[rows], max(first, done), last)
        return np.concatenate([found.returns[rows, first:last], new], axis=1)

    ends = rounds(2 * budget.select, len(course.keys))
    raced = race(play, course.monitor, len(found.parameters), ends, budget.beam, hopeful=True)
    return Finalists(found.parameters[raced.alive], found.returns[raced.alive], raced.difference[raced.alive])


def steady_means(course: Course, returns: np.ndarray) -> np.ndarray:
    """(K, R) mean returns of plans whose return never varies, -inf for the others; from (K, E, C) returns."""
    own = returns[:, :, : course.own]
    return np.where(np.ptp(own, axis=1) < STEADY, own.mean(axis=1), -np.inf)


def open_plans(course: Course, budget: Budget) -> Opened:
    """Race all single actions at the budget's ticks, each action at every tick, each verb on all targets in turn, and
    as many pairs as the budget has; where a control can be lifted, any two actions on one target in turn as well.

    One of the actions is an invalid one, for which a reward may pay. Actions on what the arena does not have, but
    others of the search have, are none, and no member of these classes.
    """
    dims, own, length = course.arena.env.dims, course.own, course.length
    acts, ticks = np.arange(1, dims.actions, dtype=np.int32), [t for t in budget.ticks if t < length]
    all_acts = np.append(acts, np.int32(INVALID))
    classes = {
        SINGLES: plans.single_plans(all_acts, ticks, length),
        # A class of its own: what is the same at every tick may cost a lot, and the largest cost is in all errors.
        CONSTANT: plans.constant_plans(all_acts, length),
    }
    if dims.restore:
        every = np.ones(dims.entities, bool)  # padding too: the same plans in every arena
        classes[TURNS] = plans.turn_plans(plans.in_turn(*table(dims), every), length)
    if len(pairs := plans.pair_plans(acts, ticks, length, budget.pairs)):
        classes[PAIRS] = pairs
    legal = np.append(course.arena.env.legal_actions(course.arena.params), True)  # the last is INVALID's
    able = {name: some[legal[some].all(axis=1)] for name, some in classes.items()}
    screen = dict.fromkeys(able, budget.screen) | {PAIRS: min(BLOCK, budget.screen)}
    raced = {name: race_plans(course, budget, some, screen[name], name != PAIRS) for name, some in able.items()}
    bounds = {name: bound(r, own) for name, r in raced.items()}
    found = reduce(merged, (finalists(able[name], r) for name, r in raced.items()))
    # Of this arena alone: what is missing here may be there elsewhere.
    exists = np.asarray(course.arena.params.scenario.exists)
    hunts = plans.round_plans(*table(dims), exists, ticks, length)
    found = merged(found, finalists(hunts, race_plans(course, budget, hunts, budget.screen, False)))
    best = 1 + best_rows(raced[SINGLES].difference[1:], budget.moves)  # row 0 is MONITOR
    single = able[SINGLES]
    tick = (single[best] != 0).argmax(axis=1)
    fills = able[CONSTANT][best_rows(raced[CONSTANT].difference, budget.beam), 0]
    moves = np.stack([tick, single[best, tick]], axis=1)
    # An action that is not one here counts as none: what it costs is known once finalists are played as they are.
    everything = np.concatenate(list(classes.values()))
    rows = plans.rows_of(np.concatenate(list(able.values())), np.where(legal[everything], everything, MONITOR))
    first = np.concatenate([r.first[:, :own] for r in raced.values()])[rows]
    return Opened(everything, first, found, moves, fills, bounds)


def search_plans(course: Course, budget: Budget, opened: Opened, given: np.ndarray, seed: int) -> Finalists:
    """Longer plans and the learned one; of all of them and `given` ones, (K, T), the best for each criterion."""
    keep = finalists_of(course, budget)
    found = played(course, budget, opened.finalists, given)
    hopeful = np.union1d(best_rows(found.gain, keep), best_rows(hopes(found.returns, course.monitor), keep))
    proven = play_off(course, budget, take(found, hopeful))
    found = grow_plans(course, budget, opened, found, proven)
    found = played(course, budget, found, climb_plans(course, budget, found, seed))
    rows = np.union1d(best_rows(found.gain, keep), best_rows(steady_means(course, found.returns), 1))
    # These may be better than the finalists' few episodes say.
    rows = np.union1d(rows, np.flatnonzero(plans.contains(proven.parameters, found.parameters)))
    kept: Finalists = take(found, rows)
    return kept


def played(course: Course, budget: Budget, found: Finalists, more: np.ndarray) -> Finalists:
    """Some finalists and more plans, (K, T), which play the same episodes now."""
    more = more[~plans.contains(found.parameters, more)]
    if not len(more):
        return found
    returns = plan_returns(course, more, 0, budget.select)
    return merged(found, Finalists(more, returns, differences(returns, course.monitor)[0]))


def grow_plans(course: Course, budget: Budget, opened: Opened, found: Finalists, proven: Finalists) -> Finalists:
    """The best plans for each criterion, `proven` in many episodes, are changed in one place, and the best of those
    again, `depth` times."""
    grown = found.parameters[:0]
    for turn in range(budget.depth):
        best = proven if turn == 0 else found
        parents = best.parameters[best_rows(best.gain, budget.beam)]
        parents = parents[~plans.contains(grown, parents)]
        children = plans.grow(parents, opened.moves, opened.fills)
        children = children[~plans.contains(found.parameters, children)]
        if not len(children):
            break
        grown = np.concatenate([grown, parents])
        raced = race_plans(course, budget, children, budget.screen, False)
        found = merged(found, finalists(children, raced))
    return found


def climb_plans(course: Course, budget: Budget, found: Finalists, seed: int) -> np.ndarray:
    """Plans, (K, T), that the learned adversary comes to: from the best under a few rewards, and from doing nothing."""
    made = [found.parameters[:0]]
    legal = np.flatnonzero(course.arena.env.legal_actions(course.arena.params))
    acts = np.append(INVALID, legal).astype(np.int32)
    horizon, first = int(course.arena.params.scenario.horizon), budget.select
    last = first + budget.climb * BLOCK  # other episodes than those that choose
    champions = found.gain[:, : course.own].argmax(axis=0)
    distinct = {int(row): r for r, row in reversed(list(enumerate(champions)))}  # the first reward of each
    starts = [(found.parameters[row], r) for row, r in sorted(distinct.items(), key=lambda x: x[1])[:STARTS]]
    for plan, r in [*starts, (np.zeros_like(found.parameters[0]), 0)] if budget.climb else []:
        reference = plan_returns(course, plan[None], first, last)[0, :, r]

        def sample(some: np.ndarray, step: int, r: int = r, reference: np.ndarray = reference) -> Any:
            at = first + step * BLOCK
            returns = plan_returns(course, some, at, at + BLOCK)[:, :, r]
            return returns, reference[step * BLOCK : (step + 1) * BLOCK]

        rng = np.random.default_rng((seed, r, int(plan.any())))
        made.append(adversary.climb(sample, plan, acts, horizon, budget.climb, SAMPLES, rng))
    return np.unique(np.concatenate(made), axis=0)
