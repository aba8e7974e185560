"""A model that answers in an evaluation, and its play, which goes on where it stopped."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import prompting
from grpo.model import models
from grpo.model.errors import ModelError
from grpo.playing import play
from grpo.playing.campaign import Campaign
from grpo.playing.choices import CONSTRAINED, EXACT, FREE
from grpo.playing.folder import read_part
from grpo.playing.play import Played, Turn
from grpo.playing.speech import Respond, Speaker
from jaxsim_soc import cli, json_lines
from prompting import Inventory


def load(args: Any, adapter: Path | None) -> Speaker:
    """The model. Fails when it cannot be loaded."""
    import torch

    from grpo.model import decode, grammar, trie

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        loaded = models.load(
            args.model, adapter, four_bit=args.four_bit, dtype=args.dtype, device=args.device, offline=args.offline
        )
    except ModelError as error:
        cli.fail(f"--model: {error}")
    decoder = decode.Decoder(loaded.model, loaded.tokenizer)
    # Free text has a close call every few words: settled one by one in bfloat16, it would take ten times as long.
    settle = args.decode == CONSTRAINED or (args.decode == FREE and loaded.about["dtype"] == "float32")
    sampling = decode.Sampling(args.temperature, args.max_new_tokens, settle)

    def respond_in(inventory: Inventory, opening: str) -> Respond:
        if not settle:  # nothing that was said at another tick may matter, or a resumed run would differ
            decoder.pin(first := decode.chat_tokens(loaded.tokenizer, prompting.chat(opening, inventory)))
        if args.decode == EXACT:
            try:
                trie.check(loaded.model, first, trie.trie(loaded.tokenizer, prompting.answers(inventory)))
            except ModelError as error:
                cli.fail(f"--decode {EXACT}: {error}")
            return play.chooser(decoder, inventory, temperature=args.temperature, seed=args.seed)
        rules = grammar.matcher(loaded.tokenizer, inventory) if args.decode == CONSTRAINED else None
        likely = play.likely_answers(loaded.tokenizer, [inventory])
        return play.responder(
            decoder, sampling, inventory, matcher=rules, seed=args.seed, batch=args.batch, likely=likely
        )

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, loaded.tokenizer(list(texts), add_special_tokens=False)["input_ids"])) if texts else 0

    return Speaker(respond_in, count, loaded.about)


def play_model(
    args: Any,
    campaign: Campaign,
    name: str,
    speak: Callable[[], Speaker],
    advance: Callable[[str], None],
    way: str = "",
    shuffle: tuple[str, ...] = (),
) -> tuple[Played, float, int]:
    """Play or go on playing: what was played, seconds of answering, tokens said. Each tick is kept once it is done.

    `way` tells apart what one model plays in one campaign in several ways.
    """
    label = f"{campaign.scenario.id}-{name}{way and f'-{way}'}"
    path = args.out / "parts" / f"{label}.jsonl"
    past = read_part(path, len(campaign.keys))
    spent = {turn["tick"]: (turn["seconds"], turn["tokens"]) for turn in past}

    opening: list[str] = []

    @cache
    def answers() -> Respond:
        return speak().respond_in(campaign.inventory, opening[0])

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> Sequence[str]:
        speaker, answer = speak(), answers()
        began = time.perf_counter()
        texts = answer(prompts, episodes, tick)
        spent[tick] = (time.perf_counter() - began, speaker.count(texts))
        return texts

    def keep(turn: Turn) -> None:
        seconds, tokens = spent.get(turn.tick, (0.0, 0))  # nothing where nobody was asked
        json_lines.append(path, {**turn._asdict(), "seconds": seconds, "tokens": tokens})
        advance(f"{label}, tick {turn.tick + 1}")

    # fmt: off
    played = play.play(
        campaign.env, campaign.params, campaign.inventory, campaign.keys, respond, layout=args.layout,
        asking=args.asking, shuffle=shuffle, opening=opening.append, advance=keep,
        past=[Turn(t["tick"], t["texts"]) for t in past],
    )
    # fmt: on
    return played, sum(seconds for seconds, _ in spent.values()), sum(tokens for _, tokens in spent.values())


def load_once(
    loaded: list[Speaker], load: Callable[[], Speaker], about: Path, advance: Callable[[str], None]
) -> Speaker:
    """The model, loaded when something is first to be asked: what was said before needs none."""
    if not loaded:
        advance("loading the model")
        loaded.append(load())
        cli.write_json(about, loaded[0].about)
    return loaded[0]
