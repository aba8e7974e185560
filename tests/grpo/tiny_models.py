"""Tiny random models and their adapters, and what the tests that load models share."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import prompting
from grpo.model import embedded

TEMPLATE = (  # that of Qwen2.5, less tools
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TEXT = ['{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', "You are a SOC analyst. Tick 3 of 60", "svc-payments"]
FORMAT = Path(prompting.__file__).with_name("FORMAT.md")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(fluent: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, and ChatML's special tokens; a fluent one knows the prompts' words."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words, text = (1500, [*TEXT, FORMAT.read_text("utf-8")]) if fluent else (340, TEXT)
    trainer = BpeTrainer(vocab_size=words, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE
    )


def tiny(folder: Path, seed: int = 0, layers: int = 2, fluent: bool = False) -> Path:
    """A folder with a random model; large weights make its answers differ. To a fluent one prompts are a third as long.

    That is for tests that train or play a lot.
    """
    tokenizer = tiny_tokenizer(fluent)
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


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits.float()


def lora(loaded, seed: int = 1):
    """An adapter that changes answers: its B is not zero."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(loaded.model, config)


def needs_version_5(folder: Path) -> list[str]:
    """What transformers 4.5x cannot read in a model folder, or would read as something else."""
    config, tokenizer = (json.loads((folder / x).read_text()) for x in ("config.json", "tokenizer_config.json"))
    classes = [name for name in ("TokenizersBackend",) if tokenizer["tokenizer_class"] == name]
    words = [name for name in ("rope_parameters", "model_specific_special_tokens") if name in config | tokenizer]
    missing = [name for name in ("rope_theta", "torch_dtype") if name not in config]
    return (
        classes + words + missing + ["extra_special_tokens"] * isinstance(tokenizer.get("extra_special_tokens"), list)
    )
