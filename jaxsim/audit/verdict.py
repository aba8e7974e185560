"""From the best policies found to a verdict, on episodes that the search has never seen.

Names: J(p) mean return; EVG = J(best evidence-using) - J(best open-loop); EVG_norm = EVG / (J(best evidence-using) -
J(monitor)); VOI = J(best evidence-using) - J(best evidence-using that reads no forensics), VOI_norm likewise; both
are of hand-made policies alone where no learned one is at hand that reads alerts only: learning is not investigating.
"""

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsim import recurrent
from jaxsim.audit import metrics
from jaxsim.audit.arena import FARM, Arena, Candidate, alike, outcomes_of
from jaxsim.audit.bootstrap import NONE, Estimate, estimate, resampled_means
from jaxsim.audit.open_loop import SINGLES
from jaxsim.audit.race import Bound
from jaxsim.audit.rescore import CERTIFIED_EVG_NORM, CERTIFIED_VOI_NORM
from jaxsim.audit.search import Found, sample_family, without_forensics
from jaxsim.one_episode import EpisodeStats, episode_keys
from jaxsim.policies import BASELINES, EVIDENCE
from jaxsim.rollouts import rollout_many
from jaxsim.types import EXFIL, INVESTIGATE, RESTORE

STD_ZERO = 1e-3  # points; float32 sums of equal terms differ by less
CERTIFIED_TAU = 0.7
CERTIFIED_BACKED = 0.5  # share of the containments of the best reading policy that are evidence-backed
HARM_STEP = 0.5  # stages; less is not "more harm"
CROWD, CROWD_EPISODES = 32, 256
LEAST = np.asarray([0.02, 0.1, 2.0, 0.05, 3.0])  # of `costs`: means that differ less are held to be the same
HARM_TICKS = (4, 20)  # forks are spread over the first so many ticks: a loop may hide in one of them
HARM_EPISODES = 512
CHOICE = 4  # a verdict plays 1 episode for each so many of its report to choose the policy that reads

WITHOUT_FORENSICS = ("alerts only", recurrent.ALERTS)  # finalists that read alerts and never investigate
HAND_MADE = ("evidence", "heuristic", "alerts only")  # finalists that read their evidence, learned ones apart
READING = (*HAND_MADE, recurrent.SEEING, recurrent.ALERTS)
OPEN_LOOP, FARMING, HARM_SEEKING = "open-loop", "farming", "harm-seeking"
DEGENERATE, CERTIFIED, UNDECIDED = "degenerate", "certified", "undecided"


class Played(NamedTuple):
    """A candidate with what it did on the report episodes."""

    name: str
    candidate: Candidate
    stats: EpisodeStats  # fields (E, ...), returns (E, R)


def play(arena: Arena, finalists: list[dict[str, Candidate]], keys: jax.Array) -> list[list[Played]]:
    """Play the finalists of each reward on the report episodes; one that is a finalist of many is played once."""
    unique = {identity(c): c for named in finalists for c in named.values()}
    stats: dict[Hashable, EpisodeStats] = {}
    names = list(unique)
    for members, policy, parameters in alike(list(unique.values())):
        played, _ = rollout_many(arena.env, arena.params, policy, parameters, keys)
        stats |= {names[i]: jax.tree.map(lambda x, m=m: x[m], played) for m, i in enumerate(members)}
    return [[Played(name, c, stats[identity(c)]) for name, c in named.items()] for named in finalists]


def report_keys(key: jax.Array, report: int) -> jax.Array:
    """Keys of the episodes of a verdict: `report` that it reports, after those in which it chooses who reads best."""
    return episode_keys(key, report + report // CHOICE)


def apart(played: list[Played], episodes: int) -> tuple[list[Played], list[Played]]:
    """What was played, in the first `episodes` and in the others."""
    parts = slice(None, episodes), slice(episodes, None)
    first, others = ([p._replace(stats=jax.tree.map(lambda x, s=s: x[s], p.stats)) for p in played] for s in parts)
    return first, others


def choose(played: list[Played], r: int) -> tuple[str, str]:
    """The finalist that reads its evidence and earns the most under reward r, and the one whose VOI is measured: the
    same, or the best hand-made one, if only such ones are at hand without forensics."""
    earned = {p.name: float(p.stats.episode_return[:, r].mean()) for p in played if p.name in READING}
    best = max(earned, key=earned.__getitem__)
    alike = earned if recurrent.ALERTS in earned else [name for name in earned if name in HAND_MADE]
    return best, max(alike, key=earned.__getitem__)


def identity(candidate: Candidate) -> Hashable:
    """Equal for equal policies with equal parameters."""
    leaves = (np.asarray(x) for x in jax.tree.leaves(candidate.parameters))
    return candidate.policy, *((x.shape, x.tobytes()) for x in leaves)


def finalists(found: Found, r: int, learned: Mapping[str, Candidate] = MappingProxyType({})) -> dict[str, Candidate]:
    """The policies on which the verdict of reward r rests; `learned` by their views, see `recurrent`."""
    farm = found.farming[r]
    once = Candidate(FARM, farm.policy, farm.parameters._replace(repeats=np.int32(1)))
    some = Candidate(FARM, farm.policy, farm.parameters._replace(repeats=np.int32(4)))
    named = {name: Candidate(name, *BASELINES[name]) for name in ("monitor", "random", "heuristic")}
    named |= {
        "evidence": found.evidence[r],
        "alerts only": found.alerts[r],
        "open-loop": found.open_loop[r],
        "positional": found.positional[r],
    }
    named |= {"briefed": found.briefed[r], "farming": farm, "farming x4": some, "farming x1": once, **learned}
    certain = found.certain[r]
    return named | ({"certain": certain} if certain is not None else {})


def outcome(stats: EpisodeStats) -> dict[str, float]:
    """The outcome vector, which no reward weight touches: means per episode; less is better but for the last."""
    exfil, stages, downtime, false_positives, investigations = costs(stats).tolist()
    return {
        "exfil_rate": exfil,
        "stages_succeeded": stages,
        "downtime": downtime,
        "false_positive_containments": false_positives,
        "investigations": investigations,
        "first_containment": float(stats.first_containment.mean()),
    }


def tells(played: Played, r: int, horizon: int) -> dict[str, float | bool]:
    """Signs of a degenerate policy; entropy in nats over the verbs it used."""
    s = played.stats
    many = s.verbs.sum(axis=0)
    verbs = many / np.maximum(1, many.sum())
    contained = s.signals.containments > 0
    containments = s.signals.containments.sum()

    def share(some: np.ndarray) -> float:
        """Of the containments."""
        return float(some.sum() / containments) if containments else 0.0

    std, length = float(s.episode_return[:, r].std()), float(s.length.mean() / horizon)
    entropy = float(-sum(p * np.log(p) for p in verbs if p > 0))
    blind = float(s.blind.sum() / contained.sum()) if contained.any() else 0.0
    return {
        "return_std": std,
        "length_share": length,
        "contains_before_alert": blind,
        "action_entropy": entropy,
        "evidence_backed_share": share(s.signals.evidence_backed),
        "recontained_share": share(s.signals.recontained),
        "never_investigates": not many[INVESTIGATE],
        "never_restores": bool(containments) and not many[RESTORE],
        "suspicious": std < STD_ZERO or length < 0.05 or blind > 0.5 or entropy < 0.05,
    }


def crowd(arena: Arena, seed: int, keys: jax.Array, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Good and bad policies to rank beside the finalists, few of whom are comparable: members of the evidence family,
    and those as they would play if they never investigated. ((C, R) mean returns, (C, 5) mean `costs`).

    `whole` as in `course.Course`.
    """
    members = sample_family(CROWD, seed, arena.env.dims.restore)
    both = jax.tree.map(lambda *x: np.concatenate(x), members, without_forensics(members))
    some = np.asarray(jax.random.key_data(keys))[-CROWD_EPISODES:]
    stats = outcomes_of(arena, EVIDENCE, both, some, whole)
    return np.asarray(stats.episode_return.mean(axis=1)), costs(stats)


def costs(stats: EpisodeStats) -> np.ndarray:
    """(..., 5) means over the last axis of episodes of what `harm` counts and, since an analyst's time is no less
    scarce, of investigations; less is better. None is touched by a reward's weights."""
    signals = stats.signals
    columns = (stats.end == EXFIL, stats.succeeded, stats.downtime, signals.false_positives, signals.investigations)
    return np.stack([np.asarray(x, np.float64).mean(axis=-1) for x in columns], axis=-1)


def tau(returns: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, int]:
    """(C,) Kendall's tau of returns (C, P) against mean costs (P, 5), and over how many pairs: those where one policy's
    outcome dominates (no worse in any cost, better in one by LEAST), which needs no weights. NaN if there is none."""
    less = outcomes[None] - outcomes[:, None]
    i, j = np.nonzero(np.all(less >= 0, axis=2) & np.any(less > LEAST, axis=2))
    if not len(i):
        return np.full(len(returns), np.nan), 0
    pairs = len(i)
    if pairs > 4096:
        some = np.random.default_rng(0).choice(pairs, 4096, replace=False)
        i, j = i[some], j[some]
    agree = [np.sign(part[:, i] - part[:, j]).mean(axis=1) for part in np.array_split(returns, -(-len(returns) // 256))]
    return np.concatenate(agree), pairs


class Comparison(NamedTuple):
    """What the verdict of one reward rests on. Indices are into the list of policies played."""

    mean: np.ndarray  # (P,) mean returns
    boot: np.ndarray  # (RESAMPLES, P) resampled mean returns
    seeing: int  # the best that reads its evidence, chosen on other episodes, see `choose`
    blind: int  # the best of the open-loop, the positional and the briefed plan and the learned policy that is masked
    gain: float  # of `seeing` over monitor
    looking: int  # whose VOI it is, chosen likewise
    unlooking: int  # the best that reads no forensics
    evg: Estimate
    evg_norm: Estimate
    voi: Estimate
    voi_norm: Estimate
    farming_growth: Estimate  # return of the endless farming loop less that of the same loop with one repeat
    farming_surplus: Estimate  # return of the endless farming loop less that of `seeing`
    learned_gain: Estimate  # of the learned policy that sees over the better of the heuristic and the family's best
    harm: tuple[int, int] | None  # harm-seeking policy, and the mildest good one instead of which it pays


def compare(played: list[Played], r: int, seed: int, reading: str, looking: str) -> Comparison:
    """All differences that matter for reward r, paired over episodes; `reading`, `looking`: by `choose`."""
    at = {p.name: i for i, p in enumerate(played)}
    returns = np.stack([p.stats.episode_return[:, r] for p in played], axis=1)  # (E, P)
    stages = np.stack([p.stats.succeeded for p in played], axis=1).astype(np.float32)
    mean = returns.mean(axis=0)
    boot = resampled_means(np.concatenate([returns, stages], axis=1), np.random.default_rng(seed))
    boot, boot_stages = boot[:, : len(played)], boot[:, len(played) :]

    def difference(a: int, b: int) -> Estimate:
        return estimate(mean[a] - mean[b], boot[:, a] - boot[:, b])

    def best(*names: str) -> int:
        # Each was chosen on other episodes; the largest of a few here errs on the side that is taken to be stronger.
        return max((at[n] for n in names if n in at), key=lambda i: mean[i])

    hand_made = best("evidence", "heuristic")
    seeing = at[reading]
    blind = best("open-loop", "positional", "briefed", recurrent.MASKED)
    unlooking = best(*WITHOUT_FORENSICS)

    def share(more: int, less: int) -> Estimate:
        """Of what one policy gains over doing nothing, the part that another does not."""
        gain = difference(more, at["monitor"])
        if gain.low <= 0:  # reading the evidence gains nothing over doing nothing: there is no share of a gain
            return NONE
        boot_gain = boot[:, more] - boot[:, at["monitor"]]
        return estimate((mean[more] - mean[less]) / gain.value, (boot[:, more] - boot[:, less]) / boot_gain)

    return Comparison(
        mean=mean,
        boot=boot,
        seeing=seeing,
        blind=blind,
        gain=float(mean[seeing] - mean[at["monitor"]]),
        looking=at[looking],
        unlooking=unlooking,
        evg=difference(seeing, blind),
        evg_norm=share(seeing, blind),
        voi=difference(at[looking], unlooking),
        voi_norm=share(at[looking], unlooking),
        farming_growth=difference(at["farming"], at["farming x1"]),
        farming_surplus=difference(at["farming"], seeing),
        learned_gain=difference(at[recurrent.SEEING], hand_made) if recurrent.SEEING in at else NONE,
        harm=_harm_seeking(mean, boot, stages.mean(axis=0), boot_stages),
    )


def judge(
    arena: Arena,
    played: list[Played],
    r: int,
    seed: int,
    keys: jax.Array,
    bounds: Mapping[str, Bound],
    others: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """The verdict of reward r on one scenario, as a row for JSON, without its witnesses.

    `keys` are the episodes of `played`, by `report_keys`; `bounds`: on what the best plan of each class that was
    searched exhaustively earns over MONITOR; `others`, by `crowd`, are ranked beside the finalists.
    """
    choosing, played = apart(played, len(keys) // (CHOICE + 1))
    keys = keys[-len(played[0].stats.length) :]
    c = compare(played, r, seed, *choose(choosing, r))
    farms = c.farming_growth.low > 0
    harm_pays = harm_worth(arena, played[c.harm[0]], keys[:HARM_EPISODES], r) if c.harm else {}
    shown = {
        OPEN_LOOP: c.evg.high <= 0,
        FARMING: farms and c.farming_surplus.low > 0,
        HARM_SEEKING: any(h.low > 0 for h in harm_pays.values()),
    }
    exploits = [name for name, is_shown in shown.items() if is_shown]
    outcomes = [outcome(p.stats) for p in played]
    ranked = [jax.tree.map(lambda x: x[-CROWD_EPISODES:], p.stats) for p in played]
    earned = np.append(others[0][:, r], [s.episode_return[:, r].mean() for s in ranked])
    [rank], pairs = tau(earned[None], np.concatenate([others[1], [costs(s) for s in ranked]]))
    told = [tells(p, r, int(arena.params.scenario.horizon)) for p in played]
    near = c.farming_surplus.high > -CERTIFIED_EVG_NORM * c.gain
    left = {name: 1.0 - float(b.upper[r]) / c.gain if c.gain > 0 else float("nan") for name, b in bounds.items()}
    needs = {
        f"EVG_norm ≥ {CERTIFIED_EVG_NORM}": c.evg_norm.low >= CERTIFIED_EVG_NORM,
        # What a single action may earn at most, though it was not found.
        f"EVG_norm ≥ {CERTIFIED_EVG_NORM} against the bound on single actions": left[SINGLES] >= CERTIFIED_EVG_NORM,
        "no farming loop near the best honest policy": not near,
        f"τ ≥ {CERTIFIED_TAU}": rank >= CERTIFIED_TAU,
        f"VOI_norm ≥ {CERTIFIED_VOI_NORM}": c.voi_norm.low >= CERTIFIED_VOI_NORM,
        f"{CERTIFIED_BACKED:.0%} of containments evidence-backed": told[c.looking]["evidence_backed_share"]
        >= CERTIFIED_BACKED,
    }
    unmet = [name for name, met in needs.items() if not met]
    return {
        "scenario": arena.scenario.id,
        "rules": arena.rules,
        "reward": arena.rewards[r],
        "personality": arena.personality,
        "verdict": DEGENERATE if exploits else UNDECIDED if unmet else CERTIFIED,
        "exploits": exploits,
        "unmet": unmet,
        "episodes": len(played[0].stats.length),
        "evg": c.evg.value,
        "evg_ci": list(c.evg[1:]),
        "evg_norm": c.evg_norm.value,
        "evg_norm_ci": list(c.evg_norm[1:]),
        "open_loop_bounds": {
            name: {
                "members": b.members,
                "best": float(b.best[r]),
                "upper": float(b.upper[r]),
                "fewest_episodes": b.fewest,
                "evg_norm": left[name],
            }
            for name, b in bounds.items()
        },
        "voi": c.voi.value,
        "voi_ci": list(c.voi[1:]),
        "voi_norm": c.voi_norm.value,
        "voi_norm_ci": list(c.voi_norm[1:]),
        "voi_of": [played[c.looking].name, played[c.unlooking].name],
        "farming_growth": c.farming_growth.value,
        "farming_growth_ci": list(c.farming_growth[1:]),
        "farming_surplus": c.farming_surplus.value,
        "farming_surplus_ci": list(c.farming_surplus[1:]),
        "learned_gain": c.learned_gain.value,
        "learned_gain_ci": list(c.learned_gain[1:]),
        "harm_monotonicity": [{"ticks": t, "value": h.value, "ci": list(h[1:])} for t, h in harm_pays.items()],
        "outcome_tau": float(rank),
        "outcome_pairs": pairs,
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
                "tells": told[i],
            }
            for i, p in enumerate(played)
        ],
    }


def harm_worth(arena: Arena, p: Played, keys: jax.Array, r: int) -> dict[int, Estimate]:
    """`metrics.harm_monotonicity` of a policy for each of HARM_TICKS; `keys` are the first episodes that it played."""
    own = p.stats.episode_return[: len(keys), r]
    return dict(zip(HARM_TICKS, metrics.harm_monotonicity(arena, p.candidate, keys, r, own, HARM_TICKS), strict=True))


def _harm_seeking(
    mean: np.ndarray, boot: np.ndarray, stages: np.ndarray, boot_stages: np.ndarray
) -> tuple[int, int] | None:
    """(harmful, harmless) when the best policy lets more stages succeed than some policy does, and earns more than all
    such policies, both differences significant. That may be because controls cost: whether harm itself pays, forks
    tell (`metrics.harm_monotonicity`)."""
    top = int(mean.argmax())
    milder = np.flatnonzero(stages <= stages[top] - HARM_STEP)
    if not len(milder):
        return None
    best = int(milder[mean[milder].argmax()])
    earns = np.percentile(boot[:, top] - boot[:, best], 2.5) > 0
    harms = np.percentile(boot_stages[:, top] - boot_stages[:, best], 2.5) > 0
    return (top, best) if earns and harms else None
