"""`python -m scenarios`: list the built-in scenarios, begin, check and draw one, make files of generated ones and of
incidents.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxsim_soc import cli
from scenarios.load import GROUPS, ScenarioError, dump, load, names
from scenarios.model import ID_PATTERN, MAX_TICKS, TICK_MINUTES, Scenario
from scenarios.read import plain
from scenarios.wording import show

MAX_COUNT = 10_000  # files of one command


def parser() -> cli.Parser:
    """The commands and their options."""
    p = cli.parser("Attack campaigns as data: list, begin, check, draw, generate, import, export, describe.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="show the built-in scenarios as a table")
    validate = commands.add_parser(
        "validate", help="check scenario files, and say what to change in those that are not valid"
    )
    validate.add_argument("files", nargs="+", metavar="FILE", help="a .yaml, .yml or .json file, or a built-in name")
    new = commands.add_parser("new", help="begin a scenario: write a commented file to fill in")
    new.add_argument("id", metavar="ID", type=_id, help="its name, and that of the file")
    _add_out(new, ".")
    check = commands.add_parser(
        "check", help="check as `validate` does, and say of valid scenarios what is odd and what to do about it"
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="a .yaml, .yml or .json file, or a built-in name")
    draw = commands.add_parser("draw", help="draw scenarios, attack and network, as SVG files")
    draw.add_argument("names", nargs="+", metavar="NAME", help="a built-in scenario, or a file")
    _add_out(draw, ".")
    generate = commands.add_parser("generate", help="write scenario files of networks and campaigns drawn at random")
    generate.add_argument("--entities", default="20", metavar="N", help="in all, 10 to 10000 (default: 20)")
    generate.add_argument("--seed", default="0", metavar="K", help="of the first, one more for each next (default: 0)")
    generate.add_argument("--count", default="1", metavar="N", help=f"files to write, at most {MAX_COUNT} (default: 1)")
    generate.add_argument("--split", default="train", help="train or held_out (default: train)")
    _add_out(generate)
    from_flows = commands.add_parser(
        "import", help="make scenario files, each with a report, of incidents in Attack Flow files (STIX or .afb)"
    )
    from_flows.add_argument("files", nargs="+", metavar="FILE", help="a STIX bundle (.json) or a Builder file (.afb)")
    _add_out(from_flows, ".")
    from_flows.add_argument(
        "--prior", default="central", help="what is assumed: pessimistic, central or optimistic (default: central)"
    )
    from_flows.add_argument("--minutes", metavar="N", help="how long the attack took in all, if that is known")
    from_flows.add_argument(
        "--join", default="any", help="whether an action after several lines needs any or all of them (default: any)"
    )
    to_flow = commands.add_parser(
        "export-flow", help="write scenarios as Attack Flow files (STIX), to be imported again"
    )
    to_flow.add_argument("names", nargs="+", metavar="NAME", help="a built-in scenario, or a file")
    _add_out(to_flow, ".")
    commands.add_parser("schema", help="print the JSON schema of the file format")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when all is well, 1 when a file is bad, 2 for wrong usage."""
    args = parser().parse_args(argv)
    if args.command in ("validate", "check"):
        return _validate(args.files, odd=args.command == "check")
    if args.command == "import":
        return _import(args)
    if args.command == "export-flow":
        from scenarios.export_flow import export_flow

        return _write_each(args, "json", export_flow)
    if args.command == "draw":
        cli.need("matplotlib", "a picture")
        from scenarios.picture import picture

        return _write_each(args, "svg", picture)
    if args.command in ("generate", "new"):
        (_generate if args.command == "generate" else _new)(args)
        return 0
    print(_table() if args.command == "list" else schema())
    return 0


def schema() -> str:
    """The published JSON schema, as text."""
    return json.dumps(Scenario.model_json_schema(), indent=2, ensure_ascii=False)


def _validate(paths: Sequence[str], odd: bool) -> int:
    from scenarios.oddities import checked

    code = 0
    for path in paths:
        try:
            s, found = checked(path) if odd else (load(path), [])
        except ScenarioError as error:
            print(error, file=sys.stderr)
            code = 1
        else:
            counts = f"{len(s.assets)} assets, {len(s.identities)} identities, {len(s.stages)} stages"
            print(f"{path}: ok ({s.id}: {counts})", *found, sep="\n")
    return code


def _new(args: argparse.Namespace) -> None:
    from scenarios.oddities import TEMPLATE_ID, template

    text = template().replace(f"id: {TEMPLATE_ID}\n", f"id: {args.id}\n").replace("check FILE", f"check {args.id}.yaml")
    _write(args, [(f"{args.id}.yaml", text)])


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
        made = (generate(seed, entities, args.split) for seed in range(first, first + count))
        _write(args, ((f"{s.id}.yaml", dump(s)) for s in made))
    except ValueError as error:
        cli.fail(str(error))


def _import(args: argparse.Namespace) -> int:
    from scenarios import priors
    from scenarios.import_report import report
    from scenarios.imported import import_flow

    minutes, code = None, 0
    try:
        for option, text, known in (("prior", args.prior, priors.SETTINGS), ("join", args.join, ("any", "all"))):
            if text not in known:
                raise ValueError(f"--{option}: {show(text)} is unknown; choose one of {', '.join(known)}")
        if args.minutes is not None:
            minutes = _whole("--minutes", args.minutes, 1, TICK_MINUTES * MAX_TICKS)
    except ValueError as error:
        cli.fail(str(error))
    files: list[tuple[str, str]] = []
    for path in args.files:
        try:
            imported = import_flow(path, args.prior, args.join == "all", minutes)
        except ScenarioError as error:
            print(error, file=sys.stderr)
            code = 1
        else:
            name = imported.scenario.id
            files += [(f"{name}.yaml", dump(imported.scenario)), (f"{name}.md", report(imported))]
    _write(args, files)
    return code


def _write_each(args: argparse.Namespace, suffix: str, text: Callable[[Scenario], str]) -> int:
    """Write a file of what `text` makes of each scenario that is named."""
    files, code = [], 0
    for name in args.names:
        try:
            s = load(name)
        except ScenarioError as error:
            print(error, file=sys.stderr)
            code = 1
        else:
            files.append((f"{s.id}.{suffix}", text(s)))
    _write(args, files)
    return code


def _whole(option: str, text: str, low: int, high: int) -> int:
    value = int(text) if re.fullmatch(r"[-+]?[0-9]{1,19}", text) else low - 1
    if not low <= value <= high:
        raise ValueError(f"{option}: {show(text)} is not possible; give a whole number from {low} to {high}")
    return value


def _add_out(p: argparse.ArgumentParser, default: str | None = None) -> None:
    """--out, which must be given unless there is a default, and --force: what `_write` reads."""
    shown = "this one" if default else "none, it must be given"
    p.add_argument(
        "--out", type=_directory, default=default, required=default is None, metavar="DIR",
        help=f"directory for the files, made if there is none (default: {shown})",
    )  # fmt: skip
    p.add_argument("--force", action="store_true", help="replace files that exist")


def _id(text: str) -> str:
    """The type of the id of a new scenario, which is the name of its file as well."""
    if re.fullmatch(ID_PATTERN, text) and plain(text) == text:
        return text
    remedy = "at most 64 letters, digits, '.', '_' and '-', beginning with a letter or digit, and no word of YAML"
    raise argparse.ArgumentTypeError(f"{text!r:.80} is no id; give {remedy}")


def _directory(text: str) -> str:
    """The type of --out, checked before anything is read or made."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no directory; give the name of one")
    return text


def _write(args: argparse.Namespace, files: Iterable[tuple[str, str]]) -> None:
    """Write files, given by name and text, into --out, and print their paths; end with one line if that cannot be."""
    try:
        for path in _write_all(Path(args.out), files, args.force):
            print(path)
    except OSError as error:
        where = error.filename or args.out
        cli.fail(f"{where}: {error.strerror or error}; nothing was written, choose another directory for --out")
    except ValueError as error:
        cli.fail(str(error))


def _write_all(directory: Path, files: Iterable[tuple[str, str]], force: bool) -> list[Path]:
    """Write files by name. They come into their place only when all of them have been written.

    Raises ValueError when there is such a file already, unless `force`, and OSError when the directory will not do.
    """
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".scenarios-", dir=directory))
    try:
        paths: list[Path] = []
        for name, text in files:
            path = directory / name
            if path in paths:
                raise ValueError(f"{path} would be written twice; nothing was written, write one of the two elsewhere")
            if path.exists() and not (force and path.is_file()):
                remedy = "remove it" if force else "add --force to replace it"
                raise ValueError(f"{path} exists; {remedy}, or choose another directory for --out")
            (beside / name).write_text(text, encoding="utf-8")
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
