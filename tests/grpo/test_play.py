"""grpo/playing/play.py: episodes of a model are those of `jaxsim.rollout`, whoever answers, however often it stops."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import numpy as np

import jaxsim
import prompting
import scenarios
from grpo.playing import play
from grpo.playing.choices import ON_CHANGE
from grpo.playing.play import Played, Turn
from jaxsim import env, one_episode, policies, rollouts
from jaxsim.actions import INVALID
from jaxsim.policies import BASELINES
from jaxsim.types import CONFIRMED, HORIZON, MONITOR, RESTORE

SUPPLY, TICKS, EPISODES = "supply_chain_token_drift", 70, 6
NONSENSE = ("", "I would wait and see.", '{"action": "ISOLATE_ASSET"}', '{"action": "PANIC"}', "{" * 50)


class Game(NamedTuple):
    """A campaign with its episodes."""

    scenario: scenarios.Scenario
    env: jaxsim.Env
    params: jaxsim.Params
    inventory: prompting.Inventory
    keys: jax.Array

    def play(self, respond: Any, **options: Any) -> Played:
        return play.play(self.env, self.params, self.inventory, self.keys, respond, **options)

    def rollout(self, policy: Any, parameters: Any, **options: Any) -> Any:
        one = jax.tree.map(lambda x: np.asarray(x)[None], parameters)
        stats, record = rollouts.rollout_many(self.env, self.params, policy, one, self.keys, record=True, **options)
        assert record is not None
        return jax.tree.map(lambda x: x[0], (stats, record.action))


def game(rules: str, reward: str) -> Game:
    scenario = jaxsim.load_scenario(SUPPLY)
    keys = one_episode.episode_keys(jax.random.key(11), EPISODES)
    env_, params = jaxsim.make(scenario, rules=rules, reward=reward)
    return Game(scenario, env_, params, prompting.inventory(scenario, env_.dims), keys)


@pytest.fixture(scope="module")
def hardened() -> Game:
    return game("hardened", "operational")


@pytest.fixture(scope="module")
def all_on() -> Game:
    return game("hardened+believable_paths", "operational")


@pytest.fixture(scope="module")
def classic() -> Game:
    return game("classic", "evidence")


def plan(seed: int, game: Game) -> np.ndarray:
    """Random actions, some of them invalid, most MONITOR, so that attacks have room."""
    rng = np.random.default_rng(seed)
    legal = list(game.inventory.actions.values())
    drawn = rng.choice([*[INVALID] * 10, *legal], TICKS)
    return np.where(rng.random(TICKS) < 0.8, MONITOR, drawn).astype(np.int32)


def speaker(actions: np.ndarray, game: Game) -> Any:
    """Say the actions of a plan, in words that are not always the shortest; something else for an invalid one."""

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        a = int(actions[tick])
        if a == INVALID:
            return [NONSENSE[(e + tick) % len(NONSENSE)] for e in episodes]
        return [f"Tick {tick}: {prompting.encode(a, game.inventory)} it is." for _ in episodes]

    return respond


def assert_same(a: Any, b: Any) -> None:
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rules", ["hardened", "classic", "all_on"])
def test_a_plan_that_is_said_is_the_plan_that_is_played(rules: str, seed: int, request: pytest.FixtureRequest) -> None:
    game: Game = request.getfixturevalue(rules)
    actions = plan(seed, game)
    assert INVALID in actions
    played, (stats, done) = game.play(speaker(actions, game)), game.rollout(policies.PLAN, actions)
    assert (stats.verbs[:, RESTORE] > 0).all() == (rules != "classic")
    assert_same(played.stats, stats)
    ticks = len(played.actions)
    live = np.arange(TICKS)[:, None] < stats.length
    np.testing.assert_array_equal(np.where(live, done.T, INVALID)[:ticks], played.actions)
    assert stats.length.max() == ticks == len(played.turns) == len(played.parsed)


def test_what_names_no_legal_action_is_an_invalid_action(hardened: Game) -> None:
    played = hardened.play(lambda prompts, episodes, tick: [NONSENSE[tick % len(NONSENSE)]] * len(prompts))
    np.testing.assert_array_equal(played.stats.signals.invalid, TICKS)
    np.testing.assert_array_equal(played.stats.verbs, 0)
    assert (played.actions == INVALID).all()
    found = {p.reason for tick in played.parsed for p in tick if p is not None}
    assert found == {"no JSON", "missing target", "unknown verb", "broken JSON"}


def test_a_finished_episode_is_asked_no_more(classic: Game) -> None:
    asked: list[list[int]] = []

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        assert len(prompts) == len(episodes) and tick == len(asked)
        asked.append(list(episodes))
        return ['{"action": "MONITOR"}'] * len(prompts)

    played = classic.play(respond)
    lengths = played.stats.length
    assert len(set(lengths.tolist())) > 1 and (played.stats.end != HORIZON).any()
    assert asked == [np.flatnonzero(lengths > t).tolist() for t in range(lengths.max())]
    for t, turn in enumerate(played.turns):
        assert [e for e, text in enumerate(turn.texts) if text is not None] == asked[t]
    assert_same(played.stats, classic.rollout(*BASELINES["monitor"])[0])


def test_a_run_goes_on_where_it_stopped(hardened: Game) -> None:
    actions = plan(7, hardened)
    whole = hardened.play(speaker(actions, hardened))
    stop, new = 23, list[Turn]()

    def later(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        assert tick >= stop
        return list(speaker(actions, hardened)(prompts, episodes, tick))

    resumed = hardened.play(later, past=whole.turns[:stop], advance=new.append)
    assert_same(resumed.stats, whole.stats)
    assert resumed.turns == whole.turns and resumed.parsed == whole.parsed
    np.testing.assert_array_equal(resumed.actions, whole.actions)
    assert new == whole.turns[stop:]
    nobody = hardened.play(lambda *_: pytest.fail("asked"), past=whole.turns)
    assert_same(nobody.stats, whole.stats)


def reader(game: Game, name: str = "heuristic") -> tuple[Any, Any]:
    """(respond, watch) of a policy of the simulator that reads what `play` shows."""
    policy, parameters = BASELINES[name]
    memory = [jax.vmap(lambda _: policy.init(game.env.dims, parameters))(np.zeros(EPISODES))]
    seen: list[Any] = []
    act = jax.jit(
        jax.vmap(lambda m, o: policy.act(game.env.dims, parameters, m, o, np.zeros(2, np.float32)), in_axes=(0, 0))
    )

    def watch(state: Any, obs: Any, asked: Sequence[int], prompts: Sequence[str]) -> None:
        assert len(asked) == len(prompts) and len(obs.tick) == EPISODES
        seen.append(obs)

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        action, memory[0] = act(memory[0], seen[-1])
        return [prompting.encode(int(action[e]), game.inventory) for e in episodes]

    return respond, watch


@pytest.mark.parametrize("shuffle", [(), ("alerts", "forensics"), ("controls",)])
def test_observations_are_exchanged_as_in_a_rollout(hardened: Game, shuffle: tuple[str, ...]) -> None:
    respond, watch = reader(hardened)
    played = hardened.play(respond, watch=watch, shuffle=shuffle)
    assert_same(played.stats, hardened.rollout(*BASELINES["heuristic"], shuffle=shuffle)[0])
    if shuffle == ("alerts", "forensics"):
        own = hardened.rollout(*BASELINES["heuristic"])[0]
        assert (own.episode_return != played.stats.episode_return).any()


def test_on_change_asks_when_something_changed(hardened: Game) -> None:
    asked = np.zeros((TICKS, EPISODES), bool)
    views: list[Any] = []

    def watch(state: Any, obs: Any, episodes: Sequence[int], prompts: Sequence[str]) -> None:
        asked[int(obs.tick[0]), list(episodes)] = True

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        views.append(prompts)
        return ['{"action": "MONITOR"}'] * len(prompts)

    played = hardened.play(respond, asking=ON_CHANGE, watch=watch)
    assert_same(played.stats, hardened.rollout(*BASELINES["monitor"])[0])
    assert asked[0].all() and 0.02 < asked.mean() < 0.7
    # Those who monitor are asked at tick 0 and whenever an alert has arrived.
    for e in range(EPISODES):
        states = jaxsim.replay(hardened.env, hardened.params, jax.random.key(11), e, played.actions[:, e]).state
        fresh = np.diff(states.alerts.count[:-1], prepend=-1) > 0
        np.testing.assert_array_equal(asked[:, e], fresh)
    said = np.asarray([[text is not None for text in turn.texts] for turn in played.turns])
    np.testing.assert_array_equal(said, asked)


def test_on_change_an_invalid_answer_still_counts(hardened: Game) -> None:
    played = hardened.play(lambda prompts, episodes, tick: ["?"] * len(prompts), asking=ON_CHANGE)
    answers = sum(text is not None for turn in played.turns for text in turn.texts)
    assert played.stats.signals.invalid.sum() == answers < TICKS * EPISODES


def test_forensics_reach_the_prompt(hardened: Game) -> None:
    """What is shown is what the state holds: the result of an investigation, the tick after it."""
    target = hardened.scenario.assets[0].id
    prompts_of: list[Sequence[str]] = []

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        prompts_of.append(prompts)
        return [f'{{"action": "INVESTIGATE", "target": "{target}"}}' if tick == 0 else '{"action": "MONITOR"}'] * len(
            prompts
        )

    hardened.play(respond)
    assert all("Forensics" not in p for p in prompts_of[0])
    assert all("Forensics" in p and f"{target} " in p.split("Forensics")[1] for p in prompts_of[1])


def test_observing_is_that_of_the_environment(hardened: Game) -> None:
    seen: list[Any] = []
    hardened.play(
        lambda prompts, episodes, tick: ['{"action": "MONITOR"}'] * len(prompts),
        watch=lambda state, obs, asked, prompts: seen.append((jax.tree.map(np.asarray, state), obs)),
    )
    state, obs = seen[40]
    direct = jax.jit(jax.vmap(lambda s: env.observe(hardened.env.dims, s, hardened.params)))(state)
    assert_same(obs, direct)
    assert not obs.marks[:, CONFIRMED].any()
