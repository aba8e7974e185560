"""The simulator as a Gymnasium environment, single and vectorised.

    gymnasium.make("jaxsim.gym:Soc-v0", scenario="insider_repo_pivot", rules="hardened", reward="operational")
    gymnasium.make_vec("jaxsim.gym:Soc-v0", num_envs=64, vectorization_mode="vector_entry_point")

`reset(seed=s)` begins episode 0 of the seed, a reset without a seed the next one, `options={"episode": e}` any: what is
played is what `jaxsim.replay` plays of (seed, episode, actions). The horizon is part of the game, so an episode is
terminated and never truncated. Observations are all that a defender may know, `info` is empty until an episode is over.

`observation="fields"` is a Dict of the arrays of `Observation`; `"features"` one vector, what the recurrent policies of
the audit are given, which a small network learns from sooner.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"jaxsim.gym needs the package {error.name}, which is not installed: pip install 'jaxsim-soc[gym]'",
        name=error.name,
    ) from None
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import scenarios
from jaxsim import actions, check, env, lanes, recurrent
from jaxsim.lanes import Lanes
from jaxsim.names import action_text
from jaxsim.one_episode import EpisodeStats
from jaxsim.rules import PERSONALITIES
from jaxsim.types import Dims, Observation, Params, State
from jaxsim.version import SIMULATOR_VERSION

ID = "Soc-v0"
FIELDS, FEATURES = "fields", "features"
OBSERVATIONS = (FIELDS, FEATURES)
MAX_EPISODE = 2**32 - 1
SCENARIO = "supply_chain_token_drift_hardened"


def shown(dims: Dims, form: str, obs: Observation) -> Any:
    """What an agent is given of one episode's observation: a dict of arrays of rank 1 and 2, or one (F,) float32."""
    if form == FEATURES:
        return recurrent.vector(dims, obs)
    own = {name: x for name, x in obs._asdict().items() if name not in ("alerts", "forensics")}
    own |= {f"alerts_{name}": x for name, x in obs.alerts._asdict().items()}
    own |= {f"forensics_{name}": x for name, x in obs.forensics._asdict().items()}
    return {name: jnp.atleast_1d(x.astype(jnp.int8) if x.dtype == bool else x) for name, x in own.items()}


def space(dims: Dims, form: str, horizon: int) -> spaces.Space[Any]:
    """The space of what `shown` gives."""
    n, k, f = dims.entities, dims.alerts, dims.forensics
    if form == FEATURES:
        return spaces.Box(0.0, float(n + horizon), (recurrent.vector_size(dims),), np.float32)
    most = np.iinfo(np.int32).max
    whole: dict[str, tuple[int, int, tuple[int, ...]]] = {
        "tick": (0, horizon, (1,)),
        "horizon": (0, horizon, (1,)),
        "personality": (-1, len(PERSONALITIES) - 1, (1,)),
        "alerts_number": (-1, most, (k,)),
        "alerts_signal": (-1, len(scenarios.SIGNALS) - 1, (k,)),
        "alerts_asset": (-1, n - 1, (k,)),
        "alerts_identity": (-1, n - 1, (k,)),
        "alerts_tick": (0, horizon, (k,)),
        "forensics_number": (-1, most, (f,)),
        "forensics_entity": (-1, n - 1, (f,)),
        "forensics_tick": (0, horizon, (f,)),
    }
    flags = {"exists": (n,), "marks": (4, n), "forensics_compromised": (f,)}
    shares = {"value": (n,), "alerts_severity": (k,), "forensics_confidence": (f,)}
    return spaces.Dict(
        {name: spaces.Box(low, high, shape, np.int32) for name, (low, high, shape) in whole.items()}
        | {name: spaces.Box(0, 1, shape, np.int8) for name, shape in flags.items()}
        | {name: spaces.Box(0.0, 1.0, shape, np.float32) for name, shape in shares.items()}
    )


@partial(jax.jit, static_argnames=("dims", "form"))
def _look(dims: Dims, form: str, params: Params, state: State) -> Any:
    """What the agents are given, leaves (L, ...)."""
    return jax.vmap(lambda p, s: shown(dims, form, env.observe(dims, s, p)))(params, state)


class Game:
    """What both environments are made of: lanes in step, all with the same parameters."""

    def __init__(self, many: int, form: str, scenario: Any, **names: Any) -> None:
        check.known("observation", form, OBSERVATIONS)
        self.scenario = scenario if isinstance(scenario, scenarios.Scenario) else scenarios.load(scenario)
        made, params = env.make(self.scenario, **names)
        self.params = jax.tree.map(lambda x: jnp.broadcast_to(x, (many, *x.shape)), params)
        self.dims, self.form, self.all = made.dims, form, np.ones(many, bool)
        self.space = space(self.dims, form, int(params.scenario.horizon))
        self.mask = np.asarray(actions.legal_mask(self.dims, params.scenario.exists))
        self.lanes: Lanes | None = None

    def reset(self, seeds: Sequence[int | None], rng: np.random.Generator, options: dict[str, Any] | None) -> Any:
        """Begin an episode in every lane: the first of a seed, or the one after the last. The observations."""
        given = [None if s is None else check.whole("seed", s, 0, check.MAX_SEED) for s in seeds]
        for name in options or {}:
            check.known("option", name, ("episode",))
        if self.lanes is None:
            before, after = rng.integers(2**32, size=len(given), dtype=np.uint32), np.zeros(len(given), np.uint32)
        else:
            before, after = np.asarray(self.lanes.seed), np.asarray(self.lanes.episode) + np.uint32(1)
        known = np.asarray([s is not None for s in given])
        episodes = np.where(known, np.uint32(0), after)
        if options:
            episodes = np.full_like(episodes, check.whole("episode", options["episode"], 0, MAX_EPISODE))
        seeded = np.where(known, np.asarray([s or 0 for s in given], np.uint32), before)
        self.lanes = lanes.begin(self.dims, self.params, seeded, episodes)
        return self.look()

    def tick(self, action: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """The observations, rewards, and whether each episode is over."""
        check.actions("action", action, self.all.shape)
        if self.lanes is None:
            raise ValueError("step before reset: no episode has begun; call reset first")
        played = np.asarray(action).astype(np.int32)
        self.lanes, ticked = lanes.tick(self.dims, self.params, self.lanes, played, self.all)
        return self.look(), np.array(ticked.reward), np.array(ticked.done)

    def go_on(self, done: np.ndarray) -> Any:
        """Begin the next episodes where one is over. The observations."""
        assert self.lanes is not None
        following = np.asarray(self.lanes.episode) + np.uint32(1)
        self.lanes = lanes.begin(self.dims, self.params, self.lanes.seed, following, self.lanes, done)
        return self.look()

    def look(self) -> Any:
        """The observations: NumPy arrays that share no memory, so that a caller may write to them."""
        assert self.lanes is not None
        return jax.tree.map(np.array, _look(self.dims, self.form, self.params, self.lanes.state))

    def outcomes(self) -> EpisodeStats:
        """How the episodes went."""
        assert self.lanes is not None
        return lanes.outcomes(self.params, self.lanes)


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


class Soc(gymnasium.Env[Any, Any]):
    """One episode at a time. Arguments as those of `jaxsim.make`, and `observation`, one of OBSERVATIONS.

    Raises what `jaxsim.make` raises, and ValueError for an unknown observation or option, a seed or episode out of
    range, and an action that is no whole number. One outside of the table is an invalid action of the game.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 # as Gymnasium types it

    def __init__(
        self,
        scenario: str | Path | scenarios.Scenario = SCENARIO,
        rules: str = "hardened",
        reward: str | Mapping[str, float] = "operational",
        personality: str = "any",
        dims: Dims | None = None,
        observation: str = FIELDS,
    ) -> None:
        self._names = {"rules": rules, "reward": reward, "personality": personality}
        self._file = scenario.id if isinstance(scenario, scenarios.Scenario) else str(scenario)
        self._game = Game(1, observation, scenario, dims=dims, **self._names)
        self._actions: list[int] = []
        self.observation_space = self._game.space
        self.action_space = spaces.Discrete(self._game.dims.actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observation, and an empty info."""
        super().reset(seed=seed)
        obs = self._game.reset([seed], self.np_random, options)
        self._actions = []
        return _row(obs, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One tick. On the last one `info` has `outcome`, those of `lanes.numbers`."""
        check.actions("action", action, ())
        obs, reward, done = self._game.tick(np.reshape(action, 1))
        self._actions.append(int(action))
        info = {"outcome": lanes.numbers(self._game.outcomes(), 0)} if done[0] else {}
        return _row(obs, 0), float(reward[0]), bool(done[0]), False, info

    def action_masks(self) -> np.ndarray:
        """(actions,) bool: those that are not invalid."""
        return self._game.mask.copy()

    def action_text(self, action: int) -> str:
        """An action in words, as `jaxsim.parse_action` reads them."""
        return action_text(int(action), self._game.scenario, self._game.dims)

    def record(self) -> dict[str, Any]:
        """The episode so far as `jaxsim-soc replay` plays it; its seed tells whoever reads it all that is hidden."""
        at = self._game.lanes
        if at is None:
            raise ValueError("record before reset: no episode has begun; call reset first")
        played = [self.action_text(a) for a in self._actions]
        where = {"seed": int(at.seed[0]), "episode": int(at.episode[0])}
        return {"version": SIMULATOR_VERSION, "scenario": self._file, **self._names, **where, "actions": played}


class SocVector(VectorEnv[Any, Any, Any]):
    """Many episodes in step, one compiled call a tick. A lane whose episode ends is at the first tick of its next one.

    Arguments and errors as of `Soc`. `reset(seed=s)` gives lane i the seed s + i, as Gymnasium's own vector
    environments do. In a tick in which episodes end, `info` has `final_obs` and `final_info`.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | Path | scenarios.Scenario = SCENARIO,
        rules: str = "hardened",
        reward: str | Mapping[str, float] = "operational",
        personality: str = "any",
        dims: Dims | None = None,
        observation: str = FIELDS,
    ) -> None:
        self.num_envs = check.whole("num_envs", num_envs, 1)
        self._game = Game(
            self.num_envs,
            observation,
            scenario,
            rules=rules,
            reward=reward,
            personality=personality,
            dims=dims,
        )
        self.single_observation_space = self._game.space
        self.single_action_space = spaces.Discrete(self._game.dims.actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The first observations, and an empty info."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None:
            seeds: Sequence[int | None] = [None] * self.num_envs
        elif isinstance(seed, Sequence):
            seeds = seed
        else:
            first = check.whole("seed", seed, 0, check.MAX_SEED)
            seeds = [(first + i) % (check.MAX_SEED + 1) for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} seeds for {self.num_envs} lanes; give one for each, or one number")
        return self._game.reset(seeds, self.np_random, options), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One tick of all lanes."""
        obs, reward, done = self._game.tick(actions)
        info: dict[str, Any] = {}
        if done.any():
            last, stats, obs = obs, self._game.outcomes(), self._game.go_on(done)
            for i in np.flatnonzero(done).tolist():
                final = {"final_obs": _row(last, i), "final_info": {"outcome": lanes.numbers(stats, i)}}
                info = self._add_info(info, final, i)
        return obs, reward, done, np.zeros(self.num_envs, bool), info

    def action_masks(self) -> np.ndarray:
        """(lanes, actions) bool: those that are not invalid."""
        return np.tile(self._game.mask, (self.num_envs, 1))


gymnasium.register(id=ID, entry_point="jaxsim.gym:Soc", vector_entry_point="jaxsim.gym:SocVector")
