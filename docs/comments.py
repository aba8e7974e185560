"""Griffe extension: the comment beside a field is the field's documentation, as it is for who reads the code."""

from typing import Any

import griffe


class Comments(griffe.Extension):
    """Gives an attribute without a docstring the comment that stands on its line."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring or attr.lineno is None or not isinstance(attr.filepath, object):
            return
        line = attr.lines[0] if attr.lines else ""
        _, found, comment = line.partition("  # ")
        if found:
            attr.docstring = griffe.Docstring(comment.strip(), lineno=attr.lineno, parent=attr)
