"""Learned policies as files: safetensors, with what they were trained for in the header."""

import os
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxsim.recurrent import HEADS, POLICIES, SIGHTS, Learned, Weights, init_weights
from jaxsim.version import SIMULATOR_VERSION, is_kept, name_now

FORMAT = "jaxsim-soc recurrent policy 1"
OWN = Path(str(files("jaxsim.audit"))) / "learned"  # the policies that come with the project


class Checkpoint(NamedTuple):
    """A trained policy. `about` holds rules, reward, view, simulator version and whatever else its maker noted."""

    weights: Weights
    about: dict[str, str]

    @property
    def view(self) -> str:
        return self.about["view"]

    @property
    def restores(self) -> bool:
        """Whether it knows RESTORE: it was trained under rules that bring it."""
        return bool(self.weights.act_bias.size > HEADS)

    @property
    def learned(self) -> Learned:
        """The policy's parameters; it plays its likeliest action."""
        return Learned(self.weights, np.bool_(True), SIGHTS[self.view])


def own(rules: str, reward: str, view: str, folder: Path = OWN) -> Path:
    """Where the policy that was trained for these is, if there is one."""
    return folder / f"{rules}-{reward}-{view}.safetensors"


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The file's content."""
    tensors = {name: np.array(x, order="C") for name, x in checkpoint.weights._asdict().items()}
    return save(tensors, metadata={**checkpoint.about, "format": FORMAT})


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, with the names that its rules and reward have now.

    Raises ValueError, naming file and remedy, when it is not one or is of a simulator whose game is not kept.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); train one with jaxsim-soc train-policy"
        ) from None
    if about.get("format") != FORMAT or about.get("view") not in POLICIES:
        raise ValueError(f"{path}: not a policy of this project; train one with jaxsim-soc train-policy")
    version = about.get("simulator_version", "")
    if not is_kept(version):
        raise ValueError(
            f"{path}: simulator_version = {version!r}, but this is {SIMULATOR_VERSION!r}; "
            "train it again with jaxsim-soc train-policy"
        )
    width = max(1, tensors["embed_bias"].size) if "embed_bias" in tensors else 1
    restore = "act_bias" in tensors and tensors["act_bias"].size == HEADS + 1
    shapes = jax.eval_shape(lambda key: init_weights(key, width, restore), jax.random.key(0))  # allocates nothing
    wanted = {n: x.shape for n, x in shapes._asdict().items()}
    found = {n: x.shape for n, x in tensors.items()}
    if found != wanted or any(x.dtype != np.float32 or not np.isfinite(x).all() for x in tensors.values()):
        wrong = next((n for n in {**wanted, **found} if wanted.get(n) != found.get(n)), "a tensor")
        raise ValueError(
            f"{path}: {wrong} has shape {found.get(wrong)}, not {wanted.get(wrong)}, or numbers are no finite float32; "
            "train it again with jaxsim-soc train-policy"
        )
    named = {k: name_now(version, about[k]) for k in ("rules", "reward") if k in about}
    return Checkpoint(Weights(**tensors), about | named)
