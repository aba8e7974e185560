"""The wheel is the whole product: built, installed where there is no checkout, and used by its one command."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("twine")
pytest.importorskip("torch")

from tiny_models import tiny

ROOT = Path(__file__).resolve().parents[2]
SUPPLY = "supply_chain_token_drift"
pytestmark = pytest.mark.slow


def python(*words: str | Path) -> str:
    """A tool of this environment; its output."""
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """sdist and wheel, the wheel made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    python("build", "--no-isolation", "--outdir", folder, ROOT)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def bare(built: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and this one's packages but for the project itself."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Lines of a .pth file name folders; those in them, such as that of an editable install, are not read.
    (packages / "others.pth").write_text("".join(f"{x}\n" for x in sys.path if x.endswith("-packages")))
    wheel = next(x for x in built if x.suffix == ".whl")
    python("pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", "--no-index", wheel)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are run: no checkout is above it."""
    return tmp_path_factory.mktemp("elsewhere")


def ended(bare: Path, place: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`jaxsim-soc`, run from the wheel."""
    given = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(bare / "bin" / "jaxsim-soc"), *map(str, words)]
    return subprocess.run(command, cwd=place, env=given, capture_output=True, text=True, check=False)


def said(bare: Path, place: Path, *words: str | Path) -> str:
    done = ended(bare, place, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_both_can_be_published(built: list[Path]) -> None:
    assert {x.suffix for x in built} == {".whl", ".gz"}
    python("twine", "check", "--strict", *built)


def test_it_holds_the_policies_the_verdicts_and_no_test(built: list[Path]) -> None:
    (wheel,) = (x for x in built if x.suffix == ".whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (
        "jaxsim/audit/verdicts.json",
        "prompting/FORMAT.md",
        "grpo/presets/smoke.yaml",
        "grpo/adapter/adapter_model.safetensors",
        "scenarios/schema.json",
        "serving/static/index.html",
        "serving/static/main.js",
    ):
        assert path in names
    assert sum(x.startswith("jaxsim/audit/learned/") and x.endswith(".safetensors") for x in names) == 13
    tops = {x.partition("/")[0] for x in names if not x.partition("/")[0].endswith(".dist-info")}
    assert tops == {"jaxsim_soc", "scenarios", "jaxsim", "prompting", "grpo", "serving", "jaxsim_soc_v1"}


def test_it_is_what_runs(bare: Path, place: Path) -> None:
    code = (
        "import grpo, jaxsim, jaxsim_soc, prompting, scenarios as s; print(jaxsim.__file__, grpo.__file__, s.__file__)"
    )
    given = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.check_output([bare / "bin" / "python", "-c", code], cwd=place, env=given, text=True).split()
    assert all(Path(x).is_relative_to(bare) for x in found)
    assert said(bare, place, "--version").startswith("jaxsim-soc ")
    assert "--token-file" in said(bare, place, "serve", "--help")


def test_scenarios(bare: Path, place: Path) -> None:
    (path,) = said(bare, place, "scenarios", "generate", "--entities", "12", "--out", "networks").splitlines()
    assert said(bare, place, "scenarios", "validate", path, SUPPLY).count(": ok (") == 2


def test_audit_and_replay(bare: Path, place: Path) -> None:
    audit = ["audit", "--scenario", SUPPLY, "--rules", "classic", "--reward", "evidence", "--budget", "tiny", "--brief"]
    said(bare, place, *audit, "--out", "audit")
    (row,) = json.loads((place / "audit" / "report.json").read_text())["verdicts"]
    assert row["verdict"] == "degenerate"
    assert "REVOKE_IDENTITY" in said(bare, place, "replay", place / "audit" / row["witness"]["farming"])
    assert '"verdict": "degenerate"' in said(bare, place, "gate", "audit/report.json")


def test_policies(bare: Path, place: Path) -> None:
    policies = ["monitor", "seeing", "plan:MONITOR;ISOLATE_ASSET ci-runner-01"]
    said(
        bare, place, "evaluate", "--scenario", SUPPLY, "--episodes", "64", "--policy", *policies, "--json", "rows.json"
    )
    returns = {row["policy"]: row["mean_return"] for row in json.loads((place / "rows.json").read_text())}
    assert list(returns) == policies and returns["seeing"] > returns["monitor"]
    assert json.loads(said(bare, place, "throughput", "--batch", "4", "--ticks", "4"))["scalar_steps_per_s"] > 0


def test_language_models(bare: Path, place: Path) -> None:
    assert json.loads(said(bare, place, "train", "--preset", "smoke", "--print-config"))["reward"] == "operational"
    refused = ended(
        bare, place, "train", "--preset", "smoke", "--rules", "classic", "--reward", "evidence", "--out", "no"
    )
    assert refused.returncode == 2 and "its witness: MONITOR; REVOKE_IDENTITY" in refused.stderr
    assert refused.stderr.startswith("jaxsim-soc train: error: ") and not (place / "no").exists()
    short = ["--model", tiny(place / "model", fluent=True), "--scenario", SUPPLY, "--episodes", "2", "--no-shuffle"]
    said(bare, place, "evaluate-model", *short, "--policies", "learned", "--transcripts", "1", "--out", "model-report")
    assert {row["policy"] for row in json.loads((place / "model-report" / "rows.json").read_text())} >= {
        "learned",
        "base",
    }
    (record,) = (place / "model-report" / "transcripts").glob("*.json")
    said(bare, place, "transcript", record, "--out", "page.html")
