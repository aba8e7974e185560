"""The warm start: supervised learning of a few hundred shown answers, so that GRPO starts from a model that answers.

A loop of its own rather than a trainer: only the logits of the answer are computed, which on a CPU is most of the
time; every step's luck comes from the seed and the step alone, so that a run that was killed continues exactly.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from grpo.learning import finite, sharing
from grpo.model import decode
from grpo.model.errors import ModelError
from jaxsim_soc import write

CLIP = 1.0  # largest norm of a gradient


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

    AdamW, learning rate falling linearly to 0. A batch is of one group, whose prompts begin alike, as far as numbers
    allow. `advance(step, steps, loss)` follows each step. Raises ModelError when there is no example, and when loss or
    weights are no numbers any more; nothing of that is kept.
    """
    if not examples:
        raise ModelError("warm start: there is no answer worth showing in these rows; choose more rows, or warm_rows 0")
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adam = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=0.0)
    per_epoch = max(1, len(examples) // batch)
    steps = epochs * per_epoch
    done = _restore(folder, weights, adam)
    model.train()
    for step in range(done, steps):
        epoch, within = divmod(step, per_epoch)
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(examples))
        order = order[np.argsort(np.asarray(groups)[order], kind="stable")]
        at = int(rng.permutation(per_epoch)[within]) * batch
        chosen = [examples[i] for i in order[at : at + batch]]
        torch.manual_seed(seed * 1_000_003 + step)  # of the dropout
        adam.param_groups[0]["lr"] = lr * (1 - step / steps)
        with sharing.share(model), sharing.in_half(model):
            loss = answer_loss(model, chosen, pad)
        finite.check_number(told := loss.item(), f"warm start, step {step + 1} of {steps}: the loss")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        adam.step()
        adam.zero_grad()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            finite.check_weights(model, f"warm start, step {step + 1} of {steps}")
            _keep(folder, weights, adam, step + 1)
        advance(step + 1, steps, told)
    model.eval()


def _keep(folder: Path, weights: dict[str, torch.Tensor], adam: torch.optim.Optimizer, step: int) -> None:
    """Save weights and optimiser beside the last ones, then put them in their place."""
    names = {id(p): name for name, p in weights.items()}
    state = {
        f"{names[id(p)]}:{key}": value.contiguous()
        for p, kept in adam.state.items()
        for key, value in kept.items()
        if isinstance(value, torch.Tensor)
    }
    with write.folder(folder) as part:
        save_file({name: p.detach().contiguous() for name, p in weights.items()}, part / "weights.safetensors")
        save_file(state, part / "adam.safetensors")
        (part / "step.json").write_text(json.dumps({"step": step}))


def _restore(folder: Path, weights: dict[str, torch.Tensor], adam: torch.optim.Optimizer) -> int:
    """Put back what `_keep` kept; returns the steps done, 0 when there is nothing."""
    write.settle(folder)
    if not folder.exists():
        return 0
    kept, state = load_file(folder / "weights.safetensors"), load_file(folder / "adam.safetensors")
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(kept[name])
            adam.state[p] = {key: state[f"{name}:{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return int(json.loads((folder / "step.json").read_text())["step"])
