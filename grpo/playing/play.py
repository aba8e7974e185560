"""A language model as a policy: N episodes in lockstep, prompts out, completions in.

The statistics are those of `jaxsim.rollout`, from the same keys, so a model meets the luck that other policies met.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import prompting
from grpo.model import decode, trie
from grpo.playing.choices import ALWAYS_ASK, ON_CHANGE
from grpo.playing.speech import Respond
from jaxsim import env, one_episode, rollouts
from jaxsim.actions import INVALID
from jaxsim.one_episode import EpisodeStats
from jaxsim.types import MONITOR, RUNNING, Dims, Observation, Params, State
from prompting import Inventory, Parsed

BATCH = 32  # prompts decoded together
LANES = 16  # episodes of the smallest batch: the programs of a few are those of any few


class Turn(NamedTuple):
    """What was said at one tick; lists of E, None for an episode that was over or not asked."""

    tick: int
    texts: list[str | None]


def is_turn(episodes: int, line: dict[str, Any], tick: int) -> bool:
    """Whether a line of a file is the turn of a tick."""
    return line["tick"] == tick and len(line["texts"]) == episodes


class Played(NamedTuple):
    """E episodes of a model."""

    stats: EpisodeStats  # leading axis (E,)
    actions: np.ndarray  # (T, E) int32, INVALID where nothing legal was said or the episode was over
    turns: list[Turn]  # T
    parsed: list[list[Parsed | None]]  # T lists of E, None as in `turns`


@partial(jax.jit, static_argnames=("dims",))
def _begin(dims: Dims, params: Params, keys: jax.Array) -> tuple[State, EpisodeStats]:
    return jax.vmap(lambda key: (one_episode.start(dims, key, params), one_episode.no_stats(params)))(keys)


@partial(jax.jit, static_argnames=("dims",))
def _observe(dims: Dims, params: Params, state: State, donor: jax.Array, shuffle: jax.Array) -> Observation:
    return rollouts.exchange(jax.vmap(lambda s: env.observe(dims, s, params))(state), donor, shuffle)


@partial(jax.jit, static_argnames=("dims",))
def _step(
    dims: Dims, params: Params, keys: jax.Array, state: State, stats: EpisodeStats, action: jax.Array
) -> tuple[State, EpisodeStats]:
    def one(key: jax.Array, s: State, e: EpisodeStats, a: jax.Array) -> Any:
        block = one_episode.tick_noise(key, s.tick + 1)
        after, e, signals, _ = one_episode.advance(dims, s, a, block, params, e)
        points, channels = one_episode.paid((e.episode_return, e.channels), signals, params.reward)
        return after, e._replace(episode_return=points, channels=channels)

    after: tuple[State, EpisodeStats] = jax.vmap(one)(keys, state, stats, action)
    return after


@partial(jax.jit)
def _finish(params: Params, state: State, stats: EpisodeStats) -> EpisodeStats:
    done: EpisodeStats = jax.vmap(lambda s, e: one_episode.finish(s, e, params))(state, stats)
    return done


def play(
    env_: env.Env,
    params: Params,
    inventory: Inventory,
    keys: jax.Array,
    respond: Respond,
    *,
    layout: str = "compact",
    asking: str = ALWAYS_ASK,
    shuffle: tuple[str, ...] = (),
    past: Sequence[Turn] = (),
    opening: Callable[[str], None] = lambda prompt: None,
    advance: Callable[[Turn], None] = lambda turn: None,
    watch: Callable[[State, Observation, Sequence[int], Sequence[str]], None] | None = None,
) -> Played:
    """Play the episodes of `keys`, (E,), to their ends, each tick with the completions of `respond`.

    A completion that names no legal action counts as an invalid action, which is MONITOR at a cost. `shuffle` as in
    `rollout_many`. `opening(prompt)` sees the first prompt. `past`: turns of an interrupted run, used instead of asking
    again; `advance(turn)` follows every new one. `watch(states, observations, episodes asked, prompts)` sees every tick
    before it is played, past ones too.
    """
    dims, many = env_.dims, len(keys)
    lanes = np.arange(max(LANES, 1 << (many - 1).bit_length()), dtype=np.int32)
    filler = lanes >= many  # plays the last episode again, and waits
    keys = keys[np.where(filler, many - 1, lanes)]
    state, stats = _begin(dims, params, keys)
    donors = np.where(filler, lanes, np.pad(rollouts.donors(many), (0, len(lanes) - many)))
    swap = jnp.asarray(donors), jnp.asarray(rollouts.named_channels(shuffle))
    turns: list[Turn] = []
    parsed: list[list[Parsed | None]] = []
    actions: list[np.ndarray] = []
    viewed: list[Any] = [None] * many
    while (live := np.flatnonzero(np.asarray(state.end)[:many] == RUNNING)).size:
        tick = len(turns)
        obs = jax.tree.map(lambda x: np.asarray(x)[:many], _observe(dims, params, state, *swap))
        if asking == ON_CHANGE:
            views = _views(obs)
            live = np.asarray([e for e in live if views[e] != viewed[e]], np.int64)
            viewed = views
        asked = live.tolist()
        texts: list[str | None] = [None] * many
        known = tick < len(past)
        if asked and (watch or not known or not turns):
            prompts = prompting.render(jax.tree.map(lambda x, rows=live: x[rows], obs), inventory, layout)
            if not turns:
                opening(prompts[0])
            if watch:
                watch(jax.tree.map(lambda x: np.asarray(x)[:many], state), obs, asked, prompts)
        if known:
            texts = list(past[tick].texts)
        elif asked:
            for e, text in zip(asked, respond(prompts, asked, tick), strict=True):
                texts[e] = text
        said = [None if text is None else prompting.parse(text, inventory) for text in texts]
        quiet = MONITOR if asking == ON_CHANGE else INVALID
        action = np.asarray([quiet if p is None else p.action for p in said], np.int32)
        everywhere = np.where(filler, MONITOR, np.pad(action, (0, len(lanes) - many)))
        state, stats = _step(dims, params, keys, state, stats, jnp.asarray(everywhere, jnp.int32))
        turns.append(Turn(tick, texts))
        parsed.append(said)
        actions.append(action)
        if tick >= len(past):
            advance(turns[-1])
    ended = jax.tree.map(lambda x: np.asarray(x)[:many], _finish(params, state, stats))
    return Played(ended, np.stack(actions), turns, parsed)


def _views(obs: Observation) -> list[Any]:
    """What must change for an episode's model to be asked again: alerts, forensics, controls."""
    alerts, results = obs.alerts.number.max(axis=1).tolist(), obs.forensics.number.max(axis=1).tolist()
    return [(a, f, marks.tobytes()) for a, f, marks in zip(alerts, results, obs.marks, strict=True)]


def likely_answers(tokenizer: Any, inventories: Sequence[Inventory]) -> list[list[int]]:
    """The legal answers of networks as token ids: what a model that has learned the format says."""
    texts = {text for one in inventories for text in prompting.answers(one)}
    found: list[list[int]] = tokenizer(sorted(texts), add_special_tokens=False)["input_ids"]
    return found


def responder(
    decoder: decode.Decoder,
    sampling: decode.Sampling,
    inventory: Inventory,
    *,
    matcher: Any = None,
    seed: int = 0,
    batch: int = BATCH,
    likely: Sequence[list[int]] = (),
    examples: tuple[tuple[str, str], ...] = (),
) -> Respond:
    """A model's answers in a network, `batch` prompts at a time, those of like length together.

    `matcher`: the grammar of the legal answers, see `grammar.matcher`; `likely`: as for `decode.decode`. Sampled
    answers depend on seed, episode and tick, and on nothing else.
    """

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        # Greedily, equal prompts have equal answers; early in an episode most prompts are equal.
        same = sampling.temperature == 0
        wanted = list(dict.fromkeys(prompts)) if same else list(prompts)
        ids = [decode.chat_tokens(decoder.tokenizer, prompting.chat(prompt, inventory, examples)) for prompt in wanted]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        texts = [""] * len(ids)
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            answers = decode.decode(
                decoder,
                [ids[i] for i in rows],
                sampling,
                [matcher.deep_copy() for _ in rows] if matcher is not None else None,
                None if same else [(seed, episodes[i], tick) for i in rows],
                likely,
            )
            for i, answer in zip(rows, answers, strict=True):
                texts[i] = answer.text
        if not same:
            return texts
        answer_to = dict(zip(wanted, texts, strict=True))
        return [answer_to[prompt] for prompt in prompts]

    return respond


def chooser(decoder: decode.Decoder, inventory: Inventory, *, temperature: float = 0.0, seed: int = 0) -> Respond:
    """A model's choice among all legal answers of a network by their exact probabilities, see `trie.weigh`.

    Sampled choices depend on seed, episode and tick, and on nothing else. Equal prompts are weighed once.
    """
    answers = prompting.answers(inventory)
    tree, stem = trie.trie(decoder.tokenizer, answers), trie.stem(decoder.tokenizer, answers)

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
        askers: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            askers.setdefault(prompt, []).append(i)
        tokens = [decode.chat_tokens(decoder.tokenizer, prompting.chat(prompt, inventory)) for prompt in askers]
        seeds = [[(seed, episodes[i], tick) for i in each] for each in askers.values()]
        if decoder.model.device.type == "cpu":
            found = [trie.choose(decoder, x, stem, temperature, s) for x, s in zip(tokens, seeds, strict=True)]
        else:
            weighed = trie.weigh_all(decoder, tokens, tree)
            found = [[trie.pick(w, temperature, one) for one in s] for w, s in zip(weighed, seeds, strict=True)]
        texts = [""] * len(prompts)
        for each, chosen in zip(askers.values(), found, strict=True):
            for i, a in zip(each, chosen, strict=True):
                texts[i] = answers[a]
        return texts

    return respond
