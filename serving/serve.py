"""Serve the game to agents over HTTP and WebSocket.

    jaxsim-soc serve
    curl -s -X POST 127.0.0.1:8000/sessions -H 'Content-Type: application/json' -d '{"seed": 1}'

It listens on this machine only. On any other address (--host) every request needs a token: the first line of
--token-file, or the variable JAXSIM_SOC_TOKEN, or one that is drawn and printed. Sessions are held in memory and end
with the server.
"""

import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from jaxsim_soc import cli
from serving.app import LOCAL, make
from serving.sessions import Limits

TOKEN = "JAXSIM_SOC_TOKEN"


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    own = Limits()
    p.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)")
    p.add_argument("--port", type=cli.integer(0, 65535), default=8000, metavar="N", help="0: any (default: 8000)")
    p.add_argument(
        "--sessions",
        type=cli.integer(1, 4096),
        default=own.sessions,
        metavar="N",
        help=f"the most at a time (default: {own.sessions})",
    )
    p.add_argument(
        "--entities",
        type=cli.integer(12, 1000),
        default=own.entities,
        metavar="N",
        help=f"the most assets of a scenario, and identities (default: {own.entities})",
    )
    p.add_argument(
        "--idle",
        type=cli.integer(1, 86400),
        default=int(own.idle),
        metavar="N",
        help=f"seconds after which an unused session is closed (default: {own.idle:.0f})",
    )
    p.add_argument(
        "--body",
        type=cli.integer(1, 16384),
        default=own.body // 1024,
        metavar="N",
        help=f"KiB that a request may have (default: {own.body // 1024})",
    )
    p.add_argument("--token-file", type=cli.input_file, metavar="FILE", help="its first line is the token to ask for")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    args = parser().parse_args(argv)
    token, drawn = token_of(args.token_file, is_local(args.host))
    limits = Limits(args.sessions, args.entities, float(args.idle), args.body * 1024)
    served(args.host, args.port, limits, token, drawn)


def is_local(host: str) -> bool:
    """Whether an address is one of this machine only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def token_of(path: Path | None, local: bool) -> tuple[str | None, bool]:
    """The token to ask for, and whether it was drawn. None is needed where only this machine can ask."""
    given = os.environ.get(TOKEN)
    if path is not None:
        try:
            given = path.read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            cli.fail(f"--token-file: {str(path)!r:.200} cannot be read ({error}); write a token into its first line")
    if given is not None and not (given.isascii() and given.isprintable() and given and " " not in given):
        where = TOKEN if path is None else "--token-file"
        cli.fail(f"{where}: a token is printable ASCII without spaces; write one, as `openssl rand -hex 24` does")
    if given is None and not local:
        return secrets.token_urlsafe(24), True
    return given, False


def served(host: str, port: int, limits: Limits, token: str | None, drawn: bool) -> None:
    """Listen, compile, serve."""
    listening = listen(host, port)
    if drawn:
        print(f"token: {token}", file=sys.stderr)
    tell(host, listening)
    server(make(limits, token, None if not is_local(host) else (host, *LOCAL)), limits).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Fails where that cannot be."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "that is no address"
        cli.fail(f"cannot listen on {host!r:.100} port {port} ({why}); choose another --host or --port")


def tell(host: str, listening: socket.socket) -> None:
    """Say where the server will be."""
    at = f"[{host}]" if ":" in host else host
    print(f"http://{at}:{listening.getsockname()[1]} (compiling, a moment)", file=sys.stderr, flush=True)


def server(app: Any, limits: Limits) -> uvicorn.Server:
    """What runs the application, on sockets that it is given."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=limits.body,
        timeout_graceful_shutdown=5,
        server_header=False,
        limit_concurrency=4 * limits.sessions + 64,
    )
    return uvicorn.Server(config)
