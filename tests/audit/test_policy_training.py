"""The files of learned policies, and the command line that trains them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from cells import NO_IDENTITIES
from safetensors.numpy import load_file, save_file

import scenarios
from jaxsim import recurrent
from jaxsim.audit import checkpoint, evaluation, policy_training
from jaxsim.recurrent import MASKED, Weights
from jaxsim.rules import restores
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

TOY = scenarios.loads(NO_IDENTITIES)
WIDTH = 8


@pytest.fixture(autouse=True, scope="module")
def optax() -> Iterator[None]:
    """It mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def weights_of(restore: bool) -> Weights:
    return recurrent.init_weights(jax.random.key(9), WIDTH, restore)


# --- files ----------------------------------------------------------------------------------------------------------

ABOUT = {"rules": "hardened", "reward": "operational", "view": MASKED, "simulator_version": SIMULATOR_VERSION}


def written(folder: Path, restore: bool = False, **about: str) -> Path:
    path = folder / "policy.safetensors"
    path.write_bytes(checkpoint.to_bytes(checkpoint.Checkpoint(weights_of(restore), ABOUT | about)))
    return path


def rewritten(folder: Path, **tensors: np.ndarray | None) -> Path:
    """A checkpoint in which some tensors are others, or None."""
    path = written(folder)
    changed = {k: v for k, v in (load_file(path) | tensors).items() if v is not None}
    save_file(changed, path, metadata={**ABOUT, "format": checkpoint.FORMAT})
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError, match="train") as error:
        checkpoint.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "train-policy" in message and "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("restore", [False, True])
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, restore: bool) -> None:
    found = checkpoint.load(written(tmp_path, restore, note="by hand"))
    assert found.restores == restore
    chex.assert_trees_all_equal(found.weights, jax.tree.map(np.asarray, weights_of(restore)))
    assert found.view == MASKED and {k: v for k, v in found.about.items() if k != "format"} == ABOUT | {
        "note": "by hand"
    }
    assert bool(found.learned.greedy)


def test_a_checkpoint_of_another_simulator_is_refused(tmp_path: Path) -> None:
    refused(written(tmp_path, simulator_version="0"), "simulator_version = '0'", "train it again")


@pytest.mark.parametrize(
    ("version", "game"), [("1", ("hardened1", "operational1")), ("2", ("hardened2", "operational"))]
)
def test_a_checkpoint_of_an_older_simulator_keeps_its_game(tmp_path: Path, version: str, game: tuple[str, str]) -> None:
    about = checkpoint.load(written(tmp_path, simulator_version=version)).about
    assert (about["rules"], about["reward"]) == game


def test_a_policy_that_comes_with_the_project_is_where_its_game_is_looked_for() -> None:
    kept = sorted(checkpoint.OWN.glob("*.safetensors"))
    assert {path.name.partition("-")[0] for path in kept} == {"hardened1", "hardened2", "hardened"}
    for path in kept:
        made = checkpoint.load(path)
        assert path == checkpoint.own(made.about["rules"], made.about["reward"], made.view)
        assert made.restores == restores(made.about["rules"])


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors")
    whole = written(tmp_path).read_bytes()
    for name, content in (("empty", b""), ("text", b"not a policy"), ("cut", whole[:-10]), ("header", whole[:100])):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a readable safetensors file")
    refused(written(tmp_path, view="sideways"), "not a policy of this project")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other")
    refused(tmp_path / "other", "not a policy of this project")


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"act_own": np.zeros((WIDTH, 3), np.float32)}, "act_own has shape (8, 3), not (8, 4)"),
        ({"embed": None}, "embed has shape None"),
        ({"embed_bias": None}, "has shape"),
        ({"embed_bias": np.zeros((), np.float32)}, "has shape"),
        ({"embed_bias": np.zeros((1 << 20), np.float32)}, "has shape"),
        ({"more": np.zeros(1, np.float32)}, "more has shape (1,), not None"),
        ({"wait_bias": np.float32([np.nan])[0]}, "no finite float32"),
        ({"act_bias": np.float32([0, 0, np.inf, 0])}, "no finite float32"),
        ({"act_bias": np.zeros(5, np.float32)}, "act_own has shape (8, 4), not (8, 5)"),
        ({"act_bias": np.zeros(4, np.float64)}, "no finite float32"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path: Path, tensors: dict[str, Any], word: str) -> None:
    refused(rewritten(tmp_path, **{k: None if v is None else np.asarray(v) for k, v in tensors.items()}), word)


# --- the command line -----------------------------------------------------------------------------------------------


def train(monkeypatch: pytest.MonkeyPatch, *argv: str) -> Any:
    """The trainer's exit code."""
    monkeypatch.setattr(sys, "argv", ["train-policy", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.run(policy_training.main)
    return ended.value.code


HELD_OUT = [s.id for s in (scenarios.load(n) for g in scenarios.GROUPS for n in scenarios.names(g)) if s.held_out]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        *((["--scenario", name], ["--scenario", name, "held out"]) for name in HELD_OUT),
        (["--scenario", "nope"], ["--scenario", "nope", "built-in are"]),
        (["--view", "blind"], ["--view", "'blind'", "seeing, alerts, masked, privileged"]),
        (["--rules", "modern"], ["--rules", "'modern'", "classic, hardened"]),
        (["--reward", "operatonal"], ["--reward", "did you mean operational?"]),
        (["--lanes", "6"], ["--lanes 6", "multiple of 4"]),
        (["--updates", "0"], ["--updates", "'0'", "whole number"]),
        (["--generated", "many"], ["--generated", "'many'"]),
        (["--width", "-1"], ["--width", "'-1'"]),
        (["--learning-rate", "0"], ["--learning-rate 0", "give more"]),
        (["--weight", "investigation"], ["--weight", "'investigation'", "no name and number"]),
        (["--weight", "looking=-0.1"], ["--weight", "'looking' is unknown", "investigation"]),
        (["--weight", "clip=-1"], ["--weight", "clip = -1.0", "at least 0"]),
        (["--weight", "exfil=nan"], ["--weight", "exfil = nan", "not a number"]),
        (["--weight", "exfil=-1", "exfil=-2"], ["--weight", "twice"]),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: list[str],
    said: list[str],
) -> None:
    monkeypatch.setattr(policy_training, "best_of_family", None)  # refused before anything is simulated
    assert train(monkeypatch, *argv, "--out", str(tmp_path)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(part in message for part in said), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("restore", "rules", "said"),
    [(True, "hardened1", "with RESTORE"), (False, "hardened", "without RESTORE")],
)
def test_training_goes_on_under_rules_with_the_same_verbs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, restore: bool, rules: str, said: str
) -> None:
    argv = ["--view", MASKED, "--start", str(written(tmp_path, restore)), "--rules", rules]
    with pytest.raises(SystemExit):
        policy_training.begun(policy_training.arguments(argv))
    message = capsys.readouterr().err
    assert f"was trained {said}; give --rules hardened" in message and message.count("\n") == 1


def test_what_learned_to_restore_is_not_played_where_there_is_no_such_verb(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(written(tmp_path, restore=True))
    policy, parameters = evaluation.learned(path, "hardened", "operational")
    assert policy == recurrent.POLICIES[MASKED] and parameters.weights.act_bias.shape == (recurrent.HEADS + 1,)
    with pytest.raises(SystemExit):
        evaluation.learned(path, "hardened1", "operational")
    message = capsys.readouterr().err
    assert "which --rules hardened1 do not bring; add +liftable" in message and message.count("\n") == 1


def test_held_out_scenarios_and_their_split_are_never_among_those_trained_on() -> None:
    assert HELD_OUT
    many = policy_training.training_scenarios(policy_training.cli.argparse.Namespace(scenario=None, generated=3))
    assert len(many) == 6 + 3 and not any(s.held_out for s in many)


@pytest.mark.slow
def test_two_updates_write_their_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "toy.yaml").write_text(scenarios.dump(TOY))
    small = ["--generated", "0", "--updates", "2", "--lanes", "8", "--width", "4", "--view", MASKED]
    options = ["--scenario", str(tmp_path / "toy.yaml"), "--rules", "classic", "--reward", "linear", "--out"]
    monkeypatch.setattr(policy_training, "MEASURED", 32)
    assert train(monkeypatch, *small, *options, str(tmp_path / "out")) == 0
    stem = f"classic-linear-{MASKED}"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{stem}.csv", f"{stem}.safetensors"]
    log = (tmp_path / "out" / f"{stem}.csv").read_text().splitlines()
    assert log[0] == "update,phase,return,entropy,loss"
    assert [line.split(",")[:2] for line in log[1:]] == [["0", "PPO"], ["1", "PPO"]]
    found = checkpoint.load(tmp_path / "out" / f"{stem}.safetensors")
    assert found.view == MASKED and found.weights.embed.shape[1] == 4 and found.about["scenarios"] == TOY.id
    assert found.about["weight"] == "" and stem in capsys.readouterr().out
    nothing = ["clip=0", "exfil=0", "exfil_stage_left=0", "clean=0", "stage_left=0"]
    # A reward of which nothing is left: nothing is earned in training, and what it earns is measured as before.
    assert train(monkeypatch, *small, "--weight", *nothing, *options, str(tmp_path / "other")) == 0
    log = (tmp_path / "other" / f"{stem}.csv").read_text().splitlines()
    assert [float(line.split(",")[2]) for line in log[1:]] == [0, 0]
    assert checkpoint.load(tmp_path / "other" / f"{stem}.safetensors").about["weight"].startswith("clip=0.0 exfil=0.0 ")
    assert "mean return 0.00" not in capsys.readouterr().out
