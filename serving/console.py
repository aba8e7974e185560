"""The game in a browser: play it by hand, watch a policy or a language model play, replay, compare, export.

    jaxsim-soc console
    jaxsim-soc console --network my-network.yaml
    jaxsim-soc console --model embedded --adapter default

It listens on this machine only, and the page asks nobody else for anything. What is true is told once an episode is
over.
"""

from collections.abc import Sequence

from grpo.model import adapters
from grpo.playing.choices import ASKING, DECODINGS, EXACT, ON_CHANGE
from jaxsim_soc import cli


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    # fmt: off
    p.add_argument("--port", type=cli.integer(0, 65535), default=8000, metavar="N", help="0: any (default: 8000)")
    p.add_argument("--network", type=cli.input_file, nargs="+", action="extend", default=[], metavar="FILE",
                   help="scenario files to offer beside the built-in networks, in each of their queues")
    p.add_argument("--model", metavar="NAME",
                   help="let a language model play: embedded, a folder, a hub id, or openai:NAME behind a server")
    p.add_argument("--adapter", type=adapters.folder, metavar="DIR",
                   help="a trained adapter for that model, or default, the project's own: a player of its own")
    p.add_argument("--decode", type=cli.one_of(DECODINGS), metavar="NAME",
                   help=f"how it answers: {', '.join(DECODINGS)} (default: {EXACT}; behind a server, {DECODINGS[0]})")
    p.add_argument("--asking", type=cli.one_of(ASKING), default=ON_CHANGE, metavar="WHEN",
                   help="on-change (default): MONITOR while the model's view stays the same, or always")
    p.add_argument("--max-new-tokens", type=cli.integer(1, 4096), default=40, metavar="N", help="default: 40")
    p.add_argument("--base-url", metavar="URL", help="of the OpenAI-compatible server of openai:NAME")
    p.add_argument("--timeout", type=cli.integer(1, 86_400), default=120, metavar="SECONDS",
                   help="of a request to it (default: 120)")
    p.add_argument("--offline", action="store_true", help="ask no network for the model")
    # fmt: on
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted."""
    args = parser().parse_args(argv)
    if args.model is None:
        for name in ("adapter", "decode", "base_url"):
            if getattr(args, name) is not None:
                cli.fail(f"--{name.replace('_', '-')} is of a model; give --model as well, such as --model embedded")
    from serving import browser  # which imports JAX: nobody waits for that to read the options

    browser.served(args.port, browser.networks(args.network), browser.players(args))
