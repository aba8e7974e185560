"""One outer loop of a run, top to bottom: states, warm start, credit, GRPO, check. Its folder keeps what is kept."""

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
from grpo.rows import rows, surrogate
from grpo.rows.bank import Bank
from grpo.rows.rows import Campaigns, Rows, Teacher
from grpo.training import collect, settings
from grpo.training.run_folder import Run, timed
from grpo.training.settings import Settings
from jaxsim.types import VERBS
from jaxsim_soc import cli, write


class Loop(NamedTuple):
    """A loop, and who learns in it."""

    number: int  # from 0
    folder: Path
    seed: int
    model: Any  # with the adapter that is trained
    tokenizer: Any
    teacher: Teacher | None


def outer_loop(
    run: Run, loop: int, game: Campaigns, chosen: Settings, adapter: Path | None, teacher: Teacher | None = None
) -> tuple[Path, str]:
    """States, warm start, credit, GRPO, check: (the adapter after this loop, why the alarm stopped it or '')."""
    processes, folder, seed = PartialState(), run.out / f"loop{loop}", chosen.seed + loop
    done, alarm, report = folder / "done.json", "", dict[str, Any]()
    if done.exists():
        return folder / "adapter", json.loads(done.read_text())["alarm"]
    with timed(run, "loading"):
        lora = Lora(chosen.lora_r, chosen.lora_alpha, chosen.lora_dropout)
        model, tokenizer = student(
            chosen.model, lora, chosen.seed, adapter, four_bit=chosen.four_bit, dtype=chosen.dtype
        )
    this = Loop(loop, folder, seed, model, tokenizer, teacher)
    if loop == 0 and adapter and chosen.validate_episodes and processes.is_main_process:
        report["start"] = validate(run, this, game, chosen, "start")
    with timed(run, f"loop{loop} states"), processes.main_process_first():
        who = None if adapter else teacher or rows.TEACHER
        bank = collect.states(loop, game, chosen.collection, folder, model, tokenizer, run.console, who)
    kept_out, shown = divided(len(bank.params_index), seed)
    if loop < chosen.warm_loops and chosen.warm_rows:
        with timed(run, f"loop{loop} warm start"), processes.main_process_first():
            teach(run, this, game, bank, shown, chosen)
    if loop >= chosen.warm_loops - 1:  # before it, there is teaching alone
        alarm, counts = reinforce(run, this, game, bank, kept_out, chosen)
        report |= counts
    if processes.is_main_process:
        save_adapter(model, folder / "adapter")
        if chosen.validate_episodes:
            report["validation"] = validate(run, this, game, chosen, "validation")
        cli.write_json(done, {"alarm": alarm, **report})
        for served in ("grpo", "judged"):  # the trainer's checkpoints, and what the warm start was chosen by
            shutil.rmtree(folder / served, ignore_errors=True)
    processes.wait_for_everyone()
    return folder / "adapter", alarm


def teach(run: Run, this: Loop, game: Campaigns, bank: Bank, shown: np.ndarray, chosen: Settings) -> None:
    """The warm start: a teacher's probabilities, or a heuristic's answers, at some of the rows `shown`."""
    how = warm.How(chosen.warm_epochs, chosen.warm_batch, chosen.warm_lr, this.seed, chosen.save_every)
    order = np.random.default_rng(this.seed).permutation(shown)
    if this.teacher:
        chances = rows.chances(game, bank, this.teacher[1], chosen.warm_sharpness)
        acting = rows.acting(game, chances.argmax(axis=1))
        which = first_of(order, acting[order], chosen.warm_rows, chosen.warm_acting)
        prompts = rows.prompts_of(game, bank, chosen.layout)
        lessons = warm.lessons_of(game, bank, prompts, chances, which, this.tokenizer)
        distil(run, this, lessons, how, max(1, chosen.micro_batch // chosen.group))
    else:
        # Apart where somebody else plays on in the futures that GRPO is paid by; kept, for a run that is cut off later.
        place = this.folder / ("rows" if chosen.successor == "evidence" else "judged")
        judged = kept(place, game)
        if judged is None:
            judged = collect.credited(this.number, game, bank, chosen.collection, collect.SCRIPTED["evidence"])
            rows.save(place, judged, game)
        if chosen.steps:  # rather than after the warm start, though another successor may tell others apart
            check_rows(int(judged.informative[shown].sum()), chosen.prompts_per_step)
        warm_up(run, this, shown_answers(game, judged, order, chosen.warm_rows), how)


def reinforce(
    run: Run, this: Loop, game: Campaigns, bank: Bank, kept_out: list[int], chosen: Settings
) -> tuple[str, dict[str, Any]]:
    """Credit, GRPO, check: (why the alarm stopped it or '', what there is to say)."""
    processes, at = PartialState(), f"loop{this.number}"
    with timed(run, f"{at} credit"), processes.main_process_first():
        if chosen.credit == "critic":
            found, apart = improved(run, this, game, bank, kept_out, chosen), list(range(len(kept_out)))
        else:
            found, apart = credited(run, this, game, bank, chosen), kept_out
    taught = np.setdiff1d(np.flatnonzero(found.informative), apart).tolist()
    run.console.print(
        f"loop {this.number}: {len(found.prompts)} rows; {len(found.prompts) - len(apart) - len(taught)} do not tell "
        f"actions apart and teach GRPO nothing, {len(apart)} are kept for checking"
    )
    known, alarm = diagnostics.tables(game, found), ""
    if chosen.steps:
        check_rows(len(taught), chosen.prompts_per_step)
        # Without samples the first process learns, and the others read what it has learned.
        turns = processes.main_process_first() if chosen.estimator == "exact" else nullcontext()
        with timed(run, f"{at} GRPO"), turns:
            source = None
            if chosen.backend == "unsloth":
                source = Source(chosen.model, chosen.four_bit, chosen.campaigns, chosen.rules, chosen.reward)
            alarm = grpo(run, this, known, taught, chosen.plan, source, chosen.estimator)
        processes.wait_for_everyone()
    if processes.is_main_process:
        run.log.add(this.number, "check", 0, checked(known, apart, chosen, this.model, this.tokenizer))
    return alarm, {"rows": len(found.prompts), "informative": len(taught)}


def credited(run: Run, this: Loop, game: Campaigns, bank: Bank, chosen: Settings) -> Rows:
    """All rows, each action with its return-to-go; those in which the actions differ beyond chance are informative."""
    place = this.folder / "rows"
    found = kept(place, game)
    if found is None:
        successor = who_plays_on(run, this, game, bank, chosen)
        with run.console.status("return-to-go of every legal action"):
            found = collect.credited(this.number, game, bank, chosen.collection, successor)
        rows.save(place, found, game)
    return found


def improved(run: Run, this: Loop, game: Campaigns, bank: Bank, kept_out: list[int], chosen: Settings) -> Rows:
    """The rows kept out, and then those worth teaching once the model's stand-in was improved."""
    place = this.folder / "improved"
    found = kept(place, game)
    if found is None:
        _, who = who_plays_on(run, this, game, bank, chosen)
        with run.console.status("the stand-in is improved in the simulator"):
            found, told = collect.improved(this.number, game, bank, kept_out, chosen.collection, who)
        for i, report in enumerate(told, 1):
            run.log.add(this.number, "improved", i, report)
        run.console.print(
            f"loop {this.number}: the stand-in earns {told[-1]['stand_in']:+.2f}, and {told[-1]['improved']:+.2f} "
            f"after {len(told)} rounds of policy iteration"
        )
        rows.save(place, found, game)
    return found


def validate(run: Run, this: Loop, game: Campaigns, chosen: Settings, when: str) -> float:
    """Mean return in episodes of validation, `when` before the first loop (start) or after one; logged."""
    with timed(run, f"loop{this.number} {when}"):
        report = collect.validated(
            when, game, chosen.collection, chosen.validate_episodes, this.folder, this.model, this.tokenizer,
            run.console, this.teacher,
        )  # fmt: skip
    run.log.add(this.number, when, 0, report)
    score: float = report["mean_return"]
    at = "before" if when == "start" else "after"
    run.console.print(f"{at} loop {this.number}: mean return {score:+.2f} in {report['episodes']} validation episodes")
    return score


def divided(many: int, seed: int) -> tuple[list[int], np.ndarray]:
    """(rows kept apart for checking, on which nothing is trained; all others), drawn by the seed."""
    order = np.random.default_rng(seed).permutation(many)
    apart = settings.kept_apart(many)
    return order[:apart].tolist(), np.sort(order[apart:])


def kept(folder: Path, game: Campaigns) -> Rows | None:
    """The rows of a folder, if they are complete."""
    try:
        return rows.load(folder, game)
    except ValueError as error:
        cli.fail(str(error))


def who_plays_on(run: Run, this: Loop, game: Campaigns, bank: Bank, chosen: Settings) -> Teacher:
    """The policy that plays on in the futures of a loop's states."""
    if chosen.successor == "learned" and this.teacher:
        return this.teacher
    if chosen.successor != "student":
        return collect.SCRIPTED[chosen.successor]
    with run.console.status("a stand-in for the model"):
        found = collect.stand_in(
            this.number, game, bank, chosen.collection, this.model, this.tokenizer, this.teacher
        )  # fmt: skip
    run.log.add(this.number, "credit", 0, found.agreement)
    run.console.print(
        f"loop {this.number}: the model's stand-in is {found.agreement['distance']:.2f} from it (total variation), and "
        f"does the same in {found.agreement['same']:.0%} of {found.agreement['rows']} states"
    )
    return surrogate.POLICY, found.learned


def best(out: Path, start: Path | None) -> Path | None:
    """The adapter that did best in validation, of all loops and the one to begin from, if any; the later of equals.

    None when nothing was validated.
    """
    known: list[tuple[float, int, Path | None]] = []
    for done in out.glob("loop*/done.json"):
        loop, scores = int(done.parent.name.removeprefix("loop")), json.loads(done.read_text())
        if "start" in scores:
            known.append((scores["start"], -1, start))
        if "validation" in scores:
            known.append((scores["validation"], loop, done.parent / "adapter"))
    return max(known, key=lambda x: x[:2])[2] if known else None


def check_rows(many: int, prompts_per_step: int) -> None:
    """Raises ModelError when so many rows that teach something do not make one step."""
    if many < prompts_per_step:
        raise ModelError(
            f"GRPO cannot take a step: {many} rows tell actions apart, prompts_per_step = {prompts_per_step}; "
            "choose more rows or futures, a lower least_z, or fewer prompts_per_step, with --restart"
        )


def first_of(order: np.ndarray, acting: np.ndarray, many: int, share: float) -> np.ndarray:
    """The first `many` of the rows `order`; before others those `acting`, up to that share, as far as there are any."""
    wanted = order[acting][: round(share * many)]
    return np.concatenate([wanted, order[~np.isin(order, wanted)]])[:many]


class Examples(NamedTuple):
    """Answers to show a beginner."""

    chats: list[list[dict[str, str]]]
    answers: list[str]
    campaigns: list[int]  # of each


def shown_answers(game: Campaigns, found: Rows, order: np.ndarray, many: int) -> Examples:
    """At most `many` of the teacher's answers, at the first rows of `order` where they should be learned."""
    labels = rows.labels(found)
    which = order[labels[order] >= 0][:many]
    answers = [prompting.encode(int(labels[r]), rows.inventory_of(game, found, r)) for r in which]
    return Examples([rows.chat_of(game, found, r) for r in which], answers, found.bank.params_index[which].tolist())


def warm_up(run: Run, this: Loop, examples: Examples, how: warm.How) -> None:
    """Show the model answers."""
    counts = {v: sum(f'"{v}"' in text for text in examples.answers) for v in VERBS}
    run.console.print("warm start: " + ", ".join(f"{n} {v}" for v, n in counts.items() if n))
    pairs, pad = warm.pairs(this.tokenizer, examples.chats, examples.answers), this.tokenizer.pad_token_id
    with followed(run, this.number) as advance:
        warm.learn(this.model, pairs, examples.campaigns, this.folder / "warm", how, pad=pad, advance=advance)


def distil(run: Run, this: Loop, taught: warm.Lessons, how: warm.How, at_once: int) -> None:
    """Teach the model a teacher's probabilities of all legal answers, `at_once` states in a forward pass."""
    run.console.print(f"warm start: the teacher's probabilities at {len(taught.lessons)} states")
    folder = this.folder / "warm"
    with followed(run, this.number) as advance:
        warm.distil(
            this.model, taught.lessons, taught.campaigns, folder, how, whole=taught.whole, at_once=at_once,
            advance=advance,
        )  # fmt: skip


@contextmanager
def followed(run: Run, loop: int) -> Iterator[Callable[[int, int, float], None]]:
    """Log and show the steps of a warm start."""
    with cli.progress(quiet=run.console.quiet) as told:

        def advance(step: int, steps: int, loss: float) -> None:
            run.log.add(loop, "warm", step, {"loss": loss})
            told(f"loop {loop} warm start, step {step} of {steps}, loss {loss:.3f}")

        yield advance


def grpo(
    run: Run, this: Loop, known: Tables, taught: list[int], plan: Plan, source: Source | None, estimator: str
) -> str:
    """GRPO on the rows `taught`: why the alarm stopped it or ''. With a `source`, by Unsloth in another process."""
    model, folder, seed = this.model, this.folder / "grpo", this.seed

    def line(step: int, report: dict[str, Any]) -> None:
        run.log.add(this.number, "grpo", step, report)
        regret = "–" if report["regret"] is None else f"{report['regret']:.2f}"
        run.console.print(
            f"loop {this.number} GRPO {step}/{plan.steps}: reward {report['reward_mean']:+.2f}, regret {regret}, "
            f"valid {report['valid_rate']:.0%}"
        )

    if source:
        return unsloth_backend.optimise(model, taught, plan, source, folder, seed, line)
    if estimator == "exact":
        return exact.optimise(model, this.tokenizer, known, taught, plan, folder, seed, line)
    from grpo.learning import optimise

    return optimise.optimise(model, this.tokenizer, known, taught, plan, folder, seed, line)


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
    """Copy the adapter of a loop to its place, with a model card."""
    if adapter is None or (place / "README.md").exists():
        return
    with write.folder(place) as part:
        shutil.copytree(adapter, part, dirs_exist_ok=True)
        (part / "README.md").write_text(card, encoding="utf-8")
