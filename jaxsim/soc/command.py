"""Episodes as the tools of a SOC read them: OCSF events, STIX with Attack Flow, layers of the ATT&CK Navigator.

    jaxsim-soc export-soc run --scenario insider_repo_pivot --policy heuristic --episodes 100 --out DIR
    jaxsim-soc export-soc episode RECORD.json --out DIR
    jaxsim-soc export-soc check DIR

Alerts and actions hold what the defender saw and did; what was true is in files of their own.
"""

import argparse
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from chex import Array

import scenarios
from jaxsim import SIMULATOR_VERSION, Env, Params, Policy, noise, options
from jaxsim.audit import evaluation
from jaxsim.compile import dims_of
from jaxsim.env import make_params
from jaxsim.one_episode import episode_keys
from jaxsim.replays import load_record, plan_of
from jaxsim.rollouts import rollout_many
from jaxsim.rules import restores
from jaxsim.soc import export, validators
from jaxsim.soc.episodes import Episode, episodes
from jaxsim.soc.ocsf import make_site
from jaxsim_soc import cli, write

SHOWN = 3  # lines with problems, of each kind of file
AT_ONCE = 256  # episodes that are played and held in memory
START = "2026-01-01T00:00:00Z"
FIRST_YEAR, LAST_YEAR = 1970, 2200


def instant(text: str) -> datetime:
    """The type of --start."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = datetime.min
    if not FIRST_YEAR <= when.year <= LAST_YEAR:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} is no time from {FIRST_YEAR} to {LAST_YEAR}; give one such as {START}"
        )
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def parser() -> cli.Parser:
    """The two commands and their options."""
    p = cli.parser(__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="play policies, and export their episodes; a folder for each of them")
    options.add_scenarios(run)
    options.add_personality(run)
    run.add_argument(
        "--policy",
        type=evaluation.policy_name,
        nargs="+",
        action="extend",
        metavar="NAME",
        help="as in jaxsim-soc evaluate (default: heuristic)",
    )
    options.add_rules(run)
    options.add_reward(run)
    options.add_episodes(run, 100)
    options.add_seed(run)
    episode = commands.add_parser("episode", help="export one episode, of a replay record")
    episode.add_argument("record", type=cli.input_file, metavar="RECORD.json", help="as an audit writes it")
    check = commands.add_parser("check", help="hold exports against validators that are not ours; 1 if one objects")
    check.add_argument("folders", type=cli.input_folder, nargs="+", metavar="DIR", help="what was written by --out")
    for each in (run, episode):
        each.add_argument("--out", type=cli.output_folder, required=True, metavar="DIR", help="a new or empty folder")
        each.add_argument("--force", action="store_true", help="replace an earlier export in DIR")
        each.add_argument(
            "--start",
            type=instant,
            default=instant(START),
            metavar="TIME",
            help=f"when every episode begins (default: {START})",
        )
        each.add_argument(
            "--only",
            type=cli.one_of(export.NAMES),
            nargs="+",
            action="extend",
            metavar="FORMAT",
            help=f"some of {', '.join(export.NAMES)} (default: all)",
        )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, play, write; print what was written. Or check what was; 1 if that is not valid."""
    args = parser().parse_args(argv)
    if args.command == "check":
        return _check(args.folders)
    args.out = _free(Path(os.path.realpath(args.out)), args.force)
    with write.folder(args.out) as part:
        told = _episode(args, part) if args.command == "episode" else _run(args, part)
    for line in told:
        print(line)
    return 0


def _check(folders: Sequence[Path]) -> int:
    for package in validators.PACKAGES:
        cli.need(package, "this command", "bench,soc")
    paths = list[Path]()
    for folder in folders:
        if not (found := validators.files(folder)):
            cli.fail(f"{str(folder)!r} holds no export; give a folder that export-soc wrote")
        paths += found
    counts, wrong = Counter[str](), Counter[str]()
    with cli.progress() as advance:
        for path in paths:
            for number, problems in enumerate(validators.check(path), 1):
                counts[path.name] += 1
                wrong[path.name] += bool(problems)
                if problems and wrong[path.name] <= SHOWN:
                    print(f"{path}:{number}: {problems[0]:.300} (1 of {len(problems)})")
                advance(str(path))
    for file, count in counts.items():
        names = " and ".join(validator.__name__ for validator in validators.VALIDATORS[file])
        print(f"{file}: {count:,} checked by {names}, {wrong[file]:,} with problems")
    return int(any(wrong.values()))


def _free(out: Path, force: bool) -> Path:
    """The folder to write. Fails for one that holds anything but an export that may be replaced."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / export.NOTE).is_file():
            cli.fail(f"--out {str(out)!r} has other files in it; give a new or an empty folder")
        if not force:
            cli.fail(f"--out {str(out)!r} holds an export already; give another folder, or --force to replace it")
    return out


def _episode(args: Any, place: Path) -> list[str]:
    try:
        record = load_record(args.record)
        game = plan_of(record)
    except ValueError as error:  # a ScenarioError is one
        cli.fail(str(error))
    return [_said(args.out, write_record(place, record, *game, args.start, args.only or export.NAMES))]


def write_record(
    place: Path,
    record: dict[str, Any],
    scenario: scenarios.Scenario,
    env: Env,
    params: Params,
    plan: Array,
    start: datetime,
    only: Sequence[str] = export.NAMES,
) -> dict[str, int]:
    """Export the episode of a record, of which `replays.plan_of` gives the game and the plan. Lines of each file."""
    key, number = noise.root(record["seed"]), record["episode"]
    about = {name: record[name] for name in ("rules", "personality", "seed", "episode")}
    actions = hashlib.sha256(json.dumps(record["actions"]).encode()).hexdigest()
    found = episodes(scenario, env, params, key, number, plan[None])
    return _written(place, scenario, "record", about | {"actions": actions}, found, start, only)


def _run(args: Any, place: Path) -> list[str]:
    chosen, args.policy = options.chosen(args.scenario), list(dict.fromkeys(args.policy or ["heuristic"]))
    dims = dims_of(chosen, restores(args.rules))
    env, told = Env(dims), list[str]()
    work = [(s, *named) for s in chosen for named in _named(evaluation.policies(args, s, dims))]
    with cli.progress(len(work) * args.episodes) as advance:
        for scenario, folder, name, policy, parameters in work:
            params = make_params(scenario, dims, args.rules, args.reward, args.personality)
            inner = place / scenario.id / folder
            inner.mkdir(parents=True)
            about = {name: getattr(args, name) for name in ("rules", "personality", "seed")}
            found = played(scenario, env, params, policy, parameters, jax.random.key(args.seed), args.episodes)
            counted = _counting(found, lambda what=f"{scenario.id}, {name:.40}": advance(what))
            lines = _written(inner, scenario, name, about, counted, args.start, args.only or export.NAMES)
            told.append(_said(args.out / inner.relative_to(place), lines))
    cli.write_json(place / export.NOTE, {"version": cli.version(), "folders": [f"{s.id}/{x}" for s, x, *_ in work]})
    return told


def _named(policies: dict[str, tuple[Policy, Any]]) -> Iterator[tuple[str, str, Policy, Any]]:
    """(name of a folder, name, policy, parameters) of each."""
    taken: set[str] = set()
    for i, (name, chosen) in enumerate(policies.items()):
        short = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem if name.endswith(".safetensors") else name).strip("-")[
            :40
        ]
        folder = short if short and short not in taken else f"{short}-{i}"
        taken.add(folder)
        yield folder, name, *chosen


def played(
    scenario: scenarios.Scenario,
    env: Env,
    params: Params,
    policy: Policy,
    parameters: Any,
    key: Array,
    many: int,
) -> Iterator[Episode]:
    """The first `many` episodes of `key` under a policy; AT_ONCE of them are held in memory."""
    one = jax.tree.map(lambda x: np.asarray(x)[None], parameters)
    for first in range(0, many, AT_ONCE):  # the last are as many, for the sake of one program
        _, trajectory = rollout_many(env, params, policy, one, episode_keys(key, AT_ONCE, first), record=True)
        assert trajectory is not None
        yield from islice(episodes(scenario, env, params, key, first, trajectory.action[0]), many - first)


def _counting(found: Iterator[Episode], one_more: Any) -> Iterator[Episode]:
    for one in found:
        yield one
        one_more()


def _written(
    place: Path,
    scenario: scenarios.Scenario,
    defender: str,
    about: dict[str, Any],
    found: Iterator[Episode],
    start: datetime,
    only: Sequence[str],
) -> dict[str, int]:
    """Write a folder; the number of lines of each file."""
    game = {"simulator_version": SIMULATOR_VERSION, "scenario": scenarios.digest(scenario)} | about
    where = make_site(scenario, defender, json.dumps(game, sort_keys=True), start, cli.version())
    note = {"scenario": scenario.id, "policy": defender, **about, "simulator_version": SIMULATOR_VERSION}
    note |= {"version": cli.version(), "start": start.isoformat()}
    return export.write(place, where, found, note, only)


def _said(folder: Path, lines: dict[str, int]) -> str:
    """A line on what is in a folder."""
    said = ", ".join(f"{count} lines in {file}" for file, count in lines.items())
    return f"{folder}: {said or 'layers'}"
