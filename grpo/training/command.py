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
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import numpy as np
from accelerate import PartialState
from rich.console import Console

import prompting
from grpo.learning import diagnostics, finite, signals, unsloth_backend, warm
from grpo.model import decode, models
from grpo.model.contents import place
from grpo.model.embedded import ModelError
from grpo.playing import play
from grpo.rows import rows
from grpo.rows.rows import Campaigns, Rows
from grpo.training import audit_gate, report_training, run_evaluation, settings
from grpo.training.run_folder import Log, begin, release, save_manifest, timed
from grpo.training.settings import Settings
from jaxsim.types import VERBS
from jaxsim_soc import cli, json_lines, write
from scenarios.read import odd, read

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
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
        manifest = begin(out, chosen, args, verdict)
    manifest["backend"], chosen = backend, chosen.model_copy(update={"backend": backend})
    log = Log(out / "training_log.jsonl")
    game = rows.campaigns(chosen.campaigns, chosen.rules, chosen.reward)
    try:
        adapter: Path | None = None
        with run_evaluation.base_beside(out, chosen):
            for loop in range(chosen.outer_loops):
                adapter, alarm = outer_loop(loop, game, chosen, out, adapter, log, console, manifest)
                if alarm:
                    break
    except ModelError as error:
        release(out)
        cli.fail(str(error))
    if not processes.is_main_process:
        return
    finish_adapter(out, adapter, chosen, verdict, alarm)
    evaluated = run_evaluation.evaluate(out, chosen, manifest)
    report_training.write(out, chosen, log.lines, evaluated, manifest, alarm)
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


# --- stages ---------------------------------------------------------------------------------------------------------


def outer_loop(
    loop: int,
    game: Campaigns,
    chosen: Settings,
    out: Path,
    adapter: Path | None,
    log: Log,
    console: Console,
    manifest: dict[str, Any],
) -> tuple[Path | None, str]:
    """Collect, credit, train: (the adapter after this loop, why the alarm stopped it or '')."""
    processes = PartialState()
    folder = out / f"loop{loop}"
    done = folder / "done.json"
    if done.exists():
        return folder / "adapter", json.loads(done.read_text())["alarm"]
    began = time.monotonic()
    model, tokenizer = student(chosen, adapter)
    timed(out, manifest, "loading", began)

    began = time.monotonic()
    with processes.main_process_first():
        found = collected(loop, game, chosen, folder, model, tokenizer, console)
    timed(out, manifest, f"loop{loop} rows", began)
    known = diagnostics.tables(game, found)
    order = np.random.default_rng(chosen.seed + loop).permutation(len(found.prompts))
    apart = settings.kept_apart(len(order))
    kept_out, shown = order[:apart], np.sort(order[apart:])
    taught = shown[found.informative[shown]]
    console.print(
        f"loop {loop}: {len(order)} rows; {len(shown) - len(taught)} do not tell actions apart and teach GRPO nothing, "
        f"{len(order) - len(shown)} are kept for checking"
    )
    if chosen.steps:
        check_rows(len(taught), chosen)
    began = time.monotonic()
    if loop == 0 and chosen.warm_rows:
        with processes.main_process_first():
            warm_up(game, found, shown, chosen, folder, model, tokenizer, log, console)
        timed(out, manifest, "warm start", began)
    began = time.monotonic()
    alarm = ""
    if chosen.steps:
        from grpo.learning import optimise

        def line(step: int, report: dict[str, Any]) -> None:
            log.add(loop, "grpo", step, report)
            regret = "–" if report["regret"] is None else f"{report['regret']:.2f}"
            console.print(
                f"loop {loop} GRPO {step}/{chosen.steps}: reward {report['reward_mean']:+.2f}, regret {regret}, "
                f"valid {report['valid_rate']:.0%}"
            )

        if chosen.backend == "unsloth":
            alarm = unsloth_backend.optimise(model, taught.tolist(), chosen, folder / "grpo", chosen.seed + loop, line)
        else:
            alarm = optimise.optimise(
                model, tokenizer, known, taught.tolist(), chosen, folder / "grpo",
                chosen.seed + loop, line,
            )  # fmt: skip
        timed(out, manifest, f"loop{loop} GRPO", began)
    if processes.is_main_process:
        log.add(loop, "check", 0, checked(known, kept_out.tolist(), chosen, model, tokenizer))
        save_adapter(model, folder / "adapter")
        cli.write_json(done, {"alarm": alarm, "rows": len(found.prompts), "informative": len(taught)})
        shutil.rmtree(folder / "grpo", ignore_errors=True)  # the trainer's checkpoints have served
    processes.wait_for_everyone()
    return folder / "adapter", alarm


def check_rows(many: int, chosen: Settings) -> None:
    """Raises ModelError when so many rows that teach something do not make one step."""
    if many < chosen.prompts_per_step:
        raise ModelError(
            f"GRPO cannot take a step: {many} rows tell actions apart, prompts_per_step = {chosen.prompts_per_step}; "
            "choose more rows or futures, a lower least_z, or fewer prompts_per_step, with --restart"
        )


def student(chosen: Settings, adapter: Path | None) -> tuple[Any, Any]:
    """The model with an adapter to train: the last loop's, or a fresh one."""
    import torch
    from peft import LoraConfig, get_peft_model

    loaded = models.load(
        chosen.model, adapter, four_bit=chosen.four_bit, dtype=chosen.dtype, trainable=adapter is not None
    )
    finite.check_model(loaded.model, chosen.model)
    if adapter is not None:
        return loaded.model, loaded.tokenizer
    torch.manual_seed(chosen.seed)
    lora = LoraConfig(
        r=chosen.lora_r,
        lora_alpha=chosen.lora_alpha,
        lora_dropout=chosen.lora_dropout,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(loaded.model, lora), loaded.tokenizer
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise ModelError(f"{chosen.model} has no layers to put an adapter on ({why}); take another model") from error


def collected(
    loop: int, game: Campaigns, chosen: Settings, folder: Path, model: Any, tokenizer: Any, console: Console
) -> Rows:
    """The loop's rows: those in its folder, or new ones."""
    try:
        kept = rows.load(folder / "rows", game)
    except ValueError as error:
        cli.fail(str(error))
    if kept is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    seed = chosen.seed + 1000 * (loop + 1)
    if loop == 0:
        console.print("loop 0: states from the play of the teacher, a heuristic that contains what severe alerts name")
        bank = rows.from_teacher(game, rows.TEACHER, max(chosen.rows, chosen.warm_rows), seed)
    else:
        bank = own_play(loop, game, chosen, folder, model, tokenizer, seed, console)
    with console.status("return-to-go of every legal action"):
        found = rows.credited(
            game, bank, futures=chosen.futures, least_z=chosen.least_z, seed=seed, layout=chosen.layout
        )
    rows.save(folder / "rows", found, game)
    return found


def own_play(
    loop: int, game: Campaigns, chosen: Settings, folder: Path, model: Any, tokenizer: Any, seed: int, console: Console
) -> Any:
    """States of the model's own play at the settings' temperature; every tick is kept, and not played again."""
    decoder = decode.Decoder(model, tokenizer)
    sampling = decode.Sampling(chosen.temperature, chosen.max_completion)
    files = [folder / f"play-{name}.jsonl" for name in game.names]
    pasts = [turns(path, chosen.collect_episodes) for path in files]

    def respond(p: int) -> play.Respond:
        likely = play.likely_answers(tokenizer, [game.inventories[p]])
        return play.responder(decoder, sampling, game.inventories[p], seed=seed + p, likely=likely)

    def opening(p: int, prompt: str) -> None:
        decoder.pin(decode.chat_tokens(tokenizer, prompting.chat(prompt, game.inventories[p])))

    ticks = int(np.max(game.params.scenario.horizon)) * len(game.names)
    with cli.progress(ticks, done=sum(map(len, pasts)), quiet=console.quiet) as step:

        def advance(p: int, turn: play.Turn) -> None:
            json_lines.append(files[p], turn._asdict())
            step(f"loop {loop}: own play")

        bank, _ = rows.from_model(
            game, respond, chosen.collect_episodes, chosen.rows, seed,
            layout=chosen.layout, asking=chosen.asking, pasts=pasts, opening=opening, advance=advance,
        )  # fmt: skip
    return bank


def turns(path: Path, episodes: int) -> list[play.Turn]:
    """The turns of an interrupted play; a last line that was cut off is dropped."""
    try:
        return [play.Turn(**line) for line in json_lines.resume(path, partial(play.is_turn, episodes))]
    except ValueError as error:
        cli.fail(str(error))


def warm_up(
    game: Campaigns,
    found: Rows,
    taught: np.ndarray,
    chosen: Settings,
    folder: Path,
    model: Any,
    tokenizer: Any,
    log: Log,
    console: Console,
) -> None:
    """Show the model answers at the teacher's states, those of the rows `taught`."""
    labels = rows.labels(found)
    which = np.random.default_rng(chosen.seed).permutation(taught[labels[taught] >= 0])[: chosen.warm_rows]
    verbs = [prompting.encode(int(labels[r]), rows.inventory_of(game, found, r)) for r in which]
    chats = [rows.chat_of(game, found, r) for r in which]
    counts = {v: sum(f'"{v}"' in text for text in verbs) for v in VERBS}
    console.print("warm start: " + ", ".join(f"{n} {v}" for v, n in counts.items() if n))
    with cli.progress(quiet=console.quiet) as told:

        def advance(step: int, steps: int, loss: float) -> None:
            log.add(0, "warm", step, {"loss": loss})
            told(f"warm start, step {step} of {steps}, loss {loss:.3f}")

        warm.learn(
            model,
            warm.pairs(tokenizer, chats, verbs),
            found.bank.params_index[which],
            folder / "warm",
            epochs=chosen.warm_epochs,
            batch=chosen.warm_batch,
            lr=chosen.warm_lr,
            seed=chosen.seed,
            pad=tokenizer.pad_token_id,
            save_every=chosen.save_every,
            advance=advance,
        )


def checked(
    known: diagnostics.Tables, which: list[int], chosen: Settings, model: Any, tokenizer: Any
) -> dict[str, Any]:
    """The shuffle drop of the model's greedy answers at rows that it was not trained on."""
    chats = [decode.chat_tokens(tokenizer, rows.chat_of(known.game, known.rows, r)) for r in which]
    sampling = decode.Sampling(max_new_tokens=chosen.max_completion, settle_ties=False)
    decoder, texts = decode.Decoder(model, tokenizer), []
    likely = play.likely_answers(tokenizer, known.game.inventories)
    for i in range(0, len(chats), play.BATCH):
        texts += [c.text for c in decode.decode(decoder, chats[i : i + play.BATCH], sampling, likely=likely)]
    return diagnostics.rows_shuffle_drop(known, which, texts)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter beside its place, then put it there. Raises ModelError when its weights are no numbers."""
    finite.check_weights(model, "the adapter")
    with write.folder(folder) as part:
        model.save_pretrained(part, selected_adapters=["default"], save_embedding_layers=False)
        models.note_base(model, part)


def finish_adapter(
    out: Path, adapter: Path | None, chosen: Settings, verdict: list[dict[str, Any]], alarm: str
) -> None:
    """Copy the last loop's adapter to adapter/, with a model card."""
    if adapter is None or (out / "adapter" / "README.md").exists():
        return
    with write.folder(out / "adapter") as part:
        shutil.copytree(adapter, part, dirs_exist_ok=True)
        (part / "README.md").write_text(report_training.card(chosen, verdict, alarm), encoding="utf-8")
