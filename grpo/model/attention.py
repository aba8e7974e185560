"""What makes decoding cheaper without changing what it computes: a cache that is written in place, and attention in
which, on a CPU, the query heads that share a key head are folded into one. The library copies keys and values once for
every token and once more for every query head, and makes the mask a float in every layer.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import eager_mask

PACKED = "packed"
CHECKPOINTING = "gradient_checkpointing"  # the attribute of a layer that does it
MORE = 64  # tokens that a cache which is full grows by


class Room(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, (rows, heads, length, size), of which the first `used` tokens are written.

    `length` grows as needed.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, rows: int, length: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.length, self.used = rows, length, 0
        self.window = slice(0, rows)  # the rows that a forward pass is about

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values of the window's rows behind those there are; returns all of these rows."""
        end = self.used + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self._empty(key_states), self._empty(value_states)
        if end > self.length:
            self.length, before = end + MORE, (self.keys, self.values)
            self.keys, self.values = map(self._empty, before)
            for x, old in zip((self.keys, self.values), before, strict=True):
                x[:, :, : self.used] = old[:, :, : self.used]
        self.keys[self.window, :, self.used : end] = key_states
        self.values[self.window, :, self.used : end] = value_states
        return self.keys[self.window, :, :end], self.values[self.window, :, :end]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty((self.rows, like.shape[1], self.length, like.shape[3]))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only."""
        self.rows, self.keys, self.values = len(indices), self.keys[indices], self.values[indices]

    def get_seq_length(self) -> int:
        """Tokens that are there; `update` adds none until `wrote` says so, as a pass may take several windows."""
        return self.used


def room(config: Any, rows: int, length: int) -> Cache:
    """An empty cache of a model for `rows` rows; it has to grow after `length` tokens."""
    return Cache(layers=[Room(rows, length) for _ in DynamicCache(config=config).layers])


def look(cache: Any, window: slice) -> None:
    """The next forward pass is about these rows."""
    for layer in cache.layers:
        layer.window = window


def wrote(cache: Any, tokens: int) -> None:
    """Every row has got so many tokens more."""
    for layer in cache.layers:
        layer.used += tokens


def _attention(
    module: Any,
    query: torch.Tensor,  # (rows, query heads, tokens, size)
    key: torch.Tensor,  # (rows, key heads, all tokens, size)
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    rows, heads, tokens, size = query.shape
    folded = query.reshape(rows, key.shape[1], -1, size)
    out = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _mask(*, config: Any, **given: Any) -> torch.Tensor:
    groups = config.num_attention_heads // config.num_key_value_heads
    return eager_mask(config=config, **given).repeat(1, 1, groups, 1)


def tree_mask(model: Any, sees: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, all tokens) bool, who sees whom, as a model's attention wants it: added to its scores."""
    number = model.get_input_embeddings().weight.dtype
    added = torch.zeros(sees.shape, dtype=number, device=sees.device)
    added = added.masked_fill_(~sees, torch.finfo(number).min)[:, None]
    config = model.config
    if config._attn_implementation != PACKED:
        return added
    return added.repeat(1, 1, config.num_attention_heads // config.num_key_value_heads, 1)


def checkpoints(model: Any) -> bool:
    """Whether a training pass keeps no activations, and so no cache."""
    return bool(model.training) and any(getattr(m, CHECKPOINTING, False) for m in model.modules())


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, _mask)


@contextlib.contextmanager
def packed(model: Any) -> Iterator[None]:
    """Fold heads within this context: on a CPU, and where the model has "sdpa" of transformers."""
    before = model.config._attn_implementation
    if model.device.type != "cpu" or before != "sdpa":
        yield
        return
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
