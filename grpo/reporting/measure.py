"""What an evaluation measures: a row for each policy.

Intervals are 95 % percentile bootstrap over episodes, see `jaxsim.audit.bootstrap`; over several campaigns it is
stratified: each is resampled by itself, and all weigh the same. IQM (the mean of the middle half) and P(improvement)
are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
All rows play the same episodes, so P is paired: the chance to get more of an episode than another policy, ties half.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import trim_mean

from jaxsim.actions import table
from jaxsim.audit.bootstrap import RESAMPLES, Estimate, estimate, resampled_means
from jaxsim.env import Env
from jaxsim.one_episode import EpisodeStats
from jaxsim.response import TICK_HOURS, Response, hours, watched
from jaxsim.types import EXFIL, VERBS, Params
from prompting import FALLBACKS, Inventory

Row = dict[str, Any]
ALL = "all campaigns"
TIE = 1e-4  # points; float32 sums of equal terms differ by less
SAID = (*VERBS, "INVALID")
ESTIMATES = (
    *("mean_return", "iqm_return", "shuffle_drop", "shuffle_loss", "name_drop", "name_loss"),
    *(f"{kind}_{other}" for other in ("monitor", "random", "base") for kind in ("over", "p_over")),
)
CHUNK = 100  # resamples at a time


class Told(NamedTuple):
    """What a policy did in the E episodes of a campaign."""

    policy: str
    scenario: str
    stats: EpisodeStats  # leading axis (E,)
    said: np.ndarray  # (T, E) index into SAID
    live: np.ndarray  # (T, E) bool, the episode was not over
    alerted: np.ndarray  # (T, E) bool, an alert was in view when acting
    containments: np.ndarray  # (T, E)
    response: Response  # leading axis (E,)
    shuffled: np.ndarray | None  # (E,) returns on another episode's evidence
    renamed: np.ndarray | None = None  # (E,) returns where names say nothing
    seconds: float = 0.0
    words: str = ""  # what the policy is
    reasons: Mapping[str, int] | None = None  # of a model: how often each reason, '' for a legal answer
    tokens: int = 0


def tell(
    inventory: Inventory, params: Params, keys: jax.Array, policy: str, scenario: str, stats: Any, actions: np.ndarray
) -> Told:
    """What is known of (T, E) actions in the episodes of `keys`."""
    longest = int(params.scenario.horizon)
    padded = np.pad(actions, ((0, longest - len(actions)), (0, 0)), constant_values=-1)
    seen = watched(Env(inventory.dims), params, keys, padded.T)
    legal = np.isin(padded, list(inventory.actions.values()))
    said = np.where(legal, table(inventory.dims)[0][padded], SAID.index("INVALID"))
    live = np.arange(longest)[:, None] < stats.length
    return Told(policy, scenario, stats, said, live, seen.alerted.T, seen.containments.T, seen.response, None)


def stratified(strata: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """((P,) means, (RESAMPLES, P) resampled means) of (E, P) samples of each stratum; all strata weigh the same."""
    rng = np.random.default_rng(0)
    boots = np.mean([resampled_means(s, rng) for s in strata], axis=0)
    return np.mean([s.mean(axis=0) for s in strata], axis=0), boots


def iqm(strata: Sequence[np.ndarray]) -> Estimate:
    """Interquartile mean of all samples, (E,) of each stratum."""
    rng, boots = np.random.default_rng(0), []
    for _ in range(0, RESAMPLES, CHUNK):
        drawn = [s[rng.integers(len(s), size=(CHUNK, len(s)))] for s in strata]
        boots.append(trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1))
    return estimate(trim_mean(np.concatenate(strata), 0.25), np.concatenate(boots))


def measure(many: Sequence[Told], others: Mapping[str, Sequence[Told]]) -> Row:
    """The row of a policy: of one campaign, or of several. `others`: those to compare it to, in the same episodes."""
    own = [t.stats.episode_return.astype(np.float64) for t in many]
    columns = {"mean_return": own}
    for name, theirs in others.items():
        gaps = [mine - t.stats.episode_return for mine, t in zip(own, theirs, strict=True)]
        columns[f"over_{name}"] = gaps
        columns[f"p_over_{name}"] = [(g > TIE) + 0.5 * (np.abs(g) <= TIE) for g in gaps]
    for kind, other in (("shuffle", "shuffled"), ("name", "renamed")):
        again = [getattr(t, other) for t in many]
        if all(x is not None for x in again):
            columns[f"{kind}_loss"] = [mine - x for mine, x in zip(own, again, strict=True)]
    means, boots = stratified([np.stack(s, axis=1) for s in zip(*columns.values(), strict=True)])
    found = {name: estimate(means[i], boots[:, i]) for i, name in enumerate(columns)}
    found["iqm_return"] = iqm(own)
    for kind in ("shuffle", "name"):
        if f"{kind}_loss" in found and "over_monitor" in found and found["over_monitor"].low > 0:
            gain, lost = (list(columns).index(name) for name in ("over_monitor", f"{kind}_loss"))
            gaining = boots[boots[:, gain] > 0]  # nearly all
            found[f"{kind}_drop"] = estimate(means[lost] / means[gain], gaining[:, lost] / gaining[:, gain])

    stats = jax.tree.map(lambda *x: np.concatenate(x).astype(np.float64), *[t.stats for t in many])
    contained = stats.signals.containments.sum()
    reasons = sum((Counter(t.reasons) for t in many if t.reasons), Counter[str]())
    decisions, seconds = reasons.total(), sum(t.seconds for t in many)
    row: Row = {"scenario": many[0].scenario if len(many) == 1 else ALL, "policy": many[0].policy}
    row |= {"n": len(stats.length), "std_return": stats.episode_return.std()}
    for name in ESTIMATES:
        row[name] = found[name].value if name in found else None
        row[f"{name}_ci"] = list(found[name][1:]) if name in found else None
    row |= {
        "stages_succeeded": stats.succeeded.mean(),
        "exfil_rate": (stats.end == EXFIL).mean(),
        "downtime": stats.downtime.mean(),
        "hours_of_downtime": stats.downtime.mean() * TICK_HOURS,
        **hours(jax.tree.map(lambda *x: np.concatenate(x), *[t.response for t in many])),
        "length": stats.length.mean(),
        "channels": {k: v.mean() for k, v in stats.channels._asdict().items()},
        "invalid_rate": stats.signals.invalid.sum() / stats.length.sum(),
        "blind_rate": stats.blind.mean(),
        "contained_before_alert": _share(sum(t.containments[~t.alerted].sum() for t in many), contained),
        "evidence_backed": _share(stats.signals.evidence_backed.sum(), contained),
        "false_containments": _share(stats.signals.false_positives.sum(), contained),
        "actions_before_alert": _actions(many, alerted=False),
        "actions_after_alert": _actions(many, alerted=True),
        "decisions": decisions or None,
        "fallback_rate": _share(sum(reasons[r] for r in FALLBACKS), decisions),
        "reasons": {r or "legal": n for r, n in sorted(reasons.items())} or None,
        "seconds": seconds,
        "decisions_per_second": _share(decisions, seconds) if decisions else None,
        "tokens_per_second": _share(sum(t.tokens for t in many), seconds) if decisions else None,
    }
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()}


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _actions(many: Sequence[Told], alerted: bool) -> dict[str, int]:
    count = sum(np.bincount(t.said[t.live & (t.alerted == alerted)], minlength=len(SAID)) for t in many)
    return dict(zip(SAID, np.asarray(count).tolist(), strict=True))


def rows_of(told: Mapping[str, Sequence[Told]]) -> list[Row]:
    """Each policy over all campaigns, then campaign by campaign. `told`: by policy, campaigns in one order."""
    campaigns = len(told["monitor"])
    cuts = [list(range(campaigns))] * (campaigns > 1) + [[i] for i in range(campaigns)]

    def row(name: str, cut: list[int]) -> Row:
        known = ("monitor", "random", "base") if name == "trained" else ("monitor", "random")
        compared = [other for other in known if other in told and other != name]
        return measure([told[name][i] for i in cut], {other: [told[other][i] for i in cut] for other in compared})

    return [row(name, cut) for cut in cuts for name in told]
