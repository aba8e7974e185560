"""What every scenario, rule set, reward and attacker personality must keep to, whatever the rules say."""

import inspect
import itertools
import re
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import ALL_ON, CAMPAIGNS, HARDENED, PLAN_TICKS, PRESETS, Played, Reader, play_one, rows, stack

import jaxsim
import scenarios
from jaxsim import actions, compile, env, names, policies, reward, rules, twin, types
from jaxsim.replays import replay
from jaxsim.rollouts import BLOCK, EpisodeStats, Trajectory, episode_keys, rollout, rollout_many, tick_noise
from jaxsim.types import RUNNING, VERBS, Dims, Observation, Params, State


class Case(NamedTuple):
    """One combination of all that can be chosen by name."""

    scenario: str
    rules: str
    reward: str
    personality: str


@cache
def random_plans(dims: Dims) -> np.ndarray:
    """Plans from passive to frantic, (E, T), one action in ten of the frantic ones outside the table."""
    rng = np.random.default_rng(3)
    busy = rng.choice([0.1, 0.3, 1.0], (EPISODES, 1))
    drawn = rng.integers(-2, dims.actions + 2, (EPISODES, PLAN_TICKS))
    return np.where(rng.random((EPISODES, PLAN_TICKS)) < busy, drawn, 0).astype(np.int32)


EVERY = CAMPAIGNS | HARDENED
DIMS = compile.dims_of(list(EVERY.values()))
LIFTABLE_DIMS = DIMS._replace(restore=True)
WHO = (*rules.PERSONALITIES, rules.ANY)
# The hardened campaigns are made for the hardened rules and their reward.
CASES = [
    *itertools.starmap(Case, itertools.product(CAMPAIGNS, rules.PRESETS, reward.PRESETS, WHO)),
    *itertools.starmap(Case, itertools.product(HARDENED, ("hardened",), ("operational",), WHO)),
    *(Case(name, ALL_ON, "operational", rules.ANY) for name in HARDENED),
]
EPISODES = 12
KEYS = episode_keys(jax.random.key(3), EPISODES)
PLANS = random_plans(DIMS)
# More room than any campaign needs, in every field.
ROOMY = Dims(*(size + more for size, more in zip(DIMS[:-1], (2, 3, 2, 4, 5, 3, 2), strict=True)))

every_case = pytest.mark.parametrize("case", CASES, ids="-".join)


def sizes(case: Case, dims: Dims = DIMS) -> Dims:
    """Those of a case: with RESTORE where its rules bring it."""
    return dims._replace(restore=rules.restores(case.rules))


@cache
def params_of(case: Case, dims: Dims = DIMS) -> Params:
    return env.make_params(EVERY[case.scenario], sizes(case, dims), case.rules, case.reward, case.personality)


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


@cache
def running(case: Case) -> State:
    """States in which the episode goes on, leading axis = how many."""
    state = played(case).state
    return jax.tree.map(lambda x: x[state.end == RUNNING][:64], state)


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf), the path as in `.alerts.code`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path), leaf


def unequal(a: Any, b: Any) -> list[str]:
    """Paths of the leaves that are not equal to the last bit."""
    return [path for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True) if not np.array_equal(x, y)]


# --- one program ----------------------------------------------------------------------------------------------------


def test_cases_differ() -> None:
    """Else nothing below means much: each scenario, rule set and personality plays, each reward pays in its own way."""
    cases = [c for c in CASES if c.reward == "operational"]
    happened = {np.stack([*played(c).signals, played(c).total]).tobytes() for c in cases}
    assert len(happened) == len(cases) == (2 * len(CAMPAIGNS) + len(HARDENED)) * len(WHO) + len(HARDENED)
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
step_all = jax.jit(jax.vmap(step_and_score, in_axes=(None, 0, None, None, None)), static_argnums=0)


@every_case
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


# --- illegal actions and finished episodes --------------------------------------------------------------------------


def illegal(scenario: scenarios.Scenario, dims: Dims) -> np.ndarray:
    """Actions outside the table, and those of the table on entities that are padding."""
    ids = names.entity_names(scenario, dims)
    padding = [a for a, e in enumerate(actions.table(dims)[1].tolist()) if e >= 0 and ids[e] is None]
    return np.asarray([-1, -2, dims.actions, 10**6, -(2**31), 2**31 - 1, *padding], np.int32)


@every_case
def test_an_illegal_action_costs_and_does_nothing_else(case: Case) -> None:
    """It is MONITOR with a price: the attacker moves, noise comes, the tick passes, the defender has not acted."""
    params, block, dims = params_of(case), tick_noise(KEYS[1], jnp.int32(7)), sizes(case)
    some = jax.tree.map(lambda x: x[-32:], running(case))
    state, signals, channels, total = step_all(dims, some, jnp.int32(0), block, params)
    price = np.float32(params.reward.invalid_action)
    for action in illegal(EVERY[case.scenario], dims):
        after, illegal_signals, illegal_channels, paid = step_all(dims, some, jnp.int32(action), block, params)
        assert unequal(after, state) == [], action
        assert unequal(illegal_signals, signals._replace(invalid=jnp.ones_like(signals.invalid))) == []
        assert unequal(illegal_channels, channels._replace(invalid_action=np.full_like(paid, price))) == []
        assert (np.asarray(paid) < np.asarray(total)).all()


@every_case
def test_a_finished_episode_stays_as_it_is(case: Case) -> None:
    ended, dims = jax.tree.map(lambda x: x[:, -1], played(case).state), sizes(case)
    block = tick_noise(KEYS[2], jnp.int32(9))
    for action in (-1, 0, *np.random.default_rng(1).integers(1, dims.actions, 5)):
        after, signals, channels, total = step_all(dims, ended, jnp.int32(action), block, params_of(case))
        assert unequal(after, ended) == []
        assert not np.any([*signals, *channels, total])


# --- padding --------------------------------------------------------------------------------------------------------


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
    own = compile.dims_of([scenario])
    tight = own._replace(**{field: getattr(own, field) - 1})
    with pytest.raises(scenarios.ScenarioError, match=f"insider_repo_pivot_hardened: {field} = {getattr(own, field)} "):
        env.make(scenario, dims=tight)


# --- reset and observation ------------------------------------------------------------------------------------------


reset, step = (jax.jit(method, static_argnums=0) for method in (env.Env.reset, env.Env.step))
reset_many = jax.jit(jax.vmap(env.Env(DIMS).reset, in_axes=(0, None)))
observe = jax.jit(env.observe, static_argnums=0)


def numbers(view: types.Alerts | types.Forensics) -> np.ndarray:
    return np.asarray(view.number)


@every_case
def test_reset_shows_an_untouched_inventory(case: Case) -> None:
    scenario = EVERY[case.scenario]
    obs, state = reset(env.Env(DIMS), KEYS[0], params_of(case))
    assert (numbers(obs.alerts) == -1).all() and (numbers(obs.forensics) == -1).all()
    assert (int(obs.tick), int(obs.horizon), int(state.end)) == (0, scenario.horizon, RUNNING)
    assert not np.asarray(obs.marks).any() and not np.asarray(state.compromised).any()
    assert float(state.load) == 0.0
    ids = names.entity_names(scenario, DIMS)
    assert np.asarray(obs.exists).tolist() == [n is not None for n in ids]
    listed = {x.id: x.criticality for x in scenario.assets} | {x.id: x.privilege for x in scenario.identities}
    assert np.asarray(obs.value).tolist() == [np.float32(listed[n]) if n else 0.0 for n in ids]


@pytest.mark.parametrize("personality", [*rules.PERSONALITIES, rules.ANY])
def test_reset_draws_the_personality(personality: str) -> None:
    case = Case("supply_chain_token_drift", "classic", "evidence", personality)
    keys = episode_keys(jax.random.key(8), 3000)
    drawn = reset_many(keys, params_of(case))[1].personality
    rows_ = [tuple(np.float32(x) for x in p.values()) for p in rules.PERSONALITIES.values()]
    found = [rows_.index(row) for row in zip(*(np.asarray(x, np.float32).tolist() for x in drawn), strict=True)]
    shares = np.bincount(found, minlength=len(rows_)) / len(found)
    wanted = [personality in (p, rules.ANY) for p in rules.PERSONALITIES]
    # 0.04 is more than four standard errors of a share of a third.
    assert np.abs(shares - np.asarray(wanted) / sum(wanted)).max() < (0.04 if sum(wanted) > 1 else 1e-9)


_COMMENT = re.compile(r"^    (\w+): Array  # \(([^)]*)\) (\w+)", re.MULTILINE)
SIZES = {
    "A": DIMS.assets,
    "I": DIMS.identities,
    "N": DIMS.entities,
    "S": DIMS.stages,
    "W": DIMS.words,
    "L": DIMS.max_lag,
    "K": DIMS.alerts,
    "F": DIMS.forensics,
    "P": len(rules.PERSONALITIES),
    "B": DIMS.benign,
}


def check_comments(value: Any, found: list[str]) -> None:
    """The shape and dtype written beside each array of a pytree, and of the pytrees in it."""
    written = {name: (shape, dtype) for name, shape, dtype in _COMMENT.findall(inspect.getsource(type(value)))}
    for name in value._fields:
        part = getattr(value, name)
        if hasattr(part, "_fields"):
            check_comments(part, found)
            continue
        shape, dtype = written[name]  # a field without a comment fails here
        sizes = tuple(sum(SIZES.get(y.strip()) or int(y) for y in x.split("+")) for x in shape.split(",") if x.strip())
        where = f"{type(value).__name__}.{name}"
        assert (part.shape, str(part.dtype)) == (sizes, dtype), where
        found.append(where)


def test_shapes_and_dtypes_are_those_in_the_comments() -> None:
    environment, found = env.Env(DIMS), list[str]()
    params = params_of(CASES[0])
    obs, state = reset(environment, KEYS[0], params)
    for tree in (obs, state, params._replace(personalities=state.personality)):
        check_comments(tree, found)
    obs, state, points, done, truncated, info = step(environment, KEYS[0], state, jnp.int32(1), params)
    for tree in (obs, state, info["signals"], info["channels"]):
        check_comments(tree, found)
    assert all(x.shape == (SIZES["P"],) for x in params.personalities)
    assert [str(x.dtype) for x in (points, done, truncated, info["end"])] == ["float32", "bool", "bool", "int32"]
    documented = {c.__name__ for c in vars(types).values() if inspect.isclass(c) and hasattr(c, "_fields")}
    assert {x.partition(".")[0] for x in found} | {"Dims", "Params"} == documented


# --- the environment as a user sees it ------------------------------------------------------------------------------


DEALT = ("personality", "who", "attack", "next_start", "targets", "order")  # what differs between episodes at tick 0


@pytest.mark.parametrize("auto_reset", [False, True])
@pytest.mark.parametrize("rule_set", rules.PRESETS)
def test_step_ends_and_begins_episodes(rule_set: str, auto_reset: bool) -> None:
    """With auto_reset a last step gives the next episode's first observation, and its own as final_observation."""
    environment, params = jaxsim.make("supply_chain_token_drift", rules=rule_set, dims=DIMS, auto_reset=auto_reset)
    obs, state = reset(environment, KEYS[0], params)
    attackers = []
    for key in jax.random.split(jax.random.key(77), 290):
        before = int(state.tick)
        obs, state, points, terminated, truncated, info = step(environment, key, state, jnp.int32(0), params)
        assert not truncated and bool(terminated) == (int(info["end"]) != RUNNING)
        assert unequal(obs, observe(DIMS, state, params)) == []
        assert float(points) == pytest.approx(float(reward.total(info["channels"], params.reward)))
        if not auto_reset:
            assert "final_observation" not in info
            continue
        last = info["final_observation"]
        assert int(last.tick) == before + 1
        if terminated:
            attackers.append(float(state.personality.dwell))
            fresh, beginning = reset(environment, jax.random.key(0), params)
            assert unequal(obs._replace(personality=fresh.personality), fresh) == []
            assert unequal(state._replace(**{f: getattr(beginning, f) for f in DEALT}), beginning) == []
        else:
            assert unequal(obs, last) == []
    # Alone an episode ends for good; one after the other, different attackers come.
    assert len(set(attackers)) >= 2 if auto_reset else int(state.end) != RUNNING


@pytest.mark.parametrize("rule_set", ["hardened", ALL_ON])
@pytest.mark.parametrize("name", EVERY)
def test_legal_means_valid(name: str, rule_set: str) -> None:
    """The mask, the decoder, the text and the twin agree on every action, and on those outside the table."""
    case = Case(name, rule_set, "operational", rules.ANY)
    scenario, params, dims = EVERY[name], params_of(case), sizes(case)
    exists, mask = params.scenario.exists, np.asarray(env.Env(dims).legal_actions(params))
    assert mask.shape == (env.Env(dims).num_actions,)
    valid = np.asarray(actions.decode(dims, jnp.arange(-3, dims.actions + 3), exists)[2])
    assert not valid[:3].any() and not valid[-3:].any()
    assert np.array_equal(valid[3:-3], mask)
    fresh = twin.reset(scenario, "stealthy", PRESETS[rule_set])
    for action, legal in enumerate(mask.tolist()):
        text = names.action_text(action, scenario, dims)
        assert (text != "INVALID") == legal
        verb, _, target = text.partition(" ")
        assert twin.is_valid(fresh, (verb, target or None)) == legal
    assert set(illegal(scenario, dims)[6:]) == set(np.flatnonzero(~mask))


@pytest.mark.parametrize("dims", [DIMS, LIFTABLE_DIMS])
@pytest.mark.parametrize("name", EVERY)
def test_every_action_survives_the_way_there_and_back(name: str, dims: Dims) -> None:
    """action -> (verb, entity) -> action, and action -> text -> action, by id and by position."""
    scenario = EVERY[name]
    every = jnp.arange(dims.actions)
    verb, entity, valid = actions.decode(dims, every, jnp.ones(dims.entities, bool))
    assert np.asarray(valid).all()
    assert np.array_equal(actions.encode(dims, verb, entity), every)
    assert np.array_equal(verb, actions.table(dims)[0])
    assert set(verb.tolist()) == {i for i, v in enumerate(VERBS) if dims.restore or v != "RESTORE"}
    exists = params_of(Case(name, "hardened", "operational", rules.ANY)).scenario.exists
    for action in np.flatnonzero(actions.legal_mask(dims, exists)).tolist():
        for text in (names.action_text(action, scenario, dims), names.positional_text(action, dims)):
            assert names.parse_action(text, scenario, dims) == action, text
        assert names.action_text(action, scenario, dims).split()[0] == VERBS[int(verb[action])]
    texts = [names.action_text(a, scenario, dims) for a in (-1, dims.actions)]
    assert texts == [names.positional_text(a, dims) for a in (-1, dims.actions)] == ["INVALID"] * 2


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("rules", rules.PRESETS),
        ("reward", reward.PRESETS),
        ("personality", (*rules.PERSONALITIES, rules.ANY)),
        ("scenario", EVERY),
    ],
)
def test_an_unknown_name_is_refused_with_the_choices(field: str, choices: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="nonesuch") as error:
        env.make(**{"scenario": "supply_chain_token_drift", field: "nonesuch"})
    assert [choice for choice in choices if choice not in str(error.value)] == []


def test_the_defaults_are_the_hardened_rules_and_their_reward() -> None:
    _, params = env.make("supply_chain_token_drift", dims=DIMS)
    assert unequal(params, params_of(Case("supply_chain_token_drift", "hardened", "operational", rules.ANY))) == []


def test_reward_weights_by_name() -> None:
    weights = reward.PRESETS["linear"] | {"clip": 2.0}
    _, params = env.make("supply_chain_token_drift", reward=weights, dims=DIMS)
    assert unequal(params.reward, reward.weights("linear", clip=2.0)) == []
    assert float(params.reward.clip) == 2.0


# --- rollouts -------------------------------------------------------------------------------------------------------

EVERY_70 = [name for name, s in EVERY.items() if s.horizon == 70]  # one program for all of them


@pytest.mark.parametrize(("name", "rule_set"), [*itertools.product(EVERY_70, rules.PRESETS), (EVERY_70[-1], ALL_ON)])
def test_a_replay_plays_the_episode_of_the_rollout(name: str, rule_set: str) -> None:
    environment, params = env.make(name, rules=rule_set, dims=DIMS._replace(restore=rules.restores(rule_set)))
    key, parameters = jax.random.key(61), np.zeros(1, np.int32)
    stats, record = rollout_many(environment, params, policies.RANDOM, parameters, episode_keys(key, 6), record=True)
    assert isinstance(record, Trajectory)
    for e in range(6):
        again = replay(environment, params, key, e, record.action[0, e])
        assert unequal(again.signals, jax.tree.map(lambda x, e=e: x[0, e], record.signals)) == []
        assert again.reward.sum() == pytest.approx(stats.episode_return[0, e], abs=1e-4)
        assert (again.state.tick[-1], again.state.end[-1]) == (stats.length[0, e], stats.end[0, e])
        assert again.state.succeeded[-1] == stats.succeeded[0, e]
        assert len(again.state.tick) == len(again.action) + 1 and int(again.state.tick[0]) == 0
        for t in (0, int(stats.length[0, e])):
            state, obs = (jax.tree.map(lambda x, t=t: x[t], tree) for tree in (again.state, again.observation))
            assert unequal(obs, observe(DIMS, state, params)) == []


def test_a_rollout_does_not_depend_on_its_batch() -> None:
    environment, params = env.make("federated_identity_takeover", dims=DIMS)
    run = partial(rollout, environment, params, policies.RANDOM, np.zeros(1, np.int32), jax.random.key(71))
    whole, part, many = run(80), run(8), run(80 * BLOCK)
    assert len(whole.length) == 80 and len(np.unique(whole.episode_return)) > 8
    assert unequal(jax.tree.map(lambda x: x[:80], many), whole) == []
    assert unequal(part, jax.tree.map(lambda x: x[:8], whole)) == []


def test_many_policies_at_once_equal_one_at_a_time() -> None:
    environment, params = env.make("insider_repo_pivot", dims=DIMS)
    keys = episode_keys(jax.random.key(81), 16)
    plans = np.random.default_rng(9).integers(0, DIMS.actions, (3, 6)).astype(np.int32)
    # A batch is filled up with a policy that must not be reported.
    many = rollout_many(environment, params, policies.PLAN, plans, keys)[0]
    assert many.length.shape == (3, 16)
    assert len({many.episode_return[m].tobytes() for m in range(3)}) == 3
    for m in range(3):
        alone: EpisodeStats = rollout_many(environment, params, policies.PLAN, plans[m : m + 1], keys)[0]
        assert unequal(jax.tree.map(lambda x: x[0], alone), jax.tree.map(lambda x, m=m: x[m], many)) == []


def test_many_rewards_at_once_equal_one_at_a_time() -> None:
    """Weights with an axis score the same episodes under each reward."""
    keys, plan = episode_keys(jax.random.key(82), 16), PLANS[-1:, :6]
    cases = [Case("insider_repo_pivot", "classic", name, "any") for name in reward.PRESETS]
    together = params_of(cases[0])._replace(reward=stack([params_of(case).reward for case in cases]))
    many = rollout_many(env.Env(DIMS), together, policies.PLAN, plan, keys)[0]
    for r, case in enumerate(cases):
        alone = rollout_many(env.Env(DIMS), params_of(case), policies.PLAN, plan, keys)[0]
        np.testing.assert_array_equal(many.episode_return[..., r], alone.episode_return)
        chex.assert_trees_all_equal(jax.tree.map(lambda x, r=r: x[..., r], many.channels), alone.channels)
        assert unequal(many.signals, alone.signals) == []


def test_a_rollout_is_compiled_once_for_all_values() -> None:
    """Other scenarios, rewards and personalities of the same sizes, and other keys, reuse the program."""
    traces = []

    def act(dims: Dims, parameters: Any, memory: Any, obs: Observation, noise: chex.Array) -> Any:
        traces.append(dims)
        return policies.act_random(dims, parameters, memory, obs, noise)

    policy, counts = policies.Policy(policies.no_memory, act), set[int]()
    for i, case in enumerate(c for c in CASES if sizes(c) == DIMS):
        rollout(env.Env(DIMS), params_of(case), policy, np.zeros(1, np.int32), jax.random.key(i), 4)
        counts.add(len(traces))
    assert len(counts) == 1 and 0 not in counts
