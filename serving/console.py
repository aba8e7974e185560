"""The game in a browser: play it by hand, watch a policy play, replay, compare, export.

    jaxsim-soc console
    jaxsim-soc console --network my-network.yaml

It listens on this machine only, and the page asks nobody else for anything. What is true is told once an episode is
over.
"""

from collections.abc import Sequence

from jaxsim_soc import cli


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("--port", type=cli.integer(0, 65535), default=8000, metavar="N", help="0: any (default: 8000)")
    p.add_argument(
        "--network",
        type=cli.input_file,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="scenario files to offer beside the built-in networks, in each of their queues",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted."""
    args = parser().parse_args(argv)
    from serving import browser  # which imports JAX: nobody waits for that to read the options

    browser.served(args.port, browser.networks(args.network))
