"""Losses in closed form: against sampled GRPO, against plain sums, and what they teach."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from grpo.learning import losses
from grpo.model import models, trie

ANSWERS = ('{"action": "MONITOR"}', '{"action": "ISOLATE"}', '{"action": "PATCH"}')
SHARES = torch.tensor([0.5, 0.3, 0.2])
REWARD, OTHER = torch.tensor([0.0, 1.0, -0.5]), -1.5
PROMPT = list(range(5, 25))


def probabilities(seed: int, legal: float) -> torch.Tensor:
    """(4,) log-probabilities that are to be learned."""
    drawn = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn.log_softmax(0) + np.log(legal)).requires_grad_()


@pytest.fixture(scope="module")
def taught(made: Path) -> tuple[Any, Any, trie.Trie]:
    """A model that mostly gives one of three answers, taught by cross-entropy to their shares."""
    loaded = models.load(str(made), dtype="float32", device="cpu")
    tree = trie.trie(loaded.tokenizer, ANSWERS)
    adam = torch.optim.Adam(loaded.model.parameters(), lr=3e-3)
    for _ in range(60):
        [log_p] = trie.log_probs(loaded.model, [PROMPT], [tree])
        losses.cross_entropy(log_p, SHARES).backward()
        adam.step()
        adam.zero_grad()
    return loaded.model, loaded.tokenizer, tree


def test_cross_entropy_teaches_form_and_shares(taught: tuple[Any, Any, trie.Trie]) -> None:
    model, _, tree = taught
    with torch.no_grad():
        [log_p] = trie.log_probs(model, [PROMPT], [tree])
    assert 0.8 < log_p.exp().sum() < 0.999
    torch.testing.assert_close(log_p.softmax(0), SHARES, rtol=0, atol=0.05)


GROUPS, G = 24, 128


def completions(model: Any, tokenizer: Any, longest: int) -> list[tuple[int, ...]]:
    """Samples with their end tokens, as a trainer draws them."""
    torch.manual_seed(7)
    ids = torch.tensor([PROMPT] * (GROUPS * G))
    with torch.no_grad():
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=longest + 2, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )[:, len(PROMPT) :]  # fmt: skip
    ends = [
        *(row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None for row in said.tolist())
    ]
    return [tuple(row[:end]) for row, end in zip(said.tolist(), ends, strict=True)]


def test_the_gradient_is_that_of_many_sampled_ones(taught: tuple[Any, Any, trie.Trie]) -> None:
    model, tokenizer, tree = taught
    weights = [model.model.layers[1].self_attn.v_proj.weight, model.model.layers[0].mlp.up_proj.weight]

    def slope(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)])

    [log_p] = trie.log_probs(model, [PROMPT], [tree])
    exact = -slope(losses.expected_gradient(log_p, REWARD, OTHER))

    said = completions(model, tokenizer, tree.path.shape[1])
    legal = {tuple(tree.scored[m] for m in path if m < len(tree.scored)): a for a, path in enumerate(tree.path)}
    counts = Counter(said)
    assert len(legal.keys() & counts.keys()) == 3 and len(counts) > 20
    scores = {}
    for tokens in counts:  # one by one, without a tree
        logits = model(input_ids=torch.tensor([PROMPT + list(tokens)])).logits[0, len(PROMPT) - 1 : -1]
        scores[tokens] = slope(logits.log_softmax(-1)[range(len(tokens)), tokens].sum())
    sampled = []
    for group in (said[i : i + G] for i in range(0, len(said), G)):
        paid = torch.tensor([float(REWARD[legal[x]]) if x in legal else OTHER for x in group])
        gain = (paid - paid.mean()) / (paid.std() + 1e-4)  # of GRPO
        sampled.append(torch.stack([a * scores[x] for a, x in zip(gain, group, strict=True)]).mean(dim=0))
    drawn = torch.stack(sampled)
    error = drawn.var(dim=0).sum() / GROUPS  # of the mean, squared
    off = (drawn.mean(dim=0) - exact).square().sum()
    assert off < 3 * error and error < 0.05 * exact.square().sum()


def test_losses_are_the_sums_that_define_them() -> None:
    log_p, then = probabilities(0, 0.7), probabilities(1, 0.4).detach()
    p, r = log_p.detach().exp(), torch.tensor([0.0, 2.0, 1.0, -1.0], dtype=torch.float64)
    rest = 1 - p.sum()
    mean = (p * r).sum() - 3.0 * rest
    std = ((p * (r - mean) ** 2).sum() + rest * (-3.0 - mean) ** 2).sqrt() + losses.LEAST
    # d/d log p of -sum pi A, where all else has what is left.
    wanted = -p * ((r - mean) / std - (-3.0 - mean) / std)
    torch.testing.assert_close(torch.autograd.grad(losses.expected_gradient(log_p, r, -3.0), log_p)[0], wanted)
    among = p / p.sum()
    torch.testing.assert_close(losses.entropy(log_p), -(among * among.log()).sum())
    kl = (p * (log_p - then)).sum() + rest * (rest / (1 - then.exp().sum())).log()
    torch.testing.assert_close(losses.divergence(log_p, then), kl)
    assert losses.divergence(then, then) == 0 < losses.divergence(log_p, then)
    gain = (r - (among * r).sum()) / ((among * (r - (among * r).sum()) ** 2).sum().sqrt() + losses.LEAST)
    target = among * (gain / 0.5).exp()
    torch.testing.assert_close(losses.target_policy(log_p.detach(), r, 0.5), target / target.sum())
    points = among * (r / 0.5).exp()  # not scaled, what is the same for all answers does not matter
    torch.testing.assert_close(losses.target_policy(log_p.detach(), r, 0.5, scaled=False), points / points.sum())
    slope = -p * (r - mean - (-3.0 - mean))
    unscaled = losses.expected_gradient(log_p, r, -3.0, scaled=False)
    torch.testing.assert_close(torch.autograd.grad(unscaled, log_p)[0], slope)


def test_where_nothing_or_everything_is_legal_the_numbers_stay_finite() -> None:
    for legal in (1e-12, 1.0):
        log_p = probabilities(2, legal).detach().float().requires_grad_()
        reward = torch.tensor([0.0, 1.0, 0.5, -1.0])
        total = losses.expected_gradient(log_p, reward, -2.0)
        total = total + losses.cross_entropy(log_p, losses.target_policy(log_p.detach(), reward, 0.5))
        total = total + losses.entropy(log_p) + losses.divergence(log_p, torch.full((4,), -30.0))
        [slope] = torch.autograd.grad(total, log_p)
        assert torch.isfinite(total) and torch.isfinite(slope).all()
    flat = torch.zeros(4)
    assert (losses.advantages(torch.full((4,), 0.25), flat) == 0).all()  # a group without spread teaches nothing
