"""Public functions, given arguments that are no such thing: ValueError naming argument, value and remedy.

Every function that `jaxsim` and `prompting` export is here; a new one fails the first test until it is.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxsim
import prompting
import scenarios
from grpo.learning import signals
from grpo.rows import bank, credit, rows
from jaxsim import noise, replays, reward
from jaxsim.audit import ppo
from jaxsim.one_episode import episode_keys
from jaxsim.rollouts import returns_many

SCENARIO = jaxsim.load_scenario("supply_chain_token_drift")
ENV, PARAMS = jaxsim.make(SCENARIO)
KEY = jax.random.key(0)
KEYS = episode_keys(KEY, 2)
KEY_DATA = np.asarray(jax.random.key_data(KEYS))
INVENTORY = prompting.inventory(SCENARIO, ENV.dims)
POLICY, PARAMETERS = jaxsim.BASELINES["monitor"]
OBSERVATION, STATE = jax.jit(ENV.reset)(KEY, PARAMS)
GAME = rows.campaigns([SCENARIO.id], "hardened", "operational")
MANY = jax.tree.map(lambda x: np.asarray(x)[None], OBSERVATION)
WEIGHTS = reward.PRESETS["operational"]
SMALL = jaxsim.Dims(assets=1, identities=1, stages=1, max_lag=1)
RECORD = {"scenario": SCENARIO.id, "rules": "classic", "reward": "evidence", "personality": "any", "episode": 0}

Call = Callable[[Any], Any]
# What is called, how, with each of these; and a word that the message must hold.
CASES: list[tuple[Any, str, Call, list[Any]]] = [
    (jaxsim.load_scenario, "scenario", jaxsim.load_scenario, [None, 3, "", "nonesuch", "/", "no.yaml", "\0.yaml", []]),
    (jaxsim.make, "scenario", jaxsim.make, [None, 3, b"\xff", "/", ""]),
    (jaxsim.make, "rules", lambda x: jaxsim.make(SCENARIO, rules=x), [None, 3, "", "nonesuch", ["classic"]]),
    (jaxsim.make, "reward", lambda x: jaxsim.make(SCENARIO, reward=x), [None, 3, "", "nonesuch", [], {}, {1: 2}]),
    (jaxsim.make, "personality", lambda x: jaxsim.make(SCENARIO, personality=x), [None, 3, "", "nonesuch", []]),
    (jaxsim.make, "dims", lambda x: jaxsim.make(SCENARIO, dims=x), [3, (), (1, 2, 3, 4), SMALL._replace(assets=-1)]),
    (
        jaxsim.make,
        "dims",
        lambda x: jaxsim.make(SCENARIO, dims=x),
        [SMALL._replace(stages=0), SMALL._replace(alerts=0)],
    ),
    (
        jaxsim.make,
        "dims.restore",
        lambda x: jaxsim.make(SCENARIO, dims=ENV.dims._replace(restore=x)),
        [None, 1, "yes", False],
    ),
    (jaxsim.make, "dims.restore", lambda x: jaxsim.make(SCENARIO, rules=x, dims=ENV.dims), ["classic", "hardened1"]),
    (jaxsim.make, "does not fit", lambda x: jaxsim.make(SCENARIO, dims=x), [SMALL._replace(restore=True)]),
    (jaxsim.make, "auto_reset", lambda x: jaxsim.make(SCENARIO, auto_reset=x), [None, "yes", 1]),
    (jaxsim.Env.reset, "key", lambda x: ENV.reset(x, PARAMS), [None, 0, "0", KEYS, np.zeros(2)]),
    (jaxsim.Env.reset, "params", lambda x: ENV.reset(KEY, x), [None, (), ENV]),
    (jaxsim.Env.step, "key", lambda x: ENV.step(x, STATE, 0, PARAMS), [None, 0, KEYS]),
    (jaxsim.Env.step, "state", lambda x: ENV.step(KEY, x, 0, PARAMS), [None, (), OBSERVATION]),
    (jaxsim.Env.step, "action", lambda x: ENV.step(KEY, STATE, x, PARAMS), [None, "MONITOR", 0.5, [0], True, math.nan]),
    (jaxsim.Env.step, "params", lambda x: ENV.step(KEY, STATE, 0, x), [None, ()]),
    (jaxsim.Env.legal_actions, "params", ENV.legal_actions, [None, ()]),
    (jaxsim.action_text, "action", lambda x: jaxsim.action_text(x, SCENARIO, ENV.dims), [None, "0", 0.5, True, 2**40]),
    (jaxsim.action_text, "scenario", lambda x: jaxsim.action_text(0, x, ENV.dims), [None, SCENARIO.id]),
    (jaxsim.action_text, "dims", lambda x: jaxsim.action_text(0, SCENARIO, x), [None, 3]),
    (jaxsim.action_text, "does not fit", lambda x: jaxsim.action_text(0, SCENARIO, x), [SMALL]),
    (jaxsim.parse_action, "action", lambda x: jaxsim.parse_action(x, SCENARIO, ENV.dims), [None, 0, "", "WAIT", b"A"]),
    (jaxsim.parse_action, "scenario", lambda x: jaxsim.parse_action("MONITOR", x, ENV.dims), [None, SCENARIO.id]),
    (jaxsim.parse_action, "dims", lambda x: jaxsim.parse_action("MONITOR", SCENARIO, x), [None, 3]),
    (jaxsim.parse_plan, "plan", lambda x: jaxsim.parse_plan(x, SCENARIO, ENV.dims), [None, 0, "", " ; ", ["MONITOR"]]),
    (jaxsim.parse_plan, "scenario", lambda x: jaxsim.parse_plan("MONITOR", x, ENV.dims), [None, SCENARIO.id]),
    (jaxsim.parse_plan, "dims", lambda x: jaxsim.parse_plan("MONITOR", SCENARIO, x), [None, ()]),
    (jaxsim.replay, "env", lambda x: jaxsim.replay(x, PARAMS, KEY, 0, [0]), [None, ENV.dims]),
    (jaxsim.replay, "params", lambda x: jaxsim.replay(ENV, x, KEY, 0, [0]), [None, ()]),
    (jaxsim.replay, "key", lambda x: jaxsim.replay(ENV, PARAMS, x, 0, [0]), [None, 0, KEYS]),
    (jaxsim.replay, "episode", lambda x: jaxsim.replay(ENV, PARAMS, KEY, x, [0]), [None, -1, 2**32, 0.5, "0"]),
    (jaxsim.replay, "actions", lambda x: jaxsim.replay(ENV, PARAMS, KEY, 0, x), [None, 0, [[0]], ["MONITOR"], [0.5]]),
    (jaxsim.rollout, "env", lambda x: jaxsim.rollout(x, PARAMS, POLICY, PARAMETERS, KEY, 1), [None, ()]),
    (jaxsim.rollout, "params", lambda x: jaxsim.rollout(ENV, x, POLICY, PARAMETERS, KEY, 1), [None, ()]),
    (jaxsim.rollout, "policy", lambda x: jaxsim.rollout(ENV, PARAMS, x, PARAMETERS, KEY, 1), [None, "random", (1, 2)]),
    (
        jaxsim.rollout,
        "parameters",
        lambda x: jaxsim.rollout(ENV, PARAMS, POLICY, x, KEY, 1),
        [None, (), {}, np.int32(1)],
    ),
    (jaxsim.rollout, "key", lambda x: jaxsim.rollout(ENV, PARAMS, POLICY, PARAMETERS, x, 1), [None, 0, KEYS]),
    (jaxsim.rollout, "episodes", lambda x: jaxsim.rollout(ENV, PARAMS, POLICY, PARAMETERS, KEY, x), [0, -1, 1.5, None]),
    (jaxsim.rollout_many, "env", lambda x: jaxsim.rollout_many(x, PARAMS, POLICY, PARAMETERS[None], KEYS), [None, ()]),
    (jaxsim.rollout_many, "params", lambda x: jaxsim.rollout_many(ENV, x, POLICY, PARAMETERS[None], KEYS), [None, ()]),
    (jaxsim.rollout_many, "policy", lambda x: jaxsim.rollout_many(ENV, PARAMS, x, PARAMETERS[None], KEYS), [None, "a"]),
    (jaxsim.rollout_many, "parameters", lambda x: jaxsim.rollout_many(ENV, PARAMS, POLICY, x, KEYS), [None, (), 3]),
    (
        jaxsim.rollout_many,
        "parameters",
        lambda x: jaxsim.rollout_many(ENV, PARAMS, POLICY, x, KEYS),
        [np.zeros((0, 3))],
    ),
    (
        jaxsim.rollout_many,
        "keys",
        lambda x: jaxsim.rollout_many(ENV, PARAMS, POLICY, PARAMETERS[None], x),
        [None, KEY, KEYS[:0]],
    ),
    (
        jaxsim.rollout_many,
        "shuffle|channel",
        lambda x: jaxsim.rollout_many(ENV, PARAMS, POLICY, PARAMETERS[None], KEYS, shuffle=x),
        ["alerts", None, ("a",)],
    ),
    (prompting.inventory, "scenario", prompting.inventory, [None, SCENARIO.id, 3]),
    (prompting.inventory, "dims", lambda x: prompting.inventory(SCENARIO, x), [3, ()]),
    (prompting.inventory, "does not fit", lambda x: prompting.inventory(SCENARIO, x), [SMALL]),
    (prompting.parse, "text", lambda x: prompting.parse(x, INVENTORY), [None, 3, b"{}"]),
    (prompting.parse, "inventory", lambda x: prompting.parse("{}", x), [None, SCENARIO]),
    (prompting.encode, "action", lambda x: prompting.encode(x, INVENTORY), [None, -1, 10**6, 0.5, "MONITOR"]),
    (prompting.encode, "inventory", lambda x: prompting.encode(0, x), [None, SCENARIO]),
    (prompting.answers, "inventory", prompting.answers, [None, SCENARIO]),
    (prompting.schema, "inventory", prompting.schema, [None, SCENARIO]),
    (prompting.chat, "user", lambda x: prompting.chat(x, INVENTORY), [None, 3]),
    (prompting.chat, "inventory", lambda x: prompting.chat("a", x), [None, SCENARIO, (("a", "b"),)]),
    (prompting.chat, "examples", lambda x: prompting.chat("a", INVENTORY, x), [("ab", "c"), (("a",),), ((1, 2),)]),
    (prompting.system_prompt, "inventory", prompting.system_prompt, [None, SCENARIO, ENV.dims]),
    (prompting.render, "observation", lambda x: prompting.render(x, INVENTORY), [None, (), OBSERVATION]),
    (prompting.render, "observation.tick", lambda x: prompting.render(MANY._replace(tick=x), INVENTORY), [np.zeros(3)]),
    (
        prompting.render,
        "value",
        lambda x: prompting.render(MANY._replace(value=x), INVENTORY),
        [MANY.value + np.float32(np.nan)],
    ),
    (prompting.render, "inventory", lambda x: prompting.render(MANY, x), [None, SCENARIO]),
    (prompting.render, "layout", lambda x: prompting.render(MANY, INVENTORY, x), [None, "xml", 3, []]),
]
# Not exported, but a user's way in.
MORE: list[tuple[Any, str, Call, list[Any]]] = [
    (noise.root, "seed", noise.root, [-1, 2**32, 2**64, 0.5, "1", None, True]),
    (
        replays.play_record,
        "seed",
        lambda x: replays.play_record(RECORD | {"actions": [], "seed": x}),
        [-1, 2**32, None],
    ),
    (ppo.train, "seed", lambda x: ppo.train(ENV.dims, "seeing", bank.stack([PARAMS]), ppo.Settings(), x), [-1, 2**32]),
    (
        returns_many,
        "parameters",
        lambda x: returns_many(ENV, PARAMS, POLICY, x, KEY_DATA),
        [None, (), PARAMETERS, PARAMETERS[None][:0]],
    ),
    (
        returns_many,
        "keys",
        lambda x: returns_many(ENV, PARAMS, POLICY, PARAMETERS[None], x),
        [None, KEYS, KEY_DATA[0], KEY_DATA[:0], KEY_DATA.astype(np.int64)],
    ),
    (rows.from_teacher, "seed", lambda x: rows.from_teacher(GAME, rows.TEACHER, 4, x), [2**32]),
    (signals.total, "weight", lambda x: signals.total([], {"format": x}), [math.nan, math.inf, None, "1", True]),
    (
        bank.collect_heuristic,
        "parameters",
        lambda x: bank.collect_heuristic(ENV, bank.stack([PARAMS]), POLICY, x, KEY, 1),
        [None, ()],
    ),
    (
        credit.informative,
        "z|least",
        lambda x: credit.informative(None, *x),
        [(math.nan,), (math.inf,), (1.0, math.nan)],
    ),
]
for _field in WEIGHTS:
    _bad = [math.nan, -math.inf, "1", None, True, *([-1, -1e-9] if _field in reward.BOUNDS else [math.inf, 1e7, -1e39])]
    MORE += [
        (
            reward.from_mapping,
            f"reward weight {_field}",
            lambda x, f=_field: reward.from_mapping(WEIGHTS | {f: x}),
            [x for x in _bad if x is not None or _field not in reward.BOUNDS],  # None is no cap
        ),
        (reward.weights, f"reward weight {_field}", lambda x, f=_field: reward.weights("evidence", **{f: x}), _bad),
    ]
FREE = {scenarios.load}  # the same as load_scenario


@pytest.mark.parametrize("module", [jaxsim, prompting])
def test_every_public_function_is_here(module: Any) -> None:
    known = {function for function, *_ in CASES} | FREE
    public = {getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    methods = {getattr(jaxsim.Env, name) for name in ("reset", "step", "legal_actions")}
    assert not (public | methods) - known


@pytest.mark.parametrize(
    ("word", "call", "value"),
    [
        pytest.param(word, call, value, id=f"{function.__qualname__} {word} {i}")
        for function, word, call, values in [*CASES, *MORE]
        for i, value in enumerate(values)
    ],
)
def test_what_is_no_such_thing_is_named_with_a_remedy(word: str, call: Call, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        call(value)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    assert any(x in message for x in word.split("|")) or isinstance(error.value, scenarios.ScenarioError), message
    assert ";" in message or "did you mean" in message, message


def test_a_folder_in_a_scenarios_place_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(scenarios.ScenarioError, match="folder"):
        jaxsim.make(str(tmp_path))
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(scenarios.ScenarioError, match="is a directory; give the path of a file in it"):
        jaxsim.make(tmp_path / "a.yaml")


def test_what_is_right_stays_right() -> None:
    """Keys of both kinds, whole numbers of any library, actions as lists, infinite caps, a plan of no action."""
    assert jax.eval_shape(ENV.reset, jax.random.PRNGKey(0), PARAMS)[0].tick.shape == ()
    for action in (0, np.int64(0), np.int32(0), jax.numpy.int32(0)):
        assert jax.eval_shape(partial(ENV.step, KEY, STATE), action, PARAMS)[2].shape == ()
        assert jaxsim.action_text(action, SCENARIO, ENV.dims) == "MONITOR"
    assert len(jaxsim.replay(ENV, PARAMS, KEY, np.uint32(2**32 - 1), [0, 1]).reward) == 2
    assert reward.from_mapping(WEIGHTS | {"clip": 0, "disruption_cap": math.inf}).clip == 0
    assert reward.from_mapping(WEIGHTS | {"clip": None}).clip == math.inf
    assert noise.root(2**32 - 1) is not None
