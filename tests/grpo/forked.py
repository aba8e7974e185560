"""Processes to be killed, forked from one that has imported what takes long to import.

Importing is most of what one costs that is killed after some seconds of work. What they are forked from has one thread
only, and of JAX no more than its module.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["grpo.playing.evaluation"])


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


def ended(process: BaseProcess) -> int | None:
    """Its exit code."""
    process.join()
    return process.exitcode
