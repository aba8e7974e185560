"""Exporting: tiny random models with an adapter, merged and as GGUF, there and back, and all that can be wrong."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("gguf")
pytest.importorskip("llguidance")

import torch
from safetensors.torch import load_file, save_file
from test_models import SPECIAL, TEXT, logits, lora, needs_version_5, tiny, tiny_tokenizer
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from grpo.exporting import command as exporting
from grpo.exporting import folder as export_folder
from grpo.exporting import gguf_file, llama_server, merge
from grpo.model import adapters, embedded, models
from grpo.model.folders import EMBEDDED
from grpo.model.models import ModelError, load

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STATES = ["--states", "6"]
ODD_TEXT = 'a  33\n\n3 {"action": "MONITOR"}\n  - é 漢字 <|im_end|>\n Tick 12 of 60'


def tiny_llama(folder: Path, tied: bool = False, **change: Any) -> Path:
    """A folder with a random model whose heads are rotated in pairs by llama.cpp."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 4,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        **(
            {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1} | change
        ),
    )
    torch.manual_seed(0)
    with embedded.quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_of(model: Path, folder: Path) -> Path:
    adapted = lora(load(str(model), dtype="float32", device="cpu"))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            weights.data *= 3  # what it does must show
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> tuple[Path, Path]:
    """A model and its adapter."""
    folder = tmp_path_factory.mktemp("qwen")
    model = tiny(folder / "tiny")
    return model, adapter_of(model, folder / "adapter")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("llama")
    model = tiny_llama(folder / "tiny")
    return model, adapter_of(model, folder / "adapter")


@pytest.fixture(scope="module")
def exported(qwen, tmp_path_factory) -> Path:
    """The Qwen2, in float32 and 16 bits."""
    out = tmp_path_factory.mktemp("out") / "soc"
    exporting.main(["--adapter", str(qwen[1]), "--out", str(out), "--gguf", "f16", *STATES])
    return out


def failed(capsys: pytest.CaptureFixture[str], *options: object, code: int = 2) -> str:
    """What an export that must fail says."""
    with pytest.raises(SystemExit) as ended:
        exporting.main([*map(str, options), *STATES])
    assert ended.value.code == code
    return capsys.readouterr().err


def told(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "export.json").read_text())
    return found


def adapted(pair: tuple[Path, Path]) -> Any:
    return load(str(pair[0]), pair[1], dtype="float32", device="cpu").model


# --- merged and there and back --------------------------------------------------------------------------------------


def test_the_merged_model_is_base_and_adapter(qwen, exported):
    base, wanted = logits(load(str(qwen[0]), dtype="float32", device="cpu").model), logits(adapted(qwen))
    assert (base - wanted).abs().max() > 1  # the adapter does something
    model, tokenizer, _ = load(str(exported / "merged"), dtype="float32", device="cpu")
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    own = load(str(qwen[0])).tokenizer
    assert tokenizer.chat_template == own.chat_template and tokenizer.get_vocab() == own.get_vocab()
    assert tokenizer(ODD_TEXT)["input_ids"] == own(ODD_TEXT)["input_ids"]
    card = (exported / "merged" / "README.md").read_text()
    assert "# SOC analyst" in card and "tiny with the adapter `adapter`" in card and str(qwen[0]) not in card


def test_a_plain_model_folder(exported):
    files = {path.name for path in (exported / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert {"chat_template.jinja", "README.md"} <= files
    assert needs_version_5(exported / "merged") == []
    model: Any = AutoModelForCausalLM
    assert model.from_pretrained(exported / "merged").dtype == torch.float32


def test_what_is_told(qwen, exported):
    found = told(exported)
    assert found["states"] == 6 and found["different_actions"]["constrained"] > 1
    merged, gguf = found["agreement"]
    assert merged["what"] == "merged/" and gguf["what"] == "model-f16.gguf"
    assert merged["constrained_actions"] == merged["free_actions"] == merged["same_tokens"] == 1
    assert gguf["constrained_actions"] == gguf["same_tokens"] == 1 and gguf["weights_off"] < 1e-3
    assert found["base"] == str(qwen[0]) and found["versions"]["gguf"]
    path = exported / "model-f16.gguf"
    assert found["files"]["model-f16.gguf"] == {"bytes": path.stat().st_size, "sha256": embedded.sha256(path)}
    assert {path.name for path in exported.iterdir()} == {"merged", "model-f16.gguf", "export.json"}
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]  # nothing is left beside it


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_gguf_there_and_back(name, kind, request, tmp_path):
    pair = request.getfixturevalue(name)
    loaded = load(str(pair[0]), pair[1], dtype="float32", device="cpu")
    model, tokenizer = merge.merged(loaded), loaded.tokenizer
    path = write(model, tokenizer, tmp_path, kind)
    read, cut = gguf_file.load_gguf(path, "cpu", model.generation_config.eos_token_id)
    one, other = logits(read), logits(model)
    assert (one - other).norm() < (0.002 if kind == "f16" else 0.05) * other.norm()
    assert cut(ODD_TEXT)["input_ids"] == tokenizer(ODD_TEXT)["input_ids"]
    assert (cut.eos_token, cut.pad_token) == (SPECIAL[2], SPECIAL[0])
    assert cut.chat_template == tokenizer.chat_template


def write(model: Any, tokenizer: Any, folder: Path, kind: str) -> Path:
    """A GGUF file in an otherwise empty folder, where transformers finds nothing else to read."""
    (folder / "alone").mkdir(parents=True)
    gguf_file.write_gguf(folder / "alone" / "x.gguf", model, tokenizer, folder / "settings", kind, "tiny-soc")
    return folder / "alone" / "x.gguf"


def fields(path: Path) -> dict[str, Any]:
    import gguf

    reader: Any = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def kinds(path: Path) -> dict[str, str]:
    import gguf

    reader: Any = gguf.GGUFReader(path)
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def written(model: Path, folder: Path, kind: str) -> Path:
    loaded = load(str(model), dtype="float32", device="cpu")
    return write(loaded.model, loaded.tokenizer, folder, kind)


def test_what_llama_cpp_reads_of_a_qwen(qwen, tmp_path):
    path = written(qwen[0], tmp_path, "q8_0")
    known, types = fields(path), kinds(path)
    config = load(str(qwen[0])).model.config
    size = config.vocab_size
    wanted = {
        "general.architecture": "qwen2",
        "general.file_type": 7,
        "qwen2.context_length": config.max_position_embeddings,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps),
        "qwen2.rope.freq_base": pytest.approx(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert {name: known[name] for name in wanted} == wanted
    assert len(known["tokenizer.ggml.tokens"]) == len(known["tokenizer.ggml.token_type"]) == size
    assert known["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # control, then normal
    assert known["tokenizer.ggml.token_type"][-4:] == [5] * 4  # unused
    assert types["blk.0.attn_q.bias"] == types["blk.1.ffn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert {types[x] for x in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight")} == {"Q8_0"}
    assert len(types) == 2 * 12 + 3


def test_what_llama_cpp_reads_of_a_llama(tmp_path):
    path = written(tiny_llama(tmp_path / "tiny", tied=True), tmp_path, "f16")
    known, types = fields(path), kinds(path)
    assert (known["general.architecture"], known["general.file_type"]) == ("llama", 1)
    assert known["tokenizer.ggml.pre"] == "gpt-2"
    assert [known[f"llama.{x}"] for x in ("rope.dimension_count", "attention.key_length")] == [16, 16]
    assert (known["llama.rope.freq_base"], known["tokenizer.ggml.bos_token_id"]) == (50_000, 1)
    # Tied embeddings are written once.
    assert "output.weight" not in types and types["token_embd.weight"] == "F16"


def test_queries_and_keys_are_turned_for_llama_alone(qwen, llama, tmp_path):
    import gguf

    def query(pair: tuple[Path, Path], name: str) -> tuple[np.ndarray, np.ndarray]:
        (tmp_path / name).mkdir()
        reader: Any = gguf.GGUFReader(written(pair[0], tmp_path / name, "f16"))
        tensor = next(x for x in reader.tensors if x.name == "blk.0.attn_q.weight")
        own = load_file(pair[0] / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
        return np.asarray(tensor.data, np.float32), own.numpy()

    there, own = query(qwen, "qwen")
    np.testing.assert_allclose(there, own, atol=1e-3)
    there, own = query(llama, "llama")
    # A head's rows 0, 1, 2, ... become those of its first and second half in turn.
    heads = own.reshape(4, 16, 64)
    order = [x for pair in zip(range(8), range(8, 16), strict=True) for x in pair]
    np.testing.assert_allclose(there, heads[:, order].reshape(64, 64), atol=1e-3)


def test_rows_that_blocks_do_not_fit_stay_in_16_bits():
    assert gguf_file.tensor_type(np.zeros((4, 48), np.float32), "q8_0").name == "F16"
    assert gguf_file.tensor_type(np.zeros((4, 64), np.float32), "q8_0").name == "Q8_0"
    assert gguf_file.tensor_type(np.zeros(64, np.float32), "q8_0").name == "F32"


def test_how_text_is_cut():
    tokenizer = tiny_tokenizer()
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = {
        "gpt-2": whole,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]),
        "qwen2": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(gguf_file.QWEN2_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        None: pre_tokenizers.ByteLevel(add_prefix_space=True),
    }
    for name, way in cut.items():
        tokenizer.backend_tokenizer.pre_tokenizer = way
        assert gguf_file.split_of(tokenizer) == name
    tokenizer.backend_tokenizer.pre_tokenizer = whole
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # that of Qwen2.5
    assert gguf_file.split_of(tokenizer) == "gpt-2"
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert gguf_file.split_of(tokenizer) is None


def test_16_bits_are_rounded_and_the_merge_is_checked_before(llama, tmp_path):
    out = tmp_path / "soc"
    exporting.main(["--adapter", str(llama[1]), "--out", str(out), "--dtype", "bfloat16", "--gguf", "none", *STATES])
    first, second = told(out)["agreement"]
    assert first["what"] == "merged, not yet rounded" and first["constrained_actions"] == first["free_actions"] == 1
    assert (second["weights"], second["must_agree"]) == ("bfloat16", False)
    kept = load_file(out / "merged" / "model.safetensors")
    wanted = adapted(llama).merge_and_unload().state_dict()
    assert all(torch.equal(kept[name], wanted[name].to(torch.bfloat16)) for name in kept)
    assert json.loads((out / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {path.name for path in out.iterdir()} == {"merged", "export.json"}


def test_a_model_that_does_something_else_is_not_given_out(qwen, tmp_path, monkeypatch, capsys):
    def other(loaded: models.Loaded) -> Any:
        model = merged(loaded)
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        return model

    merged = merge.merged
    monkeypatch.setattr(merge, "merged", other)
    said = failed(capsys, "--adapter", qwen[1], "--out", tmp_path / "soc", "--gguf", "none", code=1)
    assert "merged/ does not do what base and adapter do" in said and "nothing was written to" in said
    assert not [*tmp_path.iterdir()]


def test_a_gguf_of_other_weights_is_not_given_out(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gguf_file, "permuted", lambda values, heads: values)
    said = failed(capsys, "--adapter", llama[1], "--out", tmp_path / "soc", "--gguf", "f16", code=1)
    assert "model-f16.gguf holds other weights than the merged model" in said
    assert not [*tmp_path.iterdir()]


# --- the folder -----------------------------------------------------------------------------------------------------


def test_other_folders_are_left_alone(qwen, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    for more in ([], ["--restart"]):
        assert "other files in it" in failed(capsys, "--adapter", qwen[1], "--out", out, *more)
    assert "thesis.txt' is no folder" in failed(capsys, "--adapter", qwen[1], "--out", out / "thesis.txt")
    (out / "export.json").write_text("{}")
    assert "--restart to replace it" in failed(capsys, "--adapter", qwen[1], "--out", out)
    inside = Path(shutil.copytree(qwen[1], out / "adapter"))
    assert "which is to be exported" in failed(capsys, "--adapter", inside, "--out", out, "--restart")
    assert (out / "thesis.txt").read_text() == "all of it" and [*tmp_path.iterdir()] == [out]


def test_an_export_is_replaced_whole_or_not_at_all(tmp_path):
    out = tmp_path / "soc"
    with export_folder.replacing(out, False, []) as part:
        (part / "export.json").write_text("first")
    with pytest.raises(KeyboardInterrupt), export_folder.replacing(out, True, []) as part:
        (part / "export.json").write_text("cut off")
        raise KeyboardInterrupt
    assert (out / "export.json").read_text() == "first" and [*tmp_path.iterdir()] == [out]
    with export_folder.replacing(out, True, []) as part:
        (part / "export.json").write_text("second")
    assert (out / "export.json").read_text() == "second" and [*tmp_path.iterdir()] == [out]
    os.replace(out, tmp_path / ".soc.old")  # killed between the two renames,
    (tmp_path / ".soc.part" / "merged").mkdir(parents=True)  # with the new one beside it
    with export_folder.replacing(out, True, []) as part:
        assert (out / "export.json").read_text() == "second" and not [*part.iterdir()]
        (part / "export.json").write_text("third")
    assert (out / "export.json").read_text() == "third" and [*tmp_path.iterdir()] == [out]


def test_two_at_once(tmp_path, capsys):
    out = tmp_path / "soc"
    with export_folder.replacing(out, False, []) as part:
        with pytest.raises(SystemExit), export_folder.replacing(out, False, []):
            pass
        assert "another export is writing there" in capsys.readouterr().err and part.is_dir()
        (part / "export.json").write_text("first")
    assert (out / "export.json").read_text() == "first"


def test_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**9))
    export_folder.check_room(tmp_path, 0.9e9)
    with pytest.raises(ModelError, match=r"needs 2\.00 GB of disk space, 1\.00 GB are free"):
        export_folder.check_room(tmp_path, 2e9)


# --- what cannot be exported ----------------------------------------------------------------------------------------


def test_broken_adapters(qwen, tmp_path, capsys):
    out = tmp_path / "soc"
    assert "is no folder; give the path of one" in failed(capsys, "--adapter", tmp_path / "no", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "it has no adapter_config.json" in failed(capsys, "--adapter", tmp_path / "empty", "--out", out)
    (tmp_path / "empty").rmdir()
    adapter = Path(shutil.copytree(qwen[1], tmp_path / "adapter"))
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    whole, read = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-10])
    assert "adapter_model.safetensors is damaged" in failed(capsys, "--adapter", adapter, "--out", out)
    weights.unlink()
    assert "has no adapter_model.safetensors" in failed(capsys, "--adapter", adapter, "--out", out)
    weights.write_bytes(whole)
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "is no folder and no hub id"),
        ({"r": 5}, "does not fit"),
    ):
        config.write_text(json.dumps(read | change))
        assert message in failed(capsys, "--adapter", adapter, "--out", out)
    config.write_text("{")
    assert "holds no JSON object" in failed(capsys, "--adapter", adapter, "--out", out)
    config.write_text(json.dumps(read))
    assert "was made for" in failed(capsys, "--adapter", adapter, "--model", "embedded", "--out", out)
    assert [*tmp_path.iterdir()] == [adapter]


def test_a_base_that_the_adapter_does_not_lead_to(qwen, tmp_path, capsys):
    """Named not at all, elsewhere, or in few bits: what is said to be done about it can be done."""
    adapter = Path(shutil.copytree(qwen[1], tmp_path / "adapter"))
    config = adapter / "adapter_config.json"
    read = json.loads(config.read_text())

    def named(base: str | None) -> None:
        config.write_text(json.dumps(read | {"base_model_name_or_path": base}))

    named(None)
    said = failed(capsys, "--adapter", adapter, "--out", tmp_path / "null")
    assert "base_model_name_or_path is None; name the model with --model" in said
    assert merge.base_of(adapter, str(qwen[0])) == str(qwen[0])
    assert load(str(qwen[0]), adapter).about["adapter"] == str(adapter)

    named(str(tmp_path / "gone" / "tiny"))
    said = failed(capsys, "--adapter", adapter, "--out", tmp_path / "moved")
    assert said.count("\n") == 1 and "say with --model where it lies" in said and "adapter_config.json" in said
    assert load(str(qwen[0]), adapter).about["adapter"] == str(adapter)
    named(str(tmp_path / "gone" / "of another name"))
    said = failed(capsys, "--adapter", adapter, "--model", qwen[0], "--out", tmp_path / "renamed")
    assert f"name {qwen[0]} as its base in {config}" in said

    few = Path(shutil.copytree(qwen[0], tmp_path / "few"))
    settings = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps(settings | {"quantization_config": {"load_in_4bit": True}}))
    named(str(few))
    (adapter / adapters.BASE_NOTE).write_text(json.dumps({"base_model_name_or_path": str(few), "identity": "of few"}))
    for more in ([], ["--model", few]):
        said = failed(capsys, "--adapter", adapter, "--out", tmp_path / "full", *more)
        assert "few is kept in few bits" in said and f"into {config}" in said and said.count("\n") == 1
    named(str(qwen[0]))
    exporting.main(["--adapter", str(adapter), "--gguf", "none", "--out", str(tmp_path / "full"), *STATES])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_bias": True, "target_modules": ["o_proj"]}, "an adapter of this kind cannot be merged; use it with"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "an adapter that repeats layers cannot be merged; use it with"),
        ({"alora_invocation_tokens": [5, 6]}, "an adapter that waits for certain tokens cannot be merged; use it with"),
    ],
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter 'default'")  # PEFT's affair
def test_adapters_that_no_weights_of_their_base_can_be(llama, tmp_path, capsys, change, message):
    import peft

    same = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(load(str(llama[0]), dtype="float32").model, peft.LoraConfig(**same | change))
    adapted.save_pretrained(tmp_path / "adapter")
    said = failed(capsys, "--adapter", tmp_path / "adapter", "--out", tmp_path / "soc", "--gguf", "none")
    assert message in said and "evaluate-model --adapter" in said and said.count("\n") == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "adapter"]


def test_an_adapter_that_diverged(qwen, tmp_path):
    adapter = Path(shutil.copytree(qwen[1], tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="take one of an earlier step"):
        merge.merged(load(str(qwen[0]), adapter, dtype="float32"))


def test_numbers_too_large_for_16_bits(qwen, tmp_path):
    loaded = load(str(qwen[0]), dtype="float32", device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"lm_head.weight holds numbers that float16 has no room for"):
        write(loaded.model, loaded.tokenizer, tmp_path, "f16")


def test_other_architectures(tmp_path, capsys):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_tokenizer()
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    with embedded.quiet():
        Qwen3ForCausalLM(
            Qwen3Config(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, **size, **heads)
        ).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    adapter, out = adapter_of(tmp_path / "model", tmp_path / "adapter"), tmp_path / "soc"
    said = failed(capsys, "--adapter", adapter, "--out", out)
    assert "it is a 'qwen3' model, and only llama and qwen2 are written here; give --gguf none, then run" in said
    assert f"python convert_hf_to_gguf.py {out / 'merged'}" in said and not out.exists()
    exporting.main(["--adapter", str(adapter), "--out", str(out), "--gguf", "none", *STATES])
    assert told(out)["agreement"][0]["constrained_actions"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "its attention_bias is True"),
        ({"hidden_act": "gelu"}, "its hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "only the default rope_type"),
    ],
)
def test_other_kinds_of_an_architecture(llama, change, message):
    model, tokenizer, _ = load(str(llama[0]))
    assert gguf_file.unwritable(model, tokenizer) == ""
    for name, value in change.items():
        setattr(model.config, name, value)
    assert message in gguf_file.unwritable(model, tokenizer)


def test_other_tokenizers(llama):
    model, tokenizer, _ = load(str(llama[0]))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert "its tokenizer is none of" in gguf_file.unwritable(model, tokenizer)


def test_where_it_was_trained(tmp_path):
    adapter = tmp_path / "run" / "loop0" / "adapter"
    adapter.mkdir(parents=True)
    assert not merge.trained_in_four_bits(adapter)
    (tmp_path / "run" / "run_manifest.json").write_text(json.dumps({"settings": {"four_bit": True}}))
    assert merge.trained_in_four_bits(adapter)
    assert "trained on that base in 4 bits" in merge.card_of("some/model", "adapter", "float32", True)
    assert "base_model: some/model" in merge.card_of("some/model", "adapter", "float32", False)
    assert merge.name_of(EMBEDDED) == "SmolLM2-135M-Instruct"


# --- llama.cpp ------------------------------------------------------------------------------------------------------

FAKE = """#!{python}
import http.server, json, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.say({{}})
    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize": return self.say({{"tokens": [1, 2]}})
        assert given["temperature"] == 0 and given["prompt"].endswith("assistant\\n")
        self.say({{"content": {content}}})
    def say(self, what):
        self.send_response({status})
        self.end_headers()
        self.wfile.write(json.dumps(what).encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


def fake(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_server_is_compared(qwen, tmp_path):
    content = """'{"action": "MONITOR"}' if "grammar" in given else "well"'"""[:-1]
    program = fake(tmp_path / "llama-server", FAKE.format(python=sys.executable, content=content, status=200))
    out = tmp_path / "soc"
    exporting.main(["--adapter", str(qwen[1]), "--out", str(out), "--llama-cpp", str(program), *STATES])
    row = told(out)["agreement"][-1]
    assert row["what"] == "model-q8_0.gguf in llama.cpp" and row["same_tokens"] == 0
    assert row["free_actions"] == 1 and row["free_texts"] == 0 and row["constrained_actions"] < 1
    assert {path.name for path in out.iterdir()} == {"merged", "model-q8_0.gguf", "export.json"}


def test_a_server_that_does_not_work(qwen, tmp_path, capsys, monkeypatch):
    out = tmp_path / "soc"
    assert "is no program that can be run" in failed(
        capsys, "--adapter", qwen[1], "--out", out, "--llama-cpp", tmp_path
    )
    program = fake(tmp_path / "broken", "#!/bin/sh\necho loading; echo unknown model; exit 1\n")
    said = failed(capsys, "--adapter", qwen[1], "--out", out, "--llama-cpp", program)
    assert "broken does not run model-q8_0.gguf: unknown model" in said and not out.exists()
    program = fake(tmp_path / "odd", FAKE.format(python=sys.executable, content="x" * 3, status=200))
    said = failed(capsys, "--adapter", qwen[1], "--out", out, "--llama-cpp", program)
    assert "llama-server gives no answer to /completion" in said
    said = failed(capsys, "--adapter", qwen[1], "--out", out, "--llama-cpp", program, "--gguf", "none")
    assert "--llama-cpp has nothing to read" in said and [*tmp_path.glob("*soc*")] == []
    program.rename(tmp_path / "llama-server")  # nobody asked for it
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    exporting.main(["--adapter", str(qwen[1]), "--out", str(out), *STATES])
    assert "the file was not tried in llama.cpp" in capsys.readouterr().err
    assert len(told(out)["agreement"]) == 2


SHIM = """#!{python}
import argparse, time, xllamacpp
p = argparse.ArgumentParser()
for name in ("model", "host", "port", "ctx-size", "parallel"):
    p.add_argument("--" + name)
a, c = p.parse_args(), xllamacpp.CommonParams()
c.model.path, c.hostnames, c.port = a.model, [a.host], int(a.port)
c.n_ctx, c.n_parallel, c.cpuparams.n_threads = int(a.ctx_size), int(a.parallel), 1
server = xllamacpp.Server(c)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_llama_cpp_itself(name, request, tmp_path):
    """The same probabilities, and the same tokens, in llama.cpp; needs `pip install xllamacpp`, a build of it."""
    pytest.importorskip("xllamacpp")
    pair = request.getfixturevalue(name)
    loaded = load(str(pair[0]), pair[1], dtype="float32", device="cpu")
    model, tokenizer = merge.merged(loaded), loaded.tokenizer
    path = write(model, tokenizer, tmp_path, "f16")
    program = fake(tmp_path / "llama-server", SHIM.format(python=sys.executable))
    compared = 0
    with llama_server.serving(str(program), path, 256) as address:
        for text in (ODD_TEXT, *TEXT):
            ids = tokenizer(text)["input_ids"]
            assert llama_server.server_tokens(address, text) == ids
            with torch.no_grad():
                wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            found = llama_server.asked(address, "completion", prompt=text, n_predict=1, temperature=0, n_probs=20)
            # None are told of an end, or of a token that is part of a letter.
            for one in found.get("completion_probabilities", [{"top_logprobs": []}])[0]["top_logprobs"]:
                assert one["logprob"] == pytest.approx(float(wanted[one["id"]]), abs=0.05)
                compared += 1
    assert compared >= 20
