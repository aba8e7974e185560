"""Merge a trained adapter into its model, as a model folder and as a GGUF file for llama.cpp, and check both.

    python grpo/export.py --adapter out/train/adapter --out out/soc
    python grpo/export.py --adapter out/train/adapter --gguf f16 --states 128 --out out/soc

DIR/merged/ is a plain model folder (safetensors), DIR/model-q8_0.gguf the same model for llama.cpp. DIR/export.json
says how both were checked: in states of random play the merged model must choose, in float32, the action that base and
adapter choose, or nothing is put into DIR and the exit code is 1. What rounding costs is measured too.
"""

import fcntl
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "benchmarks")]

import cli

for _package in ("torch", "transformers", "peft", "safetensors", "gguf", "llguidance", "rich"):
    cli.need(_package, "exporting", "train")

import jax
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import prompting
import scenarios
from grpo import bank as banks
from grpo import decode, embedded, grammar, models, play, rows
from grpo.embedded import ModelError
from grpo.models import Loaded
from jaxsim.policies import BASELINES
from jaxsim.version import SIMULATOR_VERSION

KINDS = ("q8_0", "f16", "none")
DTYPES = ("float32", "bfloat16", "float16")
MERGED, NOTE = "merged", "export.json"
LICENCES = ("LICENSE", "NOTICE")  # of a base, which go with it
DISAGREES = 1  # exit code
FAR = 0.05  # share that no tensor is off by, even in 8 bits; one in the wrong place is off by more than 1
SAID = decode.Sampling(max_new_tokens=40)  # as in the evaluation
ATTEMPT_SECONDS = 180  # for llama-server to load a model, and for one of its answers
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between this machine and itself
# What llama.cpp's own converter writes, for the architectures that are written here.
ARCHITECTURES = ("llama", "qwen2")
OTHER_WAY = "give --gguf none, then run llama.cpp's own converter: python convert_hf_to_gguf.py {}"
# How llama.cpp is told to cut text before it merges bytes: its name by what tokenizer.json says.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    ("ByteLevel, regex",): "gpt-2",
    ("Digits, each", "ByteLevel, regex"): "smollm",
    (f"Split, {QWEN2_SPLIT}", "ByteLevel"): "qwen2",
}


class Exam(NamedTuple):
    """States of random play, by campaign."""

    inventories: tuple[prompting.Inventory, ...]
    prompts: list[list[str]]


class Answers(NamedTuple):
    """What a model does in the states of an exam."""

    texts: list[str]
    actions: list[int]


# --- what to do -----------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None) -> Any:
    """The command line."""
    p = cli.parser(__doc__)
    # fmt: off
    p.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="a LoRA adapter, as training leaves it")
    p.add_argument("--model", metavar="NAME", help="embedded, a folder, or a hub id (default: the adapter's own base)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the export goes; whole or not at all")
    p.add_argument("--restart", action="store_true", help="replace an earlier export in --out")
    p.add_argument("--gguf", type=cli.one_of(KINDS), default=KINDS[0], metavar="TYPE",
                   help=f"{', '.join(KINDS)} (default: {KINDS[0]})")
    p.add_argument("--dtype", type=cli.one_of(DTYPES), default=DTYPES[0], metavar="NAME",
                   help=f"of merged/: {', '.join(DTYPES)} (default: {DTYPES[0]}, which rounds nothing)")
    p.add_argument("--states", type=cli.integer(1, 10_000), default=32, metavar="N",
                   help="to compare the models in (default: 32)")
    p.add_argument("--batch", type=cli.positive_int, default=16, metavar="N", help="prompts at a time (default: 16)")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    p.add_argument("--threads", type=cli.positive_int, metavar="N", help="of torch (default: its own choice)")
    p.add_argument("--offline", action="store_true", help="ask no network for the model")
    p.add_argument("--llama-cpp", type=Path, metavar="FILE",
                   help="a llama-server, to compare the GGUF in it too (default: the one on PATH, if there is one)")
    # fmt: on
    args = p.parse_args(argv)
    args.command = shlex.join(["python", "grpo/export.py", *(sys.argv[1:] if argv is None else argv)])
    given = args.llama_cpp
    if given is not None and not (given.is_file() and os.access(given, os.X_OK)):
        cli.fail(f"--llama-cpp {str(given)!r} is no program that can be run; give the path of llama-server")
    if given is not None and args.gguf == "none":
        cli.fail("--llama-cpp has nothing to read with --gguf none; leave one of them out")
    return args


def base_of(adapter: Path) -> str:
    """The model that an adapter was made for. Raises ModelError when its files are not those of a LoRA adapter."""
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
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path}: base_model_name_or_path is {base!r}; name the model with --model")
    return base


# --- the folder -----------------------------------------------------------------------------------------------------


@contextmanager
def replacing(out: Path, restart: bool, inputs: Sequence[Path]) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place when all went well, and goes away when not.

    Fails when `out` holds anything but an export that may be replaced, or another process is writing it.
    """
    out = Path(os.path.realpath(out))
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():  # killed between the two renames
        os.replace(old, out)
    check_target(out, restart, inputs)
    part.mkdir(parents=True, exist_ok=True)
    with held(part, out):
        for left in (old, *part.iterdir()):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        try:
            yield part
            if out.exists():
                os.replace(out, old)
            os.replace(part, out)
        except BaseException:
            if old.exists():
                os.replace(old, out)
            shutil.rmtree(part, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def held(folder: Path, out: Path) -> Iterator[None]:
    """Keep others out of a folder, even once it is renamed. Fails when another process has it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.path.samestat(os.fstat(lock), os.stat(folder))
        except OSError:
            free = False
        if not free:
            cli.fail(f"--out {str(out)!r}: another export is writing there; wait for it, or give another --out")
        yield
    finally:
        os.close(lock)


def check_target(out: Path, restart: bool, inputs: Sequence[Path]) -> None:
    """Fail when a folder may not be written, or replaced."""
    if out.exists() and not out.is_dir():
        cli.fail(f"--out {str(out)!r} is a file; give the name of a folder")
    for path in inputs:
        if path.is_dir() and out in (real := path.resolve(), *real.parents):
            cli.fail(f"--out {str(out)!r} holds {str(path)!r}, which is to be exported; give another --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / NOTE).is_file():
            cli.fail(f"--out {str(out)!r} is a folder with other files in it; give an empty or a new one")
        if not restart:
            cli.fail(f"--out {str(out)!r} holds an export already; give another --out, or --restart to replace it")


def check_room(folder: Path, need: float) -> None:
    """Raises ModelError when a disk has fewer than `need` bytes to spare."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ModelError(
            f"the export needs {need / 1e9:.2f} GB of disk space, {free / 1e9:.2f} GB are free in {folder.parent}; "
            "make room, give an --out on another disk, or --dtype bfloat16"
        )


# --- the merged model -----------------------------------------------------------------------------------------------


def merged(loaded: Loaded) -> Any:
    """The model with the adapter in its weights. Raises ModelError when the adapter's weights are no numbers."""
    try:
        model = loaded.model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # NaN
        why = str(error).strip().splitlines()[0]
        raise ModelError(f"the adapter cannot be merged: {why}; take one of an earlier step") from error
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
    except SafetensorError as error:  # no space left
        raise OSError(28, str(error), str(folder)) from error
    (folder / "README.md").write_text(card, encoding="utf-8")
    for path in licences:
        shutil.copyfile(path, folder / path.name)
    weights = model.state_dict()
    for file in models.check_folder(folder, str(folder)):
        with safe_open(file, framework="pt") as kept:
            for name in kept.keys():  # noqa: SIM118
                if not torch.equal(kept.get_tensor(name), weights[name].cpu()):
                    raise ModelError(f"{file}: {name} is not what was written; is the disk broken?")


def name_of(base: str) -> str:
    """What to call a base in public: of a folder, its last name."""
    if base == models.EMBEDDED:
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


# --- GGUF -----------------------------------------------------------------------------------------------------------


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


# --- the check ------------------------------------------------------------------------------------------------------


def exam(many: int) -> Exam:
    """States of random play on the published campaigns, the same each time."""
    game = rows.campaigns(scenarios.names("published"), "hardened", "operational")
    each = math.ceil(many / len(game.names))
    every = banks.collect_heuristic(game.env, game.params, *BASELINES["random"], jax.random.key(0), each)
    total = len(every.params_index)
    chosen = banks.take(every, np.unique(np.linspace(0, total - 1, min(many, total)).round().astype(int)))
    texts = rows.prompts_of(game, chosen, "compact")
    campaign = np.asarray(chosen.params_index).tolist()
    prompts = [[text for text, p in zip(texts, campaign, strict=True) if p == q] for q in range(len(game.names))]
    return Exam(game.inventories, prompts)


def examine(
    answer: Callable[[Sequence[str], prompting.Inventory, bool], Sequence[str]], states: Exam
) -> dict[str, Answers]:
    """What is answered, free and bound by the grammar."""
    found = {}
    for way, bound in (("constrained", True), ("free", False)):
        texts: list[str] = []
        actions: list[int] = []
        for inventory, prompts in zip(states.inventories, states.prompts, strict=True):
            said = answer(prompts, inventory, bound) if prompts else []
            texts += said
            actions += [int(prompting.parse(text, inventory).action) for text in said]
        found[way] = Answers(texts, actions)
    return found


def answering(
    model: Any, tokenizer: Any, batch: int
) -> Callable[[Sequence[str], prompting.Inventory, bool], Sequence[str]]:
    """A model's greedy answers."""
    decoder = decode.Decoder(model, tokenizer)

    def answer(prompts: Sequence[str], inventory: prompting.Inventory, bound: bool) -> Sequence[str]:
        matcher = grammar.matcher(tokenizer, inventory) if bound else None
        return play.responder(decoder, SAID, matcher=matcher, batch=batch)(prompts, range(len(prompts)), 0)

    return answer


def agreement(name: str, found: dict[str, Answers], wanted: dict[str, Answers]) -> dict[str, Any]:
    """The shares of states in which a model does, and says to the letter, what is wanted."""
    row: dict[str, Any] = {"what": name}
    for way, one in found.items():
        for what in ("actions", "texts"):
            pairs = list(zip(getattr(one, what), getattr(wanted[way], what), strict=True))
            row[f"{way}_{what}"] = sum(a == b for a, b in pairs) / len(pairs)
    return row


def wrong(row: dict[str, Any]) -> str:
    """What is wrong with a model that was compared; '' when it may be given to others."""
    if row["must_agree"] and min(row["constrained_actions"], row["free_actions"]) < 1:
        return "does not do what base and adapter do: the adapter changes something that cannot be merged"
    if not row.get("weights_off", 0) <= FAR:  # NaN as well
        return f"holds other weights than the merged model: one is off by {row['weights_off']:.0%}"
    return ""


def weights_off(model: Any, folder: Path) -> float:
    """How far a model's weights are from those in a model folder: the largest share that a tensor is off by."""
    from safetensors import safe_open

    held = model.state_dict()
    worst = 0.0
    for file in models.check_folder(folder, str(folder)):
        with safe_open(file, framework="pt") as kept:
            for name in kept.keys():  # noqa: SIM118
                wanted, one = kept.get_tensor(name).float(), held[name].float().cpu()
                size = float(wanted.norm())
                worst = max(worst, float((one - wanted).norm()) / size if size else float(one.norm()))
    return worst


def same_tokens(tokenize: Callable[[str], Sequence[int]], tokenizer: Any, states: Exam) -> float:
    """The share of the exam's prompts that are cut into the tokens that the tokenizer cuts them into."""
    texts = [chat_text(tokenizer, prompt) for prompts in states.prompts for prompt in prompts]
    same = [list(tokenize(text)) == token_ids(tokenizer, text) for text in texts]
    return sum(same) / len(same)


def token_ids(tokenizer: Any, text: str) -> Sequence[int]:
    """A text's tokens and no others."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def chat_text(tokenizer: Any, prompt: str) -> str:
    """A prompt in the chat template."""
    text: str = tokenizer.apply_chat_template(prompting.chat(prompt), tokenize=False, add_generation_prompt=True)
    return text


# --- llama.cpp ------------------------------------------------------------------------------------------------------


@contextmanager
def serving(program: str, path: Path, context: int) -> Iterator[str]:
    """The address of a llama-server with this file. Raises ModelError when it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(context), "--parallel", "1"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [program, "--model", str(path), *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + ATTEMPT_SECONDS
            while True:
                try:
                    with DIRECT.open(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError as error:
                    if server.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        last = log.read().decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
                        raise ModelError(f"{program} does not run {path.name}: {last[0]}") from error
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def asked(address: str, what: str, **given: Any) -> Any:
    """A server's answer. Raises ModelError when there is none."""
    request = urllib.request.Request(
        f"{address}/{what}", json.dumps(given).encode(), {"Content-Type": "application/json"}
    )
    try:
        with DIRECT.open(request, timeout=ATTEMPT_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        told = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
        raise ModelError(f"llama-server gives no answer to /{what}: {error} {told:.200}") from error


def served(address: str, tokenizer: Any) -> Callable[[Sequence[str], prompting.Inventory, bool], Sequence[str]]:
    """The greedy answers of a llama-server, which cuts the text into tokens itself."""
    greedy = {"temperature": 0, "top_k": 1, "repeat_penalty": 1, "n_predict": SAID.max_new_tokens}

    def answer(prompts: Sequence[str], inventory: prompting.Inventory, bound: bool) -> Sequence[str]:
        legal = [json.dumps(prompting.encode(action, inventory)) for action in inventory.actions.values()]
        rule = {"grammar": f"root ::= {' | '.join(legal)}"} if bound else {}
        chats = [chat_text(tokenizer, prompt) for prompt in prompts]
        return [str(asked(address, "completion", prompt=chat, **greedy, **rule)["content"]) for chat in chats]

    return answer


def server_tokens(address: str, text: str) -> Sequence[int]:
    """How a llama-server cuts a text into tokens."""
    ids: list[int] = asked(address, "tokenize", content=text, parse_special=True)["tokens"]
    return ids


# --- all of it ------------------------------------------------------------------------------------------------------


def export(args: Any, base: str, part: Path, advance: Callable[[str], None]) -> dict[str, Any]:
    """Write the export into `part`; returns what is to be said about it."""
    advance("loading the model")
    loaded = models.load(base, args.adapter, dtype="float32", device=args.device, offline=args.offline)
    check(args, base, loaded, part)
    advance("states of random play")
    states = exam(args.states)
    advance("base and adapter")
    wanted = examine(answering(loaded.model, loaded.tokenizer, args.batch), states)
    model = merged(loaded)
    found = []
    if args.dtype != "float32":
        advance("merged")
        row = agreement(
            "merged, not yet rounded", examine(answering(model, loaded.tokenizer, args.batch), states), wanted
        )
        found.append(row | {"weights": "float32", "must_agree": True})
    four_bit = trained_in_four_bits(args.adapter)
    write(
        args,
        base,
        model,
        loaded.tokenizer,
        part,
        card_of(base, args.adapter.resolve().name, args.dtype, four_bit),
        advance,
    )
    about, tokenizer, ends = loaded.about, loaded.tokenizer, model.generation_config.eos_token_id
    del model, loaded
    found += compare(args, part, tokenizer, ends, states, wanted, advance)
    return {
        "command": args.command,
        "base": base,
        "source": about["source"],
        "adapter": str(args.adapter),
        "adapter_sha256": embedded.sha256(args.adapter / "adapter_model.safetensors"),
        "trained_in_four_bits": four_bit,
        "dtype": args.dtype,
        "gguf": args.gguf,
        "tokenizer_split": split_of(tokenizer),
        "states": len(wanted["free"].actions),
        "different_actions": {way: len(set(one.actions)) for way, one in wanted.items()},
        "agreement": found,
        "files": {
            str(path.relative_to(part)): {"bytes": path.stat().st_size, "sha256": embedded.sha256(path)}
            for path in sorted(part.rglob("*"))
            if path.is_file()
        },
        "versions": about["versions"] | {
            "jaxsim-soc": cli.version(), "simulator": SIMULATOR_VERSION, "prompts": prompting.FORMAT_VERSION,
            "python": platform.python_version(), "gguf": version("gguf"), "safetensors": version("safetensors"),
        },
    }  # fmt: skip


def check(args: Any, base: str, loaded: Loaded, part: Path) -> None:
    """Raises ModelError when the model cannot be merged or written, before that is begun."""
    model = loaded.model.get_base_model()
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(f"{base} is kept in few bits, which nothing can be merged into; give its full version")
    why = "" if args.gguf == "none" else unwritable(model, loaded.tokenizer)
    if why:
        folder = shlex.quote(str(args.out / MERGED))
        raise ModelError(f"--gguf {args.gguf}: no GGUF of {base} can be written: {why}; {OTHER_WAY.format(folder)}")
    each = {"float32": 4, "bfloat16": 2, "float16": 2}[args.dtype] + {"q8_0": 1.1, "f16": 2, "none": 0}[args.gguf]
    check_room(part, loaded.about["parameters"] * each * models.SPARE)


def write(
    args: Any, base: str, model: Any, tokenizer: Any, part: Path, card: str, advance: Callable[[str], None]
) -> None:
    """Write both files. The GGUF is made of the merged weights before they are rounded."""
    folder, origin = part / MERGED, embedded.folder(offline=True) if base == models.EMBEDDED else Path(base)
    if args.gguf != "none":
        advance(f"writing {gguf_in(part, args.gguf).name}")
        name = name_of(base).rpartition("/")[2]
        write_gguf(gguf_in(part, args.gguf), model, tokenizer, folder, args.gguf, f"{name}-soc")
    advance(f"writing {MERGED}/")
    save(model, tokenizer, folder, args.dtype, card, [path for x in LICENCES if (path := origin / x).is_file()])


def compare(
    args: Any,
    part: Path,
    tokenizer: Any,
    ends: Any,
    states: Exam,
    wanted: dict[str, Answers],
    advance: Callable[[str], None],
) -> list[dict[str, Any]]:
    """What the files do, read back from disk, beside what is wanted."""
    advance(f"reading {MERGED}/")
    model, cut, about = models.load(str(part / MERGED), dtype="float32", device=args.device, offline=True)
    row = agreement(f"{MERGED}/", examine(answering(model, cut, args.batch), states), wanted)
    row |= {"same_tokens": same_tokens(partial(token_ids, cut), tokenizer, states)}
    found = [row | {"weights": args.dtype, "must_agree": args.dtype == "float32"}]
    del model
    path = gguf_in(part, args.gguf)
    if args.gguf == "none":
        return found
    advance(f"reading {path.name}")
    model, cut = load_gguf(path, about["device"], ends)
    row = agreement(path.name, examine(answering(model, cut, args.batch), states), wanted)
    row |= {"same_tokens": same_tokens(partial(token_ids, cut), tokenizer, states)}
    row |= {"weights_off": weights_off(model, part / MERGED)}
    found.append(row | {"weights": args.gguf, "must_agree": False})
    del model
    program = args.llama_cpp.resolve() if args.llama_cpp else shutil.which("llama-server")
    if program:
        advance(f"llama.cpp with {path.name}")
        try:
            row = in_llama_cpp(str(program), path, tokenizer, states, wanted)
        except ModelError as error:
            if args.llama_cpp:
                raise
            print(f"warning: {error}; the file was not tried in llama.cpp", file=sys.stderr)
        else:
            found.append(row | {"weights": args.gguf, "must_agree": False})
    return found


def in_llama_cpp(program: str, path: Path, tokenizer: Any, states: Exam, wanted: dict[str, Answers]) -> dict[str, Any]:
    """What a llama-server does with the file. Raises ModelError when it does not answer."""
    longest = max(len(token_ids(tokenizer, chat_text(tokenizer, p))) for q in states.prompts for p in q)
    with serving(program, path, longest + SAID.max_new_tokens + 64) as address:
        row = agreement(f"{path.name} in llama.cpp", examine(served(address, tokenizer), states), wanted)
        return row | {"same_tokens": same_tokens(partial(server_tokens, address), tokenizer, states)}


def gguf_in(folder: Path, kind: str) -> Path:
    """Where the GGUF file is."""
    return folder / f"model-{kind}.gguf"


def table(told: dict[str, Any]) -> Table:
    """What was compared."""
    kinds = told["different_actions"]
    caption = (
        f"Of {told['states']} states of random play. Base and adapter choose {kinds['constrained']} different actions "
        f"in them constrained, {kinds['free']} free (all that is not legal counts as one)."
    )
    if told["trained_in_four_bits"]:
        caption += " The adapter was trained on its base in 4 bits; it is merged into, and compared on, the full one."
    shown = Table(title="The same as base and adapter", caption=caption, title_justify="left", caption_justify="left")
    for head in ("model", "weights", "action, constrained", "action, free", "words, free", "tokens of the prompt"):
        shown.add_column(head, justify="left" if head in ("model", "weights") else "right")
    for row in told["agreement"]:
        shares = [row["constrained_actions"], row["free_actions"], row["free_texts"], row.get("same_tokens")]
        shown.add_row(row["what"], row["weights"], *("" if x is None else f"{x:.1%}" for x in shares))
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, merge, write, compare."""
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(stderr=True)
    try:
        own = base_of(args.adapter)
        base = args.model or own
        with replacing(args.out, args.restart, [args.adapter, Path(base)]) as part:
            with console.status("starting") as status:
                told = export(args, base, part, status.update)
            Console(width=120).print(table(told))
            for row in told["agreement"]:
                if why := wrong(row):
                    name = Path(sys.argv[0]).name
                    print(f"{name}: {row['what']} {why}; nothing was written to {args.out}", file=sys.stderr)
                    raise SystemExit(DISAGREES)
            cli.write_json(part / NOTE, told)
    except ModelError as error:
        cli.fail(str(error))
    print(args.out / MERGED)
    if args.gguf != "none":
        file = gguf_in(args.out, args.gguf)
        print(file)
        print(f"with llama.cpp: llama-server --model {shlex.quote(str(file))} --temp 0")


if __name__ == "__main__":
    cli.run(main)
