"""What makes a training step cheaper without changing what it computes.

`share`: what the rows of a batch begin with is computed once. The completions of a group share their whole prompt, and
prompts share the system message; on a CPU that is most of a step. Keys and values of the common beginning come from a
batch of one, and gradients flow back through them.

`in_half`: an adapter's float32 weights meet bfloat16 or float16 activations; autocast rounds the few weights rather
than widen the many activations. On a CPU attention is written out: the fused kernel's backward pass is slower there.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import DynamicCache

from grpo.model import attention

WORTH = 32  # tokens: a shorter beginning is left alone


def common(tokens: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Length of the columns at the left of (rows, tokens) that are equal in every row and nowhere padding."""
    same = (tokens == tokens[:1]).all(dim=0)
    if mask is not None:
        same &= (mask != 0).all(dim=0)
    return int(same.long().cumprod(dim=0).sum())


@contextlib.contextmanager
def share(peft_model: Any) -> Iterator[None]:
    """Compute common beginnings once within this context.

    Output for the common part is left out: logits are those of the last columns only, and those that labels or
    `logits_to_keep` ask for are among them. Nothing changes where a batch has one row, while decoding with a filled
    cache, with gradient checkpointing, which knows no cache, and with Unsloth, which has forward passes of its own.
    """
    if "unsloth" in sys.modules:
        yield
        return
    model = peft_model.get_base_model()
    plain = model.forward

    @functools.wraps(plain)
    def forward(*positional: Any, **given: Any) -> Any:
        tokens, mask, cache = (given.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
        labels, keep = given.get("labels"), given.get("logits_to_keep", 0)
        filled = cache is not None and cache.get_seq_length() > 0
        if positional or tokens is None or len(tokens) < 2 or filled or attention.checkpoints(model):
            return plain(*positional, **given)
        n = min(common(tokens, mask), tokens.shape[1] - max(1, keep))
        if labels is not None:  # a label is predicted one column before its own
            first = (labels != -100).any(dim=0).long().argmax()
            n = min(n, int(first) - 1)
        if n < WORTH:
            return plain(**given)
        cache = DynamicCache(config=model.config) if cache is None else cache
        model.base_model(input_ids=tokens[:1, :n], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(tokens))
        rest = {name: given[name][:, n:] for name in ("input_ids", "labels", "position_ids") if _there(given, name)}
        return plain(**{**given, **rest, "past_key_values": cache})

    model.forward = forward
    try:
        yield
    finally:
        model.forward = plain


def _there(given: dict[str, Any], name: str) -> bool:
    return given.get(name) is not None


@contextlib.contextmanager
def in_half(model: Any) -> Iterator[None]:
    """Compute a PEFT model in the half precision that its frozen weights have; on a CPU, in bfloat16 only."""
    frozen, device = next(p for p in model.parameters() if not p.requires_grad).dtype, model.device.type
    if device != "cpu" and frozen in (torch.bfloat16, torch.float16):
        with torch.autocast(device, frozen, cache_enabled=False), disable_input_dtype_casting(model):
            yield
        return
    if device != "cpu" or frozen != torch.bfloat16:
        yield
        return
    plain = model.get_base_model()
    attention = plain.config._attn_implementation
    plain.set_attn_implementation("eager")
    try:
        # No cache: it lives as long as this context, and would keep the rounded weights of before the first step.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), disable_input_dtype_casting(model):
            yield
    finally:
        plain.set_attn_implementation(attention)
