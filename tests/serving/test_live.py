"""A model that plays in the console: its words, the probabilities of its actions, and nobody who waits for it."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import jax
import numpy as np
import pytest
from talking import LIMITS, SCENARIO, Client, client_of, replayed

import jaxsim
import prompting
from grpo.model.errors import ModelError
from grpo.playing.aloud import Begin, Said
from grpo.playing.choices import ALWAYS_ASK
from serving import browser, console, live, sessions
from serving.live import Players

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
GAME = {"scenario": SCENARIO, "rules": "hardened", "reward": "operational", "personality": "any", "seed": 1}


def lines(client: Client, policy: str) -> Iterator[dict[str, Any]]:
    link = HTTPConnection("127.0.0.1", client.port, timeout=300)
    link.request("POST", "/live", json.dumps(GAME | {"policy": policy}), {"Content-Type": "application/json"})
    reply: HTTPResponse = link.getresponse()
    try:
        assert reply.status == 200, reply.read()
        while line := reply.readline():
            yield json.loads(line)
    finally:
        reply.close()
        link.close()


def some(client: Client, policy: str, many: int) -> list[dict[str, Any]]:
    """The first lines; then nobody listens any more."""
    telling = lines(client, policy)
    found = [next(telling) for _ in range(many)]
    telling.close()
    return found


def saying(text: str, wait: float = 0.0) -> Begin:
    def think(prompt: str) -> Said:
        time.sleep(wait)
        return Said(text, None)

    return lambda inventory, opening: think


def broken(inventory: prompting.Inventory, opening: str) -> Callable[[str], Said]:
    raise ModelError("this model\ncannot")


@pytest.fixture(scope="module")
def known() -> dict[str, Begin]:
    return {"slow": saying('{"action": "MONITOR"}', 0.3), "rude": saying("no JSON"), "broken": broken}


@pytest.fixture(scope="module")
def client(known: dict[str, Begin]) -> Iterator[Client]:
    with client_of(browser.make(LIMITS, {}, Players(known))) as found:
        yield found


def inventory() -> prompting.Inventory:
    return sessions.game(LIMITS.entities, SCENARIO, None, None, "hardened", "operational", "any").inventory


def none_left(client: Client) -> bool:
    deadline = time.monotonic() + 30
    while client.sessions.open and time.monotonic() < deadline:
        time.sleep(0.05)
    return not client.sessions.open


def test_a_model_and_its_adapter_play_and_say_how_sure_they_were(
    client: Client, known: dict[str, Begin], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of one model that is loaded once; each choice is the likeliest of all legal answers, weighed one by one."""
    from exported_models import adapter_of
    from tiny_models import tiny

    from grpo.model import decode, models, trie

    folder = tmp_path_factory.mktemp("live")
    model = tiny(folder / "tiny", fluent=True)
    adapter = adapter_of(model, folder / "mine")
    monkeypatch.setattr(sys, "argv", ["jaxsim-soc console"])
    args = console.parser().parse_args(["--model", str(model), "--adapter", str(adapter)])
    known |= browser.players(args).known
    names = [str(model), f"{model} + mine"]
    assert client.ask("GET", "/catalogue")["models"] == ["slow", "rude", "broken", *names]
    net, chosen = inventory(), []
    for name, with_adapter in zip(names, (None, adapter), strict=True):
        first, *ticks, last = lines(client, name)
        assert first["tick"] == 0 and "text" in first and "truth" not in json.dumps([first, ticks])
        episode = last["episode"]
        again = replayed("hardened", "operational", 1, [x["action"] for x in ticks])
        assert [x["reward"] for x in ticks] == [x["reward"] for x in episode["ticks"][1:]]
        assert [x["reward"] for x in ticks] == again.reward[: len(ticks)].tolist()
        asked = [(text, x) for text, x in zip([first, *ticks], ticks, strict=False) if x["choices"]]
        assert 3 < len(asked) < len(ticks), "asked on change"
        assert all(x["action"] == "MONITOR" and x["words"] is None for x in ticks if not x["choices"])
        loaded = models.load(str(model), with_adapter)
        tree = trie.trie(loaded.tokenizer, prompting.answers(net))
        for before, tick in asked[:6]:
            tokens = decode.chat_tokens(loaded.tokenizer, prompting.chat(before["text"], net))
            log_p = trie.weigh(decode.Decoder(loaded.model, loaded.tokenizer), tokens, tree)
            share = np.exp(log_p) / np.exp(log_p).sum()
            told = tick["choices"]
            assert tick["words"] == prompting.answers(net)[log_p.argmax()] and tick["action"] == told["likely"][0][0]
            # In logarithms, which are what is worked out in float32: of a share of e^-70 its own digits are few.
            shown = np.log([[p for _, p in told["likely"]], np.sort(share)[::-1][: live.SHOWN]])
            np.testing.assert_allclose(*shown, rtol=1e-3, atol=1e-3)
            assert told["legal"] == pytest.approx(np.exp(log_p).sum(), rel=1e-3)
            assert told["others"][0] == len(share) - live.SHOWN
            assert sum(p for _, p in told["likely"]) + told["others"][1] == pytest.approx(1)
        chosen.append([x["choices"] for x in ticks])
    assert chosen[0] != chosen[1], "the adapter changed nothing"
    assert none_left(client)


def test_asked_on_change_as_evaluations_ask() -> None:
    from grpo.playing import play

    net = inventory()
    actions = ["MONITOR"] * 4 + ["INVESTIGATE " + net.names[0], "ISOLATE_ASSET " + net.names[1]] + ["MONITOR"] * 40
    seen = replayed("hardened", "operational", 1, actions).observation
    views = play._views(jax.tree.map(np.asarray, seen))
    made, _ = jaxsim.make(SCENARIO, rules="hardened", reward="operational")
    small = prompting.inventory(jaxsim.load_scenario(SCENARIO), made.dims)
    shown = [json.loads(x) for x in prompting.render(jaxsim.Observation(*seen), small, "json")]
    asked = [t for t in range(1, len(views)) if views[t] != views[t - 1]]
    assert [t for t in range(1, len(shown)) if live.news(shown[t - 1], shown[t])] == asked and 5 < len(asked) < 60


def test_nobody_waits_for_a_model_that_thinks(client: Client) -> None:
    """And who stops watching ends the episode."""
    telling = lines(client, "slow")
    next(telling)
    session = client.begin(scenario=SCENARIO, seed=2)["session"]
    client.step(session, action="MONITOR")
    began = time.monotonic()
    for _ in range(10):
        client.step(session, action="MONITOR")
    assert time.monotonic() - began < 10 * 0.3, "each waited for a thought"
    assert len(client.sessions.open) == 2
    client.ask("DELETE", f"/sessions/{session}", status=204)
    telling.close()
    assert none_left(client)


def test_what_goes_wrong_is_one_line(client: Client) -> None:
    assert list(lines(client, "broken"))[1:] == [{"error": "this model cannot"}]
    tick = some(client, "rude", 2)[1]
    assert (tick["action"], tick["words"], tick["choices"]) == ("INVALID", "no JSON", None)
    error = client.ask("POST", "/live", GAME | {"policy": "heuristic"}, 422)["error"]
    assert "is no model that plays here; there are: slow, rude" in error
    assert "unknown" in client.ask("POST", "/live", GAME | {"policy": "rude", "rules": "soft"}, 422)["error"]
    assert none_left(client)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adapter", "default"], "--adapter is of a model; give --model as well"),
        (["--base-url", "http://127.0.0.1:1/v1"], "--base-url is of a model; give --model as well"),
        (["--model", "no such"], "--model: 'no such' is no folder and no hub id"),
        (["--model", "embedded", "--base-url", "http://127.0.0.1:1/v1"], "--base-url is of a model behind a server"),
        (["--model", "openai:m", "--base-url", "http://127.0.0.1:1/v1", "--decode", "exact"], "needs a model's prob"),
        (["--model", "openai:m", "--base-url", "nowhere"], "is no address such as"),
    ],
)
def test_bad_options(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        console.main(options)
    err = capsys.readouterr().err.replace("loading no such\n", "")
    assert ended.value.code == 2 and said in err and err.count("\n") == 1


def test_without_the_extra_the_remedy_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxsim_soc import cli

    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        console.main(["--model", "embedded"])
    said = "--model embedded needs the package torch, which is not installed: pip install 'jaxsim-soc[train]'\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_model_behind_a_server_gives_words_alone(client: Client, known: dict[str, Begin]) -> None:
    from openai_server import said, serving

    pytest.importorskip("openai")
    with serving(lambda body, n: said('{"action": "MONITOR"}')) as server:
        args = console.parser().parse_args(["--model", "openai:m", "--base-url", server.url])
        args.asking = ALWAYS_ASK
        known |= browser.players(args).known
        tick = some(client, "openai:m", 2)[1]
    assert (tick["words"], tick["choices"], tick["action"]) == ('{"action": "MONITOR"}', None, "MONITOR")
    assert none_left(client)


@pytest.mark.slow
def test_the_embedded_model_with_its_own_adapter(client: Client, known: dict[str, Begin]) -> None:
    """The adapter was taught by probabilities of the legal actions: nearly all that it would say is one."""
    known |= browser.players(console.parser().parse_args(["--model", "embedded", "--adapter", "default"])).known
    bare, own = (some(client, name, 2)[1] for name in ("embedded", "embedded + default"))
    assert own["choices"]["legal"] > 0.9 > bare["choices"]["legal"]
    assert none_left(client)
