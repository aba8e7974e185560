"""The stages of a training run, top to bottom; what `jaxsim-soc train` does once the gate is passed."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from grpo.learning import unsloth_backend
from grpo.model.errors import ModelError
from grpo.rows import rows
from grpo.training import report_training, run_evaluation
from grpo.training.loop import best, finish_adapter, outer_loop
from grpo.training.run_folder import Log, Run, begin, release, save_manifest, timed
from grpo.training.settings import Settings
from jaxsim_soc import cli

ALARMED = 3  # exit code of a run that the alarm stopped


def run(shown: Path, chosen: Settings, verdict: list[dict[str, Any]], restart: bool) -> None:
    """Run the stages that are not done yet in a folder, `shown` as the user wrote it; `verdict` is the audit's."""
    try:
        backend = unsloth_backend.choose("transformers" if chosen.estimator == "exact" else chosen.backend)
    except ModelError as error:
        cli.fail(str(error))
    out = Path(os.path.realpath(shown))
    run_evaluation.check(out, chosen)
    processes = started(chosen)
    console = Console(stderr=True, quiet=not processes.is_main_process, markup=False, highlight=False)
    with processes.main_process_first():
        manifest = begin(out, chosen, restart, verdict)
    manifest["backend"], chosen = backend, chosen.model_copy(update={"backend": backend})
    this = Run(out, manifest, Log(out / "training_log.jsonl"), console)
    game = rows.campaigns(chosen.campaigns, chosen.rules, chosen.reward)
    try:
        teacher = rows.teacher_of(game, chosen.teacher_file) if chosen.teacher_file else None
    except ValueError as error:
        release(out)
        cli.fail(f"teacher: {error}")
    try:
        adapter = chosen.adapter_folder
        with run_evaluation.base_beside(out, chosen):
            for loop in range(chosen.outer_loops):
                adapter, alarm = outer_loop(this, loop, game, chosen, adapter, teacher)
                if alarm:
                    break
    except ModelError as error:
        release(out)
        cli.fail(str(error))
    if not processes.is_main_process:
        return
    kept = best(out, chosen.adapter_folder) or adapter
    finish_adapter(out / "adapter", kept, report_training.card(chosen, verdict, alarm))
    with timed(this, "evaluation"):
        evaluated = run_evaluation.evaluate(out, chosen)
    report_training.write(out, chosen, this.log.lines, evaluated, manifest, alarm)
    save_manifest(out, manifest | {"finished": True, "alarm": alarm})
    console.print(f"report in {shown / 'report.md'}", soft_wrap=True)
    if alarm:
        print(f"{cli.prog()}: stopped by the alarm: {alarm}", file=sys.stderr)
        raise SystemExit(ALARMED)


def started(chosen: Settings) -> PartialState:
    """The processes of `accelerate launch`, or this one alone. The first writes; the others read what it wrote."""
    processes = PartialState(timeout=timedelta(days=1))  # they wait for the first to play
    many, step = processes.num_processes, chosen.prompts_per_step * chosen.group
    if step % (many * chosen.micro_batch):
        cli.fail(
            f"prompts_per_step x group = {step} completions do not divide into {many} processes of micro_batch = "
            f"{chosen.micro_batch}; choose --micro-batch or --prompts-per-step so that they do"
        )
    return processes
