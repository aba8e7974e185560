"""jaxsim/throughput.py: the fields of a line, that the work is real, bad input. No test looks at a speed."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import scenarios
from jaxsim import BASELINES, env, throughput
from jaxsim.rollouts import rollout
from jaxsim_soc import cli

TINY = ["--ticks", "4", "--repeats", "2", "--scalar-steps", "20", "--devices", "1"]
FIELDS = {"policy", "batch", "steps_per_s", "compile_s", "ratio_to_scalar", "load", "includes"}


@pytest.fixture
def arena() -> tuple[env.Env, Any]:
    """Environment and parameters of a scenario of few ticks."""
    short = scenarios.load("supply_chain_token_drift").model_copy(update={"horizon": 6})
    return env.make(short)


def test_a_line_of_figures(tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    throughput.main([*TINY, "--policy", "random", "--batch", "2", "--json", str(path)])
    (random,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(random) >= FIELDS
    assert (random["policy"], random["batch"], random["ticks"]) == ("random", 2, 4)
    assert random["min_steps_per_s"] <= random["steps_per_s"] <= random["max_steps_per_s"]
    assert random["ratio_to_scalar"] == pytest.approx(random["steps_per_s"] / random["scalar_steps_per_s"])
    assert "observation" in random["includes"]


def test_curve_prints_and_draws(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(throughput.CURVES, "entities", (12,))
    path = tmp_path / "curve.png"
    throughput.main([*TINY, "--curve", "entities", "--policy", "evidence", "--batch", "2", "--plot", str(path)])
    out, err = capsys.readouterr()
    (line,) = map(json.loads, out.splitlines())
    assert (line["assets"], line["identities"]) == (6, 6)
    assert line["ratio_to_scalar"] is None  # the twin has no such policy
    assert err.count("ns per step") == 1
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("curve", ["entities", "stages", "horizon"])
def test_synthetic_scenarios_are_valid_and_of_that_size(curve: str) -> None:
    for size in throughput.CURVES[curve][:4]:
        scenario = throughput.synthetic(**{curve: size})
        sizes = {
            "entities": len(scenario.assets) + len(scenario.identities),
            "stages": len(scenario.stages),
            "horizon": scenario.horizon,
        }
        assert sizes[curve] == size


def test_lanes_play_the_episodes_of_rollout(arena: tuple[env.Env, Any]) -> None:
    environment, params = arena
    policy, parameters = BASELINES["heuristic"]
    key, batch = jax.random.key(3), 4
    stats = rollout(environment, params, policy, parameters, key, 64)
    ticks = 20
    points, _, episode = throughput.steps(
        environment.dims, policy, ticks, parameters, params, key, np.arange(batch, dtype=np.int32)
    )
    for lane in range(batch):
        mine = np.arange(lane, 64, batch)
        ends = np.cumsum(stats.length[mine])
        over = int(np.searchsorted(ends, ticks, side="right"))  # episodes that ended in time
        assert int(episode[lane]) == lane + over * batch
        whole = float(stats.episode_return[mine[:over]].sum())
        if over and ends[over - 1] == ticks:
            assert float(points[lane]) == pytest.approx(whole, abs=1e-4)


def test_checksum_reads_every_leaf(arena: tuple[env.Env, Any]) -> None:
    environment, params = arena
    obs, _ = jax.jit(environment.reset)(jax.random.key(0), params)
    leaves, shape = jax.tree.flatten(obs)
    before = int(throughput.checksum(obs))
    for i, leaf in enumerate(leaves):
        other = ~leaf if leaf.dtype == bool else leaf + leaf.dtype.type(1)
        assert int(throughput.checksum(shape.unflatten([*leaves[:i], other, *leaves[i + 1 :]]))) != before


def test_compiled_work_depends_on_the_observation(arena: tuple[env.Env, Any]) -> None:
    environment, params = arena
    policy, parameters = BASELINES["random"]
    run = partial(throughput.steps, environment.dims, policy, 3, parameters)
    episodes = np.arange(2, dtype=np.int32)
    _, seen, _ = run(params, jax.random.key(0), episodes)
    # Nothing that decides an episode reads the value of an entity, but the observation shows it.
    changed = params._replace(scenario=params.scenario._replace(value=params.scenario.value + 0.25))
    _, other, _ = run(changed, jax.random.key(0), episodes)
    assert (np.asarray(seen) != np.asarray(other)).all()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--policy", "plan:MONITOR"], ["--policy", "choose one of"]),
        (["--batch", "0"], ["--batch", "'0'", "whole number from 1"]),
        (["--ticks", "many"], ["--ticks", "'many'"]),
        (["--curve", "asset"], ["--curve", "'asset'"]),
        (["--plot", "x.png"], ["--plot", "add --curve"]),
        (["--curve", "batch", "--batch", "2"], ["--batch", "leave one"]),
        (["--curve", "stages", "--scenario", "insider_repo_pivot"], ["--scenario", "leave one"]),
        (["--scenario", "all"], ["--scenario", "'all'", "name one"]),
        (["--json", "/no/such/folder/x"], ["--json", "create it first"]),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str], said: list[str]
) -> None:
    monkeypatch.setattr(throughput, "measure", None)  # refused before anything is timed
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: throughput.main(argv))
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.count("\n") == 1
    assert all(part in message for part in said), message
