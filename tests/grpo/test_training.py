"""A run of training: its log, its folder, what is refused, and that a kill changes nothing."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import forked
import torch
from tiny_models import lora, tiny
from training_runs import CAMPAIGN, Killed

import prompting
import scenarios
from grpo.learning import student as students
from grpo.model import models
from grpo.model.contents import place
from grpo.training import command as training
from grpo.training import report_training, run_evaluation, run_folder, settings, stages
from grpo.training.loop import best
from prompting import FORMAT_VERSION

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# --- which adapter, and what the report says of it --------------------------------------------------------------------


def test_the_best_adapter_is_kept_and_the_later_of_equals(tmp_path: Path) -> None:
    def done(loop: int, **told: float) -> None:
        (tmp_path / f"loop{loop}").mkdir(exist_ok=True)
        (tmp_path / f"loop{loop}" / "done.json").write_text(json.dumps({"alarm": "", **told}))

    done(0)  # of a run without validation
    start = tmp_path / "given"
    assert best(tmp_path, None) is None and best(tmp_path, start) is None
    for loop, score in ((9, 1.5), (11, 1.5), (2, 1.5), (10, 1.5), (12, -3.0)):
        done(loop, validation=score)
    assert best(tmp_path, None) == tmp_path / "loop11" / "adapter"
    done(0, validation=-1.0, start=1.5)  # what the run began with is no later than what it made
    assert best(tmp_path, start) == tmp_path / "loop11" / "adapter"
    done(0, validation=-1.0, start=1.6)
    assert best(tmp_path, start) == start


def test_the_report_says_whose_adapter_it_is_and_who_played_on() -> None:
    log = [
        {
            "loop": n,
            "phase": "validation",
            "episodes": 8,
            "mean_return": x,
            "over_monitor": x - 1,
            "over_monitor_se": 0.5,
        }
        for n, x in enumerate((1.0, 2.0, 2.0, 0.0))
    ]
    text = "\n".join(report_training.validations(log))
    assert "the adapter is that of loop 2." in text and "| 3 | 8 | +0.00 | -1.00 ± 0.50 |" in text
    began = log[0] | {"phase": "start", "mean_return": 2.5}
    text = "\n".join(report_training.validations([began, *log]))
    assert "the adapter is the one that the run began with." in text and "| none yet | 8 | +2.50 |" in text
    assert "over teacher" not in text
    taught = [{**x, "over_teacher": -1.0, "over_teacher_se": 0.25} for x in log]
    assert "| 2 | 8 | +2.00 | +1.00 ± 0.50 | -1.00 ± 0.25 |" in report_training.validations(taught)
    (line,) = report_training.stand_ins([{"loop": 1, "rows": 102, "distance": 0.125, "same": 0.9}])
    assert line.startswith("Loop 1: ") and "At 102 states" in line and "0.12 from" in line and "90%" in line
    assert not report_training.validations([]) and not report_training.stand_ins([])


# --- the log ----------------------------------------------------------------------------------------------------------


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


# --- beside the training ----------------------------------------------------------------------------------------------


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


# --- a whole run ------------------------------------------------------------------------------------------------------


TICKS = 24  # of an episode; of a network with other times there is no verdict


def words(network: Path, model: Path, out: Path) -> list[str]:
    options = ["--model", str(model), "--out", str(out), "--save-every", "1", "--outer-loops", "2"]
    return ["train", "--preset", "smoke", "--scenarios", str(network), "--force", *options]


def lines(out: Path) -> int:
    log = out / "training_log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def played(out: Path) -> int:
    play = out / "loop1" / f"play-{CAMPAIGN}.jsonl"
    return len(play.read_text().splitlines()) if play.exists() else 0


KILLS = {
    "an optimizer step": lambda out: lines(out) >= 5,
    "saving": lambda out: any(not (c / "whole.json").exists() for c in out.glob("loop*/grpo/checkpoint-*")),
    "collection": lambda out: 3 <= played(out) < TICKS - 6,
    "the credit step": lambda out: played(out) >= TICKS,
}


@pytest.mark.slow
def test_a_run_that_was_killed_ends_like_one_never_killed(tmp_path: Path) -> None:
    model, said = tiny(tmp_path / "model", fluent=True), tmp_path / "said.txt"
    network = tmp_path / "short.yaml"
    network.write_text(scenarios.dump(scenarios.load(CAMPAIGN).model_copy(update={"horizon": TICKS})))

    def started(*way: Path) -> BaseProcess:
        return forked.started(said, tmp_path, forked.front_door, words(network, *way))

    assert forked.ended(started(model, tmp_path / "whole")) == 0, said.read_text()[-3000:]
    # In a folder whose name a console could take for markup, each time spelled in another way.
    out = tmp_path / "cut [bold] short"
    for name, folder in (("the out", out), ("the model", model)):
        (tmp_path / name).symlink_to(folder, target_is_directory=True)
    ways = [(tmp_path / "the model", tmp_path / "the out"), (Path("model"), Path(out.name)), (model, out)]
    spelled = itertools.cycle(ways)
    for where, condition in KILLS.items():
        run = started(*next(spelled))
        while run.is_alive() and not condition(out):
            time.sleep(0.005)
        assert run.is_alive(), f"ended before it could be killed in {where}: {said.read_text()[-3000:]}"
        run.kill()
        assert forked.ended(run) == -signal.SIGKILL
        assert not (out / "loop1" / "rows" / "credit.npz").exists()  # what comes last
    # The reader of what it says has gone, of the command itself.
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jaxsim_soc", *words(network, *next(spelled))]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    said.unlink()
    assert forked.ended(started(*next(spelled))) == 0 and f"report in {out}/report.md" in said.read_text()
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


def test_a_link_to_a_folder_is_begun_anew_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.setattr(stages.rows, "campaigns", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            stages.run(tmp_path / "link", settings.load("smoke"), [], restart=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / run_folder.MANIFEST).is_file()


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
    assert "Taught in a simulator, rules" in card and "Trained by GRPO" not in card


def test_a_folder_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run_manifest.json").write_text(json.dumps({"settings": {"steps": 3}}))
    with pytest.raises(SystemExit):
        training.main(["--preset", "smoke", "--out", str(out)])
    assert "give another --out, or --restart" in capsys.readouterr().err
