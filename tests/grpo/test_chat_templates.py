"""Chat templates that are missing or odd, and models of the hub."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import torch
from tiny_models import TEMPLATE

import prompting
import scenarios
from grpo.model import decode, folders, models
from grpo.model.models import ModelError, load

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' "
    "}}{%- endfor %}"
)
SPEAKS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
OPENS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
REFUSES = "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
DROPS = TURNS.replace("in messages", "in messages if message.role != 'system'")
SWITCH = (  # as hybrid models have it
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
NO_THOUGHT = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


INVENTORY = prompting.inventory(scenarios.load("supply_chain_token_drift"))


def chat_of(folder: Path) -> str:
    """What the model is shown, and what a trainer and a copy of the tokenizer would show it."""
    tokenizer = load(str(folder)).tokenizer
    text = decode.chat_text(tokenizer, prompting.chat("Tick 3 of 60", INVENTORY))
    tokenizer.save_pretrained(folder / "again")
    again = models.load_tokenizer(folder / "again", "again")
    assert again.chat_template == tokenizer.chat_template
    shown = (("Tick 3 of 60", '{"action": "MONITOR"}'),)
    examples = decode.chat_text(tokenizer, prompting.chat("Tick 4", INVENTORY, shown))
    assert prompting.system_prompt(INVENTORY) in examples and "Tick 4" in examples and "MONITOR" in examples
    return text


@pytest.mark.parametrize("template", [REFUSES + TURNS + SPEAKS, DROPS + SPEAKS])
def test_a_template_without_a_system_role_shows_the_rules(copy, template):
    wanted = (
        f"<|im_start|>user\n{prompting.system_prompt(INVENTORY)}\n\nTick 3 of 60<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_of(with_template(copy, template)) == wanted


def test_a_template_that_needs_nothing_is_left_alone(copy):
    assert load(str(copy)).tokenizer.chat_template == TEMPLATE
    thinks = TURNS + SPEAKS + "{# <think> #}{% if 0 %}{{ enable_thinking }}<think>{% endif %}"
    assert load(str(with_template(copy, thinks))).tokenizer.chat_template == thinks


@pytest.mark.parametrize("template", [TURNS + OPENS, TURNS + SWITCH, REFUSES + TURNS + OPENS])
def test_a_template_that_begins_a_thought_has_it_ended(copy, template):
    text = chat_of(with_template(copy, template))
    assert text.endswith("Tick 3 of 60<|im_end|>\n" + NO_THOUGHT) and prompting.system_prompt(INVENTORY) in text


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("\n" + TURNS + "{% if %}", r"it fails in line 4: .*; mend .*chat_template.jinja, or take another model$"),
        ("{{ raise_exception('no chats at all') }}", "it fails: no chats at all; mend"),
        ("{%- for m in messages %}{{ m.content[0].text.upper() }}{%- endfor %}", "it fails: "),
        (SPEAKS, "it does not show every message; mend"),
        (REFUSES + SPEAKS, "it fails: System role not supported; mend"),
    ],
)
def test_a_template_that_cannot_be_used(copy, template, why):
    with pytest.raises(ModelError, match=r"the chat template of .*copy cannot be used: " + why) as caught:
        load(str(with_template(copy, template)))
    assert "\n" not in str(caught.value)


def test_memory(made, monkeypatch):
    need = folders.weight_bytes([made / "model.safetensors"], 4, False)
    assert need == 4 * sum(p.numel() for p in load(str(made)).model.parameters())
    assert folders.weight_bytes([made / "model.safetensors"], 4, True) < 0.7 * need
    assert models.free_memory("cpu") is None or models.free_memory("cpu") > 10**6
    monkeypatch.setattr(models, "free_memory", lambda device: 100_000)
    with pytest.raises(ModelError, match=r"needs 0\.00 GB of memory on cpu, 0\.00 GB are free; take four_bit=True or"):
        load(str(made), device="cpu")


def test_unknown_names(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made.parent)
    with pytest.raises(ModelError, match=r"'tinny' is no folder and no hub id .*here are: tiny, .*embedded"):
        load("tinny")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"'some/model' is no folder .*offline.*embedded"):
        load("some/model", offline=True)
    with pytest.raises(ModelError, match="choose one of auto, float32"):
        load(str(made), dtype="int8")
    with pytest.raises(ModelError, match="no device 'tpu'"):
        load(str(made), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no device 'cuda'"):
            load(str(made), device="cuda")


def test_what_the_hub_says(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def says(error):
        def fetch(*_, **__):
            raise error

        monkeypatch.setattr(hub, "snapshot_download", fetch)
        with pytest.raises(ModelError) as caught:
            load("some/model")
        return str(caught.value)

    def answer(kind):
        return kind("no", response=SimpleNamespace(headers={}, request=None))

    assert "the hub does not know it" in says(answer(hub.errors.RepositoryNotFoundError))
    assert "asks for permission" in says(answer(hub.errors.GatedRepoError))
    assert "the hub cannot be reached (no route)" in says(ConnectionError("no route\nat all"))


def test_a_model_in_the_hubs_cache(made, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit, place = "0a1b" * 10, tmp_path / "models--some--model"
    shutil.copytree(made, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    about = load("some/model", offline=True).about
    assert (about["name"], about["source"]) == ("some/model", f"some/model at {commit}")
    with pytest.raises(ModelError, match="here are: some/model, embedded"):
        load("some/modem", offline=True)


@pytest.mark.parametrize(
    ("package", "options"),
    [("torch", {}), ("transformers", {}), ("bitsandbytes", {"four_bit": True}), ("peft", {"adapter": "x"})],
)
def test_missing_packages(made, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"{package} cannot be imported .*; pip install 'jaxsim-soc\[train\]'"):
        load(str(made), **options)
