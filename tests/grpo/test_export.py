"""Exporting: tiny random models with an adapter, merged and as GGUF, there and back, and the folder they go to."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("gguf")
pytest.importorskip("llguidance")

import torch
from exported_models import ODD_TEXT, STATES, adapted, failed, tiny_llama, told, write
from safetensors.torch import load_file
from tiny_models import SPECIAL, logits, needs_version_5, tiny_tokenizer
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM

from grpo.exporting import command as exporting
from grpo.exporting import folder as export_folder
from grpo.exporting import gguf_file, merge
from grpo.model import embedded, models
from grpo.model.models import ModelError, load

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def exported(qwen, tmp_path_factory) -> Path:
    """The Qwen2, in float32 and 16 bits."""
    out = tmp_path_factory.mktemp("out") / "soc"
    exporting.main(["--adapter", str(qwen[1]), "--out", str(out), "--gguf", "f16", *STATES])
    return out


# --- merged and there and back ----------------------------------------------------------------------------------------


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


# --- the folder -------------------------------------------------------------------------------------------------------


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
