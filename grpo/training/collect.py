"""The rows of a loop: states from the teacher's play or the model's own, and what every legal action is worth there."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import prompting
from grpo.model import decode, grammar, trie
from grpo.playing import play
from grpo.playing.choices import CONSTRAINED, EXACT
from grpo.rows import rows
from grpo.rows.bank import Bank
from grpo.rows.rows import Campaigns, Rows, Teacher
from grpo.training.settings import Collection
from jaxsim_soc import cli, json_lines


def collected(
    loop: int,
    game: Campaigns,
    wanted: Collection,
    folder: Path,
    model: Any,
    tokenizer: Any,
    console: Console,
    teacher: Teacher | None = None,
) -> Rows:
    """The loop's rows: those in its folder, or new ones."""
    try:
        kept = rows.load(folder / "rows", game)
    except ValueError as error:
        cli.fail(str(error))
    if kept is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    seed = wanted.seed + 1000 * (loop + 1)
    if loop == 0:
        who = "a learned policy" if teacher else "a heuristic that contains what severe alerts name"
        console.print(f"loop 0: states from the play of the teacher, {who}")
        bank = rows.from_teacher(game, teacher or rows.TEACHER, max(wanted.rows, wanted.warm_rows), seed)
    else:
        bank = own_play(loop, game, wanted, folder, model, tokenizer, seed, console)
    with console.status("return-to-go of every legal action"):
        found = rows.credited(
            game, bank, futures=wanted.futures, least_z=wanted.least_z, seed=seed, layout=wanted.layout
        )
    rows.save(folder / "rows", found, game)
    return found


def own_play(
    loop: int,
    game: Campaigns,
    wanted: Collection,
    folder: Path,
    model: Any,
    tokenizer: Any,
    seed: int,
    console: Console,
) -> Bank:
    """States of the model's own play at the settings' temperature; every tick is kept, and not played again."""
    decoder = decode.Decoder(model, tokenizer)
    sampling = decode.Sampling(wanted.temperature, wanted.max_completion)
    files = [folder / f"play-{name}.jsonl" for name in game.names]
    pasts = [turns(path, wanted.collect_episodes) for path in files]

    def respond(p: int) -> play.Respond:
        inventory = game.inventories[p]
        if wanted.decode == EXACT:
            return play.chooser(decoder, inventory, temperature=wanted.temperature, seed=seed + p)
        rules = grammar.matcher(tokenizer, inventory) if wanted.decode == CONSTRAINED else None
        likely = play.likely_answers(tokenizer, [inventory])
        return play.responder(decoder, sampling, inventory, matcher=rules, seed=seed + p, likely=likely)

    def opening(p: int, prompt: str) -> None:
        decoder.pin(first := decode.chat_tokens(tokenizer, prompting.chat(prompt, game.inventories[p])))
        if wanted.decode == EXACT:
            trie.check(model, first, trie.trie(tokenizer, prompting.answers(game.inventories[p])))

    ticks = int(np.max(game.params.scenario.horizon)) * len(game.names)
    with cli.progress(ticks, done=sum(map(len, pasts)), quiet=console.quiet) as step:

        def advance(p: int, turn: play.Turn) -> None:
            json_lines.append(files[p], turn._asdict())
            step(f"loop {loop}: own play")

        bank, _ = rows.from_model(
            game, respond, wanted.collect_episodes, wanted.rows, seed,
            layout=wanted.layout, asking=wanted.asking, pasts=pasts, opening=opening, advance=advance,
        )  # fmt: skip
    return bank


def turns(path: Path, episodes: int) -> list[play.Turn]:
    """The turns of an interrupted play; a last line that was cut off is dropped."""
    try:
        return [play.Turn(**line) for line in json_lines.resume(path, partial(play.is_turn, episodes))]
    except ValueError as error:
        cli.fail(str(error))
