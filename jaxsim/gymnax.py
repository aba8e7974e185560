"""The simulator for trainers that are JAX themselves and expect what gymnax has: rejax, purejaxrl and their like.

    PPO.create(env=Soc(scenario="insider_repo_pivot_hardened"), ...)

They want `step` with one `done` (gymnax before 1.0), spaces, parameters with `max_steps_in_episode`, and episodes that
follow one another. `Env` itself has gymnax 1.0's signatures and structured observations.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from chex import Array

try:
    from gymnax.environments import spaces
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"jaxsim.gymnax needs the package {error.name}, which is not installed: pip install gymnax", name=error.name
    ) from None

import scenarios
from jaxsim import env, recurrent
from jaxsim.types import Params, State


class SocParams(NamedTuple):
    """What is traced."""

    game: Params
    max_steps_in_episode: int


class Soc:
    """Arguments and errors as of `jaxsim.make`. Observations are (F,) float32, see `recurrent.vector`."""

    name = "Soc"

    def __init__(self, scenario: str | Path | scenarios.Scenario, **names: Any) -> None:
        self._env, game = env.make(scenario, auto_reset=True, **names)
        self._horizon = int(game.scenario.horizon)
        self.default_params = SocParams(game, self._horizon)

    @property
    def num_actions(self) -> int:
        """Size of the action table."""
        return self._env.num_actions

    def reset(self, key: Array, params: SocParams | None = None) -> tuple[Array, State]:
        """First observation and state."""
        obs, state = self._env.reset(key, (params or self.default_params).game)
        return recurrent.vector(self._env.dims, obs), state

    def step(
        self, key: Array, state: State, action: Array, params: SocParams | None = None
    ) -> tuple[Array, State, Array, Array, dict[str, Array]]:
        """`obs, state, reward, done, info`; after the last tick `obs` and `state` are those of the next episode.

        `info["end"]` is why the episode ended, see `types.ENDS`.
        """
        game = (params or self.default_params).game
        obs, state, reward, done, _, info = self._env.step(key, state, jnp.asarray(action, jnp.int32), game)
        return recurrent.vector(self._env.dims, obs), state, reward, done, {"end": info["end"]}

    def action_space(self, params: SocParams | None = None) -> Any:
        """The action table; an action of an entity that there is not is invalid, and costs what the reward says."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: SocParams | None = None) -> Any:
        """Of one observation."""
        most, size = float(self._env.dims.entities + self._horizon), recurrent.vector_size(self._env.dims)
        return spaces.Box(0.0, most, (size,), jnp.float32)
