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
from grpo.learning import descent, diagnostics, losses, sharing
from grpo.learning.diagnostics import Tables
from grpo.learning.plan import Plan
from grpo.model import decode, trie
from grpo.model.trie import Trie
from grpo.rows.rows import inventory_of
from prompting import Inventory


class Asked(NamedTuple):
    """What a state asks."""

    prompt: list[int]
    tree: Trie
    actions: np.ndarray  # (A,) of the action table, of each answer


def asked(tokenizer: Any, inventory: Inventory, prompt: str) -> Asked:
    """A prompt in a network, and its legal answers."""
    return Asked(
        decode.chat_tokens(tokenizer, prompting.chat(prompt, inventory)),
        trie.trie(tokenizer, prompting.answers(inventory)),
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
            prompts, trees = [t.prompt for t in part], [t.tree for t in part]
            then: Sequence[torch.Tensor | None] = [None] * len(part)
            if plan.beta:
                with as_at(model, start), torch.no_grad(), sharing.in_half(model):
                    then = trie.log_probs(model, prompts, trees)
            with sharing.in_half(model):
                found = trie.log_probs(model, prompts, trees)
            terms = [
                terms_of(plan, x, worth[t.actions], worth[-1], ref)
                for x, t, worth, ref in zip(found, part, paid[i:], then, strict=False)
            ]
            total = torch.stack([loss for loss, _, _ in terms]).sum() / len(tasks)
            scale(total).backward()  # type: ignore[no-untyped-call]
            told += np.asarray([[x.item() for x in row] for row in terms]).sum(axis=0) / len(tasks)
            for j, (x, t) in enumerate(zip(found, part, strict=True), i):
                chances[j, t.actions] = x.detach().double().exp().cpu()
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


def terms_of(
    plan: Plan, log_p: torch.Tensor, paid: np.ndarray, other: float, reference: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, KL to the reference or 0, entropy) of a state; `paid` to each legal answer, `other` to all else."""
    reward = torch.from_numpy(paid).to(log_p)
    if plan.objective == "target":
        loss = losses.target_policy(log_p, reward, plan.eta)
    else:
        loss = losses.expected_gradient(log_p, reward, float(other))
    kl = log_p.new_zeros(()) if reference is None else losses.divergence(log_p, reference)
    entropy = losses.entropy(log_p)
    return loss + plan.beta * kl - plan.entropy_weight * entropy, kl, entropy


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
