"""What may be wrong with a model, and how it is said."""

import importlib
from typing import Any

INSTALL = "pip install 'jaxsim-soc[train]'"


class ModelError(ValueError):
    """A model cannot be had or loaded; the message says what to do."""


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def required(package: str) -> Any:
    """An optional package. Raises ModelError when it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(f"{package} cannot be imported ({error}); {INSTALL}") from error
