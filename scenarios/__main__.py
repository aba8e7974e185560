"""`python -m scenarios`: list the built-in scenarios, check files, make files of generated ones, print the schema."""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxsim_soc import cli
from scenarios.load import GROUPS, ScenarioError, dump, load, names
from scenarios.model import Scenario
from scenarios.wording import show

MAX_COUNT = 10_000  # files of one command


def parser() -> cli.Parser:
    """The commands and their options."""
    p = cli.parser("Attack campaigns as data: list, check, generate, describe.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="show the built-in scenarios as a table")
    validate = commands.add_parser(
        "validate", help="check scenario files, and say what to change in those that are not valid"
    )
    validate.add_argument("files", nargs="+", metavar="FILE", help="a .yaml, .yml or .json file, or a built-in name")
    generate = commands.add_parser("generate", help="write scenario files of networks and campaigns drawn at random")
    generate.add_argument("--entities", default="20", metavar="N", help="in all, 10 to 10000 (default: 20)")
    generate.add_argument("--seed", default="0", metavar="K", help="of the first, one more for each next (default: 0)")
    generate.add_argument("--count", default="1", metavar="N", help=f"files to write, at most {MAX_COUNT} (default: 1)")
    generate.add_argument("--split", default="train", help="train or held_out (default: train)")
    generate.add_argument("--out", required=True, metavar="DIR", help="directory for the files, made if there is none")
    generate.add_argument("--force", action="store_true", help="replace files that exist")
    commands.add_parser("schema", help="print the JSON schema of the file format")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when all is well, 1 when a file is bad, 2 for wrong usage."""
    args = parser().parse_args(argv)
    if args.command == "validate":
        return _validate(args.files)
    if args.command == "generate":
        _generate(args)
        return 0
    print(_table() if args.command == "list" else schema())
    return 0


def schema() -> str:
    """The published JSON schema, as text."""
    return json.dumps(Scenario.model_json_schema(), indent=2, ensure_ascii=False)


def _validate(paths: Sequence[str]) -> int:
    code = 0
    for path in paths:
        try:
            s = load(path)
        except ScenarioError as error:
            print(error, file=sys.stderr)
            code = 1
        else:
            counts = f"{len(s.assets)} assets, {len(s.identities)} identities, {len(s.stages)} stages"
            print(f"{path}: ok ({s.id}: {counts})")
    return code


def _generate(args: argparse.Namespace) -> None:
    # Only here, so that nothing else needs NumPy.
    from scenarios.generate import generate
    from scenarios.networks import MAX_ENTITIES, MAX_SEED, MIN_ENTITIES, SPLITS

    try:
        entities = _whole("--entities", args.entities, MIN_ENTITIES, MAX_ENTITIES)
        count = _whole("--count", args.count, 1, MAX_COUNT)
        first = _whole("--seed", args.seed, 0, MAX_SEED - count + 1)
        if args.split not in SPLITS:
            raise ValueError(f"--split: {show(args.split)} is unknown; choose one of {', '.join(SPLITS)}")
        if not args.out:
            raise ValueError("--out: '' is no directory; give the name of one")
        made = (generate(seed, entities, args.split) for seed in range(first, first + count))
        for path in _write_all(Path(args.out), made, args.force):
            print(path)
    except OSError as error:
        where = error.filename or args.out
        cli.fail(f"{where}: {error.strerror or error}; nothing was written, choose another directory for --out")
    except ValueError as error:
        cli.fail(str(error))


def _whole(option: str, text: str, low: int, high: int) -> int:
    value = int(text) if re.fullmatch(r"[-+]?[0-9]{1,19}", text) else low - 1
    if not low <= value <= high:
        raise ValueError(f"{option}: {show(text)} is not possible; give a whole number from {low} to {high}")
    return value


def _write_all(directory: Path, made: Iterable[Scenario], force: bool) -> list[Path]:
    """Write a file for each scenario. They come into their place only when all of them have been written.

    Raises ValueError when there is such a file already, unless `force`, and OSError when the directory will not do.
    """
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".generate-", dir=directory))
    try:
        paths = []
        for s in made:
            path = directory / f"{s.id}.yaml"
            if path.exists() and not (force and path.is_file()):
                remedy = "remove it" if force else "add --force to replace it"
                raise ValueError(f"{path} exists; {remedy}, or choose another directory for --out")
            (beside / path.name).write_text(dump(s), encoding="utf-8")
            paths.append(path)
        for path in paths:
            os.replace(beside / path.name, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return paths


def _table() -> str:
    head = ("id", "assets", "identities", "stages", "horizon", "noise", "held out", "title")
    rows = [head, *(_row(load(name)) for group in GROUPS for name in names(group))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(s: Scenario) -> tuple[str, ...]:
    counts = (len(s.assets), len(s.identities), len(s.stages), s.horizon)
    return (s.id, *map(str, counts), f"{s.noise_rate:.2f}", "yes" if s.held_out else "no", s.title)


if __name__ == "__main__":
    cli.run(main)
