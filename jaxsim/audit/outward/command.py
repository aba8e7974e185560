"""Does a Gymnasium environment pay for reading what it shows? The best plan that reads nothing, against what reads.

    jaxsim-soc audit-gymnasium FrozenLake-v1 --env-kwargs '{"is_slippery": false}'
    jaxsim-soc audit-gymnasium package.envs:Own-v0 --policy policies.py:greedy --horizon 100

Actions have to be Discrete or MultiDiscrete. Without --policy one is trained with Stable-Baselines3. The verdict is no
certificate: it says what was found, by this search and beside this policy.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import gymnasium

from jaxsim.audit.outward import episodes, plans, readers, verdict
from jaxsim.audit.outward.episodes import Refused, World
from jaxsim_soc import cli

CHECKED = 4  # episodes that are played again
SHOWN = 40  # runs of a plan that the report shows


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, audit (or replay), report."""
    args = parser().parse_args(argv)
    try:
        for name in args.imports:
            readers.module(name)
        if args.replay:
            replay(args.replay)
            return
        if args.environment is None:
            raise Refused("no environment is given; name one, such as FrozenLake-v1")
        reader = readers.brought(args.policy) if args.policy else None
        world = World(episodes.game(args.environment, args.env_kwargs, args.horizon), args.lanes)
        audit(world, reader, args)
    except Refused as error:
        cli.fail(str(error))


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("environment", nargs="?", metavar="ID", help="as gymnasium.make takes it: Name-v0 or module:Name-v0")
    p.add_argument("--env-kwargs", type=mapping, default={}, metavar="JSON", help="arguments of the environment")
    p.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="a module, or a .py file, that registers environments; may be given again",
    )  # fmt: skip
    p.add_argument(
        "--policy", metavar="NAME",
        help="MODULE:FUNCTION or FILE.py:FUNCTION, a function of (observation, info) that gives an action, or one "
        "without arguments that makes such a function for each episode (default: PPO is trained)",
    )  # fmt: skip
    p.add_argument("--budget", choices=list(plans.EFFORTS), default="small", help="how hard to search and to train")
    p.add_argument("--episodes", type=cli.integer(2, 10**6), metavar="N", help="of the verdict (default: the budget's)")
    p.add_argument(
        "--horizon", type=cli.integer(1, 10**5), metavar="N",
        help=f"cut episodes off after so many steps (default: the environment's limit, or {episodes.HORIZON})",
    )  # fmt: skip
    p.add_argument(
        "--lanes", type=cli.integer(1, 4096), default=1, metavar="N",
        help="play so many plans in step, where the environment comes with a vector environment of its own",
    )  # fmt: skip
    p.add_argument(
        "--minutes", type=cli.integer(1, 10**5), default=10, metavar="N",
        help="the search, and the training, take no longer (default: 10)",
    )  # fmt: skip
    p.add_argument("--seed", type=cli.seed, default=0, metavar="INT", help="of the search and of the episodes")
    p.add_argument(
        "--out", type=cli.output_folder, default=Path("out/gymnasium"), metavar="DIR", help="folder of the report"
    )
    p.add_argument("--replay", type=cli.input_file, metavar="FILE", help="play a witness again and stop")
    return p


def mapping(text: str) -> dict[str, Any]:
    """The type of an argument that is a JSON object."""
    try:
        found = json.loads(text, parse_constant=float.fromhex)  # which raises for NaN
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    raise argparse.ArgumentTypeError(f"{text!r:.60} is no JSON object; give one, such as '{{\"size\": 4}}'")


def audit(world: World, reader: readers.Reader | None, args: Any) -> None:
    """Check, search, train, judge, report."""
    began, effort, seconds = time.monotonic(), plans.EFFORTS[args.budget], 60.0 * args.minutes
    sizes = (CHECKED, 2 * effort.select, args.episodes or effort.episodes)
    checked, searched, reported = episodes.seeds_of(args.seed, sizes)
    with cli.progress() as advance:
        advance("the same episodes again")
        varies = episodes.check(world, checked)
        if reader is not None:
            episodes.play_policy(world, reader, checked[:1])  # what is wrong with it is said now
        found = plans.search(world, effort, searched, varies, seconds, args.seed, advance)
        who, brought = f"brought, {args.policy}", reader is not None
        if reader is None:
            advance("training a policy that reads")
            reader, who = readers.trained(world, effort.train, seconds, args.seed)
        advance("verdict")
        played = verdict.play(world, found, reader, reported)
    compared = verdict.compare(played, args.seed)
    judged, why = verdict.judge(compared, brought)
    document = described(world, found, played, compared, args) | {
        "verdict": judged,
        "why": why,
        "reading_policy": who,
        "varies_with_the_seed": varies,
        "seconds": round(time.monotonic() - began, 1),
    }
    write(args.out, document, witnesses(world, played, compared, reported))
    print(f"{document['verdict']}: {document['why']}")
    print(f"EVG {value(document, 'evg')}, EVG_norm {value(document, 'evg_norm')}; report in {args.out} (report.md, "
          "report.json, witnesses)")  # fmt: skip


def described(
    world: World, found: plans.Found, played: dict[str, episodes.Played], c: verdict.Compared, args: Any
) -> dict[str, Any]:
    """What was done and found, for JSON: NaN is null there."""
    acts = world.table.tolist()
    estimates = {"evg": c.evg, "evg_norm": c.evg_norm, "gain": c.gain}
    return {
        "version": cli.version(),
        "gymnasium": gymnasium.__version__,
        "environment": world.game.id,
        "kwargs": world.game.kwargs,
        "horizon": world.game.horizon,
        "actions": len(acts),
        "seed": args.seed,
        "budget": {"name": args.budget, **plans.EFFORTS[args.budget]._asdict()},
        "search": {
            "steps": found.steps, "steps_allowed": found.budget, "plans": found.plans,
            "constant_plans": found.constants, "episodes_of_finalists": found.select,
        },
        "episodes": len(played[verdict.PLAN].returns),
        "best_blind": c.blind,
        "baseline": c.baseline,
        **{k: None if math.isnan(e.value) else e.value for k, e in estimates.items()},
        **{f"{k}_ci": None if math.isnan(e.value) else [e.low, e.high] for k, e in estimates.items()},
        "policies": [verdict.row(name, p, args.seed) for name, p in played.items()],
        "plan": [acts[a] for a in found.plan[: played[verdict.PLAN].lengths.max()].tolist()],
        "constant": acts[found.constant],
    }  # fmt: skip


def witnesses(
    world: World, played: dict[str, episodes.Played], c: verdict.Compared, seeds: list[int]
) -> dict[str, dict[str, Any]]:
    """The same episode by the policy that reads and by the best that does not: that with the median difference."""
    order = (played[verdict.READING].returns - played[c.blind].returns).argsort(kind="stable")
    j = int(order[len(order) // 2])
    return {name: episodes.witness(world, played[name], j, seeds[j]) for name in (verdict.READING, c.blind)}


# --- the report -----------------------------------------------------------------------------------------------------


def write(out: Path, document: dict[str, Any], shown: dict[str, dict[str, Any]]) -> None:
    """All files; report.json last, so that it is there only when the rest is."""
    (out / "witnesses").mkdir(parents=True, exist_ok=True)
    for name, record in shown.items():
        cli.write_json(out / "witnesses" / f"{name}.json", record)
    document["witnesses"] = {name: f"witnesses/{name}.json" for name in shown}
    cli.write_text(out / "report.md", markdown(document, out))
    cli.write_json(out / "report.json", document)


def value(document: dict[str, Any], name: str) -> str:
    """An estimate with its interval."""
    if document[name] is None:
        return "n/a"
    low, high = document[f"{name}_ci"]
    return f"{document[name]:.2f} [{low:.2f}, {high:.2f}]"


def plan_text(plan: list[Any]) -> str:
    """A plan, an action that is repeated written once."""
    runs = [(action, len(list(same))) for action, same in groupby(plan)]
    words = [f"{action} × {n}" if n > 1 else str(action) for action, n in runs[:SHOWN]]
    return "; ".join([*words, "…"] if len(runs) > SHOWN else words)


def markdown(d: dict[str, Any], out: Path) -> str:
    """The report for people."""
    search = d["search"]
    short = "" if search["steps_allowed"] == d["budget"]["steps"] else " (fewer than the budget's, for --minutes)"
    lines = [
        f"# Audit of {d['environment']}",
        "",
        f"**{d['verdict']}**: {d['why']}.",
        "",
        "This is no certificate: a better plan or a better policy may be there. What was found:",
        "",
        "| policy | return [95 %] | std | steps | cut off |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p['policy']} | {value(p, 'return')} | {p['std']:.2f} | {p['length']:.1f} | {p['cut_off']:.0%} |"
        for p in d["policies"]
    ]
    lines += [
        "",
        f"- EVG, the reading policy less the best that reads nothing ({d['best_blind']}): {value(d, 'evg')}",
        f"- gain, the reading policy less the baseline ({d['baseline']}): {value(d, 'gain')}",
        f"- EVG_norm, EVG as a share of the gain: {value(d, 'evg_norm')}",
        f"- {d['episodes']} episodes that neither the search nor the training saw; differences are paired, intervals "
        "are of 95 %, by bootstrap",
        f"- reading policy: {d['reading_policy']}",
        f"- open-loop plan: {plan_text(d['plan'])}",
        f"- constant action: {d['constant']}",
        f"- search: {search['plans']} plans and {search['constant_plans']} of {d['actions']} constant ones in "
        f"{search['steps']} steps, {search['steps_allowed']} allowed{short}; finalists in "
        f"{search['episodes_of_finalists']} episodes",
        f"- environment: arguments `{json.dumps(d['kwargs'])}`, episodes of at most {d['horizon']} steps, "
        + ("which differ by their seeds" if d["varies_with_the_seed"] else "the same with every seed that was tried"),
        f"- seed {d['seed']}, budget `{d['budget']['name']}`, {d['seconds']} s, gymnasium {d['gymnasium']}",
        "",
        "The same episode by both, tick by tick:",
        "",
        *(f"    jaxsim-soc audit-gymnasium --replay {out / path}" for path in d["witnesses"].values()),
    ]
    return "\n".join(lines) + "\n"


def replay(path: Path) -> None:
    """Play a witness again, step by step."""
    try:
        steps = episodes.replay(episodes.read_witness(path.read_text("utf-8", "replace")))
    except Refused as error:
        raise Refused(f"{path}: {error}") from None
    print("step  action  reward  return")
    total = 0.0
    for t, (action, reward) in enumerate(steps):
        total += reward
        print(f"{t:>4}  {action!s:>6}  {reward:>6g}  {total:>6g}")
    print(f"return {total:g} in {len(steps)} steps, as recorded")
