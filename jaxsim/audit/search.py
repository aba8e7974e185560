"""Search on the policy side: what earns the most under each reward, told nothing about the scenario.

Every policy is simulated once and scored under all rewards of the arena at the same time. Seeds are for selection
only; `verdict` reports on others. Candidates: exhaustive open-loop plans (singles, pairs, "always X"), a beam over
longer ones, farming loops, and the investigate-then-contain family.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

import scenarios
from jaxsim import env, policies
from jaxsim.actions import table
from jaxsim.compile import dims_of
from jaxsim.policies import EvidenceParams, FarmParams, Policy
from jaxsim.rollouts import episode_keys, rollout_many, start
from jaxsim.rules import PERSONALITIES
from jaxsim.types import INVESTIGATE, Dims, Params, RewardWeights

PLAN, BRIEFED, ALWAYS, FARM, EVIDENCE = "plan", "briefed", "always", "farm", "evidence"
CHEAPER = (0.4, 0.15, 0.0)  # see `scout`
FOREVER = np.int32(2**30)
STEADY = 1e-4  # points; float32 sums of equal terms differ by less


class Arena(NamedTuple):
    """One scenario under one set of rules, scored by R rewards at once."""

    scenario: scenarios.Scenario
    env: env.Env
    params: Params  # reward weights (R,)
    rewards: tuple[str, ...]
    personality: str
    rules: str
    lanes: int = 32768  # episodes in lockstep


class Budget(NamedTuple):
    """How hard to search. Ticks count from 0; episodes are per policy."""

    ticks: tuple[int, ...]  # at which a plan may act, ascending
    pairs: int  # most plans of two actions: as many leading ticks as make no more
    beam: int  # plans kept per reward when plans grow
    depth: int  # most actions of a plan
    prefix: int  # most blind actions before a farming loop
    family: int  # members of the evidence family, a power of two
    screen: int  # episodes of the first look
    select: int  # episodes of the second, at the best `kept` per reward
    kept: int
    report: int  # held-out episodes of the verdict
    configs: int  # reward configurations re-scored, a power of two


BUDGETS = {
    "pool": Budget((0, 1, 2, 4, 8, 16, 30), 0, 2, 5, 0, 64, 16, 256, 8, 512, 64),
    "tiny": Budget((0, 2, 4, 8, 16, 30), 2**10, 2, 4, 1, 128, 16, 256, 16, 1024, 256),
    "small": Budget((*range(8), 10, 14, 20, 30), 2**14, 4, 5, 3, 512, 16, 512, 24, 2048, 4096),
    "full": Budget((*range(24), 30, 40, 50), 2**17, 24, 8, 5, 4096, 64, 4096, 48, 8192, 65536),
}


class Candidate(NamedTuple):
    """A policy with its parameters, as the search found it."""

    kind: str  # PLAN, BRIEFED, ALWAYS, FARM, EVIDENCE, a view of `recurrent`, or the name of a baseline
    policy: Policy
    parameters: Any  # one policy's, no leading axis


def make_arenas(
    many: list[scenarios.Scenario], rules: str, rewards: dict[str, RewardWeights], personality: str = "any"
) -> list[Arena]:
    """One arena a scenario, all of the same `Dims`, so that one compiled program serves them all."""
    dims = dims_of(many)
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *rewards.values())
    arenas = []
    for scenario in many:
        params = env.make_params(scenario, dims, rules, "evidence", personality)._replace(reward=stacked)
        arenas.append(Arena(scenario, env.Env(dims), params, tuple(rewards), personality, rules))
    return arenas


def returns_of(
    arena: Arena, policy: Policy, parameters: Any, keys: jax.Array, shuffle: tuple[str, ...] = ()
) -> np.ndarray:
    """(M, E, R) returns of M policies in the E episodes of `keys`; `shuffle` as in `rollout_many`."""
    stats, _ = rollout_many(arena.env, arena.params, policy, parameters, keys, lanes=arena.lanes, shuffle=shuffle)
    return stats.episode_return


def mean_returns(arena: Arena, policy: Policy, parameters: Any, keys: jax.Array) -> np.ndarray:
    """(M, R) mean returns of M policies over the episodes of `keys`."""
    return returns_of(arena, policy, parameters, keys).mean(axis=1)


def legal_actions(arena: Arena) -> np.ndarray:
    """Every action that is legal in the arena, but MONITOR."""
    mask = np.asarray(arena.env.legal_actions(arena.params))
    return np.flatnonzero(mask).astype(np.int32)[1:]


def best_rows(returns: np.ndarray, many: int) -> np.ndarray:
    """Indices of the `many` best rows of each column of (M, R) returns, without repeats."""
    return np.unique(np.argsort(-returns, axis=0, kind="stable")[:many])


def take(parameters: Any, rows: Any) -> Any:
    """Rows of every leaf of a policy pytree."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], parameters)


def stack_parameters(rows: list[Any]) -> Any:
    """Parameters of one policy function as one pytree with a leading axis.

    A plan is MONITOR, action 0, after its end: shorter plans are filled up with it.
    """

    def join(*leaves: Any) -> np.ndarray:
        arrays = [np.asarray(x) for x in leaves]
        if arrays[0].ndim == 0:
            return np.stack(arrays)
        longest = max(len(a) for a in arrays)
        return np.stack([np.pad(a, (0, longest - len(a))) for a in arrays])

    return jax.tree.map(join, *rows)


# --- open-loop plans ------------------------------------------------------------------------------------------------


def single_plans(dims: Dims, ticks: Sequence[int]) -> np.ndarray:
    """MONITOR only, and every action at every one of the ticks: (M, T) int32, T = 1 + the last tick."""
    acts, length = np.arange(1, dims.actions), ticks[-1] + 1
    plans = np.zeros((len(ticks), len(acts), length), np.int32)
    for i, t in enumerate(ticks):
        plans[i, :, t] = acts
    return np.concatenate([np.zeros((1, length), np.int32), plans.reshape(-1, length)])


def pair_plans(dims: Dims, ticks: Sequence[int], most: int) -> np.ndarray:
    """Every two actions at every two of the leading ticks, of as many ticks as make at most `most` plans: (M, T)."""
    acts, length = np.arange(1, dims.actions), ticks[-1] + 1
    window = max((w for w in range(len(ticks) + 1) if w * (w - 1) // 2 * len(acts) ** 2 <= most), default=0)
    first, second = (x.ravel() for x in np.meshgrid(acts, acts, indexing="ij"))
    parts = [np.zeros((0, length), np.int32)]
    for t1, t2 in combinations(ticks[:window], 2):
        plans = np.zeros((len(first), length), np.int32)
        plans[:, t1], plans[:, t2] = first, second
        parts.append(plans)
    return np.concatenate(parts)


def extend_plans(acts: np.ndarray, plans: np.ndarray, ticks: Sequence[int]) -> np.ndarray:
    """Every plan with one more of the actions at every one of the ticks that is idle."""
    grown = []
    for plan in plans:
        for t in (t for t in ticks if plan[t] == 0):
            more = np.repeat(plan[None], len(acts), axis=0)
            more[:, t] = acts
            grown.append(more)
    return np.unique(np.concatenate(grown), axis=0) if grown else plans[:0]


class Screened(NamedTuple):
    """Plans after a first look; the same plans in the same order for every arena of the same `Dims`."""

    plans: np.ndarray  # (M, T) int32
    returns: np.ndarray  # (M, R) means
    spread: np.ndarray  # (M, R) largest less smallest return


def screen_plans(arena: Arena, budget: Budget, keys: jax.Array) -> Screened:
    """All singles and pairs."""
    dims = arena.env.dims
    plans = np.concatenate([single_plans(dims, budget.ticks), pair_plans(dims, budget.ticks, budget.pairs)])
    played = returns_of(arena, policies.PLAN, plans, keys)
    return Screened(plans, played.mean(axis=1), np.ptp(played, axis=1))


def scout(arena: Arena) -> Arena:
    """The arena with more rewards behind its own, under which plans grow: each with its controls made cheaper.

    Where one control costs more than it saves and several together do not, a beam under the reward itself never gets to
    them. Under the cheaper ones it does, and every plan on the way is scored by the reward itself.
    """
    own = arena.params.reward
    costs = ("disruption", "false_positive", "containment_cost")
    first = jax.tree.map(lambda w: w[:1], own)
    cheaper = [first._replace(**{n: getattr(first, n) * share for n in costs}) for share in CHEAPER]
    rewards = jax.tree.map(lambda *w: jnp.concatenate(w), own, *cheaper)
    names = (*arena.rewards, *(f"controls × {share}" for share in CHEAPER))
    return arena._replace(params=arena.params._replace(reward=rewards), rewards=names)


def grow_plans(
    arena: Arena, budget: Budget, plans: np.ndarray, returns: np.ndarray, keys: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Beam search: the best plans under each reward get one more action, `depth` actions at most."""
    frontier = plans, returns
    for _ in range(budget.depth - 1):
        best_so_far = frontier[0][best_rows(frontier[1], budget.beam)]
        grown = extend_plans(legal_actions(arena), best_so_far, budget.ticks)
        frontier = grown, mean_returns(arena, policies.PLAN, grown, keys)
        plans, returns = (np.concatenate(x) for x in zip((plans, returns), frontier, strict=True))
    return plans, returns


# --- farming loops --------------------------------------------------------------------------------------------------


def farm_loops(arena: Arena, prefixes: np.ndarray, length: int) -> FarmParams:
    """After each blind prefix, (P, n) int32: every entity, with every containment that may target it, for ever."""
    verbs, entities = table(arena.env.dims)
    exists = np.asarray(arena.params.scenario.exists)
    loops = np.flatnonzero((verbs > INVESTIGATE) & exists[entities])
    p, loop = (x.ravel() for x in np.meshgrid(np.arange(len(prefixes)), loops, indexing="ij"))
    padded = np.zeros((len(p), length), np.int32)
    padded[:, : prefixes.shape[1]] = prefixes[p]
    return FarmParams(
        prefix=padded,
        prefix_length=np.full(len(p), prefixes.shape[1], np.int32),
        entity=entities[loop].astype(np.int32),
        action=loop.astype(np.int32),
        repeats=np.full(len(p), FOREVER),
    )


def longer_prefixes(arena: Arena, farms: FarmParams) -> FarmParams:
    """Every loop with one more blind action before it."""
    acts = legal_actions(arena)
    rows = np.repeat(np.arange(len(farms.entity)), len(acts))
    grown = take(farms, rows)
    grown.prefix[np.arange(len(rows)), grown.prefix_length] = np.tile(acts, len(farms.entity))
    longer: FarmParams = grown._replace(prefix_length=grown.prefix_length + np.int32(1))
    return longer


def search_farms(arena: Arena, budget: Budget, keys: jax.Array) -> tuple[FarmParams, np.ndarray]:
    """Loops without a prefix, then a beam over prefixes."""
    farms = farm_loops(arena, np.zeros((1, 0), np.int32), max(1, budget.prefix))
    returns = mean_returns(arena, policies.FARM, farms, keys)
    frontier = farms, returns
    for _ in range(budget.prefix):
        grown = longer_prefixes(arena, take(frontier[0], best_rows(frontier[1], 4 * budget.beam)))
        frontier = grown, mean_returns(arena, policies.FARM, grown, keys)
        farms = jax.tree.map(lambda a, b: np.concatenate([a, b]), farms, grown)
        returns = np.concatenate([returns, frontier[1]])
    return farms, returns


# --- the evidence family --------------------------------------------------------------------------------------------


def sample_family(many: int, seed: int) -> EvidenceParams:
    """`many` members: the default one, the others spread evenly over the family by a scrambled Sobol sequence."""
    u = qmc.Sobol(len(EvidenceParams._fields), rng=np.random.default_rng(seed)).random(many)
    # A third of the family never contains on an alert alone, a third never on an unconfirmed verdict.
    never = np.float32(2.0)
    family = EvidenceParams(
        investigate_at=(0.8 * u[:, 0]).astype(np.float32),
        contain_at=np.where(u[:, 1] < 1 / 3, never, (1.5 * u[:, 1] - 0.5)).astype(np.float32),
        verdict_at=np.where(u[:, 2] < 1 / 3, never, 0.4 + 0.9 * (u[:, 2] - 1 / 3)).astype(np.float32),
        window=(1 + np.floor(40 * u[:, 3] ** 2)).astype(np.int32),
        repeats=(1 + np.floor(6 * u[:, 4])).astype(np.int32),
        identity_first=u[:, 5] < 0.5,
    )
    for column, value in zip(family, policies.DEFAULT_EVIDENCE, strict=True):
        column[0] = value
    return family


# --- all of it ------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The best of each kind per reward, selected on the selection seeds, and the pool they came from."""

    open_loop: list[Candidate]  # one a reward
    certain: list[Candidate | None]  # the best plan whose return never varies, where there is one
    positional: list[Candidate]
    briefed: list[Candidate]  # a plan for each personality, as an observation that names it allows
    farming: list[Candidate]
    evidence: list[Candidate]
    pool: list[Candidate]  # all that survived screening, for re-scoring


class Refined(NamedTuple):
    """The survivors of a screening, played again."""

    made: list[Candidate]
    returns: np.ndarray  # (M, E, R)
    best: list[Candidate]  # one a reward
    certain: list[Candidate | None]  # the best whose return never varies, one a reward
    pool: list[Candidate]  # the `beam` best per reward


def refine(
    arena: Arena,
    kind: str,
    policy: Policy,
    parameters: Any,
    returns: np.ndarray,
    budget: Budget,
    keys: jax.Array,
    also: Sequence[int] = (),
) -> Refined:
    """The `kept` best per reward of a screening, and the rows `also`, played again on more episodes."""
    rows = np.union1d(best_rows(returns, budget.kept), np.asarray(also, np.int64))
    finalists = take(parameters, rows)
    played = returns_of(arena, policy, finalists, keys)
    again, spread = played.mean(axis=1), np.ptp(played, axis=1)
    made = [Candidate(kind, policy, take(finalists, i)) for i in range(len(rows))]
    certain: list[Candidate | None] = []
    for mean, width in zip(again.T, spread.T, strict=True):
        steady = np.flatnonzero(width < STEADY)
        certain.append(made[steady[mean[steady].argmax()]] if len(steady) else None)
    best = [made[i] for i in again.argmax(axis=0)]
    return Refined(made, played, best, certain, [made[i] for i in best_rows(again, budget.beam)])


def personalities_of(arena: Arena, keys: jax.Array) -> np.ndarray:
    """(E,) index of the attacker's personality in the episodes of `keys`."""
    begin = jax.jit(jax.vmap(lambda key: start(arena.env.dims, key, arena.params).who))
    return np.asarray(begin(keys))


def brief(refined: Refined, who: np.ndarray) -> list[Candidate]:
    """For each reward the best plan against each personality; that which is best on average where one is absent."""
    briefed = []
    for r in range(refined.returns.shape[2]):
        returns = refined.returns[:, :, r]
        rows = [
            returns[:, who == p].mean(axis=1).argmax() if np.any(who == p) else 0 for p in range(len(PERSONALITIES))
        ]
        plans = np.stack([refined.made[i].parameters for i in rows])
        briefed.append(Candidate(BRIEFED, policies.BRIEFED, plans))
    return briefed


def search(
    arenas: list[Arena], budget: Budget, seed: int, advance: Callable[[str], None] = lambda step: None
) -> list[Found]:
    """Search every arena. `advance(what)` is called before each of the `steps(arenas)` steps."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    screen_keys = episode_keys(key, budget.screen)
    select_keys = episode_keys(jax.random.fold_in(key, 1), budget.select)
    screened = []
    for arena in arenas:
        advance(f"{arena.scenario.id}: open-loop plans")
        screened.append(screen_plans(scout(arena), budget, screen_keys))
    # A positional plan knows list positions only: it is the one plan that does best on average over all scenarios.
    own = len(arenas[0].rewards)
    plans, average = screened[0].plans, np.mean([s.returns[:, :own] for s in screened], axis=0)
    rows = best_rows(average, budget.kept)
    advance("positional plans")
    finals = np.mean([mean_returns(a, policies.PLAN, plans[rows], select_keys) for a in arenas], axis=0)
    positional = [Candidate(PLAN, policies.PLAN, plans[rows][i]) for i in finals.argmax(axis=0)]
    return [
        _search_one(arena, budget, s, positional, (screen_keys, select_keys), seed, advance)
        for arena, s in zip(arenas, screened, strict=True)
    ]


def _search_one(
    arena: Arena,
    budget: Budget,
    screened: Screened,
    positional: list[Candidate],
    keys: tuple[jax.Array, jax.Array],
    seed: int,
    advance: Callable[[str], None],
) -> Found:
    screen_keys, select_keys = keys
    name = arena.scenario.id
    advance(f"{name}: longer plans")
    own = len(arena.rewards)
    plans, returns = grow_plans(scout(arena), budget, screened.plans, screened.returns, screen_keys)
    returns = returns[:, :own]
    # The best plan may vary; the best of those that never do is a finding of its own.
    steady = best_rows(np.where(screened.spread < STEADY, screened.returns, -np.inf)[:, :own], budget.beam)
    refined = refine(arena, PLAN, policies.PLAN, plans, returns, budget, select_keys, also=steady.tolist())
    open_loop, pool = refined.best, refined.pool
    briefed = brief(refined, personalities_of(arena, select_keys))

    advance(f"{name}: always the same action")
    always = legal_actions(arena)
    constant = refine(
        arena,
        ALWAYS,
        policies.ALWAYS,
        always,
        mean_returns(arena, policies.ALWAYS, always, screen_keys),
        budget,
        select_keys,
    )
    pool += constant.pool
    for r in range(len(arena.rewards)):
        champion, plan = constant.returns[:, :, r].mean(axis=1).max(), refined.returns[:, :, r].mean(axis=1).max()
        if champion > plan:
            open_loop[r] = constant.best[r]

    advance(f"{name}: farming loops")
    farms, returns = search_farms(arena, budget, screen_keys)
    farming = refine(arena, FARM, policies.FARM, farms, returns, budget, select_keys)

    advance(f"{name}: evidence family")
    family = sample_family(budget.family, seed)
    returns = mean_returns(arena, policies.EVIDENCE, family, screen_keys)
    evidence = refine(arena, EVIDENCE, policies.EVIDENCE, family, returns, budget, select_keys)
    pool += farming.pool + evidence.pool + positional
    return Found(open_loop, refined.certain, positional, briefed, farming.best, evidence.best, pool)


def steps(arenas: list[Arena]) -> int:
    """How often `search` calls `advance`."""
    return 5 * len(arenas) + 1
