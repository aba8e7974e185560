"""Exporting: what cannot be exported, and what llama.cpp's server is asked."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("gguf")
pytest.importorskip("llguidance")

import torch
from exported_models import ODD_TEXT, STATES, adapter_of, failed, told, write
from safetensors.torch import load_file, save_file
from tiny_models import TEXT, tiny_tokenizer
from tokenizers import pre_tokenizers

import prompting
import scenarios
from grpo.exporting import command as exporting
from grpo.exporting import gguf_file, llama_server, merge
from grpo.model import adapters, embedded
from grpo.model.folders import EMBEDDED
from grpo.model.models import ModelError, load
from grpo.playing import evaluation, remote

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# --- what cannot be exported ------------------------------------------------------------------------------------------


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


# --- llama.cpp --------------------------------------------------------------------------------------------------------

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


def test_llama_cpp_is_held_to_the_legal_actions_as_a_player(qwen, tmp_path):
    """An exported file behind llama.cpp's server: it knows the JSON schema, and an untrained model answers by it."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("openai")
    loaded = load(str(qwen[0]), qwen[1], dtype="float32", device="cpu")
    path = write(merge.merged(loaded), loaded.tokenizer, tmp_path, "f16")
    program = fake(tmp_path / "llama-server", SHIM.format(python=sys.executable))
    inventory = prompting.inventory(scenarios.load("supply_chain_token_drift"))
    with llama_server.serving(str(program), path, 16384) as address:
        argv = ["--model", "openai:soc", "--base-url", f"{address}/v1", "--out", "x", "--max-new-tokens", "300"]
        speaker = remote.load(evaluation.parser().parse_args(argv))
        said = speaker.respond_in(inventory, "")(["Tick 1: nothing.", "Tick 1: an alert."], (0, 1), 1)
    assert speaker.about["answers"] == "by JSON schema"
    assert [prompting.parse(text, inventory)[1] for text in said] == ["", ""], said
