"""The Gymnasium environments: others' checkers, the same episodes as `replay`, one by one or many in step."""

import runpy
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from worlds import HIDDEN

import jaxsim
from jaxsim import gym, noise, recurrent, replays
from jaxsim import lanes as lanes_of
from jaxsim.types import RUNNING, Dims

ROOT = Path(__file__).resolve().parent.parent.parent
ID = "jaxsim.gym:Soc-v0"
SCENARIO = "insider_repo_pivot"
CLASSIC = {"scenario": SCENARIO, "rules": "classic", "reward": "evidence"}
HARDENED = {"scenario": SCENARIO, "rules": "hardened", "reward": "operational"}
LANES = 3


@pytest.mark.parametrize("observation", gym.OBSERVATIONS)
def test_gymnasiums_checker_finds_nothing(observation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ID, **HARDENED, observation=observation).unwrapped)


class Lane(gymnasium.Env[Any, int]):
    """The last of some lanes as an environment of its own, while random play goes on in the others."""

    def __init__(self, lanes: Any) -> None:
        self.lanes, self.rng = lanes, np.random.default_rng(0)
        self.observation_space, self.action_space = lanes.single_observation_space, lanes.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.shown(self.lanes.reset(seed=seed, options=options)[0]), {}

    def step(self, action: int) -> Any:
        actions = self.rng.integers(0, self.action_space.n, self.lanes.num_envs)
        actions[-1] = action
        obs, reward, done, truncated, info = self.lanes.step(actions)
        seen = info["final_obs"][-1] if done[-1] else self.shown(obs)
        return seen, float(reward[-1]), bool(done[-1]), bool(truncated[-1]), {}

    def shown(self, obs: Any) -> Any:
        return jax.tree.map(lambda x: x[-1], obs)


@pytest.mark.parametrize("observation", gym.OBSERVATIONS)
def test_gymnasiums_checker_finds_nothing_in_a_lane_of_the_vector_environment(observation: str) -> None:
    """Gymnasium has no checker of vector environments."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(Lane(many(**HARDENED, observation=observation)), skip_render_check=True)


def one(**options: Any) -> Any:
    return gymnasium.make(ID, **options).unwrapped


def many(**options: Any) -> Any:
    return gymnasium.make_vec(ID, num_envs=LANES, vectorization_mode="vector_entry_point", **options)


def equal(a: Any, b: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.parametrize(("options", "seed", "episode"), [(CLASSIC, 2**32 - 1, 0), (HARDENED, 7, 2**32 - 1)])
def test_an_episode_is_the_one_that_replay_plays(options: dict[str, str], seed: int, episode: int) -> None:
    env, rng = one(**options), np.random.default_rng(seed)
    obs, info = env.reset(seed=seed, options={"episode": episode})
    shown, rewards, actions, done = [obs], [], [], False
    while not done:
        assert info == {}
        actions.append(int(rng.integers(-1, env.action_space.n + 1)))
        obs, reward, done, truncated, info = env.step(actions[-1])
        assert not truncated and isinstance(reward, float)
        shown.append(obs)
        rewards.append(reward)
    made, params = jaxsim.make(**options)
    again = jaxsim.replay(made, params, noise.root(seed), episode, np.asarray(actions, np.int32))
    np.testing.assert_array_equal(np.asarray(rewards, np.float32), again.reward)
    assert int(again.state.end[-1]) == info["outcome"]["end"] != RUNNING == int(again.state.end[-2])
    assert info["outcome"]["episode_return"] == pytest.approx(again.reward.sum(), abs=1e-4)
    assert info["outcome"]["points_terminal"] == pytest.approx(again.channels.terminal.sum(), abs=1e-4)
    assert info["outcome"]["length"] == len(actions) and info["outcome"]["succeeded"] == again.state.succeeded[-1]
    fields = jax.jit(jax.vmap(partial(gym.shown, made.dims, gym.FIELDS)))(again.observation)
    assert equal(fields, jax.tree.map(lambda *x: np.stack(x), *shown))
    _, _, recorded = replays.play_record(env.record())
    np.testing.assert_array_equal(recorded.reward, again.reward)


def test_lanes_in_step_are_single_environments_with_seeds_of_their_own() -> None:
    """Observations, rewards and outcomes to the last bit, over several episodes of different lengths."""
    lanes, singles, rng = many(**CLASSIC), [one(**CLASSIC) for _ in range(LANES)], np.random.default_rng(1)
    obs, _ = lanes.reset(seed=2**32 - 2)
    first = [env.reset(seed=(2**32 - 2 + i) % 2**32)[0] for i, env in enumerate(singles)]
    ended = [0] * LANES
    for i in range(LANES):
        assert equal(first[i], jax.tree.map(lambda x, i=i: x[i], obs))
    for _ in range(150):
        # Most wait, so that attacks come to their ends at different ticks.
        actions = np.where(rng.random(LANES) < 0.1, rng.integers(0, lanes.single_action_space.n, LANES), 0)
        obs, reward, done, truncated, info = lanes.step(actions)
        assert obs in lanes.observation_space and not truncated.any()
        assert set(info) == ({"final_obs", "_final_obs", "final_info", "_final_info"} if done.any() else set())
        for i, env in enumerate(singles):
            its, pay, over, _, told = env.step(actions[i])
            assert pay == reward[i] and over == done[i]
            if over:
                assert info["_final_obs"][i] and equal(info["final_obs"][i], its)
                had = {k: v[i].item() for k, v in info["final_info"]["outcome"].items() if not k.startswith("_")}
                assert had == told["outcome"]
                its, _ = env.reset()
                ended[i] += 1
            assert equal(its, jax.tree.map(lambda x, i=i: x[i], obs))
    assert min(ended) >= 1 and max(ended) >= 2


def test_what_an_agent_is_given_changes_with_nothing_hidden() -> None:
    """With the hidden parts of other lanes all stays the same, and the features are the audit's without the truth."""
    lanes = many(**HARDENED)
    lanes.reset(seed=5)
    rng = np.random.default_rng(5)
    for _ in range(40):
        lanes.step(np.where(rng.random(LANES) < 0.5, rng.integers(0, lanes.single_action_space.n, LANES), 0))
    game = lanes._game
    state, dims = game.lanes.state, game.dims
    other = state._replace(**{f: jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), getattr(state, f)) for f in HIDDEN})
    assert not equal(state, other)
    for form in gym.OBSERVATIONS:
        before, after = (gym._look(dims, form, game.params, s) for s in (state, other))
        assert equal(before, after) and not equal(before, jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), before))

    @jax.jit
    def both(at: Any) -> Any:
        obs = jax.tree.map(lambda x: x[0], at)
        return recurrent.features(dims, recurrent.SIGHTS[recurrent.SEEING], obs), gym.shown(dims, gym.FEATURES, obs)

    (entity, overall, *_), kept = both(lanes_of.observe(dims, game.params, state))
    assert kept.size + 4 * dims.entities + 7 == entity.size + overall.size
    assert float(kept.sum()) == pytest.approx(float(entity.sum() + overall.sum()), rel=1e-5)


def test_masks_leave_out_what_is_invalid() -> None:
    dims = Dims(assets=9, identities=7, stages=10, max_lag=8, benign=1)
    env = one(**CLASSIC, dims=dims)
    texts = [env.action_text(a) for a in range(dims.actions)]
    mask = env.action_masks()
    assert mask.dtype == bool and mask.tolist() == [x != "INVALID" for x in texts] and 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(many(**CLASSIC, dims=dims).action_masks(), np.tile(mask, (LANES, 1)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: one(scenario="nowhere"), "nowhere: is not the name of a built-in scenario"),
        (lambda: one(rules="soft"), "rules 'soft' are unknown"),
        (lambda: one(observation="pixels"), "observation 'pixels' is unknown; choose one of fields, features"),
        (lambda: one(**CLASSIC).step(0), "step before reset"),
        (lambda: one(**CLASSIC).step(0.5), "action = array(0.5) is not possible"),
        (lambda: one(**CLASSIC).record(), "record before reset"),
        (lambda: one(**CLASSIC).reset(options={"tick": 3}), "option 'tick' is unknown"),
        (lambda: one(**CLASSIC).reset(options={"episode": -1}), "episode = -1 is not possible"),
        (lambda: many(**CLASSIC).reset(seed=[1]), "seed has 1 seeds for 3 lanes"),
        (lambda: many(**CLASSIC).reset(seed=[1, 2, 2**32]), "seed = 4294967296 is not possible"),
        (lambda: many(**CLASSIC).step([0]), "action = "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "package", "remedy"),
    [("gym", "gymnasium", "'jaxsim-soc[gym]'"), ("sb3", "stable_baselines3", "'jaxsim-soc[gym]' sb3-contrib")],
)
def test_without_the_package_one_line_says_what_to_install(
    module: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [x for x in sys.modules if x.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        runpy.run_path(str(ROOT / "jaxsim" / f"{module}.py"))
    assert str(caught.value).startswith(f"jaxsim.{module} needs the package {package}")
    assert str(caught.value).endswith(f"pip install {remedy}")


@pytest.mark.slow
def test_maskable_ppo_learns_in_it() -> None:
    """Some seconds of MaskablePPO earn more than random legal play, by far more than luck."""
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.utils import get_action_masks

    from jaxsim.sb3 import SocVecEnv

    envs = SocVecEnv(32, **HARDENED, observation="features")
    envs.seed(1)
    model = MaskablePPO("MlpPolicy", envs, n_steps=70, batch_size=560, n_epochs=4, learning_rate=1e-3, seed=0)

    def returns(play: Any) -> np.ndarray:
        """Of one episode a lane, all as long as the horizon."""
        obs, played = envs.reset(), []
        for _ in range(80):
            obs, _, done, infos = envs.step(play(obs, get_action_masks(envs)))
            played += [infos[i]["episode"]["r"] for i in np.flatnonzero(done)]
            assert all("terminal_observation" in infos[i] for i in np.flatnonzero(done))
        assert len(played) == 32
        return np.asarray(played)

    rng = np.random.default_rng(0)
    random = returns(lambda _, masks: np.asarray([rng.choice(np.flatnonzero(m)) for m in masks]))
    model.learn(10 * 32 * 70)
    learnt = returns(lambda obs, masks: model.predict(obs, action_masks=masks, deterministic=True)[0])
    assert learnt.mean() - random.mean() > 5 * np.sqrt(random.var() / 32 + learnt.var() / 32) > 0
