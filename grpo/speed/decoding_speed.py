"""Decisions a second of a language model: batched, against one at a time, side by side in one run.

    jaxsim-soc decoding-speed --model embedded --batch 32

The prompts are those of `--batch` episodes of random play, 25 ticks in. "One at a time" is `generate` of transformers
for one prompt after the other, which encodes each whole prompt again. "Exact" is the likeliest of all legal answers:
"weighed" reads each of them to its end, "chosen" only those that may still win; both give the same. Rates are medians
over `--repeats` rounds, each of which measures every way in turn; the one-at-a-time ways are timed on a few of the
prompts. Loading and warming up are left out.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import prompting
from grpo.model import adapters, decode, grammar, models, trie
from grpo.model.errors import ModelError
from jaxsim import BASELINES, env, make, one_episode
from jaxsim.env import observe
from jaxsim.noise import Noise
from jaxsim_soc import cli

TICK = 25
FEW = 4  # prompts that a one-at-a-time way is timed on


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("--model", default="embedded", metavar="NAME", help="embedded, a folder, or a hub id")
    p.add_argument("--adapter", type=adapters.folder, metavar="DIR", help="of an adapter, or default, the project's")
    p.add_argument("--dtype", default="auto", help="of the weights (default: auto)")
    p.add_argument("--batch", type=cli.integer(2, 1024), default=32, metavar="N", help="prompts (default: 32)")
    p.add_argument("--tokens", type=cli.integer(8, 512), default=24, metavar="N", help="of a free answer (default: 24)")
    p.add_argument("--repeats", type=cli.integer(1, 100), default=3, metavar="N", help="rounds (default: 3)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, measure, print."""
    args = parser().parse_args(argv)
    try:
        loaded = models.load(args.model, args.adapter, dtype=args.dtype)
    except ModelError as error:
        cli.fail(f"--model: {error}")
    prompts, inventory = states(args.batch)
    ids = [decode.chat_tokens(loaded.tokenizer, prompting.chat(text, inventory)) for text in prompts]
    ways = ways_of(loaded, ids, inventory, args.tokens)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way, many in ways.values():
        way(min(many, 2))  # warm up
    for _ in range(args.repeats):
        for name, (way, many) in ways.items():
            began = time.perf_counter()
            way(many)
            rates[name].append(many / (time.perf_counter() - began))
    about = loaded.about
    title = (
        f"{about['name']}{' with an adapter' * bool(args.adapter)}, {about['dtype']}, "
        f"{torch.get_num_threads()} threads, batch {args.batch}, "
        f"prompts of {np.mean([len(one) for one in ids]):.0f} tokens"
    )
    table = Table(title=title, title_justify="left")
    for head in ("way", "decisions/s", "× generate"):
        table.add_column(head, justify="left" if head == "way" else "right")
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    for name, rate in middle.items():
        table.add_row(name, f"{rate:.2f}", f"{rate / middle['free, generate, one at a time']:.1f}")
    Console(width=100).print(table)


def states(many: int) -> tuple[list[str], prompting.Inventory]:
    """The prompts of `many` episodes of random play at TICK."""
    from jaxsim import load_scenario

    scenario = load_scenario("supply_chain_token_drift")
    game, params = make(scenario)
    policy, parameters = BASELINES["random"]

    def episode(key: jax.Array) -> Any:
        def tick(state: Any, _: None) -> Any:
            block = one_episode.tick_noise(key, state.tick + 1)
            action, _ = policy.act(
                game.dims, parameters, (), observe(game.dims, state, params), block[Noise.POLICY_VERB :]
            )
            return env.transition(game.dims, state, action, block, params)[0], None

        state, _ = jax.lax.scan(tick, one_episode.start(game.dims, key, params), length=TICK)
        return observe(game.dims, state, params)

    obs = jax.jit(jax.vmap(episode))(one_episode.episode_keys(jax.random.key(0), many))
    inventory = prompting.inventory(scenario, game.dims)
    return prompting.render(jax.tree.map(np.asarray, obs), inventory), inventory


def ways_of(
    loaded: models.Loaded, ids: list[list[int]], inventory: prompting.Inventory, tokens: int
) -> dict[str, tuple[Callable[[int], None], int]]:
    """Each way to answer the first n prompts, given as token ids, and how many it is timed on."""
    decoder = decode.Decoder(loaded.model, loaded.tokenizer)
    free, bound = decode.Sampling(0.0, tokens, False), decode.Sampling(0.0, tokens, True)
    rules = grammar.matcher(loaded.tokenizer, inventory)
    answers = prompting.answers(inventory)
    tree, stem = trie.trie(loaded.tokenizer, answers), trie.stem(loaded.tokenizer, answers)

    def generate(many: int) -> None:
        for one in ids[:many]:
            given = torch.tensor([one], device=loaded.model.device)
            with torch.inference_mode():
                loaded.model.generate(
                    given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False
                )

    def batched(many: int) -> None:
        decode.decode(decoder, ids[:many], free)

    def with_grammar(many: int) -> None:
        decode.decode(decoder, ids[:many], bound, [rules.deep_copy() for _ in ids[:many]])

    def with_grammar_alone(many: int) -> None:
        for one in ids[:many]:
            decoder.forget()
            decode.decode(decoder, [one], bound, [rules.deep_copy()])

    def weighed(many: int) -> None:
        decoder.pin(ids[0])
        for one in ids[:many]:
            trie.pick(trie.weigh(decoder, one, tree))
        decoder.forget()

    def chosen(many: int) -> None:
        decoder.pin(ids[0])
        for one in ids[:many]:
            trie.choose(decoder, one, stem)
        decoder.forget()

    return {
        "free, generate, one at a time": (generate, FEW),
        "free, batched": (batched, len(ids)),
        "with the grammar, one at a time": (with_grammar_alone, FEW),
        "with the grammar, batched": (with_grammar, len(ids)),
        "exact, weighed": (weighed, len(ids)),
        "exact, chosen": (chosen, len(ids)),
    }
