"""The states of a loop, from the teacher's play or the model's own, and what every legal action is worth there."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import prompting
from grpo.model import decode, grammar, trie
from grpo.model.errors import ModelError
from grpo.playing import play
from grpo.playing.choices import CONSTRAINED, EXACT
from grpo.playing.speech import Respond
from grpo.rows import bank as banks
from grpo.rows import rows, surrogate, worth_teaching
from grpo.rows.bank import Bank
from grpo.rows.rows import Campaigns, Rows, Teacher
from grpo.training.settings import Collection
from jaxsim.policies import BASELINES, DEFAULT_EVIDENCE, EVIDENCE
from jaxsim.recurrent import Learned
from jaxsim.rollouts import rollout_many
from jaxsim_soc import cli, json_lines

STAND_IN = 512  # states, at most, at which a model is asked for the probabilities that its stand-in is fitted to
PLAYED = 256  # episodes per campaign, of a stand-in before and after it is improved
VALIDATION = 0x76616C69  # mixed into the seed of the episodes that decide which loop's adapter is kept


def states(
    loop: int,
    game: Campaigns,
    wanted: Collection,
    folder: Path,
    model: Any,
    tokenizer: Any,
    console: Console,
    who: Teacher | None,
) -> Bank:
    """The loop's states: those in its folder, or new ones, of the play of `who`, None for the model itself."""
    path = folder / "rows" / "bank.npz"
    if path.exists():
        try:
            return banks.load(path, game.dims, game.params)
        except ValueError as error:
            cli.fail(str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    if who:
        named = "a heuristic that contains what severe alerts name" if who is rows.TEACHER else "a learned policy"
        console.print(f"loop {loop}: states from the play of the teacher, {named}")
        bank = rows.from_teacher(game, who, max(wanted.rows, wanted.warm_rows), seed_of(loop, wanted))
    else:
        bank = own_play(loop, game, wanted, folder, model, tokenizer, console)
    banks.save(path, bank, game.dims, game.params)
    return bank


def seed_of(loop: int, wanted: Collection) -> int:
    """Of a loop's episodes and futures."""
    return wanted.seed + 1000 * (loop + 1)


def credited(loop: int, game: Campaigns, bank: Bank, wanted: Collection, successor: Teacher) -> Rows:
    """The rows of the loop's states, in whose futures the `successor` plays on."""
    return rows.credited(
        game, bank, successor, futures=wanted.futures, least_z=wanted.least_z, seed=seed_of(loop, wanted),
        layout=wanted.layout,
    )  # fmt: skip


def improved(
    loop: int, game: Campaigns, bank: Bank, apart: list[int], wanted: Collection, who: Learned
) -> tuple[Rows, list[dict[str, float]]]:
    """The rows that the model is to be taught, from what becomes of its stand-in `who`; what is to be said of that.

    The rows kept `apart` come first. Of each round, and with the last one what the stand-in earns before and after.
    """
    seed = seed_of(loop, wanted)
    found, better = worth_teaching.improved(
        game, bank, apart, who, rounds=wanted.critic_rounds, states=wanted.critic_states, futures=wanted.futures,
        eta=wanted.eta, many=wanted.taught, seed=seed, layout=wanted.layout,
    )  # fmt: skip
    told = better.rounds
    for name, learned in (("stand_in", who), ("improved", better.learned)):
        returns = _returns(game, (surrogate.POLICY, learned), PLAYED, seed ^ VALIDATION)
        told[-1] |= {name: float(returns.mean()), f"{name}_se": float(returns.std(ddof=1) / np.sqrt(returns.size))}
    return found, told


SCRIPTED: dict[str, Teacher] = {"evidence": (EVIDENCE, DEFAULT_EVIDENCE), "waiting": BASELINES["monitor"]}


def stand_in(
    loop: int,
    game: Campaigns,
    bank: Bank,
    wanted: Collection,
    model: Any,
    tokenizer: Any,
    teacher: Teacher | None,
) -> surrogate.Surrogate:
    """A policy that acts as the model does, fitted at the states of a bank; it begins as the teacher, if any.

    Raises ModelError when there are too few states, and as `weighed` does.
    """
    if (many := len(bank.params_index)) < surrogate.LEAST:
        raise ModelError(
            f"successor = student: {many} states are too few to fit a stand-in to, which takes {surrogate.LEAST}; "
            "choose more rows or collect_episodes, or another successor, with --restart"
        )
    if many > STAND_IN:
        some = np.random.default_rng(seed_of(loop, wanted)).choice(many, STAND_IN, replace=False)
        bank = banks.take(bank, np.sort(some))
    chances = weighed(game, bank, rows.prompts_of(game, bank, wanted.layout), model, tokenizer)
    start = teacher[1].weights if teacher else None
    return surrogate.fit(game.dims, game.params, bank, chances, seed_of(loop, wanted), start)


def weighed(game: Campaigns, bank: Bank, prompts: list[str], model: Any, tokenizer: Any) -> np.ndarray:
    """(R, A) float64, a model's probability of every legal action at each row, of these alone.

    Raises ModelError when the model cannot weigh all answers at once.
    """
    decoder = decode.Decoder(model, tokenizer)
    found = np.zeros((len(prompts), game.dims.actions))
    for p, inventory in enumerate(game.inventories):
        mine = np.flatnonzero(bank.params_index == p)
        if not len(mine):
            continue
        chats = [prompting.chat(prompts[r], inventory) for r in mine]
        tokens = [decode.chat_tokens(tokenizer, chat) for chat in chats]
        tree = trie.trie(tokenizer, prompting.answers(inventory))
        trie.check(decoder.model, tokens[0], tree)
        decoder.pin(tokens[0])
        log_p = trie.weigh_all(decoder, tokens, tree)
        p_of = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        found[np.ix_(mine, np.asarray([*inventory.actions.values()]))] = p_of / p_of.sum(axis=1, keepdims=True)
    return found


def own_play(
    loop: int, game: Campaigns, wanted: Collection, folder: Path, model: Any, tokenizer: Any, console: Console
) -> Bank:
    """States of the model's own play at the settings' temperature; every tick is kept, and not played again."""
    seed = seed_of(loop, wanted)
    speak = respond(game, wanted, model, tokenizer, wanted.temperature, seed)
    bank, _ = _play(game, wanted, speak, folder / "play", wanted.collect_episodes, seed, f"loop {loop}", console)
    return bank


def validated(
    when: str, game: Campaigns, wanted: Collection, episodes: int, folder: Path, model: Any, tokenizer: Any,
    console: Console, teacher: Teacher | None,
) -> dict[str, Any]:  # fmt: skip
    """Mean return of the model's likeliest answers, over all and of each campaign, in the same episodes for all loops.

    Beside it that of waiting and of the teacher. Nothing is trained on them, and no report is made of them.
    """
    speak = respond(game, wanted, model, tokenizer, 0.0, 0)
    seed = wanted.seed ^ VALIDATION
    _, played = _play(game, wanted, speak, folder / when, episodes, seed, when, console)
    returns = np.stack([np.asarray(x.stats.episode_return) for x in played])
    others = {"monitor": SCRIPTED["waiting"]} | ({"teacher": teacher} if teacher else {})
    ahead = {name: returns - _returns(game, who, episodes, seed) for name, who in others.items()}
    return {
        "episodes": returns.size,
        "mean_return": float(returns.mean()),
        **{f"over_{name}": float(x.mean()) for name, x in ahead.items()},
        **{f"over_{name}_se": float(x.std(ddof=1) / np.sqrt(x.size)) for name, x in ahead.items()},
        **{name: float(x.mean()) for name, x in zip(game.names, returns, strict=True)},
    }


def _returns(game: Campaigns, who: Teacher, episodes: int, seed: int) -> np.ndarray:
    """(P, episodes) returns of a policy in the episodes that a model plays with the same seed."""
    one = jax.tree.map(lambda x: np.asarray(x)[None], who[1])
    keys = [rows.episodes_of(p, episodes, seed) for p in range(len(game.names))]
    played = [rollout_many(game.env, game.of(p), who[0], one, keys[p])[0] for p in range(len(keys))]
    return np.stack([np.asarray(stats.episode_return)[0] for stats in played])


Speak = tuple[Callable[[int], Respond], Callable[[int, str], None]]


def respond(game: Campaigns, wanted: Collection, model: Any, tokenizer: Any, temperature: float, seed: int) -> Speak:
    """(a campaign's `Respond`, what to do with the first prompt of its play)."""
    decoder = decode.Decoder(model, tokenizer)
    sampling = decode.Sampling(temperature, wanted.max_completion, settle_ties=False)

    def of(p: int) -> Respond:
        inventory = game.inventories[p]
        if wanted.decode == EXACT:
            return play.chooser(decoder, inventory, temperature=temperature, seed=seed + p)
        rules = grammar.matcher(tokenizer, inventory) if wanted.decode == CONSTRAINED else None
        likely = play.likely_answers(tokenizer, [inventory])
        return play.responder(decoder, sampling, inventory, matcher=rules, seed=seed + p, likely=likely)

    def opening(p: int, prompt: str) -> None:
        decoder.pin(first := decode.chat_tokens(tokenizer, prompting.chat(prompt, game.inventories[p])))
        if wanted.decode == EXACT:
            trie.check(model, first, trie.trie(tokenizer, prompting.answers(game.inventories[p])))

    return of, opening


def _play(
    game: Campaigns, wanted: Collection, speak: Speak, stem: Path, episodes: int, seed: int, what: str, console: Console
) -> tuple[Bank, list[play.Played]]:
    """At most `wanted.rows` states of the model's play, and that play, kept tick by tick in files called `stem`-…."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}-{name}.jsonl") for name in game.names]
    pasts = [turns(path, episodes) for path in files]
    ticks = int(np.max(game.params.scenario.horizon)) * len(game.names)
    with cli.progress(ticks, done=sum(map(len, pasts)), quiet=console.quiet) as step:

        def advance(p: int, turn: play.Turn) -> None:
            json_lines.append(files[p], turn._asdict())
            step(f"{what}: own play")

        return rows.from_model(
            game, speak[0], episodes, wanted.rows, seed, layout=wanted.layout, asking=wanted.asking, pasts=pasts,
            opening=speak[1], advance=advance,
        )  # fmt: skip


def turns(path: Path, episodes: int) -> list[play.Turn]:
    """The turns of an interrupted play; a last line that was cut off is dropped."""
    try:
        return [play.Turn(**line) for line in json_lines.resume(path, partial(play.is_turn, episodes))]
    except ValueError as error:
        cli.fail(str(error))
