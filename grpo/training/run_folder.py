"""The folder of a training run: touches `run_manifest.json` and `training_log.jsonl` there, and nothing else."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jax
from accelerate import PartialState
from rich.console import Console

import prompting
import scenarios
from grpo.model.contents import fingerprint
from grpo.training.settings import MAY_CHANGE, Settings
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli, json_lines

MANIFEST = "run_manifest.json"
PHASES = ("start", "warm", "credit", "improved", "grpo", "check", "validation")  # of a loop, in the log


def begin(out: Path, chosen: Settings, restart: bool, verdict: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of a new run, or of the run in `out` if what it trains is the same."""
    path = out / MANIFEST
    if restart and path.exists():
        shutil.rmtree(out)
    wanted = json.loads(chosen.model_dump_json())
    contents = {
        "model": fingerprint(Path(chosen.model)),
        "adapter": chosen.adapter_folder and fingerprint(chosen.adapter_folder),
        "teacher": chosen.teacher_file and sha256(chosen.teacher_file.read_bytes()).hexdigest(),
        "scenarios": [scenarios.digest(scenarios.load(name)) for name in chosen.campaigns],
    }
    if path.exists():
        manifest = _continued(path, wanted, contents)
    elif out.exists() and any(out.iterdir()):
        cli.fail(f"--out {str(out)!r} is a folder with other files in it; give an empty or a new one")
    else:
        out.mkdir(parents=True, exist_ok=True)
        paid = {"signals": chosen.weights, "not_covered_by_the_audit": chosen.not_covered}
        manifest = {
            "settings": wanted, "contents": contents, **_machine(), "paid": paid, "audit": verdict,
            "command": ["jaxsim-soc", "train", *sys.argv[1:]], "seconds": {},
        }  # fmt: skip
    save_manifest(out, manifest)
    return manifest


def _continued(path: Path, wanted: dict[str, Any], contents: dict[str, Any]) -> dict[str, Any]:
    """The manifest that is there, with the settings wanted now. Fails when another thing would be trained."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        had, held, prompts = manifest["settings"], manifest.get("contents", {}), manifest["versions"]["prompts"]
        differ = [k for k in wanted if k not in (*MAY_CHANGE, *contents) and had.get(k) != wanted[k]]
        # Of a folder or a file it is the content that counts, and neither its path nor how that is spelled.
        differ += [k for k, v in contents.items() if (held[k] != v if held.get(k) else had.get(k) != wanted[k])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cli.fail(f"{path}: not the manifest of a run ({error}); give another --out, or --restart")
    if prompts != prompting.FORMAT_VERSION:
        cli.fail(
            f"{path}: prompts of format {prompts!r} there, {prompting.FORMAT_VERSION!r} here; "
            "give another --out, or --restart to delete it"
        )
    if differ:
        k = differ[0]
        changed = f"{k} = {had.get(k)!r} there, {wanted[k]!r} here"
        if held.get(k) and contents.get(k):
            changed = f"{k} = {wanted[k]!r} holds something else than {had.get(k)!r} did when the run began"
        cli.fail(f"{path}: {changed}; give another --out, or --restart to delete it")
    return manifest | {"settings": wanted, "contents": contents}


def _machine() -> dict[str, Any]:
    """What a run begins with: versions and hardware."""
    import torch
    import transformers
    import trl

    return {
        "versions": {
            "jaxsim-soc": cli.version(), "simulator": SIMULATOR_VERSION, "prompts": prompting.FORMAT_VERSION,
            "python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "trl": trl.__version__,
        },
        "hardware": {
            "machine": platform.machine(), "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }  # fmt: skip


def save_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    if PartialState().is_main_process:
        cli.write_json(out / MANIFEST, manifest)


def release(out: Path) -> None:
    """Let the folder of a run that did nothing go, so that it is not bound to settings that cannot be."""
    work = [*out.glob("loop*/**/*"), *out.glob("evaluation/parts/*.jsonl"), *out.glob("adapter/*")]
    if PartialState().is_main_process and not any(p.is_file() and p.stat().st_size for p in work):
        shutil.rmtree(out / "evaluation", ignore_errors=True)
        for name in (MANIFEST, "evaluation-base.log"):
            (out / name).unlink(missing_ok=True)


class Log:
    """The lines of training_log.jsonl. A step that is done again after a kill replaces its line and all after it."""

    def __init__(self, path: Path):
        self.path = path
        begin = json_lines.resume if PartialState().is_main_process else json_lines.read
        try:
            self.lines: list[dict[str, Any]] = begin(path, lambda line, _: {"loop", "phase", "step"} <= line.keys())
        except ValueError as error:
            cli.fail(str(error))

    def add(self, loop: int, phase: str, step: int, report: dict[str, Any]) -> None:
        """Append the report of a step."""
        order = (loop, PHASES.index(phase), step)
        kept = [x for x in self.lines if (x["loop"], PHASES.index(x["phase"]), x["step"]) < order]
        line = {"loop": loop, "phase": phase, "step": step, **report}
        if not PartialState().is_main_process:
            return
        last = len(kept) == len(self.lines)
        self.lines = [*kept, line]
        if last:
            json_lines.append(self.path, line)
        else:
            cli.write_bytes(self.path, json_lines.encode(self.lines))


class Run(NamedTuple):
    """Where a run's stages say what they did."""

    out: Path  # its folder
    manifest: dict[str, Any]
    log: Log
    console: Console


@contextmanager
def timed(run: Run, stage: str) -> Iterator[None]:
    """Add the seconds within to what a stage took, over all its interruptions."""
    began = time.monotonic()
    yield
    seconds = run.manifest["seconds"]
    seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - began, 1)
    save_manifest(run.out, run.manifest)
