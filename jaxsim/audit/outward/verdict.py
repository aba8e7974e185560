"""The verdict on an environment: what reading is worth over the best plan found, in episodes of its own."""

from typing import Any, NamedTuple

import numpy as np

from jaxsim.audit.bootstrap import NONE, Estimate, estimate, resampled_means
from jaxsim.audit.outward.episodes import TOLERANCE, Played, World, play_plans, play_policy, play_random
from jaxsim.audit.outward.plans import Found
from jaxsim.audit.outward.readers import Reader
from jaxsim.audit.rescore import CERTIFIED_EVG_NORM

DEGENERATE, PAYS, UNDECIDED = "degenerate", "evidence pays", "undecided"
READING, PLAN, CONSTANT, RANDOM = "reading", "open-loop", "constant", "random"
BLIND = (PLAN, CONSTANT, RANDOM)


class Compared(NamedTuple):
    """Differences of mean returns, paired over episodes, in points."""

    blind: str  # of BLIND the one that earns most; that errs against what reads
    baseline: str  # of CONSTANT and RANDOM the one that earns more
    evg: Estimate  # the reading policy less the blind one
    evg_norm: Estimate  # that as a share of the gain
    gain: Estimate  # the reading policy less the baseline


def play(world: World, found: Found, reader: Reader, seeds: list[int]) -> dict[str, Played]:
    """The four policies in the same episodes."""
    plans = (found.plan, np.full(world.game.horizon, found.constant))
    plan, constant = (play_plans(world, np.repeat(p[None], len(seeds), axis=0), seeds) for p in plans)
    return {
        READING: play_policy(world, reader, seeds),
        PLAN: plan,
        CONSTANT: constant,
        RANDOM: play_random(world, seeds),
    }


def compare(played: dict[str, Played], seed: int) -> Compared:
    """What reading is worth."""
    returns = {name: p.returns for name, p in played.items()}
    blind, baseline = (max(names, key=lambda name: returns[name].mean()) for names in (BLIND, (CONSTANT, RANDOM)))
    # Differences first: what is equal in every episode, but for rounding, has to be 0 in every resample.
    others = np.stack([returns[name] for name in (blind, baseline)], axis=1)
    pair = returns[READING][:, None] - others
    pair[np.isclose(pair, 0, atol=TOLERANCE * np.maximum(1, np.abs(others)))] = 0
    mean, boot = pair.mean(axis=0), resampled_means(pair, np.random.default_rng(seed))
    evg, gain = (estimate(mean[i], boot[:, i]) for i in range(2))
    norm = NONE if gain.low <= 0 else estimate(mean[0] / mean[1], boot[:, 0] / boot[:, 1])
    return Compared(blind, baseline, evg, norm, gain)


def judge(compared: Compared, brought: bool) -> tuple[str, str]:
    """(verdict, why). A policy that was `brought` is taken to be as good as any that reads; a trained one has to show
    first that it has learned something."""
    c = compared
    if c.evg.high <= 0 and (brought or c.gain.low > 0):
        return DEGENERATE, f"the {c.blind} policy, which reads nothing, earns no less than the one that reads"
    if c.gain.low <= 0:
        return UNDECIDED, (
            f"the policy that reads earns no more than the {c.baseline} one beyond doubt: bring a better one, or train "
            "for longer; if there is none better, reading is worth nothing here"
        )
    if c.evg_norm.low >= CERTIFIED_EVG_NORM:
        return PAYS, (
            f"at least {CERTIFIED_EVG_NORM:.0%} of what reading gains over the {c.baseline} policy is out of reach of "
            "every plan found"
        )
    return UNDECIDED, f"EVG_norm is neither at most 0 nor at least {CERTIFIED_EVG_NORM}, beyond doubt"


def row(name: str, played: Played, seed: int) -> dict[str, Any]:
    """A policy's returns."""
    own = estimate(played.returns.mean(), resampled_means(played.returns[:, None], np.random.default_rng(seed))[:, 0])
    return {
        "policy": name,
        "return": own.value,
        "return_ci": [own.low, own.high],
        "std": float(played.returns.std()),
        "length": float(played.lengths.mean()),
        "cut_off": float(1 - played.ended.mean()),
    }
