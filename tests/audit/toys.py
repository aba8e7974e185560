"""Environments whose best plan and best policy are known, and some that are not to be audited; policies for them."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

LENGTH = 6
SECRET = [2, 0, 1, 1, 2, 1]


class Toy(gymnasium.Env[Any, Any]):
    """LENGTH steps; a step pays 1 for the action wanted, which is shown where `shown` and the same always where not."""

    def __init__(self, shown: bool = True, quirk: str = "") -> None:
        self.shown, self.quirk, self.before = shown, quirk, 0
        self.observation_space = spaces.Discrete(4)
        self.action_space = {
            "multi": spaces.MultiDiscrete([2, 2], start=[5, -1]),
            "box": spaces.Box(0.0, 1.0, (1,)),
            "many": spaces.MultiDiscrete([100, 100]),
        }.get(quirk, spaces.Discrete(3, start=-1))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        if self.quirk == "raises in reset":
            raise RuntimeError("no level\nis left")
        rng = np.random if self.quirk == "unseeded" else self.np_random
        drawn = rng.random(LENGTH)
        self.wanted = (3 * drawn).astype(int).tolist() if self.shown else SECRET
        self.t, self.before = 0, self.before + 1
        return self.look(), {}

    def look(self) -> int:
        return self.wanted[self.t] if self.t < LENGTH and self.shown else 3

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space
        if self.quirk == "raises" and action == 1:
            raise KeyError("action")
        pays = float((int(np.sum(action)) + 1) % 3 == self.wanted[self.t])
        if self.quirk == "leaks":
            pays += 0.01 * self.before
        if self.quirk == "nan":
            pays = float("nan")
        self.t += 1
        over = self.t == LENGTH and self.quirk != "endless"
        self.t %= LENGTH
        return self.look(), pays, over, False, {}


class Masked(Toy):
    """Of which the last action is not allowed."""

    def action_masks(self) -> np.ndarray:
        return np.asarray([True, True, False])


class Lanes(SyncVectorEnv):
    """A vector environment of its own, of toys; where `deaf` it does not give a lane the seed that is meant for it."""

    def __init__(self, num_envs: int, deaf: bool = False, **options: Any) -> None:
        self.deaf = deaf
        super().__init__([lambda: Toy(**options)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=7 if self.deaf else seed, options=options)


gymnasium.register("Toy-v0", entry_point=Toy, vector_entry_point=Lanes)
gymnasium.register("DeafToy-v0", entry_point=Toy, vector_entry_point=lambda **options: Lanes(deaf=True, **options))
gymnasium.register("MaskedToy-v0", entry_point=Masked)


def reads(observation: int, info: dict[str, Any]) -> int:
    """The best policy where the wanted action is shown."""
    return observation - 1


def reads_multi(observation: int, info: dict[str, Any]) -> list[int]:
    """An action of the MultiDiscrete toy."""
    return [5 + observation % 2, -1]


def knows() -> Any:
    """Makes the policy of an episode that counts its steps, and plays SECRET."""
    steps = iter(SECRET)
    return lambda observation, info: next(steps) - 1


def wrong(observation: int, info: dict[str, Any]) -> float:
    """No action."""
    return 0.5


def far(observation: int, info: dict[str, Any]) -> int:
    """No action of the space."""
    return 2


def breaks(observation: int, info: dict[str, Any]) -> int:
    """Raises."""
    raise LookupError("nothing known of this")


def odd(one: int) -> int:
    """Neither a policy nor a maker of policies."""
    return one


NUMBER = 3
