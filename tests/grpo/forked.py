"""Commands in processes that may be killed, forked from one that has imported what takes long to import.

Torch, TRL and PEFT are most of what a command costs that is killed after a few seconds of work. What they are forked
from has one thread only, and of JAX no more than its module.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jaxsim_soc import commands

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["grpo.training.stages", "grpo.learning.optimise"])


def started(said: Path, folder: Path, run: Callable[..., Any], *given: Any) -> BaseProcess:
    """A process in which `run` is called, in a folder; what it says is added to a file."""
    process = CONTEXT.Process(target=_called, args=(said, folder, run, given), daemon=True)
    process.start()
    return process


def _called(said: Path, folder: Path, run: Callable[..., Any], given: Sequence[Any]) -> None:
    with open(said, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    run(*given)


def front_door(words: Sequence[str]) -> None:
    """`jaxsim-soc WORDS`."""
    sys.argv = ["jaxsim-soc", *words]
    commands.main()


def ended(process: BaseProcess) -> int | None:
    """Its exit code."""
    process.join()
    return process.exitcode
