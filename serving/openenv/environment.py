"""One session's episode."""

import json
from html import escape
from typing import Any
from uuid import uuid4

from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import EnvironmentMetadata, State

import prompting
from grpo.playing.choices import ALWAYS_ASK
from jaxsim.types import MONITOR
from jaxsim_soc import cli
from serving.desk import Desk, start_of
from serving.messages import Act, Refused, checked
from serving.openenv.models import SocAction, SocObservation
from serving.sessions import chosen


class SocEnvironment(Environment):  # type: ignore[misc]
    """The analyst's seat. Every session has an instance of its own; a step is a tick.

    Raises ValueError, in one line, for a reset and an action that are not possible, and for a step before a reset.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._desk = Desk(ALWAYS_ASK)
        self._state = State(episode_id=None, step_count=0)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **start: Any) -> SocObservation:
        """Begin an episode; `start` as of the server's `Start`: scenario, rules, reward, personality, episode, ..."""
        text = self._desk.reset(start_of({**start, "seed": seed}))
        self._state = State(episode_id=episode_id or str(uuid4()), step_count=0)
        inventory = self._desk.inventory
        told = {"system_prompt": prompting.system_prompt(inventory), "answers": prompting.schema(inventory)}
        return SocObservation(text=text, news=text, data=self._data(), reward=0.0, **told)

    def step(self, action: SocAction, timeout_s: float | None = None, **_: Any) -> SocObservation:
        """Play a tick."""
        game = self._desk.game
        if game is None:
            raise ValueError("no episode has begun; send a reset first, over the same WebSocket: HTTP keeps no session")
        try:
            number, refusal = chosen(checked(Act, action.model_dump(exclude={"metadata"})), game.inventory)
        except Refused as error:
            raise ValueError(error.message) from None
        told = self._desk.act(number)
        self._state.step_count += 1
        return SocObservation(
            text=self._desk.text(),
            news=told.text,
            data=self._data(),
            refusal=refusal,
            reward=told.reward,
            done=told.done,
            outcome=self._desk.outcome() if told.done else None,
        )

    @property
    def state(self) -> State:
        """The episode's id and the number of its steps; neither seed nor anything else that is hidden."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """What this is."""
        said = "The analyst's seat of a simulated SOC: late, noisy alerts, one action a tick."
        return EnvironmentMetadata(name="jaxsim-soc", description=said, version=cli.version())

    def render_web(self, observation: dict[str, Any]) -> str:
        """The view, and how the episode went."""
        outcome = observation.get("outcome") or {}
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in outcome.items())
        text = escape(str(observation.get("text", "")))
        return f'<pre style="white-space: pre-wrap">{text}</pre>' + (f"<table>{rows}</table>" if rows else "")

    def web_actions(self, observation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Waiting, and what can be done about whatever alerts and forensics name."""
        data, game = observation.get("data") or {}, self._desk.game
        if observation.get("done") or game is None:
            return []
        names = [x.get(kind) for x in data.get("alerts", []) for kind in ("asset", "identity")]
        named = dict.fromkeys([*(x.get("target") for x in data.get("forensics", [])), *names])
        found = [
            (f"{verb} {target}", {"action": verb, "target": target})
            for verb, target in game.inventory.actions
            if target in named and target is not None
        ]
        return [("MONITOR", {"action": "MONITOR"}), *found]

    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self._desk.text("json"))
        return data


def warm() -> None:
    """Compile what the default game needs, so that no client waits for it."""
    desk = Desk(ALWAYS_ASK)
    desk.reset(start_of({"seed": 0}))
    desk.act(MONITOR)
    desk.finish()
    desk.outcome()
