"""Files of JSON lines: a value a line, added as it comes, and gone on with after any interruption.

Only a line feed ends a line, and what is written is ASCII: texts may hold U+2028 and whatever else ends a line
somewhere, and no reader must find an end inside one.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Fits = Callable[[Any, int], bool]  # (value, its place in the file) -> whether it may stand there


def encode(values: Iterable[Any]) -> bytes:
    """Values as lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode("ascii")


def append(path: Path, value: Any) -> None:
    """Add a line to a file."""
    with open(path, "ab") as file:
        file.write(encode([value]))


def read(path: Path, fits: Fits = lambda value, place: True) -> list[Any]:
    """The values of a file; [] where there is none. A last line that is cut off or does not fit is left out.

    Raises ValueError when one before it is damaged: then it is not a kill that did it, and work follows that is whole.
    """
    return _read(path, fits)[0]


def resume(path: Path, fits: Fits = lambda value, place: True) -> list[Any]:
    """As `read`, and remove from the file what was left out, so that it can be added to."""
    found, size = _read(path, fits)
    if path.exists() and size < path.stat().st_size:
        os.truncate(path, size)
    return found


def _read(path: Path, fits: Fits) -> tuple[list[Any], int]:
    """The values of a file, and the bytes that they take."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found: list[Any] = []
    for line in lines[:-1]:  # what follows the last line feed is no whole line
        try:
            value = json.loads(line)
            good = fits(value, len(found))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            good = False
        if not good:
            break
        found.append(value)
    rest = len(lines) - len(found) - (not lines[-1])
    if rest > 1:
        raise ValueError(
            f"{path}: line {len(found) + 1} is damaged or of another run, and {rest - 1} more follow it; put the file "
            "back as it was, or delete it to begin it anew"
        )
    return found, sum(len(line) + 1 for line in lines[: len(found)])
