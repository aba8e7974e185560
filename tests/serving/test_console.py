"""The console's server: episodes equal to `replay`, nothing hidden from who plays by hand, no harm from anybody."""

import io
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talking import LIMITS, ROOT, SCENARIO, Client, client_of, replayed, world

import jaxsim
import scenarios
from jaxsim import replays
from jaxsim.soc import command as soc
from serving import browser, sessions
from serving.load import choices
from serving.whole import POLICIES, File, Files

STATIC = ROOT / "serving" / "static"
GAME = {"scenario": SCENARIO, "rules": "hardened", "reward": "operational", "personality": "any"}
RECORD = {**GAME, "version": jaxsim.SIMULATOR_VERSION, "seed": 1, "episode": 0, "actions": ["MONITOR"]}
SEED = 1  # its first episode has an attack
BROUGHT: Files = {}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(browser.make(LIMITS, BROUGHT)) as found:
        yield found


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_nobody_else(client: Client) -> None:
    names = {path.name for path in STATIC.iterdir()}
    asked = {"", *names}
    for name in asked:
        status, headers, body = client.raw("GET", f"/{name}")
        assert status == 200 and headers["content-security-policy"].startswith("default-src 'self';"), name
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        text = body.decode()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|<style|style=|<script>|javascript:", text), name
        assert {x for x in re.findall(r'(?:src|href|from) ?=?"(?:\./)?([\w.]+)"', text) if x} <= names, name
    assert client.raw("GET", "/catalogue")[1]["content-security-policy"].startswith("default-src 'self';")


def test_what_can_be_chosen(client: Client) -> None:
    told = client.ask("GET", "/catalogue")
    assert set(told["networks"]) == {name + queue for name in sessions.BUILT_IN for queue in ("", "@raw")}
    assert told["policies"] == list(POLICIES) and told["defaults"]["scenario"] in told["networks"]
    known = scenarios.load(SCENARIO)
    shown = told["networks"][SCENARIO]
    assert [x["id"] for x in shown["assets"]] == [x.id for x in known.assets]
    assert not {x.id for x in known.stages} & set(re.findall(r'"([^"]+)"', json.dumps(told)))


def test_help_comes_without_jax() -> None:
    code = "import sys; from jaxsim_soc.commands import COMMANDS as c; c['console'].load().parser()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('jax' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


# --- episodes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(client: Client) -> Any:
    return client.ask("POST", "/watch", {**GAME, "seed": SEED, "policy": "heuristic"})


def test_what_is_watched_is_what_replay_plays(client: Client, watched: Any) -> None:
    record, ticks = watched["record"], watched["ticks"]
    assert client.ask("POST", "/episodes", record) == watched
    again = replayed("hardened", "operational", SEED, record["actions"])
    assert watched["return"] == float(again.reward.sum()) and len(ticks) == 1 + len(record["actions"])
    assert {"INVESTIGATE", "MONITOR"} < {x.split()[0] for x in record["actions"]}
    for t, row in enumerate(ticks):
        state = [x[t] for x in (again.state.compromised, again.state.status)]
        names = [x.id for part in (scenarios.load(SCENARIO).assets, scenarios.load(SCENARIO).identities) for x in part]
        assert row["truth"]["compromised"] == [names[e] for e in np.flatnonzero(state[0])]
        assert row["truth"]["stages"] == [jaxsim.types.STATUSES[s] for s in state[1]]
        if t:
            assert row["reward"] == again.reward[t - 1] and row["action"] == record["actions"][t - 1]
            assert row["channels"] == {k: v[t - 1] for k, v in again.channels._asdict().items()}
    assert any(row["truth"]["compromised"] for row in ticks), "nothing was there to be told"


def test_policies_play_as_in_rollouts(client: Client, watched: Any) -> None:
    """In the common episodes of a seed; the learned one where there is one for the rules and the reward."""
    game = sessions.game(LIMITS.entities, SCENARIO, None, None, "hardened", "operational", "any")
    policy, parameters = jaxsim.BASELINES["heuristic"]
    env = jaxsim.Env(game.inventory.dims)
    stats = jaxsim.rollout(env, game.params, policy, parameters, jaxsim.noise.root(SEED), 1)
    assert watched["return"] == pytest.approx(float(stats.episode_return[0]), abs=1e-4)
    seeing = client.ask("POST", "/watch", {**GAME, "seed": SEED, "policy": "seeing"})
    assert seeing["record"]["actions"] != watched["record"]["actions"]
    assert seeing["attack"] == watched["attack"] and seeing["stages"] == watched["stages"]


def test_part_of_an_episode_and_records_of_before(client: Client, watched: Any) -> None:
    """A record ends where its actions end; one of simulator 1 plays its own game; INVALID is an action."""
    part = client.ask(
        "POST", "/episodes", watched["record"] | {"actions": ["MONITOR", "INVALID"], "texts": [None, "?"]}
    )
    assert (len(part["ticks"]), part["end"], part["ticks"][2]["action"]) == (3, "running", "INVALID")
    assert part["ticks"][2]["channels"]["invalid_action"] < 0
    long = client.ask("POST", "/episodes", watched["record"] | {"actions": ["MONITOR"] * 500})
    assert len(long["ticks"]) == 1 + scenarios.load(SCENARIO).horizon
    old = client.ask(
        "POST", "/episodes", watched["record"] | {"version": "1", "rules": "hardened+liftable", "actions": ["MONITOR"]}
    )
    assert (old["record"]["rules"], old["record"]["reward"]) == ("hardened1+liftable", "operational1")
    assert old["record"]["version"] == jaxsim.SIMULATOR_VERSION


def test_the_export_is_that_of_export_soc(
    client: Client, watched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(watched["record"]))
    soc.main(["episode", str(path), "--out", str(tmp_path / "out")])
    status, headers, body = client.raw("POST", "/export", json.dumps(watched["record"]))
    assert status == 200 and headers["content-type"] == "application/zip" and "alerts.jsonl" in capsys.readouterr().out
    archive = zipfile.ZipFile(io.BytesIO(body))
    ours = {name: archive.read(name) for name in archive.namelist()}
    assert ours == {x.name: x.read_bytes() for x in (tmp_path / "out").iterdir()} and len(ours) == 8
    assert client.raw("POST", "/export", json.dumps(watched["record"]))[2] == body


# --- nothing hidden --------------------------------------------------------------------------------------------------


def by_hand(client: Client, success: float, roll: int, seed: int) -> tuple[Any, Any]:
    """All that is told while somebody plays a world by hand, without the session's name; and the truth in the end."""
    text = world(success, roll=roll)
    BROUGHT["it"] = File(path="it.yaml", scenario=scenarios.loads(text, "it.yaml"))
    nothing = dict.fromkeys(jaxsim.reward.PRESETS["capped"], 0.0)  # a reward may tell, by design
    rng, drawn = random.Random(seed), {**GAME, "scenario": "it", "reward": nothing}
    answer = client.ask("POST", "/play", drawn | {"seed": seed}, 201)
    session, found = answer["session"], [answer, client.ask("GET", "/catalogue")]
    legal = [x for x in choices(answer["answers"]) if x["action"] != "INVESTIGATE"]
    try:
        while not answer["done"]:
            answer = client.step(session, **(rng.choice(legal) if rng.random() < 0.2 else legal[0]))
            found.append(answer)
            if rng.random() < 0.1 and not answer["done"]:
                paths = (f"/sessions/{session}", f"/sessions/{session}/record", "/catalogue", "/", "/metadata")
                found += [client.raw("GET", path)[::2] for path in paths]
        outcome = found[-1].pop("outcome")
        record = client.ask("GET", f"/sessions/{session}/record")
    finally:
        client.ask("DELETE", f"/sessions/{session}", status=204)
        del BROUGHT["it"]
    text = re.sub(re.escape(session), "", json.dumps(found, default=str))
    return json.loads(text), (outcome, record)


def test_nothing_tells_worlds_apart_while_they_are_played(client: Client) -> None:
    differ = False
    for seed in (1, 5):
        (first, (one, record)), (second, (other, _)) = (by_hand(client, *x, seed) for x in ((0.95, 0), (0.05, 1)))
        assert first == second and len(first) > 50
        differ = one != other
        assert record["seed"] == seed
        if differ:
            break
    assert differ, "the worlds are alike"
    told = re.findall(r'"([a-z_]+)":', json.dumps(first))
    assert not {"truth", "stages", "compromised", "seed", "attack"} & set(told)


def test_a_drawn_seed_is_told_in_the_end_and_replays(client: Client) -> None:
    """And a network of the command line is called by its path in the record, as `jaxsim-soc replay` wants it."""
    known = scenarios.loads(world(0.9), "it.yaml").model_copy(update={"id": "it"})
    BROUGHT["it"] = File(path="it.yaml", scenario=known)
    try:
        answer = client.ask("POST", "/play", {**GAME, "scenario": "it"}, 201)
        session, rewards = answer["session"], []
        while not answer["done"]:
            answer = client.step(session, action="MONITOR")
            rewards.append(answer["reward"])
        record = client.ask("GET", f"/sessions/{session}/record")
        whole = client.ask("POST", "/episodes", record)
        assert [row["reward"] for row in whole["ticks"][1:]] == rewards
        assert whole["record"]["scenario"] == "it.yaml" and set(replays.FIELDS) == set(whole["record"])
        assert client.ask("POST", "/episodes", whole["record"]) == whole
    finally:
        client.ask("DELETE", f"/sessions/{session}", status=204)
        del BROUGHT["it"]


# --- hostile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/play", "{", 400),
        ("/play", "[]", 422),
        ("/play", json.dumps(GAME | {"scenario": "../../etc/passwd"}), 422),
        ("/play", json.dumps(GAME | {"scenario": "it.yaml"}), 422),
        ("/play", json.dumps(GAME | {"seed": -1}), 422),
        ("/play", json.dumps(GAME | {"rules": "soft"}), 422),
        ("/play", json.dumps(GAME | {"reward": {"detection": [1]}}), 422),
        ("/watch", json.dumps(GAME | {"policy": "../x.safetensors"}), 422),
        ("/watch", json.dumps(GAME | {"policy": "seeing", "rules": "../../etc/passwd", "reward": "x"}), 422),
        ("/watch", json.dumps(GAME | {"policy": "seeing", "rules": "classic", "reward": "evidence"}), 422),
        ("/watch", json.dumps(GAME | {"policy": "heuristic", "scenario": "none"}), 422),
        ("/watch", json.dumps(GAME | {"policy": "heuristic", "personality": "kind"}), 422),
        ("/watch", json.dumps(GAME), 422),
        ("/episodes", "null", 422),
        ("/episodes", "[" * 30_000, 400),
        ("/episodes", json.dumps(GAME), 422),
        ("/episodes", json.dumps(RECORD | {"version": "99" * 500}), 422),
        ("/episodes", json.dumps(RECORD | {"actions": ["DANCE"]}), 422),
        ("/episodes", json.dumps(RECORD | {"actions": ["ISOLATE_ASSET nobody\nhere"]}), 422),
        ("/episodes", json.dumps(RECORD | {"actions": [1]}), 422),
        ("/episodes", json.dumps(RECORD | {"actions": "MONITOR"}), 422),
        ("/episodes", json.dumps(RECORD | {"scenario": str(ROOT / "scenarios" / "template.yaml")}), 422),
        ("/episodes", json.dumps(RECORD | {"scenario": "a@b@c"}), 422),
        ("/episodes", json.dumps(RECORD | {"seed": 2**32}), 422),
        ("/episodes", json.dumps(RECORD | {"seed": True}), 422),
        ("/episodes", json.dumps(RECORD | {"reward": {"detection": float("nan")}}), (400, 422)),
        ("/episodes", json.dumps(RECORD | {"reward": {"best": 1.0}}), 422),
        ("/episodes", json.dumps(RECORD | {"actions": ["MONITOR"] * 10_000}), 413),
        ("/export", json.dumps(RECORD | {"rules": "hardened+x"}), 422),
        ("/export", "{}", 422),
        ("/console.py", "{}", (404, 405)),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(client: Client, path: str, body: str, status: Any) -> None:
    got, _, text = client.raw("POST", path, body)
    assert got == status or got in (status if isinstance(status, tuple) else ()), text
    message = json.loads(text)
    assert set(message) == {"error"} and 0 < len(message["error"]) <= 1000 and "\n" not in message["error"]
    assert "Traceback" not in message["error"] and not client.sessions.open


def test_nothing_but_the_page_can_be_read(client: Client) -> None:
    for path in (
        "/../browser.py",
        "/..%2fbrowser.py",
        "/%2e%2e/%2e%2e/pyproject.toml",
        "//etc/passwd",
        "/static/",
        "/docs",
    ):
        status, _, text = client.raw("GET", path)
        assert status == 404 and set(json.loads(text)) == {"error"}, path
    for headers in ({"Host": "rebound.example"}, {"Origin": "http://page.example"}):
        assert client.raw("POST", "/watch", "{}", **headers)[0] == 403


# --- the command line ------------------------------------------------------------------------------------------------


def test_networks_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = scenarios.load("insider_repo_pivot")
    path, same = tmp_path / "mine.yaml", tmp_path / "same.yaml"
    path.write_text(scenarios.dump(known.model_copy(update={"id": "mine"})))
    same.write_text(scenarios.dump(known))
    found = browser.networks([path])
    assert {k: f.path for k, f in found.items()} == {"mine": str(path), "mine@raw": f"{path}@raw"}
    assert found["mine@raw"].scenario == scenarios.load(f"{path}@raw")
    told = browser.catalogue_of(found)["networks"]
    assert told["mine"]["path"] == str(path) and "path" not in told["insider_repo_pivot"]
    assert browser.room(found) == browser.LIMITS
    for paths in ([path, path], [same]):
        with pytest.raises(SystemExit):
            browser.networks(paths)
        assert "already; give it another id" in capsys.readouterr().err
    stages = tuple(known.stages[0].model_copy(update={"id": f"s{i}"}) for i in range(40))
    long = File(path="long.yaml", scenario=known.model_copy(update={"id": "long", "stages": (*stages, *known.stages)}))
    with pytest.raises(SystemExit):
        browser.room({"long": long})
    assert "stages = 46 does not fit" in capsys.readouterr().err
