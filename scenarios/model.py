"""The plain data of a scenario, checked on construction.

The models are frozen and strict: no unknown field, no string for a number, no bool for an integer, no
NaN. Building one in code with bad values raises `pydantic.ValidationError`; `scenarios.load` turns that into
a `ScenarioError` a person can act on. The description and example of each field go into the published JSON
schema and into the error messages.
"""

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from scenarios import attack
from scenarios.checks import MAX_PROBLEMS, Problem, benign_problems, scenario_problems, stage_problems

FORMAT = 1
MAX_ASSETS = 16383
MAX_IDENTITIES = 16383
MAX_STAGES = 256
MAX_BENIGN = 64
MAX_QUEUES = 8
MAX_SOURCES = 64
MAX_ASSUMED = 32
TICK_MINUTES = 30
MAX_TICKS = 10_000
MAX_LAG = 64

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
ID_PATTERN = rf"^{_ID}$"
SCENARIO_ID_PATTERN = rf"^{_ID}(@{_ID})?$"  # a name, and a queue
LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._/-]{0,63}$"
_ID_TEXT = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 64 in all"
_LABEL_TEXT = "letters, digits, spaces and any of . _ / -, beginning with a letter or digit, at most 64 in all"
# One line without control characters: this text is printed on terminals and put into prompts.
LINE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]+$"
_MINUTES = {"min": 1, "h": 60, "d": 24 * 60}
TIME_PATTERN = rf"^([0-9]{{1,6}}(?:\.[0-9]{{1,3}})?) ?({'|'.join(_MINUTES)})$"
_TIME_TEXT = f"times such as 90 min, 4 h, 2 d, or whole ticks of {TICK_MINUTES} minutes"
PROSE_PATTERN = r"^[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]*$"

Signal = Literal["auth_anomaly", "lateral_movement", "data_staging", "egress_anomaly", "background_noise"]
SIGNALS: tuple[str, ...] = get_args(Signal)

# Of every tactic of the pinned table. Five signals are few: each tactic has that whose alerts its own are most like.
DEFAULT_SIGNALS: dict[str, Signal] = {
    "TA0043": "background_noise",  # Reconnaissance: a scan among all the others
    "TA0042": "background_noise",  # Resource Development: outside the enterprise
    "TA0001": "auth_anomaly",  # Initial Access
    "TA0002": "lateral_movement",  # Execution: an unusual process
    "TA0003": "lateral_movement",  # Persistence: an unusual process or service
    "TA0004": "auth_anomaly",  # Privilege Escalation: rights that the account did not have
    "TA0005": "lateral_movement",  # Stealth
    "TA0112": "lateral_movement",  # Defense Impairment
    "TA0006": "auth_anomaly",  # Credential Access
    "TA0007": "data_staging",  # Discovery: much is read
    "TA0008": "lateral_movement",  # Lateral Movement
    "TA0009": "data_staging",  # Collection
    "TA0011": "egress_anomaly",  # Command and Control: unusual connections to the outside
    "TA0010": "egress_anomaly",  # Exfiltration
    "TA0040": "data_staging",  # Impact: much is read and written
}


def _refuse(problems: Iterable[Problem]) -> None:
    """Raise what pydantic reports if there is any problem; `problems` is read no further than is reported."""
    found = list(islice(problems, MAX_PROBLEMS + 1))
    if found:
        text = "; ".join(problem.message for problem in found[:MAX_PROBLEMS])
        raise PydanticCustomError("scenario", "{text}", {"text": text, "problems": found})


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    low, high = bounds
    if low > high:
        _refuse([Problem((), f"the low end {low} is above the high end {high}; write [{high}, {low}]")])
    return bounds


def _none_wrong(check: Callable[[str], str | None]) -> Callable[[str], str]:
    """A validator that lets a text through when `check` finds no problem with it."""

    def validate(text: str) -> str:
        problem = check(text)
        if problem:
            _refuse([Problem((), problem)])
        return text

    return validate


def _at_most(limit: int) -> BeforeValidator:
    """Refuse a list that is too long before each of its items is looked at."""

    def validate(items: Any) -> Any:
        if isinstance(items, list | tuple) and len(items) > limit:
            _refuse([Problem((), f"has {len(items)} entries, but at most {limit} are allowed; remove some")])
        return items

    return BeforeValidator(validate)


def ticks_of(time: str) -> float | None:
    """A time as text, such as 90 min, in ticks; None when it is none."""
    found = re.fullmatch(TIME_PATTERN, time)
    return float(found[1]) * _MINUTES[found[2]] / TICK_MINUTES if found else None


def _ticks(low: int, high: int) -> tuple[BeforeValidator, WithJsonSchema]:
    """Ticks from low to high, or a time as text, which becomes the nearest of them."""

    def validate(value: Any) -> Any:
        ticks = ticks_of(value) if isinstance(value, str) else None
        if ticks is None or ticks > high or ticks == 0 < low:
            return value
        return max(low, int(ticks + 0.5))

    number = {"type": "integer", "minimum": low, "maximum": high}
    return BeforeValidator(validate), WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": TIME_PATTERN}]})


def _default_signal(earlier: dict[str, Any]) -> Any:
    return DEFAULT_SIGNALS[earlier["tactic"]]


Id = Annotated[str, Field(pattern=ID_PATTERN)]
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
Line = Annotated[str, Field(pattern=LINE_PATTERN, max_length=120)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Ticks = Annotated[int, Field(ge=1, le=MAX_TICKS), *_ticks(1, MAX_TICKS)]
LagTicks = Annotated[int, Field(ge=0, le=MAX_LAG), *_ticks(0, MAX_LAG)]
# Lists and tuples are both fine where a sequence is wanted; what is in them stays strict.
Dwell = Annotated[tuple[Ticks, Ticks], Field(strict=False), AfterValidator(_ordered)]
Lag = Annotated[tuple[LagTicks, LagTicks], Field(strict=False), AfterValidator(_ordered)]
StageIds = Annotated[tuple[Id, ...], Field(strict=False, max_length=MAX_STAGES), _at_most(MAX_STAGES)]
Tactic = Annotated[
    str,
    AfterValidator(_none_wrong(attack.tactic_problem)),
    Field(json_schema_extra={"pattern": r"^TA\d{4}$"}),
]
Technique = Annotated[
    str,
    AfterValidator(_none_wrong(attack.technique_problem)),
    Field(json_schema_extra={"pattern": r"^T\d{4}(\.\d{3})?$"}),
]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Plain):
    """Where values of the scenario come from."""

    id: Id = Field(
        description=f"the name that `assumed` uses: {_ID_TEXT}",
        examples=["our-siem-2026"],
    )
    text: Annotated[str, Field(pattern=LINE_PATTERN, max_length=300)] = Field(
        description="what it is, for people to read and look up: one line of at most 300 characters",
        examples=["Measured in our SIEM in May 2026"],
    )


class Assumed(_Plain):
    """Values beside it that nobody observed, and what they rest on. The game does not depend on it."""

    source: Id = Field(description="the id of an entry of `sources`", examples=["our-siem-2026"])
    fields: StageIds = Field(
        description="a list of fields of this entry; `id` says that the entry as a whole is assumed",
        examples=[["dwell", "success"]],
    )


def _assumed() -> Any:
    return Field(
        default=(),
        description="a list of what in this entry was assumed rather than observed, each with source and fields",
        examples=[[{"source": "our-siem-2026", "fields": ["criticality"]}]],
    )


AllAssumed = Annotated[tuple[Assumed, ...], Field(strict=False, max_length=MAX_ASSUMED), _at_most(MAX_ASSUMED)]


class Asset(_Plain):
    """A machine, service or data store that a defender can isolate, patch or cut off from egress."""

    id: Id = Field(
        description=f"the name stages use: {_ID_TEXT}",
        examples=["ci-runner-01"],
    )
    kind: Label = Field(
        description=f"the sort of asset: {_LABEL_TEXT}",
        examples=["datastore"],
    )
    criticality: Fraction = Field(
        description="what the business loses when the asset is isolated, a number from 0 to 1", examples=[0.9]
    )
    segment: Label = Field(
        description=f"the part of the network it is in: {_LABEL_TEXT}",
        examples=["prod"],
    )
    assumed: AllAssumed = _assumed()


class Identity(_Plain):
    """A person or service account that a defender can revoke."""

    id: Id = Field(
        description=f"the name stages use: {_ID_TEXT}",
        examples=["svc-ci-deploy"],
    )
    role: Label = Field(
        description=f"the work it does: {_LABEL_TEXT}",
        examples=["engineer"],
    )
    privilege: Fraction = Field(
        description="what the business loses when the identity is revoked, a number from 0 to 1",
        examples=[0.6],
    )
    assumed: AllAssumed = _assumed()


class Stage(_Plain):
    """One step of the attacker. It starts when its prerequisites have succeeded."""

    id: Id = Field(
        description=f"the name prerequisites use: {_ID_TEXT}",
        examples=["token-theft"],
    )
    name: Line = Field(
        description="the stage in a few words: one line of at most 120 characters",
        examples=["Steal a CI token"],
    )
    tactic: Tactic = Field(description="an ATT&CK Enterprise tactic id", examples=["TA0006"])
    technique: Technique = Field(
        description="the id of an ATT&CK Enterprise technique or sub-technique of that tactic",
        examples=["T1528"],
    )
    prerequisites: StageIds = Field(
        default=(),
        description="a list of the ids of stages that must all have succeeded first",
        examples=[["token-theft"]],
    )
    any_prerequisites: StageIds = Field(
        default=(),
        description="a list of the ids of stages, at least one of which must have succeeded first",
        examples=[["phishing", "password-spray"]],
    )
    asset: Id | None = Field(
        default=None, description="the id of the asset the stage works on, or null", examples=["ci-runner-01"]
    )
    identity: Id | None = Field(
        default=None,
        description="the id of the identity the stage works with, or null",
        examples=["svc-ci-deploy"],
    )
    dwell: Dwell = Field(
        description=f"the time it takes: [low, high], {_TIME_TEXT}, 1 <= low <= high <= {MAX_TICKS}",
        examples=[[2, 5]],
    )
    success: Fraction = Field(
        description="the chance that the stage succeeds once its dwell is over, a number from 0 to 1",
        examples=[0.8],
    )
    detection: Fraction = Field(
        description="the strength with which the stage shows in alerts, a number from 0 to 1", examples=[0.45]
    )
    lag: Lag = Field(
        description=f"the time until its alerts are seen: [low, high], {_TIME_TEXT}, 0 <= low <= high <= {MAX_LAG}",
        examples=[[2, 6]],
    )
    compromises_asset: bool = Field(
        default=False, description="true or false: whether success compromises the asset", examples=[True]
    )
    compromises_identity: bool = Field(
        default=False, description="true or false: whether success compromises the identity", examples=[True]
    )
    exfil: bool = Field(
        default=False,
        description="true or false: whether success takes the data out and ends the episode; an egress block of "
        "its asset stops it",
        examples=[True],
    )
    impact: bool = Field(
        default=False,
        description="true or false: whether success encrypts, destroys or disturbs and ends the episode; it needs no "
        "way out, so that an egress block does not stop it",
        examples=[True],
    )
    signal: Signal = Field(
        default_factory=_default_signal,
        validate_default=True,
        description=f"what its alerts look like, one of {', '.join(SIGNALS)}; if it is left out, that of its tactic: "
        + ", ".join(f"{tactic} {signal}" for tactic, signal in DEFAULT_SIGNALS.items()),
        examples=["auth_anomaly"],
    )
    assumed: AllAssumed = _assumed()

    @property
    def loss(self) -> Literal["exfil", "impact"] | None:
        """What success costs the enterprise, which ends the attack; None where it goes on."""
        return "exfil" if self.exfil else "impact" if self.impact else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse(stage_problems(self))
        return self


class Benign(_Plain):
    """Routine work that raises alerts like those of a stage, whether there is an attack or not."""

    id: Id = Field(
        description=f"the name of the activity: {_ID_TEXT}",
        examples=["nightly-backup"],
    )
    name: Line = Field(
        description="the activity in a few words: one line of at most 120 characters",
        examples=["Copy the databases to the backup store"],
    )
    asset: Id | None = Field(
        default=None, description="the id of the asset its alerts name, or null", examples=["backup-store"]
    )
    identity: Id | None = Field(
        default=None, description="the id of the identity its alerts name, or null", examples=["svc-backup"]
    )
    rate: Fraction = Field(
        description="the chance of one of its alerts each tick, a number from 0 to 1; with noise_rate and the "
        "other rates at most 1 in all",
        examples=[0.04],
    )
    strength: Fraction = Field(
        description="how severe its alerts look, as a stage of that detection, a number from 0 to 1", examples=[0.45]
    )
    signal: Signal = Field(
        description=f"what its alerts look like, one of {', '.join(SIGNALS)}",
        examples=["data_staging"],
    )
    assumed: AllAssumed = _assumed()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse(benign_problems(self))
        return self


class Queue(_Plain):
    """Another stream of the alerts of the same network, which lets through more or less of what is no attack."""

    id: Id = Field(
        description=f"the name of the queue, given as in NAME@raw: {_ID_TEXT}",
        examples=["raw"],
    )
    rate: Fraction = Field(
        description="the chance each tick of an alert that is not of the attack, a number from 0 to 1, to which "
        "noise_rate and the rates of the benign activities are scaled",
        examples=[0.95],
    )
    source: Line = Field(
        description="where the number comes from: one line of at most 120 characters",
        examples=["Measured in our SIEM in May 2026"],
    )


class Scenario(_Plain):
    """An enterprise and one attack campaign against it. The listed order is part of the data."""

    model_config = ConfigDict(
        json_schema_extra={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$comment": "Generated from scenarios/model.py; print it with: python -m scenarios schema",
        }
    )

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = Field(
        description=f"the version of the file format, the whole number {FORMAT}", examples=[FORMAT]
    )
    id: Annotated[str, Field(pattern=SCENARIO_ID_PATTERN)] = Field(
        description=f"the name of the scenario: {_ID_TEXT}; behind it, @ and a queue if it has another than its file",
        examples=["insider_repo_pivot"],
    )
    title: Line = Field(
        description="the scenario in a few words: one line of at most 120 characters",
        examples=["Insider pivots through the repository"],
    )
    description: Annotated[str, Field(pattern=PROSE_PATTERN, max_length=4000)] = Field(
        default="",
        description="what happens, for people to read, at most 4000 characters, no tabs",
        examples=["An insider ..."],
    )
    held_out: bool = Field(
        default=False,
        description="true or false: whether the scenario is kept out of training data",
        examples=[True],
    )
    horizon: Ticks = Field(
        description=f"the length of the longest episode, a time such as 90 min, 40 h, 2 d, or whole ticks of "
        f"{TICK_MINUTES} minutes, 1 to {MAX_TICKS}",
        examples=[70],
    )
    noise_rate: Fraction = Field(
        description="the chance of one background alert each tick, a number from 0 to 1", examples=[0.2]
    )
    assets: Annotated[
        tuple[Asset, ...], Field(strict=False, min_length=1, max_length=MAX_ASSETS), _at_most(MAX_ASSETS)
    ] = Field(
        description=f"a list of 1 to {MAX_ASSETS} assets, each with id, kind, criticality and segment",
        examples=[[{"id": "app", "kind": "service", "criticality": 0.7, "segment": "prod"}]],
    )
    identities: Annotated[
        tuple[Identity, ...], Field(strict=False, max_length=MAX_IDENTITIES), _at_most(MAX_IDENTITIES)
    ] = Field(
        default=(),
        description=f"a list of at most {MAX_IDENTITIES} identities, each with id, role and privilege",
        examples=[[{"id": "alice", "role": "engineer", "privilege": 0.6}]],
    )
    stages: Annotated[
        tuple[Stage, ...], Field(strict=False, min_length=1, max_length=MAX_STAGES), _at_most(MAX_STAGES)
    ] = Field(description=f"a list of 1 to {MAX_STAGES} stages; the attacker takes the first that can start")
    benign: Annotated[tuple[Benign, ...], Field(strict=False, max_length=MAX_BENIGN), _at_most(MAX_BENIGN)] = Field(
        default=(),
        description=f"a list of at most {MAX_BENIGN} activities that are no attack but raise alerts, each with id, "
        "name, rate, strength, signal, and asset or identity",
        examples=[
            [{"id": "scan", "name": "Scan", "asset": "app", "rate": 0.03, "strength": 0.4, "signal": "auth_anomaly"}]
        ],
    )
    queues: Annotated[tuple[Queue, ...], Field(strict=False, max_length=MAX_QUEUES), _at_most(MAX_QUEUES)] = Field(
        default=(),
        description=f"a list of at most {MAX_QUEUES} other queues of the same alerts, each with id, rate and source",
        examples=[[{"id": "raw", "rate": 0.95, "source": "Measured in our SIEM in May 2026"}]],
    )
    sources: Annotated[tuple[Source, ...], Field(strict=False, max_length=MAX_SOURCES), _at_most(MAX_SOURCES)] = Field(
        default=(),
        description=f"a list of at most {MAX_SOURCES} sources that `assumed` names, each with id and text",
        examples=[[{"id": "our-siem-2026", "text": "Measured in our SIEM in May 2026"}]],
    )
    assumed: AllAssumed = _assumed()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse(scenario_problems(self))
        return self
