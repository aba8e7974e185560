"""The model that learns: a base with an adapter to train, and writing that adapter."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model

from grpo.learning import finite
from grpo.model import adapters, models
from grpo.model.errors import ModelError
from jaxsim_soc import write

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lora(NamedTuple):
    """A fresh adapter (LoRA, Hu et al. 2022)."""

    r: int  # rank
    alpha: int  # scale
    dropout: float


def student(
    name: str, lora: Lora, seed: int, adapter: Path | None = None, *, four_bit: bool = False, dtype: str = "auto"
) -> tuple[Any, Any]:
    """(model, tokenizer): the model with an adapter to train, that of a folder or a fresh one drawn from the seed.

    Raises ModelError when the model cannot be loaded, holds what is no number, or has no layers for an adapter.
    """
    loaded = models.load(name, adapter, four_bit=four_bit, dtype=dtype, trainable=adapter is not None)
    finite.check_model(loaded.model, name)
    if adapter is not None:
        return loaded.model, loaded.tokenizer
    try:
        return adapted(loaded.model, lora, seed), loaded.tokenizer
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise ModelError(f"{name} has no layers to put an adapter on ({why}); take another model") from error


def adapted(model: Any, lora: Lora, seed: int) -> Any:
    """A model with a fresh adapter, drawn from the seed. Raises ValueError when it has no layers for one."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter beside its place, then put it there. Raises ModelError when its weights are no numbers."""
    finite.check_weights(model, "the adapter")
    with write.folder(folder) as part:
        model.save_pretrained(part, selected_adapters=["default"], save_embedding_layers=False)
        adapters.note_base(model, part)
