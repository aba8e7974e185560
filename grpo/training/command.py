"""Train an adapter that reads its evidence, by GRPO on the simulator's own returns, and prove what changed.

    jaxsim-soc train                              what fits the machine: preset t4 with CUDA, cpu without
    jaxsim-soc train --preset cpu --steps 200 --out out/longer
    jaxsim-soc train --preset cpu --print-config

A run is a chain of stages, each kept in the output folder when it is complete: gate, then for each outer loop collect
(the teacher's play in loop 0, the model's own after it), credit (return-to-go of every legal action of every state),
a supervised warm start in loop 0 where the preset wants one, GRPO; at the end evaluation of base and adapter, and the
report. A run that was killed goes on from its last checkpoint when it is started again with the same settings.
"""

import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from accelerate import PartialState
from rich.console import Console

from grpo.learning import signals, unsloth_backend
from grpo.model.contents import place
from grpo.model.errors import ModelError
from grpo.rows import rows
from grpo.training import audit_gate, report_training, run_evaluation, settings
from grpo.training.loop import finish_adapter, outer_loop
from grpo.training.run_folder import Log, Run, begin, release, save_manifest, timed
from grpo.training.settings import Settings
from jaxsim_soc import cli
from scenarios.read import odd, read

ALARMED = 3  # exit code of a run that the alarm stopped


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, pass the gate, run the stages that are not done yet."""
    args, chosen = arguments(argv)
    if args.print_config:
        print(json.dumps(chosen.model_dump(), indent=2))
        return
    if chosen.log_to != "none" and find_spec(chosen.log_to) is None:
        cli.fail(f"log_to = {chosen.log_to} needs that package, which is not installed: pip install {chosen.log_to}")
    try:
        backend = unsloth_backend.choose(chosen.backend)
    except ModelError as error:
        cli.fail(str(error))
    out = Path(os.path.realpath(args.out))
    run_evaluation.check(out, chosen)
    processes = started(chosen)
    console = Console(stderr=True, quiet=not processes.is_main_process, markup=False, highlight=False)
    verdict = passed(chosen, args)
    with processes.main_process_first():
        manifest = begin(out, chosen, args.restart, verdict)
    manifest["backend"], chosen = backend, chosen.model_copy(update={"backend": backend})
    run = Run(out, manifest, Log(out / "training_log.jsonl"), console)
    game = rows.campaigns(chosen.campaigns, chosen.rules, chosen.reward)
    try:
        adapter: Path | None = None
        with run_evaluation.base_beside(out, chosen):
            for loop in range(chosen.outer_loops):
                adapter, alarm = outer_loop(run, loop, game, chosen, adapter)
                if alarm:
                    break
    except ModelError as error:
        release(out)
        cli.fail(str(error))
    if not processes.is_main_process:
        return
    finish_adapter(out / "adapter", adapter, report_training.card(chosen, verdict, alarm))
    with timed(run, "evaluation"):
        evaluated = run_evaluation.evaluate(out, chosen)
    report_training.write(out, chosen, run.log.lines, evaluated, manifest, alarm)
    save_manifest(out, manifest | {"finished": True, "alarm": alarm})
    console.print(f"report in {args.out / 'report.md'}", soft_wrap=True)
    if alarm:
        print(f"{cli.prog()}: stopped by the alarm: {alarm}", file=sys.stderr)
        raise SystemExit(ALARMED)


# --- settings and gate ----------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("--preset", metavar="NAME|FILE", help=f"{', '.join(settings.PRESETS)} (default: fits the machine)")
    p.add_argument(
        "--out",
        type=cli.output_folder,
        default=Path("out/train"),
        metavar="DIR",
        help="of everything (default: out/train)",
    )
    p.add_argument("--force", action="store_true", help="train though the audit has not certified what is paid")
    p.add_argument(
        "--audit",
        type=cli.input_file,
        metavar="FILE",
        help="report.json of a sweep, beside the project's own verdicts",
    )
    p.add_argument("--restart", action="store_true", help="delete what is in --out and begin anew")
    p.add_argument("--print-config", action="store_true", help="print the settings as JSON, and stop")
    for name, field in Settings.model_fields.items():
        p.add_argument(
            f"--{name.replace('_', '-')}", dest=name, metavar=_kind(field.annotation), help=field.description
        )
    return p


def arguments(argv: Sequence[str] | None) -> tuple[Any, Settings]:
    """The command line: every setting is an option."""
    args = parser().parse_args(argv)
    given = {
        name: _value(name, getattr(args, name)) for name in Settings.model_fields if getattr(args, name) is not None
    }
    try:
        chosen = settings.load(args.preset or default_preset(), given)
    except settings.SettingsError as error:
        cli.fail(str(error))
    return args, chosen.model_copy(update={"model": place(chosen.model)})


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return "NAME,NAME"
    if get_origin(annotation) is dict:
        return "JSON"
    if get_args(annotation) and NoneType not in get_args(annotation):
        return "|".join(map(str, get_args(annotation)))
    return str(getattr(annotation, "__name__", "VALUE")).upper()


def _value(name: str, text: str) -> Any:
    """Command-line text as pydantic wants it; it checks the rest."""
    annotation = Settings.model_fields[name].annotation
    if get_origin(annotation) is tuple:
        return tuple(x for x in map(str.strip, text.split(",")) if x)
    if get_origin(annotation) is dict:
        tree = read(text, as_json=True, noun="mapping")
        if problems := [*tree.problems, *odd(tree.data)]:
            why = f"{text!r:.100} {problems[0].message}"
            cli.fail(f"--{name.replace('_', '-')}: {why}; give, for example, '{{\"return_to_go\": 1}}'")
        return tree.data
    return text


def default_preset() -> str:
    """t4 with CUDA, cpu without."""
    import torch

    return "t4" if torch.cuda.is_available() else "cpu"


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


def passed(chosen: Settings, args: Any) -> list[dict[str, Any]]:
    """The audit's verdicts for the training campaigns. Fails when what is paid is not certified, unless forced."""
    try:
        found, objections = audit_gate.verdicts(
            args.audit or audit_gate.OWN, chosen.rules, chosen.reward, chosen.campaigns
        )
    except ValueError as error:
        cli.fail(f"--audit: {error}")
    what_to_do = audit_gate.remedy(chosen.rules, chosen.reward, found, chosen.campaigns)
    if chosen.not_covered:
        if not objections:
            what_to_do = f"pay for return_to_go, and for form if you like ({', '.join(signals.FORMAT_ONLY)})"
        objections.append(f"signals: the audit is of the return alone, but paid is {', '.join(chosen.not_covered)}")
    if objections and not args.force:
        cli.fail(f"{objections[0]}; {what_to_do}, or train on it anyway with --force")
    for objection in objections:
        print(f"warning: {objection} (--force)", file=sys.stderr)
    return found
