"""The page on incidents: its commands, in its order, from a report to a trained analyst, on the files that it shows."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import scenarios
from jaxsim import rollouts
from jaxsim.audit import budgets
from jaxsim_soc import commands

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "incidents.md").read_text(encoding="utf-8")
DEAR = ("evaluate", "audit", "train")
NAME = "a-clerk-opens-an-invoice"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def lines() -> list[list[str]]:
    """The words of each command, as those of `jaxsim-soc`."""
    shown = [line for text in blocks("sh") for line in text.splitlines()]
    return [shlex.split(line.replace("python -m scenarios", "jaxsim-soc scenarios"))[1:] for line in shown]


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["jaxsim-soc", *words])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the page shows, in which all but the dear commands were run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("incident")
        monkeypatch.chdir(folder)
        [flow], [alerts] = blocks("json"), blocks("csv")
        (folder / "incident.json").write_text(flow, encoding="utf-8")
        (folder / "alerts.csv").write_text(alerts, encoding="utf-8")
        for words in lines():
            if words[0] not in DEAR:
                assert ended(monkeypatch, *words) == 0, words
        yield folder


def test_the_page_goes_from_a_report_to_an_analyst(place: Path) -> None:
    told = [words[1] if words[0] == "scenarios" else words[0] for words in lines()]
    first = ["import", "check", "draw", "calibrate", "evaluate", "audit", "train"]
    assert told == [*first, "new", "check", "draw", "export-flow", "import"]
    s = scenarios.load(place / "incidents" / f"{NAME}.yaml")
    assert scenarios.load(place / "again" / f"{NAME}.yaml") == s
    assert [(x.technique, x.asset, x.loss) for x in s.stages] == [
        ("T1566.001", "clerk-pc", None),
        ("T1003.001", "clerk-pc", None),
        ("T1021.001", "file-server", None),
        ("T1486", "file-server", "impact"),
    ]
    assert s.stages[1].dwell == (4, 4)
    assert "T1076 is T1021.001 now" in (place / "incidents" / f"{NAME}.md").read_text(encoding="utf-8")
    assert ElementTree.parse(place / "incidents" / f"{NAME}.svg").getroot().tag.endswith("svg")
    assert len((place / "by-host-and-day.csv").read_text().splitlines()) == 1 + 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a whole trainer's, of the packages that it is made of
def test_it_is_played_and_audited_and_an_analyst_trained_in_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from tiny_models import tiny

    evaluate, audit, train = (next(words for words in lines() if words[0] == name) for name in DEAR)
    monkeypatch.chdir(place)
    less = {"ticks": (0, 2), "depth": 1, "moves": 2, "kept": 2, "beam": 1, "prefix": 0, "family": 8}
    few = budgets.BUDGETS["tiny"]._replace(**less, select=64, report=64)
    monkeypatch.setitem(budgets.BUDGETS, "tiny", few)
    monkeypatch.setattr(rollouts, "GROUPS", (8,))  # a size of batch to compile for each
    assert ended(monkeypatch, *evaluate) == 0
    assert ended(monkeypatch, *audit) == 0
    [row] = json.loads((place / "out" / "incident" / "report.json").read_text())["verdicts"]
    assert row["scenario"] == NAME and row["verdict"] in ("certified", "undecided", "degenerate")
    train += ["--model", str(tiny(place / "model", fluent=True))]  # that of the page takes minutes
    capsys.readouterr()
    if row["verdict"] != "certified":  # of a search this small no verdict is expected
        assert ended(monkeypatch, *train) == 2
        assert f"on {NAME} is {row['verdict']}" in capsys.readouterr().err
        train.append("--force")
    assert ended(monkeypatch, *train) == 0
    assert (place / "out" / "analyst" / "adapter" / "adapter_config.json").is_file()
    assert (place / "out" / "analyst" / "report.md").is_file()
