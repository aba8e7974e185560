"""Griffe extension: the comment beside a field is the field's documentation, as it is for who reads the code."""

from typing import Any

import griffe


class Comments(griffe.Extension):
    """Gives an attribute without a docstring the comment that stands on its line."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        _, found, comment = (attr.lines or [""])[0].partition("  # ")
        if found and attr.docstring is None:
            attr.docstring = griffe.Docstring(comment.strip(), lineno=attr.lineno, parent=attr)
