"""Text to plain data: mappings, lists, text, numbers, true, false and null, from YAML or JSON.

YAML is read from parser events, without any constructor of the YAML library, so a file can only ever become
plain data. Tags, anchors, aliases, repeated fields, further documents and deep nesting are reported, and so
are words on whose meaning YAML readers disagree, such as `no` or 1_000.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from scenarios.checks import Loc, Problem
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
_START = "write a scenario into it (`python -m scenarios schema` describes every field)"
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep, where a scenario needs 4; remove the extra brackets"
_TOO_MANY = f"the file has more than {MAX_VALUES:,} values; make the scenario smaller"


@dataclass(frozen=True, slots=True)
class Odd:
    """A plain word that is no plain data; whatever field it is given for will refuse it and say `why`."""

    text: str
    why: str

    def __str__(self) -> str:
        return self.text


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


def read(text: str, as_json: bool) -> Tree:
    """Read a text as JSON, or else as YAML. Never raises on bad input: look at `problems`."""
    text = text.removeprefix("\ufeff")
    bad = _UNPRINTABLE.search(text)
    if bad:
        message = f"character U+{ord(bad[0]):04X} is not allowed; remove it (is this a text file?)"
        return _failed(Problem((), message, text.count("\n", 0, bad.start()) + 1))
    if not text.strip():
        return _failed(Problem((), f"the file is empty; {_START}"))
    return _read_json(text) if as_json else _read_yaml(text)


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


def _read_yaml(text: str) -> Tree:
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
        return _failed(Problem((), f"the file holds only comments; {_START}"))
    return Tree(build.data, build.problems, build.lines)


def _take(build: _Builder, event: yaml.Event) -> None:
    line = event.start_mark.line + 1 if event.start_mark else 0
    if isinstance(event, yaml.DocumentStartEvent):
        build.documents += 1
        if build.documents > 1:
            build.note("a second document starts here; put each scenario in a file of its own", line, stop=True)
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
        return Odd(text, "which is not a number a scenario can hold; write a plain one, such as 0.5")

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
