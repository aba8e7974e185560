"""Gradient descent of a model's trainable weights that goes on exactly where it was cut off.

A loop of its own rather than a trainer: every step's luck comes from the seed and the step alone.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from grpo.learning import finite
from jaxsim_soc import write

CLIP = 1.0  # largest norm of a gradient

# (step from 0, what to do with a loss before its backward pass) -> (loss of the step, what else there is to tell)
Learn = Callable[[int, Callable[[torch.Tensor], torch.Tensor]], tuple[float, dict[str, Any]]]


class How(NamedTuple):
    """Numbers of a descent."""

    what: str  # in messages
    steps: int
    lr: float  # falls linearly to 0
    seed: int
    save_every: int  # steps


def drawn(groups: Sequence[int], batch: int, step: int, seed: int) -> list[int]:
    """The numbers of a step's examples: each once an epoch, a batch of one group as far as numbers allow."""
    per_epoch = max(1, len(groups) // batch)
    epoch, within = divmod(step, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(groups))
    order = order[np.argsort(np.asarray(groups)[order], kind="stable")]
    at = int(rng.permutation(per_epoch)[within]) * batch
    chosen: list[int] = order[at : at + batch].tolist()
    return chosen


def descend(
    model: Any,
    folder: Path,
    how: How,
    learn: Learn,
    advance: Callable[[int, dict[str, Any]], bool],
    memory: list[Any],
) -> None:
    """Take the steps that have not been taken in `folder` yet, with AdamW.

    `learn` adds gradients. `advance(step, report)` follows each step, with `loss`, `grad_norm`, `learning_rate` and
    what `learn` told; true ends the descent. `memory`, JSON, is kept with the weights and put back. Raises ModelError
    when loss or weights are no numbers any more; nothing of that is kept.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adam = torch.optim.AdamW(weights.values(), lr=how.lr, weight_decay=0.0)
    # Of small gradients float16 makes zeros, and of large ones infinities: then no step is taken.
    half = any(p.dtype == torch.float16 for p in model.parameters())
    scaler = torch.amp.GradScaler(model.device.type, enabled=half)
    done, ended = _restore(folder, weights, adam, scaler, memory)
    model.train()
    for step in range(done, 0 if ended else how.steps):
        at = f"{how.what}, step {step + 1} of {how.steps}"
        torch.manual_seed(how.seed * 1_000_003 + step)  # of the dropout
        rate = adam.param_groups[0]["lr"] = how.lr * (1 - step / how.steps)
        loss, told = learn(step, scaler.scale)
        finite.check_number(loss, f"{at}: the loss")
        scaler.unscale_(adam)
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), CLIP).item()
        scaler.step(adam)
        scaler.update()
        adam.zero_grad()
        finite.check_weights(model, at)
        ended = advance(
            step + 1, {"loss": loss, "grad_norm": norm if np.isfinite(norm) else None, "learning_rate": rate, **told}
        )
        if ended or (step + 1) % how.save_every == 0 or step + 1 == how.steps:
            about = {"step": step + 1, "ended": ended, "scaler": scaler.state_dict(), "memory": memory}
            _keep(folder, weights, adam, about)
        if ended:
            break
    model.eval()


def _keep(folder: Path, weights: dict[str, torch.Tensor], adam: torch.optim.Optimizer, about: dict[str, Any]) -> None:
    """Save weights and optimiser beside the last ones, then put them in their place."""
    names = {id(p): name for name, p in weights.items()}
    state = {
        f"{names[id(p)]}:{key}": value.contiguous()
        for p, kept in adam.state.items()
        for key, value in kept.items()
        if isinstance(value, torch.Tensor)
    }
    with write.folder(folder) as part:
        save_file({name: p.detach().contiguous() for name, p in weights.items()}, part / "weights.safetensors")
        save_file(state, part / "adam.safetensors")
        (part / "step.json").write_text(json.dumps(about))


def _restore(
    folder: Path, weights: dict[str, torch.Tensor], adam: torch.optim.Optimizer, scaler: Any, memory: list[Any]
) -> tuple[int, bool]:
    """Put back what `_keep` kept; returns the steps done, 0 when there is nothing, and whether they were ended."""
    write.settle(folder)
    if not folder.exists():
        return 0, False
    kept, state = load_file(folder / "weights.safetensors"), load_file(folder / "adam.safetensors")
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(kept[name])
            if f"{name}:step" in state:  # not where every step so far was too large for float16
                means = {key: state[f"{name}:{key}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                adam.state[p] = {"step": state[f"{name}:step"], **means}  # that count stays on the CPU
    about = json.loads((folder / "step.json").read_text())
    scaler.load_state_dict(about["scaler"])
    memory[:] = about["memory"]
    return int(about["step"]), bool(about["ended"])
