"""The taskset under `vf-eval`, against a server that speaks as OpenAI's does. Skipped where verifiers is not installed:
CONTRIBUTING has the command.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verifiers.v1")

from openai_server import Reply, said, serving

import jaxsim
from jaxsim import noise

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = "insider_repo_pivot_hardened"
pytestmark = [pytest.mark.verifiers, pytest.mark.filterwarnings("ignore")]  # a whole stack's own


def waits(request: dict[str, Any], n: int) -> Reply:
    """Waits, but for an answer without an action now and then."""
    return said("Let me think." if n % 7 == 0 else '{"action": "MONITOR"}')


def test_the_command_of_the_docs_plays_whole_episodes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "connections.md").read_text("utf-8")
    (line,) = re.findall(r"^\$ (vf-eval .*)$", page, re.M)
    with serving(waits) as server:
        words = shlex.split(line.replace("http://127.0.0.1:8080/v1", server.url).replace("-n 8", "-n 2"))
        command = [str(Path(sys.executable).with_name(words[0])), *words[1:], "--output-dir", str(tmp_path)]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        changed = {"PYTHONPATH": paths, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        changed |= {"OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(command, env=os.environ | changed, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        asked = list(server.seen)
    (file,) = tmp_path.rglob("traces.jsonl")
    episodes = [json.loads(text) for text in file.read_text("utf-8").splitlines()]
    assert len(episodes) == 2
    traces = [trace for episode in episodes for trace in episode["traces"]]
    assert len(traces) == 2 and len(asked) > 20
    for trace in traces:
        start = trace["task"]["data"]["start"]
        assert start == {
            "scenario": SCENARIO,
            "rules": "hardened",
            "reward": "operational",
            "personality": "any",
            "seed": 0,
            "episode": start["episode"],
        }
        made, params = jaxsim.make(SCENARIO)
        waited = jaxsim.replay(made, params, noise.root(0), start["episode"], np.zeros(80, np.int32))
        refused = trace["metrics"]["answers_without_action"]
        assert refused > 0
        # Each answer that was no action cost what the reward says, and nothing else was different.
        expected = float(waited.reward.sum()) - 0.6 * refused
        assert trace["rewards"]["episode_return"]["score"] == pytest.approx(expected, abs=1e-3)
    assert {trace["task"]["data"]["start"]["episode"] for trace in traces} == {0, 1}
    news = max((x["messages"] for x in asked), key=len)
    told = [m["content"] for m in news if m["role"] == "user"]
    assert len(told) > 5 and not [x for x in told if x.startswith("New since") and x.rstrip().endswith("No alerts")]
    first = asked[0]["messages"]
    assert first[0]["content"].startswith("You are a SOC analyst") and "Tick 0 of 80" in first[-1]["content"]
