"""One outer loop of a run, top to bottom: rows, warm start, GRPO, check. What is kept of it is in its folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState

import prompting
from grpo.learning import diagnostics, exact, unsloth_backend, warm
from grpo.learning.diagnostics import Tables
from grpo.learning.plan import Plan
from grpo.learning.student import Lora, save_adapter, student
from grpo.learning.unsloth_backend import Source
from grpo.model import decode
from grpo.model.errors import ModelError
from grpo.playing import play
from grpo.playing.choices import EXACT
from grpo.rows import rows
from grpo.rows.rows import Campaigns, Rows, Teacher
from grpo.training import settings
from grpo.training.collect import collected
from grpo.training.run_folder import Run, timed
from grpo.training.settings import Settings
from jaxsim.types import VERBS
from jaxsim_soc import cli, write


class Parts(NamedTuple):
    """What a loop's rows are for: their numbers."""

    kept_out: list[int]  # for checking, nothing is trained on them
    shown: np.ndarray  # (n,) all others
    taught: list[int]  # of these, where the actions differ beyond chance: GRPO's


def outer_loop(
    run: Run, loop: int, game: Campaigns, chosen: Settings, adapter: Path | None, teacher: Teacher | None = None
) -> tuple[Path, str]:
    """Collect, credit, train: (the adapter after this loop, why the alarm stopped it or '')."""
    processes, folder, seed = PartialState(), run.out / f"loop{loop}", chosen.seed + loop
    done = folder / "done.json"
    if done.exists():
        return folder / "adapter", json.loads(done.read_text())["alarm"]
    with timed(run, "loading"):
        lora = Lora(chosen.lora_r, chosen.lora_alpha, chosen.lora_dropout)
        model, tokenizer = student(
            chosen.model, lora, chosen.seed, adapter, four_bit=chosen.four_bit, dtype=chosen.dtype
        )
    with timed(run, f"loop{loop} rows"), processes.main_process_first():
        found = collected(loop, game, chosen.collection, folder, model, tokenizer, run.console, teacher)
    parts = divided(found, seed)
    run.console.print(
        f"loop {loop}: {len(found.prompts)} rows; {len(parts.shown) - len(parts.taught)} do not tell actions apart and "
        f"teach GRPO nothing, {len(parts.kept_out)} are kept for checking"
    )
    if chosen.steps:
        check_rows(len(parts.taught), chosen.prompts_per_step)
    if loop == 0 and chosen.warm_rows:
        with timed(run, "warm start"), processes.main_process_first():
            how = warm.How(chosen.warm_epochs, chosen.warm_batch, chosen.warm_lr, chosen.seed, chosen.save_every)
            if teacher:
                which = np.random.default_rng(chosen.seed).permutation(parts.shown)[: chosen.warm_rows].tolist()
                at_once = max(1, chosen.micro_batch // chosen.group)
                distil(run, game, found, which, teacher, model, tokenizer, folder / "warm", how, at_once)
            else:
                examples = shown_answers(game, found, parts.shown, chosen.warm_rows, chosen.seed)
                warm_up(run, examples, model, tokenizer, folder / "warm", how)
    known, alarm = diagnostics.tables(game, found), ""
    if chosen.steps:
        # Without samples the first process learns, and the others read what it has learned.
        turns = processes.main_process_first() if chosen.estimator == "exact" else nullcontext()
        with timed(run, f"loop{loop} GRPO"), turns:
            source = None
            if chosen.backend == "unsloth":
                source = Source(chosen.model, chosen.four_bit, chosen.campaigns, chosen.rules, chosen.reward)
            alarm = grpo(
                run, loop, known, parts.taught, chosen.plan, source, folder / "grpo", seed, model, tokenizer,
                chosen.estimator,
            )  # fmt: skip
        processes.wait_for_everyone()
    if processes.is_main_process:
        run.log.add(loop, "check", 0, checked(known, parts.kept_out, chosen, model, tokenizer))
        save_adapter(model, folder / "adapter")
        cli.write_json(done, {"alarm": alarm, "rows": len(found.prompts), "informative": len(parts.taught)})
        shutil.rmtree(folder / "grpo", ignore_errors=True)  # the trainer's checkpoints have served
    processes.wait_for_everyone()
    return folder / "adapter", alarm


def divided(found: Rows, seed: int) -> Parts:
    """Keep some rows apart, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(found.prompts))
    apart = settings.kept_apart(len(order))
    shown = np.sort(order[apart:])
    return Parts(order[:apart].tolist(), shown, shown[found.informative[shown]].tolist())


def check_rows(many: int, prompts_per_step: int) -> None:
    """Raises ModelError when so many rows that teach something do not make one step."""
    if many < prompts_per_step:
        raise ModelError(
            f"GRPO cannot take a step: {many} rows tell actions apart, prompts_per_step = {prompts_per_step}; "
            "choose more rows or futures, a lower least_z, or fewer prompts_per_step, with --restart"
        )


class Examples(NamedTuple):
    """Answers to show a beginner."""

    chats: list[list[dict[str, str]]]
    answers: list[str]
    campaigns: list[int]  # of each


def shown_answers(game: Campaigns, found: Rows, among: np.ndarray, many: int, seed: int) -> Examples:
    """At most `many` of the teacher's answers, at the rows `among` where they should be learned."""
    labels = rows.labels(found)
    which = np.random.default_rng(seed).permutation(among[labels[among] >= 0])[:many]
    answers = [prompting.encode(int(labels[r]), rows.inventory_of(game, found, r)) for r in which]
    return Examples([rows.chat_of(game, found, r) for r in which], answers, found.bank.params_index[which].tolist())


def warm_up(run: Run, examples: Examples, model: Any, tokenizer: Any, folder: Path, how: warm.How) -> None:
    """Show the model answers."""
    counts = {v: sum(f'"{v}"' in text for text in examples.answers) for v in VERBS}
    run.console.print("warm start: " + ", ".join(f"{n} {v}" for v, n in counts.items() if n))
    pairs = warm.pairs(tokenizer, examples.chats, examples.answers)
    with followed(run) as advance:
        warm.learn(model, pairs, examples.campaigns, folder, how, pad=tokenizer.pad_token_id, advance=advance)


def distil(
    run: Run,
    game: Campaigns,
    found: Rows,
    which: list[int],
    teacher: Teacher,
    model: Any,
    tokenizer: Any,
    folder: Path,
    how: warm.How,
    at_once: int,
) -> None:
    """Teach the model a teacher's probabilities of all legal answers at some rows."""
    target = rows.chances(game, found.bank, teacher[1])
    lessons = []
    for r in which:
        task = exact.asked(game, found, tokenizer, r)
        lessons.append(warm.Lesson(task.prompt, task.tree, target[r, task.actions]))
    groups = found.bank.params_index[which].tolist()
    run.console.print(f"warm start: the teacher's probabilities at {len(lessons)} states")
    with followed(run) as advance:
        warm.distil(model, lessons, groups, folder, how, at_once=at_once, advance=advance)


@contextmanager
def followed(run: Run) -> Iterator[Callable[[int, int, float], None]]:
    """Log and show the steps of a warm start."""
    with cli.progress(quiet=run.console.quiet) as told:

        def advance(step: int, steps: int, loss: float) -> None:
            run.log.add(0, "warm", step, {"loss": loss})
            told(f"warm start, step {step} of {steps}, loss {loss:.3f}")

        yield advance


def grpo(
    run: Run,
    loop: int,
    known: Tables,
    taught: list[int],
    plan: Plan,
    source: Source | None,
    folder: Path,
    seed: int,
    model: Any,
    tokenizer: Any,
    estimator: str = "sampled",
) -> str:
    """GRPO on the rows `taught`: why the alarm stopped it or ''. With a `source`, by Unsloth in another process."""

    def line(step: int, report: dict[str, Any]) -> None:
        run.log.add(loop, "grpo", step, report)
        regret = "–" if report["regret"] is None else f"{report['regret']:.2f}"
        run.console.print(
            f"loop {loop} GRPO {step}/{plan.steps}: reward {report['reward_mean']:+.2f}, regret {regret}, "
            f"valid {report['valid_rate']:.0%}"
        )

    if source:
        return unsloth_backend.optimise(model, taught, plan, source, folder, seed, line)
    if estimator == "exact":
        return exact.optimise(model, tokenizer, known, taught, plan, folder, seed, line)
    from grpo.learning import optimise

    return optimise.optimise(model, tokenizer, known, taught, plan, folder, seed, line)


def checked(known: Tables, which: list[int], chosen: Settings, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The shuffle drop of the model's greedy answers at rows that it was not trained on.

    It answers freely, or, where the settings decode so, by the likeliest of all legal answers.
    """
    decoder, texts = decode.Decoder(model, tokenizer), list[str]()
    if chosen.decode == EXACT:
        for r in which:
            say = play.chooser(decoder, rows.inventory_of(known.game, known.rows, r))
            texts += say([known.rows.prompts[r]], [r], 0)
        return diagnostics.rows_shuffle_drop(known, which, texts)
    chats = [decode.chat_tokens(tokenizer, rows.chat_of(known.game, known.rows, r)) for r in which]
    sampling = decode.Sampling(max_new_tokens=chosen.max_completion, settle_ties=False)
    likely = play.likely_answers(tokenizer, known.game.inventories)
    for i in range(0, len(chats), play.BATCH):
        texts += [c.text for c in decode.decode(decoder, chats[i : i + play.BATCH], sampling, likely=likely)]
    return diagnostics.rows_shuffle_drop(known, which, texts)


def finish_adapter(place: Path, adapter: Path | None, card: str) -> None:
    """Copy the last loop's adapter to its place, with a model card."""
    if adapter is None or (place / "README.md").exists():
        return
    with write.folder(place) as part:
        shutil.copytree(adapter, part, dirs_exist_ok=True)
        (part / "README.md").write_text(card, encoding="utf-8")
