"""Policies that read what an environment shows: one that the user brings, or one that Stable-Baselines3 trains."""

import inspect
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from jaxsim.audit.outward.episodes import Policy, Refused, World, made, reason
from jaxsim.check import said

Reader = Callable[[], Policy]  # makes the policy of an episode
LANES = 8  # environments that training plays in


@cache
def module(name: str) -> Any:
    """A module by its name, or by its path where that ends in .py. Raises Refused when it cannot be imported."""
    try:
        if not name.endswith(".py"):
            return import_module(name)
        spec = spec_from_file_location(name.rpartition("/")[2].removesuffix(".py"), name)
        assert spec and spec.loader
        found = module_from_spec(spec)
        spec.loader.exec_module(found)
        return found
    except Exception as error:  # a module may raise anything
        raise Refused(f"module {said(name)} cannot be imported: {reason(error)}; give the name of an installed module, "
                      "or the path of a .py file") from error  # fmt: skip


def brought(name: str) -> Reader:
    """MODULE:FUNCTION, or FILE.py:FUNCTION.

    A function of observation and info is a policy; what takes no argument makes one for every episode. Raises Refused
    when there is none such.
    """
    where, colon, what = name.rpartition(":")
    if not colon or not where or not what:
        raise Refused(f"policy {said(name)} is not possible; give MODULE:FUNCTION, such as policies.py:greedy")
    found = getattr(module(where), what, None)
    if not callable(found):
        raise Refused(f"policy {said(name)}: {said(where)} has no function {said(what)}; give the name of one")
    if takes(found, None, {}):
        return lambda: found
    if takes(found):
        return found
    raise Refused(f"policy {said(name)} takes other arguments; give a function of an observation and an info, or one "
                  "without arguments that makes such a function for every episode")  # fmt: skip


def takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function can be called like that."""
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):  # ValueError: of some built-in ones nothing is known
        return False
    return True


def trained(world: World, steps: int, seconds: float, seed: int) -> tuple[Reader, str]:
    """PPO for so many steps, or as long as `seconds` allow; where the environment has `action_masks` MaskablePPO.

    The policy, and in words how it came about. Raises Refused without the packages, or when training fails.
    """
    try:
        from sb3_contrib import MaskablePPO
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
    except ModuleNotFoundError as error:
        raise Refused(f"to train a policy takes the package {error.name}, which is not installed: bring a policy with "
                      "--policy, or pip install 'jaxsim-soc[gym]' sb3-contrib") from None  # fmt: skip
    masked = world.single.has_wrapper_attr("action_masks")
    kind = "MultiInputPolicy" if isinstance(world.single.observation_space, spaces.Dict) else "MlpPolicy"
    settings: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "learning_rate": 1e-3, "ent_coef": 0.01}
    began, name = time.monotonic(), "MaskablePPO" if masked else "PPO"
    try:
        envs = make_vec_env(lambda: from_zero(made(world.game)), n_envs=LANES, seed=seed)
        model = (MaskablePPO if masked else PPO)(kind, envs, seed=seed, device="cpu", **settings)
        model.learn(steps, callback=lambda *_: time.monotonic() < began + seconds)
        envs.close()
    except Exception as error:
        raise Refused(f"{name} cannot be trained: {reason(error)}; bring a policy with --policy") from error

    def act(obs: Any, info: dict[str, Any]) -> Any:
        more = {"action_masks": world.single.get_wrapper_attr("action_masks")()} if masked else {}
        action, _ = model.predict(obs, deterministic=True, **more)
        return np.asarray(action) + world.single.action_space.start  # type: ignore[attr-defined]

    return lambda: act, f"{name} of Stable-Baselines3, {model.num_timesteps} steps, {settings}, deterministic"


def from_zero(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment with actions that begin at 0, as Stable-Baselines3 wants them."""
    space: Any = env.action_space
    if not np.any(space.start):
        return env
    same = spaces.Discrete(space.n) if isinstance(space, spaces.Discrete) else spaces.MultiDiscrete(space.nvec)
    return gymnasium.wrappers.TransformAction(env, lambda action: action + space.start, same)
