"""Every pytree of the simulator, with shape, dtype and unit beside each field.

Shapes are of one episode; `jax.vmap` adds the batch axis. Letters: A assets, I identities, N = A + I entities
(assets first), S stages, W words of 32 of them, B benign activities, L ticks of the longest alert lag, K alerts in
view, F forensic results in view, P personalities. An entity is an int32 index into 0..N-1; -1 stands for "none".
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import stages

# Verbs, in the order of the action table.
MONITOR, INVESTIGATE, ISOLATE_ASSET, BLOCK_EGRESS, PATCH_ASSET, REVOKE_IDENTITY, RESTORE = range(7)
VERBS = ("MONITOR", "INVESTIGATE", "ISOLATE_ASSET", "BLOCK_EGRESS", "PATCH_ASSET", "REVOKE_IDENTITY", "RESTORE")

# Stage status.
IDLE, IN_PROGRESS, SUCCEEDED, FAILED, BLOCKED = range(5)
STATUSES = ("idle", "in progress", "succeeded", "failed", "blocked")

# Why an episode ended.
RUNNING, EXFIL, ATTACKER_DONE, HORIZON = range(4)
ENDS = ("running", "exfil", "attacker done", "horizon")

# Rows of `State.marks`: what the defender has set on an entity. CUT_OFF is isolation of an asset, revocation of
# an identity.
CUT_OFF, EGRESS_BLOCKED, PATCHED, CONFIRMED = range(4)

BACKGROUND_NOISE = 4  # index of that signal in scenarios.SIGNALS


class Dims(NamedTuple):
    """Static sizes: all that a compiled program depends on. Smaller scenarios are padded up to them."""

    assets: int
    identities: int
    stages: int
    max_lag: int  # ticks, >= 1
    alerts: int = 12
    forensics: int = 8
    benign: int = 0  # benign activities
    restore: bool = False  # the action table has RESTORE: the rules are `liftable`

    @property
    def entities(self) -> int:
        return self.assets + self.identities

    @property
    def actions(self) -> int:
        """Size of the table: MONITOR, INVESTIGATE x N, three of assets x A, REVOKE_IDENTITY x I, RESTORE x N."""
        return 1 + self.entities + 3 * self.assets + self.identities + self.entities * self.restore

    @property
    def words(self) -> int:
        """Words of 32 bits that hold a bit for each stage."""
        return -(-self.stages // 32)


class ScenarioArrays(NamedTuple):
    """A validated scenario, padded to `Dims`. Padding: absent entities, stages whose status starts BLOCKED."""

    horizon: Array  # () int32, ticks
    noise_rate: Array  # () float32, background alerts per tick
    asset_count: Array  # () int32, assets that exist
    identity_count: Array  # () int32, identities that exist
    exists: Array  # (N,) bool
    value: Array  # (N,) float32, criticality of an asset or privilege of an identity, 0..1
    group: Array  # (N,) int32, where in `members` those begin that are of an entity's kind and segment, or role
    members: Array  # (N,) int32, entities, group by group
    targets: Array  # (2, S + B) int32, asset and identity of each stage, then of each benign activity; entity or -1
    stage_exists: Array  # (S,) bool
    stage_dwell: Array  # (S, 2) int32, ticks, inclusive range
    stage_success: Array  # (S,) float32, probability
    stage_detection: Array  # (S,) float32, probability of each of two alerts
    stage_lag: Array  # (S, 2) int32, ticks, inclusive range
    stage_signal: Array  # (S,) int32, index into scenarios.SIGNALS
    stage_exfil: Array  # (S,) bool, the data leaves through its asset: an egress block stops it
    stage_loss: Array  # (S,) bool, exfil or impact: success ends the attack
    stage_compromises: Array  # (S, 2) bool, its asset, its identity
    needs: Array  # (S, W) uint32, a bit for each stage that it needs to have succeeded
    options: Array  # (S, W) uint32, a bit for each alternative of which it needs one; 0 where there are none
    benign_rate: Array  # (B,) float32, alerts per tick
    benign_strength: Array  # (B,) float32, of its alerts, 0..1, as a stage's detection
    benign_signal: Array  # (B,) int32, index into scenarios.SIGNALS


class Personality(NamedTuple):
    """How an attacker plays. Scalars in a `State`; (P,) arrays in `Params`."""

    dwell: Array  # () float32, factor on dwell times
    detection: Array  # () float32, factor on detection strength
    success: Array  # () float32, added to success probabilities
    pause: Array  # () float32, probability of pausing after a defender action
    reroutes: Array  # () bool, after a failure it prefers another stage; without `persistence` nothing reads it


class Rules(NamedTuple):
    """The numbers of the rules that no scenario sets."""

    false_negative: Array  # () float32, forensic error on a compromised entity
    false_positive: Array  # () float32, forensic error on a clean entity
    patch_penalty: Array  # () float32, taken from the success probability of a stage on a patched asset
    background_named: Array  # () float32, share of background alerts that name an entity
    load_isolated: Array  # () float32, load per unit of criticality of an isolated asset
    load_egress: Array  # () float32, load per unit of criticality of an egress-blocked asset
    load_revoked: Array  # () float32, load per unit of privilege of a revoked identity
    # The switches; `rules.SWITCHES` says what each closes. `liftable` is `Dims.restore`: it brings a verb.
    run_to_horizon: Array  # () bool, only the horizon ends an episode
    attack_probability: Array  # () float32, that there is an attack at all
    attack_delay: Array  # (2,) int32, ticks before its first stage may start, inclusive range
    unknown_path: Array  # () bool, roles and the attacker's order of preference are dealt anew each episode
    persistence: Array  # () bool, a failed stage is tried again
    retry_delay: Array  # (2,) int32, ticks without a start after a failure or a block in progress, >= 1, inclusive
    hide_personality: Array  # () bool, the observation does not name the attacker's personality
    evidence_once: Array  # () bool, only the first containment of a target can be paid as evidence
    earned_clean: Array  # () bool, the clean bonus needs a block in progress or a containment paid as evidence
    foothold: Array  # () bool, a stage needs what its prerequisites compromised: compromised still, and not cut off
    eradication: Array  # () bool, a patch of an isolated asset rebuilds it: no longer compromised or confirmed
    believable_paths: Array  # () float32, share of episodes that deal roles among entities of one `group` only
    resumption: Array  # () bool, where there is RESTORE, a stage stopped in progress goes on where it was
    background_severity: Array  # (2,) float32, range of the severity of a background alert
    background_paired: Array  # () float32, share of those that name anyone that name an asset and an identity


class RewardWeights(NamedTuple):
    """Points per unit of each signal; `reward.channels` applies them. Costs are negative."""

    detection: Array  # () float32, per newly confirmed target
    active_block: Array  # () float32, per stage blocked in progress
    preemptive_block: Array  # () float32, per stage blocked while idle
    containment_cost: Array  # () float32, per containment action
    evidence: Array  # () float32, per containment paid as evidence
    false_positive: Array  # () float32, per containment of an entity no stage names
    disruption: Array  # () float32, per unit of load and tick
    disruption_cap: Array  # () float32, most that disruption may cost in a tick, >= 0, inf for none
    invalid_action: Array  # () float32, per invalid action
    exfil: Array  # () float32, once, on exfil
    exfil_stage_left: Array  # () float32, on exfil, per stage that did not succeed
    clean: Array  # () float32, at the end when no stage succeeded
    stage_left: Array  # () float32, at any other end, per stage that did not succeed
    passive: Array  # () float32, at any other end, when the defender never acted
    investigation: Array  # () float32, per investigation
    clip: Array  # () float32, bound on the sum of all channels but terminal, per tick


class Params(NamedTuple):
    """Everything traced: a batch may mix scenarios, rules, rewards and personalities in one program."""

    scenario: ScenarioArrays
    rules: Rules
    reward: RewardWeights
    personalities: Personality  # fields (P,)
    personality_weights: Array  # (P,) float32, probabilities, sum 1


class Pending(NamedTuple):
    """Alerts in flight: row t mod L belongs to the stage that started at tick t."""

    code: Array  # (L,) int32, packed alert code
    due: Array  # (L, 2) int32, tick at which it becomes visible, 0 = no alert
    severity: Array  # (L, 2) float32, 0..1


class AlertRing(NamedTuple):
    """The last K alerts; alert number n lies in slot n mod K."""

    code: Array  # (K,) int32, packed alert code
    severity: Array  # (K,) float32, 0..1
    tick: Array  # (K,) int32, when it became visible
    count: Array  # () int32, alerts so far


class ForensicRing(NamedTuple):
    """The last F forensic results; result number n lies in slot n mod F."""

    entity: Array  # (F,) int32
    compromised: Array  # (F,) bool, the verdict
    confidence: Array  # (F,) float32, 0..1
    tick: Array  # (F,) int32
    count: Array  # () int32, results so far


class State(NamedTuple):
    """The whole truth of an episode. Only `env.observe` decides what the defender sees of it."""

    tick: Array  # () int32
    end: Array  # () int32, one of RUNNING, EXFIL, ATTACKER_DONE, HORIZON
    acted: Array  # () bool, the defender has taken a valid action other than MONITOR, or than a RESTORE of nothing
    personality: Personality  # drawn at reset
    who: Array  # () int32, index of that personality
    attack: Array  # () bool, there is an attack in this episode
    next_start: Array  # () int32, tick before which no stage starts
    targets: Array  # (2, S + B) int32, as in the scenario, with the roles of this episode
    order: Array  # (S,) int32, of the stages that are ready the attacker starts the lowest, the first listed of equals
    exfil: Array  # () bool, the data is out, or another loss has come
    earned: Array  # () bool, a stage was blocked in progress or a containment was paid as evidence
    idle: Array  # (W,) uint32, may be started; this and the next seven are sets of stages, see `stages`
    done: Array  # (W,) uint32, has succeeded
    blocked: Array  # (W,) uint32, a control in force blocks it
    controls: Array  # (3, W) uint32, in force: its asset is isolated, its identity revoked, its egress (exfil) blocked
    patched: Array  # (W,) uint32, the stage's asset is patched
    taken: Array  # (2, W) uint32, its asset, its identity, where it compromises them, is compromised
    supported: Array  # (W,) uint32, what it needs has succeeded and, under `foothold`, still gives one
    counted: Array  # (2, W) uint32, it has counted as blocked in progress, as blocked while idle
    stage: Array  # () int32, stage in progress or -1
    stage_end: Array  # () int32, tick at which its dwell is over
    left: Array  # (S,) int32, ticks of its dwell that a stage stopped in progress has left, 0 for the others
    succeeded: Array  # () int32, stages that succeeded
    compromised: Array  # (N,) bool
    touched: Array  # (N,) bool, a containment has hit it
    marks: Array  # (4, N) bool, rows CUT_OFF, EGRESS_BLOCKED, PATCHED, CONFIRMED
    load: Array  # () float32, disruption load of the controls in force
    pending: Pending
    alerts: AlertRing
    forensics: ForensicRing

    @property
    def status(self) -> Array:
        """(..., S) int32, one of STATUSES for each stage; NumPy of a state of NumPy arrays."""
        xp = np if isinstance(self.idle, np.ndarray) else jnp
        many = self.order.shape[-1]
        idle, done, blocked = (stages.unpacked(x, many, xp) for x in (self.idle, self.done, self.blocked))
        stage = xp.broadcast_to(self.stage[..., None], idle.shape)
        going = xp.broadcast_to(xp.arange(many, dtype=np.int32), idle.shape) == stage
        sets = (idle, IDLE), (done, SUCCEEDED), (blocked, BLOCKED), (going, IN_PROGRESS)
        return xp.select([x for x, _ in sets], [np.int32(x) for _, x in sets], np.int32(FAILED))


class Alerts(NamedTuple):
    """Alerts in view. Slot order is not arrival order: sort by `number`."""

    number: Array  # (K,) int32, 0-based arrival number, -1 = empty slot
    signal: Array  # (K,) int32, index into scenarios.SIGNALS
    asset: Array  # (K,) int32, entity or -1
    identity: Array  # (K,) int32, entity or -1
    severity: Array  # (K,) float32, 0..1
    tick: Array  # (K,) int32, when it became visible


class Forensics(NamedTuple):
    """Forensic results in view. Slot order is not arrival order: sort by `number`."""

    number: Array  # (F,) int32, 0-based arrival number, -1 = empty slot
    entity: Array  # (F,) int32
    compromised: Array  # (F,) bool, the verdict
    confidence: Array  # (F,) float32, 0..1
    tick: Array  # (F,) int32


class Observation(NamedTuple):
    """All that the defender may know."""

    tick: Array  # () int32
    horizon: Array  # () int32
    personality: Array  # () int32, index of the attacker's personality, -1 where the rules hide it
    exists: Array  # (N,) bool, entities of the inventory
    value: Array  # (N,) float32, criticality or privilege
    marks: Array  # (4, N) bool, rows CUT_OFF, EGRESS_BLOCKED, PATCHED, CONFIRMED
    alerts: Alerts
    forensics: Forensics


class Signals(NamedTuple):
    """What happened in one tick, before any weight. Float32 counts, so that weights apply to all alike."""

    confirmed: Array  # () float32, targets newly confirmed
    active_blocks: Array  # () float32, stages blocked in progress, each the first time only
    preemptive_blocks: Array  # () float32, stages blocked while idle, each the first time only
    containments: Array  # () float32, containment actions
    evidence_paid: Array  # () float32, evidence-backed containments, under `evidence_once` only a target's first
    false_positives: Array  # () float32, containments of an entity no stage names, and all when there is no attack
    load: Array  # () float32, disruption load
    invalid: Array  # () float32, invalid actions
    exfil: Array  # () float32, 1 on the tick of the exfil
    exfil_stages_left: Array  # () float32, then: stages that did not succeed
    clean: Array  # () float32, 1 on a last tick with no stage succeeded, where the rules want it: earned
    stages_left: Array  # () float32, on any other last tick without exfil: stages that did not succeed
    passive: Array  # () float32, then: 1 if the defender never acted
    investigations: Array  # () float32, investigations
    evidence_backed: Array  # () float32, containments of a target confirmed on an earlier tick; no weight pays them
    recontained: Array  # () float32, containments, but patches, of what had been contained and is no more; never paid


class Channels(NamedTuple):
    """The seven reward channels of one tick, in points."""

    detection: Array  # () float32
    containment: Array  # () float32
    evidence_bonus: Array  # () float32
    false_positive: Array  # () float32
    disruption: Array  # () float32
    invalid_action: Array  # () float32
    terminal: Array  # () float32
