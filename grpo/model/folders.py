"""The folder of a model: found or fetched, checked before gigabytes are read, and told by its content.

Only safetensors are read.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpo.model import embedded
from grpo.model.errors import ModelError, first_line, required

EMBEDDED = "embedded"
HUB_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "model*.safetensors")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
NF4 = 0.52  # bytes of a weight in 4 bits, its share of the scales included
ENDS = 4096  # bytes at each end of a tensor, for its model's identity
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NOT_QUANTISED = re.compile(r"embed|wte|wpe|lm_head|norm")


def weight_bytes(files: Iterable[Path], itemsize: int, four_bit: bool) -> float:
    """Bytes that the weights in these files take in memory."""
    total = 0.0
    for file in files:
        for name, shape in header(file).items():
            small = four_bit and len(shape) == 2 and name.endswith(".weight") and not _NOT_QUANTISED.search(name)
            total += math.prod(shape) * (NF4 if small else itemsize)
    return total


def find(name: str, offline: bool) -> tuple[Path, str]:
    """The folder of a model, and what to call its version in a report."""
    if name == EMBEDDED:
        return embedded.folder(offline=offline), f"{embedded.PACKAGE} {embedded.VERSION}"
    path = Path(name).expanduser()
    if path.is_dir():
        return path, str(path.resolve())
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{name!r} is no folder and no hub id such as Qwen/Qwen2.5-1.5B-Instruct{_nearest(name)}")
    hub = required("huggingface_hub")
    try:
        path = Path(hub.snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=offline))
    except hub.errors.GatedRepoError as error:
        raise ModelError(f"{name} asks for permission on the hub; get it there, then run `hf auth login`") from error
    except hub.errors.RepositoryNotFoundError as error:
        raise ModelError(f"{name!r} is no folder here, and the hub does not know it{_nearest(name)}") from error
    except Exception as error:  # whatever the network does
        why = "it may not be fetched (offline)" if offline else f"the hub cannot be reached ({first_line(error)})"
        raise ModelError(
            f"{name!r} is no folder here, it is not in the cache, and {why}; "
            f"load it once with a network, or give the folder of a copy{_nearest(name)}"
        ) from error
    return path, f"{name} at {path.name}"


def _nearest(name: str) -> str:
    """Models that are here, those of a like name first."""
    path = Path(name).expanduser()
    here = [str(found.parent) for found in sorted(path.parent.glob("*/config.json"))[:100]]
    hub = Path(required("huggingface_hub").constants.HF_HUB_CACHE)
    here += [found.name.removeprefix("models--").replace("--", "/") for found in sorted(hub.glob("models--*--*"))]
    near = difflib.get_close_matches(name, here, n=3, cutoff=0.5) or here[:3]
    return f"; here are: {', '.join([*near, EMBEDDED])}"


def json_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} holds no JSON object ({error}); fetch or write it again") from error


def check_folder(folder: Path, name: str) -> list[Path]:
    """The files of a model folder that hold weights. Raises ModelError when a file is missing, damaged or cut off."""
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        base = json_object(folder / "adapter_config.json").get("base_model_name_or_path") or "which it does not name"
        raise ModelError(f"{name} is an adapter; load its base, {base}, with adapter={name!r}")
    files, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if not (folder / files[0]).is_file() and index.is_file():
        files = sorted(set(json_object(index).get("weight_map", {}).values()))
    tokenizer = next((file for file in TOKENIZERS if (folder / file).is_file()), TOKENIZERS[0])
    for file in ("config.json", tokenizer, *files):
        if not (folder / file).is_file():
            other = next((path.name for path in folder.iterdir() if path.suffix in (".bin", ".gguf")), None)
            note = f" ({other} is not read, only safetensors are)" if other else ""
            raise ModelError(f"{name} has no {file} in {folder}{note}; fetch the whole model again")
    for file in files:
        header(folder / file)
    return [folder / file for file in files]


def in_few_bits(folder: Path) -> bool:
    """Whether the weights of a model folder are quantised."""
    return "quantization_config" in json_object(folder / "config.json")


def header(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a safetensors file. Raises ModelError when it is damaged or cut off."""
    safetensors = required("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} is damaged ({error}); fetch or write it again") from error


def identity(folder: Path, files: Iterable[Path]) -> str:
    """What a model is, wherever it lies: a digest of its tensors' names, shapes, kinds and the ends of their values.

    Training or merging changes nearly every value of a tensor, and a few read in no time even of a large model.
    """
    if folder.name in (embedded.FOLDER, embedded.EARLIER):  # unpacked by whatever version of transformers
        return embedded.GGUF_SHA256
    found = {}
    for path in files:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            for name, told in json.loads(file.read(size)).items():
                if name == "__metadata__":
                    continue
                begin, end = told["data_offsets"]
                values = b""
                for at in (begin, max(begin, end - ENDS)):
                    file.seek(8 + size + at)
                    values += file.read(min(ENDS, end - at))
                found[name] = f"{name} {told['dtype']} {told['shape']} {hashlib.sha256(values).hexdigest()}\n"
    return hashlib.sha256("".join(found[name] for name in sorted(found)).encode()).hexdigest()


def identity_of(name: str) -> str:
    """The identity of a model that is a whole folder here; '' for others."""
    folder = Path(name).expanduser()
    try:
        return identity(folder, check_folder(folder, name)) if folder.is_dir() else ""
    except ModelError:
        return ""
