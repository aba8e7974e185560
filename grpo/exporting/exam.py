"""Whether two models are the same: states of random play, and what each does in them. Reads, and writes nothing."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import prompting
import scenarios
from grpo.model import decode, folders, grammar
from grpo.playing import play
from grpo.rows import bank as banks
from grpo.rows import rows
from jaxsim.policies import BASELINES

FAR = 0.05  # share that no tensor is off by, even in 8 bits; one in the wrong place is off by more than 1
SAID = decode.Sampling(max_new_tokens=40)  # as in the evaluation


class Exam(NamedTuple):
    """States of random play, by campaign."""

    inventories: tuple[prompting.Inventory, ...]
    prompts: list[list[str]]


class Answers(NamedTuple):
    """What a model does in the states of an exam."""

    texts: list[str]
    actions: list[int]


def states(many: int) -> Exam:
    """States of random play on the published campaigns, the same each time."""
    game = rows.campaigns(scenarios.names("published"), "hardened", "operational")
    each = math.ceil(many / len(game.names))
    every = banks.collect_heuristic(game.env, game.params, *BASELINES["random"], jax.random.key(0), each)
    total = len(every.params_index)
    chosen = banks.take(every, np.unique(np.linspace(0, total - 1, min(many, total)).round().astype(int)))
    texts = rows.prompts_of(game, chosen, "compact")
    campaign = np.asarray(chosen.params_index).tolist()
    prompts = [[text for text, p in zip(texts, campaign, strict=True) if p == q] for q in range(len(game.names))]
    return Exam(game.inventories, prompts)


def examine(
    answer: Callable[[Sequence[str], prompting.Inventory, bool], Sequence[str]], states: Exam
) -> dict[str, Answers]:
    """What is answered, free and bound by the grammar."""
    found = {}
    for way, bound in (("constrained", True), ("free", False)):
        texts: list[str] = []
        actions: list[int] = []
        for inventory, prompts in zip(states.inventories, states.prompts, strict=True):
            said = answer(prompts, inventory, bound) if prompts else []
            texts += said
            actions += [int(prompting.parse(text, inventory).action) for text in said]
        found[way] = Answers(texts, actions)
    return found


def answering(
    model: Any, tokenizer: Any, batch: int
) -> Callable[[Sequence[str], prompting.Inventory, bool], Sequence[str]]:
    """A model's greedy answers."""
    decoder = decode.Decoder(model, tokenizer)

    def answer(prompts: Sequence[str], inventory: prompting.Inventory, bound: bool) -> Sequence[str]:
        matcher = grammar.matcher(tokenizer, inventory) if bound else None
        return play.responder(decoder, SAID, inventory, matcher=matcher, batch=batch)(prompts, range(len(prompts)), 0)

    return answer


def agreement(name: str, found: dict[str, Answers], wanted: dict[str, Answers]) -> dict[str, Any]:
    """The shares of states in which a model does, and says to the letter, what is wanted."""
    row: dict[str, Any] = {"what": name}
    for way, one in found.items():
        for what in ("actions", "texts"):
            pairs = list(zip(getattr(one, what), getattr(wanted[way], what), strict=True))
            row[f"{way}_{what}"] = sum(a == b for a, b in pairs) / len(pairs)
    return row


def wrong(row: dict[str, Any]) -> str:
    """What is wrong with a model that was compared; '' when it may be given to others."""
    if row["must_agree"] and min(row["constrained_actions"], row["free_actions"]) < 1:
        return "does not do what base and adapter do: the adapter changes something that cannot be merged"
    if not row.get("weights_off", 0) <= FAR:  # NaN as well
        return f"holds other weights than the merged model: one is off by {row['weights_off']:.0%}"
    return ""


def weights_off(model: Any, folder: Path) -> float:
    """How far a model's weights are from those in a model folder: the largest share that a tensor is off by."""
    from safetensors import safe_open

    held = model.state_dict()
    worst = 0.0
    for file in folders.check_folder(folder, str(folder)):
        with safe_open(file, framework="pt") as kept:
            for name in kept.keys():  # noqa: SIM118
                wanted, one = kept.get_tensor(name).float(), held[name].float().cpu()
                size = float(wanted.norm())
                worst = max(worst, float((one - wanted).norm()) / size if size else float(one.norm()))
    return worst


def chat_texts(tokenizer: Any, states: Exam) -> list[str]:
    """What a model is given in each state."""
    each = zip(states.inventories, states.prompts, strict=True)
    return [decode.chat_text(tokenizer, prompting.chat(text, inventory)) for inventory, own in each for text in own]


def same_tokens(tokenize: Callable[[str], Sequence[int]], tokenizer: Any, states: Exam) -> float:
    """The share of the exam's prompts that are cut into the tokens that the tokenizer cuts them into."""
    same = [list(tokenize(text)) == decode.token_ids(tokenizer, text) for text in chat_texts(tokenizer, states)]
    return sum(same) / len(same)
