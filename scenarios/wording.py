"""Small pieces of error messages."""

from collections.abc import Sequence
from difflib import get_close_matches

# Above this many candidates the search for a similar name costs more than it helps.
_SUGGEST_AMONG = 1000


def show(value: object) -> str:
    """A value as it may stand in a message: one printable line of about 60 characters at most."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a mapping of {len(value)} field{'' if len(value) == 1 else 's'}"
    if isinstance(value, list | tuple):
        flat = len(value) <= 4 and not any(isinstance(item, dict | list | tuple) for item in value)
        return f"[{', '.join(map(show, value))}]" if flat else f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    return str(value)[:60]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the closest of `known`, or an empty string when none is close."""
    close = get_close_matches(word[:64], known, n=1) if len(known) <= _SUGGEST_AMONG else []
    return f"; did you mean {close[0]!r}?" if close else ""
