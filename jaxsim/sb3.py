"""The vector environment as Stable-Baselines3 wants one; MaskablePPO of sb3-contrib asks it for action masks.

from sb3_contrib import MaskablePPO
from jaxsim.sb3 import SocVecEnv

MaskablePPO("MlpPolicy", SocVecEnv(64, observation="features")).learn(100_000)
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

try:
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"jaxsim.sb3 needs the package {error.name}, which is not installed: pip install 'jaxsim-soc[gym]' sb3-contrib",
        name=error.name,
    ) from None

from jaxsim.gym import SocVector

Indices = int | Iterable[int] | None


class SocVecEnv(VecEnv):
    """`SocVector` for Stable-Baselines3; arguments as of that.

    The info of a lane whose episode ends has `terminal_observation`, `outcome` and `episode`, of which SB3 logs return
    and length.
    """

    def __init__(self, num_envs: int, **options: Any) -> None:
        self.envs = SocVector(num_envs, **options)
        self.began = time.monotonic()
        self.action: Any = None
        super().__init__(num_envs, self.envs.single_observation_space, self.envs.single_action_space)

    def reset(self) -> Any:
        """The first observations, of the seeds that `seed` gave, or of the next episodes."""
        obs, _ = self.envs.reset(seed=[None if s is None else s % 2**32 for s in self._seeds])
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self.action = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One tick of all lanes."""
        obs, reward, done, _, info = self.envs.step(self.action)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done).tolist():
            outcome = {k: v[i].item() for k, v in info["final_info"]["outcome"].items() if not k.startswith("_")}
            infos[i] = {
                "terminal_observation": info["final_obs"][i],
                "TimeLimit.truncated": False,
                "outcome": outcome,
                "episode": {
                    "r": outcome["episode_return"],
                    "l": outcome["length"],
                    "t": round(time.monotonic() - self.began, 6),
                },
            }
        return obs, reward, done, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the vector environment, once for each lane. Raises AttributeError when it has none."""
        return [getattr(self.envs, attr_name)] * len(self._lanes(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Not possible: lanes have no attributes of their own."""
        raise AttributeError(f"{attr_name!r} cannot be set: make another SocVecEnv with what is to be different")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """A method of the vector environment that gives something for each lane, such as `action_masks`."""
        rows = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [rows[i] for i in self._lanes(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Lanes are never wrapped."""
        return [False] * len(self._lanes(indices))

    def _lanes(self, indices: Indices) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else list(indices)
