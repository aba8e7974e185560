"""A model behind an OpenAI-compatible server: what it is asked, and what happens when it does not play along."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai_server import Reply, said, serving, slow

import prompting
import scenarios
from grpo.playing import evaluation, remote
from jaxsim_soc import cli

pytest.importorskip("openai")

SUPPLY = "supply_chain_token_drift"
INVENTORY = prompting.inventory(scenarios.load(SUPPLY))
PROMPTS = ["Tick 1: nothing.", "Tick 1: an alert.", "Tick 1: three alerts."]
MONITOR = '{"action": "MONITOR"}'


def options(url: str, **changes: Any) -> Any:
    argv = ["--model", "openai:m", "--base-url", url, "--out", "x", "--retries", "1", "--timeout", "5"]
    args = evaluation.parser().parse_args(argv)
    return SimpleNamespace(**(vars(args) | changes))


def answers(args: Any, prompts: list[str] = PROMPTS) -> list[str]:
    speaker = remote.load(args)
    respond = speaker.respond_in(INVENTORY, prompts[0])
    return list(respond(prompts, range(len(prompts)), 1))


def error_of(capsys: pytest.CaptureFixture[str], args: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        answers(args)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1, err
    return err


def test_each_prompt_has_its_answer_under_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.KEY, "sk-secret")
    with serving(lambda body, n: said(body["messages"][-1]["content"])) as server:
        assert answers(options(server.url, temperature=0.5, max_new_tokens=9, seed=2**40 + 3)) == PROMPTS
    probe, *asked = server.seen
    assert probe["response_format"]["json_schema"]["schema"] == remote.PROBE
    assert set(server.keys) == {"Bearer sk-secret"}
    for body in asked:
        assert body["response_format"]["json_schema"]["schema"] == prompting.schema(INVENTORY)
        assert body["messages"][0] == prompting.chat(PROMPTS[0], INVENTORY)[0]
        assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("m", 0.5, 9, 3)


def test_prompts_are_asked_side_by_side_but_not_more_than_said() -> None:
    with serving(lambda body, n: slow(0.2, said(MONITOR))) as server:
        answers(options(server.url, batch=3), PROMPTS * 4)
    assert server.most == 3 and len(server.seen) == 13


@pytest.mark.parametrize("status", remote.NO_SCHEMA)
def test_a_server_that_knows_no_schema_is_asked_without(status: int) -> None:
    def reply(body: dict[str, Any], n: int) -> Reply:
        return (status, {"error": {"message": "response_format"}}) if "response_format" in body else said(MONITOR)

    with serving(reply) as server:
        args = options(server.url)
        assert answers(args) == [MONITOR] * 3
        assert remote.load(args).about["answers"] == "free: the server knows no JSON schema"
    with serving(lambda body, n: said(MONITOR)) as server:
        assert remote.load(options(server.url, decode="free")).about["answers"] == "free" and not server.seen


def test_tokens_are_those_of_the_server() -> None:
    with serving(lambda body, n: said(None if n == 3 else MONITOR, None if n == 2 else 7)) as server:
        speaker = remote.load(options(server.url, decode="free"))
        respond = speaker.respond_in(INVENTORY, "")
        assert sorted(respond(PROMPTS, range(3), 1)) == ["", MONITOR, MONITOR]
        assert (speaker.count([]), speaker.count([])) == (14, 0)


@pytest.mark.parametrize("trouble", [(429, {"error": {"message": "slow down"}}), (503, "busy")])
def test_what_passes_is_asked_again(trouble: Reply) -> None:
    with serving(lambda body, n: trouble if n in (1, 3) else said(MONITOR)) as server:
        assert answers(options(server.url)) == [MONITOR] * 3
    assert len(server.seen) == 6


@pytest.mark.parametrize(
    ("reply", "changes", "says"),
    [
        ((500, {"error": {"message": "out of\nmemory"}}), {}, "the server answers 500: "),
        ((401, {"error": {"message": "no key"}}), {}, "the server answers 401: "),
        ((404, {"error": {"message": "no such model"}}), {}, "the server answers 404: "),
        ((200, "<html>not JSON"), {}, "no answer of an OpenAI-compatible server"),
        ((200, {"choices": []}), {}, "no answer of an OpenAI-compatible server"),
        ((200, []), {}, "no answer of an OpenAI-compatible server"),
        ("hang", {"timeout": 0.3, "retries": 0}, "no answer within 0.3 s after 1 tries; what was said is kept"),
        (said(MONITOR), {"max_requests": 2}, "--max-requests 2 are used up; what was said is kept"),
    ],
)
def test_what_does_not_pass_is_one_line(
    capsys: pytest.CaptureFixture[str], reply: Any, changes: dict[str, Any], says: str
) -> None:
    with serving(lambda body, n: slow(1.5, said(MONITOR)) if reply == "hang" else reply) as server:
        error = error_of(capsys, options(server.url, **{"retries": 0} | changes))
    assert says in error


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda body, n: said(MONITOR)) as server:
        url = server.url
    assert "no connection after 1 tries" in error_of(capsys, options(url, retries=0))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--model", "openai:"], "names no model"),
        (["--model", "openai:m"], "needs --base-url"),
        (["--model", "openai:m", "--base-url", "127.0.0.1:8080"], "is no address"),
        (["--model", "openai:m", "--base-url", "file:///etc/passwd"], "is no address"),
        (["--model", "openai:m", "--base-url", "http://me:secret@host/v1"], "is no address"),
        (["--model", "embedded", "--base-url", "http://127.0.0.1/v1"], "--base-url is of a model behind a server"),
        (["--max-requests", "3"], "--max-requests is of a model behind a server"),
        (["--model", "openai:m", "--base-url", "http://h/v1", "--adapter", "."], "--adapter: a server plays with"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluation.main([*argv, "--out", str(tmp_path / "out")]))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_evaluation_goes_on_where_its_server_failed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It has the same report as one whose server never failed, but for the seconds."""

    def reply(body: dict[str, Any], n: int) -> Reply:
        shown = body["messages"][-1]["content"]
        return said('{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}' if "svc-ci-deploy" in shown else MONITOR)

    def play(url: str, out: Path, *more: str) -> None:
        argv = ["--model", "openai:m", "--scenario", SUPPLY, "--episodes", "2", "--policies", "--no-shuffle"]
        argv += ["--asking", "on-change", "--retries", "0", "--out", str(out), *more]
        evaluation.main([*argv, "--base-url", url])

    with serving(reply) as server:
        with pytest.raises(SystemExit):
            play(server.url, tmp_path / "a", "--max-requests", "6")
        assert "--max-requests 6 are used up" in capsys.readouterr().err and len(server.seen) == 6
        play(server.url, tmp_path / "a")
        again = len(server.seen)
        play(server.url, tmp_path / "b")
        assert again < 2 * (len(server.seen) - again), "nothing that was kept is asked again"
    rows = [json.loads((tmp_path / folder / "rows.json").read_text()) for folder in "ab"]
    model = [next(r for r in each if r["policy"] == "base") for each in rows]
    timed = ("seconds", "decisions_per_second", "tokens_per_second")
    assert {k: v for k, v in model[0].items() if k not in timed} == {
        k: v for k, v in model[1].items() if k not in timed
    }
    assert model[0]["decisions"] > 6 and "by JSON schema" in (tmp_path / "a" / "report.md").read_text()
