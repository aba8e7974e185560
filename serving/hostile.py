"""Malformed messages by HTTP and WebSocket, and whether a server answers each with one line and a status 4xx.

Every message is wrong by what it is made of, so one that is carried out is a fault. Beside them somebody plays an
honest episode, of which nobody may be told and which must go on as if nothing was.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

LINE = 1000  # characters of an answer, at most
LEAKS = ("Traceback", "root:x:", "site-packages", '.py"')
DEEP, SLICE = 30_000, 50  # brackets; messages by one connection
SCENARIOS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x.yaml",
    "scenarios/campaigns/insider_repo_pivot.yaml",
    "insider_repo_pivot\x00",
    "insider_repo_pivot@../../x",
    "%2e%2e%2fetc%2fpasswd",
    "insider_repo_pivot/../insider_repo_pivot",
    "{{7*7}}",
    "$(touch x)",
    "",
)
UPLOADS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e]\n",
    "!!python/object/apply:os.system ['touch x']",
    "!!python/object/new:os.system [touch x]",
    "id: &x [*x]",
    "[" * DEEP,
    "{a: " * DEEP,
    "- " * DEEP,
    "id: x\n" * 500,
    "? " * DEEP,
    "%YAML 9.9\n---\nx",
    "\t\x00",
    "id: " + "9" * 5000,
    '{"id": 1e999}',
    "a: " + "&a " * 1000,
    "<<: *nothing",
    "x: !!binary ====",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    2**32,
    10**400,
    "1",
    "",
    "\u202e\ud800",
    [],
    {},
    [[]],
    {"$ne": 1},
    "x" * 5000,
)
PIECES = (
    '{"seed":',
    '"reset"',
    "}",
    "{",
    "[",
    '"data"',
    ":",
    "null",
    "1e999",
    "\x00",
    "é",
    '"step"',
    ",",
    "NaN",
    "\\u",
)
WRONG = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    '"\\ud800"',
    "tru",
    "'x'",
    "01",
    "[" * DEEP,
    '{"a":' * DEEP,
)
PATHS = (
    "/docs",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/.git/config",
    "/sessions/%00",
    "/ws",
)


class Wrong(NamedTuple):
    """A message that must be refused."""

    kind: str
    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None  # that is claimed


class Found(NamedTuple):
    """What came of them."""

    asked: Counter[str]  # by kind
    answered: Counter[int]  # by status; 0: the connection was closed, as for a frame that is too large
    faults: list[str]
    again: list[str]  # what was asked once more, by a new connection


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def start(luck: random.Random) -> tuple[str, str]:
    """(kind, text) of a start that cannot be played."""
    kind = luck.choice(("json", "number", "type", "field", "scenario", "upload", "rules", "both"))
    if kind == "json":
        return kind, "".join(luck.choices(PIECES, k=luck.randint(1, 8))) + "{"
    if kind == "number":
        return kind, f'{{"reward": {{"detection": {luck.choice(WRONG)}}}, "seed": {luck.choice(WRONG)}}}'
    if kind == "type":
        field = luck.choice(("scenario", "rules", "personality", "upload", "episode", "seed"))
        return kind, json.dumps({field: luck.choice((True, -1, 1.5, [], {}, [[1]]))})
    if kind == "field":
        return kind, json.dumps({luck.choice(("__class__", "sead", "state", "truth", "x" * 900)): luck.choice(VALUES)})
    if kind == "scenario":
        return kind, json.dumps({"scenario": luck.choice(SCENARIOS) or "\n", "seed": luck.randrange(2**32)})
    if kind == "upload":
        return kind, json.dumps({"upload": luck.choice(UPLOADS)})
    if kind == "rules":
        return kind, json.dumps({"rules": "hardened+" + luck.choice(("", "x" * luck.randint(1, 900), "../x"))})
    return kind, json.dumps({"scenario": "insider_repo_pivot", "generated": {"entities": luck.choice((10, -1, 10**9))}})


def by_http(luck: random.Random, body: int) -> Wrong:
    """A request that must be refused by a server that takes bodies of so many bytes."""
    kind = luck.choices(("start", "session", "path", "header", "large"), (60, 25, 8, 5, 2))[0]
    if kind == "start":
        named, text = start(luck)
        return Wrong(named, "POST", "/sessions", text.encode("utf-8", "surrogatepass"))
    if kind == "session":
        name = luck.choice(("none", "..%2f..%2fetc", "%00", "x" * 500, "'", f"{luck.getrandbits(128):032x}"))
        verb, path = luck.choice(
            (("GET", ""), ("POST", "/step"), ("POST", "/reset"), ("GET", "/record"), ("DELETE", ""))
        )
        said = luck.choice(('{"action": "MONITOR"}', "{}", start(luck)[1])) if verb == "POST" else ""
        return Wrong("unknown session", verb, f"/sessions/{name}{path}", said.encode("utf-8", "surrogatepass"))
    if kind == "path":
        return Wrong(kind, luck.choice(("GET", "POST", "PUT", "PATCH")), luck.choice(PATHS), b"")
    if kind == "header":
        more = luck.choice(
            (("Origin", "http://page.example"), ("Origin", "null"), ("Origin", "http://["), ("Host", "rebound.example"))
        )
        return Wrong(kind, "POST", "/sessions", b"{}", (more,))
    claimed = luck.choice((body + 1, 10**12, 10**30))
    return Wrong("large", "POST", "/sessions", b'{"upload": "' + b"x" * 4096, length=claimed)


def by_socket(luck: random.Random, body: int) -> tuple[str, str | bytes]:
    """(kind, message) by WebSocket, in a connection without an episode."""
    kind = luck.choices(("start", "act", "shape", "json", "large"), (50, 15, 15, 19, 1))[0]
    if kind == "start":
        named, text = start(luck)
        return named, f'{{"type": "reset", "data": {text.encode("utf-8", "replace").decode()}}}'
    if kind == "act":
        return kind, json.dumps({"type": luck.choice(("step", "state")), "data": {"action": luck.choice(VALUES)}})
    if kind == "shape":
        return kind, json.dumps({"type": luck.choice((*VALUES, "RESET", "exec")), "data": luck.choice(VALUES)})
    if kind == "json":
        text = "".join(luck.choices(PIECES, k=luck.randint(0, 8))) + "{"
        return kind, text if luck.random() < 0.5 else text.encode() + b"\xff"
    return kind, "x" * (body + 1)


def fault(status: int, text: str, secrets: tuple[str, ...]) -> str | None:
    """What is wrong with an answer."""
    if not 400 <= status < 500:
        return f"status {status}"
    if not text or "\n" in text or len(text) > LINE:
        return "not one line"
    told = next((x for x in (*LEAKS, *secrets) if x in text), None)
    return told and f"tells {told!r}"


class Closed(ConnectionError):
    """A connection ended before a byte of the answer came."""


async def _request(reader: Any, writer: Any, host: str, wrong: Wrong) -> tuple[int, str, bool]:
    """Status, the line that was answered, whether the connection can be used again."""
    length = len(wrong.body) if wrong.length is None else wrong.length
    fields = {"Host": host, "Content-Type": "application/json", "Content-Length": str(length)} | dict(wrong.headers)
    head = "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    writer.write(f"{wrong.method} {wrong.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + wrong.body)
    with suppress(ConnectionError):  # answered before all was sent
        await writer.drain()
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        if getattr(error, "partial", b""):
            raise
        raise Closed(repr(error)) from None
    status, *lines = answer.decode("latin-1").split("\r\n")
    told = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
    if told.get("transfer-encoding") == "chunked":  # as what is no HTTP at all is answered, in one chunk
        size = int(await reader.readuntil(b"\r\n"), 16)
        text = (await reader.readexactly(size + 7))[:size].decode()
    elif "content-length" in told:
        text = (await reader.readexactly(int(told["content-length"]))).decode()
    else:  # the same as the first of a connection, to its end
        text = (await reader.read()).decode()
    if told.get("content-type", "").startswith("application/json"):
        text = json.loads(text)["error"]
    return int(status.split()[1]), text, told.get("connection", "") != "close" and wrong.length is None


async def _answer(streams: Streams | None, host: str, wrong: Wrong, into: Found) -> tuple[Streams | None, int, str]:
    """The connection if it is kept, status (-1: none) and line."""
    kept = streams is not None
    try:
        streams = streams or await asyncio.open_connection(*host.rsplit(":", 1))
        status, text, again = await asyncio.wait_for(_request(*streams, host, wrong), 60)
        anew = False
    except (OSError, ValueError, KeyError, EOFError, TimeoutError) as error:
        status, text, again = -1, repr(error), False
        anew = kept and isinstance(error, Closed)  # as a server may when nothing was said for seconds
    if again:
        return streams, status, text
    if streams:
        streams[1].close()
    if anew:
        into.again.append(f"{wrong.method} {wrong.path} {wrong.body[:80]!r}")
        return await _answer(None, host, wrong, into)
    return None, status, text


async def requests(url: str, many: int, luck: random.Random, body: int, secrets: tuple[str, ...], into: Found) -> None:
    """Send so many by HTTP."""
    host = urlsplit(url).netloc
    streams: Streams | None = None
    for _ in range(many):
        wrong = by_http(luck, body)
        into.asked[f"http {wrong.kind}"] += 1
        streams, status, text = await _answer(streams, host, wrong, into)
        into.answered[status] += 1
        if why := fault(status, text, secrets):
            into.faults.append(f"{why}: {wrong.method} {wrong.path} {wrong.body[:80]!r} {wrong.headers}: {text[:200]}")
    if streams:
        streams[1].close()


async def messages(url: str, many: int, luck: random.Random, body: int, secrets: tuple[str, ...], into: Found) -> None:
    """Send so many by WebSocket."""
    left = many
    while left:
        async with connect(url.replace("http", "ws", 1) + "/ws", max_size=None, open_timeout=60) as socket:
            for _ in range(min(left, SLICE)):
                left -= 1
                kind, text = by_socket(luck, body)
                into.asked[f"websocket {kind}"] += 1
                try:
                    await socket.send(text)
                    reply = json.loads(await asyncio.wait_for(socket.recv(), 60))
                except ConnectionClosed as error:
                    into.answered[0] += 1
                    code = error.rcvd.code if error.rcvd else None
                    if code != 1009 or len(text) <= body:  # message too big
                        into.faults.append(f"closed with {code}: {text[:80]!r}")
                    break
                told = reply["data"]
                status, line = (told["status"], told["message"]) if reply["type"] == "error" else (200, "carried out")
                into.answered[status] += 1
                if why := fault(status, line, secrets):
                    into.faults.append(f"{why}: {text[:200]!r}: {line[:200]}")


async def sent(url: str, many: int, seed: int, body: int, clients: int = 8, secrets: tuple[str, ...] = ()) -> Found:
    """Send about so many messages, half of them by WebSocket; `secrets`: what no answer may tell."""
    into = Found(Counter(), Counter(), [], [])
    ways: tuple[Callable[..., Any], ...] = (requests, messages)
    each = -(-many // clients)
    work = [ways[i % 2](url, each, random.Random(1000 * seed + i), body, secrets, into) for i in range(clients)]
    await asyncio.gather(*work)
    return into
