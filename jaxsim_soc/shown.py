"""Output that never decides whether work is kept: closed pipes, full disks and narrow encodings end no tool."""

import errno
import io
import os
import sys
from typing import Any


class _Shown(io.FileIO):
    """Standard output or error that takes everything: once it cannot be written, the rest is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            if error.errno != errno.EPIPE:  # not a reader that has seen enough
                unshown.append(f"standard output: {error.strerror}; what was to be shown is not whole")
            return len(data)


unshown: list[str] = []  # what went wrong while showing, but for readers that have gone


def outlast_readers() -> None:
    """Let no reader of standard output or error, nor an encoding that lacks a character, end what a tool does."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            buffer = io.BufferedWriter(_Shown(stream.fileno(), "wb", closefd=False))
            at_once = stream.line_buffering or stream.write_through
            shown = io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=at_once)
            setattr(sys, name, shown)
