"""The stages of training: rows and labels, the warm start, what a step reports, the alarm, the log, a whole run."""

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import jax
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_models import lora, tiny

import prompting
import scenarios
from grpo.learning import diagnostics, optimise, signals, warm
from grpo.learning import student as students
from grpo.model import decode, models
from grpo.model.contents import place
from grpo.model.embedded import ModelError
from grpo.rows import bank as banks
from grpo.rows import rows
from grpo.training import command as training
from grpo.training import loop as loops
from grpo.training import report_training, run_evaluation, run_folder, settings
from jaxsim.names import parse_plan
from jaxsim.policies import BASELINES, PLAN
from jaxsim.types import CUT_OFF, EGRESS_BLOCKED, INVESTIGATE, MONITOR, PATCHED
from prompting import FORMAT_VERSION

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CAMPAIGN = "supply_chain_token_drift"
INVENTORY = prompting.inventory(scenarios.load(CAMPAIGN))


@pytest.fixture(scope="module")
def game() -> rows.Campaigns:
    return rows.campaigns((CAMPAIGN,), "hardened", "operational")


@pytest.fixture(scope="module")
def found(game: rows.Campaigns) -> rows.Rows:
    bank = rows.from_teacher(game, BASELINES["evidence"], 24, seed=3)
    return rows.credited(game, bank, futures=4, least_z=0.0, seed=1, layout="compact", reference=0)


def fresh(chosen: settings.Settings) -> tuple[Any, Any]:
    lora = students.Lora(chosen.lora_r, chosen.lora_alpha, chosen.lora_dropout)
    return students.student(chosen.model, lora, chosen.seed, four_bit=chosen.four_bit, dtype=chosen.dtype)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_rows_prompt_is_that_of_its_state(game: rows.Campaigns, found: rows.Rows) -> None:
    ticks = np.asarray(found.bank.state.tick).tolist()
    assert all(f"Tick {t} of 70" in text for t, text in zip(ticks, found.prompts, strict=True))
    assert len(set(found.prompts)) > 10


def test_rows_survive_their_files(game: rows.Campaigns, found: rows.Rows, tmp_path: Path) -> None:
    assert rows.load(tmp_path / "rows", game) is None
    rows.save(tmp_path / "rows", found, game)
    again = rows.load(tmp_path / "rows", game)
    assert again is not None and again.prompts == found.prompts
    for one, other in zip(again.credit, found.credit, strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "rows" / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="delete the folder"):
        rows.load(tmp_path / "rows", game)


def test_step_rewards_are_those_of_one_step(game: rows.Campaigns, found: rows.Rows) -> None:
    from jaxsim import env, reward
    from jaxsim.noise import draw

    params, transition = game.of(0), jax.jit(env.transition, static_argnums=0)
    for r, a in ((0, 0), (5, 3), (11, game.dims.actions - 1)):
        state = jax.tree.map(lambda x, r=r: jax.numpy.asarray(x[r]), found.bank.state)
        block = draw(jax.random.fold_in(jax.random.key(1), r))
        _, seen = transition(game.dims, state, jax.numpy.int32(a), block, params)
        wanted = reward.total(reward.channels(seen, params.reward), params.reward)
        assert found.step_reward[r, a] == pytest.approx(float(wanted), abs=1e-5)


def test_what_turned_out_worse_than_waiting_is_not_shown(game: rows.Campaigns, found: rows.Rows) -> None:
    legal = found.credit.legal
    contain = 11  # ISOLATE_ASSET of the first asset
    done = np.where(np.arange(24) % 2, contain, MONITOR).astype(np.int32)
    q = np.where(legal, 0.0, np.nan).astype(np.float32)
    se = np.where(legal, 0.1, np.nan).astype(np.float32)
    q[:, contain] = -0.25  # not told apart from waiting
    rows_ = found._replace(bank=found.bank._replace(action=done), credit=found.credit._replace(q=q, se=se))
    np.testing.assert_array_equal(rows.labels(rows_), done)
    q[:, contain] = -0.3  # worse
    np.testing.assert_array_equal(rows.labels(rows_), np.where(np.arange(24) % 2, -1, MONITOR))


def test_the_teachers_states_are_half_containments(game: rows.Campaigns) -> None:
    from jaxsim.actions import table

    bank = rows.from_teacher(game, BASELINES["evidence"], 20, seed=0)
    verbs = table(game.dims)[0][np.asarray(bank.action)]
    assert len(verbs) == 20 and (verbs > INVESTIGATE).sum() == 10


# --- diagnostics ----------------------------------------------------------------------------------------------------


def completion(**change: Any) -> signals.Completion:
    one = signals.Completion(True, True, 0, 0, None, False, True, 0.0, 0, 0.0, -1.0)
    return one._replace(**change)


def test_group_statistics_by_hand() -> None:
    # Deviations of (1, 3) are 1 and 1, of (2, 2) none.
    assert diagnostics.within_group([1.0, 3.0, 2.0, 2.0], [0, 0, 1, 1]) == (0.5, 0.5)


def test_a_steps_report_by_hand(game: rows.Campaigns, found: rows.Rows) -> None:
    known = diagnostics.tables(game, found)
    texts = ["nonsense", '{"action": "MONITOR"}', '{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', "{"]
    made = [diagnostics.completion(known, 0, 0, text) for text in texts]
    batch, parsed = [m[0] for m in made], [m[1] for m in made]
    totals = signals.total(batch, signals.PROFILES["returns"])
    report = diagnostics.step_report(known, [0] * 4, batch, parsed, totals)
    assert report["actions"] == {"INVALID": 2, "ISOLATE_ASSET": 1, "MONITOR": 1}
    assert report["valid_rate"] == 0.5
    assert report["parse_failures"] == {"broken JSON": 1, "no JSON": 1}
    q = found.credit.q[0]
    isolate = batch[2].action
    assert isolate is not None
    low = float(np.nanmin(q)) - signals.MARGIN
    assert totals == pytest.approx([low, float(q[0]), float(q[isolate]), low])
    assert report["action_entropy"] == pytest.approx(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)))
    assert report["regret"] == pytest.approx(float(np.nanmax(q)) - (float(q[0]) + float(q[isolate])) / 2)


def test_shuffle_drop_at_rows_by_hand(game: rows.Campaigns, found: rows.Rows) -> None:
    q = np.full_like(found.credit.q, np.nan)
    isolate = prompting.parse('{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', game.inventories[0]).action
    q[:, MONITOR] = [0.0] * 23 + [4.0]
    q[:23, isolate] = 1.0
    known = diagnostics.tables(game, found._replace(credit=found.credit._replace(q=q)))
    texts = ['{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', '{"action": "MONITOR"}']
    report = diagnostics.rows_shuffle_drop(known, [0, 23], texts)
    # Own: 1 and 4. The other's: MONITOR is worth 0 at row 0; isolating is not legal at row 23: 1 below the worst, 4.
    assert report == pytest.approx(
        {"rows": 2, "own": 2.5, "other": 1.5, "waiting": 2.0, "drop": 1.0, "drop_se": 0.0, "valid_rate": 1.0}
    )
    blind = diagnostics.rows_shuffle_drop(known, [0, 23], [texts[1]] * 2)
    assert blind["drop"] == 0
    assert diagnostics.rows_shuffle_drop(known, [0, 23], ["nonsense"] * 2)["own"] == pytest.approx((-1 + 3) / 2)


def test_what_is_in_force_is_not_what_is_restored_or_rebuilt() -> None:
    """A control repeated is one in force; RESTORE repeats none, nor does the patch that rebuilds an isolated asset."""
    rebuilt, patched = (
        rows.campaigns((CAMPAIGN,), f"hardened+liftable{x}", "operational") for x in ("+eradication", "")
    )
    dims, inventory = rebuilt.dims, rebuilt.inventories[0]
    marks = np.zeros((2, 4, dims.entities), bool)
    marks[:, CUT_OFF, [0, dims.assets]] = marks[:, PATCHED, [0, 1]] = marks[:, EGRESS_BLOCKED, 2] = True
    marks[1] = False
    bank: Any = SimpleNamespace(state=SimpleNamespace(marks=marks), params_index=np.zeros(2, np.int32))
    again, names = [("ISOLATE_ASSET", 0), ("REVOKE_IDENTITY", dims.assets), ("BLOCK_EGRESS", 2)], inventory.names
    for game, patches in ((rebuilt, [1]), (patched, [0, 1])):
        wanted = {(verb, names[i]) for verb, i in [*again, *(("PATCH_ASSET", i) for i in patches)]}
        found = rows.in_force(game, bank)
        assert found.shape == (2, dims.actions) and not found[1].any()
        assert {said for said, action in inventory.actions.items() if found[0, action]} == wanted


def step(**change: Any) -> dict[str, Any]:
    calm = {
        "completions": 8,
        "containments": 1,
        "blind_containments": 0,
        "rows": 1,
        "rows_without_alert": 0,
        "commonest_blind": None,
    }
    return {**calm, "commonest": ("MONITOR", 5), **change}


def test_the_alarm_names_the_shortcut() -> None:
    many = diagnostics.WINDOW
    assert diagnostics.alarm([step()] * many) == ""
    fixed = step(commonest=("ISOLATE_ASSET assets[0]", 8), containments=8)
    assert "ISOLATE_ASSET assets[0] in 128 of 128 completions" in diagnostics.alarm([fixed] * many)
    assert diagnostics.alarm([fixed] * (many - 1)) == ""  # too early to tell
    assert diagnostics.alarm([step(commonest=("MONITOR", 8))] * many) == ""  # waiting is no shortcut
    blind = step(
        containments=4, blind_containments=3, rows_without_alert=1, commonest_blind=("ISOLATE_ASSET assets[0]", 2)
    )
    assert (
        "24 of 40 containments of the last 16 steps with no alert in view, mostly ISOLATE_ASSET assets[0]"
        in diagnostics.alarm([blind, step(rows_without_alert=0)] * many)
    )


def test_the_alarm_names_what_the_audit_found() -> None:
    """A scripted policy in place of a model plays the best open-loop plan of `classic` + `evidence`."""
    game = rows.campaigns((CAMPAIGN,), "classic", "evidence")
    plan = parse_plan("MONITOR;REVOKE_IDENTITY svc-ci-deploy", scenarios.load(CAMPAIGN), game.dims)
    bank = banks.collect_heuristic(game.env, game.params, PLAN, plan, jax.random.key(7), 64, 4)
    found = rows.credited(game, bank, futures=2, least_z=0.0, seed=1, layout="compact", reference=0)
    known = diagnostics.tables(game, found)
    book = optimise.Book(known, signals.PROFILES["returns"])
    reports = []
    for r in np.random.default_rng(0).permutation(len(found.prompts))[: 3 * diagnostics.WINDOW]:
        text = prompting.encode(int(found.bank.action[r]), game.inventories[0])
        book([text] * 4, [int(r)] * 4)
        reports.append(book.latest)
    reason = diagnostics.alarm(reports)
    assert "with no alert in view, mostly REVOKE_IDENTITY identities[0]" in reason


# --- the warm start -------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


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
        given = {"epochs": 6, "batch": 4, "lr": 3e-2, "seed": 5, "pad": tokenizer.pad_token_id, "save_every": 2}
        with contextlib.suppress(Killed):
            warm.learn(model, examples, [0, 1] * 4, tmp_path / name, advance=advance, **given)
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
        given = {"epochs": 1, "batch": 2, "lr": 1e-3, "seed": 5, "pad": tokenizer.pad_token_id, "save_every": 1}
        warm.learn(
            model, examples, [0] * 4, tmp_path / "warm", advance=lambda step, many, loss: steps.append(step), **given
        )

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


# --- GRPO -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # a whole trainer's, of the packages that it is made of
@pytest.mark.parametrize("four_bit", [False, True])
def test_in_half_precision_it_learns_and_continues_exactly(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four_bit: bool
) -> None:
    monkeypatch.setattr(signals, "total", lambda batch, weights: [float(i % 2) for i in range(len(batch))])
    given = {"dtype": "bfloat16", "four_bit": four_bit, "steps": 4, "save_every": 1, "lr": 1e-2, "group": 4}
    chosen = settings.load("smoke", {"model": str(tiny(tmp_path / "model")), **given})
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
    chosen = settings.load("smoke", {"model": str(tiny(tmp_path / "model")), "save_every": 1})
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


@pytest.mark.parametrize("informative", [0, 2])
def test_what_cannot_take_a_step_is_refused_before_it_is_trained(
    game: rows.Campaigns, found: rows.Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, informative: int
) -> None:
    changes = {"model": str(tiny(tmp_path / "model")), "prompts_per_step": 3, "micro_batch": 3}
    chosen = settings.load("smoke", changes)
    kept = found._replace(informative=np.arange(24) < informative)
    monkeypatch.setattr(loops, "collected", lambda *_: kept)
    monkeypatch.setattr(warm, "learn", lambda *_, **__: pytest.fail("the warm start began"))
    run = run_folder.Run(tmp_path, {"seconds": {}}, run_folder.Log(tmp_path / "log.jsonl"), Console(quiet=True))
    with pytest.raises(ModelError, match=r"cannot take a step: [012] rows tell actions apart, prompts_per_step = 3; "):
        loops.outer_loop(run, 0, game, chosen, None)


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_step_done_again_replaces_its_line_and_all_after_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = run_folder.Log(path)
    for at in range(1, 6):
        log.add(0, "grpo", at, {"x": at})
    with open(path, "a") as file:
        file.write('{"loop": 0, "ph')  # a kill
    log = run_folder.Log(path)
    assert [x["x"] for x in log.lines] == [1, 2, 3, 4, 5]
    log.add(0, "grpo", 4, {"x": 40})
    assert [json.loads(text)["x"] for text in path.read_text().splitlines()] == [1, 2, 3, 40]
    log.add(0, "warm", 2, {"x": 0})
    assert len(path.read_text().splitlines()) == 1


def test_a_trained_adapter_knows_its_base(tmp_path: Path) -> None:
    model = lora(models.load(str(tiny(tmp_path / "merged"))))
    students.save_adapter(model, tmp_path / "adapter")
    models.load(str(tmp_path / "merged"), tmp_path / "adapter")
    other = tiny(tmp_path / "other" / "merged", seed=1)
    with pytest.raises(models.ModelError, match=r"was made for .*, not for"):
        models.load(str(other), tmp_path / "adapter")


# --- beside the training --------------------------------------------------------------------------------------------


def test_the_base_is_evaluated_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings.load("smoke", {"evaluate_beside": True})
    log, threads = tmp_path / "evaluation-base.log", torch.get_num_threads()
    monkeypatch.setattr(run_evaluation.sys, "executable", "echo")
    with run_evaluation.base_beside(tmp_path, chosen):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    said = log.read_text()
    assert "evaluate-model --model embedded" in said and "--threads 1" in said and "--adapter" not in said
    monkeypatch.setattr(run_evaluation.sys, "executable", "cat")  # of an option that it does not know
    with pytest.raises(RuntimeError), run_evaluation.base_beside(tmp_path, chosen):
        raise RuntimeError
    for there, wanted in ((True, chosen), (False, settings.load("smoke"))):
        log.unlink(missing_ok=True)
        if there:
            (tmp_path / "adapter").mkdir()
        with run_evaluation.base_beside(tmp_path, wanted):
            assert not log.exists()


# --- a whole run ----------------------------------------------------------------------------------------------------

TRAIN = [sys.executable, "-m", "jaxsim_soc", "train", "--preset", "smoke"]


def command(model: Path, out: Path) -> list[str]:
    return [*TRAIN, "--model", str(model), "--out", str(out), "--save-every", "1", "--outer-loops", "2"]


def lines(out: Path) -> int:
    log = out / "training_log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def played(out: Path) -> int:
    play = out / "loop1" / f"play-{CAMPAIGN}.jsonl"
    return len(play.read_text().splitlines()) if play.exists() else 0


KILLS = {
    "an optimizer step": lambda out: lines(out) >= 5,
    "saving": lambda out: any(not (c / "whole.json").exists() for c in out.glob("loop*/grpo/checkpoint-*")),
    "collection": lambda out: 3 <= played(out) < 60,
    "the credit step": lambda out: played(out) >= 70,
}


@pytest.mark.slow
def test_a_run_that_was_killed_ends_like_one_never_killed(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model")
    done = subprocess.run(command(model, tmp_path / "whole"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # In a folder whose name a console could take for markup, each time spelled in another way.
    out = tmp_path / "cut [bold] short"
    for name, folder in (("the out", out), ("the model", model)):
        (tmp_path / name).symlink_to(folder, target_is_directory=True)
    spelled = [(tmp_path / "the model", tmp_path / "the out"), (Path("model"), Path(out.name)), (model, out)]
    ways = itertools.cycle(command(*way) for way in spelled)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for where, condition in KILLS.items():
        run = subprocess.Popen(next(ways), cwd=tmp_path, **quiet)
        while run.poll() is None and not condition(out):
            time.sleep(0.005)
        assert run.poll() is None, f"ended before it could be killed in {where}"
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not (out / "loop1" / "rows" / "credit.npz").exists()  # what comes last
    # The reader of what it says has gone.
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(next(ways), cwd=tmp_path, stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    done = subprocess.run(next(ways), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"report in {out}/report.md" in done.stderr, done.stderr[-3000:]
    assert (out / "training_log.jsonl").read_text() == (tmp_path / "whole" / "training_log.jsonl").read_text()
    for name in ("adapter/adapter_model.safetensors", "adapter/README.md", "report.md", "metrics.json"):
        assert (out / name).stat().st_size
    adapters = (x / "adapter" / "adapter_model.safetensors" for x in (tmp_path / "whole", out))
    first, second = (path.read_bytes() for path in adapters)
    assert first == second


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--steps", "-1"], "smoke.yaml: steps"),
        (["--rules", "classic", "--reward", "evidence"], "is degenerate (open-loop, farming, harm-seeking)"),
        (["--signals", "{"], "--signals: '{' is not JSON at column 2"),
        (["--profile", "published"], "audit is of the return alone, but paid is no_redundant_containment x 1"),
        (
            ["--signals", '{"action_diversity": 1}'],
            "paid is action_diversity x 1, no return_to_go; pay for",
        ),
        (["--learning-rate", "1"], "--learning-rate"),
        (["--evaluate-policies", "hueristic"], "did you mean heuristic?"),
        (["--evaluate-episodes", "20000"], "smoke.yaml: evaluate_episodes = '20000'"),
        (
            ["--rows", "16", "--prompts-per-step", "16", "--steps", "3", "--warm-rows", "0"],
            "prompts_per_step = 16 is more than there are",
        ),
        (["--model=-x"], "--model"),  # by the parser of the evaluation
        (["--log-to", "trackio"], "pip install trackio"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    options: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        training.main(["--preset", "smoke", "--out", str(tmp_path / "out"), *options])
    assert ended.value.code == 2 and wanted in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def begun(out: Path, **changes: Any) -> dict[str, Any]:
    chosen = settings.load("smoke", changes)
    chosen = chosen.model_copy(update={"model": place(chosen.model)})
    return run_folder.begin(out, chosen, False, [])


def test_what_only_the_evaluation_needs_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path / "out")
    changes = {"evaluate_episodes": 7, "evaluate_policies": ("heuristic",), "evaluate_shuffle": True}
    settings_now = begun(tmp_path / "out", **changes)["settings"]
    assert settings_now["evaluate_episodes"] == 7 and settings_now["evaluate_policies"] == ["heuristic"]
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["settings"] == settings_now
    with pytest.raises(SystemExit):
        begun(tmp_path / "out", steps=3)
    assert "steps = 2 there, 3 here" in capsys.readouterr().err
    # The evaluation that was begun with the other number begins anew.
    chosen = settings.load("smoke", changes)
    assert "--restart" not in run_evaluation.options(tmp_path / "out", chosen)
    manifest = tmp_path / "out" / "evaluation" / "manifest.json"
    manifest.parent.mkdir()
    for text, anew in (('{"episodes": 2}', True), ('{"episodes": 7}', False), ("{", False)):
        manifest.write_text(text)
        assert ("--restart" in run_evaluation.options(tmp_path / "out", chosen)) == anew


def test_a_run_on_prompts_of_another_format_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "out")
    monkeypatch.setattr(prompting, "FORMAT_VERSION", "next")
    with pytest.raises(SystemExit):
        begun(tmp_path / "out")
    assert f"prompts of format {FORMAT_VERSION!r} there, 'next' here; give another --out" in capsys.readouterr().err


def test_a_model_or_network_is_known_again_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a model", "other"):
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(name)
    Path("link").symlink_to("a model")
    Path("mine.yaml").write_text(scenarios.dump(scenarios.load(CAMPAIGN)))
    begun(tmp_path / "out", model="a model", scenarios=("mine.yaml",))
    for model, network in (
        (str(tmp_path / "a model"), str(tmp_path / "mine.yaml")),
        ("./link", "mine.yaml"),
        ("other/../a model/", "./mine.yaml"),
    ):
        begun(tmp_path / "out", model=model, scenarios=(network,))
    with pytest.raises(SystemExit):
        begun(tmp_path / "out", model="other", scenarios=("mine.yaml",))
    said = capsys.readouterr().err
    assert "/other' holds something else than " in said and "give another --out, or --restart" in said
    Path("mine.yaml").write_text(scenarios.dump(scenarios.load(CAMPAIGN).model_copy(update={"noise_rate": 0.9})))
    with pytest.raises(SystemExit):
        begun(tmp_path / "out", model="a model", scenarios=("mine.yaml",))
    assert "scenarios = ['mine.yaml'] holds something else than ['./mine.yaml'] did" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_binds_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            training.main(["--preset", "smoke", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")])
        assert ended.value.code == 2 and "has no config.json" in capsys.readouterr().err
        assert not list((tmp_path / "out").iterdir())


def test_a_comma_list_may_have_spaces() -> None:
    _, chosen = training.arguments(["--preset", "smoke", "--evaluate-policies", " heuristic, evidence ,"])
    assert chosen.evaluate_policies == ("heuristic", "evidence")


def test_what_is_paid_is_said_beside_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(**changes: Any) -> tuple[str, dict[str, Any]]:
        chosen = settings.load("smoke", changes)
        args = SimpleNamespace(audit=None, force=True)
        verdict = training.passed(chosen, args)
        manifest = run_folder.begin(tmp_path / "out", chosen, True, verdict)
        return report_training.card(chosen, verdict, ""), manifest["paid"]

    card, paid = told()
    assert "Paid for: return_to_go x 1, format x 1." in card and f"`prompting`, format {FORMAT_VERSION} (" in card
    assert "rules `hardened` (supply_chain_token_drift: certified). What was paid is that return, and" in card
    assert paid == {"signals": {"return_to_go": 1.0, "format": 1.0}, "not_covered_by_the_audit": []}
    assert not capsys.readouterr().err
    card, paid = told(signals={"return_to_go": 1, "action_diversity": 0.5})
    assert "**It does not cover what was paid: action_diversity x 0.5.**" in card
    assert paid["not_covered_by_the_audit"] == ["action_diversity x 0.5"]
    assert "warning: signals: the audit is of the return alone" in capsys.readouterr().err
    card, _ = told(rules="classic", reward="evidence")
    assert "(supply_chain_token_drift: degenerate)" in card
    card, _ = told(model="/home/somebody/a model")
    assert "base_model: a model\n" in card and "somebody" not in card
    card, _ = told(rules="hardened-persistence")
    assert "(supply_chain_token_drift: not audited)" in card
    card, _ = told(profile="published", steps=0)  # a warm start pays nothing
    assert "GRPO took no step, and nothing was paid." in card


def test_a_folder_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run_manifest.json").write_text(json.dumps({"settings": {"steps": 3}}))
    with pytest.raises(SystemExit):
        training.main(["--preset", "smoke", "--out", str(out)])
    assert "give another --out, or --restart" in capsys.readouterr().err
