"""The alerts of a scenario beside labelled ones: each is one that the defender sees, and its label is the truth."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scenarios
from jaxsim import calibration, env, replays
from jaxsim.compile import dims_of
from jaxsim.one_episode import episode_keys
from jaxsim.types import RUNNING
from scenarios.labelled_alerts import Figures, figures

EPISODES = 24
SMALL = """
format: 1
id: small
title: Small
horizon: 24
noise_rate: 0.2
assets:
  - {id: a, kind: host, criticality: 0.4, segment: edge}
  - {id: b, kind: host, criticality: 0.4, segment: edge}
stages:
  - {id: in, name: In, tactic: TA0001, technique: T1190, asset: a, dwell: [1, 3], success: 0.7,
     detection: 0.8, lag: [0, 4]}
  - {id: out, name: Out, tactic: TA0010, technique: T1041, prerequisites: [in], asset: b, dwell: [2, 9], success: 0.5,
     detection: 0.8, lag: [1, 3], exfil: true}
benign:
  - {id: c, name: C, asset: b, rate: 0.2, strength: 0.4, signal: auth_anomaly}
queues:
  - {id: raw, rate: 0.9, source: A test}
"""
QUEUES = calibration.queues(scenarios.loads(SMALL))
DIMS = dims_of(QUEUES, True)
KEYS = episode_keys(jax.random.key(5), EPISODES)


def params(scenario: scenarios.Scenario, rules: str = "hardened") -> env.Params:
    return env.make_params(scenario, DIMS, rules, "operational", "any")


@pytest.mark.parametrize("rules", ["hardened", "hardened-persistence"])
def test_every_alert_that_is_seen_is_in_the_stream(rules: str) -> None:
    given = params(QUEUES[0], rules)
    found = calibration.stream(DIMS, given, KEYS)
    number = 0
    for episode in range(4):
        played = replays.replay(env.Env(DIMS), given, jax.random.key(5), episode, jnp.zeros(24, jnp.int32))
        ticks = np.flatnonzero(played.state.end[:-1] == RUNNING) + 1
        assert found.minutes[episode] == 30.0 * len(ticks)
        own = found.period == episode
        for tick in ticks:
            alerts = jax.tree.map(lambda x, t=tick: x[t], played.observation.alerts)
            seen = own & (found.minute == 30.0 * tick)
            new = alerts.number >= played.state.alerts.count[tick - 1]
            shown = sorted(zip(alerts.signal[new].tolist(), alerts.asset[new].tolist(), strict=True))
            assert shown == sorted(zip(found.kind[seen].tolist(), found.host[seen].tolist(), strict=True))
            number += len(shown)
    assert number == (found.period < 4).sum() > 10


def test_labels_are_the_truth() -> None:
    data = QUEUES[0].model_dump()
    quiet = scenarios.Scenario.model_validate(data | {"noise_rate": 0.0, "benign": (), "queues": ()})
    unseen = [x | {"detection": 0.0} for x in data["stages"]]
    hidden = scenarios.Scenario.model_validate(data | {"stages": unseen})
    of_attack, others = (calibration.stream(DIMS, params(s), KEYS) for s in (quiet, hidden))
    both = calibration.stream(DIMS, params(QUEUES[0]), KEYS)
    assert of_attack.attack.all() and len(of_attack.attack) and not others.attack.any() and len(others.attack)
    # The same luck: what a defender that only watches sees of either is there when both are.
    for alone, label in ((of_attack, True), (others, False)):
        chosen = both.attack == label
        rows = [zip(*(x.tolist() for x in s), strict=True) for s in (alone[:4], [x[chosen] for x in both[:4]])]
        assert sorted(rows[0]) == sorted(rows[1])


def test_a_queue_changes_the_others_and_not_the_attack() -> None:
    own, raw = (figures(calibration.stream(DIMS, params(s), KEYS)) for s in QUEUES)
    assert own.attack_host_day == raw.attack_host_day > 0
    assert own.others == pytest.approx(0.4, abs=0.06) and raw.others == pytest.approx(0.9, abs=0.06)
    assert raw.of_attack < own.of_attack and raw.of_attack_meanwhile < own.of_attack_meanwhile


def test_many_episodes_are_played_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibration.stream(DIMS, params(QUEUES[0]), KEYS)
    monkeypatch.setattr(calibration, "AT_ONCE", EPISODES)
    fifty = calibration.stream(DIMS, params(QUEUES[0]), episode_keys(jax.random.key(5), 2 * EPISODES + 2))
    first = fifty.period < EPISODES
    for a, b in zip(whole[:5], fifty[:5], strict=True):
        np.testing.assert_array_equal(a, b[first])
    assert len(fifty.minutes) == len(fifty.hosts) == 2 * EPISODES + 2 and fifty.period.max() >= 2 * EPISODES


# --- the command ------------------------------------------------------------------------------------------------------

HEAD = "time,name,host,label\n"
ALERTS = HEAD + "".join(f"{60 * t},{t % 3},h{t % 2},{'recon' if t % 50 == 5 else '-'}\n" for t in range(0, 2000, 5))


def run(folder: Path, *words: str) -> None:
    (folder / "small.yaml").write_text(SMALL)
    (folder / "alerts.csv").write_text(ALERTS)
    calibration.main([*words, "--scenario", str(folder / "small.yaml"), "--episodes", str(EPISODES)])


def test_the_command_shows_files_and_both_queues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.csv").write_text(ALERTS)
    files = [str(tmp_path / "alerts.csv"), str(tmp_path / "more.csv")]
    run(tmp_path, *files, "--table", str(tmp_path / "table.csv"))
    table, said = capsys.readouterr().out.split("\n\n")
    head, _, *rows = [[x.strip() for x in line.strip("|").split("|")] for line in table.splitlines()]
    assert all(len(row) == len(head) for row in rows)
    assert [row[0] for row in rows] == ["alerts.csv", "more.csv", "all files", "small", "small@raw"]
    assert rows[0][1:] == rows[1][1:]
    advice, labels = said.splitlines()
    assert advice.startswith("small: while an attack runs, ") and labels == "labels of an attack: 'recon'"
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == ",".join(calibration.TABLE) and len(lines) == 1 + 2 * 2 * 2
    counts = np.asarray([line.split(",")[3:] for line in lines[1:]], int)
    assert counts[:, :2].sum() == 2 * 400 and counts[:, 0].sum() == 2 * 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.csv"], "nothing.csv: No such file"),
        (["alerts.csv", "--label", "host"], "every alert is of an attack by its label; name the labels"),
        (["alerts.csv", "--harmless", "recon", "-"], "no alert is of an attack by its label; name the labels"),
        (["alerts.csv", "--gap", "-1"], "--gap: '-1' is not possible"),
        (["alerts.csv", "--kind", "rule"], "has no column 'rule'; give that of the kind by --kind, of 'time', 'name'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, *words)
    told = capsys.readouterr()
    assert caught.value.code == 2 and said in told.err and told.err.count("\n") == 1 and not told.out


def test_the_advice_gives_the_share_of_the_data() -> None:
    nan = float("nan")
    gaps = (nan, nan, nan)
    data = Figures(1.0, 10, 0.1, 0.2, 1.0, 1.0, 1.0, 1.0, gaps, gaps)
    scenario = QUEUES[0]
    said = calibration.advice(scenario, data._replace(attack_meanwhile=0.1), data)
    assert "20.0% of the data's groups" in said and "with 0.4 a tick in all (now 0.4)" in said
    assert "would have to be 4 a tick in all, and 1 is the most" in calibration.advice(scenario, data, data)
    for none in (0.0, nan):
        assert "seen twice; raise" in calibration.advice(scenario, data._replace(attack_meanwhile=none), data)
        assert "has two groups" in calibration.advice(scenario, data, data._replace(of_attack_meanwhile=none))
    assert json.dumps(calibration.table([("a", data)])).count("10.0 %") == 1
