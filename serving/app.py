"""The HTTP and WebSocket interface. Everything that is refused is one line: `{"error": ...}` with a 4xx status."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketDisconnect

import scenarios
from jaxsim import reward, rules
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from prompting import FORMAT_VERSION
from serving.messages import Act, Answer, Message, Refused, Start, checked, first_problem, read
from serving.sessions import BUILT_IN, LATENCIES, Counts, Limits, Sessions

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
LOCAL = ("localhost", "127.0.0.1", "::1")
OPEN = ("/health",)  # needs no token
HIDDEN_HEADER = b"authorization"


class Guard:
    """What comes before every request: who asks, from where, and how much is sent."""

    def __init__(self, app: Any, counts: Counts, token: str | None, hosts: tuple[str, ...] | None, body: int) -> None:
        self.app, self.counts, self.token, self.hosts, self.body = app, counts, token, hosts, body

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if scope["type"] == "websocket":
            if refused:  # closed before it was accepted, the handshake is answered with 403
                self.counts.answered["4xx"] = self.counts.answered.get("4xx", 0) + 1
                await send({"type": "websocket.close", "code": 1008, "reason": refused.message[:120]})
            else:
                await self.app(scope, receive, send)
            return

        async def counted(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                group = f"{message['status'] // 100}xx"
                self.counts.answered[group] = self.counts.answered.get(group, 0) + 1
            await send(message)

        taken = 0

        async def limited() -> dict[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.body:
                raise HTTPException(413, self.too_much())
            return message

        if refused:
            await JSONResponse({"error": refused.message}, refused.status)(scope, receive, counted)  # type: ignore[arg-type]
        else:
            await self.app(scope, limited, counted)

    def too_much(self) -> str:
        return f"the body is larger than {self.body} bytes; send less"

    def refusal(self, scope: dict[str, Any]) -> Refused | None:
        """Why a request is not looked at."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:  # a name that a web page made point here
            return Refused(403, f"host {host[:60]!r} is not this server; use {self.hosts[0]}")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
            return Refused(403, "the request comes from a page of another origin; only pages of this server may ask")
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get(HIDDEN_HEADER, b"")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                return Refused(401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.body:
            return Refused(413, self.too_much())
        return None


def _name(host: str) -> str:
    """A Host header without its port."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def make(limits: Limits, token: str | None = None, hosts: tuple[str, ...] | None = LOCAL) -> Any:
    """The ASGI application. With `token`, every request but /health needs it; `hosts`: names it answers to, or any."""
    sessions = Sessions(limits)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(sessions.compile)
        running = asyncio.create_task(sessions.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    app = FastAPI(
        title="jaxsim-soc",
        version=cli.version(),
        description="The analyst's seat of a simulated SOC.",
        lifespan=life,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.sessions = sessions

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        more = {"Retry-After": "5"} if error.status == HTTPStatus.TOO_MANY_REQUESTS else None
        return JSONResponse({"error": error.message}, error.status, headers=more)

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error.detail).split())[:1000]}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        status = 400 if found[0]["type"] == "json_invalid" else 422
        return JSONResponse({"error": " ".join(first_problem(found).split())[:1000]}, status)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether it is ready; it answers nothing before."""
        return {"status": "healthy"}

    @app.get("/metadata")
    async def metadata() -> dict[str, Any]:
        """What can be asked for."""
        return {
            "name": "jaxsim-soc",
            "description": app.description,
            "version": app.version,
            "simulator": SIMULATOR_VERSION,
            "prompt_format": FORMAT_VERSION,
            "scenarios": list(BUILT_IN),
            "rules": list(rules.PRESETS),
            "switches": list(rules.SWITCHES),
            "rewards": {k: _finite(v) for k, v in reward.PRESETS.items()},
            "personalities": [*rules.PERSONALITIES, rules.ANY],
            "limits": limits._asdict(),
        }

    @app.get("/schema")
    async def schema() -> dict[str, Any]:
        """JSON schemas of what is sent and answered."""
        kinds: dict[str, type[BaseModel]] = {"reset": Start, "action": Act, "observation": Answer, "message": Message}
        found = {name: kind.model_json_schema() for name, kind in kinds.items()}
        return {**found, "scenario": scenarios.Scenario.model_json_schema()}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """In Prometheus' text format."""
        return exposition(sessions)

    @app.post("/sessions", status_code=201)
    async def create(start: Start) -> Answer:
        """Begin a session."""
        return await sessions.create(start)

    @app.get("/sessions/{session}")
    async def state(session: str) -> Answer:
        """The last answer again."""
        return sessions.state(session)

    @app.post("/sessions/{session}/reset")
    async def reset(session: str, start: Start) -> Answer:
        """Begin another episode."""
        return await sessions.reset(session, start)

    @app.post("/sessions/{session}/step")
    async def step(session: str, act: Act) -> Answer:
        """Play a tick."""
        return await sessions.step(session, act)

    @app.get("/sessions/{session}/record")
    async def record(session: str) -> Response:
        """The episode as `jaxsim-soc replay` plays it, once it is over."""
        found = sessions.record(session)
        if isinstance(found["reward"], dict):
            found["reward"] = _finite(found["reward"])
        return JSONResponse(found)

    @app.delete("/sessions/{session}", status_code=204)
    async def close(session: str) -> Response:
        """End a session."""
        sessions.close(session)
        return Response(status_code=204)

    @app.websocket("/ws")
    async def talk(socket: WebSocket) -> None:
        """A session for as long as the connection lasts: messages `{"type": ..., "data": {...}}`."""
        await socket.accept()
        mine: str | None = None
        try:
            while True:
                got = await socket.receive()
                if got["type"] == "websocket.disconnect":
                    break
                try:
                    message = read(Message, got.get("text") or got.get("bytes") or b"")
                    if message.type == "close":
                        await socket.close()
                        break
                    mine, answer = await answered(sessions, mine, message)
                    reply = {"type": "observation", "data": answer.model_dump(mode="json")}
                except Refused as error:
                    reply = {"type": "error", "data": {"status": error.status, "message": error.message}}
                await socket.send_json(reply)
        except WebSocketDisconnect:
            pass
        finally:
            if mine is not None:
                with suppress(Refused):  # it was idle too long
                    sessions.close(mine)

    return Guard(app, sessions.counts, token, hosts, limits.body)


async def answered(sessions: Sessions, mine: str | None, message: Message) -> tuple[str, Answer]:
    """What a WebSocket message is answered, and the session of the connection."""
    if message.type == "reset":
        start = checked(Start, message.data)
        known = mine is not None and mine in sessions.open
        answer = await (sessions.reset(str(mine), start) if known else sessions.create(start))
    elif mine is None:
        raise Refused(409, "there is no episode yet; send a message of the type reset first")
    elif message.type == "step":
        answer = await sessions.step(mine, checked(Act, message.data))
    else:
        answer = sessions.state(mine)
    return answer.session, answer


def _finite(weights: dict[str, float]) -> dict[str, float | None]:
    """Weights as JSON has them: without infinities, which are null."""
    return {name: None if value == float("inf") else value for name, value in weights.items()}


def exposition(sessions: Sessions) -> str:
    """The metrics of a server."""
    counts = sessions.counts
    single = {
        "sessions gauge": len(sessions.open),
        "sessions_started_total counter": counts.started,
        "sessions_expired_total counter": counts.expired,
        "episodes_total counter": counts.episodes,
        "ticks_total counter": counts.ticks,
        "batches_total counter": counts.batches,
    }
    lines = []
    for name, value in single.items():
        lines += [f"# TYPE jaxsim_{name}", f"jaxsim_{name.split()[0]} {value}"]
    lines.append("# TYPE jaxsim_requests_total counter")
    lines += [f'jaxsim_requests_total{{status="{k}"}} {v}' for k, v in sorted(counts.answered.items())]
    lines.append("# TYPE jaxsim_step_seconds histogram")
    below = 0
    for bound, many in zip((*LATENCIES, float("inf")), counts.waited, strict=True):
        below += many
        lines.append(f'jaxsim_step_seconds_bucket{{le="{"+Inf" if bound == float("inf") else bound}"}} {below}')
    lines += [f"jaxsim_step_seconds_sum {counts.seconds:.6f}", f"jaxsim_step_seconds_count {below}"]
    return "\n".join(lines) + "\n"
