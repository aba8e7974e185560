"""From the best policies found to a verdict, on episodes that the search has never seen.

Names: J(p) mean return; EVG = J(best evidence-using) - J(best open-loop); EVG_norm = EVG / (J(best evidence-using) -
J(monitor)). Intervals are 95 % percentile bootstrap over episodes; every policy meets the same episodes, so differences
are paired.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsim.audit.search import FARM, Arena, Candidate, Found, stack_parameters
from jaxsim.policies import BASELINES
from jaxsim.rollouts import EpisodeStats, rollout_many
from jaxsim.types import EXFIL

RESAMPLES = 2000
STD_ZERO = 1e-3  # points; float32 sums of equal terms differ by less
CERTIFIED_EVG_NORM = 0.25
CERTIFIED_TAU = 0.7
NEAR = 0.1  # an exploit "comes near" the best honest policy within this share of its gain over monitor
HARM_STEP = 0.5  # stages; less is not "more harm"

OPEN_LOOP, FARMING, HARM_SEEKING = "open-loop", "farming", "harm-seeking"
DEGENERATE, CERTIFIED, UNDECIDED = "degenerate", "certified", "undecided"


class Played(NamedTuple):
    """A candidate with what it did on the report episodes."""

    name: str
    candidate: Candidate
    stats: EpisodeStats  # fields (E, ...), returns (E, R)


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def play(arena: Arena, named: dict[str, Candidate], keys: jax.Array) -> list[Played]:
    """Play candidates on the report episodes; those of one policy function share a compiled program."""
    played: dict[str, Played] = {}
    for policy in dict.fromkeys(c.policy for c in named.values()):
        names = [n for n, c in named.items() if c.policy is policy]
        parameters = stack_parameters([named[n].parameters for n in names])
        stats, _ = rollout_many(arena.env, arena.params, policy, parameters, keys)
        for i, name in enumerate(names):
            played[name] = Played(name, named[name], jax.tree.map(lambda x, i=i: x[i], stats))
    return [played[n] for n in named]


def finalists(found: Found, r: int) -> dict[str, Candidate]:
    """The policies on which the verdict of reward r rests."""
    farm = found.farming[r]
    once = Candidate(FARM, farm.policy, farm.parameters._replace(repeats=np.int32(1)))
    some = Candidate(FARM, farm.policy, farm.parameters._replace(repeats=np.int32(4)))
    named = {name: Candidate(name, *BASELINES[name]) for name in ("monitor", "random", "heuristic")}
    named |= {"evidence": found.evidence[r], "open-loop": found.open_loop[r], "positional": found.positional[r]}
    named |= {"farming": farm, "farming x4": some, "farming x1": once}
    certain = found.certain[r]
    return named | ({"certain": certain} if certain is not None else {})


def resampled_means(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(RESAMPLES, P) bootstrap means of (E, P) paired samples: the same resample for every policy."""
    n = len(samples)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float32) / n
    return weights @ samples.astype(np.float32)


def estimate(value: float, resamples: np.ndarray) -> Estimate:
    """A value with the percentile interval of its resamples."""
    low, high = np.percentile(resamples, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def outcome(stats: EpisodeStats) -> dict[str, float]:
    """The outcome vector, which no reward weight touches: means per episode; less is better but for the last."""
    return {
        "exfil_rate": float((stats.end == EXFIL).mean()),
        "stages_succeeded": float(stats.succeeded.mean()),
        "downtime": float(stats.downtime.mean()),
        "false_positive_containments": float(stats.signals.false_positives.mean()),
        "first_containment": float(stats.first_containment.mean()),
    }


def tells(played: Played, r: int, horizon: int) -> dict[str, float | bool]:
    """Signs of a degenerate policy; entropy in nats over the verbs it used."""
    s = played.stats
    verbs = s.verbs.sum(axis=0) / np.maximum(1, s.verbs.sum())
    contained = s.signals.containments > 0
    containments = s.signals.containments.sum()
    std, length = float(s.episode_return[:, r].std()), float(s.length.mean() / horizon)
    entropy = float(-sum(p * np.log(p) for p in verbs if p > 0))
    backed = float(s.signals.evidence_backed.sum() / containments) if containments else 0.0
    blind = float(s.blind.sum() / contained.sum()) if contained.any() else 0.0
    return {
        "return_std": std,
        "length_share": length,
        "contains_before_alert": blind,
        "action_entropy": entropy,
        "evidence_backed_share": backed,
        "suspicious": std < STD_ZERO or length < 0.05 or blind > 0.5 or entropy < 0.05,
    }


def kendall_tau(returns: np.ndarray, outcomes: list[dict[str, float]]) -> float:
    """Kendall's tau of returns against outcomes, over the pairs where one outcome vector dominates the other.

    Dominance (no worse in exfil, stages, downtime and false positives, better in one) needs no weights. NaN if no pair.
    """
    names = ("exfil_rate", "stages_succeeded", "downtime", "false_positive_containments")
    harm = np.asarray([[o[n] for n in names] for o in outcomes])
    score, pairs = 0, 0
    for i in range(len(harm)):
        for j in range(len(harm)):
            if np.all(harm[i] <= harm[j]) and np.any(harm[i] < harm[j] - 1e-9):
                pairs += 1
                score += int(np.sign(returns[i] - returns[j]))
    return score / pairs if pairs else float("nan")


class Comparison(NamedTuple):
    """What the verdict of one reward rests on. Indices are into the list of policies played."""

    mean: np.ndarray  # (P,) mean returns
    boot: np.ndarray  # (RESAMPLES, P) resampled mean returns
    seeing: int  # the better of the best evidence-using policy found and the heuristic
    blind: int  # the better of the best open-loop and the best positional plan
    gain: float  # of `seeing` over monitor
    evg: Estimate
    evg_norm: Estimate
    farming_growth: Estimate  # return of the endless farming loop less that of the same loop with one repeat
    farming_surplus: Estimate  # return of the endless farming loop less that of `seeing`
    harm: tuple[int, int] | None  # harm-seeking policy, and the mildest good one instead of which it pays


def compare(played: list[Played], r: int, seed: int) -> Comparison:
    """All differences that matter for reward r, paired over episodes."""
    at = {p.name: i for i, p in enumerate(played)}
    returns = np.stack([p.stats.episode_return[:, r] for p in played], axis=1)  # (E, P)
    stages = np.stack([p.stats.succeeded for p in played], axis=1).astype(np.float32)
    mean = returns.mean(axis=0)
    boot = resampled_means(np.concatenate([returns, stages], axis=1), np.random.default_rng(seed))
    boot, boot_stages = boot[:, : len(played)], boot[:, len(played) :]

    def difference(a: int, b: int) -> Estimate:
        return estimate(mean[a] - mean[b], boot[:, a] - boot[:, b])

    # Each was chosen on other episodes; taking the larger of two here favours neither side much.
    seeing = max((at["evidence"], at["heuristic"]), key=lambda i: mean[i])
    blind = max((at["open-loop"], at["positional"]), key=lambda i: mean[i])
    evg, gain = difference(seeing, blind), difference(seeing, at["monitor"])
    norm = Estimate(float("nan"), float("nan"), float("nan"))
    if gain.low > 0:  # else reading the evidence gains nothing over doing nothing: there is no share of a gain
        norm = estimate(
            evg.value / gain.value, (boot[:, seeing] - boot[:, blind]) / (boot[:, seeing] - boot[:, at["monitor"]])
        )
    return Comparison(
        mean=mean,
        boot=boot,
        seeing=seeing,
        blind=blind,
        gain=gain.value,
        evg=evg,
        evg_norm=norm,
        farming_growth=difference(at["farming"], at["farming x1"]),
        farming_surplus=difference(at["farming"], seeing),
        harm=_harm_seeking(mean, boot, stages.mean(axis=0), boot_stages),
    )


def judge(arena: Arena, played: list[Played], r: int, seed: int) -> dict[str, Any]:
    """The verdict of reward r on one scenario, as a row for JSON, without its witnesses."""
    c = compare(played, r, seed)
    farms = c.farming_growth.low > 0
    shown = {
        OPEN_LOOP: c.evg.high <= 0,
        FARMING: farms and c.farming_surplus.low > 0,
        HARM_SEEKING: c.harm is not None,
    }
    exploits = [name for name, is_shown in shown.items() if is_shown]
    outcomes = [outcome(p.stats) for p in played]
    tau = kendall_tau(c.mean, outcomes)
    near = farms and c.farming_surplus.high > -NEAR * c.gain
    certified = not exploits and c.evg_norm.low >= CERTIFIED_EVG_NORM and not near and tau >= CERTIFIED_TAU
    return {
        "scenario": arena.scenario.id,
        "rules": arena.rules,
        "reward": arena.rewards[r],
        "personality": arena.personality,
        "verdict": DEGENERATE if exploits else CERTIFIED if certified else UNDECIDED,
        "exploits": exploits,
        "episodes": len(played[0].stats.length),
        "evg": c.evg.value,
        "evg_ci": list(c.evg[1:]),
        "evg_norm": c.evg_norm.value,
        "evg_norm_ci": list(c.evg_norm[1:]),
        "farming_growth": c.farming_growth.value,
        "farming_growth_ci": list(c.farming_growth[1:]),
        "outcome_tau": tau,
        "best_open_loop_name": played[c.blind].name,
        "best_evidence_name": played[c.seeing].name,
        "harm_seeker": c.harm and {"policy": played[c.harm[0]].name, "instead_of": played[c.harm[1]].name},
        "policies": [
            {
                "policy": p.name,
                "kind": p.candidate.kind,
                "return": float(c.mean[i]),
                "return_ci": list(np.percentile(c.boot[:, i], [2.5, 97.5]).astype(float)),
                "std": float(p.stats.episode_return[:, r].std()),
                "length": float(p.stats.length.mean()),
                **outcomes[i],
                "tells": tells(p, r, int(arena.params.scenario.horizon)),
            }
            for i, p in enumerate(played)
        ],
    }


def _harm_seeking(
    mean: np.ndarray, boot: np.ndarray, stages: np.ndarray, boot_stages: np.ndarray
) -> tuple[int, int] | None:
    """(harmful, harmless) when the best policy lets more stages succeed than some policy does, and earns more than all
    such policies: the reward pays for harm. Both differences significant."""
    top = int(mean.argmax())
    milder = np.flatnonzero(stages <= stages[top] - HARM_STEP)
    if not len(milder):
        return None
    best = int(milder[mean[milder].argmax()])
    earns = np.percentile(boot[:, top] - boot[:, best], 2.5) > 0
    harms = np.percentile(boot_stages[:, top] - boot_stages[:, best], 2.5) > 0
    return (top, best) if earns and harms else None
