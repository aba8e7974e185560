"""What clients may send and what they are answered, as pydantic models: other fields and other types are refused."""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxsim.check import MAX_SEED, said

T = TypeVar("T", bound=BaseModel)


class Refused(Exception):
    """A request that is not carried out: an HTTP status, and one line that names what is wrong and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())[:1000]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Generated(_Strict):
    """A network drawn at random, see `jaxsim-soc scenarios generate`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    entities: int = Field(default=20, ge=10, le=10_000)
    split: Literal["train", "held_out"] = "train"


class Start(_Strict):
    """An episode to begin. At most one of scenario, generated and upload."""

    scenario: str | None = Field(default=None, description="a built-in name; none: supply_chain_token_drift_hardened")
    generated: Generated | None = None
    upload: str | None = Field(default=None, description="the text of a scenario file, YAML or JSON")
    rules: str = Field(default="hardened", max_length=500)
    reward: str | dict[str, float | None] = Field(
        default="operational", description="a preset, or all weights by name; null is infinite, for cap and clip"
    )
    personality: str = "any"
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="of all the luck; none: drawn, not told")
    episode: int = Field(default=0, ge=0, le=2**32 - 1, description="of that seed")


class Act(_Strict):
    """An action: the words of a language model, from which it is read, or a verb and its target."""

    text: str | None = None
    action: str | None = Field(default=None, examples=["MONITOR", "INVESTIGATE"])
    target: str | None = None


class Answer(BaseModel):
    """What the player sees after a reset or a step."""

    session: str
    done: bool
    reward: float = Field(description="points of this tick")
    refusal: str | None = Field(default=None, description="why `text` was no legal action; the tick passed")
    text: str = Field(description="the observation as a prompt")
    observation: dict[str, Any] = Field(description="the same as data")
    system_prompt: str | None = Field(default=None, description="after a reset: what a model is told of the game")
    answers: dict[str, Any] | None = Field(default=None, description="after a reset: JSON schema of the legal answers")
    outcome: dict[str, Any] | None = Field(default=None, description="once the episode is over")


class Message(_Strict):
    """What a WebSocket client sends."""

    type: Literal["reset", "step", "state", "close"]
    data: dict[str, Any] = Field(default_factory=dict)


def first_problem(errors: Any) -> str:
    """One line for what pydantic found first."""
    error, *more = errors
    where = ".".join(str(x) for x in error["loc"] if x != "body") or "the message"
    found = "" if error["type"] in ("missing", "json_invalid") else f" = {said(error.get('input'))}"
    also = f" (and {len(more)} more)" if more else ""
    return f"{where[:200]}{found}: {error['msg']}{also}"


def read(kind: type[T], text: str | bytes) -> T:
    """A message from JSON. Raises Refused."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise Refused(400 if found[0]["type"] == "json_invalid" else 422, first_problem(found)) from None


def checked(kind: type[T], data: Any) -> T:
    """A message from what JSON holds. Raises Refused."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise Refused(422, first_problem(error.errors(include_url=False, include_context=False))) from None
