"""What the command-line tools share: argument types, one-line errors, and files that are written whole or not at all.

Imports nothing but the standard library until it is needed: every tool waits for this.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from jaxsim_soc import shown
from jaxsim_soc.write import whole as write_file

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
MAX_SEED = 2**32 - 1
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
DIGITS = re.compile(r"[-+]?[0-9]{1,18}")  # Python's int takes 1_000 and digits of any script too
PULSE = 30.0  # seconds between lines of progress where there is no terminal


def prog() -> str:
    """What the user called, for usage and error lines."""
    path = Path(sys.argv[0])
    return f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name


def in_one_line(problems: Sequence[str]) -> str:
    """The first problem of a scenario file, and how many more there are."""
    first, *more = problems
    return first + (f" (and {len(more)} more; `jaxsim-soc scenarios validate` lists them)" if more else "")


def fail(message: str) -> NoReturn:
    """End the program: one line on stderr, exit code 2."""
    one_line = " ".join(line.strip() for line in message.splitlines()).encode("utf-8", "backslashreplace").decode()
    print(f"{prog()}: error: {one_line}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, options are not abbreviated, and arguments are text that a file can hold."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in sys.argv[1:] if args is None else args:
            if re.search("[\ud800-\udfff]", word):
                self.error(f"{word!r:.200} is not UTF-8 text; rename what it names")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        fail(f"{message.removeprefix('argument ')} (--help shows every option)")


def parser(doc: str | None) -> Parser:
    """A parser whose help begins with a module's docstring."""
    p = Parser(prog=prog(), description=doc)
    p.add_argument("--version", action="version", version=f"jaxsim-soc {version()}", help="show the version and exit")
    return p


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's main function and exit with the code it returns, 0 for None.

    What cannot be read, written or simulated is one line, not a traceback.
    """
    shown.outlast_readers()
    try:
        code = main()
    except KeyboardInterrupt:
        print(f"{prog()}: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}; nothing was written there")
    except ValueError as error:
        if not (problems := getattr(error, "problems", ())):  # those of a scenarios.ScenarioError
            raise
        fail(in_one_line(problems))
    sys.stdout.flush()
    if shown.unshown:
        fail(shown.unshown[0])
    raise SystemExit(code or 0)


def need(module: str, why: str, extra: str = "bench") -> None:
    """Fail when an optional package is not installed."""
    if find_spec(module) is None:
        fail(f"{why} needs the package {module}, which is not installed: pip install 'jaxsim-soc[{extra}]'")


def version() -> str:
    """The version that is installed."""
    return metadata.version("jaxsim-soc")


@contextmanager
def progress(total: int | None = None, *, done: int = 0, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Gives `advance(what, steps=1)`: a bar on stderr, or, where that is no terminal, a line every half minute."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=quiet)
    counted = [] if total is None else [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    columns = (TextColumn("{task.description}"), *counted, TimeElapsedColumn())
    began = told = time.monotonic()
    lock = threading.Lock()  # some call from several threads
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(what: str, steps: int = 1) -> None:
            nonlocal done, told
            with lock:
                done += steps
                bar.update(task, completed=done, description=escape(what))
                now = time.monotonic()
                if now - told >= PULSE and not (console.is_terminal or quiet):
                    told = now
                    of = "" if total is None else f" ({done} of {total})"
                    print(f"{now - began:.0f} s: {what}{of}", file=sys.stderr, flush=True)

        yield advance


# --- argument types -------------------------------------------------------------------------------------------------


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """The type of an argument that is one of `names`."""
    known = list(names)

    def check(text: str) -> str:
        if text in known:
            return text
        near = get_close_matches(text, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; {hint}")

    return check


def fraction(text: str) -> float:
    """The type of an argument that is a number of at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0 and below 1, such as 0.2")


def assignment(text: str) -> tuple[str, float]:
    """The type of an argument that is a name and a number, NAME=NUMBER."""
    name, equals, number = text.partition("=")
    try:
        if name and equals:
            return name, float(number)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r:.60} is no name and number; give both, such as investigation=-0.02")


def integer(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `low` to `high`."""
    room = f"of at least {low}" if high == sys.maxsize else f"from {low} to {high}"

    def check(text: str) -> int:
        value = int(text) if DIGITS.fullmatch(text) else low - 1
        if low <= value <= high:
            return value
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not possible; give a whole number {room}")

    return check


positive_int = integer(1)
seed = integer(0, MAX_SEED)


def another(seed: int, by: int) -> int:
    """A seed `by` further on; after the largest one comes 0."""
    return (seed + by) % (MAX_SEED + 1)


def output_path(text: str) -> Path:
    """A file that can be written: refused now rather than after the work. An existing file will be replaced."""
    path = Path(os.path.realpath(text))
    if not text:
        raise argparse.ArgumentTypeError("'' is no file name; give the name of a file")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory; give the name of a file")
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular file; give the name of one")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {str(path.parent)!r} is no directory; create it first")
    try:
        with open(_beside(path), "xb"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: cannot write there ({error.strerror}); choose another directory"
        ) from None
    _beside(path).unlink()
    return path


def output_folder(text: str) -> Path:
    """A folder that is there and can be written, or can be made; it is not made yet."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder name; give the name of one")
    path = Path(text)
    try:
        real = Path(os.path.realpath(path))  # a link may lead to a folder that is still to be made
        nearest = next(p for p in (real, *real.parents) if os.path.lexists(p))
        if not nearest.is_dir():
            inside = "" if nearest == path else f"{text!r:.200}: "
            raise argparse.ArgumentTypeError(f"{inside}{str(nearest)!r:.200} is no folder; give another name")
        path.name.encode()
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a file"
        raise argparse.ArgumentTypeError(f"{text!r:.200}: cannot write there ({why}); choose another folder") from None
    return path


def input_file(text: str) -> Path:
    """A regular file, to read."""
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text!r:.200} is no file; give the path of one")
    return Path(text)


def input_folder(text: str) -> Path:
    """A folder, to read."""
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r:.200} is no folder; give the path of one")
    return Path(text)


def plot_path(text: str) -> Path:
    """An output path whose ending names a picture format."""
    if not text.lower().endswith(PLOT_SUFFIXES):
        raise argparse.ArgumentTypeError(f"{text!r} is no picture; end it in one of {', '.join(PLOT_SUFFIXES)}")
    return output_path(text)


def differ(**paths: Path | None) -> None:
    """Fail when two of the output options name the same file."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is not None and seen.setdefault(path, name) != name:
            fail(f"--{name} and --{seen[path]} both name {str(path)!r}; give two different files")


# --- output files ---------------------------------------------------------------------------------------------------


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place. On any failure `path` stays as it was."""
    write_file(path, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all."""
    write_whole(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Raises ValueError for NaN and infinities, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _beside(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}.part")
