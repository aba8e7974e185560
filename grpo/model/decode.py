"""Batched decoding: prompts -> completions, with a KV cache, a shared prefix encoded once, and optionally a grammar.

The plain `generate` of transformers has no room for three things that make the difference here: the prompts of a
tick start alike (system prompt, network), a grammar forces most of the tokens of an answer, which then need no
decoding step of their own, and a row must not depend on its neighbours.

Without a grammar, answers that are likely serve as drafts: what all that still fit continue with is fed along, and kept
as far as the model would have said it (speculative decoding, Leviathan et al. 2023, with a list for a draft model).

Greedy answers do not depend on the batch: where the two likeliest tokens are closer than the arithmetic of a batch is
exact, the row is computed again alone, without a cache. Sampled answers draw from a generator of each row's own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.cache_utils import Cache

from grpo.model import attention

# Logits of one row in different batches differ by less than this; closer calls are made by the row alone.
TIE = {torch.float32: 2e-3, torch.bfloat16: 0.26, torch.float16: 0.1}
AT_ONCE = 3200  # tokens of a forward pass: what larger ones compute leaves a CPU's caches
SLACK = 48  # tokens: a kept prefix that is shorter than the common one by no more than this is used again


class Sampling(NamedTuple):
    """How to choose tokens."""

    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int = 40
    settle_ties: bool = True  # greedy only


class Completion(NamedTuple):
    """One answer."""

    text: str
    tokens: list[int]  # without the end token
    steps: int  # tokens that were chosen; the grammar forced the others
    ended: bool  # with an end token or a complete sentence of the grammar, not cut off


class Row(NamedTuple):
    """A prompt on its way."""

    prompt: list[int]
    tokens: list[int]  # of the answer so far
    matcher: Any  # llguidance.LLMatcher or None
    rng: np.random.Generator | None


class Decoder:
    """A model, its tokenizer, and the encoded prefix of the last prompts. The only state is that cache."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.ends = end_tokens(model, tokenizer)
        self.forget()

    def forget(self) -> None:
        """Drop the encoded prefix; to be called when the weights have changed."""
        self.prefix: list[int] = []
        self.encoded: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and values of each layer, batch 1
        self.pinned = False

    def pin(self, prompt: list[int]) -> None:
        """Encode a prompt (token ids). Until another is pinned, or it is forgotten, what later prompts share with it is
        used and nothing else is kept, so that no answer depends on what was asked before.
        """
        if not (self.pinned and self.prefix == prompt):
            _encode(self, prompt)
            self.pinned = True


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(int(e) for e in (*ends, tokenizer.eos_token_id) if e is not None)


def chat_text(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A chat in the model's template, up to where the assistant speaks."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens and no others."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def chat_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """`chat_text` as token ids."""
    return token_ids(tokenizer, chat_text(tokenizer, messages))


@torch.inference_mode()
def decode(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    sampling: Sampling = Sampling(),  # noqa: B008
    matchers: Sequence[Any] | None = None,
    seeds: Sequence[Sequence[int]] | None = None,
    likely: Sequence[list[int]] = (),
) -> list[Completion]:
    """One completion a prompt (token ids). With `matchers`, one llguidance matcher a row, answers follow the grammar.

    `seeds`: for sampling, integers that a row's own generator is made of. `likely`: answers, as token ids without an
    end, that save time where they are what the model says, and change nothing where they are not. Raises ValueError
    when seeds are missing, when a prompt is empty, or when a matcher has failed.
    """
    if not prompts:
        return []
    if not all(prompts):
        raise ValueError(f"prompt {[*map(bool, prompts)].index(False)} is empty; give at least one token")
    if sampling.temperature > 0 and seeds is None:
        raise ValueError("temperature is above 0, but no seeds were given; give one a prompt")
    rows = [
        Row(
            prompt,
            [],
            matchers[i] if matchers else None,
            np.random.default_rng(list(seeds[i])) if sampling.temperature > 0 and seeds else None,
        )
        for i, prompt in enumerate(prompts)
    ]
    with attention.packed(decoder.model):
        done, steps = _answer(decoder, rows, sampling, likely)
    return [
        Completion(_text(decoder, row.tokens), row.tokens, n, ended)
        for row, n, ended in zip(rows, steps, done, strict=True)
    ]


def _answer(
    decoder: Decoder, rows: list[Row], sampling: Sampling, likely: Sequence[list[int]]
) -> tuple[list[bool], list[int]]:
    """Write the rows' tokens; returns of each row whether it ended, and how many tokens were chosen."""
    done, steps = [_force(row, sampling) for row in rows], [0] * len(rows)
    live = [i for i, row in enumerate(rows) if not done[i] and len(row.tokens) < sampling.max_new_tokens]
    if not live:
        return done, steps
    prefix = encode_prefix(decoder, [rows[i].prompt for i in live])
    device = decoder.model.device
    longest = max(len(rows[i].prompt) for i in live)
    cache = begun(decoder, prefix, len(live), longest + sampling.max_new_tokens)
    mask = torch.ones((len(live), prefix), dtype=torch.long, device=device)
    place = torch.full((len(live), 1), prefix, device=device)  # of each row's next token
    chunks = [rows[i].prompt[prefix:] + rows[i].tokens for i in live]
    while live:
        drafts = [_draft(rows[i], likely, sampling) for i in live]
        logits, mask, place = _feed(decoder, cache, chunks, drafts, mask, place)
        chunks, stay = [], []
        for k, i in enumerate(live):
            for j in range(len(drafts[k]) + 1):
                chunk = _choose(decoder, rows[i], logits[k, j - len(drafts[k]) - 1], sampling)
                steps[i] += 1
                if chunk != drafts[k][j : j + 1]:
                    break
            if chunk and len(rows[i].tokens) < sampling.max_new_tokens:
                chunks.append(chunk)
                stay.append(k)
                if wrong := len(drafts[k]) - j:  # what was fed in vain is not looked at again
                    mask[k, -wrong:] = 0
                    place[k] -= wrong
            else:
                done[i] = not chunk
        if stay and len(stay) < len(live):
            left = torch.tensor(stay, device=device)
            cache.batch_select_indices(left)
            mask, place = mask[left], place[left]
        live = [live[k] for k in stay]
    return done, steps


def _text(decoder: Decoder, tokens: list[int]) -> str:
    """What tokens say, to the letter."""
    text: str = decoder.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The longest common prefix, at least one token shorter than every prompt."""
    low, high = min(prompts), max(prompts)
    n = min(len(p) for p in prompts) - 1
    return low[: next((i for i in range(n) if low[i] != high[i]), n)]


def encode_prefix(decoder: Decoder, prompts: Sequence[list[int]]) -> int:
    """Length of the encoded prefix that these prompts may use; encodes one when the kept one will not do."""
    common = common_prefix(prompts)
    shared = next((i for i, (a, b) in enumerate(zip(common, decoder.prefix, strict=False)) if a != b), None)
    usable = min(len(common), len(decoder.prefix)) if shared is None else shared
    if decoder.pinned or (usable and usable + SLACK >= len(common)):
        return usable
    if common:
        _encode(decoder, common)
    return len(common)


@torch.inference_mode()
def _encode(decoder: Decoder, tokens: list[int]) -> None:
    cache = attention.room(decoder.model.config, 1, len(tokens))
    ids = torch.tensor([tokens], device=decoder.model.device)
    with attention.packed(decoder.model):
        decoder.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = cache.layers
    decoder.prefix, decoder.encoded = tokens, [(layer.keys, layer.values) for layer in layers]


def begun(decoder: Decoder, length: int, rows: int, most: int) -> Cache:
    """A cache for `rows` rows of some `most` tokens that begins with the encoded prefix, cut to `length`."""
    cache = attention.room(decoder.model.config, rows, most)
    if length:
        for i, (keys, values) in enumerate(decoder.encoded):
            cache.update(
                keys[:, :, :length].expand(rows, -1, -1, -1), values[:, :, :length].expand(rows, -1, -1, -1), i
            )
        attention.wrote(cache, length)
    return cache


def _feed(
    decoder: Decoder,
    cache: Cache,
    chunks: list[list[int]],
    drafts: list[list[int]],
    mask: torch.Tensor,
    place: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Next-token logits, (rows, 1 + longest draft, vocabulary) float32, after chunks of tokens of any lengths and after
    each token of the drafts behind them; all padded on the left.
    """
    more = max(map(len, drafts))
    chunks = [chunk + draft for chunk, draft in zip(chunks, drafts, strict=True)]
    wide = max(map(len, chunks))
    pad = decoder.tokenizer.pad_token_id or 0
    device = decoder.model.device
    tokens = torch.tensor([[pad] * (wide - len(c)) + c for c in chunks], device=device)
    real = torch.tensor([[0] * (wide - len(c)) + [1] * len(c) for c in chunks], device=device)
    positions = (place + torch.cumsum(real, dim=1) - 1).clamp(min=0)
    mask = torch.cat([mask, real], dim=1)
    logits = []
    step = max(1, AT_ONCE // wide)
    for window in (slice(first, first + step) for first in range(0, len(chunks), step)):
        attention.look(cache, window)
        out = decoder.model(
            input_ids=tokens[window],
            attention_mask=mask[window],
            position_ids=positions[window],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 + more,
        )
        logits.append(out.logits.float())
    attention.wrote(cache, wide)
    return torch.cat(logits), mask, place + real.sum(dim=1, keepdim=True)


def _draft(row: Row, likely: Sequence[list[int]], sampling: Sampling) -> list[int]:
    """What all likely answers that begin as the row's does continue with."""
    n = len(row.tokens)
    if row.matcher is not None:
        return []
    fitting = [answer for answer in likely if answer[:n] == row.tokens]
    if not fitting:
        return []
    first, last = min(fitting), max(fitting)
    end = next((i for i in range(n, len(first)) if first[i] != last[i]), len(first))
    return first[n : min(end, sampling.max_new_tokens - 1)]


def _choose(decoder: Decoder, row: Row, logits: torch.Tensor, sampling: Sampling) -> list[int]:
    """Choose a row's next token; returns what to feed next: it and what the grammar then forces. [] at the end."""
    allowed = None
    if row.matcher is not None:
        allowed = torch.from_numpy(np.frombuffer(row.matcher.compute_logit_bias(), np.uint8) > 0).to(logits.device)
    token = _pick(logits, allowed, row.rng, sampling)
    if row.rng is None and sampling.settle_ties and _close(logits, allowed, decoder.model.dtype):
        ids = torch.tensor([row.prompt + row.tokens], device=logits.device)
        alone = decoder.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        token = _pick(alone, allowed, None, sampling)
    if token in decoder.ends:
        return []
    before = len(row.tokens)
    row.tokens.append(token)
    if row.matcher is not None:
        row.matcher.consume_token(token)
        if _force(row, sampling):
            return []
    return row.tokens[before:]


def _force(row: Row, sampling: Sampling) -> bool:
    """Append the tokens that the grammar leaves no choice about; returns whether that completes the answer."""
    if row.matcher is None:
        return False
    if not row.matcher.is_stopped():
        forced = row.matcher.compute_ff_tokens()[: sampling.max_new_tokens - len(row.tokens)]
        row.matcher.consume_tokens(forced)
        row.tokens.extend(forced)
    if row.matcher.is_error():
        raise ValueError(f"a row's grammar cannot go on: {row.matcher.get_error()}; give a fresh matcher")
    return bool(row.matcher.is_stopped())


def _pick(
    logits: torch.Tensor, allowed: torch.Tensor | None, rng: np.random.Generator | None, sampling: Sampling
) -> int:
    """The likeliest allowed token, or one drawn by inverse transform sampling."""
    if allowed is not None:
        wide = logits.shape[-1] - allowed.shape[-1]  # a model's vocabulary may be padded
        allowed = torch.nn.functional.pad(allowed, (0, wide)) if wide > 0 else allowed[: logits.shape[-1]]
        logits = torch.where(allowed, logits, -torch.inf)
    if rng is None:
        return int(torch.argmax(logits))
    total = torch.cumsum(torch.softmax(logits.double() / sampling.temperature, dim=-1), dim=-1)
    drawn = int(torch.searchsorted(total, rng.random() * total[-1:], right=True))
    return min(drawn, int((total < total[-1]).sum()))  # the last token of any probability, should rounding pass it


def _close(logits: torch.Tensor, allowed: torch.Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the two likeliest allowed tokens are too close to tell apart in a batch."""
    if allowed is not None:
        logits = logits[: len(allowed)][allowed[: len(logits)]]
        if len(logits) < 2:
            return False
    first, second = torch.topk(logits, 2).values.tolist()
    return bool(first - second < TIE[dtype])
