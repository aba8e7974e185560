"""Alerts that somebody labelled, from CSV files, and the figures in which streams of alerts are compared. NumPy only.

    >>> from scenarios.labelled_alerts import figures, grouped, read_alerts
    >>> stream = read_alerts("alerts.csv").stream                   # doctest: +SKIP
    >>> figures(grouped(stream, gap=10)).of_attack                  # doctest: +SKIP

Letters: N alerts, P periods: a file, or an episode of the simulator.
"""

import csv
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from scenarios.model import TICK_MINUTES
from scenarios.read import printable
from scenarios.wording import did_you_mean, show

MAX_ALERTS = 20_000_000  # of one file
MAX_LINE = 1 << 20  # characters
LATEST = 1e11  # seconds since 1970: what is beyond is in milliseconds
MINUTES_A_DAY = 24 * 60
# What a column holds, and its name unless another is given.
COLUMNS = {"time": "time", "host": "host", "kind": "name", "label": "label"}
# Labels of what is no attack, in any case.
HARMLESS = ("", "-", "0", "false", "no", "none", "benign", "normal", "false_positive", "fp")

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Stream(NamedTuple):
    """Alerts in any order. A period begins at minute 0."""

    period: Integers  # (N,)
    minute: Floats  # (N,) since the period began
    host: Integers  # (N,) which of its period's, -1 if the alert names none
    kind: Integers  # (N,) what alerts of one cause have in common
    attack: Bools  # (N,)
    minutes: Floats  # (P,) how long each period is
    hosts: Integers  # (P,) how many it has


class Named(NamedTuple):
    """A file: its alerts, and what the numbers in them stand for."""

    stream: Stream
    began: float  # seconds since 1970
    hosts: tuple[str, ...]
    labels: tuple[str, ...]  # those that were taken for an attack


class Figures(NamedTuple):
    """What is compared. NaN where there is nothing to count."""

    host_days: float
    alerts: int
    of_attack: float  # share
    of_attack_meanwhile: float  # share after the first alert of the attack, up to its last
    others: float  # alerts that are of no attack, a tick
    attack_meanwhile: float  # alerts of the attack a tick, after its first, up to its last
    others_host_day: float  # alerts that are of no attack and name a host, a host a day
    attack_host_day: float
    gaps: tuple[float, float, float]  # minutes from an alert to the next: 10th, 50th and 90th percentile
    attack_gaps: tuple[float, float, float]  # the same of the alerts of the attack


# --- files ------------------------------------------------------------------------------------------------------------


def read_alerts(
    path: str | os.PathLike[str], columns: Mapping[str, str] = COLUMNS, harmless: tuple[str, ...] = HARMLESS
) -> Named:
    """The alerts of a CSV file with a header: time, host, kind and label of each, in the columns of these names.

    A time is in seconds since 1970 or as in ISO 8601, UTC where it has no zone; a label that is not among `harmless` is
    that of an attack. Raises ValueError, one line with file, line and remedy, for what is no such file.
    """
    name = printable(os.fsdecode(path))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _read(name, csv.reader(_lines(file, name), strict=True), columns, harmless)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}; give the path of a CSV file") from None


def _lines(file: TextIO, name: str) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"{name}: has a line of {MAX_LINE:,} characters or more; is it a CSV file?")
        yield line


def _read(name: str, rows: Iterator[list[str]], columns: Mapping[str, str], harmless: tuple[str, ...]) -> Named:
    hosts: dict[str, int] = {}
    kinds: dict[str, int] = {}
    labels: dict[str, bool] = {}
    none = {word.casefold() for word in harmless}
    time, host, kind, attack = array("d"), array("q"), array("q"), array("b")
    number = 1
    try:
        header = next(rows, [])
        place = {what: _place(name, header, column, what) for what, column in columns.items()}
        t, h, k, w = (place[what] for what in COLUMNS)
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{name}: row {number} has {len(row)} fields, the header {len(header)}; mend the row")
            if len(time) == MAX_ALERTS:
                raise ValueError(f"{name}: has more than {MAX_ALERTS:,} alerts; split it")
            time.append(_seconds(name, number, columns["time"], row[t]))
            host.append(hosts.setdefault(row[h], len(hosts)) if row[h] else -1)
            kind.append(kinds.setdefault(row[k], len(kinds)))
            label = row[w]
            if label not in labels:
                labels[label] = label.strip().casefold() not in none
            attack.append(labels[label])
    except csv.Error as error:
        raise ValueError(f"{name}: row {number} or the one after it is no CSV ({error}); mend it") from None
    if not time:
        raise ValueError(f"{name}: has no alerts; give a file with a header and a row for each alert")
    seconds = np.asarray(time)
    began = float(seconds.min())
    stream = Stream(
        np.zeros(len(time), np.int64),
        (seconds - began) / 60,
        np.asarray(host, np.int64),
        np.asarray(kind, np.int64),
        np.asarray(attack, np.int64) > 0,
        np.asarray([np.ptp(seconds) / 60]),
        np.asarray([max(1, len(hosts))], np.int64),
    )
    return Named(stream, began, tuple(hosts), tuple(label for label, is_attack in labels.items() if is_attack))


def _place(name: str, header: list[str], column: str, what: str) -> int:
    if header.count(column) == 1:
        return header.index(column)
    if column in header:
        raise ValueError(f"{name}: has more than one column {show(column)}; rename all but one")
    listed = ", ".join(show(x) for x in header[:12]) + (", …" if len(header) > 12 else "")
    remedy = (
        did_you_mean(column, header) or f"; give that of the {what} by --{what}, of {listed or 'which there is none'}"
    )
    raise ValueError(f"{name}: has no column {show(column)}{remedy}")


def _seconds(name: str, number: int, column: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text.strip())
            found = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            found = math.nan
    if 0 <= found < LATEST:
        return found
    kind = "milliseconds, it seems; divide it by 1000" if LATEST <= found < 1000 * LATEST else "no time"
    remedy = "" if ";" in kind else "; give seconds since 1970, or 2026-03-02T09:00:00Z"
    raise ValueError(f"{name}: row {number}: {column} = {show(text)} is {kind}{remedy}")


# --- streams ----------------------------------------------------------------------------------------------------------


def together(streams: list[Stream]) -> Stream:
    """The periods of several streams as those of one."""
    first = np.cumsum([0, *(len(s.minutes) for s in streams)])[:-1]
    moved = [s._replace(period=s.period + n) for s, n in zip(streams, first, strict=True)]
    return Stream(*(np.concatenate(field) for field in zip(*moved, strict=True)))


def grouped(stream: Stream, gap: float) -> Stream:
    """Alerts of one kind and host in one: each that comes at most `gap` minutes after the one before belongs to it.

    A group is there from its first alert on, and is of the attack if any of its alerts is.
    """
    order = np.lexsort((stream.minute, stream.kind, stream.host, stream.period))
    period, minute, host, kind = stream.period[order], stream.minute[order], stream.host[order], stream.kind[order]
    new = np.ones(len(order), bool)
    same = (period[1:] == period[:-1]) & (host[1:] == host[:-1]) & (kind[1:] == kind[:-1])
    new[1:] = ~same | (np.diff(minute) > gap)
    first = np.flatnonzero(new)
    attack = np.logical_or.reduceat(stream.attack[order], first) if len(first) else stream.attack
    return Stream(period[first], minute[first], host[first], kind[first], attack, stream.minutes, stream.hosts)


def figures(stream: Stream) -> Figures:
    """The figures of a stream."""
    attack, periods = stream.attack, len(stream.minutes)
    first, last = np.full(periods, np.inf), np.full(periods, -np.inf)
    np.minimum.at(first, stream.period[attack], stream.minute[attack])
    np.maximum.at(last, stream.period[attack], stream.minute[attack])
    # The first alert only says where to begin: to count it would flatter attacks of few alerts.
    meanwhile = (stream.minute > first[stream.period]) & (stream.minute <= last[stream.period])
    others = (meanwhile & ~attack).sum()
    followed = attack.sum() - (last >= first).sum()
    running = (last - first)[last >= first].sum() / TICK_MINUTES
    host_days = float((stream.hosts * stream.minutes).sum()) / MINUTES_A_DAY
    named = stream.host >= 0
    return Figures(
        host_days=host_days,
        alerts=len(attack),
        of_attack=_ratio(attack.sum(), len(attack)),
        of_attack_meanwhile=_ratio(followed, followed + others),
        others=_ratio((~attack).sum(), stream.minutes.sum() / TICK_MINUTES),
        attack_meanwhile=_ratio(followed, running),
        others_host_day=_ratio((named & ~attack).sum(), host_days),
        attack_host_day=_ratio((named & attack).sum(), host_days),
        gaps=_gaps(stream, np.ones(len(attack), bool)),
        attack_gaps=_gaps(stream, attack),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _gaps(stream: Stream, which: Bools) -> tuple[float, float, float]:
    period, minute = stream.period[which], stream.minute[which]
    order = np.lexsort((minute, period))
    within = np.diff(minute[order])[np.diff(period[order]) == 0]
    low, middle, high = np.percentile(within, (10, 50, 90)) if len(within) else (math.nan,) * 3
    return float(low), float(middle), float(high)


def by_host_and_day(found: Named, gap: float) -> Iterator[tuple[str, str, int, int, int, int]]:
    """(host, day in UTC, alerts of the attack, others, groups of the attack, others) of each host on each day."""
    counts: dict[tuple[int, int], list[int]] = {}
    for column, stream in ((0, found.stream), (2, grouped(found.stream, gap))):
        day = np.floor((found.began + 60 * stream.minute) / 86_400).astype(np.int64)
        cells, count = np.unique(np.stack([stream.host, day, ~stream.attack]), axis=1, return_counts=True)
        for (host, when, other), n in zip(cells.T.tolist(), count.tolist(), strict=True):
            counts.setdefault((host, when), [0, 0, 0, 0])[column + other] += n
    for (host, when), row in sorted(counts.items()):
        date = datetime.fromtimestamp(86_400 * when, UTC).date().isoformat()
        a, b, c, d = row
        yield found.hosts[host] if host >= 0 else "", date, a, b, c, d
