"""An adapter and its base: whether they belong together, and putting one on the other."""

import json
import os
import re
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

from grpo.model import embedded
from grpo.model.errors import ModelError, first_line, required
from grpo.model.folders import EMBEDDED, HUB_ID, header, identity_of, json_object
from jaxsim_soc import cli

OWN = "default"  # the name of the adapter that comes with the project, for the embedded model
BASE_NOTE = "base.json"  # in an adapter's folder: which base it was made for
MERGED = "merged"  # the folder of a merged model in an export


def place(text: str) -> Path:
    """The folder of an adapter: a path, or the name of the project's own."""
    return Path(str(files("grpo"))) / "adapter" if text == OWN else Path(text)


def folder(text: str) -> Path:
    """The type of --adapter: as `place`, of a folder that is there."""
    return place(text) if text == OWN else cli.input_folder(text)


def note_base(model: Any, adapter: Path) -> None:
    """Write into an adapter's folder which base it was made for; `model` is one that `load` gave, with an adapter."""
    base = model.get_base_model()
    if not hasattr(base, "identity"):  # not loaded here
        return
    note = {"base_model_name_or_path": base.name_or_path, "identity": base.identity}
    (adapter / BASE_NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def check_adapter(folder: Path, base: str, own: str) -> None:
    """Raises ModelError when an adapter's files are not there or cut off, or it was made for another base.

    `own` is the identity of `base`, "" where it is not known yet: then names alone are compared. Where that of the
    right one is noted beside the adapter, it decides. Else names do, unless the adapter names no base, and what lies
    under the name, if anything.
    """
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise ModelError(f"{folder} is no adapter: it has no {file}; give the folder that it was saved to")
    header(folder / "adapter_model.safetensors")
    config, note = folder / "adapter_config.json", folder / BASE_NOTE
    named = json_object(config).get("base_model_name_or_path")
    if not named:
        return
    made_for, told = str(named), json_object(note) if note.is_file() else {}
    if told.get("base_model_name_or_path") == made_for:  # else somebody has named another base since
        fits = own in ("", told.get("identity"))
    else:
        fits = same_model(made_for, base) and (not own or identity_of(made_for) in ("", own))
    if not fits:
        why = f"was made for {made_for}, not for {base}"
        if same_model(made_for, base):
            why = f"does not fit {base}: it was made for {made_for} with other weights"
        change = f"delete {note}" if made_for == base else f"name {base} as its base in {config}"
        raise ModelError(
            f"adapter {folder} {why}; load it with its own base, or, to have it on this one all the same, {change}"
        )


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model. A folder may have moved, or hold a copy of a hub's model."""
    hub = [re.sub(r".*models--(.+?)--(.+?)/snapshots/\w+/?$", r"\1/\2", name) for name in (one, other)]
    if all(HUB_ID.fullmatch(name) and not os.path.isdir(name) for name in hub):
        return hub[0].lower() == hub[1].lower()
    last = [_last(Path(os.path.abspath(name))).lower() for name in hub]
    return last[0] == last[1] or set(last) <= {EMBEDDED, embedded.FOLDER, embedded.EARLIER}


def _last(path: Path) -> str:
    """The name that tells a folder from others: every export has a `merged`."""
    return path.name if path.name != MERGED else str(Path(path.parent.name, MERGED))


def adapted_model(model: Any, folder: Path, base: str, trainable: bool) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT's affair
        warnings.filterwarnings("error", message="(.|\n)*Found missing adapter keys")
        try:
            # Weights to train stay float32; to answer with, they are as narrow as the model's, which is far faster.
            kind: dict[str, Any] = {"is_trainable": trainable, "autocast_adapter_dtype": trainable}
            adapted = required("peft").PeftModel.from_pretrained(model, str(folder), **kind)
            # Once more, since only this tells what had no place.
            dropped = adapted.load_adapter(str(folder), adapted.active_adapter, **kind).unexpected_keys
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning) as error:
            raise ModelError(f"adapter {folder} does not fit {base}: {first_line(error)}") from error
    if dropped and not adapted.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"adapter {folder} has weights for modules that its adapter_config.json does not name or {base} does not "
            f"have: {', '.join(sorted(dropped)[:3])} ({len(dropped)} in all); name them in target_modules there, or "
            "save the adapter again"
        )
    return adapted
