"""A small server that speaks as OpenAI's does, and what may go wrong with one."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status and body: text, or what becomes JSON


class Server(ThreadingHTTPServer):
    """`reply(request, n)` answers the n-th request; `seen` are their bodies, `keys` the tokens they came with."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.lock = reply, threading.Lock()
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append(body)
            server.keys.append(self.headers.get("Authorization"))
            n = len(server.seen)
            server.at_once += 1
            server.most = max(server.most, server.at_once)
        status, answer = server.reply(body, n)
        with server.lock:
            server.at_once -= 1
        streams = body.get("stream") and status == 200
        content = (answer if isinstance(answer, str) else streamed(answer) if streams else json.dumps(answer)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client went away
            pass

    def log_message(self, *_: Any) -> None:
        pass


def said(text: str | None, tokens: int | None = 7) -> Reply:
    """An answer as chat completions have it."""
    message = {"role": "assistant", "content": text}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 8}} if tokens else {}
    return 200, {**body, "choices": [{"index": 0, "finish_reason": "stop", "message": message}], **usage}


def streamed(answer: dict[str, Any]) -> str:
    """The same as server-sent events, in one piece."""
    (choice,) = answer["choices"]
    whole = {k: v for k, v in answer.items() if k != "choices"} | {"object": "chat.completion.chunk"}
    deltas = (choice["message"], None), ({}, choice["finish_reason"])
    parts = [whole | {"choices": [{"index": 0, "delta": delta, "finish_reason": why}]} for delta, why in deltas]
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"


def slow(seconds: float, reply: Reply) -> Reply:
    time.sleep(seconds)
    return reply


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
