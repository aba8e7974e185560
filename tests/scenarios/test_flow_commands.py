"""`import` and `export-flow` by the command line, and the report of an import."""

from pathlib import Path

import pytest
import yaml
from flow_files import builder, chain, imported, kinds, stix, text

import scenarios
from scenarios.__main__ import main
from scenarios.import_report import ADVICE, report
from scenarios.imported import import_flow

FIRST = scenarios.names()[0]


def test_import_writes_a_scenario_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.afb").write_text(text(builder()))
    (tmp_path / "b.json").write_text("{}")
    out = tmp_path / "out"
    assert main(["import", str(tmp_path / "a.afb"), str(tmp_path / "b.json"), "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(out / "a-small-incident.yaml"), str(out / "a-small-incident.md")]
    assert told.err.count("\n") == 1 and "is no flow; expected a STIX bundle" in told.err
    s = scenarios.load(out / "a-small-incident.yaml")
    assert s == import_flow(tmp_path / "a.afb").scenario
    assert yaml.safe_load((out / "a-small-incident.yaml").read_text())["stages"][0]["assumed"]
    page = (out / "a-small-incident.md").read_text()
    assert all(f"`{source.id}`: " in page for source in s.sources)
    assert "assets assumed" in page and "| upload-them | TA0010 T1567.002" in page
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "a.afb"), "--out", str(out)])
    assert "exists; add --force to replace it" in capsys.readouterr().err
    options = ["--force", "--prior", "optimistic", "--minutes", "600", "--join", "all"]
    assert main(["import", str(tmp_path / "a.afb"), "--out", str(out), *options]) == 0


@pytest.mark.parametrize("option", [["--prior", "x"], ["--minutes", "0"], ["--join", "some"], ["--out", ""]])
def test_import_refuses_wrong_options(tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(text(stix()))
    with pytest.raises(SystemExit) as caught:
        main(["import", str(tmp_path / "a.json"), *option])
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_two_flows_of_one_name_are_not_written_over_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(text(stix()))
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "out")])
    assert "would be written twice; nothing was written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_export_flow_writes_what_import_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-flow", FIRST, "nothing", "--out", str(tmp_path)]) == 1
    assert "nothing: is not the name of a built-in scenario" in capsys.readouterr().err
    assert import_flow(tmp_path / f"{FIRST}.json").scenario == scenarios.load(FIRST)


def test_the_report_knows_every_remark_and_shows_no_markup_of_the_flow() -> None:
    nodes = {"<b>Phish</b> | *now*": ("TA0001", "T1566.001"), "Wait": ("", ""), "Send": ("TA0010", "T1041")}
    data = stix(nodes, [*chain(*nodes), ("Send", "Wait")], description="# Not a heading")
    found = imported(data | {"objects": [data["objects"][0] | {"name": "[A](http://b)"}, *data["objects"][1:]]})
    page = report(found)
    assert page.startswith("# \\[A\\](http://b)\n")
    assert "<b>" not in page.replace("\\<b\\>", "")
    assert kinds(found) <= set(ADVICE)
