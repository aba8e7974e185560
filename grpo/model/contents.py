"""What a run was given, told by what it is rather than by how it is spelled."""

import hashlib
import os
from pathlib import Path

from grpo.model.folders import EMBEDDED


def place(model: str) -> str:
    """The name of a model; that of a folder as its one absolute path, whatever links and dots it was given with."""
    folder = Path(model).expanduser()
    return os.path.realpath(folder) if model != EMBEDDED and folder.is_dir() else model


def fingerprint(folder: Path) -> str | None:
    """Of the files of a folder: names, sizes, the first and the last MiB of each. None for what is no folder."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with open(path, "rb") as file:
            first = file.read(2**20)
            size = file.seek(0, 2)
            file.seek(max(0, size - 2**20))
            digest.update(f"{path.name} {size} ".encode() + first + file.read())
    return digest.hexdigest()
