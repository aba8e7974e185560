"""Merge a trained adapter into its model, as a model folder and as a GGUF file for llama.cpp, and check both.

    jaxsim-soc export --adapter out/train/adapter --out out/soc
    jaxsim-soc export --adapter out/train/adapter --gguf f16 --states 128 --out out/soc

DIR/merged/ is a plain model folder (safetensors), DIR/model-q8_0.gguf the same model for llama.cpp. DIR/export.json
says how both were checked: in states of random play the merged model must choose, in float32, the action that base and
adapter choose, or nothing is put into DIR and the exit code is 1. What rounding costs is measured too.
"""

import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import prompting
from grpo.exporting import exam as exams
from grpo.exporting import gguf_file, merge
from grpo.exporting.compare import compare, gguf_in, table
from grpo.exporting.folder import NOTE, check_room, replacing
from grpo.model import adapters, embedded, folders, models
from grpo.model.adapters import MERGED
from grpo.model.errors import ModelError
from grpo.model.models import Loaded
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

KINDS = ("q8_0", "f16", "none")
DTYPES = ("float32", "bfloat16", "float16")
DISAGREES = 1  # exit code
OTHER_WAY = "give --gguf none, then run llama.cpp's own converter: python convert_hf_to_gguf.py {}"


# --- what to do -----------------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    # fmt: off
    p.add_argument("--adapter", type=adapters.folder, required=True, metavar="DIR",
                   help="a LoRA adapter, as training leaves it, or default, the project's own")
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


# --- all of it ------------------------------------------------------------------------------------------------------


def export(args: Any, base: str, part: Path, advance: Callable[[str], None]) -> dict[str, Any]:
    """Write the export into `part`; returns what is to be said about it."""
    advance("loading the model")
    merge.check_base(base, args.adapter, bool(args.model), args.offline)
    loaded = models.load(base, args.adapter, dtype="float32", device=args.device, offline=args.offline)
    check(args, base, loaded, part)
    advance("states of random play")
    states = exams.states(args.states)
    advance("base and adapter")
    wanted = exams.examine(exams.answering(loaded.model, loaded.tokenizer, args.batch), states)
    model, tokenizer, found = merge.merged(loaded), loaded.tokenizer, []
    if args.dtype != "float32":
        advance("merged")
        said = exams.examine(exams.answering(model, tokenizer, args.batch), states)
        row = exams.agreement("merged, not yet rounded", said, wanted)
        found.append(row | {"weights": "float32", "must_agree": True})
    four_bit = merge.trained_in_four_bits(args.adapter)
    card = merge.card_of(base, args.adapter.resolve().name, args.dtype, four_bit)
    write(args, base, model, tokenizer, part, card, advance)
    about, ends = loaded.about, model.generation_config.eos_token_id
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
        "files": files(part),
        "versions": about["versions"] | versions(),
    }


def files(part: Path) -> dict[str, Any]:
    """Size and checksum of what was written."""
    return {
        str(path.relative_to(part)): {"bytes": path.stat().st_size, "sha256": embedded.sha256(path)}
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }


def versions() -> dict[str, str]:
    """What wrote it, beside the packages that loaded the model."""
    return {
        "jaxsim-soc": cli.version(), "simulator": SIMULATOR_VERSION, "prompts": prompting.FORMAT_VERSION,
        "python": platform.python_version(), "gguf": version("gguf"), "safetensors": version("safetensors"),
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
    folder, origin = part / MERGED, embedded.folder(offline=True) if base == folders.EMBEDDED else Path(base)
    if args.gguf != "none":
        advance(f"writing {gguf_in(part, args.gguf).name}")
        name = merge.name_of(base).rpartition("/")[2]
        gguf_file.write_gguf(gguf_in(part, args.gguf), model, tokenizer, folder, args.gguf, f"{name}-soc")
    advance(f"writing {MERGED}/")
    merge.save(
        model, tokenizer, folder, args.dtype, card, [path for x in merge.LICENCES if (path := origin / x).is_file()]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, merge, write, compare."""
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(stderr=True, markup=False)
    try:
        base = merge.base_of(args.adapter, args.model)
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
