"""GGUF, the file format of llama.cpp: what can be written here, writing it, reading it back."""

import io
import json
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.model import embedded
from grpo.model.errors import ModelError

# What llama.cpp's own converter writes, for the architectures that are written here.
ARCHITECTURES = ("llama", "qwen2")
# How llama.cpp is told to cut text before it merges bytes: its name by what tokenizer.json says.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    ("ByteLevel, regex",): "gpt-2",
    ("Digits, each", "ByteLevel, regex"): "smollm",
    (f"Split, {QWEN2_SPLIT}", "ByteLevel"): "qwen2",
}


def unwritable(model: Any, tokenizer: Any) -> str:
    """Why no GGUF of this model can be written here; '' when it can."""
    config = model.config
    if config.model_type not in ARCHITECTURES:
        return f"it is a {config.model_type!r} model, and only {' and '.join(ARCHITECTURES)} are written here"
    rope = getattr(config, "rope_parameters", None) or {}
    usual = {
        "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,),
        "use_sliding_window": (False,),
    }  # fmt: skip
    for name, values in usual.items():
        value = getattr(config, name, values[0])
        if value not in values:
            return f"its {name} is {value!r}, which is not written here"
    if rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        return f"its rope_parameters are {rope!r}, and only the default rope_type is written here"
    if split_of(tokenizer) is None:
        return "its tokenizer is none of the byte-level kinds that are written here (gpt-2, smollm, qwen2)"
    return ""


def split_of(tokenizer: Any) -> str | None:
    """What llama.cpp calls this way of cutting text into pieces; None for one that is not known here."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    told = json.loads(backend.to_str())
    kind, cut = told["model"], told["pre_tokenizer"] or {}
    plain = kind["type"] == "BPE" and not any(
        kind.get(x) for x in ("byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    )
    if not plain or (told["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        return None
    return SPLITS.get(tuple(_stage(x) for x in cut.get("pretokenizers", [cut])))


def _stage(cut: dict[str, Any]) -> str:
    """A step of cutting text, in words."""
    match cut:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return "ByteLevel, regex" if regex else "ByteLevel"
        case {"type": "Digits", "individual_digits": True}:
            return "Digits, each"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return f"Split, {regex}"
    return "another"


def write_gguf(path: Path, model: Any, tokenizer: Any, folder: Path, kind: str, name: str) -> None:
    """Write a model for llama.cpp, as its own converter would. Into `folder` go tokenizer and config, to be read."""
    import gguf

    config, layers = model.config, model.config.num_hidden_layers
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    writer: Any = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _add_tokenizer(writer, tokenizer, folder, config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ModelError(f"{key} has no place in a GGUF of {config.model_type}; give --gguf none")
        values = tensor.detach().float().cpu().numpy()
        if config.model_type == "llama" and (turned := re.search(r"self_attn\.([qk])_proj", key)):
            values = permuted(values, config.num_attention_heads if turned[1] == "q" else config.num_key_value_heads)
        wanted = tensor_type(values, kind)
        with np.errstate(over="ignore"):
            quantised = gguf.quants.quantize(np.ascontiguousarray(values), wanted)
        if wanted == gguf.GGMLQuantizationType.F16 and not np.isfinite(quantised).all():
            raise ModelError(f"{key} holds numbers that float16 has no room for; give --gguf none")
        writer.add_tensor(written, quantised, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, from two halves a head to pairs: how llama.cpp rotates `llama` models."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def tensor_type(values: np.ndarray, kind: str) -> Any:
    """Norms and biases stay in float32; a row that 8-bit blocks do not fit is kept in 16 bits."""
    import gguf

    types = gguf.GGMLQuantizationType
    if values.ndim < 2:
        return types.F32
    block, _ = gguf.GGML_QUANT_SIZES[types.Q8_0]
    return types.Q8_0 if kind == "q8_0" and values.shape[-1] % block == 0 else types.F16


def _add_tokenizer(writer: Any, tokenizer: Any, folder: Path, size: int) -> None:
    import gguf

    texts = {i: text for text, i in tokenizer.get_vocab().items()}
    if max(texts) >= size:
        raise ModelError(f"the tokenizer has {max(texts) + 1} tokens, the model {size}; they do not belong together")
    added = tokenizer.added_tokens_decoder
    types = gguf.TokenType
    kinds = [
        types.UNUSED if i not in texts
        else types.NORMAL if i not in added
        else types.CONTROL if added[i].special or re.fullmatch(r"<\|.*\|>", texts[i])
        else types.USER_DEFINED
        for i in range(size)
    ]  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_of(tokenizer))
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    ids = tokenizer("x")["input_ids"]
    special.add_special_token |= {
        "bos": ids[0] == tokenizer.bos_token_id,
        "eos": ids[-1] == tokenizer.eos_token_id,
    }
    special.special_token_ids |= {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    special.add_to_gguf(writer, quiet=True)


def load_gguf(path: Path, device: str, ends: Any) -> tuple[Any, Any]:
    """Model and tokenizer out of a GGUF file, its weights unpacked to float32. `ends` are the ends of an answer."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # older versions unpack without being told
    unpack: dict[str, Any] = {"quantization_config": config(dequantize=True)} if config else {}
    same: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    automatic: Any = transformers.AutoModelForCausalLM
    tokens: Any = transformers.AutoTokenizer
    try:
        with embedded.quiet(), redirect_stderr(io.StringIO()):  # a bar of its own
            tokenizer = tokens.from_pretrained(path.parent, padding_side="left", **same)
            model = automatic.from_pretrained(
                path.parent, dtype=torch.float32, attn_implementation="sdpa", **same, **unpack
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"{path.name}, just written, cannot be read by transformers: {error}") from error
    model.generation_config.eos_token_id = ends
    return model.to(device), tokenizer
