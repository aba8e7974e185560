"""Loading models: types, adapters, memory, what is damaged or missing."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import torch
from tiny_models import SPECIAL, logits, lora, tiny

from grpo.model import adapters, embedded, folders, models
from grpo.model.adapters import same_model
from grpo.model.models import ModelError, load

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


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
