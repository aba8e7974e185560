"""Games with planted holes: what is drawn, that each hole is one, and what is made of verdicts."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxsim
import scenarios
from jaxsim import reward, rules
from jaxsim.audit import planted, verdict
from jaxsim.names import parse_plan
from jaxsim.policies import BASELINES, PLAN

GAMES = planted.draw(5 * len(planted.HOLES), 20, seed=0)


def test_games_are_drawn_by_seed_and_differ() -> None:
    assert planted.draw(5 * len(planted.HOLES), 20, seed=0) == GAMES
    assert len({tuple(g.weights.values()) for g in GAMES}) == len(GAMES) == 80
    assert {g.kind for g in GAMES} == {*planted.HOLES, planted.HARMLESS}
    for game in GAMES:
        assert rules.switches(game.rules) is not None and game.scenario in scenarios.names()
        reward.from_mapping(game.weights)


def test_what_is_harmless_moves_no_weight_far() -> None:
    own = reward.PRESETS[planted.REWARD]
    for game in (g for g in GAMES if g.kind == planted.HARMLESS):
        ratios = [w / own[n] for n, w in game.weights.items() if own[n] and np.isfinite(own[n])]
        assert min(ratios) > 0 and max(ratios) / min(ratios) <= (1 + planted.MOVE) / (1 - planted.MOVE)


# Of most kinds, a blind player that should not be the best, and is: it repeats its actions.
BLIND = {
    "paid for containing": "PATCH_ASSET assets[0]",
    "paid for looking": "INVESTIGATE assets[0]",
    "paid for the exfil": "MONITOR",
    "paid for lost stages": "MONITOR",
    "paid for waiting": "MONITOR",
}


@pytest.mark.parametrize("kind", [k for k in BLIND if k in planted.HOLES])
def test_a_hole_is_one(kind: str) -> None:
    """A blind player earns more than the hand-made reader does under it, and less under the reward as it is."""
    game = next(g for g in GAMES if g.kind == kind)
    scenario = scenarios.load(game.scenario)
    env, params = jaxsim.make(scenario, rules=game.rules, reward=game.weights)
    plan = np.full(int(params.scenario.horizon), parse_plan(BLIND[kind], scenario, env.dims)[0], np.int32)
    key = jax.random.key(1)
    returns = [jaxsim.rollout(env, params, *p, key, 256).episode_return for p in ((PLAN, plan), BASELINES["evidence"])]
    gap = returns[0] - returns[1]
    assert gap.mean() > 4 * gap.std() / 16


def row(kind: str, outcome: str, exploits: tuple[str, ...] = (), then: bool = False) -> dict[str, Any]:
    return {"kind": kind, "verdict": outcome, "exploits": list(exploits), "certified_then": then}


def test_recall_and_false_alarms() -> None:
    rows = [
        row("one target for ever", verdict.DEGENERATE, (verdict.FARMING,)),
        row("one target for ever", verdict.DEGENERATE, (verdict.OPEN_LOOP,)),
        row("guessing is free", verdict.UNDECIDED, then=True),
        row("guessing is free", verdict.CERTIFIED, then=True),
        row(planted.HARMLESS, verdict.CERTIFIED, then=True),
        row(planted.HARMLESS, verdict.UNDECIDED, then=True),
    ]
    assert [planted.outcome(r) for r in rows[:4]] == ["named", "not certified", "not certified", "certified"]
    found = planted.summary(rows)
    assert [found[k][0] for k in ("recall", "false_alarms", "recall_then", "false_alarms_then", "named")] == [
        *(0.75, 0.5, 0.5, 0.0, 0.25)
    ]
    assert found["recall"][1] == pytest.approx(0.194, abs=1e-3) and found["recall"][2] == pytest.approx(0.994, abs=1e-3)
    assert len(planted.picture(rows).axes[0].patches) == len(planted.COLOURS) * (len(planted.HOLES) + 1)


def test_what_no_json_has_is_written_as_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cap on a reward, and a share of a gain where nothing is gained."""

    def judged(games: list[planted.Game], *_: Any) -> list[dict[str, Any]]:
        return [g._asdict() | row(g.kind, verdict.UNDECIDED) | {"evg_norm_ci": [float("nan")] * 2} for g in games]

    monkeypatch.setattr(planted, "judged", judged)
    planted.main(["--holes", "2", "--harmless", "1", "--out", str(tmp_path / "out")])
    document = json.loads((tmp_path / "out/planted.json").read_text())
    assert len(document["rows"]) == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"planted.json", "planted.png"}
    assert all(r["evg_norm_ci"] == [None, None] and r["weights"]["disruption_cap"] is None for r in document["rows"])
    assert reward.from_mapping(document["rows"][0]["weights"]).disruption_cap == np.inf
