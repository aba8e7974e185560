"""What the written files do, read back, beside what base and adapter do."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from grpo.exporting import exam as exams
from grpo.exporting import gguf_file, llama_server
from grpo.model import decode, models
from grpo.model.adapters import MERGED
from grpo.model.errors import ModelError


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
