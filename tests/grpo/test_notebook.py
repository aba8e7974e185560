"""The notebook grpo/train_t4.ipynb: all its cells run, and it names only options and files that there are."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbformat
from nbclient import NotebookClient
from tiny_models import tiny

from grpo.training import settings, stages
from jaxsim_soc.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "grpo" / "train_t4.ipynb"
PNG = "iVBORw0KGgo"  # how a PNG begins, in base64


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def source(cell: str) -> str:
    return str(next(c.source for c in read().cells if c.id == cell))


def scripts() -> list[tuple[str, str]]:
    """The script and the options of every command line in the notebook's text."""
    text = "\n".join(c.source for c in read().cells if c.cell_type == "markdown")
    return re.findall(r"^python (\S+\.py)(.*)$", text, re.MULTILINE)


# --- what is stored -------------------------------------------------------------------------------------------------


def test_it_is_a_valid_notebook_for_a_t4_without_outputs() -> None:
    book = read()
    nbformat.validate(book)
    assert book.metadata.accelerator == "GPU" and book.metadata.colab.gpuType == "T4"
    assert not [c.id for c in book.cells if c.get("outputs") or c.get("execution_count")]


def helped(script: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script's --help prints."""
    (command,) = re.findall(r'run\("(.*)"\)', (ROOT / script).read_text("utf-8"))
    with pytest.raises(SystemExit) as ended:
        COMMANDS[command].load().main(["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("script", "options"), scripts())
def test_command_lines_name_what_there_is(script: str, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / script).is_file()
    known = helped(script, capsys)
    assert not [x for x in re.findall(r"--[\w-]+", options) if f"{x} " not in known]


def test_settings_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    known = helped("grpo/train.py", capsys)
    named = re.findall(r'"(--[\w-]+)"', source("settings") + source("machine"))
    assert "--preset" in named and not [x for x in named if f"{x} " not in known and f"{x}\n" not in known]
    for name in re.findall(r"\bPRESET = .*# (.*), or a YAML file", source("settings"))[0].split(", "):
        assert name in settings.PRESETS


# --- installation ---------------------------------------------------------------------------------------------------


def install(
    monkeypatch: pytest.MonkeyPatch, where: Path, trl: str | None = None, address: str = "github.com/OWNER"
) -> list[Sequence[str]]:
    """Run the first cell in a folder where TRL has that version ('': missing), and return what it would have run."""
    commands: list[Sequence[str]] = []
    true_version = importlib.metadata.version

    def run(command: Sequence[str], check: bool) -> None:
        commands.append(command)
        if command[0] == "git":
            (Path(command[-1]) / "grpo").mkdir(parents=True)
            for file in ("grpo/train.py", "pyproject.toml"):
                (Path(command[-1]) / file).write_bytes((ROOT / file).read_bytes())

    def version(name: str) -> str:
        if name == "trl" and trl == "":
            raise importlib.metadata.PackageNotFoundError(name)
        return trl if name == "trl" and trl else true_version(name)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", run)
        patched.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.chdir(where)
        exec(compile(source("install").replace("github.com/OWNER", address), "install", "exec"), {})
    return commands


@pytest.mark.parametrize("where", [ROOT, NOTEBOOK.parent])
def test_inside_a_checkout_it_installs_only_when_something_is_missing(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install(monkeypatch, where) == []
    assert Path.cwd() == ROOT
    for trl in ("", "0.9"):
        (command,) = install(monkeypatch, where, trl)
        assert command[1:4] == ["-m", "pip", "install"] and f"{ROOT}[bench,train]" in command


def test_elsewhere_it_clones_and_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="put the project's address into REPOSITORY"):
        install(monkeypatch, tmp_path)
    clone, pip = install(monkeypatch, tmp_path, "", "example.org/us")
    assert clone[-2:] == ["https://example.org/us/jaxsim-soc", str(tmp_path / "jaxsim-soc")]
    assert f"{tmp_path / 'jaxsim-soc'}[bench,train]" in pip
    assert Path.cwd() == tmp_path / "jaxsim-soc"


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failed_run_stops_the_notebook_and_an_alarm_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    for ended in (0, stages.ALARMED):
        exec(source("train"), {"run": lambda ended=ended: ended})
    assert capsys.readouterr().out.startswith("The alarm stopped the training")
    with pytest.raises(RuntimeError, match="exit code 2; its last lines"):
        exec(source("train"), {"run": lambda: 2})


# --- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "JAXSIM_PRESET": "smoke",
        "JAXSIM_MODEL": str(tiny(tmp_path / "model", fluent=True)),
        "JAXSIM_OUT": str(tmp_path / "out"),
        "JAXSIM_OPTIONS": "--steps 1",
        "PIP_NO_INDEX": "1",  # nothing may be installed
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }.items():
        monkeypatch.setenv(name, value)
    book = read()
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(book, timeout=1800, kernel_name="python3", resources=place).execute()

    out = tmp_path / "out"
    for name in ("adapter/adapter_model.safetensors", "adapter/README.md", "report.md", "metrics.json", "adapter.zip"):
        assert (out / name).stat().st_size
    outputs = {c.id: c.outputs for c in book.cells if c.cell_type == "code"}
    said = {k: "".join(o.text for o in v if o.output_type == "stream") for k, v in outputs.items()}
    shown = [o.data for o in outputs["report"] if o.output_type == "display_data"]
    pictures = [d["image/png"] for d in shown if "image/png" in d]
    assert len(pictures) == len(list(out.glob("*.png"))) == 4 and all(p.startswith(PNG) for p in pictures)
    assert shown[0]["text/markdown"].startswith("# Training report")
    assert '"steps": 1' in said["machine"]
    assert "loop 0 GRPO 1/1" in said["train"] and "\x1b" not in said["train"]
    assert "trained" in said["report"]
    assert "<iframe" in outputs["episode"][-1].data["text/html"] and "-trained-0.html" in said["episode"]
    assert re.search(r"^action: [A-Z]", said["use"], re.MULTILINE)
