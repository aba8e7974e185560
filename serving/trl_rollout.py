"""TRL's `rollout_func`: whole episodes as one conversation in the project's own prompt format, without tools.

For models whose chat template renders no tool calls. A row's prompt names the episode, as the JSON of a
`serving.messages.Start`: {"seed": 7}. Needs the extra `train`.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

import prompting
from grpo.playing.choices import ON_CHANGE
from jaxsim import check
from serving.desk import Desk, start_of
from serving.sessions import Limits

ANSWER_TOKENS = 48  # the longest legal answers have about 30


def rollout_func(
    asking: str = ON_CHANGE, entities: int = Limits().entities, answer_tokens: int = ANSWER_TOKENS, **start: Any
) -> Callable[[list[Any], Any], dict[str, Any]]:
    """The function that GRPOTrainer calls with prompts and itself; it gives one row a prompt.

    An answer has at most `answer_tokens`; what is no legal action passes time and costs what the reward says. An
    episode that does not fit `max_completion_length` is waited to its end. `episode_return`, points, goes to the reward
    functions (see `episode_returns`). `start`: what is played where a prompt does not say. Raises ValueError for a bad
    argument or prompt, and for a trainer that generates with vLLM.
    """
    check.whole("answer_tokens", answer_tokens, 1, 10_000)
    Desk(asking, entities)
    start_of(start)
    desks: list[Desk] = []

    def roll(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        if trainer.use_vllm:
            raise ValueError("rollout_func generates with transformers; set use_vllm=False, or use SocTools with vLLM")
        while len(desks) < len(prompts):
            desks.append(Desk(asking, entities))
        starts = [start_of(start | named(prompt)) for prompt in prompts]
        shown = [desk.reset(one) for desk, one in zip(desks, starts, strict=False)]
        games = [desk.inventory for desk in desks[: len(prompts)]]
        first = [_tokens(trainer, prompting.chat(text, game)) for text, game in zip(shown, games, strict=True)]
        said: list[list[int]] = [[] for _ in prompts]
        mask: list[list[int]] = [[] for _ in prompts]
        news: list[list[int]] = [[] for _ in prompts]  # what is between the last answer and the next
        live = list(range(len(prompts)))
        while live:
            for i in live:
                mask[i] += [0] * len(news[i])
                said[i] += news[i]
            answers = _generated(trainer, [first[i] + said[i] for i in live], answer_tokens)
            for i, answer in zip(live, answers, strict=True):
                said[i] += answer
                mask[i] += [1] * len(answer)
                text = trainer.processing_class.decode(answer, skip_special_tokens=True)
                told = desks[i].act(prompting.parse(text, games[i]).action)
                news[i] = [] if told.done else _turn(trainer, answer, told.text)
            room = trainer.max_completion_length - answer_tokens
            live = [i for i in live if news[i] and len(said[i]) + len(news[i]) <= room]
        returns = [desk.finish() for desk in desks[: len(prompts)]]
        return {
            "prompt_ids": first,
            "completion_ids": said,
            "logprobs": None,  # the trainer computes them, as it does for what transformers generates for itself
            "env_mask": mask,
            "episode_return": returns,
        }

    return roll


def episode_returns(episode_return: list[float], **_: Any) -> list[float]:
    """The reward function for `rollout_func`: points of whole episodes."""
    return list(episode_return)


def named(prompt: Any) -> dict[str, Any]:
    """The episode that a row's prompt names: JSON, as a text or as the last message of a chat."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'prompt {text[:60]!r} names no episode; give JSON such as {{"seed": 7}}')
    return found


def _tokens(trainer: Any, chat: list[dict[str, str]], more: bool = True) -> list[int]:
    ids: list[int] = trainer.processing_class.apply_chat_template(
        chat,
        add_generation_prompt=more,
        tokenize=True,
        return_dict=False,
        chat_template=trainer.chat_template,
        **trainer.chat_template_kwargs,
    )
    return ids


def _turn(trainer: Any, answer: list[int], news: str) -> list[int]:
    """The tokens from the end of an answer to the beginning of the next: the news as a user's message."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    before = _tokens(trainer, chat, more=False)
    whole = _tokens(trainer, [*chat, {"role": "user", "content": news}])
    end = trainer.processing_class.eos_token_id
    if end in before:  # after it templates write a line's end, which the answer has not
        before = before[: len(before) - before[::-1].index(end)]
    if whole[: len(before)] != before:
        raise ValueError("the chat template writes a turn otherwise when another follows; choose another model")
    cut_off = end in before and (not answer or answer[-1] != end)
    return [end] * cut_off + whole[len(before) :]


def _generated(trainer: Any, prompts: list[list[int]], most: int) -> list[list[int]]:
    """Sampled answers as the trainer samples, up to and with the token that ends them."""
    longest = max(map(len, prompts))
    padding, device = trainer.processing_class.pad_token_id, trainer.accelerator.device
    ids = torch.tensor([[padding] * (longest - len(x)) + x for x in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in prompts], device=device)
    config = deepcopy(trainer.generation_config)
    config.max_new_tokens = most
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
        rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
    ends = set(trainer.eos_token_ids)
    return [row[: next((i for i, x in enumerate(row) if x in ends), len(row)) + 1] for row in rows]
