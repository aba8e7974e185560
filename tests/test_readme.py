"""The README's Python runs as it stands, and an episode of its loop is one that a user would get."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxsim
import prompting

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def given(block: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a block takes for granted: an observation's text, and a model that is not fetched."""
    if "models.load" not in block:
        return {}
    from grpo import decode, models

    class Loaded:
        model = tokenizer = None

    answer = decode.Completion('{"action": "MONITOR"}', [1], 1, True)
    monkeypatch.setattr(models, "load", lambda *_: Loaded)
    monkeypatch.setattr(decode, "Decoder", lambda *_: None)
    monkeypatch.setattr(decode, "chat_tokens", lambda *_: [1])
    monkeypatch.setattr(decode, "decode", lambda *_: [answer])
    scenario = jaxsim.load_scenario("supply_chain_token_drift")
    return {"text": "Tick 1 of 80", "inventory": prompting.inventory(scenario)}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_python_block_of_the_readme_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = given(block, monkeypatch)
    exec(compile(block.replace("10_000", "64"), "README.md", "exec"), names)
    if "env.step" in block:
        luck_is_new(names)


def luck_is_new(names: dict[str, Any]) -> None:
    """The episode was played to its end, and its alerts are not one tick's, again and again.

    Under one key for every step, as it once stood there, 34 alerts came in 30 ticks instead of 13, all of one severity.
    """
    alerts = names["obs"].alerts
    assert bool(names["done"]) and int(names["state"].tick) == int(names["params"].scenario.horizon)
    shown = np.asarray(alerts.severity)[np.asarray(alerts.number) >= 0].tolist()
    assert len(set(shown)) == len(shown) > 3
