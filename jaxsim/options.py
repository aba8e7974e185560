"""Options that name scenarios, attackers, rules and rewards: the same in every tool."""

import argparse
from collections.abc import Sequence

import scenarios
from jaxsim import rules as rule_sets
from jaxsim.reward import PRESETS
from jaxsim.rules import ANY, PERSONALITIES
from jaxsim_soc import cli

MAX_EPISODES = 1_000_000  # of one row: all their outcomes are held in memory
RULES_HELP = "classic, hardened1, hardened2 or hardened, with any +switch or -switch, as in hardened-persistence"


def scenario(text: str) -> list[scenarios.Scenario]:
    """One value of --scenario: a built-in name or a file is a list of one; a group, or `all`, its built-in ones.

    A queue may stand behind each, as in all@raw.
    """
    name, _, queue = text.partition("@")
    groups = scenarios.GROUPS if name == "all" else (name,) if name in scenarios.GROUPS else ()
    try:
        if not groups:
            return [scenarios.load(text)]
        many = [scenarios.load(n) for g in groups for n in scenarios.names(g)]
        return [scenarios.in_queue(s, queue) for s in many] if queue else many
    except scenarios.ScenarioError as error:
        raise argparse.ArgumentTypeError(cli.in_one_line(error.problems)) from None


def rule_set(text: str) -> str:
    """The type of --rules."""
    try:
        rule_sets.switches(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_scenarios(p: argparse.ArgumentParser, default: str = "all") -> None:
    """--scenario; `chosen(args.scenario)` then gives the list."""
    p.add_argument(
        "--scenario",
        type=scenario,
        nargs="+",
        action="extend",
        metavar="NAME|FILE",
        help=f"built-in scenarios ({', '.join(scenarios.names())}, each also with _hardened behind it), scenario "
        f"files, or published, hardened or all; each with a queue behind it, as in all@raw (default: {default})",
    )


def chosen(values: Sequence[Sequence[scenarios.Scenario]] | None) -> list[scenarios.Scenario]:
    """The scenarios that --scenario named, each once, in that order; all built-in ones when it was not given."""
    found: list[scenarios.Scenario] = []
    for one in (s for value in values or [scenario("all")] for s in value):
        if one in found:
            continue
        if one.id in [s.id for s in found]:
            cli.fail(f"--scenario: two different scenarios have the id {one.id!r}; change `id` in one of the files")
        found.append(one)
    return found


def add_personality(p: argparse.ArgumentParser) -> None:
    """--personality."""
    names = [*PERSONALITIES, ANY]
    p.add_argument(
        "--personality",
        type=cli.one_of(names),
        default=ANY,
        metavar="NAME",
        help=f"the attacker: {', '.join(names)}; {ANY} draws one for each episode (default: {ANY})",
    )


def add_rules(p: argparse.ArgumentParser) -> None:
    """--rules."""
    p.add_argument(
        "--rules", type=rule_set, default="hardened", metavar="NAME", help=f"{RULES_HELP} (default: hardened)"
    )


def add_reward(p: argparse.ArgumentParser) -> None:
    """--reward."""
    known = ", ".join(PRESETS)
    p.add_argument(
        "--reward",
        type=cli.one_of(PRESETS),
        default="operational",
        metavar="NAME",
        help=f"one of {known} (default: operational)",
    )


def add_episodes(p: argparse.ArgumentParser, default: int = 1000) -> None:
    """--episodes."""
    p.add_argument(
        "--episodes",
        type=cli.integer(1, MAX_EPISODES),
        default=default,
        metavar="N",
        help=f"episodes of each row (default: {default})",
    )


def add_seed(p: argparse.ArgumentParser) -> None:
    """--seed."""
    p.add_argument("--seed", type=cli.seed, default=0, metavar="K", help="of all the luck (default: 0)")
