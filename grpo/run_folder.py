"""The folder of a training run: touches `run_manifest.json` and `training_log.jsonl` there, and nothing else."""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import cli
import jax
from accelerate import PartialState

import prompting
from grpo.settings import Settings
from jaxsim.version import SIMULATOR_VERSION

PHASES = ("warm", "grpo", "check")  # of a loop, in the log


def begin(out: Path, chosen: Settings, args: Any, verdict: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of a new run, or of the run in `out` if it has the same settings."""
    path = out / "run_manifest.json"
    if args.restart and path.exists():
        shutil.rmtree(out)
    wanted = json.loads(chosen.model_dump_json())
    if path.exists():
        try:
            manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
            had = manifest["settings"]
        except (ValueError, KeyError) as error:
            cli.fail(f"{path}: not the manifest of a run ({error}); give another --out, or --restart")
        differ = [k for k in wanted if had.get(k) != wanted[k]]
        if differ:
            k = differ[0]
            cli.fail(
                f"{path}: {k} = {had.get(k)!r} there, {wanted[k]!r} here; give another --out, or --restart to delete it"
            )
        return manifest
    if out.exists() and any(out.iterdir()):
        cli.fail(f"--out {str(out)!r} is a folder with other files in it; give an empty or a new one")
    out.mkdir(parents=True, exist_ok=True)
    import torch
    import transformers
    import trl

    manifest = {
        "settings": wanted,
        "versions": {
            "jaxsim-soc": cli.version(), "simulator": SIMULATOR_VERSION, "prompts": prompting.FORMAT_VERSION,
            "python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "trl": trl.__version__,
        },
        "hardware": {
            "machine": platform.machine(), "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "audit": verdict,
        "command": ["python", "grpo/train.py", *sys.argv[1:]],
        "seconds": {},
    }  # fmt: skip
    save_manifest(out, manifest)
    return manifest


def save_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    if PartialState().is_main_process:
        cli.write_json(out / "run_manifest.json", manifest)


class Log:
    """The lines of training_log.jsonl. A step that is done again after a kill replaces its line and all after it."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            for text in path.read_text("utf-8").splitlines():
                try:
                    self.lines.append(json.loads(text))
                except ValueError:
                    break  # cut off by a kill

    def add(self, loop: int, phase: str, step: int, report: dict[str, Any]) -> None:
        """Append the report of a step."""
        order = (loop, PHASES.index(phase), step)
        kept = [x for x in self.lines if (x["loop"], PHASES.index(x["phase"]), x["step"]) < order]
        line = {"loop": loop, "phase": phase, "step": step, **report}
        if not PartialState().is_main_process:
            return
        text = json.dumps(line, ensure_ascii=False)
        before = self.path.read_bytes() if self.path.exists() else b""
        whole = len(kept) == len(self.lines) and (not before or before.endswith(b"\n"))
        self.lines = [*kept, line]
        if whole:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        else:
            cli.write_text(self.path, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in self.lines))


def timed(out: Path, manifest: dict[str, Any], what: str, since: float) -> None:
    """Add the seconds since then to what a stage took, over all its interruptions."""
    manifest["seconds"][what] = round(manifest["seconds"].get(what, 0) + time.monotonic() - since, 1)
    save_manifest(out, manifest)
