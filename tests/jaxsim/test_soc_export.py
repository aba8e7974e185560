"""`jaxsim-soc export-soc`: the commands of the documentation, what is refused, whole folders, and memory."""

import json
import re
import shlex
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import scenarios
from jaxsim.response import Response
from jaxsim.soc import command, export, ocsf
from jaxsim.soc.episodes import Alert, Cause, Deed, Episode, Step
from jaxsim.version import SIMULATOR_VERSION

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = scenarios.load("supply_chain_token_drift")
SITE = ocsf.make_site(SCENARIO, "nobody", "test", datetime(2026, 1, 1, tzinfo=UTC), "0")
RECORD = {
    "version": SIMULATOR_VERSION, "scenario": SCENARIO.id, "rules": "hardened-unknown_attack", "reward": "operational",
    "personality": "any", "seed": 1, "episode": 2, "actions": ["MONITOR", "INVESTIGATE assets[0]", "INVALID"] * 5,
}  # fmt: skip
FILES = {"alerts.jsonl", "truth.jsonl", "actions.jsonl", "incidents.jsonl", "stix.jsonl"}
FILES |= {"campaign.layer.json", "stopped.layer.json", "export.json"}


def episode(number: int, alerts: int = 20) -> Episode:
    """An episode that nobody played."""
    name, stage = SCENARIO.assets[0].id, SCENARIO.stages[0]
    seen = tuple(Alert(i, i + 1, "egress_anomaly", name, None, 0.25) for i in range(alerts))
    step = Step(stage, stage.asset, stage.identity, (1,), 3, "succeeded", ())
    return Episode(
        number, alerts + 1, seen, (Deed(2, "ISOLATE_ASSET", name, True, False, None, None),),
        (Cause("background", None),) * alerts, True, "stealthy", (step,), "horizon", 1, 0, 1,
        Response(3, -1, -1, -1, 9), (stage.id,),
    )  # fmt: skip


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        command.main(argv)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_the_commands_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "soc-formats.md").read_text(encoding="utf-8")
    first = re.findall(r"^jaxsim-soc export-soc (.*)$", page, re.M)[:3]
    run, one, check = map(shlex.split, first)
    assert (run[0], one[0], check) == ("run", "episode", ["check", "soc", "incident"])
    monkeypatch.chdir(tmp_path)
    Path(one[1]).parent.mkdir(parents=True)
    Path(one[1]).write_text(json.dumps(RECORD))
    small = [*run, "--episodes", "3", "--policy", "plan:MONITOR;BLOCK_EGRESS assets[0]"]
    command.main(small)
    command.main(one)
    out = capsys.readouterr().out
    assert out.count("lines in alerts.jsonl") == 3
    folders = [Path("soc") / SCENARIO.id / x for x in ("heuristic", "plan-MONITOR-BLOCK-EGRESS-assets-0")]
    note = json.loads(Path("soc/export.json").read_text())
    assert [Path("soc") / x for x in note["folders"]] == folders
    for folder in (*folders, Path("incident")):
        assert {x.name for x in folder.iterdir()} == FILES
        about = json.loads((folder / "export.json").read_text())
        counts = {file: len(read(folder / file)) for file in FILES if file.endswith(".jsonl")}
        assert about["lines"] == counts and counts["alerts.jsonl"] == counts["truth.jsonl"] > 0
        alerts, truth = read(folder / "alerts.jsonl"), read(folder / "truth.jsonl")
        assert [x["metadata"]["uid"] for x in alerts] == [x["uid"] for x in truth]
        assert {x["metadata"]["tenant_uid"] for x in alerts} <= {"episode-0", "episode-1", "episode-2"}
    assert len(read(folders[1] / "actions.jsonl")) == 3
    assert json.loads((folders[0] / "campaign.layer.json").read_text())["domain"] == "enterprise-attack"
    assert [x["class_uid"] for x in read(Path("incident/actions.jsonl"))] == [7001] * 10

    pytest.importorskip("stix2validator")
    assert command.main(check) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert set(said) == FILES - {"truth.jsonl", "export.json"}
    for file, line in said.items():
        many = sum(len(read(x)) if file.endswith(".jsonl") else 1 for x in Path().rglob(file))
        assert line.startswith(f"{many} checked by ") and line.endswith(", 0 with problems") and many > 0

    before = (folders[1] / "alerts.jsonl").read_bytes()
    command.main([*small, "--force", "--only", "alerts", "--start", "2026-01-01T01:00+01:00"])
    assert {x.name for x in folders[1].iterdir()} == {"alerts.jsonl", "export.json"}
    assert (folders[1] / "alerts.jsonl").read_bytes() == before


def test_what_is_not_valid_is_told_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stix2validator")
    export.write(tmp_path, SITE, [episode(0, 6)], {}, ["alerts", "actions", "layers"])
    assert command.main(["check", str(tmp_path)]) == 0
    capsys.readouterr()
    path = tmp_path / "alerts.jsonl"
    alerts = path.read_text().splitlines()
    wrong = [json.dumps(json.loads(alerts[0]) | more) for more in ({"severity_id": 7}, {"class_uid": None}, {"x": 1})]
    path.write_text("\n".join([alerts[1], *wrong, "[]", "{", *alerts[1:]]))
    (tmp_path / "stix.jsonl").write_text('{}\n{"type": "bundle", "id": "bundle--1", "objects": [3]}')
    (tmp_path / "campaign.layer.json").write_text("{}")
    assert command.main(["check", str(tmp_path)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in told[:3]] == [f"{path}:{i}" for i in (2, 3, 4)]
    assert "7 is not one of" in told[0] and "class_uid: None is none of 2004" in told[1] and "'x'" in told[2]
    assert told[3] == f"{tmp_path / 'campaign.layer.json'}:1: no layer (1 of 1)"
    assert all("stix cannot read it" in line for line in told[4:6])
    assert told[6:] == [
        "actions.jsonl: 1 checked by ocsf, 0 with problems",
        "alerts.jsonl: 11 checked by ocsf, 5 with problems",
        "campaign.layer.json: 1 checked by navigator, 1 with problems",
        "stix.jsonl: 2 checked by stix and attack_flow, 2 with problems",
        "stopped.layer.json: 1 checked by navigator, 0 with problems",
    ]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, mine = tmp_path / "a.json", tmp_path / "mine"
    record.write_text(json.dumps(RECORD))
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    out = ["--out", str(tmp_path / "out")]
    for force in ([], ["--force"]):
        assert "has other files in it" in refused(["episode", str(record), "--out", str(mine), *force], capsys)
    old = tmp_path / "old"
    old.mkdir()
    (old / export.NOTE).write_text("{}")
    assert "--force to replace it" in refused(["episode", str(record), "--out", str(old)], capsys)
    assert "give one such as 2026" in refused(["episode", str(record), *out, "--start", "soon"], capsys)
    assert "from 1970 to 2200" in refused(["episode", str(record), *out, "--start", "9999-01-01"], capsys)
    assert "holds no export" in refused(["check", str(mine)], capsys)
    assert "did you mean alerts" in refused(["episode", str(record), *out, "--only", "alert"], capsys)
    record.write_text(json.dumps(RECORD | {"scenario": "nowhere"}))
    assert "nowhere" in refused(["episode", str(record), *out], capsys)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.json", "mine", "old"]
    assert [x.name for x in mine.iterdir()] == ["thesis.txt"]


def test_a_long_export_needs_little_memory(tmp_path: Path) -> None:
    """A tenth of what it writes; all events at once would take some times as much."""

    def stream(many: int) -> Iterator[Episode]:
        for number in range(many):
            yield episode(number, 100)

    export.write(tmp_path, SITE, stream(1), {})  # what is made once
    tracemalloc.start()
    try:
        lines = export.write(tmp_path, SITE, stream(20), {})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lines["alerts.jsonl"] == 2000
    assert most < sum(x.stat().st_size for x in tmp_path.iterdir()) / 10


def test_nobody_and_nothing(tmp_path: Path) -> None:
    """An export of no episode, and one of an episode in which nothing happened."""
    export.write(tmp_path, SITE, [], {})
    assert json.loads((tmp_path / export.NOTE).read_text())["detected"] is None
    quiet = episode(0, 0)._replace(deeds=(), steps=(), containments=0, false_containments=0, attack=False)
    assert not any(export.write(tmp_path, SITE, [quiet], {}).values())
