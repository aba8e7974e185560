"""Print what a shell needs to complete `jaxsim-soc`, its commands and their options.

    jaxsim-soc completion bash > ~/.local/share/bash-completion/completions/jaxsim-soc
    jaxsim-soc completion zsh > "${fpath[1]}/_jaxsim-soc"

Options of a command whose optional packages are not installed are left out; print it again when they are.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

import shtab

from jaxsim_soc import cli
from jaxsim_soc.commands import COMMANDS, NAME

COMPLETED = {
    cli.input_file: shtab.FILE,
    cli.output_path: shtab.FILE,
    cli.plot_path: shtab.FILE,
    cli.input_folder: shtab.DIRECTORY,
    cli.output_folder: shtab.DIRECTORY,
}


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="which shell")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, collect the parsers of all tools, print."""
    shell = parser().parse_args(argv).shell
    print(shtab.complete(front_door(), shell=shell))


def front_door() -> cli.Parser:
    """One parser with a sub-parser for each command."""
    p = cli.Parser(prog=NAME)
    p.add_argument("--version", action="store_true", help="show the version and exit")
    tools = p.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        there = all(map(find_spec, command.needs))
        parents = [command.load().parser()] if there else []
        tool = tools.add_parser(name, help=command.help, parents=parents, add_help=not there)
        complete_paths(tool)
    return p


def complete_paths(p: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are files and folders, by their types."""
    for action in p._actions:  # shtab reads them there too
        if action.type in COMPLETED:
            action.complete = COMPLETED[action.type]  # type: ignore[attr-defined]
