"""The simulator against its plain-Python twin in the mean, each on noise of its own, and against published figures.

    python tests/jaxsim/test_means.py --episodes 20000 --jobs 2

runs the comparison of means at full size and prints it; `pytest` runs it with fewer episodes of both.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from functools import cache, partial
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import (
    CAMPAIGNS,
    END,
    EVERY_SWITCH,
    HARDENED,
    PRESETS,
    TOLERANCE,
    dims_for,
    params_of,
    preset_of,
    scenario_of,
)
from parity import (
    PLAN_TICKS,
    PLANS,
    POLICIES,
    Reader,
    deal,
    is_close_call,
    on_an_edge,
    plan_array,
    rows,
    signals_of,
    twin_policy,
)

from jaxsim import env, policies, twin, twin_policies, twin_reward, twin_rules, twin_state
from jaxsim.one_episode import EpisodeStats, episode_keys, tick_noise
from jaxsim.rollouts import rollout_many
from jaxsim.types import EXFIL, Channels, Signals

# Means are compared on these.
CAMPAIGN_CELLS = list(itertools.product(CAMPAIGNS | HARDENED | EVERY_SWITCH, twin_rules.PERSONALITIES))
ALL_POLICIES = (*PLANS, *POLICIES)
WHO = tuple(twin_rules.PERSONALITIES)
# Of these pytest takes, for each campaign and policy, one personality in turn: any two of the three meet. Of a hardened
# campaign, where episodes are long, one for all policies, and of two of them one with all switches on.
TESTED_CELLS = [
    *((name, WHO[(i + j) % 3], policy) for i, name in enumerate(CAMPAIGNS) for j, policy in enumerate(ALL_POLICIES)),
    *((name, WHO[i % 3], policy) for i, name in enumerate(HARDENED) for policy in ALL_POLICIES),
    *(
        (name, who, policy)
        for name, who in zip([*EVERY_SWITCH][1::2], WHO[:0:-1], strict=True)
        for policy in ALL_POLICIES
    ),
]  # `--episodes` takes all

FIRST = "supply_chain_token_drift"
OUR_EPISODES = 20_000  # at full size, and of the campaign whose figures are published
TESTED_EPISODES = 5_000  # of the others
TWIN_EPISODES = int(os.environ.get("JAXSIM_TWIN_EPISODES", "1600"))
HARDENED_SHARE = 0.25  # of that many under hardened rules, where each episode lasts to the horizon
METRICS = ("return", *Channels._fields, "length", "stages", "exfil", "newly_confirmed")
COMPARISONS = len(CAMPAIGN_CELLS) * len(ALL_POLICIES) * len(METRICS)
FAMILY_LEVEL = 0.01  # chance that any of all comparisons fails although nothing is wrong (Bonferroni)
Z_LIMIT = NormalDist().inv_cdf(1 - FAMILY_LEVEL / COMPARISONS / 2)  # about 4.4 combined standard errors


# --- in the mean -----------------------------------------------------------------------------------------------------


@cache
def our_sample(name: str, personality: str, policy: str, many: int = 0) -> np.ndarray:
    """(metric, episode) of the simulator."""
    s = jax.tree.map(lambda x: x[0], our_rollout(name, personality, policy, many))
    confirmed, exfil = s.signals.confirmed, s.end == EXFIL
    return np.asarray([s.episode_return, *s.channels, s.length, s.succeeded, exfil, confirmed], np.float64)


@cache
def our_rollout(name: str, personality: str, policy: str, many: int = 0) -> EpisodeStats:
    """`many` episodes, 0 for as many as a test takes; of a hardened campaign a share of that."""
    episodes = int((many or (OUR_EPISODES if name == FIRST else TESTED_EPISODES)) * share_of(name))
    keys, game = episode_keys(jax.random.key(51), episodes), (env.Env(dims_for(name)), params_of(name, personality))
    if policy in PLANS:
        return rollout_many(*game, policies.PLAN, plan_array(name, PLANS[policy])[None], keys)[0]
    return rollout_many(*game, POLICIES[policy], np.zeros(1, np.int32), keys)[0]


def share_of(name: str) -> float:
    return 1.0 if name in CAMPAIGNS else HARDENED_SHARE


def twin_sample(name: str, personality: str, policy: str, episodes: int) -> np.ndarray:
    """(metric, episode) of the twin, on random numbers of its own."""
    rng = random.Random(f"{name} {personality} {policy}")
    scenario, weights, rules_ = scenario_of(name), twin_reward.REWARDS["evidence"], PRESETS[preset_of(name)]
    choice = twin_policy(name, policy)
    played = [twin_policies.episode(scenario, personality, choice, weights, rng, rules_) for _ in range(episodes)]
    return np.asarray([[row[m] for row in played] for m in METRICS])


class Compared(NamedTuple):
    """One metric of one policy in one cell, in both simulators."""

    what: str
    ours: float
    theirs: float
    z: float  # difference in standard errors; 0 when equal, inf when two constants differ
    allowed: float  # standard errors


def compare(what: str, a: np.ndarray, b: np.ndarray) -> Compared:
    """Two samples of what should be the same quantity.

    The standard error is that of the pooled sample. To Z_LIMIT of them comes Bernstein's term for a quantity that is
    almost always the same and now and then far off, for which a few hundred episodes are not yet normal.
    """
    both = np.concatenate([a, b])
    difference, sd, reach = abs(a.mean() - b.mean()), both.std(), np.abs(both - both.mean()).max()
    if reach < TOLERANCE * max(1.0, abs(both.mean())):  # constant
        return Compared(what, a.mean(), b.mean(), 0.0 if difference < TOLERANCE * 10 else math.inf, Z_LIMIT)
    share = 1 / len(a) + 1 / len(b)
    se = sd * math.sqrt(share)
    return Compared(what, a.mean(), b.mean(), difference / se, Z_LIMIT + Z_LIMIT**2 * reach * share / 3 / se)


def compare_all(name: str, personality: str, policy: str, theirs: np.ndarray, many: int = 0) -> list[Compared]:
    label = f"{name} {personality} {policy}"
    ours = our_sample(name, personality, policy, many)
    return [compare(f"{label}: {m}", a, b) for m, a, b in zip(METRICS, ours, theirs, strict=True)]


@pytest.mark.parametrize(("name", "personality", "policy"), TESTED_CELLS)
def test_means_equal_the_twins(name: str, personality: str, policy: str) -> None:
    episodes = int(TWIN_EPISODES * share_of(name))
    compared = compare_all(name, personality, policy, twin_sample(name, personality, policy, episodes))
    assert [c for c in compared if c.z > c.allowed] == []


@pytest.mark.parametrize(("name", "personality", "policy"), TESTED_CELLS)
def test_a_rollout_adds_up_what_the_twin_does(name: str, personality: str, policy: str) -> None:
    """The first episodes of the same rollouts, one by one on the same noise: every number that is kept of them."""
    episodes, left_out = 10, 0
    played = our_rollout(name, personality, policy)
    keys = episode_keys(jax.random.key(51), episodes)
    blocks, firsts = (
        np.asarray(noise_of(keys)),
        rows(deal(dims_for(name), params_of(name, personality), keys), episodes),
    )
    reader = Reader(scenario_of(name), personality, dims_for(name))
    for e in range(episodes):
        ours = jax.tree.map(lambda x, e=e: x[0, e], played)
        state = reader.reset(firsts[e], PRESETS[preset_of(name)])
        theirs, edge = twin_stats(state, twin_policy(name, policy), blocks[e])
        same = jax.tree.map(lambda a, b: abs(a - b) < 1e-3, ours, theirs)
        wrong = [f for f in EpisodeStats._fields if not all(map(np.all, jax.tree.leaves(getattr(same, f))))]
        assert edge or wrong == [], f"episode {e}"
        left_out += bool(wrong)
    assert left_out <= 1


@jax.jit
@jax.vmap
def noise_of(key: jax.Array) -> jax.Array:
    """(T, 16) noise of an episode, ticks 1 .. T."""
    return jax.vmap(partial(tick_noise, key))(jnp.arange(1, PLAN_TICKS + 1))


def twin_stats(state: twin_state.State, choice: twin_policies.Policy, blocks: np.ndarray) -> tuple[EpisodeStats, bool]:
    """An episode of the twin in the terms of a rollout, and whether rounding may have changed its course."""
    scenario, weights, memory = state.scenario, twin_reward.REWARDS["evidence"], set[str]()
    ticks, points, verbs, edge = list[twin_state.Tick](), list[list[float]](), [0] * len(twin_rules.VERBS), False
    first, blind = scenario.horizon + 1, False
    while not state.done:
        u = twin_rules.Draws._make(blocks[state.tick].tolist())
        edge |= on_an_edge(scenario, state.personality, u) or is_close_call(state, u)
        in_view = len(state.alerts)
        action = choice(state, memory, u)
        verbs[twin_rules.VERBS.index(action[0])] += 1
        ticks.append(twin.step(state, action, u))
        parts = twin_reward.channels(ticks[-1], weights)
        points.append([*parts.values(), twin_reward.total(parts, weights)])
        if ticks[-1].containments and first > scenario.horizon:
            first, blind = state.tick, in_view == 0
    sums = np.sum(points, axis=0)
    left = scenario.horizon - state.tick
    return EpisodeStats(
        episode_return=sums[-1],
        channels=Channels(*sums[:-1]),
        signals=Signals(*np.sum([signals_of(t) for t in ticks], axis=0)),
        length=state.tick,
        end=END.index(state.end),
        succeeded=ticks[-1].stages_succeeded,
        downtime=sum(t.load for t in ticks) + ticks[-1].load * left,
        verbs=np.asarray(verbs),
        first_containment=first,
        blind=int(blind),
    ), edge


# --- the published figures -------------------------------------------------------------------------------------------

RETURN_ERROR = 0.06  # standard error of the published mean returns
PUBLISHED_EPISODES = 4_000
PUBLISHED = [  # scenario, personality, policy, metric, figure
    (FIRST, "stealthy", "monitor", "return", -1.167),
    (FIRST, "aggressive", "monitor", "return", -3.216),
    (FIRST, "opportunistic", "monitor", "return", -2.284),
    (FIRST, "stealthy", "heuristic", "return", 1.622),
    (FIRST, "aggressive", "heuristic", "return", 3.900),
    (FIRST, "opportunistic", "heuristic", "return", 3.566),
    (FIRST, "stealthy", "random", "return", 2.062),
    (FIRST, "stealthy", "monitor", "exfil", 0.311),
    (FIRST, "aggressive", "monitor", "exfil", 0.5685),
    (FIRST, "opportunistic", "monitor", "exfil", 0.447),
    (FIRST, "stealthy", "monitor", "length", 31.79),
    (FIRST, "aggressive", "monitor", "length", 15.25),
    (FIRST, "opportunistic", "monitor", "length", 23.55),
]
PUBLISHED_N30 = [  # mean return of 30 episodes, the personality drawn anew in each
    ("supply_chain_token_drift", "random", 2.156),
    ("supply_chain_token_drift", "heuristic", 2.872),
    ("federated_identity_takeover", "random", 0.198),
    ("federated_identity_takeover", "heuristic", 2.985),
    ("insider_repo_pivot", "random", 2.905),
    ("insider_repo_pivot", "heuristic", 3.057),
    ("cloud_metadata_ssrf", "random", 1.723),
    ("cloud_metadata_ssrf", "heuristic", 3.048),
]
# Of all these figures together one in a hundred correct simulators would miss one.
PUBLISHED_LIMIT = 3.5


@pytest.mark.parametrize(("name", "personality", "policy", "metric", "figure"), PUBLISHED)
def test_published_figures(name: str, personality: str, policy: str, metric: str, figure: float) -> None:
    sample = our_sample(name, personality, policy)[METRICS.index(metric)]
    theirs = RETURN_ERROR if metric == "return" else sample.std() / math.sqrt(PUBLISHED_EPISODES)
    error = math.hypot(theirs, sample.std() / math.sqrt(len(sample)))
    assert abs(sample.mean() - figure) < PUBLISHED_LIMIT * error


@pytest.mark.parametrize(("name", "policy", "figure"), PUBLISHED_N30)
def test_published_figures_of_thirty_episodes(name: str, policy: str, figure: float) -> None:
    sample = our_sample(name, "any", policy)[0]
    error = sample.std() * math.sqrt(1 / 30 + 1 / len(sample))
    assert abs(sample.mean() - figure) < PUBLISHED_LIMIT * error


def test_early_isolation_always_earns_the_same() -> None:
    """Tick 1 nothing; tick 2 blocks the first stage in progress. 2.5 - 0.15 + 5 for no stage, less 0.08 x 0.6."""
    for personality in twin_rules.PERSONALITIES:
        returns = our_sample(FIRST, personality, "early isolation")[0]
        assert returns.std() < 1e-6
        assert returns.mean() == pytest.approx(7.302, abs=1e-5)


# --- at full size ----------------------------------------------------------------------------------------------------


def compare_cells(episodes: int, jobs: int) -> Iterator[list[Compared]]:
    cells = [(*cell, policy) for cell in CAMPAIGN_CELLS for policy in ALL_POLICIES]
    # Fresh processes: JAX runs threads, which a fork would not survive.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        samples = pool.imap(partial(_sample_of, episodes), cells)
        for cell, theirs in zip(cells, samples, strict=True):
            yield compare_all(*cell, theirs, OUR_EPISODES)


def _sample_of(episodes: int, cell: tuple[str, str, str]) -> np.ndarray:
    return twin_sample(*cell, episodes)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare all means of both simulators and print how far they are apart."
    )
    parser.add_argument("--episodes", type=int, default=20_000, help="of the twin, for each cell and policy")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the twin")
    options = parser.parse_args()
    began, everything = time.time(), list[Compared]()
    print(f"{'largest |z|':>11}  cell and policy, {COMPARISONS} comparisons, {OUR_EPISODES} against {options.episodes}")
    print(f"{'':>11}  under hardened rules {int(OUR_EPISODES * HARDENED_SHARE)} against {options.episodes}")
    for compared in compare_cells(options.episodes, options.jobs):
        everything += compared
        worst = max(compared, key=lambda c: c.z)
        print(f"{worst.z:11.2f}  {worst.what}  {worst.ours:.4f} / {worst.theirs:.4f}", flush=True)
    ranked = sorted(everything, key=lambda c: -c.z)
    print(f"\nlargest |z| of all: {ranked[0].z:.2f}; limit {Z_LIMIT:.2f} (family-wise level {FAMILY_LEVEL})")
    for c in ranked[:10]:
        print(f"{c.z:11.2f}  {c.what}  {c.ours:.4f} / {c.theirs:.4f}")
    print(f"{sum(c.z > 1.96 for c in everything) / COMPARISONS:.3f} of |z| above 1.96; {time.time() - began:.0f} s")
    return int(any(c.z > c.allowed for c in everything))


if __name__ == "__main__":
    sys.exit(main())
