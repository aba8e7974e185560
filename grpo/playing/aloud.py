"""A model that plays for who watches: its words, and how likely each legal answer was.

torch is imported only where a model is loaded here; one behind a server gives words alone.
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np

import prompting
from grpo.model.adapters import OWN, place
from grpo.playing import remote
from grpo.playing.choices import CONSTRAINED, EXACT
from grpo.playing.remote import RemoteError
from prompting import Inventory


class Said(NamedTuple):
    """An answer."""

    text: str
    chances: np.ndarray | None  # (A,) of `prompting.answers(inventory)`, float64; None where they cannot be known


# (a network, the first prompt of an episode) -> prompt -> what is said. Raises ModelError or RemoteError.
Begin = Callable[[Inventory, str], Callable[[str], Said]]


def players(args: Any) -> dict[str, Begin]:
    """Who plays, by name: a model, and beside it the same with its adapter. Raises ModelError or RemoteError.

    `args` has model, adapter, decode, max_new_tokens, offline, and for a model behind a server base_url and timeout.
    """
    return behind_server(args) if remote.is_remote(args.model) else here(args)


def here(args: Any) -> dict[str, Begin]:
    """A model of this machine; loaded once, with its adapter switched off for the bare one."""
    from grpo.model import decode, grammar, models, trie
    from grpo.playing import play

    loaded = models.load(args.model, args.adapter, offline=args.offline)
    model, tokenizer = loaded.model, loaded.tokenizer
    checked: set[Begin] = set()  # those of which `trie.check` is known to pass

    def beginning(switch: Callable[[], Any]) -> Begin:
        def begin(inventory: Inventory, opening: str) -> Callable[[str], Said]:
            def tokens(prompt: str) -> list[int]:
                return decode.chat_tokens(tokenizer, prompting.chat(prompt, inventory))

            answers, decoder, words = prompting.answers(inventory), decode.Decoder(model, tokenizer), None
            tree = trie.trie(tokenizer, answers)
            with switch():
                decoder.pin(tokens(opening))
                if begin not in checked:
                    trie.check(model, tokens(opening), tree)
                    checked.add(begin)
            if args.decode != EXACT:
                matcher = grammar.matcher(tokenizer, inventory) if args.decode == CONSTRAINED else None
                likely = play.likely_answers(tokenizer, [inventory])
                sampling = decode.Sampling(0.0, args.max_new_tokens, args.decode == CONSTRAINED)
                words = play.responder(decoder, sampling, inventory, matcher=matcher, likely=likely)

            def think(prompt: str) -> Said:
                with switch():
                    log_p = trie.weigh(decoder, tokens(prompt), tree)
                    text = words([prompt], [0], 0)[0] if words else answers[trie.pick(log_p)]
                return Said(text, np.exp(log_p))

            return think

        return begin

    if args.adapter is None:
        return {args.model: beginning(nullcontext)}
    adapter = OWN if args.adapter == place(OWN) else args.adapter.name
    return {args.model: beginning(model.disable_adapter), f"{args.model} + {adapter}": beginning(nullcontext)}


def behind_server(args: Any) -> dict[str, Begin]:
    """A model behind an OpenAI-compatible server."""

    def refuse(message: str) -> NoReturn:
        raise RemoteError(message)

    asking = dict(batch=1, retries=4, max_requests=None, temperature=0.0, seed=0)
    speaker = remote.load(SimpleNamespace(**(asking | vars(args))), refuse)

    def begin(inventory: Inventory, opening: str) -> Callable[[str], Said]:
        respond = speaker.respond_in(inventory, opening)
        return lambda prompt: Said(respond([prompt], [0], 0)[0], None)

    return {args.model: begin}
