"""What every scenario, rule set, reward and attacker personality must keep to, whatever the rules say."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    CASES,
    DIMS,
    EPISODES,
    EVERY,
    KEYS,
    PLANS,
    WHO,
    Case,
    every_case,
    illegal,
    leaves,
    params_of,
    random_plans,
    sizes,
    unequal,
)
from cells import CAMPAIGNS, HARDENED, PRESETS, stack
from parity import Played, Reader, play_one, rows

import scenarios
from jaxsim import actions, compile, env, names, reward, rules
from jaxsim.one_episode import tick_noise
from jaxsim.types import RUNNING, Dims, Params, State

# More room than any campaign needs, in every field.
ROOMY = Dims(*(size + more for size, more in zip(DIMS[:-1], (2, 3, 2, 4, 5, 3, 2), strict=True)))


def episodes(dims: Dims, params: Params, keys: chex.Array, plans: chex.Array) -> Played:
    """Whole episodes, axes (E, T), scored by the reward in `params`."""
    return jax.vmap(partial(play_one, dims, params, params.reward))(keys, plans)


# A second trace of this program, but for that with RESTORE, is an error, so no value that may differ between cases can
# be baked into it.
@partial(jax.jit, static_argnums=0)
@chex.assert_max_traces(n=2)
def play_once(dims: Dims, params: Params, keys: chex.Array, plans: chex.Array) -> Played:
    return episodes(dims, params, keys, plans)


@cache
def played(case: Case) -> Played:
    dims = sizes(case)
    result: Played = jax.tree.map(np.asarray, play_once(dims, params_of(case), KEYS, random_plans(dims)))
    return result


def outcome(case: Case) -> bytes:
    """All that happened in its episodes and was paid for it."""
    return np.stack([*played(case).signals, played(case).total]).tobytes()


@cache
def running(case: Case) -> State:
    """States in which the episode goes on, leading axis = how many."""
    state = played(case).state
    return jax.tree.map(lambda x: x[state.end == RUNNING][:64], state)


# --- one program ------------------------------------------------------------------------------------------------------


def test_cases_differ() -> None:
    """Else nothing below means much: each scenario, rule set and personality plays, each reward pays in its own way."""
    cases = [c for c in CASES if c.reward == "operational"]
    assert len(cases) == (len(rules.PRESETS) * len(CAMPAIGNS) + len(HARDENED)) * len(WHO) + len(HARDENED)
    # `hardened2` differs from `hardened` in its background alerts alone, and what reads nothing is paid the same there.
    older = [c for c in cases if c.rules == "hardened2"]
    happened = {outcome(c) for c in cases if c not in older}
    assert len(happened) == len(cases) - len(older)
    for case in older:
        now = case._replace(rules="hardened")
        assert outcome(case) == outcome(now)
        assert not np.array_equal(played(case).state.alerts.code, played(now).state.alerts.code)
        assert not np.array_equal(played(case).state.alerts.severity, played(now).state.alerts.severity)
    weights = {preset: tuple(map(float, reward.weights(preset))) for preset in reward.PRESETS}
    assert len(set(weights.values())) == len(weights)


@every_case
def test_every_number_is_finite(case: Case) -> None:
    assert (played(case).state.end[:, -1] != RUNNING).all()
    for path, x in leaves(played(case)):
        assert np.isfinite(x).all(), path


def test_a_mixed_batch_equals_separate_runs() -> None:
    mixed = jax.jit(jax.vmap(partial(episodes, DIMS), in_axes=(0, None, None)))
    cases = [case for case in CASES if sizes(case) == DIMS]
    together = mixed(stack([params_of(case) for case in cases]), KEYS, PLANS)
    for i, case in enumerate(cases):
        assert unequal(jax.tree.map(lambda x, i=i: x[i], together), played(case)) == [], case


@partial(jax.jit, static_argnums=0)
def single(dims: Dims, params: Params, key: chex.Array, plan: chex.Array) -> Played:
    return play_one(dims, params, params.reward, key, plan)


@every_case
def test_vmap_equals_loop(case: Case) -> None:
    for e in (0, EPISODES - 1):
        alone = single(sizes(case), params_of(case), KEYS[e], random_plans(sizes(case))[e])
        assert unequal(alone, jax.tree.map(lambda x, e=e: x[e], played(case))) == []


def step_and_score(dims: Dims, state: State, action: chex.Array, block: chex.Array, params: Params) -> Any:
    after, signals = env.transition(dims, state, action, block, params)
    channels = reward.channels(signals, params.reward)
    return after, signals, channels, reward.total(channels, params.reward)


step_jitted = jax.jit(step_and_score, static_argnums=0)
over_states = jax.vmap(step_and_score, in_axes=(None, 0, None, None, None))
over_actions = jax.jit(jax.vmap(over_states, in_axes=(None, None, 0, None, None)), static_argnums=0)
AT_ONCE = 8  # actions


def step_each(case: Case, some: State, acts: np.ndarray, block: chex.Array) -> Any:
    """What comes of each of the actions in each of the states, (A, S, ...)."""
    asked = np.append(acts, np.zeros(-len(acts) % AT_ONCE, np.int32)).astype(np.int32).reshape(-1, AT_ONCE)
    there, params = jax.device_put((some, params_of(case)))
    told = [jax.device_get(over_actions(sizes(case), there, row, block, params)) for row in asked]
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(acts)], *told)


def alike(tree: Any, many: int) -> Any:
    return jax.tree.map(lambda x: np.broadcast_to(x, (many, *x.shape)), tree)


# Op by op, a third of a second each: all that can be chosen by name, with every verb.
@pytest.mark.parametrize("case", dict.fromkeys([*CASES[::9], *CASES[-4:]]), ids="-".join)
def test_jit_equals_eager(case: Case) -> None:
    """A step from the middle of an episode; all verbs and an invalid action take turns."""
    some, dims = running(case), sizes(case)
    state = jax.tree.map(lambda x: jnp.asarray(x[len(x) // 2]), some)
    verbs = actions.table(dims)[0]
    verb = verbs.max() - CASES.index(case) % (verbs.max() + 2)
    action = jnp.int32(np.flatnonzero(verbs == verb)[0] if verb in verbs else -1)
    block = tick_noise(KEYS[0], jnp.int32(1000))
    jitted = step_jitted(dims, state, action, block, params_of(case))
    with jax.disable_jit():
        eager = step_and_score(dims, state, action, block, params_of(case))
    chex.assert_trees_all_close(jitted, eager, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(jitted, eager)


# --- illegal actions and finished episodes ----------------------------------------------------------------------------


@every_case
def test_an_illegal_action_costs_and_does_nothing_else(case: Case) -> None:
    """It is MONITOR with a price: the attacker moves, noise comes, the tick passes, the defender has not acted."""
    acts = np.append(np.int32(0), illegal(EVERY[case.scenario], sizes(case)))  # MONITOR first
    told = step_each(case, jax.tree.map(lambda x: x[-32:], running(case)), acts, tick_noise(KEYS[1], jnp.int32(7)))
    (state, signals, channels, total), many = jax.tree.map(lambda x: x[0], told), len(acts) - 1
    after, illegal_signals, illegal_channels, paid = jax.tree.map(lambda x: x[1:], told)
    assert unequal(after, alike(state, many)) == []
    priced = signals._replace(invalid=np.ones_like(signals.invalid))
    assert unequal(illegal_signals, alike(priced, many)) == []
    price = np.float32(params_of(case).reward.invalid_action)
    priced = channels._replace(invalid_action=np.full_like(total, price))
    assert unequal(illegal_channels, alike(priced, many)) == []
    assert (paid < total).all()


@every_case
def test_a_finished_episode_stays_as_it_is(case: Case) -> None:
    ended = jax.tree.map(lambda x: x[:, -1], played(case).state)
    acts = np.append([-1, 0], np.random.default_rng(1).integers(1, sizes(case).actions, 5))
    after, *paid = step_each(case, ended, acts, tick_noise(KEYS[2], jnp.int32(9)))
    assert unequal(after, alike(ended, len(acts))) == []
    assert not any(np.any(x) for x in jax.tree.leaves(paid))


# --- padding ----------------------------------------------------------------------------------------------------------

play_roomy = jax.jit(episodes, static_argnums=0)


@every_case
def test_more_padding_plays_the_same_episode(case: Case) -> None:
    """The same actions by name. A longer view may show older alerts; the newest are the same."""
    scenario, dims, roomy = EVERY[case.scenario], sizes(case), sizes(case, ROOMY)
    moved = {a: translate(a, scenario, dims, roomy) for a in range(-2, dims.actions + 2)}
    plans = np.vectorize(moved.get)(random_plans(dims)).astype(np.int32)
    wide = jax.tree.map(np.asarray, play_roomy(roomy, params_of(case, ROOMY), KEYS, plans))
    for field in ("signals", "channels", "total", "block"):
        assert unequal(getattr(wide, field), getattr(played(case), field)) == [], field

    readers = [Reader(scenario, "stealthy", d) for d in (dims, roomy)]
    for e in range(2):
        states = [jax.tree.map(lambda x, e=e: x[e], p.state) for p in (played(case), wide)]
        length = int(states[0].tick[-1])
        both = [rows(s, length) for s in states]
        for reader, states_read in zip(readers, both, strict=True):
            reader.reset(states_read[0], PRESETS[case.rules])
        for a, b in zip(*both, strict=True):
            theirs = readers[1].read(b)
            del theirs.alerts[: -DIMS.alerts], theirs.forensics[: -DIMS.forensics]
            assert readers[0].read(a) == theirs


def translate(action: int, scenario: scenarios.Scenario, dims: Dims, roomy: Dims) -> int:
    text = names.action_text(action, scenario, dims)
    return -1 if text == "INVALID" else names.parse_action(text, scenario, roomy)


@pytest.mark.parametrize("field", ["assets", "identities", "stages", "max_lag", "benign"])
def test_what_does_not_fit_is_refused(field: str) -> None:
    scenario = HARDENED["insider_repo_pivot_hardened"]
    own = compile.dims_of([scenario], restore=True)
    tight = own._replace(**{field: getattr(own, field) - 1})
    with pytest.raises(scenarios.ScenarioError, match=f"insider_repo_pivot_hardened: {field} = {getattr(own, field)} "):
        env.make(scenario, dims=tight)
