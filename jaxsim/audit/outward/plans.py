"""The search for the best plan that reads nothing, in episodes that all plans share.

The searcher may look at what it likes, the simulator's episodes included; what it comes to is a fixed list of actions.
Five sources, each with its share of the steps: random plans; a few actions over and over; prefixes that grow by the
action that has been paid most (beam search; of prefixes after which all looks the same, one); the cross-entropy method
(Rubinstein 1999, "The cross-entropy method for combinatorial and continuous optimization"); and changes of the best of
all these. All are raced from few episodes to many, see `jaxsim.audit.race`.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsim.audit.outward.episodes import World, play_plans, play_random
from jaxsim.audit.race import race, rounds

Advance = Callable[[str], Any]


class Effort(NamedTuple):
    """How hard to search. Steps are of the environment."""

    steps: int  # of the search
    screen: int  # episodes that every plan of a race plays
    select: int  # episodes that the finalists play, at most
    keep: int  # finalists of a race
    train: int  # steps of training, where no policy is brought
    episodes: int  # of the verdict


EFFORTS = {
    "tiny": Effort(steps=400_000, screen=8, select=128, keep=8, train=60_000, episodes=256),
    "small": Effort(steps=4_000_000, screen=16, select=512, keep=16, train=500_000, episodes=1024),
}
# Of the steps of a search, when each source has had its own; the rest is for the finalists.
CONSTANTS, RANDOM, CYCLES, BEAM, ENTROPY, GROWTH = np.cumsum([0.15, 0.05, 0.2, 0.15, 0.15, 0.2]).tolist()
WIDTH = 64  # prefixes of the beam, at most
DEPTH = 32  # to which the steps of the beam search last, at least
ELITES = 8  # one in so many plans of the cross-entropy method
KEPT = 0.3  # of its table, from one iteration to the next
GENERATIONS = 6
MANY = 2**20  # cycles of a period that can be listed


class Found(NamedTuple):
    """What a search came to. Plans are rows of the table of actions, (T,) int."""

    plan: np.ndarray  # the best plan
    constant: int  # the best action to take at every step
    constants: int  # of the A actions, how many were tried at every step
    plans: int  # that were raced, others than these
    select: int  # episodes in which the best was chosen
    budget: int  # steps that it might take
    steps: int  # steps that it took


class Course(NamedTuple):
    """The episodes of a search, and what it has to go by."""

    world: World
    seeds: list[int]
    reference: np.ndarray  # (E, 1) float64, returns of what differences are taken to
    effort: Effort
    length: float  # steps of an episode, as far as is known
    fills: np.ndarray  # (K, T) int, the best constant plans


def search(
    world: World, effort: Effort, seeds: list[int], varies: bool, seconds: float, seed: int, advance: Advance
) -> Found:
    """The best plan, by about `effort.steps` steps, or as many as `seconds` allow at the speed of the first ones.

    Where nothing `varies` with the seed one episode tells all.
    """
    rng, began = np.random.default_rng(seed), world.steps
    if not varies:
        effort, seeds = effort._replace(screen=1, select=1), seeds[:1]
    advance("random play")
    clock = time.monotonic()
    first = play_random(world, seeds[: max(2 * effort.screen, world.lanes)])
    rate = (world.steps - began) / max(1e-9, time.monotonic() - clock)
    total, length = int(min(effort.steps, rate * seconds)), float(first.lengths.mean())
    # Finalists cost most: they get what the steps allow.
    effort = effort._replace(select=int(np.clip(0.1 * total / (length * effort.keep), effort.screen, effort.select)))
    seeds = seeds[: max(2 * effort.select, len(first.returns))]
    more = [play_random(world, rest).returns for rest in [seeds[len(first.returns) :]] if rest]
    course = Course(
        world, seeds, np.concatenate([first.returns, *more])[:, None], effort, length, np.zeros((0, 0), int)
    )

    def until(share: float) -> int:
        return began + int(share * total)

    advance("constant actions")
    tried = rng.permutation(len(world.table))[: affordable(course, until(CONSTANTS))]
    best = raced(course, np.repeat(tried[:, None], world.game.horizon, axis=1))
    constant = play(course, best[:1], 0, len(seeds))[0]
    better = constant if constant.mean() >= course.reference.mean() else course.reference
    course = course._replace(fills=best, reference=better)

    advance("random plans")
    drawn = random_plans(course, affordable(course, until(RANDOM)), rng)
    found = raced(course, drawn)
    advance("cycles")
    cyclic = cycles(course, affordable(course, until(CYCLES)), rng)
    turning = raced(course, cyclic)
    advance("beam search")
    prefixes = beam(course, until(BEAM), rng)
    advance("cross-entropy method")
    learned = cross_entropy(course, until(ENTROPY), rng)
    advance("changes of the best plans")
    pool = np.unique(np.concatenate([best, found, turning, prefixes, learned]), axis=0)
    found, grown = grow(course, raced(course, pool), until(GROWTH), rng)
    advance("finalists")
    final = raced(course, np.unique(np.concatenate([found, best[:1]]), axis=0), effort.select)
    plans = len(drawn) + len(cyclic) + len(prefixes) + len(learned) + grown
    return Found(shortest(course, final), int(best[0, 0]), len(tried), plans, effort.select, total, world.steps - began)


def play(course: Course, plans: np.ndarray, first: int, last: int) -> np.ndarray:
    """(K, last - first, 1) returns of plans, (K, T), in some episodes of the course."""
    seeds = course.seeds[first:last]
    returns: np.ndarray = play_plans(course.world, np.repeat(plans, len(seeds), axis=0), seeds * len(plans)).returns
    return returns.reshape(len(plans), len(seeds), 1)


def raced(course: Course, plans: np.ndarray, last: int = 0) -> np.ndarray:
    """The best of some plans, (K, T), best first, over `last` episodes or a quarter of those of the finalists."""
    effort = course.effort
    ends = rounds(effort.screen, last or max(effort.screen, effort.select // 4))
    result = race(lambda rows, a, b: play(course, plans[rows], a, b), course.reference, len(plans), ends, effort.keep)
    order = np.argsort(-result.difference[result.alive, 0], kind="stable")[: effort.keep]
    kept: np.ndarray = plans[result.alive[order]]
    return kept


def shortest(course: Course, plans: np.ndarray) -> np.ndarray:
    """(T,) the first of some plans, or, of those that earn as much, the one whose episodes are the shortest."""
    many = course.effort.select
    played = play_plans(course.world, np.repeat(plans, many, axis=0), course.seeds[:many] * len(plans))
    mean, length = (x.reshape(-1, many).mean(axis=1) for x in (played.returns, played.lengths))
    plan: np.ndarray = plans[np.where(mean >= mean[0], length, np.inf).argmin()]
    return plan


def affordable(course: Course, until: int) -> int:
    """Plans, at least one, that a race may begin with: its later rounds cost about as much as the first."""
    return max(1, int((until - course.world.steps) / (2 * course.effort.screen * course.length)))


# --- sources --------------------------------------------------------------------------------------------------------


def random_plans(course: Course, many: int, rng: np.random.Generator) -> np.ndarray:
    """(many, T) plans; in every other one an action is repeated about four times before the next."""
    horizon, acts = course.world.game.horizon, len(course.world.table)
    drawn = rng.integers(acts, size=(many, horizon))
    change = rng.random((many, horizon)) < 0.25
    change[::2], change[:, 0] = True, True
    at = np.maximum.accumulate(np.where(change, np.arange(horizon), 0), axis=1)
    plans: np.ndarray = np.take_along_axis(drawn, at, axis=1)
    return plans


def cycles(course: Course, many: int, rng: np.random.Generator) -> np.ndarray:
    """(many, T) plans that repeat a few actions: all of two, all of three, … and of the first period too many, some."""
    horizon, acts = course.world.game.horizon, len(course.world.table)
    made: list[np.ndarray] = []
    for period in range(2, horizon):
        room, count = many - sum(map(len, made)), acts**period
        if room < 1:
            break
        rows = rng.permutation(count)[:room] if count < MANY else rng.integers(count, size=room)
        digits = np.stack(np.unravel_index(rows, (acts,) * period), axis=1)
        made.append(np.tile(digits, (1, -(-horizon // period)))[:, :horizon])
    return np.concatenate(made) if made else course.fills[:1]


def beam(course: Course, until: int, rng: np.random.Generator) -> np.ndarray:
    """(M, T) plans: of all prefixes one step longer the best paid go on, of those that lead to the same but one.

    What follows a prefix is the best constant action.
    """
    world, seeds, keep = course.world, course.seeds[: course.effort.screen], course.effort.keep
    acts, horizon, many = len(world.table), world.game.horizon, len(seeds)
    # A prefix is played from its beginning: to come to depth D costs D²/2 steps for each child at a depth.
    most = max(ELITES, 2 * (until - world.steps) // (many * min(horizon, DEPTH) ** 2))
    width = int(np.clip(most // acts, 2, WIDTH))
    prefixes, over = np.zeros((1, 0), int), list[tuple[float, np.ndarray]]()
    while prefixes.shape[1] < horizon and len(prefixes) and world.steps < until:
        last = np.tile(np.arange(acts), len(prefixes))[:, None]
        children = np.concatenate([np.repeat(prefixes, acts, axis=0), last], axis=1)
        children = children[rng.permutation(len(children))[:most]]
        played = play_plans(world, np.repeat(children, many, axis=0), seeds * len(children), signed=True)
        score = played.returns.reshape(-1, many).mean(axis=1)
        ended = played.ended.reshape(-1, many).mean(axis=1)
        order = np.lexsort((ended, -score))
        over += [(score[i], children[i]) for i in order if ended[i] == 1][:keep]
        going = (i for i in order if ended[i] < 1)
        unlike = {tuple(played.last[i * many : (i + 1) * many]): i for i in reversed(list(going))}
        best = sorted(unlike.values(), key=order.tolist().index)[:width]
        prefixes = children[best]
    over.sort(key=lambda pair: -pair[0])
    found = [*(prefix for _, prefix in over[:keep]), *prefixes[:keep]]
    plans = np.repeat(course.fills[:1], len(found), axis=0)
    for plan, prefix in zip(plans, found, strict=True):
        plan[: len(prefix)] = prefix
    return plans


def cross_entropy(course: Course, until: int, rng: np.random.Generator) -> np.ndarray:
    """(M, T) plans: the best samples of a table of probabilities, (T, A), fitted to the best; its likeliest plan."""
    world, screen = course.world, course.effort.screen
    acts, horizon, many = len(world.table), world.game.horizon, ELITES**2
    chance, at = np.full((horizon, acts), 1 / acts), 0
    ticks, made = np.arange(horizon), [course.fills[:1]]
    while world.steps < until:
        drawn = rng.random((horizon, many, 1))
        bins = np.cumsum(chance, axis=1)[:, None]
        plans = np.stack([np.minimum((d > b).sum(axis=1), acts - 1) for d, b in zip(drawn, bins, strict=True)], axis=1)
        first = at % max(1, len(course.seeds) - screen + 1)
        mean, at = play(course, plans, first, first + screen).mean(axis=(1, 2)), at + screen
        elite = plans[np.argsort(-mean, kind="stable")[:ELITES]]
        made.append(elite[:1])
        if np.ptp(mean) > 0:  # or it would fit to chance
            share = np.zeros((horizon, acts))
            np.add.at(share, (ticks, elite), 1 / ELITES)
            chance = KEPT * chance + (1 - KEPT) * share
    return np.concatenate([*made[-course.effort.keep :], chance.argmax(axis=1)[None]])


def grow(course: Course, parents: np.ndarray, until: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """The best of some plans, (K, T), and of what comes of them by change after change; and how many were tried."""
    count = 0
    for turn in range(GENERATIONS):
        share = course.world.steps + (until - course.world.steps) // (GENERATIONS - turn)
        many = affordable(course, share)
        if many < 2:
            break
        span = int(play_plans(course.world, parents, course.seeds[:1] * len(parents)).lengths.max())
        acts = len(course.world.table)
        children = np.stack([changed(parents, span, acts, rng) for _ in range(many)])
        parents, count = raced(course, np.unique(np.concatenate([parents, children]), axis=0)), count + many
    return parents, count


def changed(parents: np.ndarray, span: int, acts: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) one of some plans changed in its first `span` steps: actions put in, taken out, replaced, or two joined."""
    plan = parents[rng.integers(len(parents))].copy()
    at, many, kind = int(rng.integers(span)), int(min(rng.geometric(0.5), 8)), rng.integers(4)
    if kind == 0:
        plan[at : at + many] = rng.integers(acts)
    elif kind == 1:
        plan = np.insert(plan, at, np.full(many, rng.integers(acts)))[: len(plan)]
    elif kind == 2:
        plan = np.concatenate([plan[:at], plan[at + many :], np.repeat(plan[-1:], many)])[: len(plan)]
    else:
        plan[at:] = parents[rng.integers(len(parents)), at:]
    return plan
