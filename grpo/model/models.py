"""One place that loads any model: the embedded one, a local folder, or a model of the Hugging Face hub.

Only safetensors are read and no code of a model is run. What can be known before gigabytes are read is checked before:
files that are missing or cut off, a chat template, the memory. Needs `pip install 'jaxsim-soc[train]'`; nothing of that
is imported before `load` is called.
"""

import difflib
import hashlib
import importlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from grpo.model import chat_template, embedded
from grpo.model.embedded import INSTALL, ModelError, first_line

EMBEDDED = "embedded"
HUB_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "model*.safetensors")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
DTYPES = ("float32", "bfloat16", "float16")
SPARE = 1.1  # memory for weights, and what loading them takes besides
NF4 = 0.52  # bytes of a weight in 4 bits, its share of the scales included
BASE_NOTE = "base.json"  # in an adapter's folder: which base it was made for
ENDS = 4096  # bytes at each end of a tensor, for its model's identity
MERGED = "merged"  # the folder of a merged model in an export
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NOT_QUANTISED = re.compile(r"embed|wte|wpe|lm_head|norm")


class Loaded(NamedTuple):
    """A model that is ready to answer."""

    model: Any
    tokenizer: Any  # pads on the left
    about: dict[str, Any]  # what it is, for reports


def load(
    name: str = EMBEDDED,
    adapter: str | Path | None = None,
    *,
    four_bit: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    offline: bool = False,
    trainable: bool = False,
) -> Loaded:
    """Load a model by name: "embedded", a folder, or a hub id such as Qwen/Qwen2.5-1.5B-Instruct.

    `adapter` is the folder of a PEFT adapter for it, with weights that can be trained on if `trainable`. `four_bit`
    keeps weights as NF4. dtype "auto" is what the device is fast in; `offline` asks no network. Raises ModelError for
    everything that can be wrong with these, with the remedy.
    """
    packages = ["torch", "transformers", "accelerate"] + ["bitsandbytes"] * four_bit + ["peft"] * (adapter is not None)
    modules = {package: _need(package) for package in packages}
    device = _device(device, modules["torch"])
    number = _dtype(dtype, device, modules["torch"])
    folder, source = find(name, offline)
    files = check_folder(folder, name)
    small = in_few_bits(folder)
    need = sum(x.stat().st_size for x in files) if small else weight_bytes(files, number.itemsize, four_bit)
    check_memory(name, SPARE * need, device, four_bit)
    own = identity(folder, files)
    if adapter is not None:
        check_adapter(Path(adapter), name, own)
    tokenizer = load_tokenizer(folder, name)
    model = _model(folder, name, number, device, four_bit and not small)
    model.identity = own  # for `note_base`
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    # What adapters note as their base: the name rather than where it happens to lie.
    model.config._name_or_path = model.name_or_path = name
    about = {
        "name": name,
        "source": source,
        "adapter": None if adapter is None else str(adapter),
        "dtype": str(number).removeprefix("torch."),
        "device": device,
        "four_bit": bool(getattr(model, "is_loaded_in_4bit", False)),
        "parameters": model.num_parameters(),
        "versions": {package: module.__version__ for package, module in modules.items()},
    }
    if adapter is not None:
        model = _adapted(model, Path(adapter), name, trainable)
    return Loaded(model.eval(), tokenizer, about)


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(f"{package} cannot be imported ({error}); {INSTALL}") from error


def _device(device: str, torch: Any) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or (re.fullmatch(r"cuda(:\d+)?", device) and torch.cuda.is_available()):
        return device
    raise ModelError(f"there is no device {device!r} that torch can use here; take auto, cpu or, with a GPU, cuda")


def _dtype(dtype: str, device: str, torch: Any) -> Any:
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; choose one of auto, {', '.join(DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype)
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    can = torch.cpu.get_capabilities()
    return torch.bfloat16 if can.get("amx_bf16") or can.get("avx512_bf16") else torch.float32


def free_memory(device: str) -> int | None:
    """Bytes that can be had on a device; None where that is not known."""
    if device != "cpu":
        torch = _need("torch")
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def weight_bytes(files: Iterable[Path], itemsize: int, four_bit: bool) -> float:
    """Bytes that the weights in these files take in memory."""
    total = 0.0
    for file in files:
        for name, shape in header(file).items():
            small = four_bit and len(shape) == 2 and name.endswith(".weight") and not _NOT_QUANTISED.search(name)
            total += math.prod(shape) * (NF4 if small else itemsize)
    return total


def check_memory(name: str, need: float, device: str, four_bit: bool) -> None:
    """Raises ModelError when fewer than `need` bytes are free."""
    have = free_memory(device)
    if have is not None and need > have:
        raise ModelError(
            f"{name} needs {need / 1e9:.2f} GB of memory on {device}, {have / 1e9:.2f} GB are free; take "
            f"{'' if four_bit else 'four_bit=True or '}a smaller model, or close other programs"
        )


def find(name: str, offline: bool) -> tuple[Path, str]:
    """The folder of a model, and what to call its version in a report."""
    if name == EMBEDDED:
        return embedded.folder(offline=offline), f"{embedded.PACKAGE} {embedded.VERSION}"
    path = Path(name).expanduser()
    if path.is_dir():
        return path, str(path.resolve())
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"{name!r} is no folder and no hub id such as Qwen/Qwen2.5-1.5B-Instruct{_nearest(name)}")
    hub = _need("huggingface_hub")
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
    hub = Path(_need("huggingface_hub").constants.HF_HUB_CACHE)
    here += [found.name.removeprefix("models--").replace("--", "/") for found in sorted(hub.glob("models--*--*"))]
    near = difflib.get_close_matches(name, here, n=3, cutoff=0.5) or here[:3]
    return f"; here are: {', '.join([*near, EMBEDDED])}"


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} holds no JSON object ({error}); fetch or write it again") from error


def check_folder(folder: Path, name: str) -> list[Path]:
    """The files of a model folder that hold weights. Raises ModelError when a file is missing, damaged or cut off."""
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        base = _json(folder / "adapter_config.json").get("base_model_name_or_path") or "which it does not name"
        raise ModelError(f"{name} is an adapter; load its base, {base}, with adapter={name!r}")
    files, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if not (folder / files[0]).is_file() and index.is_file():
        files = sorted(set(_json(index).get("weight_map", {}).values()))
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
    return "quantization_config" in _json(folder / "config.json")


def header(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a safetensors file. Raises ModelError when it is damaged or cut off."""
    safetensors = _need("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} is damaged ({error}); fetch or write it again") from error


def load_tokenizer(folder: Path, name: str) -> Any:
    try:
        tokenizer: Any = _need("transformers").AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, padding_side="left"
        )
    except Exception as error:  # the reader of a tokenizer raises Exception itself
        raise ModelError(f"the tokenizer of {name} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{name} has no chat template; take a model that was trained to chat (its -Instruct version)")
    try:
        template = chat_template.mended(tokenizer)
    except ValueError as error:
        raise ModelError(
            f"the chat template of {name} cannot be used: {error}; mend {_template_file(folder)}, or take another model"
        ) from error
    if template != tokenizer.get_chat_template():
        tokenizer.chat_template = template
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {name} has neither a padding nor an end token; name one in its config")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _template_file(folder: Path) -> Path:
    """Where the chat template of a model folder is."""
    own = folder / "chat_template.jinja"
    return own if own.is_file() else folder / "tokenizer_config.json"


def _model(folder: Path, name: str, dtype: Any, device: str, four_bit: bool) -> Any:
    transformers = _need("transformers")
    options: dict[str, Any] = {}
    if four_bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if four_bit or device != "cpu":
        options["device_map"] = {"": device}
    try:
        with embedded.quiet():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"{name} cannot be loaded: {first_line(error)}") from error
    if info["missing_keys"]:  # would be random
        raise ModelError(f"{name} has no weights for {', '.join(sorted(info['missing_keys'])[:3])}; fetch it again")
    for layer in model.modules():  # a layout of weights for fast answers on CPUs, which a later backward cannot read
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    if device == "cpu":  # of a slice, such as each row's last place, the product would copy all weights for every row
        model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    return model


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
    named = _json(config).get("base_model_name_or_path")
    if not named:
        return
    made_for, told = str(named), _json(note) if note.is_file() else {}
    if told.get("base_model_name_or_path") == made_for:  # else somebody has named another base since
        fits = own in ("", told.get("identity"))
    else:
        fits = _same(made_for, base) and (not own or identity_of(made_for) in ("", own))
    if not fits:
        why = f"was made for {made_for}, not for {base}"
        if _same(made_for, base):
            why = f"does not fit {base}: it was made for {made_for} with other weights"
        change = f"delete {note}" if made_for == base else f"name {base} as its base in {config}"
        raise ModelError(
            f"adapter {folder} {why}; load it with its own base, or, to have it on this one all the same, {change}"
        )


def identity_of(name: str) -> str:
    """The identity of a model that is a whole folder here; '' for others."""
    folder = Path(name).expanduser()
    try:
        return identity(folder, check_folder(folder, name)) if folder.is_dir() else ""
    except ModelError:
        return ""


def _same(one: str, other: str) -> bool:
    """Whether two names mean the same model. A folder may have moved, or hold a copy of a hub's model."""
    hub = [re.sub(r".*models--(.+?)--(.+?)/snapshots/\w+/?$", r"\1/\2", name) for name in (one, other)]
    if all(_HUB_ID.fullmatch(name) and not os.path.isdir(name) for name in hub):
        return hub[0].lower() == hub[1].lower()
    last = [_last(Path(os.path.abspath(name))).lower() for name in hub]
    return last[0] == last[1] or set(last) <= {EMBEDDED, embedded.FOLDER, embedded.EARLIER}


def _last(path: Path) -> str:
    """The name that tells a folder from others: every export has a `merged`."""
    return path.name if path.name != MERGED else str(Path(path.parent.name, MERGED))


def _adapted(model: Any, folder: Path, base: str, trainable: bool) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT's affair
        warnings.filterwarnings("error", message="(.|\n)*Found missing adapter keys")
        try:
            # Weights to train stay float32; to answer with, they are as narrow as the model's, which is far faster.
            kind: dict[str, Any] = {"is_trainable": trainable, "autocast_adapter_dtype": trainable}
            adapted = _need("peft").PeftModel.from_pretrained(model, str(folder), **kind)
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
