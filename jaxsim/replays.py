"""One episode again, tick by tick, from (version, scenario, rules, reward, personality, seed, episode, actions)."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

import scenarios
from jaxsim import check, env, noise, one_episode, reward
from jaxsim.actions import INVALID
from jaxsim.names import parse_action
from jaxsim.types import Channels, Dims, Observation, Params, Signals, State
from jaxsim.version import SIMULATOR_VERSION, is_kept, name_now
from scenarios.read import file_text

FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {  # type, and how to say it
    "version": (str, "text"),
    "scenario": (str, "a built-in name or the path of a scenario file"),
    "rules": (str, "the name of a preset"),
    "reward": ((str, dict), "the name of a preset, or all weights by name"),
    "personality": (str, "a name"),
    "seed": (int, "a whole number"),
    "episode": (int, "a whole number"),
    "actions": (list, "a list of texts, one a tick"),
}
TICKS = 128  # a plan is played for so many, or a multiple of it
RANGES = {"seed": (0, check.MAX_SEED), "episode": (0, 2**32 - 1)}


class Replay(NamedTuple):
    """An episode tick by tick. Leading axis T + 1 for state and observation (first row: tick 0), T for the rest."""

    state: State
    observation: Observation
    action: Array  # (T,) int32
    signals: Signals
    channels: Channels
    reward: Array  # (T,) float32, points


@partial(jax.jit, static_argnames=("dims",))
def _replay(dims: Dims, params: Params, key: Array, plan: Array) -> Any:
    first = one_episode.start(dims, key, params)

    def tick(state: State, action: Array) -> Any:
        block = one_episode.tick_noise(key, state.tick + 1)
        after, signals = env.transition(dims, state, action, block, params)
        channels = reward.channels(signals, params.reward)
        row = (after, env.observe(dims, after, params), signals, channels)
        return after, (*row, reward.total(channels, params.reward))

    _, rows = jax.lax.scan(tick, first, plan)
    return (first, env.observe(dims, first, params)), rows


def replay(env_: env.Env, params: Params, key: Array, episode: int, actions: Array) -> Replay:
    """Play `actions`, (T,) int32, in episode `episode` of `key`: the episode that `rollout` plays.

    Raises ValueError for an argument that is no such thing.
    """
    check.kind("env_", env_, env.Env, "the one that `make` returns")
    check.kind("params", params, Params, "those that `make` returns")
    check.key("key", key)
    check.whole("episode", episode, *RANGES["episode"])
    check.actions("actions", actions, (None,))
    ticks = len(actions)
    # Plans of all lengths share a program; what comes after the last action is left out.
    plan = jnp.asarray(np.pad(np.asarray(actions, np.int32), (0, max(1, -(-ticks // TICKS)) * TICKS - ticks)))
    (state, obs), rows = _replay(env_.dims, params, jax.random.fold_in(key, np.uint32(episode)), plan)
    rows = jax.tree.map(lambda x: np.asarray(x)[:ticks], rows)
    states, observations = jax.tree.map(lambda a, b: np.concatenate([np.asarray(a)[None], b]), (state, obs), rows[:2])
    return Replay(states, observations, np.asarray(actions), *rows[2:])


def load_record(path: str | Path) -> dict[str, Any]:
    """A replay record from a JSON file, with the names that its rules and reward have now.

    Raises ValueError naming file, field, value and remedy.
    """
    try:
        record = json.loads(file_text(str(path), "replay record"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON replay record: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}: a replay record is a JSON object; got {type(record).__name__}")
    for field, (kind, wanted) in FIELDS.items():
        if field not in record:
            raise ValueError(f"{path}: field {field!r} is missing; a record has {', '.join(FIELDS)}")
        if not isinstance(record[field], kind) or isinstance(record[field], bool):
            raise ValueError(f"{path}: {field} = {record[field]!r:.60}: wrong type; give {wanted}")
    for field, (low, high) in RANGES.items():
        if not low <= record[field] <= high:
            raise ValueError(f"{path}: {field} = {record[field]!r:.60}: out of range; give one from {low} to {high}")
    for i, action in enumerate(record["actions"]):
        if not isinstance(action, str):
            raise ValueError(f"{path}: actions[{i}] = {action!r:.60}: wrong type; give text, such as 'MONITOR'")
    return of_today(record, str(path))


def of_today(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A record with the names that its rules and reward have now. Raises ValueError where its game is not kept."""
    version, weights = record["version"], record["reward"]
    if not is_kept(version):
        raise ValueError(
            f"{where}: version = {version!r:.60}: recorded by another version of the simulator's rules; "
            f"this is {SIMULATOR_VERSION!r}, and the episode would differ; replay it with that version"
        )
    now = {"rules": name_now(version, record["rules"]), "version": SIMULATOR_VERSION}
    return record | now | {"reward": name_now(version, weights) if isinstance(weights, str) else weights}


def plan_of(record: dict[str, Any]) -> tuple[scenarios.Scenario, env.Env, Params, np.ndarray]:
    """The game of a record of `load_record`, and its actions, (T,) int32.

    Raises ValueError or ScenarioError for what it names and does not exist.
    """
    scenario = scenarios.load(record["scenario"])
    env_, params = env.make(scenario, rules=record["rules"], reward=record["reward"], personality=record["personality"])
    return scenario, env_, params, actions_of(record["actions"], scenario, env_.dims)


def actions_of(actions: Sequence[str], scenario: scenarios.Scenario, dims: Dims) -> np.ndarray:
    """(T,) int32 of the actions of a record. Raises ValueError for one that is none."""
    parsed = [INVALID if text == "INVALID" else parse_action(text, scenario, dims) for text in actions]
    return np.asarray(parsed, np.int32)


def play_record(record: dict[str, Any]) -> tuple[scenarios.Scenario, env.Env, Replay]:
    """Run a record of `load_record`. Raises ValueError or ScenarioError for what it names and does not exist."""
    scenario, env_, params, plan = plan_of(record)
    return scenario, env_, replay(env_, params, noise.root(record["seed"]), record["episode"], plan)
