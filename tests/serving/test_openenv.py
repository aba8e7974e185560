"""The OpenEnv environment under its own validator and client. Skipped where OpenEnv is not installed: CONTRIBUTING has
the command.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openenv.core")

from openenv.validation.manifest import ExecutionDeclaration
from openenv.validation.providers import ValidationProvider
from openenv.validation.runner import run_validation
from openenv.validation.runtime.contracts import LaunchSpec
from openenv.validation.types import ProviderCapability

import jaxsim
from jaxsim import noise
from jaxsim.names import parse_plan
from serving.openenv.client import SocEnv
from serving.openenv.environment import SocEnvironment
from serving.openenv.models import SocAction

pytestmark = [pytest.mark.openenv, pytest.mark.filterwarnings("ignore")]  # a whole stack's own

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "serving" / "openenv"
SCENARIO = "supply_chain_token_drift_hardened"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server in a process of its own, ready: it answers nothing before. With the web interface, as in the Space."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = ["-m", "uvicorn", "serving.openenv.server.app:app", "--port", str(port), "--log-level", "warning"]
    variables = {"PYTHONPATH": paths, "ENABLE_WEB_INTERFACE": "true", "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | variables)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(3000):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def openenv(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "openenv.cli", "validate", *words, "--json"], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


# --- their validator -------------------------------------------------------------------------------------------------


def test_the_package_passes_the_static_level() -> None:
    code, report = openenv(str(FOLDER), "--level", "static")
    assert code == 0 and {x["check_id"]: x["status"] for x in report["results"]} == {"static.manifest": "pass"}


def test_the_running_server_passes(address: str) -> None:
    code, report = openenv("--url", address, "--timeout", "60")
    assert code == 0 and report["passed"] and all(x["passed"] for x in report["criteria"])


class Here:
    """What Docker would do: the server that runs already."""

    name = "here"
    capabilities = frozenset({ProviderCapability.IMAGE_BUILD})
    supported_network_modes = frozenset({"public", "no-network", "allowlist"})

    def __init__(self, url: str) -> None:
        self.base_url = url

    def build(self, root: Path, execution: ExecutionDeclaration) -> str:
        assert (root / execution.dockerfile).is_file()
        return "sha256:" + "0" * 64

    def start(self, spec: LaunchSpec) -> "Here":
        return self

    def inspect(self) -> dict[str, Any]:
        return {}

    def stop(self) -> None: ...


def test_an_episode_passes_all_checks_of_the_runtime_level_that_need_no_container(address: str) -> None:
    here: ValidationProvider = Here(address)
    report = run_validation(FOLDER, provider=here)
    found = {x.check_id: x.status.value for x in report.results}
    passed = ("startup", "reward_well_formed", "observation_schema", "state_contract")
    assert all(found[f"runtime.{name}"] == "pass" for name in passed)
    assert set(found.values()) == {"pass", "skip"}


# --- the client over WebSocket ---------------------------------------------------------------------------------------


def test_an_episode_is_the_one_that_replay_plays_and_tells_nothing_hidden(address: str) -> None:
    actions = ["MONITOR", "INVESTIGATE ci-runner-01", "INVALID", *["MONITOR"] * 67]
    made, params = jaxsim.make(SCENARIO)
    plan = np.full(70, -1, np.int32)
    legal = [i for i, x in enumerate(actions) if x != "INVALID"]
    plan[legal] = parse_plan(";".join(actions[i] for i in legal), jaxsim.load_scenario(SCENARIO), made.dims)
    again = jaxsim.replay(made, params, noise.root(2**32 - 1), 5, plan)
    with SocEnv(base_url=address).sync() as env:
        result = env.reset(seed=2**32 - 1, episode_id="mine", episode=5, scenario=SCENARIO)
        assert result.observation.system_prompt.startswith("You are a SOC analyst")
        assert result.observation.answers["anyOf"] and not result.done
        rewards = []
        for i, text in enumerate(actions):
            assert env.state().model_dump() == {"episode_id": "mine", "step_count": i}
            assert result.observation.outcome is None and not result.done
            verb, _, target = text.partition(" ")
            said = {"text": "Hm."} if verb == "INVALID" else {"action": verb, "target": target or None}
            result = env.step(SocAction(**said))
            rewards.append(result.reward)
            assert (result.observation.refusal == "no JSON") == (verb == "INVALID")
        assert result.done and result.observation.news.endswith("The episode is over.")
    np.testing.assert_array_equal(np.asarray(rewards, np.float32), again.reward)
    assert result.observation.outcome["episode_return"] == pytest.approx(again.reward.sum(), abs=1e-4)


def test_sessions_are_apart_and_one_that_vanishes_leaves_no_harm(address: str) -> None:
    with SocEnv(base_url=address).sync() as one, SocEnv(base_url=address).sync() as other:
        first, second = one.reset(seed=1), other.reset(seed=1)
        assert first.observation == second.observation
        seen = [env.step(SocAction(action="MONITOR")) for env in (one, other, one)]
        assert seen[0].observation == seen[1].observation != seen[2].observation
        with SocEnv(base_url=address).sync() as gone:
            gone.reset(seed=2)
        assert other.step(SocAction(action="MONITOR")).observation == seen[2].observation


def test_a_seed_is_honoured(address: str) -> None:
    def alerts(seed: int) -> list[str]:
        with SocEnv(base_url=address).sync() as env:
            env.reset(seed=seed)
            return [env.step(SocAction(action="MONITOR")).observation.text for _ in range(30)]

    assert alerts(1) == alerts(1) != alerts(2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: e.step(SocAction(action="MONITOR")), "no episode has begun; send a reset first"),
        (lambda e: (e.reset(seed=1), e.step(SocAction(action="INVESTIGATE"))), "is none here"),
        (lambda e: (e.reset(seed=1), e.step(SocAction())), "give either text, or action and its target"),
        (lambda e: e.reset(seed=2**32), "seed = 4294967296"),
        (lambda e: e.reset(scenario="/etc/passwd"), "is none that is built in"),
        (lambda e: e.reset(difficulty=3), "difficulty = 3: Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_the_session_goes_on(address: str, call: Any, said: str) -> None:
    with SocEnv(base_url=address).sync() as env:
        with pytest.raises(Exception) as caught:
            call(env)
        assert said in str(caught.value)
        assert env.reset(seed=1).observation.text.startswith("Assets")


def test_state_before_a_reset_tells_nothing(address: str) -> None:
    with SocEnv(base_url=address).sync() as env:
        assert env.state().model_dump() == {"episode_id": None, "step_count": 0}


def test_the_client_of_the_docs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "connections.md").read_text("utf-8")
    (block,) = [x for x in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "SocEnv(" in x]
    exec(block.replace("http://127.0.0.1:8001", address), {})
    assert re.search(r"^-?\d+\.\d+$", capsys.readouterr().out, re.M)


def test_the_web_interface_is_there_and_plays(address: str) -> None:
    def asked(path: str, **data: Any) -> Any:
        sent = urllib.request.Request(address + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(sent, timeout=60) as reply:
            return json.load(reply)

    with urllib.request.urlopen(f"{address}/web/", timeout=60) as reply:
        assert "gradio" in reply.read().decode()
    first = asked("/web/reset", seed=3)
    after = asked("/web/step", action={"action": "MONITOR"})
    assert (first["observation"]["data"]["tick"], after["observation"]["data"]["tick"], after["done"]) == (0, 1, False)


def test_the_page_of_the_web_interface_escapes_and_its_buttons_are_legal_actions() -> None:
    env = SocEnvironment()
    shown = env.reset(seed=3)
    while not shown.data["alerts"]:
        shown = env.step(SocAction(action="MONITOR"))
    seen = shown.model_dump()
    buttons = env.web_actions(seen)
    assert buttons[0] == ("MONITOR", {"action": "MONITOR"}) and len(buttons) > 2
    assert env.step(SocAction(**buttons[1][1])).refusal is None
    assert "<b>" not in env.render_web(seen | {"text": "<b>", "outcome": {"x": "<b>"}})
    assert env.web_actions(seen | {"done": True}) == [] == SocEnvironment().web_actions(seen)
