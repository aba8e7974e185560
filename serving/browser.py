"""The server of the console: sessions to play by hand, whole episodes with their truth, and the page."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from importlib.resources import files as inside
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

import scenarios
from grpo.model.errors import ModelError
from grpo.playing import aloud, remote
from grpo.playing.choices import CONSTRAINED, EXACT
from jaxsim import reward, rules
from jaxsim.check import MAX_SEED
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from serving import app, live, sessions, whole
from serving.app import Receive, Send
from serving.live import Players
from serving.messages import Answer, Refused
from serving.serve import listen, server, tell
from serving.sessions import Limits
from serving.whole import Asked, File, Files, Record, Watch

HOST = "127.0.0.1"
LIMITS = Limits(sessions=16, idle=3600.0)
CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def served(port: int, brought: Files, players: Players) -> None:
    """Listen, compile, serve until interrupted."""
    limits = room(brought)
    listening = listen(HOST, port)
    tell(HOST, listening)
    server(make(limits, brought, players), limits).run(sockets=[listening])


def networks(paths: Sequence[Path]) -> Files:
    """The scenarios of files, in each of their queues. Fails for what is none, or has a name that is taken."""
    found: Files = {}
    for path in paths:
        scenario = scenarios.load(path)
        if scenario.id in found or scenario.id in sessions.BUILT_IN:
            cli.fail(f"--network {str(path)!r:.200}: there is a network {scenario.id!r} already; give it another id")
        found[scenario.id] = File(path=str(path), scenario=scenario)
        for queue in scenario.queues:
            other = scenarios.in_queue(scenario, queue.id)
            found[other.id] = File(path=f"{path}@{queue.id}", scenario=other)
    return found


def players(args: Any) -> Players:
    """The models of the command line, loaded. Fails for one that cannot be."""
    if args.model is None:
        return Players(asking=args.asking)
    local = not remote.is_remote(args.model)
    if args.decode is None:
        args.decode = EXACT if local else CONSTRAINED
    args.max_requests = None
    remote.check_options(args)
    for package in ("torch", "transformers", "peft") if local else ():
        cli.need(package, f"--model {args.model}", "train")
    try:
        with cli.progress() as told:
            told(f"loading {args.model}")
            return Players(aloud.players(args), args.asking)
    except ModelError as error:
        cli.fail(f"--model: {error}")
    except remote.RemoteError as error:
        cli.fail(str(error))


def room(brought: Files) -> Limits:
    """Limits under which the networks of the command line can be played. Fails for one that cannot be."""
    sizes = [len(part) for f in brought.values() for part in (f.scenario.assets, f.scenario.identities)]
    limits = LIMITS._replace(entities=max(LIMITS.entities, *sizes, 0))
    for file in brought.values():
        try:
            whole.game_of(limits.entities, brought, default(file.path))
        except Refused as error:
            cli.fail(f"--network {file.path!r:.200}: {error.message}")
    return limits


def default(network: str) -> Asked:
    """The game that is played unless another one is chosen."""
    return Asked(scenario=network, rules="hardened", reward="operational", personality=rules.ANY)


def make(limits: Limits, brought: Files, players: Players | None = None) -> Any:
    """The server's application with the page, and with what only the page asks for."""
    guarded = app.make(limits)
    add(guarded.app, limits, brought, players or Players())
    guarded.app.add_middleware(headed)
    return guarded


def headed(inner: Any) -> Any:
    """An ASGI application whose answers have the HEADERS."""

    async def outer(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def more(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await inner(scope, receive, more)

    return outer


def add(api: FastAPI, limits: Limits, brought: Files, players: Players) -> None:
    """Routes that tell of whole episodes, and the page itself. What is played by hand goes through the sessions."""

    async def simulated(work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(api.state.sessions.simulator, work)

    @api.get("/catalogue")
    async def catalogue() -> dict[str, Any]:
        """What can be chosen on the page."""
        return catalogue_of(brought) | {"models": list(players.known)}

    @api.post("/play", status_code=201)
    async def play(asked: Asked) -> Answer:
        """Begin to play by hand: a session like any other."""
        answer: Answer = await api.state.sessions.create(whole.start_of(brought, asked))
        return answer

    @api.post("/episodes")
    async def replay(record: Record) -> dict[str, Any]:
        """The episode of a replay record, with its truth."""
        told: dict[str, Any] = await simulated(lambda: whole.replayed(limits.entities, brought, record))
        return told

    @api.post("/watch")
    async def watch(start: Watch) -> dict[str, Any]:
        """An episode that a policy plays, with its truth."""
        seed = secrets.randbelow(MAX_SEED + 1) if start.seed is None else start.seed
        told: dict[str, Any] = await simulated(lambda: whole.watched(limits.entities, brought, start, seed))
        return told

    @api.post("/live")
    async def lived(start: Watch) -> StreamingResponse:
        """An episode that a model plays, line by line while it does; its truth comes last."""
        begin = players.known.get(start.policy)
        if begin is None:
            known = ", ".join(players.known) or "none; start jaxsim-soc console with --model"
            raise Refused(422, f"policy {start.policy[:60]!r} is no model that plays here; there are: {known}")

        def told(record: dict[str, Any]) -> dict[str, Any]:
            return whole.replayed(limits.entities, brought, Record.model_validate(record))

        first = await api.state.sessions.create(whole.start_of(brought, start))
        lines = live.played(api.state.sessions, first, begin, players, told)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @api.post("/export")
    async def export(record: Record) -> Response:
        """The files of `jaxsim-soc export-soc episode`, in a zip file."""
        held: bytes = await simulated(lambda: whole.exported(limits.entities, brought, record))
        return Response(held, media_type="application/zip")

    api.mount("/", StaticFiles(directory=str(inside("serving") / "static"), html=True))


def catalogue_of(brought: Files) -> dict[str, Any]:
    """Networks by name, and the names of all else that can be chosen."""
    built_in = {name: scenarios.load(name) for name in sessions.BUILT_IN}
    built_in |= {x.id: x for s in built_in.values() for x in [scenarios.in_queue(s, q.id) for q in s.queues]}
    found = {name: whole.network(x) for name, x in built_in.items()}
    found |= {name: whole.network(f.scenario) | {"path": f.path} for name, f in brought.items()}
    return {
        "version": SIMULATOR_VERSION,
        "networks": found,
        "rules": list(rules.PRESETS),
        "rewards": list(reward.PRESETS),
        "personalities": [rules.ANY, *rules.PERSONALITIES],
        "policies": whole.POLICIES,
        "defaults": default(sessions.DEFAULT).model_dump(exclude={"seed"}),
    }
