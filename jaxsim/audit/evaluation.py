"""How baseline policies and fixed plans fare: returns, reward channels, outcomes.

    jaxsim-soc evaluate --policy random heuristic --episodes 4000 --json rows.json --plot rows.png
    jaxsim-soc evaluate --scenario supply_chain_token_drift --policy "plan:MONITOR;ISOLATE_ASSET assets[0]"

Every policy meets the same episodes of a scenario, so a difference between two rows is a difference of policies.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from chex import Array

import scenarios
from jaxsim import BASELINES, SIMULATOR_VERSION, Dims, Env, Params, Policy, options, parse_plan, recurrent
from jaxsim.compile import dims_of
from jaxsim.env import make_params
from jaxsim.one_episode import EpisodeStats, episode_keys
from jaxsim.policies import PLAN
from jaxsim.response import TICK_HOURS, Response, hours, watched
from jaxsim.rollouts import rollout_many
from jaxsim.rules import restores
from jaxsim.types import EXFIL
from jaxsim_soc import cli

Z95 = 1.96  # half a 95 % interval, in standard errors
AT_ONCE = 4096  # episodes whose actions are kept at a time
PLAN_PREFIX, LEARNED_SUFFIX = "plan:", ".safetensors"
# Okabe and Ito's colours: told apart by colour-blind people as well. Hatches go on when they run out.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
HATCHES = ("", "//", "..", "xx")

Row = dict[str, Any]


# --- what to run ----------------------------------------------------------------------------------------------------


def policy_name(text: str) -> str:
    """The type of one value of --policy; a plan's actions are checked once the scenarios are known."""
    if text.startswith(PLAN_PREFIX) or text.endswith(LEARNED_SUFFIX):
        return text
    return cli.one_of([*BASELINES, *recurrent.POLICIES, f"{PLAN_PREFIX}ACTION;ACTION", f"FILE{LEARNED_SUFFIX}"])(text)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    options.add_scenarios(p)
    options.add_personality(p)
    p.add_argument(
        "--policy",
        type=policy_name,
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"{', '.join(BASELINES)}, the learned policies of the project for these rules and this reward "
        f"({', '.join(recurrent.POLICIES)}), a learned policy's FILE{LEARNED_SUFFIX}, or plan:ACTION;ACTION;… with "
        "actions such as MONITOR, 'ISOLATE_ASSET "
        "ci-runner-01' or 'REVOKE_IDENTITY identities[2]', MONITOR after its end "
        f"(default: {' '.join(BASELINES)})",
    )
    options.add_rules(p)
    options.add_reward(p)
    options.add_episodes(p)
    options.add_seed(p)
    p.add_argument("--json", type=cli.output_path, metavar="FILE", help="write the rows here")
    p.add_argument("--plot", type=cli.plot_path, metavar="FILE.png", help="draw the returns here (or .svg, .pdf)")
    return p


def parse_args(argv: Sequence[str] | None) -> Any:
    args = parser().parse_args(argv)
    cli.differ(json=args.json, plot=args.plot)
    args.scenario = options.chosen(args.scenario)
    args.policy = list(dict.fromkeys(args.policy or BASELINES))
    return args


def plans(names: Sequence[str], scenario: scenarios.Scenario, dims: Dims) -> dict[str, np.ndarray]:
    """The actions of each plan among the policies. Fails for an action the scenario does not have."""
    found = {}
    for name in names:
        if name.startswith(PLAN_PREFIX):
            try:
                found[name] = parse_plan(name.removeprefix(PLAN_PREFIX), scenario, dims)
            except ValueError as error:
                cli.fail(f"--policy: {error}")
    return found


def learned(name: str, rules: str, reward: str) -> tuple[Policy, Any]:
    """A policy that `train-policy` made: the project's own of a view, or a file. Fails when there is none."""
    cli.need("safetensors", "a learned policy")
    from jaxsim.audit import checkpoint

    try:
        made = checkpoint.load(checkpoint.own(rules, reward, name) if name in recurrent.POLICIES else name)
    except ValueError as error:
        cli.fail(f"--policy: {error}")
    if made.restores and not restores(rules):
        cli.fail(
            f"--policy: {name!r} was trained to RESTORE, which --rules {rules} do not bring; add +liftable to them"
        )
    return recurrent.POLICIES[made.view], made.learned


def policies(args: Any, scenario: scenarios.Scenario, dims: Dims) -> dict[str, tuple[Policy, Any]]:
    """Each policy and its parameters."""
    names = args.policy
    chosen = {name: BASELINES[name] for name in names if name in BASELINES}
    chosen |= {name: (PLAN, actions) for name, actions in plans(names, scenario, dims).items()}
    made = [name for name in names if name in recurrent.POLICIES or name.endswith(LEARNED_SUFFIX)]
    chosen |= {name: learned(name, args.rules, args.reward) for name in made}
    return {name: chosen[name] for name in names}


# --- rows -----------------------------------------------------------------------------------------------------------


def outcome(stats: Any) -> Row:
    """Means over the episodes of `jaxsim.rollout`. The spread is the population's, the error that of the mean."""
    n = len(stats.length)
    contained = float(stats.signals.containments.sum(dtype=float))

    def share(some: np.ndarray) -> float | None:
        """Of the containments."""
        return float(some.sum(dtype=float)) / contained if contained else None

    returns = stats.episode_return.astype(float)
    spread = float(returns.std())
    return {
        "n": n,
        "mean_return": float(returns.mean()),
        "std_return": spread,
        "se_return": spread / math.sqrt(n - 1) if n > 1 else None,
        "mean_length": float(stats.length.mean()),
        "mean_stages": float(stats.succeeded.mean()),
        "exfil_rate": float((stats.end == EXFIL).mean()),
        "mean_confirmed": float(stats.signals.confirmed.mean(dtype=float)),
        "invalid_rate": float(stats.signals.invalid.sum(dtype=float) / stats.length.sum()),
        "channels": {k: float(v.mean(dtype=float)) for k, v in stats.channels._asdict().items()},
        "downtime": float(stats.downtime.mean(dtype=float)),
        "hours_of_downtime": float(stats.downtime.mean(dtype=float)) * TICK_HOURS,
        "evidence_backed": share(stats.signals.evidence_backed),
        "recontained": share(stats.signals.recontained),
        "false_containments": share(stats.signals.false_positives),
        "blind_rate": float(stats.blind.mean()),
    }


def played(
    env: Env, params: Params, policy: Policy, parameters: Any, key: Array, episodes: int
) -> tuple[EpisodeStats, Response]:
    """What `jaxsim.rollout` gives, and the times of its episodes; so many at once that their actions fit in memory."""
    one = jax.tree.map(lambda x: np.asarray(x)[None], parameters)
    parts = []
    for first in range(0, episodes, AT_ONCE):
        keys = episode_keys(key, min(AT_ONCE, episodes - first), first)
        stats, trajectory = rollout_many(env, params, policy, one, keys, record=True)
        assert trajectory is not None
        times = watched(env, params, keys, trajectory.action[0]).response
        parts.append((jax.tree.map(lambda x: x[0], stats), times))
    whole: tuple[EpisodeStats, Response] = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return whole


def evaluate(args: Any) -> list[Row]:
    """One row for each scenario and policy."""
    dims = dims_of(args.scenario, restores(args.rules))
    env, key = Env(dims), jax.random.key(args.seed)
    work = [
        (scenario, name, *chosen)
        for scenario in args.scenario
        for name, chosen in policies(args, scenario, dims).items()
    ]
    about = {"seed": args.seed, "version": cli.version(), "simulator_version": SIMULATOR_VERSION}
    rows = []
    for scenario, name, policy, parameters in progress(work):
        params = make_params(scenario, dims, args.rules, args.reward, args.personality)
        stats, times = played(env, params, policy, parameters, key, args.episodes)
        row = {"scenario": scenario.id, "personality": args.personality, "policy": name}
        rows.append({**row, "rules": args.rules, "reward": args.reward, **outcome(stats), **hours(times), **about})
    return rows


# --- for people -----------------------------------------------------------------------------------------------------


def progress(work: Sequence[Any]) -> Any:
    """The items of `work`, with a bar on stderr that goes away."""
    from rich.console import Console
    from rich.progress import track

    return track(work, "simulating", console=Console(stderr=True), transient=True)


def interval(row: Row) -> float:
    """Half the 95 % interval of a row's mean return; 0 for a single episode."""
    return Z95 * (row["se_return"] or 0.0)


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    title = f"{first['n']} episodes, attacker {first['personality']}, rules {first['rules']}, reward {first['reward']}"
    table = Table(title=title, title_justify="left")
    table.add_column("scenario", no_wrap=True)
    table.add_column("policy", overflow="fold", max_width=44)
    for name in ("return ± 95 %", "length", "stages", "exfil %", "downtime"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        new = i == 0 or rows[i - 1]["scenario"] != row["scenario"]
        if new and i:
            table.add_section()
        numbers = (
            f"{row['mean_return']:.3f} ± {interval(row):.3f}",
            f"{row['mean_length']:.1f}",
            f"{row['mean_stages']:.2f}",
            f"{100 * row['exfil_rate']:.1f}",
            f"{row['downtime']:.1f}",
        )
        table.add_row(row["scenario"] if new else "", row["policy"], *numbers)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def wrapped(name: str, width: int) -> str:
    """A name broken into lines at its underscores and spaces."""
    spaced = name.replace("_", "_ ").replace(";", "; ")
    lines = textwrap.wrap(spaced, width, break_on_hyphens=False)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw the returns: a group of bars for each scenario, a bar with its 95 % interval for each policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row["scenario"] for row in rows))
    names = list(dict.fromkeys(row["policy"] for row in rows))
    bar = min(0.25, 0.8 / len(names))
    wide = min(40.0, max(6.4, 1.2 + len(groups) * max(1.7, 0.42 * len(names))))
    figure = Figure(figsize=(wide, 4.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, name in enumerate(names):
        mine = [row for row in rows if row["policy"] == name]
        axes.bar(
            [groups.index(row["scenario"]) + (i - (len(names) - 1) / 2) * bar for row in mine],
            [row["mean_return"] for row in mine],
            width=0.92 * bar,
            yerr=[interval(row) for row in mine],
            label=wrapped(textwrap.shorten(name, 90, placeholder=" …"), 44),
            color=COLOURS[i % len(COLOURS)],
            hatch=HATCHES[i // len(COLOURS) % len(HATCHES)],
            edgecolor="white",
            error_kw={"ecolor": "#222222", "elinewidth": 1.1, "capsize": min(4.0, 24 * bar)},
        )
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [wrapped(name, 18) for name in groups])
    axes.set_ylabel("mean return, points")
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.margins(y=0.08)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    first = rows[0]
    axes.set_title(
        f"{first['n']:,} episodes, 95 % intervals; attacker {first['personality']}, reward {first['reward']}",
        loc="left",
        fontsize=10,
    )
    figure.legend(loc="outside lower center", ncols=columns(names, wide), frameon=False)
    cli.write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower()))


def columns(names: Sequence[str], inches: float) -> int:
    """How many columns a legend of `names` has room for."""
    longest = max(len(line) for name in names for line in wrapped(name, 44).split("\n"))
    return max(1, min(len(names), int(11 * inches) // (longest + 8)))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, simulate, write the files, print the table."""
    args = parse_args(argv)
    cli.need("rich", "the table")
    if args.plot:
        cli.need("matplotlib", "--plot")
    rows = evaluate(args)
    if args.json:
        cli.write_json(args.json, rows)
    if args.plot:
        plot(args.plot, rows)
    show(rows)
