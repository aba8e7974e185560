"""What is sent and answered."""

from typing import Any

from openenv.core.env_server.types import Action, Observation
from pydantic import Field


class SocAction(Action):  # type: ignore[misc]
    """One tick: the words of a language model, from which the action is read, or a verb and its target."""

    text: str | None = Field(default=None, description='as models say it: {"action": "INVESTIGATE", "target": "NAME"}')
    action: str | None = Field(default=None, description="MONITOR, INVESTIGATE, ...; see `answers` of the reset")
    target: str | None = Field(default=None, description="the asset or identity")


class SocObservation(Observation):  # type: ignore[misc]
    """What the analyst sees. `reward`: points of the tick; nothing hidden before the episode is over."""

    text: str = Field(default="", description="the whole view as a prompt")
    news: str = Field(default="", description="what is new since the last step, in few words")
    data: dict[str, Any] = Field(default_factory=dict, description="the whole view as data")
    refusal: str | None = Field(default=None, description="why `text` of the action was no legal one; the tick passed")
    system_prompt: str | None = Field(default=None, description="after a reset: what a model is told of the game")
    answers: dict[str, Any] | None = Field(default=None, description="after a reset: JSON schema of the legal answers")
    outcome: dict[str, Any] | None = Field(default=None, description="once the episode is over")
