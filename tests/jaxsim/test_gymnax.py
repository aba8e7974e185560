"""The view for other people's JAX trainers, and rejax's PPO in it. Skipped where rejax is not installed: CONTRIBUTING
has the command.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rejax")

import jax

import jaxsim
from jaxsim import recurrent
from jaxsim.gymnax import Soc

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = "insider_repo_pivot_hardened"
pytestmark = [pytest.mark.rejax, pytest.mark.filterwarnings("ignore")]  # a whole stack's own


def test_it_plays_the_episodes_of_env_one_after_the_other() -> None:
    view, (made, params) = Soc(SCENARIO), jaxsim.make(SCENARIO, auto_reset=True)
    key = jax.random.key(3)
    obs, state = jax.jit(view.reset)(key)
    _, other = jax.jit(made.reset)(key, params)
    step, plain = jax.jit(view.step), jax.jit(made.step)
    ended = 0
    for i in range(85):
        key = jax.random.fold_in(key, i)
        obs, state, reward, done, info = step(key, state, np.int32(i % 7))
        seen, other, paid, over, _, _ = plain(key, other, np.int32(i % 7), params)
        assert float(reward) == float(paid) and bool(done) == bool(over) == (i == 79)
        assert obs.shape == view.observation_space().shape and int(state.tick) == (i + 1) % 80
        ended += int(info["end"]) != 0
    np.testing.assert_array_equal(obs, jax.jit(recurrent.vector, static_argnums=0)(made.dims, seen))
    assert ended == 1 and view.observation_space().contains(obs) and view.action_space().n == made.num_actions


def test_the_ten_lines_of_the_docs_learn() -> None:
    """With fewer steps, in a process of its own: rejax mixes dtypes, which is an error here."""
    page = (ROOT / "docs" / "connections.md").read_text("utf-8")
    (block,) = [x for x in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "rejax" in x]
    for before, after in {'"num_envs": 256': '"num_envs": 32', "1_000_000": "5120", "200_000": "2560"}.items():
        assert before in block
        block = block.replace(before, after)
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", block], env=kept | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    returns = [float(x) for x in re.findall(r"-?\d+\.\d*", done.stdout)]
    assert len(returns) == 3 and returns[-1] > returns[0]
