"""Cheaper training steps compute what plain ones do: logits, log-probabilities of the trainer, gradients, answers."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from tiny_models import tiny

from grpo.learning import sharing as speed
from grpo.model import models
from grpo.speed import learning_speed

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SHARED = list(range(40, 90))
ROWS = [[*SHARED, 7, 8, 9, 5], [*SHARED, 7, 8, 11, 6], [*SHARED, 3, 2, 1, 0]]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from peft import LoraConfig, get_peft_model

    loaded = models.load(str(tiny(tmp_path_factory.mktemp("speed") / "model")), dtype="float32")
    torch.manual_seed(0)
    model: Any = get_peft_model(
        loaded.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model.train()


def gradients(model: Any) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return found


class Counted:
    """Tokens that go through the first layer."""

    def __init__(self, model: Any):
        self.tokens = 0
        model.get_base_model().model.layers[0].register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _: Any, args: Any, given: Any) -> None:
        hidden = args[0] if args else given["hidden_states"]
        self.tokens += hidden.shape[0] * hidden.shape[1]


def test_common_columns_end_at_padding() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert speed.common(tokens, None) == 3
    assert speed.common(tokens, torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])) == 2
    assert speed.common(tokens, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])) == 0


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_gradients_are_those_of_the_plain_pass(student: Any, padded: bool) -> None:
    tokens, mask = torch.tensor(ROWS), torch.ones(3, 54, dtype=torch.long)
    if padded:  # between beginning and rest, as the warm start does
        mask[1, 50:52] = 0
    given = {"input_ids": tokens, "attention_mask": mask, "position_ids": mask.cumsum(1) - 1, "logits_to_keep": 3}
    counted = Counted(student)
    plain = student(**given).logits
    plain.square().mean().backward()
    wanted, whole = gradients(student), counted.tokens
    counted.tokens = 0
    with speed.share(student):
        shared = student(**given).logits
    shared.square().mean().backward()
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-4)
    for one, other in zip(gradients(student), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)
    assert whole == 3 * 54 and counted.tokens == 50 + 3 * 4


def test_labels_keep_their_logits(student: Any) -> None:
    tokens = torch.tensor([ROWS[0]] * 2)
    labels = tokens.clone()
    labels[:, :-2] = -100
    plain = student(input_ids=tokens, labels=labels).loss
    counted = Counted(student)
    with speed.share(student):
        assert student(input_ids=tokens, labels=labels).loss.item() == pytest.approx(plain.item(), abs=1e-5)
    assert counted.tokens == 51 + 2 * 3  # the last common column predicts the first label


def test_generation_is_the_same(student: Any) -> None:
    tokens = torch.tensor([ROWS[0][:52], ROWS[1][:52]])
    given = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    plain = student.generate(input_ids=tokens, **given)
    counted = Counted(student)
    with speed.share(student):
        assert torch.equal(student.generate(input_ids=tokens, **given), plain)
    assert counted.tokens == 51 + 2 * 1 + 2 * 5


def test_nothing_remains_after_it(student: Any) -> None:
    before = student.get_base_model().forward
    with pytest.raises(RuntimeError), speed.share(student):
        raise RuntimeError
    assert student.get_base_model().forward == before


def test_half_precision_is_near_the_whole(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    loaded = models.load(str(tiny(tmp_path / "model")), dtype="bfloat16")
    model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    tokens = torch.tensor(ROWS)
    plain = model(input_ids=tokens).logits.float()
    exact = models.load(str(tmp_path / "model"), dtype="float32").model(input_ids=tokens).logits  # the adapter adds 0
    with speed.in_half(model):
        half = model(input_ids=tokens).logits
    assert half.dtype == torch.bfloat16
    error = (plain - exact).norm()
    assert error > 0 and (half.float() - exact).norm() < 1.25 * error
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


def test_a_pass_is_of_as_many_states_as_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        learning_speed.main(["--model", "nowhere", "--at-once", "4", "16"])
    assert "--at-once 16 is more than the 8 --states of a step; give as many, or fewer" in capsys.readouterr().err
