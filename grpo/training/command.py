"""Train an adapter that reads its evidence, by GRPO on the simulator's own returns, and prove what changed.

    jaxsim-soc train                              what fits the machine: preset t4 with CUDA, cpu without
    jaxsim-soc train --preset cpu --steps 200 --out out/longer
    jaxsim-soc train --preset cpu --print-config

A run is a chain of stages, each kept in the output folder when it is complete: gate, then for each outer loop states
(of the teacher's play in loop 0, of the model's own after it), a supervised warm start in the first loops where the
preset wants one, credit (return-to-go of every legal action of every state), GRPO, a check, and validation where the
preset wants it; at the end evaluation of base and adapter, and the report. A run that was killed goes on from its last
checkpoint when it is started again with the same settings.
"""

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from grpo.learning import signals
from grpo.model.contents import place
from grpo.training import audit_gate, settings
from grpo.training.settings import Settings
from jaxsim_soc import cli
from scenarios.read import odd, read


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, pass the gate, run the stages that are not done yet."""
    args, chosen = arguments(argv)
    if args.print_config:
        print(json.dumps(chosen.model_dump(), indent=2))
        return
    if chosen.log_to != "none" and find_spec(chosen.log_to) is None:
        cli.fail(f"log_to = {chosen.log_to} needs that package, which is not installed: pip install {chosen.log_to}")
    verdict = passed(chosen, args)
    from grpo.training import stages  # torch, PEFT and TRL: seconds that neither help nor a refusal should take

    stages.run(args.out, chosen, verdict, restart=args.restart)


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
    p.add_argument("--force", action="store_true", help="train though what is paid does not pass the audit")
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


def passed(chosen: Settings, args: Any) -> list[dict[str, Any]]:
    """The audit's verdicts for the training campaigns. Fails when what is paid does not pass, unless forced."""
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
