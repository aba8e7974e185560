"""grpo/evaluation.py with a real, tiny model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from scripted import CLOCK, SUPPLY, assert_finite, command, error_of, rows_in, scripted

import jaxsim
import scenarios
from grpo.playing import evaluation, speaker
from grpo.playing.choices import CONSTRAINED, DECODINGS, FREE


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker, "load", scripted)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, "<end>"])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\n' }}{% endfor %}a:"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=256, pad_token_id=256, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_real_model_from_end_to_end(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoding: str
) -> None:
    if decoding == CONSTRAINED:
        pytest.importorskip("llguidance")
    monkeypatch.undo()
    own = jaxsim.load_scenario(SUPPLY).model_copy(update={"id": "short", "horizon": 5})
    (tmp_path / "own.yaml").write_text(scenarios.dump(own))
    options = ["--model", str(tiny), "--decode", decoding, "--threads", "1"]
    options += ["--max-new-tokens", "8" if decoding == FREE else "70", "--dtype", "float32", "--temperature", "1"]
    argv = command(tmp_path / "out", *options, scenario=str(tmp_path / "own.yaml"), episodes=3)
    evaluation.main(argv)
    rows = rows_in(tmp_path / "out", clock=True)
    assert_finite(rows)
    assert rows[2]["decisions"] == 15 and rows[2]["tokens_per_second"] > 0
    assert rows[2]["invalid_rate"] == (1 if decoding == FREE else 0)
    # Sampled answers are the same after an interruption.
    part = tmp_path / "out" / "parts" / "short-base.jsonl"
    said = [json.loads(line)["texts"] for line in part.read_text().splitlines()]
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:2]))
    evaluation.main(argv)
    assert [json.loads(line)["texts"] for line in part.read_text().splitlines()] == said
    assert rows_in(tmp_path / "out") == [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def test_a_model_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    message = error_of(capsys, command(tmp_path, "--model", "no such model"))
    assert "no such model" in message
