"""The game as a taskset of verifiers: `vf-eval jaxsim-soc-v1`. Needs the extra `verifiers`, and an environment of its
own.

A task is an episode, named by seed and number; the environment plays the user of a chat: it shows the view, then what
is new, and reads the action from each answer as `jaxsim-soc evaluate-model` does. The reward is the episode's return,
in points; who stops answering waits to its end. (verifiers finds a taskset by the name of a module at the top.)
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

import prompting
from grpo.playing.choices import ON_CHANGE
from jaxsim.types import EXFIL
from serving.desk import Desk, start_of

__all__ = ["SocData", "SocEnv", "SocEnvConfig", "SocTask", "SocTaskset", "SocTasksetConfig"]


class SocData(vf.TaskData):  # type: ignore[misc]
    """One episode."""

    start: dict[str, Any]  # fields of serving.messages.Start


class SocTasksetConfig(vf.TasksetConfig):  # type: ignore[misc]
    """Which episodes: the first `episodes` of a seed."""

    episodes: int = 64
    seed: int = 0
    scenario: str = "supply_chain_token_drift_hardened"
    rules: str = "hardened"
    reward: str = "operational"
    personality: str = "any"


class SocTask(vf.Task[SocData]):  # type: ignore[misc]
    """An episode; what it is worth is recorded by the environment."""


class SocTaskset(vf.Taskset[SocTask, SocTasksetConfig]):  # type: ignore[misc]
    """Episodes of one game. Raises ValueError for a game that there is not."""

    def load(self) -> Iterator[SocTask]:
        """The tasks, each with the system prompt of the game."""
        c = self.config
        same = {"scenario": c.scenario, "rules": c.rules, "reward": c.reward, "personality": c.personality}
        desk = Desk()
        desk.load(start_of(same))
        told = prompting.system_prompt(desk.inventory)
        for episode in range(c.episodes):
            start = {**same, "seed": c.seed, "episode": episode}
            data = SocData(name=f"{c.scenario}#{c.seed}.{episode}", prompt=None, system_prompt=told, start=start)
            yield SocTask(data, c.task)


class SocEnvConfig(vf.EnvConfig):  # type: ignore[misc]
    """The player only talks: the harness without tools, on this machine, since nothing that it says is executed."""

    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime={"type": "subprocess"})
    asking: str = ON_CHANGE


class SocEnv(vf.Env[SocEnvConfig]):  # type: ignore[misc]
    """Plays an episode with one agent."""

    async def run(self, task: SocTask, agents: Any) -> None:
        """Show, ask, act, until it is over."""
        desk = Desk(self.config.asking)
        refused = 0
        shown = await asyncio.to_thread(desk.reset, start_of(task.data.start))
        async with agents.player.interaction(task) as talk:
            said = await talk.turn(shown)
            while not said.terminated:
                action, reason = prompting.parse(said.last_reply, desk.inventory)
                refused += bool(reason)
                told = await asyncio.to_thread(desk.act, action)
                if told.done:
                    break
                said = await talk.turn(told.text)
        talk.trace.record_reward("episode_return", await asyncio.to_thread(desk.finish))
        talk.trace.record_metric("answers_without_action", float(refused))
        talk.trace.record_metric("exfil", float(desk.outcome()["end"] == EXFIL))
