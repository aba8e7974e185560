"""Nothing that is hidden reaches the observation, whatever an episode was dealt and whatever comes next."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from worlds import ALL_ON, DIMS, HIDDEN, SCENARIO, WORLDS, busy_episodes, params_of, play, play_worlds, scrambled

from jaxsim import env
from jaxsim.one_episode import start
from jaxsim.rules import PERSONALITIES
from jaxsim.types import EXFIL, RUNNING, AlertRing, ForensicRing, Observation, Params, State

VISIBLE = {".tick", ".marks"} | {f".alerts.{f}" for f in AlertRing._fields}
VISIBLE |= {f".forensics.{f}" for f in ForensicRing._fields}
PUBLIC = {".scenario.horizon", ".scenario.exists", ".scenario.value"}


def paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def unequal(a: Any, b: Any) -> list[str]:
    """Paths of the leaves that are not equal to the last bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [path for path, (x, y) in zip(paths(a), pairs, strict=True) if not np.array_equal(x, y)]


# --- what the program reads -----------------------------------------------------------------------------------------


def inputs_of(observe: Callable[..., Any]) -> tuple[set[str], set[str]]:
    """Paths of the state and of the parameters that a program reads, dead code taken out."""
    params = params_of("hardened")
    state = jax.eval_shape(partial(start, DIMS), jax.random.key(0), params)
    jaxpr = jax.make_jaxpr(observe)(state, params).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    flags, of_state, of_params = iter(used), paths(state), paths(params)
    return {p for p in of_state if next(flags)}, {p for p in of_params if next(flags)}


def test_the_program_of_an_observation_reads_nothing_hidden() -> None:
    """`who` it reads, to show it only where the rules do not hide the personality: see the test by value."""
    of_state, of_params = inputs_of(partial(env.observe, DIMS))
    assert of_state == VISIBLE | {".who"}
    assert of_params == PUBLIC | {".rules.hide_personality"}


@pytest.mark.parametrize("field", sorted({*HIDDEN, "end"} - {"who"}))
def test_a_program_that_reads_more_would_be_noticed(field: str) -> None:
    def leaky(state: State, params: Params) -> Any:
        return env.observe(DIMS, state, params), getattr(state, field)

    more = inputs_of(leaky)[0] - VISIBLE - {".who"}
    assert {path.split(".")[1] for path in more} == {field}


@pytest.mark.parametrize(("rules", "shown"), [("classic", {".who"}), ("hardened", set())])
def test_an_observation_changes_with_nothing_hidden(rules: str, shown: set[str]) -> None:
    params, played = params_of(rules), play(params_of(rules), *busy_episodes())
    count = np.minimum(played.alerts.count, played.forensics.count)
    state = jax.tree.map(lambda x: x[np.unravel_index(count.argmax(), count.shape)], played)
    assert min(state.alerts.count, state.forensics.count) > 0
    observe = jax.jit(partial(env.observe, DIMS))

    def changing(read: Callable[[Any], Observation], tree: Any) -> set[str]:
        before, (flat, shape) = read(tree), jax.tree.flatten(tree)
        changed = [shape.unflatten([*flat[:i], scrambled(x), *flat[i + 1 :]]) for i, x in enumerate(flat)]
        return {path for path, other in zip(paths(tree), changed, strict=True) if unequal(read(other), before)}

    assert changing(lambda s: observe(s, params), state) == VISIBLE | shown
    assert changing(lambda p: observe(state, p), params) == PUBLIC | {".rules.hide_personality"}


# --- whole episodes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds() -> tuple[State, Params]:
    return play_worlds("hardened")


def seen(observe: Callable[..., Any], worlds: tuple[State, Params]) -> Any:
    """Observations and whether each episode goes on, leaves (W, E, T + 1, ...)."""
    states, params = worlds

    def look(state: State) -> Any:
        return observe(DIMS, state, params), state.end == RUNNING

    return jax.jit(jax.vmap(jax.vmap(jax.vmap(look))))(states)


def leaks(observe: Callable[..., Any], worlds: tuple[State, Params]) -> list[str]:
    """Paths of what is not the same in all worlds."""
    everything = seen(observe, worlds)
    return unequal(everything, jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), everything))


def test_hidden_worlds_look_alike_to_the_last_bit(worlds: tuple[State, Params]) -> None:
    assert leaks(env.observe, worlds) == []
    states, _ = worlds
    assert (states.tick[:, :, -1] == SCENARIO.horizon).all()
    # The worlds are not alike.
    assert len({tuple(x) for x in states.succeeded[:, :, -1].tolist()}) > WORLDS // 4
    out = np.asarray(states.end[:, :, -1] == EXFIL)
    assert 0.02 < out.mean() < 0.98 and len(set(states.who[:, 0, 0].tolist())) == len(PERSONALITIES)


def test_with_all_switches_on_they_look_alike_too() -> None:
    """Controls are lifted again, and assets rebuilt."""
    worlds = play_worlds(ALL_ON)
    assert leaks(env.observe, worlds) == []
    marks, compromised = worlds[0].marks, worlds[0].compromised
    assert (marks[0, :, :-1] & ~marks[0, :, 1:]).any(axis=(0, 1, 3)).tolist() == [True, True, False, False]
    assert (compromised[:, :, :-1] & ~compromised[:, :, 1:]).any()


def test_under_classic_rules_the_same_worlds_differ() -> None:
    """They name the personality, and an episode may end early."""
    assert leaks(env.observe, play_worlds("classic")) == ["[0].tick", "[0].personality", *ENDED]


# What stands still from the end of an episode on, and whether it goes on.
ENDED = [f"[0].{x}" for x in ("marks", "alerts.number", "alerts.signal", "alerts.asset", "alerts.identity")]
ENDED += ["[0].alerts.severity", "[0].alerts.tick", "[1]"]

LEAKY: dict[str, Callable[[State, Observation], Observation]] = {
    "personality": lambda s, o: o._replace(personality=s.who),
    "horizon": lambda s, o: o._replace(horizon=o.horizon + s.attack.astype(jnp.int32)),
    "value": lambda s, o: o._replace(value=jnp.where(s.compromised, 0.0, o.value)),
    "alerts": lambda s, o: o._replace(alerts=o.alerts._replace(number=o.alerts.number + s.succeeded)),
    "forensics": lambda s, o: o._replace(forensics=o.forensics._replace(tick=o.forensics.tick + s.next_start)),
    "exists": lambda s, o: o._replace(exists=o.exists & (np.arange(DIMS.entities) != jnp.max(s.targets[0]))),
}


@pytest.mark.parametrize("field", LEAKY)
def test_a_leaky_observation_is_caught(worlds: tuple[State, Params], field: str) -> None:
    def leaky(dims: Any, state: State, params: Params) -> Observation:
        return LEAKY[field](state, env.observe(dims, state, params))

    caught = leaks(leaky, worlds)
    assert len(caught) == 1 and field in caught[0]


def test_what_is_still_to_come_does_not_show() -> None:
    """At every tick, with the hidden part of another episode, alerts in flight and all, the observation is the same."""
    params = params_of("hardened")
    states = play(params, *busy_episodes())
    other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), states)
    swapped = states._replace(**{f: getattr(other, f) for f in HIDDEN})
    observe = jax.jit(jax.vmap(jax.vmap(lambda state: env.observe(DIMS, state, params))))
    assert unequal(observe(states), observe(swapped)) == []
    never = {f for f in HIDDEN if not unequal(getattr(states, f), getattr(swapped, f))}
    assert never == {"left"}, "the hidden parts differ, but for what only RESTORE changes"
