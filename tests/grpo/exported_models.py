"""Tiny models with an adapter to export, and what the tests of exporting share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import lora, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from grpo.exporting import command as exporting
from grpo.exporting import gguf_file
from grpo.model import embedded
from grpo.model.models import load

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


def write(model: Any, tokenizer: Any, folder: Path, kind: str) -> Path:
    """A GGUF file in an otherwise empty folder, where transformers finds nothing else to read."""
    (folder / "alone").mkdir(parents=True)
    gguf_file.write_gguf(folder / "alone" / "x.gguf", model, tokenizer, folder / "settings", kind, "tiny-soc")
    return folder / "alone" / "x.gguf"
