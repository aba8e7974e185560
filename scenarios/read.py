"""Text to plain data: mappings, lists, text, numbers, true, false and null, from YAML or JSON.

YAML is read from parser events, without any constructor of the YAML library, so a file can only ever become
plain data. Tags, anchors, aliases, repeated fields, further documents and deep nesting are reported, and so
are words on whose meaning YAML readers disagree, such as `no` or 1_000.
"""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import yaml

from scenarios.checks import MAX_PROBLEMS, Loc, Problem
from scenarios.wording import show

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 16
MAX_VALUES = 1_000_000  # more than twice what the largest allowed scenario holds

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_TEXT_TAG = "tag:yaml.org,2002:str"

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_ODD_NUMBER = re.compile(
    r"[-+]?(0x[0-9a-f_]+|0o[0-7_]+|0b[01_]+|\d[\d_]*(:[0-5]?\d)+(\.\d*)?|\d[\d_]*\.?[\d_]*(e[-+]?\d+)?"
    r"|\.\d[\d_]*(e[-+]?\d+)?|\.inf|\.nan)",
    re.IGNORECASE,
)
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([Tt \t].*)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_ODD_WORDS = {"yes", "no", "on", "off", "true", "false", "null"}  # in other spellings than those of _WORDS

_QUOTE = "put it in quotes if text is meant"
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep; remove the extra brackets"
_TOO_MANY = f"the file has more than {MAX_VALUES:,} values; make it smaller"


@dataclass(frozen=True, slots=True)
class Odd:
    """A plain word that is no plain data; whatever field it is given for will refuse it and say `why`."""

    text: str
    why: str

    def __str__(self) -> str:
        return self.text


class Unreadable(ValueError):
    """A file without a text that can be read; the message, one line, says what to do."""


class Tree(NamedTuple):
    """What was read. `data` is of use only when there are no problems."""

    data: Any
    problems: list[Problem]
    lines: dict[int, dict[str | int, int]]  # id of a mapping or list -> its key or position -> line, from 1

    def line(self, loc: Loc) -> int:
        """The line of the deepest part of `loc` that is in the file; 0 when not known."""
        line, node = 0, self.data
        for key in loc:
            line = self.lines.get(id(node), {}).get(key, line)
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                break
        return line

    def at(self, loc: Loc) -> Any:
        """The value at `loc`; None when there is none."""
        node = self.data
        for key in loc:
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                return None
        return node


def read(text: str, as_json: bool, noun: str = "scenario") -> Tree:
    """Read a text as JSON, or else as YAML. Never raises on bad input: look at `problems`.

    `noun` is what the text should hold, for messages.
    """
    if len(text) > MAX_FILE_BYTES:
        return _failed(Problem((), _too_long(len(text), noun)))
    text = text.removeprefix("\ufeff")
    bad = _UNPRINTABLE.search(text)
    if bad:
        message = f"character U+{ord(bad[0]):04X} is not allowed; remove it (is this a text file?)"
        return _failed(Problem((), message, text.count("\n", 0, bad.start()) + 1))
    if not text.strip():
        return _failed(Problem((), f"the file is empty; write a {noun} into it"))
    return _read_json(text) if as_json else _read_yaml(text, noun)


def odd(data: Any, loc: Loc = ()) -> Iterator[Problem]:
    """A problem for each `Odd` word in what was read."""
    if isinstance(data, Odd):
        yield Problem(loc, f"got {data}, {data.why}")
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from odd(value, (*loc, key))


def plain(text: str) -> Any:
    """What an unquoted YAML word stands for; `Odd` when readers of YAML do not agree about that."""
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text):
        return _number(text)
    if len(text) > 64:  # the patterns below take quadratic time
        return text
    if text.lower() in _ODD_WORDS:
        words = "null" if text.lower() == "null" else "true or false"
        return Odd(text, f"on which YAML readers disagree; write {words}, or {_QUOTE}")
    if _ODD_NUMBER.fullmatch(text):
        return Odd(text, f"which is not a plain number; write digits only, such as 12 or 0.5, or {_QUOTE}")
    if _DATE.fullmatch(text):
        return Odd(text, f"which YAML takes for a date; {_QUOTE}")
    return text


def _number(text: str) -> int | float | Odd:
    if text.lstrip("-").isdigit():
        return int(text) if len(text) <= 18 else Odd(text, "which is too long a number; write at most 18 digits")
    value = float(text)
    return value if math.isfinite(value) else Odd(text, "which is too large a number; write a smaller one")


def _failed(problem: Problem) -> Tree:
    return Tree(None, [problem], {})


class _Stop(Exception):
    """Reading on makes no sense; the problem has been noted."""


_NO_KEY = object()


@dataclass
class _Builder:
    """Grows plain data value by value, and knows at every moment where in the file it is."""

    data: Any = None
    problems: list[Problem] = field(default_factory=list)
    lines: dict[int, dict[str | int, int]] = field(default_factory=dict)
    opened: list[list[Any]] = field(default_factory=list)  # [container, key that waits for its value, loc]
    values: int = 0
    documents: int = 0

    def loc(self) -> Loc:
        """The path of the value that comes next."""
        if not self.opened:
            return ()
        node, key, loc = self.opened[-1]
        if isinstance(node, list):
            return (*loc, len(node))
        return loc if key is _NO_KEY else (*loc, key)

    def note(self, message: str, line: int, stop: bool = False) -> None:
        self.problems.append(Problem(self.loc(), message, line))
        if stop or len(self.problems) > 100:
            raise _Stop

    def put(self, value: Any, line: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            self.note(_TOO_MANY, line, stop=True)
        if not self.opened:
            self.data = value
            return
        frame = self.opened[-1]
        node, key, _ = frame
        if isinstance(node, list):
            self.lines[id(node)][len(node)] = line
            node.append(value)
        elif key is _NO_KEY:
            frame[1] = self.key(node, value, line)
        else:
            node[key] = value
            frame[1] = _NO_KEY

    def key(self, node: dict[str, Any], value: Any, line: int) -> str:
        if not isinstance(value, str):
            self.note(f"a field is called {show(value)}, which is not text; put the name in quotes", line)
            return show(value)
        if value in node:
            first = self.lines[id(node)][value]
            self.note(f"field {show(value)} is given twice, first on line {first}; remove one", line)
        self.lines[id(node)][value] = line
        return value

    def open(self, node: dict[str, Any] | list[Any], line: int) -> None:
        if len(self.opened) >= MAX_DEPTH:
            self.note(_TOO_DEEP, line, stop=True)
        if self.opened and self.opened[-1][1] is _NO_KEY and isinstance(self.opened[-1][0], dict):
            self.note("a field name is a list or mapping; write a plain word and a colon", line, stop=True)
        self.lines[id(node)] = {}
        loc = self.loc()
        self.put(node, line)
        self.opened.append([node, _NO_KEY if isinstance(node, dict) else None, loc])


def _read_yaml(text: str, noun: str) -> Tree:
    build = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            _take(build, event)
    except _Stop:
        pass
    except yaml.MarkedYAMLError as error:
        build.problems.append(_yaml_problem(error, text))
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        build.problems.append(Problem((), f"is not YAML: {str(error)[:200]}; correct the file"))
    if not build.documents and not build.problems:
        return _failed(Problem((), f"the file holds only comments; write a {noun} into it"))
    return Tree(build.data, build.problems, build.lines)


def _take(build: _Builder, event: yaml.Event) -> None:
    line = event.start_mark.line + 1 if event.start_mark else 0
    if isinstance(event, yaml.DocumentStartEvent):
        build.documents += 1
        if build.documents > 1:
            build.note("a second document starts here; put each in a file of its own", line, stop=True)
    elif isinstance(event, yaml.AliasEvent):
        build.note(f"alias {show(event.anchor)} is not supported; write the value out", line)
        build.put(None, line)
    elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
        _take_value(build, event, line)
    elif isinstance(event, yaml.CollectionEndEvent):
        build.opened.pop()


def _take_value(build: _Builder, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
    if event.anchor is not None:
        build.note(f"anchor {show(event.anchor)} is not supported; remove it and write values out", line)
    if event.tag is not None and event.tag not in _CORE_TAGS:
        build.note(f"tag {show(event.tag)} is not supported; remove it and write a plain value", line)
    if isinstance(event, yaml.ScalarEvent):
        quoted = bool(event.style) or event.tag == _TEXT_TAG
        build.put(event.value if quoted else plain(event.value), line)
    else:
        build.open({} if isinstance(event, yaml.MappingStartEvent) else [], line)


def _yaml_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    what = str(error.problem or error.context or "it cannot be read")
    begun, mark = error.context_mark, error.problem_mark or error.context_mark
    if "quoted scalar" in str(error.context):
        mark, remedy = begun, "close the quotes"
    elif "mapping values" in what:
        remedy = "text with ': ' in it needs quotes around it; otherwise check the indentation"
    elif "tab" in what or "cannot start any token" in what:
        remedy = "indent with spaces, not tabs, and put quotes around text that begins with @, ` or %"
    else:
        remedy = "check the indentation, brackets and quotes here and just above"
    if mark is None:
        return Problem((), f"is not YAML: {what}; {remedy}")
    rows = text.splitlines()
    found = f" of {show(rows[mark.line].strip())}" if mark.line < len(rows) else ""
    inside = f", in what begins on line {begun.line + 1}" if begun and begun.line != mark.line else ""
    return Problem((), f"is not YAML at column {mark.column + 1}{found}{inside}: {what}; {remedy}", mark.line + 1)


def _read_json(text: str) -> Tree:
    if text.count(",") > MAX_VALUES:  # before memory is taken for them
        return _failed(Problem((), _TOO_MANY))
    repeated: dict[int, tuple[str, Any]] = {}  # holds the mapping too, or its id might be used again

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        node = dict(pairs)
        if len(node) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated[id(node)] = (counts.most_common(1)[0][0], node)
        return node

    def constant(text: str) -> Odd:
        return Odd(text, "which is no number that JSON knows; write a plain one, such as 0.5")

    try:
        data = json.loads(text, object_pairs_hook=mapping, parse_int=plain, parse_float=plain, parse_constant=constant)
    except json.JSONDecodeError as error:
        message = f"is not JSON at column {error.colno}: {error.msg}; check the quotes, commas and brackets there"
        return _failed(Problem((), message, error.lineno))
    except RecursionError:
        return _failed(Problem((), _TOO_DEEP))
    return Tree(data, list(_json_problems(data, repeated)), {})


def _json_problems(data: Any, repeated: dict[int, tuple[str, Any]]) -> Iterator[Problem]:
    todo: list[tuple[Loc, Any]] = [((), data)]
    values = 0
    while todo:
        loc, node = todo.pop()
        values += 1
        if values > MAX_VALUES:
            yield Problem((), _TOO_MANY)
            return
        if isinstance(node, dict | list):
            if len(loc) >= MAX_DEPTH:
                yield Problem(loc, _TOO_DEEP)
                return
            if id(node) in repeated:
                yield Problem(loc, f"field {show(repeated[id(node)][0])} is given twice; remove one")
            inner = node.items() if isinstance(node, dict) else enumerate(node)
            todo.extend(((*loc, key), value) for key, value in inner)


# --- files and messages ----------------------------------------------------------------------------------------------


def file_text(path: str, noun: str = "scenario") -> str:
    """The text of a regular UTF-8 file of at most MAX_FILE_BYTES. Raises Unreadable; `noun` is what it should hold."""
    return _decode(_read_bytes(path, noun), path)


def _read_bytes(path: str, noun: str) -> bytes:
    try:
        info, data = os.stat(path), b""
        if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_FILE_BYTES:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        remedy = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        raise Unreadable(f"{printable(path)}: {why[:1].lower() + why[1:]}; {remedy}") from None
    if stat.S_ISDIR(info.st_mode):
        raise Unreadable(f"{printable(path)}: is a directory; give the path of a file in it")
    if not stat.S_ISREG(info.st_mode):
        raise Unreadable(f"{printable(path)}: is not a regular file; copy the {noun} into one")
    size = max(info.st_size, len(data))  # it may have grown
    if size > MAX_FILE_BYTES:
        raise Unreadable(f"{printable(path)}: {_too_long(size, noun)}")
    return data


def _too_long(size: int, noun: str) -> str:
    return f"is {size:,} bytes long, the limit is {MAX_FILE_BYTES:,}; make the {noun} smaller"


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = "looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise Unreadable(f"{printable(source)}:{line}: is not UTF-8 text ({found}); save the file as UTF-8") from None


def report(problems: Iterable[Problem], tree: Tree, source: str) -> list[str]:
    """A line for each problem, `file:line: path: message`, at most 20 and a count."""
    problems = iter(problems)
    lines = [_line(problem, tree, source) for problem in islice(problems, MAX_PROBLEMS)]
    if next(problems, None) is not None:
        lines.append(f"{printable(source)}: and more problems; correct these first")
    return lines


def _line(problem: Problem, tree: Tree, source: str) -> str:
    number = problem.line or tree.line(problem.loc)
    parts = [printable(source) + (f":{number}" if number else "")]
    if problem.loc:
        parts.append(_path(problem.loc, tree))
    return ": ".join([*parts, problem.message])


def _path(loc: Loc, tree: Tree) -> str:
    """A path such as `stages[2].dwell (payments-pivot)`, with the id of the entry it is in."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w.-]{1,60}", part, re.ASCII) else show(part)
            path += f".{name}" if path else name
    entry = tree.at((*loc[:2], "id")) if len(loc) >= 2 else None
    return f"{path} ({entry})" if isinstance(entry, str) and re.fullmatch(r"[\w.-]{1,64}", entry) else path


def printable(text: str) -> str:
    """A text that may stand in a message."""
    return text if text.isprintable() else repr(text)
