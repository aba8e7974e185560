"""The evaluation of a training run: base and adapter in the same episodes, into the run's folder.

The base may be evaluated in a process of its own while the model is trained. Reads the settings, trains nothing.
"""

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from grpo.playing import evaluation
from grpo.training.settings import Settings


def options(out: Path, chosen: Settings) -> list[str]:
    """What the evaluations of base and adapter have in common. One of another number of episodes begins anew."""
    try:
        held = json.loads((out / "evaluation" / "manifest.json").read_text("utf-8"))["episodes"]
    except (OSError, ValueError, KeyError, TypeError):  # the evaluation itself will say what is wrong there
        held = chosen.evaluate_episodes
    return [
        *(["--restart"] if held != chosen.evaluate_episodes else []),
        "--model", chosen.model, "--rules", chosen.rules, "--reward", chosen.reward,
        "--scenario", *chosen.campaigns, "--episodes", str(chosen.evaluate_episodes), "--seed", str(chosen.seed),
        "--decode", chosen.decode, "--asking", chosen.asking, "--layout", chosen.layout,
        "--max-new-tokens", str(chosen.max_completion), "--dtype", chosen.dtype,
        *(["--four-bit"] if chosen.four_bit else []), "--out", str(out / "evaluation"),
    ]  # fmt: skip


def check(out: Path, chosen: Settings) -> None:
    """Fail now for what the evaluation, which comes last, would not accept."""
    evaluation.parse_args([*options(out, chosen), "--policies", *chosen.evaluate_policies])


@contextmanager
def base_beside(out: Path, chosen: Settings) -> Iterator[None]:
    """Meanwhile, evaluate the base in a process of its own if the settings want that; waits for its end.

    Should that fail, the evaluation after it plays what is missing.
    """
    if not (chosen.evaluate_beside and PartialState().is_main_process) or (out / "adapter").exists():
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    command = [sys.executable, "-m", "jaxsim_soc", "evaluate-model", *options(out, chosen)]
    alone = ["--no-shuffle", "--transcripts", "0", "--threads", "1", "--policies"]
    with (
        open(out / "evaluation-base.log", "w") as log,
        subprocess.Popen([*command, *alone], stdout=log, stderr=log) as process,
    ):
        try:
            yield
            process.wait()
        finally:
            process.kill()
            torch.set_num_threads(threads)


def evaluate(out: Path, chosen: Settings) -> list[dict[str, Any]]:
    """Rows of base, adapter and baselines on episodes that nothing was trained on."""
    lock = out / "evaluation" / "lock"
    if lock.exists():  # the base's evaluation may have outlived a run that was killed
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    evaluation.main(
        [
            *options(out, chosen), "--adapter", str(out / "adapter"),
            "--shuffle" if chosen.evaluate_shuffle else "--no-shuffle", "--policies", *chosen.evaluate_policies,
        ]
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads((out / "evaluation" / "rows.json").read_text("utf-8"))
    return found
