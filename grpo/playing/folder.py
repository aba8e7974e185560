"""The folder of an evaluation: whose it is, the settings that it holds, what was said there."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from grpo.playing.choices import TRAINED
from grpo.playing.play import is_turn
from jaxsim_soc import cli, json_lines


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and keep others out of it. Fails when another process writes there."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            cli.fail(f"--out {out}: another evaluation is writing there; wait for it, or give another --out")
        yield


def begin(out: Path, wanted: dict[str, Any], restart: bool) -> None:
    """Note the settings. Fails when the folder holds a run of others; an adapter may join its base."""
    manifest = out / "manifest.json"
    remedy = "give another --out, or --restart to begin anew there"
    if restart:
        for path in (manifest, out / "search.json", *(out / "parts").glob("*.json*")):
            path.unlink(missing_ok=True)
    elif manifest.exists():
        try:
            held = dict(json.loads(manifest.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            cli.fail(f"--out {out}: manifest.json there cannot be read; {remedy}")
        # An adapter may join what was said without one, and take the place of one that has said nothing yet.
        joins = wanted["adapter"] and (held.get("adapter") is None or not _spoken(out, TRAINED))
        for name in dict.fromkeys([*wanted, *held]):
            old, new = held.get(name), wanted.get(name)
            what = f"contents of the {name}"
            alike = held.get(what) is not None and held.get(what) == wanted.get(what)  # however it is spelled
            if old != new and not alike and not (joins and name in ("adapter", "contents of the adapter")):
                cli.fail(f"--out {out} holds a run with {name} = {old!r:.80}, not {new!r:.80}; {remedy}")
    elif any((out / "parts").iterdir()):
        cli.fail(f"--out {out} holds parts of a run, but not the manifest.json that says of which; {remedy}")
    cli.write_json(manifest, wanted)


def _spoken(out: Path, name: str) -> bool:
    """Whether anything is kept that a model of this name said."""
    ends = tuple(f"-{name}{way}.jsonl" for way in ("", "-shuffled", "-renamed"))
    return any(p.stat().st_size for p in (out / "parts").iterdir() if p.name.endswith(ends))


def read_part(path: Path, episodes: int) -> list[dict[str, Any]]:
    """The whole lines of a part, one a tick; a last one that was cut off is removed."""
    try:
        return json_lines.resume(path, partial(is_turn, episodes))
    except ValueError as error:
        cli.fail(str(error))
