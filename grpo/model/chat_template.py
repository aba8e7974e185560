"""Chat templates: tried out when a tokenizer is loaded, and mended where a model would not see its rules.

A template is code of the model's makers. Some refuse a system message, some drop it without a word, and some begin a
thought where the answer should stand. What is mended is the tokenizer's own template, so that training, evaluation and
exported models agree.
"""

from typing import Any

from grpo.model.errors import first_line

THINK, THOUGHT = "<think>", "</think>"
RULES, STATE = "Rules-4711", "State-1147"  # stand for the two messages of a chat
# The system message at the head of the first user message.
IN_THE_FIRST = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' %}{%- set messages = [{'role': 'user', "
    "'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{%- endif %}"
)
NO_THOUGHTS = "{%- set enable_thinking = false %}"
ENDED = "{%- if add_generation_prompt %}{{- '\\n</think>\\n\\n' }}{%- endif %}"


def mended(tokenizer: Any) -> str:
    """A tokenizer's chat template, changed where it has to be. Raises ValueError for one that cannot be used."""
    own: str = tokenizer.get_chat_template()
    template, why = own, ""
    for way in (own, IN_THE_FIRST + own):
        try:
            text = _tried(tokenizer, way)
        except Exception as error:  # it is a program
            line = getattr(error, "lineno", None)
            why = why or f"it fails{f' in line {line}' if line else ''}: {first_line(error)}"
            continue
        if RULES in text and STATE in text:
            template = way
            break
        why = why or "it does not show every message"
    else:
        raise ValueError(why)
    for way in (template, NO_THOUGHTS + template, template + ENDED):
        if not _thinks(_tried(tokenizer, way)):
            return way
    raise ValueError(f"it begins a thought ({THINK}) that cannot be ended")


def _tried(tokenizer: Any, template: str) -> str:
    chat = [{"role": "system", "content": RULES}, {"role": "user", "content": STATE}]
    text: str = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    return text


def _thinks(text: str) -> bool:
    """Whether the answer would stand inside a thought."""
    tail = text.rpartition(STATE)[2]
    return tail.rfind(THINK) > tail.rfind(THOUGHT)
