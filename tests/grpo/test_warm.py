"""The warm start: it learns the answers only, goes on exactly, and keeps nothing that is no number."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from training_runs import CAMPAIGN, Killed, fresh

import prompting
import scenarios
from grpo.learning import student as students
from grpo.learning import warm
from grpo.model import decode, models, trie
from grpo.model.embedded import ModelError
from grpo.training import settings

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

INVENTORY = prompting.inventory(scenarios.load(CAMPAIGN))


def student(folder: Path) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model

    loaded = models.load(str(folder), dtype="float32")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(loaded.model, lora), loaded.tokenizer


def test_a_warm_start_learns_and_continues_exactly(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    chats = [prompting.chat(f"Tick {i} of 70", INVENTORY) for i in range(8)]
    answers = ['{"action": "MONITOR"}', '{"action": "INVESTIGATE", "target": "idp-okta"}'] * 4

    def run(name: str, stop: int = 0) -> tuple[list[float], dict[str, torch.Tensor]]:
        model, tokenizer = student(folder)
        losses: list[float] = []

        def advance(step: int, steps: int, loss: float) -> None:
            assert steps == 12
            losses.append(loss)
            if step == stop:
                raise Killed

        examples = warm.pairs(tokenizer, chats, answers)
        how = warm.How(epochs=6, batch=4, lr=3e-2, seed=5, save_every=2)
        with contextlib.suppress(Killed):
            pad = tokenizer.pad_token_id
            warm.learn(model, examples, [0, 1] * 4, tmp_path / name, how, pad=pad, advance=advance)
        return losses, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    whole, weights = run("whole")
    assert whole[-1] < 0.8 * whole[0] and sum(whole[-2:]) < 0.8 * sum(whole[:2])
    first, _ = run("cut", stop=7)
    rest, again = run("cut")
    assert first[:6] == whole[:6] and rest == whole[6:]  # the last checkpoint was that of step 6
    assert all(torch.equal(weights[n], again[n]) for n in weights)


def test_a_warm_start_that_loses_its_numbers_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(tmp_path / "model")
    model, tokenizer = student(folder)
    examples = warm.pairs(
        tokenizer, [prompting.chat(f"Tick {i} of 70", INVENTORY) for i in range(4)], ['{"action": "MONITOR"}'] * 4
    )
    steps: list[int] = []

    def learn(examples: Any = examples) -> None:
        how = warm.How(epochs=1, batch=2, lr=1e-3, seed=5, save_every=1)
        advance, pad = lambda step, many, loss: steps.append(step), tokenizer.pad_token_id
        warm.learn(model, examples, [0] * len(examples), tmp_path / "warm", how, pad=pad, advance=advance)

    with pytest.raises(ModelError, match="no answer worth showing"):
        learn([])
    trained = next(p for p in model.parameters() if p.requires_grad)
    monkeypatch.setattr(warm, "answer_loss", lambda *_: trained.sum() * torch.nan)
    with pytest.raises(ModelError, match="warm start, step 1 of 2: the loss is nan"):
        learn()
    # A loss that is a number, with a gradient that is none.
    monkeypatch.setattr(warm, "answer_loss", lambda *_: (trained - trained.detach()).abs().sqrt().sum())
    with pytest.raises(ModelError, match=r"warm start, step 1 of 2: .*lora_.* holds NaN or infinity"):
        learn()
    with pytest.raises(ModelError, match=r"the adapter: .* holds NaN"):
        students.save_adapter(model, tmp_path / "adapter")
    assert not steps and not (tmp_path / "warm").exists() and not (tmp_path / "adapter").exists()


def test_a_model_of_nan_is_not_trained(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity; fetch"):
        fresh(settings.load("smoke", {"model": str(folder)}))


def test_only_the_answer_is_learned(tmp_path: Path) -> None:
    model, tokenizer = student(tiny(tmp_path / "model"))
    model.eval()
    prompt, answer = (
        decode.chat_tokens(tokenizer, prompting.chat("Tick 1 of 70", INVENTORY)),
        [5, 6, tokenizer.eos_token_id],
    )
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
        wanted = -np.mean([logits[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer)])
        short = (prompt[:20], [7])
        alone = warm.answer_loss(model, [(prompt, answer)], 0).item()
        beside = warm.answer_loss(model, [(prompt, answer), short], 0).item()
        other = warm.answer_loss(model, [short], 0).item()
    assert alone == pytest.approx(wanted, abs=1e-4)
    assert beside == pytest.approx((3 * alone + other) / 4, abs=1e-4)  # padding changes nothing


def test_a_teachers_chances_are_learned_and_continue_exactly(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    answers = ('{"action": "MONITOR"}', '{"action": "INVESTIGATE", "target": "idp-okta"}')
    wanted = [np.asarray([0.9, 0.1]), np.asarray([0.0, 1.0])]  # one of them as if it were shown

    def run(name: str, stop: int = 0) -> tuple[list[float], dict[str, torch.Tensor]]:
        model, tokenizer = student(folder)
        tree, told = trie.trie(tokenizer, answers), list[float]()
        lessons = [warm.Lesson([*range(5, 45), 50 + i], tree, wanted[i % 2], np.arange(2)) for i in range(4)]

        def advance(step: int, steps: int, loss: float) -> None:
            assert steps == 16
            told.append(loss)
            if step == stop:
                raise Killed

        with contextlib.suppress(Killed):
            how = warm.How(epochs=8, batch=2, lr=3e-2, seed=5, save_every=4)
            warm.distil(model, lessons, [0, 0, 1, 1], tmp_path / name, how, whole=tree, at_once=1, advance=advance)
        return told, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    whole, weights = run("whole")
    assert whole[0] > 20 and whole[-1] < 0.5 * whole[0]
    first, _ = run("cut", stop=7)
    rest, again = run("cut")
    assert first[:4] == whole[:4] and rest == whole[4:]
    assert all(torch.equal(weights[n], again[n]) for n in weights)


def test_a_lesson_leaves_out_what_the_teacher_hardly_gives(tmp_path: Path) -> None:
    model, tokenizer = student(tiny(tmp_path / "model"))
    model.eval()
    answers = tuple(prompting.encode(a, INVENTORY) for a in INVENTORY.actions.values())
    target = np.zeros(len(answers))
    target[[3, 0, 5, 7, 8]] = [0.5, 0.3, 0.192, 0.005, 0.003]  # the last two have 0.008 together
    lesson = warm.lesson(tokenizer, [*range(5, 45)], answers, target)
    assert len(lesson.target) == 3 and lesson.target.sum() == pytest.approx(1)
    np.testing.assert_array_equal(lesson.which, [0, 3, 5])
    np.testing.assert_allclose(lesson.target, np.asarray([0.3, 0.5, 0.192]) / 0.992)
    assert lesson.tree is trie.trie(tokenizer, (answers[0], answers[3], answers[5]))
    # Its loss is that of the whole tree for these targets: what is left out counts there, too.
    whole = np.zeros(len(answers))
    whole[[0, 3, 5]] = lesson.target
    every = warm.Lesson(lesson.prompt, trie.trie(tokenizer, answers), whole, np.arange(len(answers)))
    torch.testing.assert_close(
        warm.distil_loss(model, [lesson]), warm.distil_loss(model, [every]), rtol=1e-5, atol=1e-4
    )
    for certain in (np.eye(len(answers))[4], np.full(len(answers), 1 / len(answers))):
        assert len(warm.lesson(tokenizer, [7], answers, certain).target) == (1 if certain[4] == 1 else len(answers))


def test_distilling_a_shown_answer_is_showing_it(tmp_path: Path) -> None:
    model, tokenizer = student(tiny(tmp_path / "model"))
    model.eval()
    answers = ('{"action": "MONITOR"}', '{"action": "INVESTIGATE", "target": "idp-okta"}')
    prompt = list(range(5, 45))
    [(_, answer)] = warm.pairs(tokenizer, [[{"role": "user", "content": ""}]], [answers[1]])
    with torch.no_grad():
        shown = len(answer) * warm.answer_loss(model, [(prompt, answer)], 0)  # the mean over its tokens
        lesson = warm.Lesson(prompt, trie.trie(tokenizer, answers), np.asarray([0.0, 1.0]), np.arange(2))
        torch.testing.assert_close(warm.distil_loss(model, [lesson]), shown, rtol=1e-5, atol=1e-4)
