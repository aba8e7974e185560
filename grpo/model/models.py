"""One place that loads any model: the embedded one, a local folder, or a model of the Hugging Face hub.

Only safetensors are read and no code of a model is run. What can be known before gigabytes are read is checked before:
files that are missing or cut off, a chat template, the memory. Needs `pip install 'jaxsim-soc[train]'`; nothing of that
is imported before `load` is called.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from grpo.model import allocator, chat_template, embedded
from grpo.model.adapters import adapted_model, check_adapter
from grpo.model.errors import ModelError, first_line, required
from grpo.model.folders import EMBEDDED, check_folder, find, identity, in_few_bits, weight_bytes

DTYPES = ("float32", "bfloat16", "float16")
SPARE = 1.1  # memory for weights, and what loading them takes besides


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
    modules = {package: required(package) for package in packages}
    device = _device(device, modules["torch"])
    number = _dtype(dtype, device, modules["torch"])
    if device == "cpu":
        allocator.keep_freed_memory()
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
        model = adapted_model(model, Path(adapter), name, trainable)
    return Loaded(model.eval(), tokenizer, about)


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
        torch = required("torch")
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def check_memory(name: str, need: float, device: str, four_bit: bool) -> None:
    """Raises ModelError when fewer than `need` bytes are free."""
    have = free_memory(device)
    if have is not None and need > have:
        raise ModelError(
            f"{name} needs {need / 1e9:.2f} GB of memory on {device}, {have / 1e9:.2f} GB are free; take "
            f"{'' if four_bit else 'four_bit=True or '}a smaller model, or close other programs"
        )


def load_tokenizer(folder: Path, name: str) -> Any:
    try:
        tokenizer: Any = required("transformers").AutoTokenizer.from_pretrained(
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
    transformers = required("transformers")
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
