"""An arena laid out for races: its episodes, what doing nothing earns in them, and how policies of a kind are raced."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim import policies
from jaxsim.audit.arena import Arena, outcomes_of, take
from jaxsim.audit.race import best_rows, differences, race, rounds
from jaxsim.one_episode import start
from jaxsim.policies import FarmParams, Policy
from jaxsim.rollouts import returns_many
from jaxsim.rules import PERSONALITIES
from jaxsim.types import Dims, Params

CHEAPER = (0.4, 0.15, 0.0)  # see `scout`


class Course(NamedTuple):
    """An arena as the races need it. Plans are raced by C criteria, other policies by the R rewards of the arena.

    The criteria are the R rewards, those that `scout` adds, and, where the observation names the attacker's
    personality, each of the R against each personality: there a plan for each of them is one policy.
    """

    arena: Arena  # with the rewards of `scout`
    own: int  # R
    length: int  # T, ticks of a plan, the same for all arenas of a search
    keys: np.ndarray  # (W, ...) uint32, key data of episodes: the first ones to choose on
    who: np.ndarray  # (W,) int, the attacker's personality where the rules show it; (0,) where they do not
    attack: np.ndarray  # (W,) bool, there is an attack
    whole: bool  # what reads alerts is played by a program for whole episodes, which is worth compiling for many
    monitor: np.ndarray  # (W, C) float32, returns of doing nothing


class Finalists(NamedTuple):
    """K policies of one kind that have played the same E episodes, the first ones of the course."""

    parameters: Any  # leading axis K
    returns: np.ndarray  # (K, E, C) float32 of plans, (K, E, R) of others
    gain: np.ndarray  # (K, C) or (K, R) points over doing nothing, as `race.differences` has them, over E or more


def scout(arena: Arena) -> Arena:
    """The arena with more rewards behind its own, under which plans grow: the first with its controls made cheaper.

    Where one control costs more than it saves and several together do not, plans that grow under the reward itself
    never get to them. Under the cheaper ones they do, and every plan on the way is scored by the reward itself.
    """
    own = arena.params.reward
    costs = ("disruption", "false_positive", "containment_cost")
    first = jax.tree.map(lambda w: w[:1], own)
    cheaper = [first._replace(**{n: getattr(first, n) * share for n in costs}) for share in CHEAPER]
    rewards = jax.tree.map(lambda *w: jnp.concatenate(w), own, *cheaper)
    names = (*arena.rewards, *(f"controls × {share}" for share in CHEAPER))
    return arena._replace(params=arena.params._replace(reward=rewards), rewards=names)


def lay(arena: Arena, keys: np.ndarray, length: int, whole: bool = False) -> Course:
    """The course of an arena over the episodes of `keys`, (W, ...) key data, for plans of `length` ticks."""
    who, attack = jax.tree.map(np.asarray, _drawn(arena.env.dims, arena.params, keys))
    shown = who if not bool(arena.params.rules.hide_personality) else who[:0]
    course = Course(scout(arena), len(arena.rewards), length, keys, shown, attack, whole, np.zeros((0, 0), np.float32))
    idle = plan_returns(course, np.zeros((1, length), np.int32), 0, len(keys))
    return course._replace(monitor=idle[0])


@partial(jax.jit, static_argnames=("dims",))
def _drawn(dims: Dims, params: Params, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """((W,) int32 personality, (W,) bool there is an attack) of the episodes of `keys`, key data."""
    drawn = jax.vmap(lambda key: start(dims, jax.random.wrap_key_data(key), params))(keys)
    return drawn.who, drawn.attack


def policy_returns(course: Course, policy: Policy, parameters: Any, first: int, last: int) -> np.ndarray:
    """(K, last - first, R) returns of policies in the episodes `first` to `last` - 1."""
    if policy == policies.FARM:
        return _blind_returns(course, parameters, first, last)[:, :, : course.own]
    arena = course.arena
    weights = jax.tree.map(lambda w: w[: course.own], arena.params.reward)
    own = arena._replace(params=arena.params._replace(reward=weights))
    returns: np.ndarray = outcomes_of(own, policy, parameters, course.keys[first:last], course.whole).episode_return
    return returns


def plan_returns(course: Course, some: np.ndarray, first: int, last: int) -> np.ndarray:
    """(K, last - first, C) returns of plans, (K, T), in the episodes `first` to `last` - 1.

    What belongs to a personality is 0 in the episodes of the others, so its mean ranks plans against that one.
    """
    returns = _blind_returns(course, policies.as_loops(some), first, last)
    if not len(course.who):
        return returns
    own, who = returns[:, :, : course.own], course.who[first:last]
    return np.concatenate([returns, *(own * (who == p)[:, None] for p in range(len(PERSONALITIES)))], axis=2)


def _blind_returns(course: Course, loops: FarmParams, first: int, last: int) -> np.ndarray:
    """(K, last - first, ...) returns of policies that read no alerts, under all rewards of the course.

    Without an attack nothing that they do is a matter of luck: they are paid the same in all such episodes, and play
    one of them.
    """
    alike = np.flatnonzero(~course.attack[first:last])
    play = np.delete(np.arange(last - first), alike[1:])
    returns = np.empty((len(loops.entity), last - first, len(course.arena.rewards)), np.float32)
    keys = course.keys[first:last][play]
    returns[:, play] = returns_many(course.arena.env, course.arena.params, policies.FARM, loops, keys)
    returns[:, alike] = returns[:, alike[:1]]
    return returns


def race_policies(course: Course, policy: Policy, parameters: Any, screen: int, select: int, keep: int) -> Finalists:
    """Race policies under the arena's own rewards, from `screen` to `select` episodes; `keep` are left for each."""
    many = len(jax.tree.leaves(parameters)[0])

    def play(rows: np.ndarray, first: int, last: int) -> np.ndarray:
        return policy_returns(course, policy, take(parameters, rows), first, last)

    raced = race(play, course.monitor[:, : course.own], many, rounds(screen, select), keep)
    return Finalists(take(parameters, raced.alive), raced.returns, raced.difference[raced.alive])


def together(course: Course, policy: Policy, found: Finalists, given: Any, keep: int) -> Finalists:
    """The best `keep` for each reward of some finalists and of `given` policies, which play the same episodes now."""
    if given is not None:
        again = policy_returns(course, policy, given, 0, found.returns.shape[1])
        found = merged(found, Finalists(given, again, differences(again, course.monitor[:, : course.own])[0]))
    return best_of(found, keep)


def merged(one: Finalists, other: Finalists) -> Finalists:
    """The finalists of both."""
    both: Finalists = jax.tree.map(lambda a, b: np.concatenate([a, b]), one, other)
    return both


def best_of(found: Finalists, keep: int) -> Finalists:
    """The best `keep` of some finalists for each criterion."""
    best: Finalists = take(found, best_rows(found.gain, keep))
    return best
