"""Every answer's probability in one pass, against scoring the answers one by one; and its gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from tiny_models import lora, tiny_tokenizer

import prompting
import scenarios
from grpo.model import attention, models, trie
from grpo.model.decode import TIE, Decoder, chat_tokens, token_ids
from grpo.model.errors import ModelError
from grpo.playing import play

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`{name}` is deprecated:FutureWarning")
    for name in ("is_gradient_checkpointing", "gradient_checkpointing_(en|dis)able")
]

INVENTORY = prompting.inventory(scenarios.load("supply_chain_token_drift"))
ANSWERS = prompting.answers(INVENTORY)
FEW = ('{"action": "MONITOR"}', '{"action": "INVESTIGATE", "target": "ci-runner-01"}')
START = list(range(5, 45))
PROMPTS = [[*START, 7], [*START, 9, 8, 7, 6], [*START, *range(60, 80)]]


@pytest.fixture(scope="module")
def student(made: Path) -> Any:
    """A model with an adapter, and its tokenizer, which are not trained."""
    loaded = models.load(str(made), dtype="float32", device="cpu")
    return lora(loaded).eval(), loaded.tokenizer


def one_by_one(model: Any, prompt: list[int], tokenizer: Any, answers: tuple[str, ...]) -> torch.Tensor:
    """What the tree's numbers must be: a forward pass for every answer."""
    found = []
    for text in answers:
        answer = [*token_ids(tokenizer, text), tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
        found.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
    return torch.stack(found)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def test_a_tree_holds_each_answer_and_each_beginning_once() -> None:
    tokenizer = tiny_tokenizer()
    tree = trie.trie(tokenizer, ANSWERS)
    assert trie.trie(tokenizer, tuple(ANSWERS)) is tree  # kept by the set of answers
    said = [[int(tree.scored[m]) for m in path if m < len(tree.scored)] for path in tree.path]
    assert said == [[*token_ids(tokenizer, text), tokenizer.eos_token_id] for text in ANSWERS]
    assert len(tree.tokens) == len({tuple(s[:k]) for s in said for k in range(1, len(s))}) < sum(map(len, said)) / 2
    assert len(tree.scored) == len(tree.tokens) + len(ANSWERS)
    assert (tree.above.sum(axis=1) == tree.depth + 1).all() and not np.triu(tree.above, 1).any()


@pytest.mark.parametrize(("answers", "said"), [((), "none at all"), ((*FEW, FEW[0]), "MONITOR")])
def test_what_is_no_tree_is_refused(answers: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError, match=f"{len(answers)} answers are no tree: .*{said}"):
        trie.trie(tiny_tokenizer(), answers)


UNEQUAL = (ANSWERS[::4], FEW, ANSWERS[5:20:3])


@pytest.fixture(scope="module")
def brute(student: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [one_by_one(student[0], p, student[1], a) for p, a in zip(PROMPTS, UNEQUAL, strict=True)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager", attention.PACKED])
def test_one_pass_gives_what_scoring_one_by_one_gives(
    student: Any, brute: list[torch.Tensor], implementation: str
) -> None:
    model, tokenizer = student
    trees = [trie.trie(tokenizer, answers) for answers in UNEQUAL]
    plain = model.get_base_model()
    plain.set_attn_implementation(implementation)
    try:
        with torch.no_grad():
            found = trie.log_probs(model, PROMPTS, trees)
            found += [trie.log_probs(model, [p], [t])[0] for p, t in zip(PROMPTS, trees, strict=True)]
    finally:
        plain.set_attn_implementation("sdpa")
    for one, wanted in zip(found, brute * 2, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_scoring_one_by_one(student: Any, checkpointing: bool) -> None:
    model, tokenizer = student
    weight = torch.linspace(-1, 1, len(FEW) * len(PROMPTS)).reshape(len(PROMPTS), len(FEW))
    brute = sum((w * one_by_one(model, p, tokenizer, FEW)).sum() for w, p in zip(weight, PROMPTS, strict=True))
    wanted = gradients(model, brute)
    plain = model.get_base_model()
    if checkpointing:
        plain.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    try:
        assert attention.checkpoints(model) == checkpointing
        found = trie.log_probs(model, PROMPTS, [trie.trie(tokenizer, FEW)] * len(PROMPTS))
        got = gradients(model, sum((w * x).sum() for w, x in zip(weight, found, strict=True)))
    finally:
        plain.gradient_checkpointing_disable()
        model.eval()
    assert max(x.abs().max() for x in wanted.values()) > 0.1
    for name, x in wanted.items():
        torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-4 * float(x.abs().max()) + 1e-6, msg=name)


@pytest.mark.parametrize(("dtype", "four_bit"), [("bfloat16", False), ("float16", False), ("bfloat16", True)])
def test_in_half_precision_and_in_four_bits(made: Path, dtype: str, four_bit: bool) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    loaded = models.load(str(made), dtype=dtype, device="cpu", four_bit=four_bit)
    tree = trie.trie(loaded.tokenizer, FEW)
    with torch.no_grad():
        found = trie.log_probs(loaded.model, PROMPTS, [tree] * len(PROMPTS))
        wanted = [one_by_one(loaded.model, p, loaded.tokenizer, FEW) for p in PROMPTS]
        trie.check(loaded.model, PROMPTS[2], tree)
    length = torch.from_numpy((tree.path < len(tree.scored)).sum(axis=1))
    for one, brute in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert ((one - brute).abs() < TIE[getattr(torch, dtype)] * length**0.5).all()


def test_a_model_that_does_not_keep_the_mask_is_refused(student: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = student
    tree = trie.trie(tokenizer, FEW)
    trie.check(model, PROMPTS[0], tree)
    monkeypatch.setattr(attention, "tree_mask", lambda model, sees: None)  # as in attention without a mask
    with pytest.raises(ModelError, match=r"cannot weigh all answers at once: .* take another model"):
        trie.check(model, PROMPTS[0], tree)


# --- play -------------------------------------------------------------------------------------------------------------


def test_greedy_play_says_what_scoring_one_by_one_ranks_first(student: Any) -> None:
    model, tokenizer = student
    decoder = Decoder(model, tokenizer)
    texts = ["Tick 3 of 60", "an alert on svc-payments", "svc, svc, svc 58 of 60 }"]
    prompts = [chat_tokens(tokenizer, prompting.chat(text, INVENTORY)) for text in texts]
    # Two answers that do not come in the same order behind all prompts.
    every = np.stack([trie.weigh(decoder, prompt, trie.trie(tokenizer, ANSWERS)) for prompt in prompts])
    ahead = (every[:, :, None] - every[:, None, :] > 0.05).any(axis=0)
    pair = np.argwhere(ahead & ahead.T)[0]
    few = INVENTORY._replace(actions=dict(np.asarray([*INVENTORY.actions.items()], object)[pair].tolist()))
    answers = prompting.answers(few)
    with torch.no_grad():
        brute = np.stack([one_by_one(model, prompt, tokenizer, answers) for prompt in prompts])
    assert len(set(brute.argmax(axis=1))) == 2
    tree = trie.trie(tokenizer, answers)
    for opening in (None, prompts[2], [7, 8]):  # whatever is kept
        decoder.forget()
        if opening:
            decoder.pin(opening)
        np.testing.assert_allclose([trie.weigh(decoder, p, tree) for p in prompts], brute, rtol=1e-5, atol=1e-4)
    said = play.chooser(decoder, few)(texts + texts[:1], range(4), 0)
    assert said[:3] == [answers[a] for a in brute.argmax(axis=1)] and said[3] == said[0]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_choice_is_that_of_weighing_every_answer(student: Any, temperature: float) -> None:
    model, tokenizer = student
    whole, stem = trie.trie(tokenizer, ANSWERS), trie.stem(tokenizer, ANSWERS)
    assert len(stem.tree.tokens) < len(whole.tokens) / 2
    for text, above, ending in zip(ANSWERS, stem.above, stem.endings, strict=True):
        end = tokenizer.eos_token_id
        assert [*stem.tree.tokens[above], *ending] == [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    decoder, plain, fed = Decoder(model, tokenizer), trie._endings, list[int]()
    seeds = [(3, e, 1) for e in range(40)] if temperature else [()]
    for prompt in PROMPTS:
        every = trie.weigh(decoder, prompt, whole)
        with torch.no_grad():
            ends = every - trie.log_probs(model, [prompt], [stem.tree])[0].double().numpy()

        def counted(*given: Any, ends: np.ndarray = ends) -> np.ndarray:
            found = plain(*given)
            np.testing.assert_allclose(found, ends[given[-1]], rtol=1e-4, atol=1e-3)
            fed.append(len(found))
            return found

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trie, "_endings", counted)
            wanted = [trie.pick(every, temperature, one) for one in seeds]
            assert trie.choose(decoder, prompt, stem, temperature, seeds) == wanted
    assert sum(fed) > 0
    if not temperature:
        assert sum(fed) < len(PROMPTS) * len(ANSWERS)


def test_a_choice_of_one_answer(student: Any) -> None:
    model, tokenizer = student
    assert trie.choose(Decoder(model, tokenizer), PROMPTS[0], trie.stem(tokenizer, ANSWERS[:1])) == [0]


def test_sampled_play_draws_by_the_exact_probabilities() -> None:
    log_p = np.log([0.05, 0.3, 0.15]) - 4.0  # of what is legal
    for temperature in (0.5, 1.0, 2.0):
        wanted = np.exp(log_p / temperature) / np.exp(log_p / temperature).sum()
        drawn = np.bincount([trie.pick(log_p, temperature, (1, e, 2)) for e in range(1500)], minlength=3) / 1500
        np.testing.assert_allclose(drawn, wanted, atol=4 * np.sqrt(0.25 / 1500))
    assert [trie.pick(log_p, 1.0, (1, e, 2)) for e in range(9)] == [trie.pick(log_p, 1.0, (1, e, 2)) for e in range(9)]
    assert trie.pick(log_p) == 1 and trie.pick(np.asarray([-2e3, -1e3]), 0.1, (0,)) == 1
