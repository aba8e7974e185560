"""`python -m scenarios`: list the built-in scenarios, check scenario files, print the JSON schema."""

import argparse
import json
import sys
from collections.abc import Sequence

from scenarios.load import ScenarioError, load, names
from scenarios.model import Scenario


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when all is well, 1 when a file is bad, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m scenarios", description="Attack campaigns as data: list, check, describe."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="show the built-in scenarios as a table")
    validate = commands.add_parser(
        "validate", help="check scenario files, and say what to change in those that are not valid"
    )
    validate.add_argument("files", nargs="+", metavar="FILE", help="a .yaml, .yml or .json file, or a built-in name")
    commands.add_parser("schema", help="print the JSON schema of the file format")
    args = parser.parse_args(argv)
    if args.command == "validate":
        return _validate(args.files)
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


def _table() -> str:
    head = ("id", "assets", "identities", "stages", "horizon", "noise", "held out", "title")
    rows = [head, *(_row(load(name)) for name in names())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(s: Scenario) -> tuple[str, ...]:
    counts = (len(s.assets), len(s.identities), len(s.stages), s.horizon)
    return (s.id, *map(str, counts), f"{s.noise_rate:.2f}", "yes" if s.held_out else "no", s.title)


if __name__ == "__main__":
    raise SystemExit(main())
