"""The server, over real sockets: the episodes of `replay`, nothing hidden in any answer, and no harm from anybody."""

import asyncio
import http.client
import json
import random
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from talking import LIMITS, ROOT, SCENARIO, Client, client_of, replayed, said, started, world
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import jaxsim
import prompting
import scenarios
from jaxsim import replays
from jaxsim.rules import restores
from serving import hostile, load
from serving.app import Guard, make
from serving.messages import Answer
from serving.serve import is_local
from serving.sessions import Counts

BAD = sorted((ROOT / "tests" / "bad_scenarios").iterdir())


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(make(LIMITS)) as found:
        yield found


@pytest.fixture(autouse=True)
def _left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test with the server all its sessions are closed, and every slot is free again."""
    yield
    if "client" not in request.fixturenames:
        return
    sessions = request.getfixturevalue("client").sessions
    for _ in range(100):
        if not sessions.open and all(len(set(p.free)) == LIMITS.sessions for p in sessions.pools.values()):
            return
        time.sleep(0.1)
    raise AssertionError(f"left open: {list(sessions.open)}")


# --- the game --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rules", "reward"), load.PLAYED)
def test_an_episode_is_the_one_that_replay_plays(client: Client, rules: str, reward: str) -> None:
    """By words, by verb and target, and by nonsense; and the record that is told in the end says so itself."""
    seed, rng = 2**32 - 1, random.Random(3)
    answer = client.begin(scenario=SCENARIO, rules=rules, reward=reward, seed=seed)
    session, legal = answer["session"], load.choices(answer["answers"])
    inventory = prompting.inventory(jaxsim.load_scenario(SCENARIO), jaxsim.make(SCENARIO, rules=rules)[0].dims)
    assert answer["answers"] == prompting.schema(inventory)
    assert answer["system_prompt"] == prompting.system_prompt(inventory)
    answers, actions = [answer], []
    while not answer["done"]:
        assert client.ask("GET", f"/sessions/{session}/record", status=409)["error"].startswith("the episode is not")
        act = rng.choice(legal) if rng.random() < 0.3 else legal[0]
        how = rng.choice(["text", "act", "nonsense"] if len(actions) % 9 == 4 else ["text", "act"])
        if how == "nonsense":
            answer = client.step(session, text="I would rather not.")
            assert answer["refusal"] == "no JSON"
            actions.append("INVALID")
        else:
            answer = client.step(session, **({"text": f"So: {json.dumps(act)}"} if how == "text" else act))
            assert answer["refusal"] is None
            actions.append(" ".join(act.values()))
        answers.append(answer)
        jsonschema.validate(answer, Answer.model_json_schema())
    assert client.ask("POST", f"/sessions/{session}/step", {"action": "MONITOR"}, 409)["error"].startswith(
        "the episode is"
    )
    again = replayed(rules, reward, seed, actions)
    rewards = np.asarray([x["reward"] for x in answers[1:]], np.float32)
    np.testing.assert_array_equal(rewards, again.reward[: len(rewards)])
    assert not again.reward[len(rewards) :].any() and "INVALID" in actions
    assert answer["outcome"]["episode_return"] == pytest.approx(again.reward.sum(), abs=1e-4)
    assert all("outcome" not in x or x["outcome"] is None for x in answers[:-1])
    shown = jaxsim.Observation(*again.observation)
    texts = [prompting.render(shown, inventory, layout) for layout in ("compact", "json")]
    for i, one in enumerate(answers):
        assert (one["text"], one["observation"]) == (texts[0][i], json.loads(texts[1][i]))
    record = client.ask("GET", f"/sessions/{session}/record")
    assert (record["seed"], record["actions"], set(record)) == (seed, actions, set(replays.FIELDS))
    again = client.ask("POST", f"/sessions/{session}/reset", {"scenario": SCENARIO, "rules": rules, "seed": seed})
    assert again["text"] == answers[0]["text"] and not again["done"]
    client.ask("DELETE", f"/sessions/{session}", status=204)


def test_many_at_once_are_served_together_and_each_plays_its_own_episode(client: Client) -> None:
    """Some vanish in the middle; nothing of them is left."""
    counts = client.sessions.counts
    ticks, batches = counts.ticks, counts.batches
    clients = LIMITS.sessions
    found = asyncio.run(load.measured(f"http://127.0.0.1:{client.port}", clients, 6.0, 1))
    assert len(found.seconds) > 100 and len(found.episodes) >= 1
    assert {x.rules for x in found.episodes} <= {"classic", "hardened"} and load.wrong(found.episodes) == 0
    assert (counts.batches - batches) < 0.8 * (counts.ticks - ticks), "each was stepped alone"
    worse = found.episodes[0]._replace(rewards=[x + 0.01 for x in found.episodes[0].rewards])
    assert load.wrong([worse]) == 1


def test_who_goes_away_without_a_word_leaves_no_session(client: Client) -> None:
    with client.talk() as link:
        said(link, "reset", seed=1)
        assert len(client.sessions.open) == 1
        link.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "start",
    [
        {"generated": {"seed": 5, "entities": 12}},
        {"upload": scenarios.dump(scenarios.load("cloud_metadata_ssrf"))},
        {"upload": json.dumps(scenarios.load("cloud_metadata_ssrf").model_dump(mode="json", exclude_defaults=True))},
        {"scenario": "cloud_metadata_ssrf@raw"},
        {"scenario": "cloud_metadata_ssrf", "rules": "hardened1", "personality": "stealthy"},
        {"reward": {k: None if v == float("inf") else v for k, v in jaxsim.reward.PRESETS["capped"].items()}},
        {},
    ],
)
def test_what_can_be_played(client: Client, start: dict[str, Any]) -> None:
    answer = client.begin(**start)
    verbs = {x["action"] for x in load.choices(answer["answers"])}
    assert ("RESTORE" in verbs) == restores(start.get("rules", "hardened"))
    act = load.choices(answer["answers"])[-1]
    after = client.step(answer["session"], **act)
    assert after["observation"]["tick"] == 1 and client.ask("GET", f"/sessions/{answer['session']}") == after
    again = client.ask("POST", f"/sessions/{answer['session']}/reset", {"rules": "hardened1+liftable"})
    assert again["observation"]["tick"] == 0
    client.ask("DELETE", f"/sessions/{answer['session']}", status=204)
    assert client.ask("GET", f"/sessions/{answer['session']}", status=404)["error"].startswith("there is no session")


def test_by_socket_as_by_requests(client: Client) -> None:
    answer = client.begin(seed=9)
    with client.talk() as link:
        assert said(link, "state")["data"] == {
            "status": 409,
            "message": "there is no episode yet; send a message of the type reset first",
        }
        other = said(link, "reset", seed=9)
        for act in ({"action": "MONITOR"}, {"text": "?"}, load.choices(answer["answers"])[5]):
            theirs, mine = said(link, "step", **act)["data"], client.step(answer["session"], **act)
            assert theirs.pop("session") == other["data"]["session"] != mine.pop("session") and theirs == mine
        assert said(link, "state")["data"]["observation"] == mine["observation"]
        link.send('{"type": "close"}')
        with pytest.raises(ConnectionClosed):
            link.recv()
    client.ask("DELETE", f"/sessions/{answer['session']}", status=204)


def test_the_client_of_the_docs(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "connections.md").read_text(encoding="utf-8")
    (block,) = [x for x in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "127.0.0.1:8000" in x]
    exec(block.replace(":8000", f":{client.port}"), {})
    assert "You are a SOC analyst" in (shown := capsys.readouterr().out) and re.search(r"^-?\d+\.\d+$", shown, re.M)


# --- nothing hidden --------------------------------------------------------------------------------------------------


def answers_of(client: Client, upload: str, seed: int) -> tuple[list[Any], Any]:
    """All that every endpoint says in an episode, without the session's name, and the outcome in the end."""
    nothing = {name: 0.0 for name in jaxsim.reward.PRESETS["capped"]}  # a reward may tell, by design
    start = {"upload": upload, "rules": "hardened", "reward": nothing, "seed": seed}
    rng = random.Random(seed)
    answer = client.begin(**start)
    session = answer["session"]
    legal = [x for x in load.choices(answer["answers"]) if x["action"] != "INVESTIGATE"]
    found: list[Any] = [answer]
    with client.talk() as link:
        found.append(said(link, "reset", **start))
        while not answer["done"]:
            act = rng.choice(legal) if rng.random() < 0.2 else legal[0]
            answer = client.step(session, **act)
            found += [answer, said(link, "step", **act)]
            if rng.random() < 0.1 and not answer["done"]:
                found += [client.raw("GET", path)[::2] for path in ("/metadata", "/schema", "/health", "/openapi.json")]
                found += [client.ask("GET", f"/sessions/{session}"), said(link, "state")]
                found += [client.ask("GET", f"/sessions/{session}/record", status=409)]
                found += [client.ask("POST", f"/sessions/{session}/step", {"action": "NONE"}, 422)]
                shown = client.raw("GET", "/metrics")[2].decode()
                found.append([x.split()[0] for x in shown.splitlines() if not x.startswith("#")])
                found.append(len(client.sessions.open))
    outcome = [x.pop("outcome") for x in (found[-2], found[-1]["data"])]
    client.ask("DELETE", f"/sessions/{session}", status=204)
    text = re.sub(r'"session": "[^"]+"', '"session": ""', json.dumps(found, default=str))
    return json.loads(text), outcome


def test_worlds_that_look_alike_are_answered_alike(client: Client) -> None:
    for seed in (1, 5):
        (first, one), (second, other) = (answers_of(client, x, seed) for x in (world(0.95), world(0.05, roll=1)))
        assert first == second
        assert one[0] == one[1]
        differ = one != other
        if differ:
            break
    assert differ, "the worlds are alike"
    assert answers_of(client, world(0.95, detection=1.0), seed)[0] != first, "nothing would be noticed"


# --- hostile ---------------------------------------------------------------------------------------------------------

DEEP = "[" * 30_000


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/sessions", "{", 400),
        ("POST", "/sessions", b"\xff\xfe{}", 400),
        ("POST", "/sessions", DEEP, 400),
        ("POST", "/sessions", '{"seed": ' + "9" * 5000 + "}", (400, 422)),
        ("POST", "/sessions", "null", 422),
        ("POST", "/sessions", "[]", 422),
        ("POST", "/sessions", '{"seed": -1}', 422),
        ("POST", "/sessions", '{"seed": "1"}', 422),
        ("POST", "/sessions", '{"seed": true}', 422),
        ("POST", "/sessions", '{"seed": 1.5}', 422),
        ("POST", "/sessions", '{"seed": 4294967296}', 422),
        ("POST", "/sessions", '{"sead": 1}', 422),
        ("POST", "/sessions", '{"scenario": "../../../etc/passwd"}', 422),
        ("POST", "/sessions", '{"scenario": "/etc/passwd"}', 422),
        ("POST", "/sessions", json.dumps({"scenario": str(BAD[0])}), 422),
        ("POST", "/sessions", '{"scenario": "scenarios/campaigns/insider_repo_pivot.yaml"}', 422),
        ("POST", "/sessions", '{"scenario": "insider_repo_pivot\\u0000"}', 422),
        ("POST", "/sessions", '{"scenario": "insider_repo_pivot@../../x.yaml"}', 422),
        ("POST", "/sessions", '{"scenario": "insider_repo_pivot", "generated": {}}', 422),
        ("POST", "/sessions", '{"generated": {"entities": 10000}}', 422),
        ("POST", "/sessions", '{"generated": {"split": "test"}}', 422),
        ("POST", "/sessions", '{"rules": "hardened+' + "x" * 400 + '"}', 422),
        ("POST", "/sessions", '{"rules": "soft"}', 422),
        ("POST", "/sessions", '{"reward": {"detection": 1}}', 422),
        ("POST", "/sessions", '{"reward": {"detection": NaN}}', (400, 422)),
        ("POST", "/sessions", '{"reward": "best"}', 422),
        ("POST", "/sessions", '{"personality": "kind"}', 422),
        ("POST", "/sessions", json.dumps({"upload": world(0.5).replace("id: insider_repo_pivot", "id: a b")}), 422),
        ("POST", "/sessions", json.dumps({"upload": "x" * 70_000}), 413),
        ("GET", "/sessions/none", None, 404),
        ("GET", "/sessions/..%2f..%2fetc%2fpasswd", None, 404),
        ("POST", "/sessions/none/step", '{"action": "MONITOR"}', 404),
        ("POST", "/sessions/none/reset", "{}", 404),
        ("GET", "/sessions/none/record", None, 404),
        ("DELETE", "/sessions/none", None, 404),
        ("GET", "/docs", None, 404),
        ("GET", "/../../etc/passwd", None, 404),
        ("PUT", "/sessions", "{}", 405),
        ("GET", "/ws", None, 404),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(client: Client, method: str, path: str, body: Any, status: Any) -> None:
    got, _, text = client.raw(method, path, body)
    assert got == status or got in (status if isinstance(status, tuple) else ()), text
    message = json.loads(text)
    assert set(message) == {"error"} and 0 < len(message["error"]) <= 1000 and "\n" not in message["error"]
    assert "root:" not in message["error"] and "Traceback" not in message["error"]


def test_bad_scenario_files_are_refused_when_uploaded(client: Client) -> None:
    """Among them YAML that grows when it is read, tags, anchors and deep nesting."""
    tried = 0
    for path in BAD:
        if path.name == "yaml_inside.json":  # bad by its name only
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        status, _, reply = client.raw("POST", "/sessions", json.dumps({"upload": text}))
        error = json.loads(reply)["error"]
        assert status in (413, 422) and "\n" not in error and str(ROOT) not in error, path.name
        tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Host": "rebound.example:80"}, 403, "is not this server"),
        ({"Origin": "http://page.example"}, 403, "another origin"),
        ({"Origin": "http://[", "Host": "["}, 403, "is not this server"),
        ({"Origin": "null"}, 403, "another origin"),
        ({"Content_Length": "-5"}, (400, 413), ""),
        ({"Content_Type": "text/plain"}, 422, ""),
    ],
)
def test_pages_of_others_cannot_ask(client: Client, headers: dict[str, str], status: Any, said: str) -> None:
    body = None if "Content_Length" in headers else "{}"  # a link that is closed before all is read may be cut
    got, _, text = client.raw("POST", "/sessions", body, **headers)
    assert (got == status or (isinstance(status, tuple) and got in status)) and said in text.decode()


def test_a_body_without_a_length_is_limited_too(client: Client) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"upload": "'
        for _ in range(9):
            yield b"x" * 8192

    link = http.client.HTTPConnection("127.0.0.1", client.port, timeout=120)
    with suppress(BrokenPipeError, ConnectionResetError):  # it is answered before all of it is sent
        link.request("POST", "/sessions", parts(), {"Content-Type": "application/json"})
    reply = http.client.HTTPResponse(link.sock)
    reply.begin()
    assert reply.status == 413
    assert json.loads(reply.read())["error"] == "the body is larger than 65536 bytes; send less"
    reply.close()
    link.close()


def test_malformed_messages_by_socket_are_answered_one_by_one(client: Client) -> None:
    rng = random.Random(1)
    pieces = ['{"type":', '"reset"', "}", "{", "[", '"data"', ":", "null", "1e999", "\x00", "é", '"step"', ","]
    with client.talk() as link:
        for i in range(1000):
            text: Any = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
            if text in ('{"type":"reset"}', '{"type":"step"}'):
                continue
            link.send(text.encode() if i % 2 else text)
            error = json.loads(link.recv())
            assert error["type"] == "error" and 400 <= error["data"]["status"] < 500
            assert "\n" not in error["data"]["message"]
        assert said(link, "step", action="MONITOR")["data"]["status"] == 409
        assert said(link, "reset", scenario="../x")["data"]["status"] == 422
        assert said(link, "reset", seed=1)["type"] == "observation"
    with client.talk() as link:
        link.send("x" * 100_000)
        with pytest.raises(ConnectionClosed):
            link.recv()


def test_malformed_messages_of_every_kind(client: Client) -> None:
    """By several clients at once; 10^5 of them by hand: `jaxsim-soc serve-speed --hostile 100000`."""
    session = client.begin(seed=1)["session"]
    url, secrets = f"http://127.0.0.1:{client.port}", (session, str(ROOT))
    found = asyncio.run(hostile.sent(url, 1200, 1, LIMITS.body, secrets=secrets))
    assert found.faults == [] and found.asked.total() == found.answered.total() == 1200
    assert len(found.asked) >= 23 and {400, 403, 404, 405, 409, 413, 422} <= set(found.answered)
    assert list(client.sessions.open) == [session]
    client.ask("DELETE", f"/sessions/{session}", status=204)


@pytest.mark.parametrize(("status", "text"), [(500, "x"), (200, "x"), (404, ""), (404, "x\ny"), (422, "Traceback")])
def test_what_a_hostile_client_calls_a_fault(status: int, text: str) -> None:
    assert hostile.fault(status, text, ()) and not hostile.fault(422, "no", ())
    assert hostile.fault(404, "there is no session abc", ("abc",)) == "tells 'abc'"


@pytest.mark.parametrize("new_ones_too", [False, True])
def test_a_kept_connection_may_be_closed_and_a_new_one_may_not(new_ones_too: bool) -> None:
    """By a server that answers once by each connection, and, with `new_ones_too`, drops every fourth unanswered."""
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        answers = not (new_ones_too and opened % 4 == 0)
        with closing(writer), suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if answers:
                writer.write(b"HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\nno")
                await reader.readuntil(b"\r\n\r\n")

    async def played() -> hostile.Found:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20) as server:
            into = hostile.Found(Counter(), Counter(), [], [])
            port = server.sockets[0].getsockname()[1]
            await hostile.requests(f"http://127.0.0.1:{port}", 40, random.Random(0), 100, (), into)
            return into

    found = asyncio.run(played())
    assert len(found.again) > 20 and found.answered.total() == 40
    assert bool(found.faults) == new_ones_too and len(found.faults) == found.answered[-1]


def test_as_many_sessions_as_are_allowed_and_no_idle_ones(client: Client) -> None:
    names = [client.begin()["session"] for _ in range(LIMITS.sessions)]
    status, headers, text = client.raw("POST", "/sessions", "{}")
    assert status == 429 and "retry-after" in headers and "all 6 sessions are in use" in text.decode()
    client.ask("DELETE", f"/sessions/{names[0]}", status=204)
    busy = client.begin()["session"]
    client.sessions.open[busy].busy = True
    for path, data in (("step", {"action": "MONITOR"}), ("reset", {})):
        assert "has not answered" in client.ask("POST", f"/sessions/{busy}/{path}", data, 409)["error"]
    client.sessions.open[busy].busy = False
    expired = client.sessions.counts.expired
    client.sessions.limits = LIMITS._replace(idle=0.05)
    try:
        deadline = time.monotonic() + 30
        while client.sessions.open and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        client.sessions.limits = LIMITS
    assert client.sessions.counts.expired == expired + LIMITS.sessions
    assert re.search(rf"^jaxsim_sessions_expired_total {expired + 6}$", client.raw("GET", "/metrics")[2].decode(), re.M)


# --- token, command line, processes ----------------------------------------------------------------------------------


def guarded(path: str, headers: dict[str, str], kind: str = "http") -> int:
    """The status with which a guard with a token answers; 200 where it lets the request pass."""
    sent: list[dict[str, Any]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": kind, "path": path, "headers": raw, "method": "GET"}
    asyncio.run(Guard(inner, Counts(), "secret", None, 100)(scope, None, send))  # type: ignore[arg-type]
    return int(sent[0].get("status", 0)) or int(sent[0]["code"])


def test_a_token_is_asked_for_everywhere_but_for_health() -> None:
    right = {"Authorization": "Bearer secret"}
    for path in ("/metadata", "/schema", "/metrics", "/sessions", "/sessions/x", "/openapi.json", "/nowhere"):
        assert guarded(path, {}) == guarded(path, {"Authorization": "Bearer secre"}) == 401
        assert guarded(path, {"Authorization": "secret"}) == 401
        assert guarded(path, right) == 200
    assert guarded("/health", {}) == 200
    assert guarded("/ws", {}, "websocket") == 1008 and guarded("/ws", right, "websocket") == 200


def test_which_addresses_are_of_this_machine_only() -> None:
    assert all(map(is_local, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.example.org")))


def test_killed_on_all_addresses_and_started_again(tmp_path: Path) -> None:
    """Without the token there is nothing to be had; a client is told of the end, and nothing is left on the disk.

    The next server on that port does not know the sessions of the last.
    """
    process, url, lines = started(tmp_path, "--host", "0.0.0.0")
    assert process.stderr is not None
    token = re.fullmatch(r"token: (\S{20,})\n", lines[-1])
    assert token
    client = Client(int(url.rpartition(":")[2]))
    assert client.ask("GET", "/health") == {"status": "healthy"}
    assert client.ask("POST", "/sessions", {}, 401)["error"].startswith("the token is missing")
    with pytest.raises(InvalidStatus), client.talk():
        pass
    own = {"Authorization": f"Bearer {token[1]}"}
    with connect(f"ws://127.0.0.1:{client.port}/ws", additional_headers=own) as link:
        first = said(link, "reset", seed=1)["data"]
        session, text_before = first["session"], first["text"]
        process.send_signal(signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            said(link, "step", action="MONITOR")
    process.wait(30)
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        client.ask("GET", "/health")
    process, _, _ = started(tmp_path, "--host", "0.0.0.0", "--port", str(client.port), JAXSIM_SOC_TOKEN=token[1])
    try:
        status, _, text = client.raw("GET", f"/sessions/{session}", **own)
        assert status == 404 and "there is no session of that id" in text.decode()
        with connect(f"ws://127.0.0.1:{client.port}/ws", additional_headers=own) as link:
            assert "there is no episode yet" in said(link, "step", action="MONITOR")["data"]["message"]
            assert said(link, "reset", seed=1)["data"]["text"] == text_before
    finally:
        process.kill()
        process.wait(30)
        assert process.stderr is not None
        process.stderr.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_load_test_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """It starts a server of its own, of the usual size."""
    assert load.main(["--clients", "16", "--seconds", "10"]) == 0
    told = capsys.readouterr().out
    assert "of which 0 differ" in told and "sessions left open: 0;" in told and "NaN" not in told
