"""Find the weights of a reward: under which do reading and investigating pay, and does the network stay safe?

Plays a pool of policies once on the training scenarios, then scores thousands of weightings from what they did. Without
clip and cap a return is linear in the counts of what happened, so the scoring is exact. Of the weightings that hold
with a margin however single weights move, it takes those whose best policy prevents most exfil, of these those with the
largest margin when moved, and of these the one under which looking costs most: the dearer it is, the more alerts have
to say where to look. At most a quarter of the best policy's containments may be of what it had contained before and
restored. Detection and evidence are always worth something. Under rules without `foothold` investigating
cannot pay (`--without-voi`).

    jaxsim-soc search-reward --out out/reward
"""

import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib

from jaxsim import options
from jaxsim_soc import cli

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import qmc

import scenarios
from jaxsim import recurrent, reward
from jaxsim.audit import checkpoint, search, verdict
from jaxsim.audit.arena import EVIDENCE as FAMILY
from jaxsim.audit.arena import Arena, Candidate, alike, make_arenas, take
from jaxsim.audit.budgets import BUDGETS
from jaxsim.audit.rescore import CERTIFIED_EVG_NORM, CERTIFIED_VOI_NORM, is_blind, is_seeing
from jaxsim.one_episode import episode_keys
from jaxsim.policies import BASELINES, EVIDENCE
from jaxsim.recurrent import PRIVILEGED
from jaxsim.rollouts import rollout_many
from jaxsim.types import RewardWeights, Signals
from scenarios.generate import generate

DEFAULT = "operational"
PIVOTS = 4  # weightings under which the pool is searched
# Ranges of the weights that vary; the exfil of -6 points sets the scale. `stage_left` holds with and without exfil.
RANGES: dict[str, tuple[float, float]] = {
    "detection": (0.02, 0.5),
    "active_block": (0.0, 1.5),
    "preemptive_block": (0.0, 0.2),
    "containment_cost": (-0.8, 0.0),
    "evidence": (0.02, 0.5),
    "false_positive": (-2.0, 0.0),
    "disruption": (-0.12, -0.005),
    "stage_left": (0.05, 1.0),
    "clean": (0.0, 2.0),
    "investigation": (-0.03, -0.002),
}
FIXED = {"invalid_action": -0.6, "exfil": -6.0, "passive": 0.0, "disruption_cap": np.inf, "clip": np.inf}
INVESTIGATIONS, BACKED, AGAIN, CONTAINMENTS = (
    Signals._fields.index(n) for n in ("investigations", "evidence_backed", "recontained", "containments")
)
# One for each of Signals, in order, but for the last two, `evidence_backed` and `recontained`, which no weight pays.
LINEAR = [n for n in RewardWeights._fields if n not in ("disruption_cap", "clip")]
# What every single move of a weight by MOVE must leave, over all scenarios.
MARGIN = 0.35  # EVG_norm
MARGIN_VOI = 0.2  # VOI_norm
MARGIN_BACKED = 0.5  # share of the best policy's containments that are evidence-backed
MARGIN_ONCE = 0.75  # share of them that are not of what it had contained before and restored
MOVE = 0.2
TAU = 0.9
SAME = 0.02  # shares of exfils prevented, and margins, that differ less are held to be the same


class Ground(NamedTuple):
    """A scenario with what the pool of P policies did in it: on the seeds that choose, and on those that measure."""

    name: str
    chosen: np.ndarray  # (P, 16) mean signals
    measured: np.ndarray  # (P, 16)
    outcomes: np.ndarray  # (P, 5) `verdict.costs` on the measuring seeds
    seeing: np.ndarray  # (P,) bool
    blind: np.ndarray  # (P,) bool
    unlooking: np.ndarray  # (P,) bool, those of `seeing` that never investigate


class Scores(NamedTuple):
    """Per weighting, the worst over the scenarios; each (C,)."""

    evg_norm: np.ndarray
    prevented: np.ndarray  # share of monitor's exfils that the best policy prevents
    tau: np.ndarray
    voi_norm: np.ndarray
    backed: np.ndarray  # share of the best policy's containments that are evidence-backed
    once: np.ndarray  # share of them that are not of what it had contained before and restored


def bounds(voi: bool) -> dict[str, float]:
    """What a weighting must leave when moved, by the names of `Scores`; `voi`: of investigating as well."""
    of_reading = {"evg_norm": MARGIN, "once": MARGIN_ONCE}
    return of_reading | ({"voi_norm": MARGIN_VOI, "backed": MARGIN_BACKED} if voi else {})


def margin(s: Scores, voi: bool) -> np.ndarray:
    """(C,) by how much a weighting is above all bounds, negative where it is below one."""
    least: np.ndarray = np.min([getattr(s, name) - bound for name, bound in bounds(voi).items()], axis=0)
    return least


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, play, score, choose, write."""
    args = parser().parse_args(argv)
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    grounds = reread(args.pool) if args.pool else played(args, console)
    weights = draw(args.weightings, args.seed, args.vary)
    each = [score_one(g, matrix(weights)) for g in grounds]
    scores = worst(each)
    rows = np.flatnonzero((scores.tau >= TAU) & (margin(scores, args.voi) >= 0))
    robust = np.full(len(scores.tau), -np.inf)
    for c in rows:
        robust[c] = margin(score(grounds, moved({n: float(v[c]) for n, v in weights.items()})), args.voi).min()
    able = np.flatnonzero(robust >= 0)
    met = {g.name: share_met(s, args.voi) for g, s in zip(grounds, each, strict=True)} | {
        "all of them": share_met(scores, args.voi)
    }
    show_met(console, met)
    default = held_to(grounds, {n: float(reward.PRESETS[DEFAULT][n]) for n in RANGES})
    show_held(console, f"{DEFAULT}, as it is", default)
    if not len(able):
        cli.fail("no weighting holds with the margin on all networks; search more (--weightings) or harder (--budget)")
    safest = able[scores.prevented[able] >= scores.prevented[able].max() - SAME]
    firm = safest[robust[safest] >= robust[safest].max() - SAME]
    best = firm[weights["investigation"][firm].argmin()]
    chosen, held = rounded(grounds, {n: float(v[best]) for n, v in weights.items()}, args.voi)
    document = {
        "rules": args.rules,
        "seconds": round(time.perf_counter() - began, 1),
        "scenarios": [g.name for g in grounds],
        "policies": [len(g.seeing) for g in grounds],
        "weightings": args.weightings,
        "share_of_weightings_that_meet": met,
        "certifiable": len(rows),
        "certifiable_when_moved": len(able),
        "chosen": full(chosen),
        **held,
        DEFAULT: default,
        "nearest": [summary(weights, scores, robust, c) for c in able[np.argsort(-scores.prevented[able])][:10]],
    }
    cli.write_json(args.out / "reward.json", {k: v for k, v in document.items()})
    figure = picture(scores, robust, {"chosen": held["scores"], DEFAULT: default["scores"]})
    cli.write_whole(args.out / "pareto.png", lambda file: figure.savefig(file, format="png", dpi=130))
    show(console, document)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    options.add_rules(p)
    p.add_argument(
        "--without-voi", dest="voi", action="store_false", help="do not ask that investigating be worth its time"
    )
    p.add_argument("--budget", choices=list(BUDGETS), default="pool", help="of the search for the pool (default: pool)")
    p.add_argument(
        "--generated",
        type=cli.integer(0, 100),
        default=6,
        metavar="N",
        help="generated networks beside the campaigns (default: 6)",
    )
    p.add_argument(
        "--weightings", type=cli.integer(64, 2**20), default=2**14, metavar="N", help="a power of two (default: 16384)"
    )
    p.add_argument(
        "--vary", type=cli.one_of(RANGES), nargs="+", metavar="WEIGHT",
        help=f"only these vary, the others are those of {DEFAULT}: {', '.join(RANGES)} (default: all vary)",
    )  # fmt: skip
    p.add_argument(
        "--policies",
        type=cli.input_folder,
        metavar="DIR",
        help="put those of its learned policies into the pool that were trained under these rules",
    )
    p.add_argument("--pool", type=cli.input_file, metavar="FILE", help="score the pool.npz of an earlier run again")
    options.add_seed(p)
    p.add_argument(
        "--out", type=cli.output_folder, default=Path("out/reward"), metavar="DIR", help="folder of the report"
    )
    return p


def played(args: Any, console: Console) -> list[Ground]:
    """Search and play; what was played is kept in pool.npz, so that `--pool` can score it again."""
    learned = learned_policies(args.policies, args.rules)
    searched = pooled(args, console)
    grounds = [ground(a, f, learned, args.seed) for a, f in track(searched, "playing", console=console, transient=True)]
    columns = {f"{g.name}/{field}": value for g in grounds for field, value in g._asdict().items() if field != "name"}
    cli.write_whole(args.out / "pool.npz", lambda file: np.savez(file, **columns))
    return grounds


def reread(path: Path) -> list[Ground]:
    """What `played` kept."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            names = dict.fromkeys(key.partition("/")[0] for key in file)
            grounds = [Ground(n, *(file[f"{n}/{field}"] for field in Ground._fields[1:])) for n in names]
        if any(g.outcomes.shape[1:] != verdict.LEAST.shape for g in grounds):
            raise ValueError("its outcomes are those of another version")
        if any(x.shape[1:] != (len(Signals._fields),) for g in grounds for x in (g.chosen, g.measured)):
            raise ValueError("its signals are those of another version")
        return grounds
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        cli.fail(f"--pool: {path}: no pool.npz of an earlier run ({error}); give one, or leave it out")


def pooled(args: Any, console: Console) -> list[tuple[Arena, search.Found]]:
    """The training scenarios, each with the policies that a search under several weightings found."""
    many = [scenarios.load(n) for g in scenarios.GROUPS for n in scenarios.names(g)]
    many = [s for s in many if not s.held_out]
    many += [generate(seed, 16 + 2 * seed, "train") for seed in range(args.generated)]
    pivots = draw(PIVOTS, args.seed + 1)
    rewards = {f"pivot {c}": as_weights({n: v[c] for n, v in pivots.items()}) for c in range(PIVOTS)}
    arenas = make_arenas(many, args.rules, rewards)
    began = time.perf_counter()

    def advance(what: str) -> None:
        console.print(f"{time.perf_counter() - began:5.0f} s  {what}", highlight=False)

    # Plans grow from single actions here: pairs are for the sweep.
    return list(zip(arenas, search.search(arenas, BUDGETS[args.budget], args.seed, advance), strict=True))


def learned_policies(folder: Path | None, rules: str) -> list[Candidate]:
    """Every checkpoint of a folder that is a defender trained under these rules, whatever the reward."""
    if folder is None:
        return []
    try:
        every = [checkpoint.load(path) for path in sorted(folder.glob("*.safetensors"))]
    except ValueError as error:
        cli.fail(f"--policies: {error}")
    found = [c for c in every if c.about.get("rules") == rules and c.view != PRIVILEGED]
    if not found:
        has = ", ".join(sorted({c.about.get("rules", "others") for c in every})) or "none at all"
        cli.fail(f"--policies: {str(folder)!r} has no policy trained under {rules!r} (but {has}); leave it out")
    return [Candidate(c.view, recurrent.POLICIES[c.view], c.learned) for c in found]


def ground(arena: Arena, found: search.Found, learned: list[Candidate], seed: int) -> Ground:
    """Play the pool, half of the episodes for choosing and half for measuring."""
    pool = [Candidate(n, *BASELINES[n]) for n in ("monitor", "heuristic", "random")]
    family = search.sample_family(128, seed + 2, arena.env.dims.restore)
    for some in (family, search.without_forensics(family)):
        pool += [Candidate(FAMILY, EVIDENCE, take(some, i)) for i in range(len(some.repeats))]
    pool += learned
    pool += [*found.open_loop, *found.positional, *found.farming, *found.pool]
    keys = episode_keys(jax.random.fold_in(jax.random.key(seed), 77), 512)
    signals: dict[int, np.ndarray] = {}
    outcomes: dict[int, np.ndarray] = {}
    for members, policy, parameters in alike(pool):
        stats, _ = rollout_many(arena.env, arena.params, policy, parameters, keys)
        sums = np.stack(stats.signals, axis=-1)
        for m, i in enumerate(members):
            one = jax.tree.map(lambda x, m=m: x[m, 256:], stats)
            outcomes[i] = verdict.costs(one)
            signals[i] = np.stack([sums[m, :256].mean(axis=0), sums[m, 256:].mean(axis=0)])
    both = np.stack([signals[i] for i in range(len(pool))])
    kinds = [c.kind for c in pool]
    return Ground(
        arena.scenario.id, both[:, 0], both[:, 1], np.stack([outcomes[i] for i in range(len(pool))]),
        np.asarray([is_seeing(k) for k in kinds]), np.asarray([is_blind(k) for k in kinds]),
        np.asarray([is_seeing(k) for k in kinds]) & (both[:, :, INVESTIGATIONS] == 0).all(axis=1),
    )  # fmt: skip


# --- weightings -----------------------------------------------------------------------------------------------------


def draw(many: int, seed: int, vary: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """(C,) values of the weights, spread evenly; each is exactly 0 in one weighting of four, if it may be. Where only
    some `vary` the others are those of the default reward.

    A stage compromises at most two targets. What they can pay, once each, is never more than the stage costs: so no
    weighting pays a defender to let an attack go on.
    """
    u = qmc.Sobol(2 * len(RANGES), rng=np.random.default_rng(seed)).random(many)
    columns = {}
    for i, (name, (lo, hi)) in enumerate(RANGES.items()):
        value = lo + (hi - lo) * u[:, 2 * i]
        columns[name] = np.where((lo * hi == 0.0) & (u[:, 2 * i + 1] < 0.25), 0.0, value)
    columns |= {n: np.full(many, reward.PRESETS[DEFAULT][n]) for n in RANGES if vary and n not in vary}
    paid = columns["detection"] + np.maximum(columns["evidence"] + columns["containment_cost"], 0.0)
    columns["stage_left"] = np.maximum(columns["stage_left"], 2.0 * paid)
    return columns


def full(values: dict[str, float]) -> dict[str, float]:
    """All weights by name; JSON has no infinity, so the cap and the clip that never bind are left out."""
    both = {**FIXED, **values, "exfil_stage_left": values["stage_left"]}
    return {n: float(both[n]) for n in LINEAR}


def as_weights(values: dict[str, float]) -> RewardWeights:
    """A weighting as the simulator wants it."""
    return reward.from_mapping(full(values) | {"disruption_cap": np.inf, "clip": np.inf})


def matrix(values: dict[str, np.ndarray]) -> np.ndarray:
    """(C, 16) weightings in the order of Signals."""
    many = len(next(iter(values.values())))
    columns: dict[str, Any] = {**FIXED, **values, "exfil_stage_left": values["stage_left"]}
    return np.stack([*(np.broadcast_to(columns[n], many) for n in LINEAR), *[np.zeros(many)] * 2], axis=1)


def moved(values: dict[str, float]) -> dict[str, np.ndarray]:
    """A weighting with every weight in turn MOVE up and MOVE down, the fixed ones (exfil, invalid_action) as well."""
    names = [*RANGES, "exfil", "invalid_action"]
    base = {**{n: FIXED[n] for n in ("exfil", "invalid_action")}, **values}
    rows = [{**base, n: base[n] * f} for n in names for f in (1 - MOVE, 1 + MOVE)]
    return {n: np.asarray([r[n] for r in rows]) for n in names}


# --- scores ---------------------------------------------------------------------------------------------------------


def score(grounds: list[Ground], values: dict[str, np.ndarray]) -> Scores:
    """The worst of every score over the scenarios."""
    w = matrix(values)
    return worst([score_one(g, w) for g in grounds])


def worst(each: list[Scores]) -> Scores:
    """Of scores on several scenarios the lowest, one by one."""
    return Scores(*(np.min(column, axis=0) for column in zip(*each, strict=True)))


def share_met(s: Scores, voi: bool) -> dict[str, float]:
    """The share of the weightings that is above each bound by itself, and above all of them."""
    above = {name: getattr(s, name) >= bound for name, bound in (bounds(voi) | {"tau": TAU}).items()}
    return {k: float(v.mean()) for k, v in (above | {"together": np.all([*above.values()], axis=0)}).items()}


def score_one(g: Ground, w: np.ndarray) -> Scores:
    """Best of each side chosen on one half of the episodes, measured on the other."""
    chosen, measured = w @ g.chosen.T, w @ g.measured.T
    row = np.arange(len(w))
    seeing = np.where(g.seeing, chosen, -np.inf).argmax(axis=1)
    blind = np.where(g.blind, chosen, -np.inf).argmax(axis=1)
    unlooking = np.where(g.unlooking, chosen, -np.inf).argmax(axis=1)
    gain = measured[row, seeing] - measured[:, 0]

    def share(less: np.ndarray) -> np.ndarray:
        return np.where(gain > 0.05, (measured[row, seeing] - measured[row, less]) / np.maximum(gain, 0.05), -1.0)

    best = np.where(measured[row, seeing] >= measured[row, blind], seeing, blind)
    prevented = 1.0 - g.outcomes[best, 0] / g.outcomes[0, 0]
    contained = np.maximum(g.measured[seeing, CONTAINMENTS], 1e-9)
    backed, again = g.measured[seeing, BACKED] / contained, g.measured[seeing, AGAIN] / contained
    return Scores(share(blind), prevented, verdict.tau(measured, g.outcomes)[0], share(unlooking), backed, 1 - again)


# --- what it writes -------------------------------------------------------------------------------------------------


def rounded(grounds: list[Ground], values: dict[str, float], voi: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """A weighting that holds when moved in as few digits, but two, as it still does with, and what it is held to."""
    for digits in range(2, 18):  # with 17 it is what it was
        short = {n: float(f"{v:.{digits}g}") for n, v in values.items()}
        held = held_to(grounds, short)
        own, when_moved = (Scores(*map(np.asarray, held[k].values())) for k in ("scores", "worst_when_moved"))
        if own.tau >= TAU and min(margin(own, voi), margin(when_moved, voi)) >= 0:
            break
    return short, held


def held_to(grounds: list[Ground], values: dict[str, float]) -> dict[str, dict[str, float]]:
    """The scores of one weighting, and the worst of them when any weight moves."""
    scores = score(grounds, {n: np.asarray([v]) for n, v in values.items()})
    worst_when_moved = score(grounds, moved(values))
    return {
        "scores": {k: float(v[0]) for k, v in scores._asdict().items()},
        "worst_when_moved": {k: float(v.min()) for k, v in worst_when_moved._asdict().items()},
    }


def summary(weights: dict[str, np.ndarray], scores: Scores, robust: np.ndarray, c: int) -> dict[str, float]:
    """One weighting in the report."""
    about = {k: float(v[c]) for k, v in scores._asdict().items()}
    return {**{n: float(v[c]) for n, v in weights.items()}, **about, "margin_moved": float(robust[c])}


def picture(scores: Scores, robust: np.ndarray, marked: dict[str, dict[str, float]]) -> Any:
    """Exfil prevented against EVG_norm and VOI_norm, with the fronts, the choice and the default."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    for axis, name, bound in zip(axes, ("evg_norm", "voi_norm"), (CERTIFIED_EVG_NORM, CERTIFIED_VOI_NORM), strict=True):
        _front(axis, scores, robust, marked, name, bound)
    axes[0].legend(fontsize=8, framealpha=0.9, loc="lower left")
    figure.tight_layout()
    return figure


def _front(
    axis: Any, scores: Scores, robust: np.ndarray, marked: dict[str, dict[str, float]], name: str, bound: float
) -> None:
    low, share = scores.tau < TAU, getattr(scores, name)
    axis.scatter(scores.prevented[low], share[low], s=4, c="#BBBBBB", label=f"τ < {TAU}")
    axis.scatter(scores.prevented[~low], share[~low], s=5, c="#56B4E9", label=f"τ ≥ {TAU}")
    held = robust >= 0
    axis.scatter(scores.prevented[held], share[held], s=9, c="#009E73", label="holds when any weight moves 20 %")
    order = np.argsort(-scores.prevented)
    front = order[share[order] > np.maximum.accumulate([-0.5, *share[order][:-1]])]
    axis.step(scores.prevented[front], share[front], color="#0072B2", linewidth=1, label="Pareto front")
    for (label, one), marker, size, color in zip(marked.items(), "*D", (90, 25), ("#D55E00", "black"), strict=True):
        axis.scatter(one["prevented"], one[name], s=size, marker=marker, c=color, label=label, zorder=3)
    axis.axhline(bound, color="black", linewidth=0.7, linestyle=":")
    axis.set_ylim(-0.5, 1.1)
    axis.set_xlabel("share of exfils that the best policy prevents (worst scenario)")
    axis.set_ylabel(f"{name.split('_')[0].upper()}_norm (worst scenario)")
    axis.spines[["top", "right"]].set_visible(False)


def show_met(console: Console, met: dict[str, dict[str, float]]) -> None:
    """Which bound is hard to meet, and where."""
    table = Table(title="Share of the weightings that meet each bound")
    for name in ("network", *next(iter(met.values()))):
        table.add_column(name)
    for network, shares in met.items():
        table.add_row(network, *(f"{x:.1%}" for x in shares.values()))
    console.print(table)


def show(console: Console, document: dict[str, Any]) -> None:
    """The choice."""
    table = Table(title="chosen")
    for name in ("weight", "value"):
        table.add_column(name)
    for name, value in document["chosen"].items():
        table.add_row(name, f"{value:g}")
    console.print(table)
    show_held(console, "the choice", document)
    console.print(
        f"{document['certifiable']} of {document['weightings']} weightings hold, {document['certifiable_when_moved']} "
        f"when any weight moves 20 %. {document['seconds']:.0f} s",
        highlight=False,
    )


def show_held(console: Console, name: str, about: dict[str, Any]) -> None:
    """What `held_to` says of one weighting."""
    own, when_moved = about["scores"], about["worst_when_moved"]
    titles = {
        "evg_norm": ("EVG_norm", ".2f"), "voi_norm": ("VOI_norm", ".2f"), "backed": ("evidence-backed", ".0%"),
        "once": ("contained once", ".0%"), "prevented": ("exfils prevented", ".0%"), "tau": ("tau", ".2f"),
    }  # fmt: skip
    told = (f"{title} {own[key]:{form}} ({when_moved[key]:{form}})" for key, (title, form) in titles.items())
    console.print(f"{name}, on the worst network (when moved): {', '.join(told)}", highlight=False)
