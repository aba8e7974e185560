"""Play a witness of the audit, or any replay record, tick by tick.

jaxsim-soc replay out/sweep/witnesses/supply_chain_token_drift-classic-evidence-farming.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxsim.audit.witness import tick_rows
from jaxsim.replays import load_record, play_record
from jaxsim_soc import cli


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("record", type=cli.input_file, metavar="RECORD.json", help="as an audit or an evaluation writes it")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, play, print."""
    replay(terminal(), parser().parse_args(argv).record)


def terminal() -> Console:
    """Standard output; a pipe has no width of its own."""
    return Console(width=None if sys.stdout.isatty() else 150)


def replay(console: Console, path: Path) -> None:
    """Print a witness tick by tick."""
    try:
        record = load_record(path)
        scenario, env, played = play_record(record)
    except ValueError as error:  # a ScenarioError is one
        cli.fail(str(error))
    show(console, record, tick_rows(scenario, env.dims, played), float(played.reward.sum()))


def show(console: Console, record: dict[str, Any], rows: list[dict[str, str]], total: float) -> None:
    """A witness, tick by tick."""
    reward = record["reward"] if isinstance(record["reward"], str) else "own weights"
    title = f"{record['scenario']}, {record['rules']} rules, reward {reward}, episode {record['episode']}"
    table = Table(title=title, show_lines=True)
    for name in rows[0] if rows else ("tick",):
        table.add_column(name, justify="right" if name in ("tick", "reward") else "left")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    console.print(f"return {total:+.3f} in {len(rows)} ticks", highlight=False)
