"""How many networks a second the generator draws and compiles to arrays, and makes into validated scenarios.

    jaxsim-soc generator-speed

On one core. The best of the repeats: neighbours on a machine only ever make it slower.
"""

import time
from collections.abc import Callable, Sequence

from jaxsim.compile import compile_scenario
from jaxsim.generated import compile_networks, dims_of_networks
from jaxsim_soc import cli
from scenarios.generate import scenario
from scenarios.networks import draw


def direct(count: int, entities: int) -> None:
    """Draw networks and compile them, all at once."""
    networks = draw(range(count), entities)
    compile_networks(networks, dims_of_networks(networks))


def through_scenarios(count: int, entities: int) -> None:
    """The same by way of validated scenarios."""
    networks = draw(range(count), entities)
    dims = dims_of_networks(networks)
    for k in range(count):
        compile_scenario(scenario(networks, k), dims)


def seconds(work: Callable[[int, int], None], count: int, entities: int, repeats: int) -> float:
    """The least time that a call takes."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        work(count, entities)
        times.append(time.perf_counter() - before)
    return min(times)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument(
        "--entities", type=cli.integer(10, 10_000), default=20, metavar="N", help="of a network (default: 20)"
    )
    p.add_argument("--count", type=cli.integer(1, 100_000), default=2000, metavar="N", help="networks (default: 2000)")
    p.add_argument("--repeats", type=cli.integer(1, 1000), default=5, metavar="N", help="timed runs (default: 5)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Time both ways, print a line for each."""
    args = parser().parse_args(argv)
    few = max(1, args.count // 10)
    for how, work, count in (("arrays", direct, args.count), ("scenarios", through_scenarios, few)):
        rate = count / seconds(work, count, args.entities, args.repeats)
        large = seconds(work, 1, 10_000, args.repeats)
        print(f"{how}: {rate:,.0f} networks/s of {args.entities} entities; {large:.4f} s for one of 10,000")
