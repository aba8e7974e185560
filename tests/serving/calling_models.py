"""A tiny model that calls tools at random, with a chat template that renders them."""

from pathlib import Path
from typing import Any

import torch
import trl
from tiny_models import tiny_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

TEMPLATE = Path(trl.__file__).with_name("chat_templates") / "qwen2_5.jinja"


def calling(said: list[str]) -> tuple[Any, Any]:
    """Model and tokenizer. Where an answer begins each of `said`, a token of its own, is as likely as the others.

    What a token is followed by depends on it alone: attention and the layers behind it add nothing yet.
    """
    tokenizer = tiny_tokenizer(fluent=True)
    tokenizer.chat_template = TEMPLATE.read_text("utf-8")
    tokenizer.add_tokens(said)
    start = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True)["input_ids"]
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        inner = torch.nn.functional.normalize(model.model.embed_tokens.weight)
        for text in said:
            token = tokenizer.convert_tokens_to_ids(text)
            model.lm_head.weight[token] = 5 * inner[start[-1]]
            model.lm_head.weight[tokenizer.eos_token_id] += 5 * inner[token]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def tool_call(name: str, **arguments: str) -> str:
    """As Qwen2.5 writes one."""
    given = ", ".join(f'"{k}": "{v}"' for k, v in arguments.items())
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{{given}}}}}\n</tool_call>'
