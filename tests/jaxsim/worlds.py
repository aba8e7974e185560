"""Episodes of one campaign under hardened rules, whose hidden side the tests of leaks change."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scenarios
from jaxsim import env
from jaxsim.actions import table
from jaxsim.compile import dims_of
from jaxsim.one_episode import episode_keys, start, tick_noise
from jaxsim.rules import PERSONALITIES, restores
from jaxsim.types import INVESTIGATE, Dims, Params, State

SCENARIO = scenarios.load("insider_repo_pivot_hardened")
DIMS = dims_of([SCENARIO])
TICKS = SCENARIO.horizon + 3
WORLDS = 48

HIDDEN = sorted(set(State._fields) - {"tick", "marks", "alerts", "forensics", "end"})

ALL_ON = "hardened+believable_paths"


def dims_under(rules: str) -> Dims:
    return DIMS._replace(restore=restores(rules))


@cache
def params_of(rules: str) -> Params:
    return env.make_params(SCENARIO, dims_under(rules), rules, "operational", "any")


def scrambled(x: Any) -> Any:
    """Other values, in other places."""
    x = jnp.asarray(x)
    x = jnp.roll(x, 1) if x.ndim else x
    return ~x if x.dtype == bool else x + jnp.ones((), x.dtype)


@jax.jit
def play(params: Params, keys: Any, plans: Any) -> State:
    """States of whole episodes from tick 0 on, axes (E, T + 1)."""
    return jax.vmap(lambda key, plan: play_on(params, start(DIMS, key, params), key, plan))(keys, plans)


def play_on(params: Params, state: State, key: Any, plan: Any, dims: Dims = DIMS) -> State:
    """States from `state` on, leading axis T + 1, under the noise of `key`."""

    def tick(state: State, action: Any) -> tuple[State, State]:
        after, _ = env.transition(dims, state, action, tick_noise(key, state.tick + 1), params)
        return after, after

    _, states = jax.lax.scan(tick, state, plan)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states)


def busy_episodes(episodes: int = 32, but: int | None = None, dims: Dims = DIMS) -> tuple[Any, Any]:
    """Keys, and plans (E, T) in which one tick in four has an action, none of them of the verb `but`."""
    rng = np.random.default_rng(5)
    usable = np.flatnonzero(table(dims)[0] != but)
    plans = np.where(rng.random((episodes, TICKS)) < 0.25, rng.choice(usable, (episodes, TICKS)), 0).astype(np.int32)
    return episode_keys(jax.random.key(5), episodes), jnp.asarray(plans)


def play_worlds(rules: str) -> tuple[State, Params]:
    """The same noise and actions in WORLDS hidden worlds, states (W, E, T + 1); the worlds share what is visible.

    No stage raises an alert, and nobody investigates: what happens can be known from nothing. The benign activities
    keep their roles, since their alerts name them.
    """
    params, dims = params_of(rules), dims_under(rules)
    silent = params.scenario._replace(stage_detection=jnp.zeros(DIMS.stages, jnp.float32))
    keys, plans = busy_episodes(6, INVESTIGATE, dims)

    def world(luck: Any) -> State:
        roles, order, who, success, delay, retry, attack = jax.random.split(luck, 7)
        chances = jax.random.uniform(success, (DIMS.stages,)) ** 0.3
        rest = jax.random.randint(retry, (), 1, 9)
        own = params._replace(
            scenario=silent._replace(stage_success=chances),
            rules=params.rules._replace(retry_delay=jnp.stack([rest, rest])),
        )
        dealt = jax.random.randint(roles, (2, DIMS.stages), -1, jnp.asarray([[DIMS.assets], [DIMS.identities]]))
        dealt = jnp.where((dealt >= 0) & (np.arange(2)[:, None] == 1), dealt + DIMS.assets, dealt)
        index = jax.random.randint(who, (), 0, len(PERSONALITIES))

        def episode(key: Any, plan: Any) -> State:
            state = start(DIMS, key, params)
            state = state._replace(
                who=index,
                personality=jax.tree.map(lambda x: x[index], params.personalities),
                targets=state.targets.at[:, : DIMS.stages].set(dealt),
                order=(jax.random.permutation(order, DIMS.stages) * 256 + np.arange(DIMS.stages)).astype(jnp.int32),
                attack=jax.random.bernoulli(attack, 0.75),
                next_start=jax.random.randint(delay, (), 1, 22),
            )
            return play_on(own, state, key, plan, dims)

        return jax.vmap(episode)(keys, plans)

    return jax.jit(jax.vmap(world))(jax.random.split(jax.random.key(6), WORLDS)), params
