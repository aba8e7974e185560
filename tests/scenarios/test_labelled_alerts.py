"""Labelled alerts: files that are read, groups and figures by hand and beside a plain loop, bad files in one line."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import labelled_alerts
from scenarios.labelled_alerts import (
    Figures,
    Stream,
    by_host_and_day,
    figures,
    grouped,
    read_alerts,
    together,
)

HEAD = "time,name,host,label\n"
DAY = """time,name,host,label
2026-03-02T09:00:00Z,login,web,-
2026-03-02 09:05:00,login,web,False_Positive
2026-03-02T10:00:00+01:00,scan,web,benign

1772442600,scan,db,recon
1772446200,scan,,exfil
1772532600,login,db,0
"""


def written(folder: Path, text: str) -> str:
    (folder / "alerts.csv").write_text(text, encoding="utf-8")
    return str(folder / "alerts.csv")


def stream(*alerts: tuple[float, int, int, bool], minutes: float = 1440.0, hosts: int = 2) -> Stream:
    """One period of alerts given as (minute, host, kind, of the attack)."""
    minute, host, kind, attack = (np.asarray(column) for column in zip(*alerts, strict=True))
    return Stream(np.zeros(len(alerts), int), minute, host, kind, attack, np.asarray([minutes]), np.asarray([hosts]))


def test_a_file_is_read(tmp_path: Path) -> None:
    found = read_alerts(written(tmp_path, DAY))
    assert found.hosts == ("web", "db") and found.labels == ("recon", "exfil")
    s = found.stream
    assert found.began == 1772442000 and s.minute.tolist() == [0, 5, 0, 10, 70, 1510]
    assert s.host.tolist() == [0, 0, 0, 1, -1, 1] and s.kind.tolist() == [0, 0, 1, 1, 1, 0]
    assert s.attack.tolist() == [False, False, False, True, True, False]
    assert s.minutes.tolist() == [1510] and s.hosts.tolist() == [2]
    assert list(by_host_and_day(found, 10)) == [
        ("", "2026-03-02", 1, 0, 1, 0),
        ("web", "2026-03-02", 0, 3, 0, 2),
        ("db", "2026-03-02", 1, 0, 1, 0),
        ("db", "2026-03-03", 0, 1, 0, 1),
    ]


def test_columns_and_labels_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "when,rule,machine,verdict\n1,a,x,TP\n2,a,x,FP\n")
    columns = {"time": "when", "host": "machine", "kind": "rule", "label": "verdict"}
    assert read_alerts(path, columns).stream.attack.tolist() == [True, False]
    assert read_alerts(path, columns, ("tp",)).stream.attack.tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no column 'time'; give that of the time by --time, of which there is none"),
        (HEAD, "has no alerts; give a file with a header"),
        ("times,name,host,label\n1,a,b,c\n", "has no column 'time'; did you mean 'times'?"),
        ("t;n;h;l\n1;a;b;c\n", "has no column 'time'; give that of the time by --time, of 't;n;h;l'"),
        ("time,time,name,host,label\n1,1,a,b,c\n", "has more than one column 'time'; rename all but one"),
        (HEAD + "1,a,b\n", "row 2 has 3 fields, the header 4; mend the row"),
        (HEAD + "1,a,b,c\n\nnoon,a,b,c\n", "row 4: time = 'noon' is no time; give seconds since 1970"),
        (HEAD + "nan,a,b,c\n", "row 2: time = 'nan' is no time; give seconds"),
        (HEAD + "-1,a,b,c\n", "row 2: time = '-1' is no time; give seconds"),
        (HEAD + "1772442000000,a,b,c\n", "is milliseconds, it seems; divide it by 1000"),
        (HEAD + '1,"a" b,c,d\n', "is no CSV (',' expected after '\"'); mend it"),
        (HEAD + '1,"a\n' + "b" * 200_000, "is no CSV (field larger than field limit (131072)); mend it"),
        ("x" * labelled_alerts.MAX_LINE, "has a line of 1,048,576 characters or more"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_alerts(path)
    assert said in str(caught.value) and str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    monkeypatch.setattr(labelled_alerts, "MAX_ALERTS", 2)
    many = written(tmp_path, HEAD + "1,a,b,c\n" * 3)
    paths = (
        (tmp_path / "binary.csv", "is not UTF-8"),
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "directory"),
    )
    for path, said in (*paths, (many, "has more than 2 alerts; split it")):
        with pytest.raises(ValueError, match=said):
            read_alerts(path)


def test_groups_and_figures_by_hand() -> None:
    alerts = (
        (0, 0, 0, False), (9, 0, 0, False), (19, 0, 0, False),  # one group
        (30, 0, 0, True), (35, 0, 0, False),  # 11 minutes later another one, of the attack
        (60, 1, 0, True), (60, 0, 1, False),  # another host, another kind
        (120, -1, 1, True), (300, 1, 1, False),
    )  # fmt: skip
    found = grouped(stream(*alerts), 10)
    assert sorted(found.minute.tolist()) == [0, 30, 60, 60, 120, 300]
    f = figures(found)
    assert f == Figures(
        host_days=2.0,
        alerts=6,
        of_attack=3 / 6,
        of_attack_meanwhile=2 / 3,  # those at 60 and 120, beside the other one at 60
        others=3 / 48,
        attack_meanwhile=2 / 3,  # in the 90 minutes between 30 and 120
        others_host_day=1.5,
        attack_host_day=1.0,
        gaps=pytest.approx((12, 30, 132)),
        attack_gaps=pytest.approx((33, 45, 57)),
    )


def test_periods_do_not_touch_each_other() -> None:
    one = stream((0, 0, 0, True), (10, 0, 0, True))
    both = together([one, one])
    assert both.period.tolist() == [0, 0, 1, 1] and both.minutes.tolist() == [1440, 1440]
    assert len(grouped(both, 10).minute) == 2 and figures(both).gaps == (10, 10, 10)
    assert figures(both).of_attack_meanwhile == figures(one).of_attack_meanwhile == 1.0


def test_of_nothing_there_are_no_shares() -> None:
    empty = stream((0, 0, 0, False))._replace(**{k: np.zeros(0, int) for k in ("period", "minute", "host", "kind")})
    f = figures(grouped(empty._replace(attack=np.zeros(0, bool)), 10))
    assert f.alerts == 0 and f.others == 0 and all(map(math.isnan, (f.of_attack, f.of_attack_meanwhile, *f.gaps)))


ALERT = st.tuples(st.integers(0, 60), st.integers(-1, 1), st.integers(0, 1), st.booleans())


@given(st.lists(st.tuples(st.integers(0, 1), ALERT), min_size=1, max_size=30), st.integers(0, 10))
def test_groups_are_those_of_a_plain_loop(alerts: list[tuple[int, tuple[int, int, int, bool]]], gap: int) -> None:
    open_groups: dict[tuple[int, int, int], list[float]] = {}  # first, last, of the attack
    closed = []
    for period, (minute, host, kind, attack) in sorted(alerts, key=lambda x: x[1][0]):
        key = (period, host, kind)
        group = open_groups.get(key)
        if group is not None and minute - group[1] <= gap:
            group[1], group[2] = minute, group[2] or attack
        else:
            open_groups[key] = group = [minute, minute, attack]
            closed.append((key, group))
    periods = [p for p, _ in alerts]
    s = stream(*(a for _, a in alerts))._replace(
        period=np.asarray(periods), minutes=np.full(2, 60.0), hosts=np.full(2, 2)
    )
    found = grouped(s, gap)
    rows = zip(*(x.tolist() for x in found[:5]), strict=True)
    assert sorted(rows) == sorted((p, first, h, k, bool(a)) for (p, h, k), (first, _, a) in closed)
