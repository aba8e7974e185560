"""How a server does under many clients at once: ticks a second, how long a step takes, whether all is as it should be.

    jaxsim-soc serve-speed --clients 64 --seconds 60
    jaxsim-soc serve-speed --hostile 100000

Starts a server of its own. Each client plays by WebSocket, some go away in the middle of an episode. In the end every
episode that was played to its end is played again by `jaxsim.replay`; sessions left open and rewards that differ are
said, with exit code 1. Memory is the server's, after a tenth of the time and at the end (Linux). --hostile sends
malformed messages instead: each must be refused in one line with a status 4xx, and an honest episode beside them goes
on.
"""

import asyncio
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from websockets.asyncio.client import connect

import jaxsim
from jaxsim import noise
from jaxsim.names import parse_plan
from jaxsim_soc import cli
from jaxsim_soc.commands import NAME
from serving import hostile
from serving.sessions import Limits

SCENARIO = "insider_repo_pivot_hardened"
PLAYED = (("hardened", "operational"), ("classic", "evidence"))
VANISH = 0.004  # of a step, that the client goes away instead


class Played(NamedTuple):
    """An episode that a client played to its end."""

    rules: str
    reward: str
    seed: int
    actions: list[str]
    rewards: list[float]


class Measured(NamedTuple):
    """What clients saw."""

    seconds: list[float]  # of each step
    episodes: list[Played]
    vanished: int


def choices(answers: dict[str, Any]) -> list[dict[str, str]]:
    """The legal actions that a JSON schema of answers allows."""
    found = []
    for one in answers["anyOf"]:
        fields = one["properties"]
        for verb in fields["action"]["enum"]:
            targets = fields["target"]["enum"] if "target" in fields else [None]
            found += [{"action": verb} | ({"target": x} if x else {}) for x in targets]
    return found


async def client(url: str, until: float, luck: random.Random, into: Measured) -> int:
    """Play until a time; the number of times it went away."""
    vanished = 0
    while time.monotonic() < until:
        async with connect(url.replace("http", "ws", 1) + "/ws", max_size=None, open_timeout=60) as socket:
            gone = False
            while time.monotonic() < until and not gone:
                gone = await episode(socket, luck, until, into)
            if gone:  # without a word
                socket.transport.abort()
                vanished += 1
    return vanished


async def episode(socket: Any, luck: random.Random, until: float, into: Measured) -> bool:
    """Play one episode; whether the client went away in it."""

    async def asked(kind: str, **data: Any) -> dict[str, Any]:
        await socket.send(json.dumps({"type": kind, "data": data}))
        reply = json.loads(await socket.recv())
        if reply["type"] != "observation":
            raise ValueError(f"{kind} {data}: {reply['data']}")
        found: dict[str, Any] = reply["data"]
        return found

    rules, reward = luck.choice(PLAYED)
    seed = luck.randrange(2**32)
    answer = await asked("reset", scenario=SCENARIO, rules=rules, reward=reward, seed=seed)
    legal = choices(answer["answers"])
    played = Played(rules, reward, seed, [], [])
    while not answer["done"]:
        if time.monotonic() > until:
            return False
        if luck.random() < VANISH:
            return True
        act = luck.choice(legal) if luck.random() < 0.2 else legal[0]
        said = {"text": json.dumps(act)} if luck.random() < 0.5 else act
        began = time.perf_counter()
        answer = await asked("step", **said)
        into.seconds.append(time.perf_counter() - began)
        played.actions.append(" ".join(act.values()))
        played.rewards.append(answer["reward"])
    into.episodes.append(played)
    return False


async def measured(url: str, clients: int, seconds: float, seed: int) -> Measured:
    """Have clients play for some time."""
    into = Measured([], [], 0)
    until = time.monotonic() + seconds
    lucks = [random.Random(1000 * seed + i) for i in range(clients)]
    gone = await asyncio.gather(*(client(url, until, luck, into) for luck in lucks))
    return into._replace(vanished=sum(gone))


def wrong(episodes: Sequence[Played]) -> int:
    """How many episodes are not what `jaxsim.replay` plays, to a rounding of the rewards."""
    scenario = jaxsim.load_scenario(SCENARIO)
    many = 0
    for rules, reward in PLAYED:
        made, params = jaxsim.make(scenario, rules=rules, reward=reward)
        for one in (x for x in episodes if (x.rules, x.reward) == (rules, reward)):
            plan = np.zeros(scenario.horizon, np.int32)  # of one length, so that it is compiled once
            plan[: len(one.actions)] = parse_plan(";".join(one.actions), scenario, made.dims)
            again = jaxsim.replay(made, params, noise.root(one.seed), 0, plan).reward
            theirs = np.zeros(scenario.horizon, np.float32)
            theirs[: len(one.rewards)] = one.rewards
            many += not np.allclose(again, theirs, rtol=0, atol=1e-5)
    return many


def metric(url: str, name: str) -> float:
    """A number of the server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        found = re.search(rf"^{name} (\S+)$", reply.read().decode(), re.M)
    return float(found[1]) if found else float("nan")


def memory(pid: int) -> float:
    """MiB that a process has in memory; NaN where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return float("nan")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("--clients", type=cli.integer(1, 1000), default=64, metavar="N", help="at once (default: 64)")
    p.add_argument("--seconds", type=cli.integer(1, 86400), default=60, metavar="N", help="to play (default: 60)")
    p.add_argument("--seed", type=cli.integer(0, 2**31), default=0, metavar="K", help="of the clients (default: 0)")
    p.add_argument("--hostile", type=cli.integer(100, 10**8), metavar="N", help="send N malformed messages instead")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Start a server, play, print; 1 where something is not as it should be."""
    args = parser().parse_args(argv)
    if args.hostile is not None:
        waits = "--idle", "86400"  # the honest player does nothing in the meantime
        return with_server(args.clients, lambda server, url: refused(server, url, args.hostile, args.seed), *waits)
    return with_server(args.clients, lambda server, url: against(server, url, args.clients, args.seconds, args.seed))


def with_server(clients: int, work: Callable[[subprocess.Popen[str], str], int], *options: str) -> int:
    """The exit code of what is done with a server that is started for it, once it is ready."""
    code = f"import sys; sys.argv[0] = '{NAME}'; from jaxsim_soc.commands import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--sessions", str(clients), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            began = time.monotonic()
            url = server.stderr.readline().partition(" ")[0].strip()
            if not url.startswith("http"):
                cli.fail(f"the server did not start: {url!r:.200}; try `{NAME} serve`")
            with urllib.request.urlopen(f"{url}/health"):
                print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
            return work(server, url)
        finally:
            server.terminate()


def refused(server: subprocess.Popen[str], url: str, many: int, seed: int) -> int:
    """Send malformed messages to a server while an honest episode is played there."""

    def asked(path: str, **data: Any) -> Any:
        sent = urllib.request.Request(url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(sent) as reply:
            return json.load(reply)

    answer = asked("/sessions", scenario=SCENARIO, seed=seed)
    session, legal = answer["session"], choices(answer["answers"])
    rules, reward = PLAYED[0]
    one, luck = Played(rules, reward, seed, [], []), random.Random(seed)

    def play(ticks: int) -> None:
        nonlocal answer
        while not answer["done"] and len(one.actions) < ticks:
            act = luck.choice(legal)
            answer = asked(f"/sessions/{session}/step", **act)
            one.actions.append(" ".join(act.values()))
            one.rewards.append(answer["reward"])

    play(5)
    secrets = (session, str(Path(__file__).parent.parent))
    began = time.monotonic()
    first = asyncio.run(hostile.sent(url, many // 10, seed, Limits().body, secrets=secrets))
    before = memory(server.pid)
    second = asyncio.run(hostile.sent(url, many - many // 10, seed + 1, Limits().body, secrets=secrets))
    took, after = time.monotonic() - began, memory(server.pid)
    with urllib.request.urlopen(f"{url}/sessions/{session}") as reply:  # as it was
        same = json.load(reply)["text"] == answer["text"]
    play(1000)
    differ, left = wrong([one]), int(metric(url, "jaxsim_sessions")) - 1
    asked_for, answers = first.asked + second.asked, first.answered + second.answered
    faults = [*first.faults, *second.faults]
    print(f"{asked_for.total()} malformed messages in {took:.0f} s, of {len(asked_for)} kinds")
    for kind, number in sorted(asked_for.items()):
        print(f"  {kind}: {number}")
    print("answered: " + ", ".join(f"{k or 'closed'}: {v}" for k, v in sorted(answers.items())))
    print(f"asked again, since a kept connection had been closed: {len(first.again) + len(second.again)}")
    print(f"faults: {len(faults)}; sessions left open: {left}; memory {before:.0f} MiB, then {after:.0f} MiB")
    print(f"the honest episode {'went on' if same else 'was changed'}; {differ} differ from their replay")
    for line in faults[:20]:
        print(f"  {line}")
    return int(bool(faults) or left > 0 or differ > 0 or not same)


def against(server: subprocess.Popen[str], url: str, clients: int, seconds: int, seed: int) -> int:
    """Play against a server that has just been started."""
    asyncio.run(measured(url, clients, seconds / 10, seed))
    before = memory(server.pid)
    batches = metric(url, "jaxsim_batches_total")
    found = asyncio.run(measured(url, clients, seconds, seed + 1))
    after, batches = memory(server.pid), metric(url, "jaxsim_batches_total") - batches
    time.sleep(1)
    left, differ = int(metric(url, "jaxsim_sessions")), wrong(found.episodes)
    half, most, worst = np.percentile(found.seconds, [50, 99, 100]) * 1000
    rate, ended = len(found.seconds) / seconds, len(found.episodes)
    print(f"{clients} clients: {rate:,.0f} ticks/s, {len(found.seconds)} in {batches:.0f} batches")
    print(f"a step takes {half:.1f} ms (p50), {most:.1f} ms (p99), {worst:.1f} ms at most")
    print(f"{ended} episodes, of which {differ} differ from their replay; {found.vanished} clients went away")
    print(f"sessions left open: {left}; memory {before:.0f} MiB, then {after:.0f} MiB")
    return int(left > 0 or differ > 0 or not ended)  # without an ended episode nothing was compared
