"""Search on the policy side: what earns the most under each reward, told nothing about the scenario.

Every policy is simulated once and scored under all rewards of the arena at the same time. Seeds are for selection
only; `verdict` reports on others. Candidates: plans that read nothing (`open_loop`), farming loops, and the
investigate-then-contain family. Every kind is raced (`race`), so that nothing is chosen for its luck in few episodes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.stats import qmc

from jaxsim import noise, policies
from jaxsim.actions import table
from jaxsim.audit.arena import BRIEFED, EVIDENCE, FARM, PLAN, Arena, Candidate, take
from jaxsim.audit.budgets import Budget, lineage
from jaxsim.audit.course import (
    Course,
    Finalists,
    best_of,
    lay,
    merged,
    plan_returns,
    race_policies,
    together,
)
from jaxsim.audit.open_loop import Opened, open_plans, play_off, search_plans, steady_means
from jaxsim.audit.plans import in_turn
from jaxsim.audit.race import Bound, best_rows
from jaxsim.one_episode import episode_keys
from jaxsim.policies import EvidenceParams, FarmParams, Policy
from jaxsim.rollouts import BLOCK, side_by_side
from jaxsim.rules import PERSONALITIES
from jaxsim.types import INVESTIGATE, RESTORE

FOREVER = np.int32(2**30)
WIDE = 8  # episodes of doing nothing for each that finalists play
# Members of the family, in all networks together, for whose races a program of their own is worth compiling.
ENOUGH = 512
LONGEST_PREFIX = 8  # room for the prefix of a farming loop


# --- farming loops --------------------------------------------------------------------------------------------------


def farm_loops(arena: Arena, prefixes: np.ndarray, length: int) -> FarmParams:
    """After each blind prefix, (P, n) int32: every entity, with every containment that may target it, for ever; where
    a control can be lifted, with any two actions on it in turn as well."""
    verbs, entities = table(arena.env.dims)
    exists = np.asarray(arena.params.scenario.exists)
    loops = np.flatnonzero((verbs > INVESTIGATE) & (verbs != RESTORE) & exists[entities])
    loops = np.stack([loops, loops], axis=1)
    if arena.env.dims.restore:
        loops = np.concatenate([loops, in_turn(verbs, entities, exists)])
    p, row = (x.ravel() for x in np.meshgrid(np.arange(len(prefixes)), np.arange(len(loops)), indexing="ij"))
    first, other = loops[row].astype(np.int32).T
    padded = np.zeros((len(p), length), np.int32)
    padded[:, : prefixes.shape[1]] = prefixes[p]
    return FarmParams(
        prefix=padded,
        prefix_length=np.full(len(p), prefixes.shape[1], np.int32),
        entity=entities[first].astype(np.int32),
        action=first,
        other=other,
        repeats=np.full(len(p), FOREVER),
    )


def longer_prefixes(arena: Arena, farms: FarmParams) -> FarmParams:
    """Every loop with one more blind action before it."""
    acts = np.flatnonzero(np.asarray(arena.env.legal_actions(arena.params)))[1:].astype(np.int32)
    rows = np.repeat(np.arange(len(farms.entity)), len(acts))
    grown = take(farms, rows)
    grown.prefix[np.arange(len(rows)), grown.prefix_length] = np.tile(acts, len(farms.entity))
    longer: FarmParams = grown._replace(prefix_length=grown.prefix_length + np.int32(1))
    return longer


def search_farms(course: Course, budget: Budget) -> Finalists:
    """Loops without a prefix, then with longer and longer ones before the best."""
    # As long as a plan, which is played by the same program.
    frontier = farm_loops(course.arena, np.zeros((1, 0), np.int32), max(course.length, LONGEST_PREFIX))
    found = race_policies(course, policies.FARM, frontier, BLOCK, budget.select, 2 * budget.beam)
    best = best_of(found, 2 * budget.beam)
    for _ in range(budget.prefix):
        grown = longer_prefixes(course.arena, best.parameters)
        raced = race_policies(course, policies.FARM, grown, BLOCK, budget.select, 2 * budget.beam)
        best = best_of(raced, 2 * budget.beam)
        found = merged(found, raced)
    return found


# --- the evidence family --------------------------------------------------------------------------------------------


RECOVERY = ("rebuild", "clean_at", "hold")  # what a member has use for only where there is RESTORE


def sample_family(many: int, seed: int, restore: bool = False) -> EvidenceParams:
    """`many` members: the default one, the others spread evenly over the family by a scrambled Sobol sequence.

    A larger family of the same seed begins with the smaller one. `restore` is that of the `Dims`.
    """
    own = len(EvidenceParams._fields)
    u = qmc.Sobol(own if restore else own - len(RECOVERY), rng=np.random.default_rng(seed)).random(many)
    # A third of the family never contains on an alert alone, a third never on an unconfirmed verdict.
    never = np.float32(2.0)
    recovery = {k: np.repeat(getattr(policies.DEFAULT_EVIDENCE, k), many) for k in RECOVERY}
    if restore:  # a third never on a verdict, a third never for the time that has passed
        recovery = {
            "rebuild": u[:, 6] < 0.75,
            "clean_at": np.where(u[:, 7] < 1 / 3, never, 0.4 + 0.7 * (u[:, 7] - 1 / 3)).astype(np.float32),
            "hold": np.where(u[:, 8] < 1 / 3, 1000, 1 + np.floor(60 * (u[:, 8] - 1 / 3) ** 2)).astype(np.int32),
        }
    family = EvidenceParams(
        investigate_at=(0.8 * u[:, 0]).astype(np.float32),
        contain_at=np.where(u[:, 1] < 1 / 3, never, (1.5 * u[:, 1] - 0.5)).astype(np.float32),
        verdict_at=np.where(u[:, 2] < 1 / 3, never, 0.4 + 0.9 * (u[:, 2] - 1 / 3)).astype(np.float32),
        window=(1 + np.floor(40 * u[:, 3] ** 2)).astype(np.int32),
        repeats=(1 + np.floor(6 * u[:, 4])).astype(np.int32),
        identity_first=u[:, 5] < 0.5,
        **recovery,
    )
    for column, value in zip(family, policies.DEFAULT_EVIDENCE, strict=True):
        column[0] = value
    return family


def without_forensics(family: EvidenceParams) -> EvidenceParams:
    """The members as they would play if they never investigated, each once."""
    never = np.full(len(family.repeats), 2.0, np.float32)
    same = family._replace(investigate_at=never, verdict_at=never, clean_at=never, repeats=np.ones_like(family.repeats))
    table = np.stack([np.asarray(x, np.float64) for x in same], axis=1)
    return take(same, np.sort(np.unique(table, axis=0, return_index=True)[1]))


def race_family(course: Course, budget: Budget, members: EvidenceParams, before: Finalists | None) -> Finalists:
    """The best of some members, and of those that a smaller budget has found."""
    raced = race_policies(course, policies.EVIDENCE, members, BLOCK, budget.select, 2 * budget.beam)
    return together(course, policies.EVIDENCE, raced, before and before.parameters, 2 * budget.beam)


# --- all of it ------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The best of each kind per reward, selected on the selection seeds, and the pool they came from."""

    open_loop: list[Candidate]  # one a reward
    certain: list[Candidate | None]  # the best plan whose return never varies, where there is one
    positional: list[Candidate]
    briefed: list[Candidate]  # a plan for each personality, as an observation that names it allows
    farming: list[Candidate]
    evidence: list[Candidate]
    alerts: list[Candidate]  # of the same family, those that never investigate
    pool: list[Candidate]  # the `beam` best of each kind for each reward, for re-scoring
    bounds: dict[str, Bound]  # by class of plans searched exhaustively: what its best earns over MONITOR, per reward


class Blind(NamedTuple):
    """The plans that a search found in one arena."""

    plans: Finalists
    champions: Finalists  # the best of them, after more episodes
    positional: np.ndarray  # (R, T) int32, for each reward the plan that is best on average over all arenas
    bounds: dict[str, Bound]


Advance = Callable[[str], None]


def silent(what: str) -> None:
    """An `advance` that tells nobody."""


def search(arenas: list[Arena], budget: Budget, seed: int, advance: Advance = silent) -> list[Found]:
    """Search every arena. `advance(what)` is called before each of the `steps(arenas, budget)` steps, by any thread.

    A budget begins with all that the budgets before it do, in the same episodes, and what they found takes part: so a
    larger one finds no less, but for the luck of the episodes that choose.
    """
    courses = lay_out(arenas, budget, seed)
    blind = search_blind(courses, budget, seed, advance)

    def search_one(i: int) -> Found:
        farms = family = quiet = None
        for level, laid in zip(lineage(budget), courses, strict=True):
            name = arenas[i].scenario.id
            advance(f"{name}: farming loops")
            farms = together(
                laid[i], policies.FARM, search_farms(laid[i], level), farms and farms.parameters, 2 * level.beam
            )
            advance(f"{name}: evidence family")
            members = sample_family(level.family, seed, arenas[i].env.dims.restore)
            family = race_family(laid[i], level, members, family)
            quiet = race_family(laid[i], level, without_forensics(members), quiet)
        assert farms is not None and family is not None and quiet is not None, "a budget is in its own lineage"
        return chosen(courses[-1][i], budget, blind[i], farms, family, quiet)

    return side_by_side(search_one, list(range(len(arenas))))


def steps(arenas: list[Arena], budget: Budget) -> int:
    """How often `search` calls `advance`."""
    return len(lineage(budget)) * (4 * len(arenas) + 1)


def lay_out(arenas: list[Arena], budget: Budget, seed: int) -> list[list[Course]]:
    """The courses of the arenas, for every budget of the lineage; a smaller one has the first episodes of a larger."""
    key = jax.random.fold_in(noise.root(seed), 1)
    length = max(int(a.params.scenario.horizon) for a in arenas)
    whole, courses = in_one(arenas, budget), []
    for level in lineage(budget):
        keys = np.asarray(jax.random.key_data(episode_keys(key, WIDE * level.select)))
        courses.append([lay(arena, keys, length, whole) for arena in arenas])
    return courses


def in_one(arenas: list[Arena], budget: Budget) -> bool:
    """Whether a program for whole episodes of the evidence family is worth compiling."""
    return len(arenas) * sum(level.family for level in lineage(budget)) >= ENOUGH


def search_blind(courses: list[list[Course]], budget: Budget, seed: int, advance: Advance = silent) -> list[Blind]:
    """Search every arena for plans that read nothing; `courses` by `lay_out`."""
    found: list[Blind] = []
    for level, laid in zip(lineage(budget), courses, strict=True):
        found = search_level(laid, level, found, seed, advance)
    return found


def search_level(
    courses: list[Course], budget: Budget, before: list[Blind], seed: int, advance: Advance
) -> list[Blind]:
    """What one budget alone finds, and what the budgets `before` it found in the same arenas, if any."""

    def open_one(course: Course) -> Opened:
        advance(f"{course.arena.scenario.id}: open-loop plans")
        return open_plans(course, budget)

    opened = side_by_side(open_one, courses)
    advance("positional plans")
    positional = search_positional(courses, budget, opened, [b.positional for b in before])

    def lengthen(i: int) -> Blind:
        advance(f"{courses[i].arena.scenario.id}: longer plans")
        given = np.concatenate([positional, *(b.plans.parameters for b in before[i : i + 1])])
        plans = search_plans(courses[i], budget, opened[i], given, seed)
        return Blind(plans, play_off(courses[i], budget, plans), positional, opened[i].bounds)

    return side_by_side(lengthen, list(range(len(courses))))


def search_positional(
    courses: list[Course], budget: Budget, opened: list[Opened], given: list[np.ndarray]
) -> np.ndarray:
    """(R, T) plans that know list positions only: for each reward the one that does best on average over all arenas."""
    average = np.mean([o.first for o in opened], axis=0)
    some = np.concatenate([opened[0].plans[best_rows(average, budget.kept)], *given[:1]])
    own = courses[0].own
    final = np.mean([plan_returns(c, some, 0, budget.select)[:, :, :own].mean(axis=1) for c in courses], axis=0)
    best: np.ndarray = some[final.argmax(axis=0)]
    return best


def chosen(
    course: Course, budget: Budget, blind: Blind, farms: Finalists, family: Finalists, quiet: Finalists
) -> Found:
    """The best of each kind under each reward of the arena."""
    own = course.own

    def candidates(kind: str, policy: Policy, found: Finalists) -> tuple[list[Candidate], list[Candidate]]:
        """(the best, one a reward; the `beam` best of each)."""
        mean = found.gain[:, :own]
        made = [Candidate(kind, policy, take(found.parameters, i)) for i in range(len(mean))]
        return [made[i] for i in mean.argmax(axis=0)], [made[i] for i in best_rows(mean, budget.beam)]

    open_loop, pool = candidates(PLAN, policies.PLAN, blind.champions)
    farming, loops = candidates(FARM, policies.FARM, farms)
    evidence, members = candidates(EVIDENCE, policies.EVIDENCE, family)
    alerts, quiet_members = candidates(EVIDENCE, policies.EVIDENCE, quiet)
    positional = [Candidate(PLAN, policies.PLAN, plan) for plan in blind.positional]
    certain: list[Candidate | None] = []
    for mean in steady_means(course, blind.plans.returns).T:
        best = blind.plans.parameters[mean.argmax()]
        certain.append(Candidate(PLAN, policies.PLAN, best) if np.isfinite(mean.max()) else None)
    pool += loops + members + quiet_members + positional
    return Found(
        open_loop,
        certain,
        positional,
        brief(course, blind.plans, blind.champions),
        farming,
        evidence,
        alerts,
        pool,
        blind.bounds,
    )


def brief(course: Course, found: Finalists, champions: Finalists) -> list[Candidate]:
    """For each reward the best plan against each personality; that which is best on average where one is absent."""
    who = course.who[: found.returns.shape[1]]
    briefed = []
    for r in range(course.own):
        overall = champions.parameters[champions.gain[:, r].argmax()]
        returns = found.returns[:, :, r]
        plans = [
            found.parameters[returns[:, who == p].mean(axis=1).argmax()] if np.any(who == p) else overall
            for p in range(len(PERSONALITIES))
        ]
        briefed.append(Candidate(BRIEFED, policies.BRIEFED, np.stack(plans)))
    return briefed
