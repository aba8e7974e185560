"""Train the policies that the audit pits against each other: `recurrent.VIEWS`, one that sees and others.

    jaxsim-soc train-policy                         its views on the training scenarios, a few minutes each
    jaxsim-soc train-policy --view memoryless       a teacher for language models, see `jaxsim-soc train --teacher`
    jaxsim-soc train-policy --view masked --scenario my_network.yaml --out out/policies

Checkpoints are safetensors files <rules>-<reward>-<view>.safetensors; the sweep uses those of its rules and reward.
Held-out scenarios and the held-out split of the generator are never trained on.
"""

import csv
import io
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import scenarios
from jaxsim import env, options, policies, recurrent, reward
from jaxsim.audit import checkpoint, ppo, search
from jaxsim.audit.arena import make_arenas, mean_returns, take
from jaxsim.compile import dims_of
from jaxsim.one_episode import episode_keys
from jaxsim.rollouts import rollout_many
from jaxsim.rules import restores
from jaxsim.types import Params
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from scenarios.generate import generate

MEASURED = 1024  # episodes of each scenario, after training


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, write checkpoints and logs, print what they earn."""
    args = arguments(argv)
    console = Console()
    many = training_scenarios(args)
    start, paid = begun(args), paid_by(args)
    args.out.mkdir(parents=True, exist_ok=True)
    dims = dims_of(many, restores(args.rules))
    stacked = [env.make_params(s, dims, args.rules, paid, args.personality) for s in many]
    meant = [p._replace(reward=reward.weights(args.reward)) for p in stacked]
    # Half of the episodes are of campaigns, half of generated networks.
    campaigns = len(many) - args.generated
    often = max(1, round(args.generated / campaigns)) if campaigns else 1
    mixture = [*range(campaigns)] * often + [*range(campaigns, len(many))]
    params: Params = jax.tree.map(lambda *x: jnp.stack(x), *(stacked[i] for i in mixture))
    width = start.weights.embed_bias.size if start else args.width
    settings = ppo.Settings(updates=args.updates, lanes=args.lanes, width=width, entropy=args.entropy)
    teachers = cache(lambda forensics: take(best_of_family(many, args, paid, forensics), mixture))
    for view in args.view:
        began = time.perf_counter()
        # A masked policy has nothing to copy from one that reads.
        taught = None if start or view == recurrent.MASKED else teachers(view != recurrent.ALERTS)
        rate = args.learning_rate or (settings.learning_rate if taught or start else 3e-3)  # 0 is refused
        weights, log = trained(dims, view, params, settings._replace(learning_rate=rate), args.seed, taught, start)
        seconds = time.perf_counter() - began
        about = {
            "rules": args.rules, "reward": args.reward, "view": view, "simulator_version": SIMULATOR_VERSION,
            "seed": str(args.seed), "updates": str(args.updates), "lanes": str(args.lanes), "seconds": f"{seconds:.0f}",
            "entropy": str(args.entropy), "learning_rate": str(rate),
            "start": start.about.get("updates", "") if start else "",
            "weight": " ".join(f"{name}={value}" for name, value in args.weight),
            "scenarios": " ".join(s.id for s in many),
        }  # fmt: skip
        made = checkpoint.Checkpoint(jax.tree.map(np.asarray, weights), about)
        stem = f"{args.rules}-{args.reward}-{view}"
        content = checkpoint.to_bytes(made)
        cli.write_bytes(args.out / f"{stem}.safetensors", content)
        cli.write_text(args.out / f"{stem}.csv", log)
        measured = measure(made, dims, meant, args.seed)
        line = ", ".join(f"{s.id} {m:.2f}" for s, m in zip(many, measured, strict=True))
        console.print(f"{stem}: {seconds:.0f} s; mean return {np.mean(measured):.2f} ({line})", highlight=False)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    options.add_scenarios(p)
    p.add_argument(
        "--generated", type=cli.integer(0, 200), default=12, metavar="N",
        help="generated networks of the training split beside them (default: 12)",
    )  # fmt: skip
    options.add_rules(p)
    options.add_reward(p)
    p.add_argument(
        "--weight", type=cli.assignment, nargs="+", default=[], metavar="NAME=POINTS",
        help="weights of the reward that are others in training, as investigation=-0.02 for a policy that looks less "
        "often; what it earns is still measured by --reward",
    )  # fmt: skip
    options.add_personality(p)
    p.add_argument(
        "--view", type=cli.one_of(recurrent.POLICIES), nargs="+", default=list(recurrent.VIEWS),
        metavar="NAME", help=f"{', '.join(recurrent.POLICIES)} (default: all but the last, the views of the audit)",
    )  # fmt: skip
    p.add_argument(
        "--start", type=cli.input_file, metavar="FILE", help="go on from this checkpoint instead of from a teacher"
    )
    p.add_argument("--updates", type=cli.integer(1, 10**6), default=200, metavar="N", help="of PPO (default: 200)")
    p.add_argument("--lanes", type=cli.integer(4, 2**16), default=128, metavar="N", help="episodes each (default: 128)")
    p.add_argument("--width", type=cli.integer(1, 1024), default=16, metavar="N", help="of the network (default: 16)")
    p.add_argument(
        "--entropy", type=cli.fraction, default=0.001, metavar="WEIGHT", help="of the bonus on entropy (default: 0.001)"
    )
    p.add_argument(
        "--learning-rate", type=cli.fraction, metavar="RATE",
        help="of PPO, falls to 0 (default: 0.001, and 0.003 where a policy begins at random)",
    )  # fmt: skip
    options.add_seed(p)
    p.add_argument(
        "--out", type=cli.output_folder, default=Path("out/policies"), metavar="DIR", help="folder of the checkpoints"
    )
    return p


def arguments(argv: Sequence[str] | None) -> Any:
    """The command line."""
    args = parser().parse_args(argv)
    if args.lanes % ppo.Settings().minibatches:
        cli.fail(f"--lanes {args.lanes} is no multiple of {ppo.Settings().minibatches}; give one that is")
    if args.learning_rate == 0:
        cli.fail("--learning-rate 0 learns nothing; give more, such as 0.001")
    return args


def paid_by(args: Any) -> dict[str, float]:
    """All weights of the reward that is trained under, by name. Fails for one that cannot be."""
    changed = dict(args.weight)
    if len(changed) < len(args.weight):
        cli.fail("--weight: one name stands there twice; give each once")
    paid = reward.PRESETS[args.reward] | changed
    try:
        reward.from_mapping(paid)
    except ValueError as error:
        cli.fail(f"--weight: {error}")
    return paid


def begun(args: Any) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from. Fails when it is of another view or cannot be read."""
    if args.start is None:
        return None
    try:
        start = checkpoint.load(args.start)
    except ValueError as error:
        cli.fail(f"--start: {error}")
    if args.view != [start.view]:
        cli.fail(f"--start: {str(args.start)!r} is a {start.view} policy; give --view {start.view}")
    if start.restores != restores(args.rules):
        with_or_without = "with" if start.restores else "without"
        cli.fail(
            f"--start: {str(args.start)!r} was trained {with_or_without} RESTORE; give --rules {start.about['rules']}"
        )
    return start


def training_scenarios(args: Any) -> list[scenarios.Scenario]:
    """Those asked for, or all built-in ones that are not held out; and generated ones of the training split."""
    many = options.chosen(args.scenario)
    if args.scenario:
        if held := [s.id for s in many if s.held_out]:
            cli.fail(f"--scenario: {held[0]!r} is held out and never trained on; leave it out")
    else:
        many = [s for s in many if not s.held_out]
    return many + [generate(seed, 12 + 2 * (seed % 8), "train") for seed in range(args.generated)]


def best_of_family(
    many: list[scenarios.Scenario], args: Any, paid: dict[str, float], forensics: bool
) -> policies.EvidenceParams:
    """The teachers, (S,): of each scenario the member of the evidence family that earns the most there; without
    forensics, of those that never investigate."""
    arenas = make_arenas(many, args.rules, {args.reward: reward.from_mapping(paid)}, args.personality)
    family = search.sample_family(256, args.seed, arenas[0].env.dims.restore)
    if not forensics:
        family = search.without_forensics(family)
    key = jax.random.fold_in(jax.random.key(args.seed), 5)
    best = []
    for arena in arenas:
        rows = np.arange(len(family.repeats))
        for episodes, kept in ((16, 24), (128, 1)):
            earned = mean_returns(arena, policies.EVIDENCE, take(family, rows), episode_keys(key, episodes))[:, 0]
            rows = rows[np.argsort(-earned)[:kept]]
        best.append(int(rows[0]))
    return take(family, np.asarray(best))


def trained(
    dims: Any,
    view: str,
    params: Params,
    settings: ppo.Settings,
    seed: int,
    taught: policies.EvidenceParams | None,
    start: checkpoint.Checkpoint | None,
) -> tuple[recurrent.Weights, str]:
    """Weights, and the log as CSV: one row an update."""
    rows: list[tuple[str, float, float, float]] = []
    before = settings.clone_updates if taught else settings.critic_updates if start else 0
    with cli.progress(settings.updates + before) as step:

        def advance(phase: str, report: ppo.Report) -> None:
            rows.append((phase, float(report.episode_return), float(report.entropy), float(report.loss)))
            recent = float(np.mean([r[1] for r in rows[-20:]]))
            step(f"{view}: {phase}, return {recent:+.2f}")

        teacher = (policies.EVIDENCE, taught) if taught else None
        weights = ppo.train(dims, view, params, settings, seed, teacher, advance, start.weights if start else None)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("update", "phase", "return", "entropy", "loss"))
    writer.writerows((i, phase, f"{r:.4f}", f"{e:.4f}", f"{x:.4f}") for i, (phase, r, e, x) in enumerate(rows))
    return weights, text.getvalue()


def measure(made: checkpoint.Checkpoint, dims: Any, stacked: list[Params], seed: int) -> list[float]:
    """Mean return on each scenario, on episodes that were not trained on, playing the likeliest action."""
    keys = episode_keys(jax.random.fold_in(jax.random.key(seed), 99), MEASURED)
    one = jax.tree.map(lambda x: np.asarray(x)[None], made.learned)
    policy = recurrent.POLICIES[made.view]
    played = [rollout_many(env.Env(dims), p, policy, one, keys)[0] for p in stacked]
    return [float(stats.episode_return.mean()) for stats in played]
