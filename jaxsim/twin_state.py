"""The scalar twin's state, what is kept of a tick, and tick 0."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxsim.twin_rules import CLASSIC, PERSONALITIES, Dealt, Personality, Rules, Target, as_listed

Action = tuple[str, str | None]


class Alert(NamedTuple):
    signal: str
    asset: str | None
    identity: str | None
    severity: float
    visible: int  # first tick on which the defender sees it


class Forensic(NamedTuple):
    target: str
    verdict: str  # "compromised" or "clean"
    confidence: float
    tick: int


@dataclass(slots=True)
class State:
    scenario: Any
    personality_name: str
    personality: Personality
    rules: Rules
    dealt: Dealt
    stages: dict[str, Any]  # by id, with the targets of this episode, in listed order
    benign: list[Any]  # likewise
    order: list[str]  # stages, most preferred first
    next_start: int  # tick before which no stage starts
    criticality: dict[str, float]  # by asset, in listed order
    privilege: dict[str, float]  # by identity, in listed order
    named: set[str]  # targets that some stage names
    status: dict[str, str]  # by stage: idle, in_progress, succeeded, failed or blocked
    tick: int = 0
    done: bool = False
    end: str | None = None  # exfil, attacker_done or horizon
    current: Any = None  # the stage in progress
    left: dict[str, int] = field(default_factory=dict)  # by stage that was stopped: ticks of its dwell that are left
    stage_end: int = 0  # tick on which its dwell is over
    out: bool = False  # the data got out
    earned: bool = False  # a stage was blocked in progress or a containment was paid as evidence
    acted: bool = False  # the defender has taken a valid action other than MONITOR, or than a RESTORE of nothing
    put_off: set[str] = field(default_factory=set)  # stages left for last
    active_counted: set[str] = field(default_factory=set)  # stages that have counted as an active block
    preemptive_counted: set[str] = field(default_factory=set)  # likewise as a preemptive one
    ever_contained: set[str] = field(default_factory=set)  # targets, whether or not a control is still in force
    isolated: set[str] = field(default_factory=set)
    egress_blocked: set[str] = field(default_factory=set)
    patched: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    compromised: set[str] = field(default_factory=set)
    confirmed: set[str] = field(default_factory=set)
    pending: list[Alert] = field(default_factory=list)  # raised, not yet seen
    alerts: list[Alert] = field(default_factory=list)  # in view, oldest first
    forensics: list[Forensic] = field(default_factory=list)  # in view, oldest first


@dataclass(slots=True)
class Tick:
    """What happened on one tick. After the end of an episode every field keeps its zero."""

    newly_confirmed: int = 0
    investigations: int = 0
    active_blocks: int = 0
    preemptive_blocks: int = 0
    containments: int = 0
    evidence_paid: int = 0  # containments paid as evidence
    evidence_backed: int = 0  # containments of what was confirmed before, paid or not
    recontained: int = 0  # containments, but patches, of what had been contained and is under no control any more
    false_positives: int = 0
    invalid: bool = False
    load: float = 0.0
    done: bool = False  # the episode ended on this tick
    exfil: bool = False  # the data got out on this tick
    clean: bool = False  # the episode ended on this tick and no stage succeeded, as far as that counts
    other: bool = False  # it ended on this tick, neither so nor with the data out
    stages_succeeded: int = 0
    stages_total: int = 0
    acted: bool = False  # on this tick or an earlier one


def reset(scenario: Any, personality_name: str, rules: Rules = CLASSIC, dealt: Dealt | None = None) -> State:
    """Tick 0. Without `dealt` there is an attack at once, everyone in the role the scenario lists."""
    dealt = dealt or as_listed(scenario)
    return State(
        scenario=scenario,
        personality_name=personality_name,
        personality=PERSONALITIES[personality_name],
        rules=rules,
        dealt=dealt,
        stages={stage.id: aimed(stage, target) for stage, target in zip(scenario.stages, dealt.stages, strict=True)},
        benign=[aimed(activity, target) for activity, target in zip(scenario.benign, dealt.benign, strict=True)],
        order=list(dealt.order),
        next_start=dealt.first_start,
        criticality={asset.id: asset.criticality for asset in scenario.assets},
        privilege={identity.id: identity.privilege for identity in scenario.identities},
        named={target for targets in dealt.stages for target in targets if target},
        status={stage.id: "idle" for stage in scenario.stages},
    )


def aimed(activity: Any, target: Target) -> Any:
    """The stage or benign activity on this target."""
    if target == (activity.asset, activity.identity):
        return activity
    return activity.model_copy(update={"asset": target[0], "identity": target[1]})


def personality_seen(state: State) -> str | None:
    """What the defender is told of the attacker."""
    return None if state.rules.hide_personality else state.personality_name
