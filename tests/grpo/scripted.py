"""An evaluation whose model is a script."""

import json
import math
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

import prompting
from grpo.playing import evaluation, speaker
from jaxsim_soc import cli

SUPPLY, CLOUD, TICKS = "supply_chain_token_drift", "cloud_metadata_ssrf", 70
CLOCK = ("seconds", "decisions_per_second", "tokens_per_second")
HOSTILE = (
    '<script>alert(1)</script></pre></details><img src=x onerror="alert(2)"> \x00\u202e\ud800 &lt; {"action": "PANIC"}'
)
QUICK = ["--policies", "--transcripts", "1"]


def scripted(args: Any, adapter: Path | None, wait: float = 0.0) -> speaker.Speaker:
    """Answers that depend on the prompt and on nothing else: mostly MONITOR, some actions, some rubbish."""

    def respond_in(inventory: prompting.Inventory, opening: str) -> Any:
        actions = sorted(inventory.actions.values())

        def answer(prompt: str) -> str:
            n = zlib.crc32(prompt.encode() + bytes(adapter is not None))
            if n % 10 > 2:
                return '{"action": "MONITOR"}'
            if n % 10 == 2:
                return HOSTILE
            return prompting.encode(actions[n // 10 % len(actions)], inventory)

        def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> list[str]:
            time.sleep(wait)
            return [answer(prompt) for prompt in prompts]

        return respond

    return speaker.Speaker(respond_in, lambda texts: sum(map(len, texts)), {"name": "scripted"})


def slow_main(argv: list[str]) -> None:
    """What the process runs that is killed; numbers are as strict there as in tests."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    speaker.load = lambda args, adapter: scripted(args, adapter, 0.05)
    evaluation.main(argv)


def rows_in(out: Path, clock: bool = False) -> list[dict[str, Any]]:
    rows = json.loads((out / "rows.json").read_text())
    return [{k: v for k, v in row.items() if clock or k not in CLOCK} for row in rows]


def command(out: Path, *more: str, scenario: str = SUPPLY, episodes: int = 3) -> list[str]:
    return ["--scenario", scenario, "--episodes", str(episodes), "--out", str(out), *QUICK, *more]


def error_of(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluation.main(argv))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


def assert_finite(value: Any) -> None:
    if isinstance(value, float):
        assert math.isfinite(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_finite(part)
