"""GRPO: it learns, goes on exactly, and ends where numbers are lost or no step can be taken."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from rich.console import Console
from tiny_models import tiny
from training_runs import Killed, fresh

from grpo.learning import diagnostics, optimise, signals, warm
from grpo.model.embedded import ModelError
from grpo.rows import rows
from grpo.training import loop as loops
from grpo.training import run_folder, settings

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a whole trainer's, of the packages that it is made of
@pytest.mark.parametrize("four_bit", [False, True])
def test_in_half_precision_it_learns_and_continues_exactly(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four_bit: bool
) -> None:
    monkeypatch.setattr(signals, "total", lambda batch, weights: [float(i % 2) for i in range(len(batch))])
    given = {"dtype": "bfloat16", "four_bit": four_bit, "steps": 4, "save_every": 1, "lr": 1e-2, "group": 4}
    chosen = settings.load("smoke", {"model": str(tiny(tmp_path / "model", fluent=True)), **given})
    known = diagnostics.tables(game, found)

    def run(name: str, stop: int = 0) -> tuple[dict[int, Any], dict[str, torch.Tensor]]:
        model, tokenizer = fresh(chosen)
        told: dict[int, Any] = {}

        def log(step: int, report: dict[str, Any]) -> None:
            told[step] = report
            if step == stop:
                raise Killed

        with contextlib.suppress(Killed):
            optimise.optimise(model, tokenizer, known, list(range(24)), chosen.plan, tmp_path / name, 7, log)
        return told, {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}

    whole, weights = run("whole")
    assert all(whole[step]["kl"] > 1e-3 for step in (3, 4))  # the steps before them changed what it says
    first, _ = run("cut", stop=3)
    rest, again = run("cut")
    assert list(rest) == [3, 4] and first | rest == whole
    assert all(torch.equal(weights[n], again[n]) for n in weights)


@pytest.mark.filterwarnings("ignore")  # as above
def test_grpo_that_loses_its_numbers_or_takes_no_step_is_an_error(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings.load("smoke", {"model": str(tiny(tmp_path / "model", fluent=True)), "save_every": 1})
    known = diagnostics.tables(game, found)

    def run(many: int = 24) -> None:
        model, tokenizer = fresh(chosen)
        steps: list[int] = []
        try:
            optimise.optimise(
                model,
                tokenizer,
                known,
                list(range(many)),
                chosen.plan,
                tmp_path / "grpo",
                7,
                lambda at, _: steps.append(at),
            )
        finally:
            assert not steps and optimise.last_whole(tmp_path / "grpo") is None

    def lost(trainer: Any, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        return sum(p.sum() for p in model.parameters() if p.requires_grad) * torch.nan

    for where, name, wrong in (
        (signals, "total", lambda batch, weights: [math.nan] * len(batch)),
        (optimise.GRPOTrainer, "compute_loss", lost),
        (optimise.finite, "check_weights", lambda *_: None),  # the loss is seen even where the weights were spared
    ):
        monkeypatch.setattr(where, name, wrong)
        with pytest.raises(ModelError, match=r"GRPO: the reward is nan|GRPO, step 1: (.* holds NaN|the loss is nan)"):
            run()
        if where is signals:
            monkeypatch.undo()
    monkeypatch.undo()
    chosen = chosen.model_copy(update={"prompts_per_step": 4, "micro_batch": 8})
    with pytest.raises(ModelError, match="GRPO took 0 of 2 steps on 3 rows"):
        run(3)


@pytest.mark.filterwarnings("ignore")  # as above
def test_what_the_alarm_stopped_takes_no_step_more(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after it, while the model is checked or validated, a run ends as if it had not been."""
    chosen = settings.load("smoke", {"model": str(tiny(tmp_path / "model", fluent=True)), "steps": 3})
    known, told = diagnostics.tables(game, found), list[int]()
    monkeypatch.setattr(diagnostics, "alarm", lambda recent: "a shortcut" if recent else "")

    def run() -> tuple[str, dict[str, torch.Tensor]]:
        model, tokenizer = fresh(chosen)
        folder = tmp_path / "grpo"
        reason = optimise.optimise(
            model, tokenizer, known, list(range(24)), chosen.plan, folder, 7, lambda at, _: told.append(at)
        )
        return reason, {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}

    (reason, weights), (same, again) = run(), run()
    assert reason == same == "a shortcut" and told == [1]
    assert weights and all(torch.equal(weights[n], again[n]) for n in weights)


def test_a_warm_start_that_is_gone_on_with_is_not_judged_again(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, times = settings.load("smoke", {"successor": "waiting"}), list[int]()

    def credited(*_: Any) -> rows.Rows:
        times.append(1)
        return found

    monkeypatch.setattr(loops.collect, "credited", credited)
    shown = list[Any]()
    monkeypatch.setattr(loops, "warm_up", lambda run, this, examples, how: shown.append(examples))
    run = run_folder.Run(tmp_path, {"seconds": {}}, run_folder.Log(tmp_path / "log.jsonl"), Console(quiet=True))
    this = loops.Loop(0, tmp_path / "loop0", 0, None, None, None)
    for _ in range(2):
        loops.teach(run, this, game, found.bank, np.arange(24), chosen)
    assert len(times) == 1 and shown[0] == shown[1] and shown[0].answers
    assert loops.kept(this.folder / "rows", game) is None  # GRPO is paid by other futures


@pytest.mark.parametrize("informative", [0, 2])
def test_what_cannot_take_a_step_is_refused_before_it_is_trained(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, informative: int
) -> None:
    changes = {"model": str(tiny(tmp_path / "model", fluent=True)), "prompts_per_step": 3, "micro_batch": 3}
    chosen = settings.load("smoke", changes)
    kept = found._replace(informative=np.arange(24) < informative)
    monkeypatch.setattr(loops.collect, "states", lambda *_: found.bank)
    monkeypatch.setattr(loops.collect, "credited", lambda *_: kept)
    monkeypatch.setattr(warm, "learn", lambda *_, **__: pytest.fail("the warm start began"))
    run = run_folder.Run(tmp_path, {"seconds": {}}, run_folder.Log(tmp_path / "log.jsonl"), Console(quiet=True))
    with pytest.raises(ModelError, match=r"cannot take a step: [012] rows tell actions apart, prompts_per_step = 3; "):
        loops.outer_loop(run, 0, game, chosen, None)
