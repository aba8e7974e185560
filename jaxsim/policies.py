"""Baseline policies. Each reads an `Observation` and nothing else; parameters are pytrees, so vmap mixes policies.

A `Policy` is two pure functions: `init(dims, parameters) -> memory` and
`act(dims, parameters, memory, observation, noise) -> (action, memory)`, where noise is two uniforms of the policy's own
and an action is an int32 of the action table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import actions
from jaxsim.noise import integer
from jaxsim.types import (
    BACKGROUND_NOISE,
    BLOCK_EGRESS,
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    INVESTIGATE,
    ISOLATE_ASSET,
    MONITOR,
    PATCH_ASSET,
    PATCHED,
    RESTORE,
    REVOKE_IDENTITY,
    Alerts,
    Dims,
    Observation,
)

EGRESS_SIGNAL = 3  # index of egress_anomaly in scenarios.SIGNALS


class Policy(NamedTuple):
    """A policy's two functions; hashable, so `jax.jit` takes it as a static argument.

    A privileged policy is no defender but a yardstick: its `act` gets the pair (observation, state).
    """

    init: Callable[..., Any]
    act: Callable[..., tuple[Array, Any]]
    privileged: bool = False


def no_memory(dims: Dims, parameters: Any) -> tuple[()]:
    """The memory of a policy that keeps none."""
    return ()


# --- random ---------------------------------------------------------------------------------------------------------


def act_random(dims: Dims, parameters: Any, memory: Any, obs: Observation, noise: Array) -> tuple[Array, Any]:
    """A verb uniform over those with a legal target, then a legal target for it, uniform."""
    zero = jnp.zeros((), jnp.int32)
    a = jnp.sum(obs.exists[: dims.assets], dtype=jnp.int32)
    i = jnp.sum(obs.exists[dims.assets :], dtype=jnp.int32)
    # With no entity of one kind its verbs drop out: MONITOR, INVESTIGATE, three of assets, REVOKE_IDENTITY, RESTORE.
    last = jnp.where(a > 0, 5, 2) - (i == 0).astype(jnp.int32)
    drawn = integer(noise[0], zero, last + int(dims.restore))
    verb = jnp.where((a == 0) & (drawn == 2), REVOKE_IDENTITY, jnp.where(drawn > last, RESTORE, drawn))
    either = (verb == INVESTIGATE) | (verb == RESTORE)
    count = jnp.where(either, a + i, jnp.where(verb == REVOKE_IDENTITY, i, a))
    nth = integer(noise[1], zero, count - 1)
    # Assets lie first, identities from dims.assets on, padding behind each.
    identity = (verb == REVOKE_IDENTITY) | (either & (nth >= a))
    index = jnp.where(either & identity, nth - a, nth)
    return actions.encode(dims, verb, jnp.where(identity, dims.assets + index, index)), memory


# --- plan -----------------------------------------------------------------------------------------------------------


def act_plan(dims: Dims, plan: Array, memory: Any, obs: Observation, noise: Array) -> tuple[Array, Any]:
    """The plan's action of each tick, (T,) int32, MONITOR after its end; reads nothing but the tick."""
    t = obs.tick
    return jnp.where(t < len(plan), plan[jnp.minimum(t, len(plan) - 1)], MONITOR), memory


def act_briefed(dims: Dims, plans: Array, memory: Any, obs: Observation, noise: Array) -> tuple[Array, Any]:
    """Of the plans, (P, T) int32, the one for the attacker's personality; the first where the rules hide it."""
    return act_plan(dims, plans[jnp.maximum(obs.personality, 0)], memory, obs, noise)


def act_always(dims: Dims, action: Array, memory: Any, obs: Observation, noise: Array) -> tuple[Array, Any]:
    """The same action, () int32, at every tick."""
    return action, memory


# --- what evidence-using policies share -----------------------------------------------------------------------------


def first_where(mask: Array) -> tuple[Array, Array]:
    """(index of the first True, any), int32 and bool; the index is the length of the mask when there is none."""
    index = jnp.min(jnp.where(mask, np.arange(len(mask), dtype=np.int32), len(mask)))
    return index, index < len(mask)


def worst_alert(alerts: Alerts, mask: Array) -> tuple[Array, Array]:
    """(slot, any) of the highest-severity alert of `mask`, (K,) bool; the earliest of equals."""
    top = jnp.max(jnp.where(mask, alerts.severity, -1.0))
    number = jnp.where(mask & (alerts.severity == top), alerts.number, np.iinfo(np.int32).max)
    slot, _ = first_where(number == jnp.min(number))
    return slot, jnp.any(mask)


def contain_confirmed(dims: Dims, obs: Observation) -> tuple[Array, Array]:
    """(action, any) that cuts off the first confirmed target not yet cut off, in listed order."""
    entity, found = first_where(obs.marks[CONFIRMED] & ~obs.marks[CUT_OFF])
    verb = jnp.where(entity < dims.assets, ISOLATE_ASSET, REVOKE_IDENTITY)
    return actions.encode(dims, verb, entity), found


# --- heuristic ------------------------------------------------------------------------------------------------------


def init_investigated(dims: Dims, parameters: Any) -> Array:
    """(N,) bool: entities this policy has investigated."""
    return jnp.zeros(dims.entities, bool)


def act_heuristic(
    dims: Dims, parameters: Any, investigated: Array, obs: Observation, noise: Array
) -> tuple[Array, Array]:
    """The published heuristic: contain what is confirmed, then the worst alert, else investigate it, else patch."""
    confirmed_action, confirmed = contain_confirmed(dims, obs)

    alerts = obs.alerts
    slot, any_alert = worst_alert(alerts, (alerts.number >= 0) & (alerts.signal != BACKGROUND_NOISE))
    severity, asset, identity = alerts.severity[slot], alerts.asset[slot], alerts.identity[slot]
    target = jnp.where(asset >= 0, asset, identity)
    known = any_alert & (target >= 0)
    entity = jnp.maximum(target, 0)
    free = known & ~obs.marks[CUT_OFF, entity]
    egress = (alerts.signal[slot] == EGRESS_SIGNAL) & ~obs.marks[EGRESS_BLOCKED, entity]
    isolates = free & (asset >= 0) & (severity >= 0.48)
    revokes = free & (asset < 0) & (severity >= 0.52)
    investigates = known & (severity >= 0.26) & ~investigated[entity]

    named = jnp.any(
        (alerts.number >= 0)[:, None] & (alerts.asset[:, None] == np.arange(dims.assets, dtype=np.int32)[None]), axis=0
    )
    patch, patches = first_where(named & ~obs.marks[PATCHED, : dims.assets])

    verb = jnp.where(isolates, jnp.where(egress, BLOCK_EGRESS, ISOLATE_ASSET), REVOKE_IDENTITY)
    action = jnp.where(patches, actions.encode(dims, jnp.int32(PATCH_ASSET), patch), MONITOR)
    action = jnp.where(investigates, actions.encode(dims, jnp.int32(INVESTIGATE), entity), action)
    contains = isolates | revokes
    action = jnp.where(contains, actions.encode(dims, verb, entity), action)
    action = jnp.where(confirmed, confirmed_action, action)
    investigates &= ~contains & ~confirmed
    # Out-of-range writes are dropped, so a tick without an investigation writes nowhere.
    return action, investigated.at[jnp.where(investigates, entity, dims.entities)].set(True, mode="drop")


# --- evidence: the parametric investigate-then-contain family -------------------------------------------------------


class EvidenceParams(NamedTuple):
    """One member of the investigate-then-contain family. Severities and confidences are 0..1; above 1 = never."""

    investigate_at: Array  # () float32, least severity of an alert worth an investigation
    contain_at: Array  # () float32, least severity of an alert contained without one
    verdict_at: Array  # () float32, least confidence of a "compromised" verdict that is contained unconfirmed
    window: Array  # () int32, ticks for which an alert or a verdict counts
    repeats: Array  # () int32, most investigations of one entity
    identity_first: Array  # () bool, of an alert that names both, look at the identity first
    # Of use only where there is RESTORE:
    rebuild: Array  # () bool, patch an isolated asset that is confirmed, and restore it after
    clean_at: Array  # () float32, least confidence of a later "clean" verdict that restores what is not confirmed
    hold: Array  # () int32, ticks after which what is cut off and not confirmed is restored whatever is known


DEFAULT_EVIDENCE = EvidenceParams(
    investigate_at=np.float32(0.1),
    contain_at=np.float32(0.5),
    verdict_at=np.float32(0.5),
    window=np.int32(12),
    repeats=np.int32(4),
    identity_first=np.bool_(True),
    rebuild=np.bool_(True),
    clean_at=np.float32(0.5),
    hold=np.int32(1000),
)


class Handled(NamedTuple):
    """What a member of the family remembers."""

    counts: Array  # (N,) int32, how often it has investigated each entity since it last contained or restored it
    since: Array  # (N,) int32, tick of that, 0 if never
    rebuilt: Array  # (N,) bool, it has rebuilt it since


def init_handled(dims: Dims, parameters: Any) -> Handled:
    """Nothing yet."""
    none = jnp.zeros(dims.entities, jnp.int32)
    return Handled(none, none, jnp.zeros(dims.entities, bool))


def act_evidence(
    dims: Dims, p: EvidenceParams, handled: Handled, obs: Observation, noise: Array
) -> tuple[Array, Handled]:
    """Contain what is confirmed; else on a strong verdict or severe alert; else recover; else look at an alert."""
    alerts, forensics, counts = obs.alerts, obs.forensics, handled.counts
    cut_off = obs.marks[CUT_OFF]
    confirmed_action, confirmed = contain_confirmed(dims, obs)
    # After a RESTORE only what came later speaks against an entity.
    later = forensics.tick > handled.since[forensics.entity]

    strong = (forensics.number >= 0) & forensics.compromised & (forensics.confidence >= p.verdict_at)
    strong &= (obs.tick - forensics.tick <= p.window) & ~cut_off[forensics.entity] & later
    result, convicted = first_where(strong)
    verdict_entity = forensics.entity[jnp.minimum(result, dims.forensics - 1)]

    recent = (alerts.number >= 0) & (alerts.signal != BACKGROUND_NOISE) & (obs.tick - alerts.tick <= p.window)

    def target(open_to: Array) -> Array:
        """(K,) entity to act on for each alert, or -1; `open_to` (N,) bool says which entities are worth it."""

        # An alert counts if it is later than this; one number an entity, so that it is looked up once.
        after = jnp.where(open_to, jnp.where(cut_off, -1, handled.since), np.iinfo(np.int32).max)

        def worth(entity: Array) -> Array:
            return jnp.where(alerts.tick > after[jnp.maximum(entity, 0)], entity, -1)

        asset, identity = worth(alerts.asset), worth(alerts.identity)
        first, second = (
            jnp.where(p.identity_first, identity, asset),
            jnp.where(p.identity_first, asset, identity),
        )
        return jnp.where(first >= 0, first, second)

    severe = target(~cut_off)
    slot, contains = worst_alert(alerts, recent & (alerts.severity >= p.contain_at) & (severe >= 0))
    contains &= ~confirmed
    entity = jnp.where(convicted, verdict_entity, severe[slot])
    verb = jnp.where(entity < dims.assets, ISOLATE_ASSET, REVOKE_IDENTITY)
    direct = convicted | contains

    recovery, recovers, closed = jnp.int32(MONITOR), jnp.zeros((), bool), cut_off
    if dims.restore:
        recovery, recovers = _recovery(dims, p, handled, obs, later)
        # What was contained on suspicion is still to be looked at where a verdict can set it free.
        closed = cut_off & (obs.marks[CONFIRMED] | (p.clean_at > 1.0))
    suspect = target(~closed & (counts < p.repeats))
    look, looks = worst_alert(alerts, recent & (alerts.severity >= p.investigate_at) & (suspect >= 0))
    looks &= ~confirmed & ~direct & ~recovers

    action = jnp.where(looks, actions.encode(dims, jnp.int32(INVESTIGATE), suspect[look]), MONITOR)
    action = jnp.where(recovers, recovery, action)
    action = jnp.where(direct, actions.encode(dims, verb, entity), action)
    action = jnp.where(confirmed, confirmed_action, action)
    each = np.arange(dims.entities, dtype=np.int32)
    counts += (looks & (each == suspect[look])).astype(jnp.int32)
    if not dims.restore:
        return action, handled._replace(counts=counts)
    verbs, entities = actions.table(dims)
    does, to = jnp.asarray(verbs)[action], each == jnp.asarray(entities)[action]
    moved = to & ((does == ISOLATE_ASSET) | (does == REVOKE_IDENTITY) | (does == RESTORE))
    return action, Handled(
        counts=jnp.where(moved, 0, counts),
        since=jnp.where(moved, obs.tick, handled.since),
        rebuilt=(handled.rebuilt & ~moved) | (to & (does == PATCH_ASSET)),
    )


def _recovery(dims: Dims, p: EvidenceParams, handled: Handled, obs: Observation, later: Array) -> tuple[Array, Array]:
    """(action, any): rebuild what is confirmed and isolated, or restore what is rebuilt, found clean or held enough."""
    forensics, (cut_off, _, _, confirmed) = obs.forensics, obs.marks
    acquits = (forensics.number >= 0) & ~forensics.compromised & (forensics.confidence >= p.clean_at) & later
    each = np.arange(dims.entities, dtype=np.int32)
    clean = jnp.any(acquits[:, None] & (forensics.entity[:, None] == each[None]), axis=0)
    held = obs.tick - handled.since >= p.hold
    restore, restores = first_where(cut_off & ~confirmed & (handled.rebuilt | clean | held))
    asset = np.arange(dims.entities, dtype=np.int32) < dims.assets
    rebuild, rebuilds = first_where(cut_off & confirmed & asset & ~handled.rebuilt & p.rebuild)
    patch = actions.encode(dims, jnp.int32(PATCH_ASSET), rebuild)
    return jnp.where(rebuilds, patch, actions.encode(dims, jnp.int32(RESTORE), restore)), rebuilds | restores


# --- farming: repeat one or two actions on one confirmed target -----------------------------------------------------


class FarmParams(NamedTuple):
    """A farming loop: a blind prefix, then investigate one entity until confirmed, then two actions in turn."""

    prefix: Array  # (T,) int32, actions of the first ticks
    prefix_length: Array  # () int32
    entity: Array  # () int32, investigated until confirmed
    action: Array  # () int32, taken from then on
    other: Array  # () int32, in turn with this one, which may be the same
    repeats: Array  # () int32, so many actions at most; MONITOR after that


def as_loops(plans: np.ndarray) -> FarmParams:
    """Plans, (K, T) int32, as long as an episode at least, as loops that never begin: so one program plays both."""
    nothing = np.zeros(len(plans), np.int32)
    return FarmParams(plans, np.full(len(plans), plans.shape[1], np.int32), *[nothing] * 4)


def init_repeats(dims: Dims, parameters: Any) -> Array:
    """() int32: how many actions of the loop have been taken."""
    return jnp.zeros((), jnp.int32)


def act_farm(dims: Dims, p: FarmParams, done: Array, obs: Observation, noise: Array) -> tuple[Array, Array]:
    """Blind prefix, investigate until confirmed, then the same again and again."""
    confirmed = obs.marks[CONFIRMED, p.entity]
    investigate = actions.encode(dims, jnp.int32(INVESTIGATE), p.entity)
    turn = jnp.where(done % 2 == 0, p.action, p.other)
    loop = jnp.where(confirmed, jnp.where(done < p.repeats, turn, MONITOR), investigate)
    in_prefix = obs.tick < p.prefix_length
    blind = p.prefix[jnp.minimum(obs.tick, len(p.prefix) - 1)]
    return jnp.where(in_prefix, blind, loop), done + (confirmed & ~in_prefix).astype(jnp.int32)


RANDOM = Policy(no_memory, act_random)
PLAN = Policy(no_memory, act_plan)
BRIEFED = Policy(no_memory, act_briefed)
ALWAYS = Policy(no_memory, act_always)
HEURISTIC = Policy(init_investigated, act_heuristic)
EVIDENCE = Policy(init_handled, act_evidence)
FARM = Policy(init_repeats, act_farm)

BASELINES: dict[str, tuple[Policy, Any]] = {
    "monitor": (PLAN, np.zeros(1, np.int32)),
    "random": (RANDOM, np.zeros((), np.int32)),
    "heuristic": (HEURISTIC, np.zeros((), np.int32)),
    "evidence": (EVIDENCE, DEFAULT_EVIDENCE),
}
