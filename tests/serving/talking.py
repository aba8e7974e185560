"""Clients of a server, and a server in a process of its own."""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from serving.sessions import Limits

ROOT = Path(__file__).resolve().parent.parent.parent
LIMITS = Limits(sessions=6, entities=12, body=64 * 1024)


class Client:
    """Requests to a server."""

    def __init__(self, port: int, app: Any = None) -> None:
        self.port, self.app = port, app

    @property
    def sessions(self) -> Any:
        return self.app.app.state.sessions

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        sent = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        link.request(method, path, body, sent)
        reply = link.getresponse()
        found = reply.status, dict(reply.getheaders()), reply.read()
        link.close()
        return found

    def ask(self, method: str, path: str, data: Any = None, status: int = 200) -> Any:
        """What JSON a request is answered, with the status expected."""
        body = None if data is None else json.dumps(data)
        got, _, text = self.raw(method, path, body)
        assert got == status, text
        return json.loads(text) if text else None

    def begin(self, **start: Any) -> Any:
        return self.ask("POST", "/sessions", start, 201)

    def step(self, session: str, **act: Any) -> Any:
        return self.ask("POST", f"/sessions/{session}/step", act)

    def talk(self) -> Any:
        return connect(f"ws://127.0.0.1:{self.port}/ws", max_size=None, open_timeout=120)


def said(link: Any, kind: str, **data: Any) -> Any:
    link.send(json.dumps({"type": kind, "data": data}))
    return json.loads(link.recv())


def started(folder: Path, *options: str, **variables: str) -> tuple[subprocess.Popen[str], str, list[str]]:
    """A server in a process of its own, its address, and what it said before."""
    limits = ["--sessions", str(LIMITS.sessions), "--entities", str(LIMITS.entities), "--port", "0"]
    command = [sys.executable, "-m", "jaxsim_soc", "serve", *limits, *options]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=folder, env=os.environ | variables | {"PYTHONPATH": paths}
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        if line.startswith("http"):
            return process, line.split()[0], lines
        lines.append(line)
    raise AssertionError(lines)
