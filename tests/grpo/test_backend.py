"""The backend of training: which one a setting means, and GRPO in Unsloth's process, with a stand-in for Unsloth."""

import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from packaging.requirements import Requirement
from tiny_models import tiny

from grpo.learning import diagnostics, optimise, signals, unsloth_backend
from grpo.model import models
from grpo.model.models import ModelError
from grpo.rows import rows
from grpo.training import command as training
from grpo.training import settings
from jaxsim.policies import BASELINES

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROOT = Path(training.__file__).resolve().parent.parent.parent
# What Unsloth's two functions promise, on a CPU; it notes how they were called. The rewards of a random model are all
# alike, which teaches nothing, so other ones take their place.
STANDIN = """
import json, os, sys
from pathlib import Path

LATE = sorted({"transformers", "trl", "peft"} & set(sys.modules))
if os.environ.get("STANDIN_BROKEN"):
    raise ImportError("its wheels do not fit")

def note(function, given):
    with open(os.environ["STANDIN_CALLS"], "a") as file:
        print(json.dumps({"function": function, "late": LATE, **given}, default=str), file=file)

class FastLanguageModel:
    @staticmethod
    def from_pretrained(**given):
        note("from_pretrained", given)
        import grpo.learning.signals
        from transformers import AutoModelForCausalLM
        grpo.learning.signals.total = lambda batch, weights: [float(i % 2) for i in range(len(batch))]
        return AutoModelForCausalLM.from_pretrained(given["model_name"], dtype=given["dtype"]), None

    @staticmethod
    def get_peft_model(model, **given):
        note("get_peft_model", given)
        from peft import LoraConfig, get_peft_model
        wanted = {k: given[k] for k in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **wanted))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package, in this process (where nothing imports it) and those it starts; its notes."""
    package = tmp_path / "packages" / "unsloth"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STANDIN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("STANDIN_CALLS", str(tmp_path / "calls.jsonl"))
    return tmp_path / "calls.jsonl"


def cuda(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


# --- which one ------------------------------------------------------------------------------------------------------


def test_without_cuda_it_is_transformers(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, False)
    assert unsloth_backend.choose("auto") == unsloth_backend.choose("transformers") == "transformers"
    with pytest.raises(ModelError, match=r"it needs a GPU with CUDA, .*, or take --backend transformers"):
        unsloth_backend.choose("unsloth")


def test_with_cuda_it_is_unsloth_if_installed(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, True)
    assert unsloth_backend.choose("auto") == unsloth_backend.choose("unsloth") == "unsloth"
    assert unsloth_backend.choose("transformers") == "transformers"
    assert "unsloth" not in sys.modules
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert unsloth_backend.choose("auto") == "transformers"
    with pytest.raises(ModelError, match="one process only"):
        unsloth_backend.choose("unsloth")


def test_with_cuda_but_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cuda(monkeypatch, True)
    monkeypatch.setattr(unsloth_backend, "find_spec", lambda name: None)
    assert unsloth_backend.choose("auto") == "transformers" and not capsys.readouterr().err
    with pytest.raises(ModelError, match=r"not installed; pip install -c grpo/constraints-unsloth.txt 'jaxsim-soc\[un"):
        unsloth_backend.choose("unsloth")


def test_a_package_that_does_not_import(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda(monkeypatch, True)
    monkeypatch.setenv("STANDIN_BROKEN", "1")
    assert unsloth_backend.choose("auto") == "transformers"
    assert "warning: unsloth is installed, but not used: " in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"cannot be imported \(ImportError: its wheels do not fit\); pip install"):
        unsloth_backend.choose("unsloth")


def test_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda(monkeypatch, False)
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(SystemExit) as ended:
        training.main(["--preset", "smoke", "--backend", "unsloth", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "backend = 'unsloth': it needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- GRPO in its process --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def game() -> rows.Campaigns:
    return rows.campaigns(("supply_chain_token_drift",), "hardened", "operational")


@pytest.fixture(scope="module")
def found(game: rows.Campaigns) -> rows.Rows:
    bank = rows.from_teacher(game, BASELINES["evidence"], 8, seed=3)
    return rows.credited(game, bank, futures=4, least_z=0.0, seed=1, layout="compact", reference=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("backend") / "model", fluent=True)


def chosen(folder: Path, **changes: Any) -> settings.Settings:
    return settings.load("smoke", {"model": str(folder), "steps": 3, "save_every": 1, "lr": 1e-2, **changes})


def source(run: settings.Settings) -> unsloth_backend.Source:
    return unsloth_backend.Source(run.model, run.four_bit, run.campaigns, run.rules, run.reward)


def student(folder: Path, r: int = 4) -> tuple[Any, Any]:
    """With an adapter that is not at its beginning, and sees only some layers."""
    from peft import LoraConfig, get_peft_model

    loaded = models.load(str(folder), dtype="float32", device="cpu")
    torch.manual_seed(0)
    lora = LoraConfig(r=r, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(loaded.model, lora)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model, loaded.tokenizer


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a whole trainer's, of the packages that it is made of
def test_it_trains_as_in_this_process_and_goes_on_where_it_was_killed(
    game: rows.Campaigns, found: rows.Rows, folder: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, run = list(range(len(found.prompts))), chosen(folder, four_bit=False, gradient_checkpointing=True)
    rows.save(tmp_path / "loop0" / "rows", found, game)
    steps: list[tuple[int, dict[str, Any]]] = []

    def log(step: int, report: dict[str, Any]) -> None:
        steps.append((step, report))
        if len(steps) == 2:
            raise KeyboardInterrupt

    model, tokenizer = student(folder)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        unsloth_backend.optimise(model, many, run.plan, source(run), tmp_path / "loop0" / "grpo", 7, log)
    assert all(torch.equal(before[n], p) for n, p in weights(model).items())
    assert unsloth_backend.optimise(model, many, run.plan, source(run), tmp_path / "loop0" / "grpo", 7, log) == ""
    assert [s for s, _ in steps] in ([1, 2, 2, 3], [1, 2, 3])  # the kill came before or after the second checkpoint
    got, told = weights(model), dict(steps)
    assert "unsloth" not in sys.modules

    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    monkeypatch.setattr(signals, "total", lambda batch, weights: [float(i % 2) for i in range(len(batch))])
    other, _ = student(folder)
    known, wanted = diagnostics.tables(game, found), {}
    optimise.optimise(other, tokenizer, known, many, run.plan, tmp_path / "here", 7, wanted.__setitem__)
    assert told == {step: json.loads(json.dumps(report)) for step, report in wanted.items()}
    assert all(torch.equal(got[n], p) for n, p in weights(other).items())
    assert any(not torch.equal(before[n], p) for n, p in got.items())

    first, second = [json.loads(text) for text in calls.read_text().splitlines()][-2:]
    longest = int(first.pop("max_seq_length")) - run.max_completion
    assert longest >= max(len(tokenizer(text)["input_ids"]) for text in found.prompts)
    assert first == {
        "function": "from_pretrained",
        "late": [],  # imported before all that it rewrites
        "model_name": str(folder.resolve()),
        "dtype": "torch.float32",
        "load_in_4bit": False,
        "trust_remote_code": False,
        "local_files_only": True,
        "use_exact_model_name": True,
        "use_gradient_checkpointing": "unsloth",
        "random_state": 7,
    }
    assert second == {
        "function": "get_peft_model",
        "late": [],
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "use_gradient_checkpointing": "unsloth",
        "random_state": 7,
    }


def test_what_fails_there_is_said_here(
    folder: Path, tmp_path: Path, calls: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, _ = student(folder)
    with pytest.raises(ModelError, match=r"training with unsloth failed \(exit code 2; .* another --out"):
        run = chosen(folder)
        unsloth_backend.optimise(model, [0], run.plan, source(run), tmp_path / "loop0" / "grpo", 0, print)
    assert "has no whole set of rows" in capfd.readouterr().err


def test_weights_of_another_adapter_are_refused(folder: Path, tmp_path: Path) -> None:
    model, _ = student(folder)
    unsloth_backend.write_adapter(model, tmp_path / "four.safetensors")
    unsloth_backend.read_adapter(model, tmp_path / "four.safetensors")
    with pytest.raises(ModelError, match="weights of another adapter"):
        unsloth_backend.read_adapter(student(folder, r=2)[0], tmp_path / "four.safetensors")


# --- versions -------------------------------------------------------------------------------------------------------


def test_the_versions_for_unsloth_are_those_the_project_allows() -> None:
    lines = (ROOT / "grpo" / "constraints-unsloth.txt").read_text("utf-8").splitlines()
    pins = {name.lower().replace("_", "-"): version for name, version in (x.split("==") for x in lines if "==" in x)}
    assert all(version.replace(".", "").isalnum() for version in pins.values())  # no local builds
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["bench"], *extras["train"], *extras["unsloth"]):
        wanted = Requirement(text)
        if wanted.name != "jaxsim-soc":
            assert wanted.specifier.contains(pins[wanted.name.lower().replace("_", "-")]), text
