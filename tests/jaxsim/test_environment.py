"""The environment as a user sees it: reset, observation, step, names of actions, choices and defaults."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, DIMS, EVERY, KEYS, Case, every_case, illegal, observe, params_of, sizes, unequal
from cells import ALL_ON, PRESETS

import jaxsim
from jaxsim import actions, env, names, reward, rules, twin, twin_state, types
from jaxsim.one_episode import episode_keys
from jaxsim.types import RUNNING, VERBS, Dims

LIFTABLE_DIMS = DIMS._replace(restore=True)


# --- reset and observation --------------------------------------------------------------------------------------------

reset, step = (jax.jit(method, static_argnums=0) for method in (env.Env.reset, env.Env.step))
reset_many = jax.jit(jax.vmap(env.Env(DIMS).reset, in_axes=(0, None)))


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


# --- the environment as a user sees it --------------------------------------------------------------------------------

DEALT = ("personality", "who", "attack", "next_start", "targets", "order")  # what differs between episodes at tick 0


@pytest.mark.parametrize("auto_reset", [False, True])
@pytest.mark.parametrize("rule_set", rules.PRESETS)
def test_step_ends_and_begins_episodes(rule_set: str, auto_reset: bool) -> None:
    """With auto_reset a last step gives the next episode's first observation, and its own as final_observation."""
    dims = DIMS._replace(restore=rules.restores(rule_set))
    environment, params = jaxsim.make("supply_chain_token_drift", rules=rule_set, dims=dims, auto_reset=auto_reset)
    obs, state = reset(environment, KEYS[0], params)
    attackers = []
    for key in jax.random.split(jax.random.key(77), 290):
        before = int(state.tick)
        obs, state, points, terminated, truncated, info = step(environment, key, state, jnp.int32(0), params)
        assert not truncated and bool(terminated) == (int(info["end"]) != RUNNING)
        assert unequal(obs, observe(dims, state, params)) == []
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
    fresh = twin_state.reset(scenario, "stealthy", PRESETS[rule_set])
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
    _, params = env.make("supply_chain_token_drift", dims=LIFTABLE_DIMS)
    assert unequal(params, params_of(Case("supply_chain_token_drift", "hardened", "operational", rules.ANY))) == []


def test_reward_weights_by_name() -> None:
    weights = reward.PRESETS["linear"] | {"clip": 2.0}
    _, params = env.make("supply_chain_token_drift", reward=weights, dims=LIFTABLE_DIMS)
    assert unequal(params.reward, reward.weights("linear", clip=2.0)) == []
    assert float(params.reward.clip) == 2.0
