"""The grammar of the legal answers: a matcher says which tokens may come next. Needs llguidance.

Its language is what `prompting.encode` writes for the legal actions, to the letter, and nothing else. How a text is cut
into tokens is left to the model.
"""

import re
from functools import lru_cache
from typing import Any

import prompting
from grpo.model.errors import INSTALL, ModelError


def matcher(tokenizer: Any, inventory: prompting.Inventory) -> Any:
    """A fresh llguidance.LLMatcher of the legal answers in a network, for one row.

    Compiled once for each tokenizer and set of answers; what is returned is a copy, and `deep_copy()` makes more.
    Raises ModelError when llguidance is missing, or cannot work with the tokenizer or the grammar.
    """
    return _compiled(tokenizer, prompting.answers(inventory)).deep_copy()


@lru_cache(maxsize=4)
def _tokens(tokenizer: Any) -> Any:
    try:
        import llguidance.hf
    except ImportError as error:
        raise ModelError(f"llguidance is missing, which keeps answers to the legal actions; {INSTALL}") from error
    try:
        return llguidance.hf.from_tokenizer(tokenizer)
    except ValueError as error:
        raise ModelError(
            f"the grammar cannot work with this tokenizer: {error}; use a model with a fast one"
        ) from error


@lru_cache(maxsize=64)
def _compiled(tokenizer: Any, answers: tuple[str, ...]) -> Any:
    tokens = _tokens(tokenizer)
    from llguidance import LLMatcher

    compiled = LLMatcher(tokens, LLMatcher.grammar_from_regex("|".join(map(re.escape, answers))))
    if compiled.get_error():
        raise ModelError(f"the grammar of {len(answers)} answers cannot be compiled: {compiled.get_error()}")
    return compiled
