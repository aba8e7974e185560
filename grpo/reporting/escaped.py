"""Text of any origin as HTML that shows it and does nothing else."""

import html
import unicodedata

LONGEST = 20_000  # characters of one answer that are shown


def shown(text: str) -> str:
    """Any text as HTML that shows it and does nothing else: escaped, what cannot be seen made visible, cut if long."""
    plain = "".join(map(_visible, text[:LONGEST]))
    more = f" … and {len(text) - LONGEST} more characters" if len(text) > LONGEST else ""
    return html.escape(plain + more)


def _visible(c: str) -> str:
    """A character, or the code of one that is a control, a surrogate or turns the direction of text."""
    return c if c in "\n\t" or unicodedata.category(c)[0] != "C" else f"‹U+{ord(c):04X}›"
