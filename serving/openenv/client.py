"""The client: `async with SocEnv(base_url=...) as env`, or `.sync()`. A session is a WebSocket."""

from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server.types import State

from serving.openenv.models import SocAction, SocObservation


class SocEnv(EnvClient[SocAction, SocObservation, State]):  # type: ignore[misc]
    """Plays on a server of `serving.openenv.server.app`."""

    def _step_payload(self, action: SocAction) -> dict[str, Any]:
        payload: dict[str, Any] = action.model_dump(exclude_none=True, exclude={"metadata"})
        return payload

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[SocObservation]:
        reward, done = payload.get("reward"), bool(payload.get("done"))
        seen = SocObservation(**{**payload["observation"], "reward": reward, "done": done})
        return StepResult(observation=seen, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> State:
        return State(**payload)
