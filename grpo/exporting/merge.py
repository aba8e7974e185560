"""Merging an adapter into its base, and the model folder that is written of it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grpo.model import embedded, folders
from grpo.model.errors import ModelError, first_line
from grpo.model.models import Loaded
from grpo.model.portable import make_portable

# What an adapter can be that no weights of its base can; by the name of its setting.
NEVER_MERGED = {
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "waits for certain tokens",
    "arrow_config": "chooses among adapters",
}
LICENCES = ("LICENSE", "NOTICE")  # of a base, which go with it
NOT_MERGED = (
    "cannot be merged; use it with jaxsim-soc evaluate-model --adapter, beside its base, or train one without that"
)


def base_of(adapter: Path, given: str | None) -> str:
    """The model to merge an adapter into: `given`, or the one it was made for.

    Raises ModelError when its files are not those of a LoRA adapter that can be merged, or there is no such model.
    """
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise ModelError(f"{adapter} is no adapter: it has no {path.name}; give the folder that it was saved to")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} holds no JSON object ({error}); save the adapter again") from error
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    if kind != "LORA":
        raise ModelError(f"{path}: peft_type is {kind!r}; only LORA can be merged into a model's weights")
    for name, does in NEVER_MERGED.items():
        if config.get(name):
            raise ModelError(f"{path}: {name} is {config[name]!r:.60}; an adapter that {does} {NOT_MERGED}")
    if given:
        return given
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path}: base_model_name_or_path is {base!r}; name the model with --model")
    return base


def check_base(base: str, adapter: Path, given: bool, offline: bool) -> None:
    """Raises ModelError when a base cannot be found, or is kept in few bits. `given`: on the command line."""
    config = adapter / "adapter_config.json"
    try:
        place, _ = folders.find(base, offline)
    except ModelError as error:
        if given:
            raise
        raise ModelError(f"{config}: base_model_name_or_path: {error}; or say with --model where it lies") from error
    if folders.in_few_bits(place):
        raise ModelError(
            f"{base} is kept in few bits, which nothing can be merged into; write the name or folder of its full "
            f"version as base_model_name_or_path into {config}, and leave out --model"
        )


def merged(loaded: Loaded) -> Any:
    """The model with the adapter in its weights. Raises ModelError when the adapter's weights are no numbers."""
    try:
        model = loaded.model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:  # NaN, or a kind without a merge
        why = first_line(error).rstrip(".")
        if "NaN" in why:
            raise ModelError(f"the adapter cannot be merged: {why}; take one of an earlier step") from error
        raise ModelError(f"an adapter of this kind {NOT_MERGED} ({why})") from error
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} holds NaN or infinity once the adapter is merged; take one of an earlier step")
    return model.eval()


def save(model: Any, tokenizer: Any, folder: Path, dtype: str, card: str, licences: Sequence[Path]) -> None:
    """Write a model folder, and read back what was written. The model's weights are rounded to `dtype`."""
    from safetensors import SafetensorError, safe_open

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    try:
        with embedded.quiet():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        make_portable(folder)
    except SafetensorError as error:  # no space left
        raise OSError(28, str(error), str(folder)) from error
    (folder / "README.md").write_text(card, encoding="utf-8")
    for path in licences:
        shutil.copyfile(path, folder / path.name)
    weights = model.state_dict()
    for file in folders.check_folder(folder, str(folder)):
        with safe_open(file, framework="pt") as kept:
            for name in kept.keys():  # noqa: SIM118
                if not torch.equal(kept.get_tensor(name), weights[name].cpu()):
                    raise ModelError(f"{file}: {name} is not what was written; is the disk broken?")


def name_of(base: str) -> str:
    """What to call a base in public: of a folder, its last name."""
    if base == folders.EMBEDDED:
        return "SmolLM2-135M-Instruct"
    return Path(base).resolve().name if Path(base).is_dir() else base


def card_of(base: str, adapter: str, dtype: str, four_bit: bool) -> str:
    """The model card."""
    name = name_of(base)
    note = " It was trained on that base in 4 bits, and is merged into the full one." if four_bit else ""
    return "\n".join(
        [
            "---",
            *([f"base_model: {name}"] if "/" in name else []),
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [security, soc, grpo]",
            "---",
            "",
            "# SOC analyst",
            "",
            f"{name} with the adapter `{adapter}` merged into its weights ({dtype}).{note}",
            "",
            "It answers the prompts of `prompting` (one JSON action) and knows nothing of real networks: use it for "
            "research, not to defend anything. The licence is that of the base model.",
            "",
        ]
    )


def trained_in_four_bits(adapter: Path) -> bool:
    """Whether the training run that an adapter lies in kept its base in 4 bits, as far as that is known."""
    for folder in adapter.resolve().parents[:2]:
        try:
            told = json.loads((folder / "run_manifest.json").read_text(encoding="utf-8"))
            return bool(told["settings"]["four_bit"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False
