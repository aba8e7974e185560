"""Clients of a server, and a server in a process of its own."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from websockets.sync.client import connect

import jaxsim
import scenarios
from jaxsim import noise
from jaxsim.names import parse_plan
from serving.serve import server
from serving.sessions import Limits

ROOT = Path(__file__).resolve().parent.parent.parent
SCENARIO = "insider_repo_pivot_hardened"
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


@contextmanager
def client_of(app: Any) -> Iterator[Client]:
    """A client of an application with LIMITS, which is served from a thread."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    running = server(app, LIMITS)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    found = Client(listening.getsockname()[1], app)
    assert found.ask("GET", "/health") == {"status": "healthy"}
    assert all(pool.lanes is not None for pool in found.sessions.pools.values()), "it has not compiled all sizes"
    yield found
    running.should_exit = True
    thread.join(60)
    listening.close()
    assert not thread.is_alive()


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


def replayed(rules: str, reward: str, seed: int, actions: list[str]) -> Any:
    """What `replay` makes of them, with waiting after the end, so that one length is compiled."""
    made, params = jaxsim.make(SCENARIO, rules=rules, reward=reward)
    scenario = jaxsim.load_scenario(SCENARIO)
    plan = np.zeros(scenario.horizon, np.int32)
    known = [i for i, x in enumerate(actions) if x != "INVALID"]
    plan[known] = parse_plan(";".join(actions[i] for i in known), scenario, made.dims)
    plan[[i for i, x in enumerate(actions) if x == "INVALID"]] = -1
    return jaxsim.replay(made, params, noise.root(seed), 0, plan)


def world(success: float, detection: float = 0.0, roll: int = 0) -> str:
    """A network whose attack raises no alerts: what it is can be known from nothing."""
    data = scenarios.load("insider_repo_pivot").model_dump(mode="json", exclude_defaults=True)
    data.pop("benign", None)
    targets = [(x.get("asset"), x.get("identity")) for x in data["stages"]]
    for stage, (asset, identity) in zip(data["stages"], targets, strict=True):
        stage |= {"success": success, "detection": detection}
        if roll:
            stage["dwell"] = [1, 2]
            assert asset or identity
    return yaml.safe_dump(data)
