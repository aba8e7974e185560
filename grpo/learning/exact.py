"""GRPO without samples: at every state all legal answers are weighed at once, and the gradient is worked out.

What TRL's trainer estimates from a group of completions, `grpo.learning.optimise`, in the limit of a group without end,
at temperature 1; or target policy optimisation. The reference of the KL term is the adapter that GRPO begins with, as
TRL has it. Format is not taught here: where no answer is likely, no gradient is large; that is the warm start's.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import prompting
from grpo.learning import descent, diagnostics, losses, sharing, warm
from grpo.learning.diagnostics import Tables
from grpo.learning.plan import Plan
from grpo.model import decode, trie
from grpo.model.trie import Trie
from grpo.rows.rows import inventory_of
from prompting import Inventory


class Asked(NamedTuple):
    """What a state asks."""

    prompt: list[int]
    answers: tuple[str, ...]  # A, the legal ones
    tree: Trie  # of them
    actions: np.ndarray  # (A,) of the action table, of each answer


class Told(NamedTuple):
    """A state's loss, () with gradients, and what the model thinks of its answers, (A,) without."""

    loss: torch.Tensor
    log_p: torch.Tensor
    reference: torch.Tensor | None  # at first


def asked(tokenizer: Any, inventory: Inventory, prompt: str) -> Asked:
    """A prompt in a network, and its legal answers."""
    answers = prompting.answers(inventory)
    return Asked(
        decode.chat_tokens(tokenizer, prompting.chat(prompt, inventory)),
        answers,
        trie.trie(tokenizer, answers),
        np.asarray(list(inventory.actions.values())),
    )


def optimise(
    model: Any,
    tokenizer: Any,
    known: Tables,
    rows: Sequence[int],
    plan: Plan,
    folder: Path,
    seed: int,
    log: Callable[[int, dict[str, Any]], None],
) -> str:
    """Train the adapter of `model` in place on the given rows; returns the alarm's reason, or ''.

    Continues from `folder`. Raises ModelError when numbers are lost, and when the model cannot read a tree.
    """
    groups = known.rows.bank.params_index[list(rows)].tolist()
    at_once = max(1, plan.micro_batch // plan.group)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    recent: list[dict[str, Any]] = []

    def at_first(part: Sequence[Asked]) -> list[torch.Tensor]:
        """What the model thought of the answers when GRPO began."""
        with as_at(model, start), torch.no_grad(), sharing.in_half(model):
            return trie.log_probs(model, [t.prompt for t in part], [t.tree for t in part])

    def task(r: int) -> Asked:
        return asked(tokenizer, inventory_of(known.game, known.rows, r), known.rows.prompts[r])

    first = task(rows[0])
    trie.check(model.eval(), first.prompt, first.tree)

    def learn(step: int, scale: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, dict[str, Any]]:
        which = [int(rows[i]) for i in descent.drawn(groups, plan.prompts_per_step, step, seed)]
        tasks = [task(r) for r in which]
        paid = np.stack([diagnostics.paid(known, r, plan.weights) for r in which])
        chances, told = np.zeros_like(paid), np.zeros(3)
        for i in range(0, len(tasks), at_once):
            part = tasks[i : i + at_once]
            worth = [x[[*t.actions, -1]] for x, t in zip(paid[i:], part, strict=False)]
            if plan.objective == "target":
                terms = by_target(model, tokenizer, part, worth, at_first(part), plan)
            else:
                terms = by_gradient(model, part, worth, at_first(part) if plan.beta else [None] * len(part), plan)
            total = torch.stack([x.loss for x in terms]).sum() / len(tasks)
            scale(total).backward()  # type: ignore[no-untyped-call]
            for j, (x, t) in enumerate(zip(terms, part, strict=True), i):
                kl = 0.0 if x.reference is None else losses.divergence(x.log_p, x.reference).item()
                told += np.asarray([x.loss.item(), kl, losses.entropy(x.log_p).item()]) / len(tasks)
                chances[j, t.actions] = x.log_p.double().exp().cpu()
        chances[:, -1] = np.maximum(0, 1 - chances.sum(axis=1))
        report = diagnostics.expected_report(known, which, chances, np.nan_to_num(paid), plan.group)
        return float(told[0]), {"kl": float(told[1]), "entropy": float(told[2]), **report}

    def advance(step: int, report: dict[str, Any]) -> bool:
        recent.append(report)
        del recent[: -diagnostics.WINDOW]
        log(step, report)
        return plan.alarm and bool(diagnostics.alarm(recent))

    how = descent.How("GRPO", plan.steps, plan.lr, seed, plan.save_every)
    with checkpointing(model, plan.gradient_checkpointing):
        descent.descend(model, folder, how, learn, advance, recent)
    return diagnostics.alarm(recent) if plan.alarm else ""


def by_gradient(
    model: Any, part: Sequence[Asked], worth: Sequence[np.ndarray], then: Sequence[torch.Tensor | None], plan: Plan
) -> list[Told]:
    """Objective `gradient` of some states: all legal answers are weighed with gradients.

    `worth`, (A + 1,) each: what the answers are paid, and all else that may be said. `then`: what the model thought of
    them at first, if the KL divergence from that is to be weighed.
    """
    with sharing.in_half(model):
        found = trie.log_probs(model, [t.prompt for t in part], [t.tree for t in part])
    told = []
    for log_p, paid, ref in zip(found, worth, then, strict=True):
        reward = torch.from_numpy(paid[:-1]).to(log_p)
        loss = losses.expected_gradient(log_p, reward, float(paid[-1]), plan.scale_rewards == "group")
        if ref is not None:
            loss = loss + plan.beta * losses.divergence(log_p, ref)
        told.append(Told(loss - plan.entropy_weight * losses.entropy(log_p), log_p.detach(), ref))
    return told


def by_target(
    model: Any,
    tokenizer: Any,
    part: Sequence[Asked],
    worth: Sequence[np.ndarray],
    then: Sequence[torch.Tensor],
    plan: Plan,
) -> list[Told]:
    """Objective `target` of some states: the cross-entropy to what follows from the model's chances at first, `then`.

    Only the answers that hold nearly all of the target are weighed with gradients, see `warm.lesson`; of all others the
    model is taken to think what it thought at first, as far as there is room.
    """
    told, lessons = [], []
    for t, paid, ref in zip(part, worth, then, strict=True):
        reward = torch.from_numpy(paid[:-1]).to(ref)
        target = losses.target_policy(ref, reward, plan.eta, plan.scale_rewards == "group")
        lessons.append(warm.lesson(tokenizer, t.prompt, t.answers, target.double().cpu().numpy()))
    with sharing.in_half(model):
        found = trie.log_probs(model, [x.prompt for x in lessons], [x.tree for x in lessons])
    for log_p, lesson, ref in zip(found, lessons, then, strict=True):
        loss = losses.cross_entropy(log_p, torch.from_numpy(lesson.target).to(log_p))
        read = torch.zeros_like(ref, dtype=torch.bool)
        read[torch.from_numpy(lesson.which).to(ref.device)] = True
        room = (-torch.expm1(log_p.detach().logsumexp(dim=0).clamp(max=losses.ALMOST))).log()
        every = ref + (room - ref[~read].logsumexp(dim=0)).clamp(max=0)
        every[read] = log_p.detach()
        told.append(Told(loss - plan.entropy_weight * losses.entropy(log_p), every, ref))
    return told


@contextlib.contextmanager
def as_at(model: Any, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """The model with other values of its trainable weights within this context, answering rather than learning."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    now = {name: p.data for name, p in trained.items()}
    training = model.training
    for name, p in trained.items():
        p.data = weights[name]
    model.eval()
    try:
        yield
    finally:
        for name, p in trained.items():
            p.data = now[name]
        model.train(training)


@contextlib.contextmanager
def checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Within this context, keep no activations if `wanted`."""
    plain = model.get_base_model()
    # The names of newer versions of transformers, and of older ones.
    name = "activation" if hasattr(plain, "activation_checkpointing_enable") else "gradient"
    if wanted:
        getattr(plain, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            getattr(plain, f"{name}_checkpointing_disable")()
