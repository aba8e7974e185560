"""Files and folders that are written whole or not at all: the old or the new content is there, whatever happens."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place. On any failure `path` stays as it was."""
    part = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the final name
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to fill, which then takes its place. On any failure `path` stays as it was."""
    settle(path)
    part, old = _beside(path, "part"), _beside(path, "old")
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
    except BaseException:
        settle(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def settle(path: Path) -> None:
    """Clear up after a process that was killed while it wrote the folder `path`."""
    if not path.exists() and _beside(path, "old").exists():  # killed between the two renames
        os.replace(_beside(path, "old"), path)
    for what in ("part", "old"):
        shutil.rmtree(_beside(path, what), ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")
