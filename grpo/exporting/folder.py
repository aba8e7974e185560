"""The folder of an export: whole or not at all, and nobody else's."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grpo.model.errors import ModelError
from jaxsim_soc import cli

NOTE = "export.json"  # what says that a folder is an export


@contextmanager
def replacing(out: Path, restart: bool, inputs: Sequence[Path]) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place when all went well, and goes away when not.

    Fails when `out` holds anything but an export that may be replaced, or another process is writing it.
    """
    out = Path(os.path.realpath(out))
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():  # killed between the two renames
        os.replace(old, out)
    check_target(out, restart, inputs)
    part.mkdir(parents=True, exist_ok=True)
    with held(part, out):
        for left in (old, *part.iterdir()):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        try:
            yield part
            if out.exists():
                os.replace(out, old)
            os.replace(part, out)
        except BaseException:
            if old.exists():
                os.replace(old, out)
            shutil.rmtree(part, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def held(folder: Path, out: Path) -> Iterator[None]:
    """Keep others out of a folder, even once it is renamed. Fails when another process has it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.path.samestat(os.fstat(lock), os.stat(folder))
        except OSError:
            free = False
        if not free:
            cli.fail(f"--out {str(out)!r}: another export is writing there; wait for it, or give another --out")
        yield
    finally:
        os.close(lock)


def check_target(out: Path, restart: bool, inputs: Sequence[Path]) -> None:
    """Fail when a folder may not be written, or replaced."""
    if out.exists() and not out.is_dir():
        cli.fail(f"--out {str(out)!r} is a file; give the name of a folder")
    for path in inputs:
        if path.is_dir() and out in (real := path.resolve(), *real.parents):
            cli.fail(f"--out {str(out)!r} holds {str(path)!r}, which is to be exported; give another --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / NOTE).is_file():
            cli.fail(f"--out {str(out)!r} is a folder with other files in it; give an empty or a new one")
        if not restart:
            cli.fail(f"--out {str(out)!r} holds an export already; give another --out, or --restart to replace it")


def check_room(folder: Path, need: float) -> None:
    """Raises ModelError when a disk has fewer than `need` bytes to spare."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ModelError(
            f"the export needs {need / 1e9:.2f} GB of disk space, {free / 1e9:.2f} GB are free in {folder.parent}; "
            "make room, give an --out on another disk, or --dtype bfloat16"
        )
