"""The warm start: supervised learning of a few hundred shown answers, so that GRPO starts from a model that answers.

Only the logits of the answer are computed, which on a CPU is most of the time. It is `losses.cross_entropy` to targets
that are all on one answer, by the token.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from grpo.learning import descent, sharing
from grpo.model import decode
from grpo.model.errors import ModelError


def pairs(tokenizer: Any, chats: list[list[dict[str, str]]], answers: list[str]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of each example as token ids, the answer with its end token."""
    end = tokenizer.eos_token_id
    return [
        (decode.chat_tokens(tokenizer, chat), [*tokenizer(answer, add_special_tokens=False)["input_ids"], end])
        for chat, answer in zip(chats, answers, strict=True)
    ]


def answer_loss(model: Any, examples: list[tuple[list[int], list[int]]], pad: int) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens.

    Padding stands between what all prompts begin with and the rest: beginnings line up left, answers right.
    """
    n = len(decode.common_prefix([p for p, _ in examples]))
    wide = max(len(p) + len(a) for p, a in examples)
    longest = max(len(a) for _, a in examples)
    gaps = [wide - len(p) - len(a) for p, a in examples]
    device = model.device
    tokens = torch.tensor(
        [p[:n] + [pad] * g + p[n:] + a for (p, a), g in zip(examples, gaps, strict=True)], device=device
    )
    mask = torch.tensor([[1] * n + [0] * g + [1] * (wide - n - g) for g in gaps], device=device)
    places = mask.cumsum(dim=1) - 1
    out = model(input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=longest + 1)
    logits = out.logits[:, :-1].float()
    wanted = torch.tensor([[-100] * (longest - len(a)) + a for _, a in examples], device=device)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)


def learn(
    model: Any,
    examples: list[tuple[list[int], list[int]]],
    groups: Sequence[int],
    folder: Path,
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    pad: int,
    save_every: int,
    advance: Callable[[int, int, float], None],
) -> None:
    """Train the trainable weights of `model` in place. Continues from `folder` if a run was cut off there.

    A batch is of one group, whose prompts begin alike, as far as numbers allow. `advance(step, steps, loss)` follows
    each step. Raises ModelError when there is no example, and as `descent.descend` does.
    """
    if not examples:
        raise ModelError("warm start: there is no answer worth showing in these rows; choose more rows, or warm_rows 0")
    steps = epochs * max(1, len(examples) // batch)

    def one(step: int, scale: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, dict[str, Any]]:
        chosen = [examples[i] for i in descent.drawn(groups, batch, step, seed)]
        with sharing.share(model), sharing.in_half(model):
            loss = answer_loss(model, chosen, pad)
        scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.item(), {}

    def told(step: int, report: dict[str, Any]) -> bool:
        advance(step, steps, report["loss"])
        return False

    descent.descend(model, folder, descent.How("warm start", steps, lr, seed, save_every), one, told, [])
