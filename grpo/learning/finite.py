"""What is no number any more, found before it is kept: NaN and infinity in losses, rewards and weights."""

import math
from typing import Any

import torch

from grpo.model.errors import ModelError

REMEDY = "lower the learning rate or take --dtype float32, in another --out"


def check_number(value: float, what: str) -> None:
    """Raises ModelError when the loss or reward of a step is NaN or infinite."""
    if not math.isfinite(value):
        raise ModelError(f"{what} is {value}, from which nothing can be learned; {REMEDY}")


def check_weights(model: Any, what: str) -> None:
    """Raises ModelError when weights that are trained hold NaN or infinity."""
    if name := _lost([(n, p) for n, p in model.named_parameters() if p.requires_grad]):
        raise ModelError(f"{what}: {name} holds NaN or infinity; {REMEDY}")


def check_model(model: Any, what: str) -> None:
    """Raises ModelError when any weights of a model that was just loaded hold NaN or infinity."""
    if name := _lost(model.named_parameters()):
        raise ModelError(f"{what}: {name} holds NaN or infinity; fetch or write it again")


def _lost(weights: Any) -> str:
    floats = ((name, p.detach()) for name, p in weights if p.is_floating_point())
    return next((name for name, p in floats if not bool(torch.isfinite(p).all())), "")
