"""Whoever answers, as types, where they can be read without torch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from prompting import Inventory

# (prompts, index of each one's episode, tick) -> completions
Respond = Callable[[Sequence[str], Sequence[int], int], Sequence[str]]


class Speaker(NamedTuple):
    """Whoever answers."""

    respond_in: Callable[[Inventory, str], Respond]  # the network, the first prompt of the play
    count: Callable[[Sequence[str]], int]  # tokens of answers
    about: dict[str, Any]
