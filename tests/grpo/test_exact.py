"""GRPO without samples: it learns what pays, goes on exactly, heeds the alarm, and keeps nothing that is no number."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import jax
import torch
from rich.console import Console
from taught_rows import campaign, taught
from tiny_models import tiny
from training_runs import Killed, fresh

from grpo.learning import diagnostics, exact, losses, warm
from grpo.model import attention, trie
from grpo.model.errors import ModelError
from grpo.rows import bank as banks
from grpo.rows import rows
from grpo.training import collect, run_folder, settings
from grpo.training import loop as loops
from jaxsim import recurrent

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROWS = list(range(6))


@pytest.fixture(scope="module")
def game() -> rows.Campaigns:
    """A game that stays as it is: what is asked of so few steps is asked on these very rows."""
    return campaign("hardened2")


@pytest.fixture(scope="module")
def found(game: rows.Campaigns) -> rows.Rows:
    return taught(game)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("exact") / "tiny", fluent=True)


def chosen(model: Path, **changes: Any) -> settings.Settings:
    given = {"estimator": "exact", "steps": 3, "save_every": 1, "lr": 1e-2, "prompts_per_step": 2, "lora_dropout": 0.1}
    return settings.load("smoke", {"model": str(model), "micro_batch": 4, **given, **changes})


def learned(
    known: diagnostics.Tables, wanted: settings.Settings, folder: Path, stop: int = 0, among: list[int] = ROWS
) -> tuple[dict[int, Any], dict[str, torch.Tensor], str]:
    """The log, the adapter and the alarm's reason; killed in a step if that is given."""
    student, tokenizer = fresh(wanted)
    told: dict[int, Any] = {}
    alarm = ""

    def log(step: int, report: dict[str, Any]) -> None:
        told[step] = report
        if step == stop:
            raise Killed

    with contextlib.suppress(Killed):
        alarm = exact.optimise(student, tokenizer, known, among, wanted.plan, folder, 7, log)
    return told, {n: p.detach().clone() for n, p in student.named_parameters() if p.requires_grad}, alarm


@pytest.fixture(scope="module")
def known(game: rows.Campaigns, found: rows.Rows) -> diagnostics.Tables:
    return diagnostics.tables(game, found)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16", "four_bit": True, "objective": "target", "entropy_weight": 0.1},
        {"gradient_checkpointing": True, "micro_batch": 2},
        {"dtype": "float16", "objective": "target"},
    ],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning")
def test_it_continues_exactly(known: diagnostics.Tables, model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    wanted = chosen(model, **changes)
    whole, weights, _ = learned(known, wanted, tmp_path / "whole")
    assert list(whole) == [1, 2, 3] and whole[3]["learning_rate"] == pytest.approx(1e-2 / 3)
    # A target is read in another tree than what the model began with, and so rounded otherwise.
    assert whole[1]["kl"] == (pytest.approx(0, abs=1e-20) if wanted.objective == "target" else 0)
    first, _, _ = learned(known, wanted, tmp_path / "cut", stop=2)
    rest, again, _ = learned(known, wanted, tmp_path / "cut")
    assert list(rest) == [2, 3] and first | rest == whole
    assert all(torch.equal(weights[n], again[n]) for n in weights) and any(w.any() for w in weights.values())


def test_rows_that_come_again_are_what_they_were(
    known: diagnostics.Tables, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a row is compared to may hang on its neighbours of the step, by rounding, but not on when the run began."""
    plain = trie.log_probs

    def swayed(model: Any, prompts: Any, trees: Any) -> list[torch.Tensor]:
        off = 0 if torch.is_grad_enabled() else 1e-3 * (sum(map(sum, prompts)) % 97)
        return [x - off for x in plain(model, prompts, trees)]

    monkeypatch.setattr(trie, "log_probs", swayed)
    monkeypatch.setattr(trie, "check", lambda *_: None)
    wanted = chosen(model, objective="target", steps=6, lora_dropout=0)
    whole, weights, _ = learned(known, wanted, tmp_path / "whole")
    first, _, _ = learned(known, wanted, tmp_path / "cut", stop=4)
    rest, again, _ = learned(known, wanted, tmp_path / "cut")
    assert list(rest) == [4, 5, 6] and first | rest == whole
    assert all(torch.equal(weights[n], again[n]) for n in weights)


def test_how_rows_are_put_together_changes_nothing(known: diagnostics.Tables, model: Path, tmp_path: Path) -> None:
    runs = [
        learned(known, chosen(model, lora_dropout=0, steps=2, objective="target", micro_batch=m), tmp_path / str(m))
        for m in (2, 4)  # one state a pass, two
    ]
    for name, x in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], x, rtol=1e-3, atol=1e-5)
    assert runs[0][0][2]["loss"] == pytest.approx(runs[1][0][2]["loss"], rel=1e-5)


def test_a_target_is_read_where_it_is(known: diagnostics.Tables, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out of the tree changes little of the loss, and nothing is left out of what the log shows."""
    wanted = chosen(model, objective="target", eta=0.1, lora_dropout=0)
    student, tokenizer = fresh(wanted)
    student.eval()
    tasks = [exact.asked(tokenizer, known.game.inventories[0], known.rows.prompts[r]) for r in (1, 2)]
    worth = [diagnostics.paid(known, r, wanted.weights)[[*t.actions, -1]] for r, t in zip((1, 2), tasks, strict=True)]
    found = trie.log_probs(student, [t.prompt for t in tasks], [t.tree for t in tasks])
    then = [x.detach() for x in found]
    for read in (True, False):
        with monkeypatch.context() as patch:
            if read:
                patch.setattr(warm, "LEAST", 0.0)
            told = exact.by_target(student, tokenizer, tasks, worth, then, wanted.plan)
        for x, log_p, paid in zip(told, found, worth, strict=True):
            target = losses.target_policy(log_p.detach(), torch.from_numpy(paid[:-1]).to(log_p), 0.1)
            assert x.loss.item() == pytest.approx(
                losses.cross_entropy(log_p, target).item(), rel=1e-5 if read else 0.02
            )
            torch.testing.assert_close(x.log_p, log_p.detach(), rtol=1e-4, atol=1e-4)
    # Where what is read has grown, there is less room for the rest.
    with monkeypatch.context() as patch:
        patch.setattr(trie, "log_probs", lambda *_: [torch.full((2,), -0.8), torch.full((2,), -0.8)])
        patch.setattr(warm, "lesson", lambda *_: warm.Lesson([1], tasks[0].tree, np.ones(2) / 2, np.arange(2)))
        told = exact.by_target(student, tokenizer, tasks, worth, [torch.full_like(x, -3.5) for x in then], wanted.plan)
    assert told[0].log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_it_learns_what_pays(known: diagnostics.Tables, model: Path, tmp_path: Path) -> None:
    many = {"steps": 24, "prompts_per_step": 3, "micro_batch": 6, "save_every": 24, "beta": 0, "lora_dropout": 0}
    wanted = chosen(model, objective="target", eta=0.2, lr=5e-2, **many)
    told, _, _ = learned(known, wanted, tmp_path / "target", among=ROWS[:3])
    assert told[1]["valid_rate"] < 1e-6 < 0.1 < told[24]["valid_rate"]  # form is learned as well
    assert told[24]["regret"] < 0.7 * told[1]["regret"]


def test_rewards_are_those_of_the_signals(known: diagnostics.Tables) -> None:
    paid = diagnostics.paid(known, 2, {"return_to_go": 1.0, "format": 1.0})
    q = known.rows.credit.q[2]
    np.testing.assert_allclose(paid[:-1], q, rtol=1e-6)
    assert paid[-1] == pytest.approx(np.nanmin(q) - diagnostics.MARGIN)


def test_an_expected_report_is_that_of_many_completions(known: diagnostics.Tables) -> None:
    which, actions = [0, 3], known.game.dims.actions
    chances = np.zeros((2, actions + 1))
    chances[0, [0, 2, -1]] = 0.5, 0.25, 0.25
    chances[1, [0, 4]] = 0.75, 0.25
    paid = np.nan_to_num(np.stack([diagnostics.paid(known, r, {"return_to_go": 1.0, "format": 1.0}) for r in which]))
    wanted = diagnostics.expected_report(known, which, chances, paid, 4)
    said = [np.repeat(np.arange(actions + 1), (4 * c).astype(int)) for c in chances]
    texts = ["" if a == actions else rows.prompting.encode(int(a), known.game.inventories[0]) for s in said for a in s]
    at = np.repeat(which, 4).tolist()
    made = [diagnostics.completion(known, r, i // 4, t) for i, (r, t) in enumerate(zip(at, texts, strict=True))]
    totals = [paid[i // 4, a] for i, a in enumerate(np.concatenate(said))]
    got = diagnostics.step_report(known, at, [m[0] for m in made], [m[1] for m in made], totals)
    assert got.pop("parse_failures") == {"no JSON": 1} and wanted.pop("parse_failures") == {}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_the_alarm_ends_it_for_good(
    known: diagnostics.Tables, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "alarm", lambda recent: "a shortcut" if len(recent) > 1 else "")
    wanted = chosen(model, save_every=100)
    told, _, alarm = learned(known, wanted, tmp_path / "run")
    assert list(told) == [1, 2] and alarm == "a shortcut"
    assert learned(known, wanted, tmp_path / "run")[0::2] == ({}, "a shortcut")
    assert list(learned(known, chosen(model, alarm=False), tmp_path / "deaf")[0]) == [1, 2, 3]


def test_lost_numbers_are_an_error(
    known: diagnostics.Tables, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact.losses, "expected_gradient", lambda log_p, *_: log_p.sum() * torch.nan)
    with pytest.raises(ModelError, match="GRPO, step 1 of 3: the loss is nan"):
        learned(known, chosen(model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_model_is_weighed_that_does_not_keep_the_mask(
    game: rows.Campaigns, found: rows.Rows, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a stand-in fitted to it, nor is it taught a teacher's probabilities."""
    wanted = chosen(model)
    student, tokenizer = fresh(wanted)
    bank, prompts = banks.take(found.bank, np.arange(2)), found.prompts[:2]
    p = collect.weighed(game, bank, prompts, student, tokenizer)
    assert p.sum(axis=1) == pytest.approx(np.ones(2))
    with pytest.raises(ModelError, match="2 states are too few to fit a stand-in to, which takes 5; choose more rows"):
        collect.stand_in(0, game, bank, wanted.collection, student, tokenizer, None)
    monkeypatch.setattr(attention, "tree_mask", lambda model, sees: None)
    with pytest.raises(ModelError, match=r"cannot weigh all answers at once: .* successor evidence or waiting"):
        collect.weighed(game, bank, prompts, student, tokenizer)
    taught, how = warm.lessons_of(game, bank, prompts, p, np.arange(2), tokenizer), warm.How(1, 1, 1e-3, 0, 1)
    with pytest.raises(ModelError, match="cannot weigh all answers at once"):
        warm.distil(
            student, taught.lessons, taught.campaigns, tmp_path / "warm", how, whole=taught.whole, at_once=1,
            advance=lambda *_: None,
        )  # fmt: skip
    assert not (tmp_path / "warm").exists()


def test_a_loop_without_samples(
    game: rows.Campaigns, found: rows.Rows, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a teacher's probabilities to the check, whose answers are chosen among all legal ones; killed, the same."""
    weights = recurrent.init_weights(jax.random.key(3), 8, game.dims.restore)
    teacher = (
        recurrent.POLICIES[recurrent.MEMORYLESS],
        recurrent.Learned(weights, np.bool_(False), recurrent.SIGHTS[recurrent.MEMORYLESS]),
    )
    monkeypatch.setattr(loops.collect, "states", lambda *given: found.bank if given[-1] is who else None)
    monkeypatch.setattr(loops.collect, "credited", lambda *given: found)
    who: Any = teacher
    wanted = chosen(
        model,
        decode="exact",
        steps=2,
        successor="evidence",
        validate_episodes=2,
        warm_rows=4,
        warm_batch=4,
        prompts_per_step=4,
        micro_batch=8,
    )

    def run(out: Path, start: Path | None = None) -> str:
        out.mkdir(exist_ok=True)
        this = run_folder.Run(out, {"seconds": {}}, run_folder.Log(out / "log.jsonl"), Console(quiet=True))
        adapter, alarm = loops.outer_loop(this, 0, game, wanted, start, teacher)
        assert adapter == out / "loop0" / "adapter" and not alarm
        return (out / "log.jsonl").read_text()

    whole = run(tmp_path / "whole")
    warm, first, second, check, after = map(json.loads, whole.splitlines())
    phases = ["warm", "grpo", "grpo", "check", "validation"]
    assert [x["phase"] for x in (warm, first, second, check, after)] == phases and after["episodes"] == 2
    assert warm["loss"] > 0 and first["completions"] == 8 and check["valid_rate"] == 1
    add = run_folder.Log.add

    def killed(log: run_folder.Log, loop: int, phase: str, step: int, report: dict[str, Any]) -> None:
        add(log, loop, phase, step, report)
        if (phase, step) == ("grpo", 2):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_folder.Log, "add", killed)
        run(tmp_path / "cut")
    assert run(tmp_path / "cut") == whole
    one, other = (tmp_path / name / "loop0" / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
    who = None  # begun with an adapter, the run is of its own play, and it is validated before anything is learned
    further = list(map(json.loads, run(tmp_path / "further", one.parent).splitlines()))
    assert [x["phase"] for x in further] == ["start", *phases]
    assert further[0]["mean_return"] == after["mean_return"]


def test_a_warm_start_prefers_states_in_which_the_teacher_acts() -> None:
    order, acting = np.asarray([7, 2, 9, 4, 1, 3]), np.asarray([False, True, False, True, False, True])
    np.testing.assert_array_equal(loops.first_of(order, acting, 4, 0.0), [7, 2, 9, 4])
    np.testing.assert_array_equal(loops.first_of(order, acting, 4, 0.5), [2, 4, 7, 9])
    np.testing.assert_array_equal(loops.first_of(order, acting, 5, 1.0), [2, 4, 3, 7, 9])  # as far as there are such
    np.testing.assert_array_equal(loops.first_of(order, acting, 9, 0.2), [2, 4, 7, 9, 1, 3])
