"""Merge a trained adapter into its model, as a model folder and as a GGUF file for llama.cpp, and check both.

    jaxsim-soc export --adapter out/train/adapter --out out/soc
    jaxsim-soc export --adapter out/train/adapter --gguf f16 --states 128 --out out/soc

DIR/merged/ is a plain model folder (safetensors), DIR/model-q8_0.gguf the same model for llama.cpp. DIR/export.json
says how both were checked: in states of random play the merged model must choose, in float32, the action that base and
adapter choose, or nothing is put into DIR and the exit code is 1. What rounding costs is measured too.
"""

import fcntl
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import prompting
from grpo.exporting import exam as exams
from grpo.exporting import gguf_file, llama_server
from grpo.model import decode, embedded, models
from grpo.model.embedded import ModelError, first_line
from grpo.model.models import Loaded
from grpo.model.portable import make_portable
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

KINDS = ("q8_0", "f16", "none")
DTYPES = ("float32", "bfloat16", "float16")
MERGED, NOTE = models.MERGED, "export.json"
# What an adapter can be that no weights of its base can; by the name of its setting.
NEVER_MERGED = {
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "waits for certain tokens",
    "arrow_config": "chooses among adapters",
}
LICENCES = ("LICENSE", "NOTICE")  # of a base, which go with it
DISAGREES = 1  # exit code
NOT_MERGED = (
    "cannot be merged; use it with jaxsim-soc evaluate-model --adapter, beside its base, or train one without that"
)
OTHER_WAY = "give --gguf none, then run llama.cpp's own converter: python convert_hf_to_gguf.py {}"


# --- what to do -----------------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    # fmt: off
    p.add_argument("--adapter", type=cli.input_folder, required=True, metavar="DIR",
                   help="a LoRA adapter, as training leaves it")
    p.add_argument("--model", metavar="NAME", help="embedded, a folder, or a hub id (default: the adapter's own base)")
    p.add_argument("--out", type=cli.output_folder, required=True, metavar="DIR",
                   help="where the export goes; whole or not at all")
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
    return p


def arguments(argv: Sequence[str] | None) -> Any:
    """The command line."""
    args = parser().parse_args(argv)
    args.command = shlex.join(["jaxsim-soc", "export", *(sys.argv[1:] if argv is None else argv)])
    given = args.llama_cpp
    if given is not None and not (given.is_file() and os.access(given, os.X_OK)):
        cli.fail(f"--llama-cpp {str(given)!r} is no program that can be run; give the path of llama-server")
    if given is not None and args.gguf == "none":
        cli.fail("--llama-cpp has nothing to read with --gguf none; leave one of them out")
    return args


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


# --- all of it ------------------------------------------------------------------------------------------------------


def export(args: Any, base: str, part: Path, advance: Callable[[str], None]) -> dict[str, Any]:
    """Write the export into `part`; returns what is to be said about it."""
    advance("loading the model")
    config = args.adapter / "adapter_config.json"
    try:
        place, _ = models.find(base, args.offline)
    except ModelError as error:
        if args.model:
            raise
        raise ModelError(f"{config}: base_model_name_or_path: {error}; or say with --model where it lies") from error
    if models.in_few_bits(place):
        raise ModelError(
            f"{base} is kept in few bits, which nothing can be merged into; write the name or folder of its full "
            f"version as base_model_name_or_path into {config}, and leave out --model"
        )
    loaded = models.load(base, args.adapter, dtype="float32", device=args.device, offline=args.offline)
    check(args, base, loaded, part)
    advance("states of random play")
    states = exams.states(args.states)
    advance("base and adapter")
    wanted = exams.examine(exams.answering(loaded.model, loaded.tokenizer, args.batch), states)
    model = merged(loaded)
    found = []
    if args.dtype != "float32":
        advance("merged")
        row = exams.agreement(
            "merged, not yet rounded",
            exams.examine(exams.answering(model, loaded.tokenizer, args.batch), states),
            wanted,
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
        "tokenizer_split": gguf_file.split_of(tokenizer),
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
    why = "" if args.gguf == "none" else gguf_file.unwritable(model, loaded.tokenizer)
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
        gguf_file.write_gguf(gguf_in(part, args.gguf), model, tokenizer, folder, args.gguf, f"{name}-soc")
    advance(f"writing {MERGED}/")
    save(model, tokenizer, folder, args.dtype, card, [path for x in LICENCES if (path := origin / x).is_file()])


def compare(
    args: Any,
    part: Path,
    tokenizer: Any,
    ends: Any,
    states: exams.Exam,
    wanted: dict[str, exams.Answers],
    advance: Callable[[str], None],
) -> list[dict[str, Any]]:
    """What the files do, read back from disk, beside what is wanted."""
    advance(f"reading {MERGED}/")
    model, cut, about = models.load(str(part / MERGED), dtype="float32", device=args.device, offline=True)
    row = exams.agreement(f"{MERGED}/", exams.examine(exams.answering(model, cut, args.batch), states), wanted)
    row |= {"same_tokens": exams.same_tokens(partial(decode.token_ids, cut), tokenizer, states)}
    found = [row | {"weights": args.dtype, "must_agree": args.dtype == "float32"}]
    del model
    path = gguf_in(part, args.gguf)
    if args.gguf == "none":
        return found
    advance(f"reading {path.name}")
    model, cut = gguf_file.load_gguf(path, about["device"], ends)
    row = exams.agreement(path.name, exams.examine(exams.answering(model, cut, args.batch), states), wanted)
    row |= {"same_tokens": exams.same_tokens(partial(decode.token_ids, cut), tokenizer, states)}
    row |= {"weights_off": exams.weights_off(model, part / MERGED)}
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


def in_llama_cpp(
    program: str, path: Path, tokenizer: Any, states: exams.Exam, wanted: dict[str, exams.Answers]
) -> dict[str, Any]:
    """What a llama-server does with the file. Raises ModelError when it does not answer."""
    longest = max(len(decode.token_ids(tokenizer, text)) for text in exams.chat_texts(tokenizer, states))
    with llama_server.serving(program, path, longest + exams.SAID.max_new_tokens + 64) as address:
        row = exams.agreement(
            f"{path.name} in llama.cpp", exams.examine(llama_server.served(address, tokenizer), states), wanted
        )
        return row | {"same_tokens": exams.same_tokens(partial(llama_server.server_tokens, address), tokenizer, states)}


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
    console = Console(stderr=True, markup=False)
    try:
        base = base_of(args.adapter, args.model)
        with replacing(args.out, args.restart, [args.adapter, Path(base)]) as part:
            with console.status("starting") as status:
                told = export(args, base, part, status.update)
            Console(width=120, markup=False).print(table(told))
            for row in told["agreement"]:
                if why := exams.wrong(row):
                    print(f"{cli.prog()}: {row['what']} {why}; nothing was written to {args.out}", file=sys.stderr)
                    raise SystemExit(DISAGREES)
            cli.write_json(part / NOTE, told)
    except ModelError as error:
        cli.fail(str(error))
    print(args.out / MERGED)
    if args.gguf != "none":
        file = gguf_in(args.out, args.gguf)
        print(file)
        print(f"with llama.cpp: llama-server --model {shlex.quote(str(file))} --temp 0")
