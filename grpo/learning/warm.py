"""The warm start, so that GRPO starts from a model that answers: a few hundred shown answers, or a teacher's chances.

Of a shown answer only its own logits are computed, which on a CPU is most of the time. It is `losses.cross_entropy` to
a target that is all on one answer, by the token.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import prompting
from grpo.learning import descent, losses, sharing
from grpo.model import decode, trie
from grpo.model.errors import ModelError
from grpo.model.trie import Trie
from grpo.rows.bank import Bank
from grpo.rows.rows import Campaigns

LEAST = 0.01  # of a teacher's probability, not worth the tokens that it takes


class How(NamedTuple):
    """Numbers of a warm start."""

    epochs: int
    batch: int
    lr: float  # falls linearly to 0
    seed: int
    save_every: int  # steps


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


class Lesson(NamedTuple):
    """A state, and how likely each legal answer should be there."""

    prompt: list[int]
    tree: Trie  # of the answers that are worth teaching
    target: np.ndarray  # (A,), of these, adds up to 1
    which: np.ndarray  # (A,) int64, their places among all legal answers


def lesson(tokenizer: Any, prompt: list[int], answers: Sequence[str], target: np.ndarray) -> Lesson:
    """A state's lesson of the `target`, (A,), of all legal answers, which adds up to 1.

    The least likely answers that have LEAST together are left out, and with them most of the tree: what a model gives
    to an answer counts among all it may say, so that those left out cost no less for it.
    """
    order = np.argsort(-target, kind="stable")
    which = np.sort(order[: 1 + int((target[order].cumsum() < 1 - LEAST).sum())])
    tree = trie.trie(tokenizer, tuple(answers[a] for a in which))
    return Lesson(prompt, tree, target[which] / target[which].sum(), which)


class Lessons(NamedTuple):
    """What a teacher would do at some states."""

    lessons: list[Lesson]
    campaigns: list[int]  # of each
    whole: Trie  # of all legal answers of the first


def lessons_of(
    game: Campaigns, bank: Bank, prompts: list[str], chances: np.ndarray, which: np.ndarray, tokenizer: Any
) -> Lessons:
    """At the rows `which`; `chances`, (R, A), are the teacher's of every action."""
    campaigns, found = bank.params_index[which].tolist(), []
    for r, p in zip(which.tolist(), campaigns, strict=True):
        inventory = game.inventories[p]
        prompt = decode.chat_tokens(tokenizer, prompting.chat(prompts[r], inventory))
        target = chances[r, list(inventory.actions.values())]
        found.append(lesson(tokenizer, prompt, prompting.answers(inventory), target))
    return Lessons(found, campaigns, trie.trie(tokenizer, prompting.answers(game.inventories[campaigns[0]])))


def distil_loss(model: Any, lessons: Sequence[Lesson]) -> torch.Tensor:
    """() nats, sum over the states of the divergence KL(target || the model's chances of whole answers)."""
    found = trie.log_probs(model, [x.prompt for x in lessons], [x.tree for x in lessons])
    targets = [torch.from_numpy(x.target).to(log_p) for x, log_p in zip(lessons, found, strict=True)]
    each = [
        losses.cross_entropy(log_p, target) + torch.special.xlogy(target, target).sum()
        for log_p, target in zip(found, targets, strict=True)
    ]
    return torch.stack(each).sum()


def learn(
    model: Any,
    examples: list[tuple[list[int], list[int]]],
    groups: Sequence[int],
    folder: Path,
    how: How,
    *,
    pad: int,
    advance: Callable[[int, int, float], None],
) -> None:
    """Train the trainable weights of `model` in place on shown answers. Continues from `folder` if cut off there.

    A batch is of one group, whose prompts begin alike, as far as numbers allow. `advance(step, steps, loss)` follows
    each step. Raises ModelError when there is no example, and as `descent.descend` does.
    """

    def parts(chosen: list[int]) -> Iterator[torch.Tensor]:
        with sharing.share(model), sharing.in_half(model):
            loss = answer_loss(model, [examples[i] for i in chosen], pad)
        yield loss

    _descend(model, groups, folder, how, parts, advance)


def distil(
    model: Any,
    lessons: Sequence[Lesson],
    groups: Sequence[int],
    folder: Path,
    how: How,
    *,
    whole: Trie,
    at_once: int,
    advance: Callable[[int, int, float], None],
) -> None:
    """As `learn`, to a teacher's probabilities of all legal answers; `at_once` states in a forward pass.

    The loss is the divergence from the teacher, in nats a state. Raises ModelError as well for a model that cannot
    weigh all answers at once: it is tried with `whole`, the tree of all of the first lesson.
    """
    if lessons:
        trie.check(model.eval(), lessons[0].prompt, whole)

    def parts(chosen: list[int]) -> Iterator[torch.Tensor]:
        chosen = sorted(chosen, key=lambda i: len(lessons[i].prompt) + len(lessons[i].tree.tokens))  # little padding
        for i in range(0, len(chosen), at_once):
            with sharing.in_half(model):
                loss = distil_loss(model, [lessons[k] for k in chosen[i : i + at_once]]) / len(chosen)
            yield loss

    _descend(model, groups, folder, how, parts, advance)


def _descend(
    model: Any,
    groups: Sequence[int],
    folder: Path,
    how: How,
    parts: Callable[[list[int]], Iterator[torch.Tensor]],
    advance: Callable[[int, int, float], None],
) -> None:
    if not groups:
        raise ModelError("warm start: there is no answer worth showing in these rows; choose more rows, or warm_rows 0")
    steps = how.epochs * max(1, len(groups) // how.batch)

    def one(step: int, scale: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, dict[str, Any]]:
        total = 0.0
        for loss in parts(descent.drawn(groups, how.batch, step, how.seed)):
            scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total, {}

    def told(step: int, report: dict[str, Any]) -> bool:
        advance(step, steps, report["loss"])
        return False

    descent.descend(model, folder, descent.How("warm start", steps, how.lr, how.seed, how.save_every), one, told, [])
