"""How likely every legal answer is, from one forward pass: behind a prompt stand all answers at once, as a tree.

Answers begin alike, so together they have few tokens. Each token sees the prompt and what stands above it in the tree,
by an attention mask, and its place in the text is its depth (tree attention: Miao et al. 2023, arXiv:2305.09781). What
comes out is what scoring the answers one by one gives. An answer is what `prompting.encode` writes, as the tokenizer
cuts it, with the end token; the same text in other tokens is another answer.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from grpo.model import attention
from grpo.model.decode import TIE, Decoder, begun, common_prefix, encode_prefix, token_ids
from grpo.model.errors import ModelError

LOGITS = 2**30  # numbers of a pass, on a GPU
WORTH = 32  # tokens: a shorter common beginning is not computed apart
AT_ONCE = 4  # answers whose endings are weighed in a pass, for each choice


class Trie(NamedTuple):
    """A answers as a tree. NumPy arrays.

    N nodes are fed to a model, parents first: all tokens but the end tokens. M = N + A tokens are scored.
    """

    tokens: np.ndarray  # (N,) int64
    depth: np.ndarray  # (N,) int64, 0 behind the prompt
    above: np.ndarray  # (N, N) bool, [i, j]: j is i or stands above it
    scored: np.ndarray  # (M,) int64, tokens
    after: np.ndarray  # (M,) int64, the node that each follows, counted from 1; 0 is the prompt
    path: np.ndarray  # (A, longest) int64, the scored tokens of each answer; M where it has ended


@lru_cache(maxsize=64)
def trie(tokenizer: Any, answers: tuple[str, ...]) -> Trie:
    """The tree of some answers, such as `prompting.answers(inventory)`.

    Raises ModelError when there is none, and when the tokenizer does not tell two of them apart.
    """
    end = tokenizer.eos_token_id
    written = [(*token_ids(tokenizer, text), end) for text in answers]
    if len(set(written)) < max(1, len(answers)):
        same = next((text for i, text in enumerate(answers) if written[i] in written[:i]), "none at all")
        raise ModelError(f"{len(answers)} answers are no tree: {same!r} is said twice in tokens; use another tokenizer")
    return _tree(written)


class Stem(NamedTuple):
    """What A answers share with others, as a tree, and how each ends. NumPy arrays.

    `tree` leads to the first token of each answer that no other answer has there, and no further: some 80 tokens where
    all answers have 300.
    """

    tree: Trie
    above: list[np.ndarray]  # A of (k,) int64, the tree's nodes that an answer begins with
    endings: list[tuple[int, ...]]  # A, the tokens behind them, with the end token


@lru_cache(maxsize=64)
def stem(tokenizer: Any, answers: tuple[str, ...]) -> Stem:
    """The stem of some answers. Raises ModelError as `trie` does."""
    whole = trie(tokenizer, answers)
    met = np.bincount(whole.path[whole.path < len(whole.scored)], minlength=len(whole.scored))
    rows = [path[path < len(met)] for path in whole.path]
    shared = [int((met[row] > 1).sum()) for row in rows]
    written = [tuple(whole.scored[row].tolist()) for row in rows]
    tree = _tree([tokens[: k + 1] for tokens, k in zip(written, shared, strict=True)])
    return Stem(
        tree,
        [tree.after[path[: k + 1]][1:] - 1 for path, k in zip(tree.path, shared, strict=True)],
        [tokens[k:] for tokens, k in zip(written, shared, strict=True)],
    )


def _tree(written: Sequence[tuple[int, ...]]) -> Trie:
    """Of answers as tokens, of which the last of each is scored only."""
    beginnings = sorted({tokens[:k] for tokens in written for k in range(1, len(tokens) + 1)})
    ends = set(written)
    fed = {tokens: i for i, tokens in enumerate(t for t in beginnings if t not in ends)}
    above = np.zeros((len(fed), len(fed)), bool)
    for tokens, i in fed.items():
        above[i, [fed[tokens[:k]] for k in range(1, len(tokens) + 1)]] = True
    place = {tokens: i for i, tokens in enumerate(beginnings)}
    path = np.full((len(written), max(map(len, written))), len(beginnings))
    for a, tokens in enumerate(written):
        path[a, : len(tokens)] = [place[tokens[:k]] for k in range(1, len(tokens) + 1)]
    return Trie(
        tokens=np.asarray([t[-1] for t in fed], np.int64),
        depth=np.asarray([len(t) - 1 for t in fed], np.int64),
        above=above,
        scored=np.asarray([t[-1] for t in beginnings]),
        after=np.asarray([fed[t[:-1]] + 1 if len(t) > 1 else 0 for t in beginnings]),
        path=path,
    )


def log_probs(model: Any, prompts: Sequence[list[int]], tries: Sequence[Trie]) -> list[torch.Tensor]:
    """(A,) float32 log-probability of every answer behind each prompt (token ids), with gradients where they are on.

    One pass for all; what the prompts begin with is computed once, except under gradient checkpointing, which keeps no
    cache.
    """
    shared = common_prefix(prompts) if len(prompts) > 1 and not attention.checkpoints(model) else []
    n = len(shared) if len(shared) >= WORTH else 0
    cache = None
    if n:
        cache = DynamicCache(config=model.config)
        ids = torch.tensor([shared], device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    return behind(model, cache, n, [prompt[n:] for prompt in prompts], tries)


def behind(
    model: Any, cache: Cache | None, n: int, rests: Sequence[list[int]], tries: Sequence[Trie]
) -> list[torch.Tensor]:
    """`log_probs` where a cache holds the first n tokens of every prompt; `rests` are the others, at least one each."""
    each = [len(rest) + len(t.tokens) for rest, t in zip(rests, tries, strict=True)]
    wide, most = max(each), max(len(t.tokens) for t in tries)
    tokens = np.zeros((len(rests), wide), np.int64)
    places = np.zeros_like(tokens)
    sees = np.zeros((*tokens.shape, n + wide), bool)
    for i, (rest, tree) in enumerate(zip(rests, tries, strict=True)):
        first, left = wide - each[i], wide - len(tree.tokens)
        tokens[i, first:] = [*rest, *tree.tokens]
        places[i, first:] = [*range(n, n + len(rest)), *(n + len(rest) + tree.depth)]
        sees[i, first:, :n] = True
        sees[i, first:left, n + first : n + left] = np.tri(len(rest), dtype=bool)
        sees[i, left:, n + first : n + left] = True
        sees[i, left:, n + left :] = tree.above
    # Padding, on the left, sees itself: a softmax over nothing would be no number.
    sees |= np.eye(wide, n + wide, n, dtype=bool)
    out = model(
        input_ids=torch.from_numpy(tokens).to(model.device),
        attention_mask=attention.tree_mask(model, torch.from_numpy(sees).to(model.device)),
        position_ids=torch.from_numpy(places).to(model.device),
        past_key_values=cache,
        use_cache=cache is not None,
        # Their places rather than their number: of a slice the product with the vocabulary is slower on a CPU.
        logits_to_keep=torch.arange(wide - 1 - most, wide, device=model.device),
    )
    return [_of_answers(logits, tree) for logits, tree in zip(out.logits, tries, strict=True)]


@torch.inference_mode()
def weigh(decoder: Decoder, prompt: list[int], tree: Trie) -> np.ndarray:
    """(A,) float64 log-probability of every answer behind one prompt (token ids).

    It is read by itself, so that nothing depends on its neighbours, but for what it shares with the prompt that the
    decoder has pinned.
    """
    n = encode_prefix(decoder, [prompt])
    with attention.packed(decoder.model):
        cache = begun(decoder, n, 1, len(prompt) + len(tree.tokens))
        [found] = behind(decoder.model, cache, n, [prompt[n:]], [tree])
    return np.asarray(found.double().cpu())


@torch.inference_mode()
def weigh_all(decoder: Decoder, prompts: Sequence[list[int]], tree: Trie) -> np.ndarray:
    """(R, A), `weigh` of many prompts: in batches where most of a short pass is its launch, which a CPU's is not."""
    if decoder.model.device.type == "cpu":
        return np.stack([weigh(decoder, prompt, tree) for prompt in prompts])
    at_once = max(1, LOGITS // ((1 + len(tree.tokens)) * decoder.model.config.vocab_size))
    parts = [prompts[i : i + at_once] for i in range(0, len(prompts), at_once)]
    found = [x for part in parts for x in behind(decoder.model, None, 0, part, [tree] * len(part))]
    return np.asarray(torch.stack(found).double().cpu())


def luck(answers: int, temperature: float, seeds: Sequence[int] = ()) -> np.ndarray:
    """(answers,) what each answer's log-probability / temperature is raised by, so that the highest is a draw.

    Nothing at temperature 0, or else standard Gumbel numbers (Maddison et al. 2014, arXiv:1411.0030).
    """
    if temperature == 0:
        return np.zeros(answers)
    return np.random.default_rng(list(seeds)).gumbel(size=answers)


def pick(log_p: np.ndarray, temperature: float = 0.0, seeds: Sequence[int] = ()) -> int:
    """The likeliest answer; above temperature 0 one that is drawn, with chances to the power of 1 / temperature."""
    return int((log_p / (temperature or 1) + luck(len(log_p), temperature, seeds)).argmax())


@torch.inference_mode()
def choose(
    decoder: Decoder, prompt: list[int], of: Stem, temperature: float = 0.0, seeds: Sequence[Sequence[int]] = ((),)
) -> list[int]:
    """`pick` for each of `seeds` of what `weigh` gives, without weighing the endings of answers that cannot win.

    An answer is no likelier than its beginning. So those that begin best are weighed whole, until one is better than
    what all others begin with.
    """
    model, n = decoder.model, encode_prefix(decoder, [prompt])
    raised = np.stack([luck(len(of.endings), temperature, each) for each in seeds])
    with attention.packed(model):
        cache = begun(decoder, n, 1, len(prompt) + len(of.tree.tokens) + attention.MORE)
        [begins] = behind(model, cache, n, [prompt[n:]], [of.tree])
        attention.wrote(cache, len(prompt) - n + len(of.tree.tokens))
        log_p, whole = np.asarray(begins.double().cpu()), np.asarray([len(x) == 1 for x in of.endings])
        while True:
            score = log_p / (temperature or 1) + raised
            better = ~whole & (score > np.where(whole, score, -np.inf).max(axis=1, keepdims=True))
            if not better.any():
                return [int(a) for a in score.argmax(axis=1)]
            first = np.argsort(-np.where(better, score, -np.inf), axis=1)[:, :AT_ONCE]
            which = sorted({int(a) for e, row in enumerate(first) for a in row if better[e, a]})
            log_p[which] += _endings(decoder, cache, len(prompt), of, which)
            whole[which] = True


def _endings(decoder: Decoder, cache: Cache, n: int, of: Stem, which: Sequence[int]) -> np.ndarray:
    """(len(which),) float64 log-probability of what stands behind the first token of answers' endings.

    The cache holds a prompt of n tokens and the stem.
    """
    many = [len(of.endings[a]) - 1 for a in which]
    starts = np.cumsum([0, *many])
    held, wide = n + len(of.tree.tokens), int(starts[-1])
    sees = np.zeros((1, wide, held + wide), bool)
    sees[..., :n] = True
    for a, i, k in zip(which, starts, many, strict=False):
        sees[0, i : i + k, n + of.above[a]] = True
        sees[0, i : i + k, held + i : held + i + k] = np.tri(k, dtype=bool)
    tokens = np.concatenate([of.endings[a][:-1] for a in which])
    places = np.concatenate([n + len(of.above[a]) + np.arange(k) for a, k in zip(which, many, strict=True)])
    scored = np.concatenate([of.endings[a][1:] for a in which])
    model = decoder.model
    logits = model(
        input_ids=torch.from_numpy(tokens)[None].to(model.device),
        attention_mask=attention.tree_mask(model, torch.from_numpy(sees).to(model.device)),
        position_ids=torch.from_numpy(places)[None].to(model.device),
        past_key_values=cache,
        use_cache=True,
    ).logits[0]
    each = logits.float().log_softmax(dim=-1)[range(wide), scored].double().cpu().numpy()
    return np.add.reduceat(each, starts[:-1])


@torch.inference_mode()
def check(model: Any, prompt: list[int], tree: Trie) -> None:
    """Raises ModelError when a model does not read a tree as it reads each of its texts.

    Such are models that do not attend by a mask alone: with windows that slide, or a memory in place of attention.
    """
    ends = np.where(tree.path < len(tree.scored), tree.path, -1)
    last = int(ends.max(axis=1).argmax())  # behind all others, so that a mask that is not kept shows
    answer = tree.scored[ends[last][ends[last] >= 0]].tolist()
    ids = torch.tensor([prompt + answer[:-1]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer)).logits[0, -len(answer) :].float()
    alone = logits.log_softmax(dim=-1)[range(len(answer)), answer].sum().item()
    among = log_probs(model, [prompt], [tree])[0][last].item()
    if not abs(alone - among) < TIE[model.dtype] * len(answer) ** 0.5:  # errors of many tokens partly cancel
        raise ModelError(
            f"this model cannot weigh all answers at once: of one the log-probability is {alone:.2f} alone, but "
            f"{among:.2f} among the others; take another model, or decode and learn from samples, without a teacher "
            "and with successor evidence or waiting"
        )


def _of_answers(logits: torch.Tensor, tree: Trie) -> torch.Tensor:
    """(A,) from logits of which the last are those behind the prompt and behind each node, (…, vocabulary)."""
    after, scored, path = (torch.from_numpy(x).to(logits.device) for x in (tree.after, tree.scored, tree.path))
    logits = logits[-1 - len(tree.tokens) :].float()
    each = logits[after, scored] - logits.logsumexp(dim=-1)[after]
    return torch.nn.functional.pad(each, (0, 1))[path].sum(dim=1)
