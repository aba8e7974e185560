"""GRPO with Unsloth, in a process of its own.

Unsloth rewrites classes of transformers, PEFT and TRL in place: it has to be imported before them, and afterwards no
ordinary model works in the same process, nor does our decoding, whose cache Unsloth's forward passes do not fill. So
only GRPO goes through it. Play, warm start and evaluation stay with transformers; the adapter's weights go to the
other process and come back as files, its steps come back one by one.

The KL term differs: Unsloth measures it from the model without adapter, TRL from the adapter that GRPO began with. In a
first loop without warm start the two are the same.
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    import unsloth  # noqa: F401  before all that it rewrites

import gc
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from safetensors.torch import load_file, save_file

from grpo.learning.plan import Plan
from grpo.model import folders, models
from grpo.model.errors import ModelError

INSTALL = "pip install -c grpo/constraints-unsloth.txt 'jaxsim-soc[unsloth]'"
STDERR = 2
START, TRAINED, JOB, COMPILED = "start.safetensors", "trained.safetensors", "job.json", "compiled"


def choose(wanted: str) -> Literal["transformers", "unsloth"]:
    """The backend that a setting means here. Raises ModelError for one that cannot be."""
    if wanted == "transformers":
        return "transformers"
    import torch

    why = _objection(torch.cuda.is_available())
    if not why:
        return "unsloth"
    if wanted == "unsloth":
        raise ModelError(f"backend = 'unsloth': {why}, or take --backend transformers")
    if torch.cuda.is_available() and find_spec("unsloth"):
        print(f"warning: unsloth is installed, but not used: {why}", file=sys.stderr)
    return "transformers"


def _objection(cuda: bool) -> str:
    """Why Unsloth cannot be used here, with a remedy, or ''."""
    if not cuda:
        return "it needs a GPU with CUDA, and torch sees none; run it where there is one"
    if find_spec("unsloth") is None:
        return f"the package unsloth is not installed; {INSTALL}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "it trains in one process only; start it without accelerate launch"
    with tempfile.TemporaryDirectory() as folder:  # it imports only into a process that it can have to itself
        tried = subprocess.run(
            [sys.executable, "-c", "import unsloth"], env=_environment(Path(folder)), capture_output=True, text=True
        )
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        return f"the package unsloth cannot be imported ({last}); {INSTALL}"
    return ""


def _environment(compiled: Path) -> dict[str, str]:
    """Unsloth's own variables: where it writes the code it makes, and that it tells nobody of its use."""
    return {"UNSLOTH_COMPILE_LOCATION": str(compiled), "UNSLOTH_DISABLE_STATISTICS": "1", **os.environ}


class Source(NamedTuple):
    """What the other process has to load again: the base, and the campaigns of the rows."""

    model: str
    four_bit: bool
    campaigns: Sequence[str]
    rules: str
    reward: str


def optimise(
    model: Any,
    rows: Sequence[int],
    plan: Plan,
    source: Source,
    folder: Path,
    seed: int,
    log: Callable[[int, Any], None],
) -> str:
    """Train the adapter of `model`, which stays where it is, on rows of `folder`'s neighbour rows/.

    As `optimise.optimise`, in another process: it continues from the newest whole checkpoint in `folder`, and returns
    the alarm's reason, or ''. Raises ModelError when that process fails.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(model, folder / START)
    lora = model.peft_config["default"]
    dtype = next(p for p in model.parameters() if not p.requires_grad).dtype
    job = {
        "plan": plan._asdict(),
        "source": source._asdict(),
        "rows": [int(r) for r in rows],
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "lora": {name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout")},
        "targets": sorted(lora.target_modules),
    }
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    gc.collect()
    torch.cuda.empty_cache()  # the other process needs the room
    alarm, code = _followed(folder, log)
    if code or alarm is None:
        raise ModelError(
            f"training with unsloth failed (exit code {code}; what it said is above); the same command goes on from "
            f"the last checkpoint, --backend transformers with another --out does without unsloth"
        )
    read_adapter(model, folder / TRAINED)
    return alarm


def _followed(folder: Path, log: Callable[[int, Any], None]) -> tuple[str | None, int]:
    """Do the job of a folder in another process: (the alarm's reason, None if that was never said; exit code)."""
    reports, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo.learning.unsloth_backend", str(folder), str(theirs)],
        stdin=subprocess.PIPE,  # closes when this process ends, however it ends
        stdout=STDERR,
        pass_fds=[theirs],
        env=_environment(folder.resolve() / COMPILED),
    )
    os.close(theirs)
    alarm: str | None = None
    with process, open(reports, encoding="utf-8") as file:
        try:
            for text in file:
                if not text.endswith("\n"):
                    break  # cut off: it ended while saying this
                told = json.loads(text)
                if "step" in told:
                    log(told["step"], told["report"])
                else:
                    alarm = told["alarm"]
            code = process.wait()
        finally:
            process.kill()
    return alarm, code


# --- in the other process -------------------------------------------------------------------------------------------


def work(folder: Path, tell: Callable[[dict[str, Any]], None]) -> None:
    """Do the job of a folder."""
    from grpo.learning import diagnostics, optimise
    from grpo.model import decode
    from grpo.rows import rows

    job = json.loads((folder / JOB).read_text("utf-8"))
    plan, source = Plan(**job["plan"]), Source(**job["source"])
    game = rows.campaigns(source.campaigns, source.rules, source.reward)
    found = rows.load(folder.parent / "rows", game)
    if found is None:
        raise ModelError(f"{folder.parent / 'rows'} has no whole set of rows; start training again to collect them")
    place, _ = folders.find(source.model, offline=True)  # the other process has just loaded it
    tokenizer = models.load_tokenizer(place, source.model)
    prompts = [decode.chat_tokens(tokenizer, rows.chat_of(game, found, r)) for r in job["rows"]]
    room = max(map(len, prompts)) + plan.max_completion
    model = student(place, job, plan.gradient_checkpointing, source.four_bit, room)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    read_adapter(model, folder / START)
    alarm = optimise.optimise(
        model, tokenizer, diagnostics.tables(game, found), job["rows"], plan, folder, job["seed"],
        lambda step, report: tell({"step": step, "report": report}),
    )  # fmt: skip
    write_adapter(model, folder / TRAINED)
    tell({"alarm": alarm})


def student(place: Path, job: dict[str, Any], checkpoint: bool, four_bit: bool, room: int) -> Any:
    """A model folder, loaded by Unsloth, with a fresh adapter. Sequences over `room` tokens would be cut off.

    The adapter's weights are read into it, rather than its folder opened by Unsloth: that would look for its base under
    the name that adapters note, which may be `embedded`, and may find another upload of it.
    """
    import torch
    from unsloth import FastLanguageModel

    checkpointing: Any = "unsloth" if checkpoint else False
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(place.resolve()),
        max_seq_length=room,
        dtype=getattr(torch, job["dtype"]),
        load_in_4bit=four_bit,
        trust_remote_code=False,
        local_files_only=True,
        use_exact_model_name=True,  # not Unsloth's own upload of it, which rounds otherwise
        use_gradient_checkpointing=checkpointing,
        random_state=job["seed"],
    )
    return FastLanguageModel.get_peft_model(
        model,
        **job["lora"],
        target_modules=job["targets"],
        use_gradient_checkpointing=checkpointing,
        random_state=job["seed"],
    )


def write_adapter(model: Any, path: Path) -> None:
    """The weights of an adapter, in one file."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model)
    save_file({name: weight.detach().cpu().contiguous() for name, weight in state.items()}, path)


def read_adapter(model: Any, path: Path) -> None:
    """Put the weights of a file into an adapter of the same shape. Raises ModelError when they do not fit."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    state = load_file(path)
    wanted = {name: weight.shape for name, weight in get_peft_model_state_dict(model).items()}
    if wanted != {name: weight.shape for name, weight in state.items()}:
        raise ModelError(f"{path}: weights of another adapter; delete {path.parent} to train this loop again")
    set_peft_model_state_dict(model, state)


def _end_with_parent() -> None:
    """End when the process that started this one has ended."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(int(sys.argv[2]), "w", encoding="utf-8", buffering=1) as pipe:
        try:
            work(Path(sys.argv[1]), lambda told: print(json.dumps(told), file=pipe))
        except ModelError as error:
            print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
