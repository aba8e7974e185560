"""The audit of Gymnasium environments: it finds plans, tells where reading pays, refuses what it cannot judge."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from jaxsim import audit as audit_folder
from jaxsim.audit.bootstrap import NONE, Estimate
from jaxsim.audit.outward import command, episodes, plans, readers, verdict
from jaxsim.audit.outward.episodes import Game, Refused, World
from jaxsim_soc import cli

TOYS = str(Path(__file__).parent / "toys.py")
toys = readers.module(TOYS)
TINY = plans.Effort(steps=6_000, screen=4, select=16, keep=4, train=64, episodes=64)
LAKE = Game("FrozenLake-v1", {"is_slippery": False}, 100)

Run = Callable[..., tuple[Any, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command: its exit code and what it said; the report lies in tmp_path."""
    monkeypatch.setitem(plans.EFFORTS, "tiny", TINY)

    def run(*words: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["audit-gymnasium", *words])
        with pytest.raises(SystemExit) as end:
            cli.run(command.main)
        told = capsys.readouterr()
        return end.value.code, told.out if not end.value.code else told.err

    return run


def audit(run: Run, out: Path, *words: str) -> dict[str, Any]:
    code, said = run(*words, "--budget", "tiny", "--out", str(out))
    assert code == 0, said
    return dict(json.loads((out / "report.json").read_text("utf-8")))


def made(quirk: str = "", shown: bool = True, lanes: int = 1, id: str = "Toy-v0") -> World:
    return World(episodes.game(id, {"quirk": quirk, "shown": shown}, None), lanes)


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_where_what_pays_is_shown_reading_pays(run: Run, tmp_path: Path) -> None:
    found = audit(run, tmp_path, "Toy-v0", "--policy", f"{TOYS}:reads", "--seed", "3")
    assert found["verdict"] == verdict.PAYS and found["varies_with_the_seed"]
    by_name = {p["policy"]: p for p in found["policies"]}
    # Six steps that pay 1 each for one of three actions at random: 6 for reading, 2 for anything else.
    assert by_name["reading"]["return"] == toys.LENGTH and by_name["reading"]["std"] == 0
    assert found["evg_ci"][0] < 4.0 < found["evg_ci"][1]
    assert found["evg_norm_ci"][0] > 0.8 and found["evg_norm"] <= 1
    assert all(1.5 < by_name[name]["return"] < 2.6 and by_name[name]["length"] == 6 for name in verdict.BLIND)


def test_where_a_plan_does_it_the_environment_is_degenerate(run: Run, tmp_path: Path) -> None:
    words = ("--env-kwargs", '{"shown": false}', "--policy", f"{TOYS}:knows")
    found = audit(run, tmp_path, "Toy-v0", *words)
    assert found["verdict"] == verdict.DEGENERATE and found["best_blind"] == verdict.PLAN
    assert found["plan"] == [a - 1 for a in toys.SECRET]
    assert (
        found["evg"] == 0 and found["evg_ci"] == [0, 0] and found["gain"] == 3
    )  # one action is wanted in half of the steps
    assert not found["varies_with_the_seed"] and found["search"]["steps"] <= TINY.steps


def test_an_endless_environment_is_cut_off(run: Run, tmp_path: Path) -> None:
    words = ("--env-kwargs", '{"quirk": "endless"}', "--policy", f"{TOYS}:reads", "--horizon", "9", "--episodes", "10")
    found = audit(run, tmp_path, "Toy-v0", *words)
    assert found["horizon"] == 9 and found["episodes"] == 10
    assert all(p["length"] == 9 and p["cut_off"] == 1 for p in found["policies"])


def test_the_same_seed_gives_the_same_report(run: Run, tmp_path: Path) -> None:
    words = ("Toy-v0", "--policy", f"{TOYS}:reads", "--seed", "5")
    one, two = (audit(run, tmp_path / name, *words) for name in "ab")
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    other = audit(run, tmp_path / "c", *words[:-1], "6")
    assert other["policies"] != one["policies"]


E = Estimate


@pytest.mark.parametrize(
    ("evg", "norm", "gain", "brought", "expected"),
    [
        (E(0, 0, 0), E(0, 0, 0), E(1, 1, 1), False, verdict.DEGENERATE),
        (E(-1, -2, -0.5), NONE, E(0, -1, 1), False, verdict.UNDECIDED),  # it has not learned to play
        (E(-1, -2, -0.5), NONE, E(0, -1, 1), True, verdict.DEGENERATE),
        (E(0, -0.1, 0.1), E(0, -0.1, 0.1), E(1, 0.9, 1.1), True, verdict.UNDECIDED),
        (E(0.2, 0.1, 0.3), E(0.2, 0.1, 0.3), E(1, 0.9, 1.1), True, verdict.UNDECIDED),
        (E(0.5, 0.4, 0.6), E(0.5, 0.25, 0.6), E(1, 0.9, 1.1), True, verdict.PAYS),
        (E(0.5, 0.4, 0.6), E(0.5, 0.24, 0.6), E(1, 0.9, 1.1), True, verdict.UNDECIDED),
    ],
)
def test_the_verdict(evg: Estimate, norm: Estimate, gain: Estimate, brought: bool, expected: str) -> None:
    compared = verdict.Compared(verdict.PLAN, verdict.CONSTANT, evg, norm, gain)
    assert verdict.judge(compared, brought)[0] == expected


def test_what_a_comparison_takes() -> None:
    """The best blind policy, whichever it is, and the better of constant and random as the baseline; paired."""
    luck = np.random.default_rng(0).normal(size=400) * 100

    def played(more: float) -> episodes.Played:
        none = np.zeros(400, bool)
        return episodes.Played(luck + more, np.ones(400, int), none, [], [])

    c = verdict.compare(
        {n: played(m) for n, m in (("reading", 3), ("open-loop", 1), ("constant", -1), ("random", 0))}, 0
    )
    assert (c.blind, c.baseline) == ("open-loop", "random")
    for estimate, value in ((c.evg, 2), (c.gain, 3), (c.evg_norm, 2 / 3)):
        np.testing.assert_allclose(estimate, value, rtol=1e-5)
    c = verdict.compare(
        {n: played(m) for n, m in (("reading", 0), ("open-loop", 1), ("constant", 2), ("random", 0))}, 0
    )
    assert (c.blind, c.baseline) == ("constant", "constant") and np.isnan(c.evg_norm.value)
    np.testing.assert_allclose(c.evg, -2, rtol=1e-5)


# --- the search -----------------------------------------------------------------------------------------------------


def course(world: World, effort: plans.Effort) -> plans.Course:
    """As the search has it, after the constant plans."""
    seeds = list(range(100, 100 + 2 * effort.select))
    reference = episodes.play_random(world, seeds).returns[:, None]
    return plans.Course(world, seeds, reference, effort, 6.0, np.zeros((1, world.game.horizon), int))


@pytest.mark.parametrize("source", ["beam", "cross-entropy", "growth", "random", "cycles"])
def test_each_source_finds_what_it_can(source: str) -> None:
    world, rng = made(shown=False), np.random.default_rng(1)
    c = course(world, TINY._replace(screen=1, select=1))
    until = world.steps + 4000
    found = {
        "beam": lambda: plans.beam(c, until, rng),
        "cross-entropy": lambda: plans.cross_entropy(c, until, rng),
        "growth": lambda: plans.grow(c, c.fills, until, rng)[0],
        "random": lambda: plans.random_plans(c, 2000, rng),
        "cycles": lambda: plans.cycles(c, 1200, rng),
    }[source]()
    best = plans.play(c, found, 0, 1).max()
    assert best == toys.LENGTH if source != "random" else best >= 4
    assert world.steps <= until + 1500 or source in ("random", "cycles")
    assert found.shape[1] == world.game.horizon and found.min() >= 0 and found.max() < len(world.table)


def test_cycles_are_all_of_the_shorter_ones_and_some_of_the_next() -> None:
    c = course(made(), TINY._replace(screen=1, select=1))
    some = plans.cycles(c, 9 + 20, np.random.default_rng(0))
    assert len(np.unique(some[:9, :2], axis=0)) == 9 and len(np.unique(some[9:, :3], axis=0)) == 20
    assert (some[:9, 2:] == some[:9, :-2]).all() and (some[9:, 3:] == some[9:, :-3]).all()
    assert len(plans.cycles(c, 5, np.random.default_rng(0))) == 5


def test_the_beam_finds_the_way_over_the_lake() -> None:
    """Nothing is paid before the goal; of prefixes that lead to the same place one is enough."""
    world = World(LAKE)
    c = course(world, TINY._replace(screen=1, select=1))
    found = plans.beam(c, world.steps + 20_000, np.random.default_rng(0))
    played = episodes.play_plans(world, found, c.seeds[:1] * len(found))
    assert played.returns.max() == 1 and played.lengths[played.returns.argmax()] == 6


def test_the_search_takes_no_more_steps_than_it_may() -> None:
    world = World(Game("FrozenLake-v1", {}, 100))
    for varies in (True, False):
        before = world.steps
        found = plans.search(world, TINY, list(range(32)), varies, 60.0, 0, lambda what: None)
        assert found.steps == world.steps - before <= 1.3 * TINY.steps
        assert found.select == (16 if varies else 1) or varies
    slow = plans.search(world, TINY, list(range(32)), True, 1e-3, 0, lambda what: None)
    assert slow.budget < TINY.steps and slow.steps < found.steps


# --- episodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([2, 3], start=[4, -1]),
        spaces.MultiDiscrete(np.asarray([[2, 1], [3, 2]])),
    ],
)
def test_the_table_has_every_action_once(space: Any) -> None:
    table = episodes.table(space)
    assert (
        len({a.tobytes() for a in table})
        == len(table)
        == (5 if isinstance(space, spaces.Discrete) else space.nvec.prod())
    )
    assert all(space.contains(a) and episodes.row(space, a) == i for i, a in enumerate(table))
    assert all(episodes.row(space, a.tolist()) == i for i, a in enumerate(table))
    for none in (None, 0.5, True, "1", [1, [2]], [[[1]]], 99, [99, 99], table[0] - 1, table[-1] + 1, table):
        assert episodes.row(space, none) is None, none


def test_seeds_are_apart() -> None:
    parts = episodes.seeds_of(0, (4, 500, 1000))
    assert [len(p) for p in parts] == [4, 500, 1000] and len({s for p in parts for s in p}) == 1504
    assert parts != episodes.seeds_of(1, (4, 500, 1000)) and parts == episodes.seeds_of(0, (4, 500, 1000))


def test_lanes_play_as_one_by_one() -> None:
    one, many = made(), made(lanes=5)
    assert episodes.check(many, [3, 1, 4, 1])
    rng = np.random.default_rng(0)
    some, seeds = rng.integers(3, size=(13, 4)), rng.integers(100, size=13).tolist()
    for width in (4, 3):
        a, b = (episodes.play_plans(w, some[:, :width], seeds, signed=True) for w in (one, many))
        assert episodes.same(a, b).all() and a.actions == b.actions and (a.ended == b.ended).all()
        assert len(set(a.returns.tolist())) > 1 and len(set(a.last)) > 1


def test_the_horizon_is_the_least_of_the_limits() -> None:
    def horizon(id: str, given: int | None) -> int:
        return episodes.game(id, {}, given).horizon

    assert [horizon("FrozenLake-v1", x) for x in (None, 7, 1000)] == [100, 7, 100]
    assert [horizon("Toy-v0", x) for x in (None, 7, 1000)] == [episodes.HORIZON, 7, 1000]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Nonesuch-v0",), ["Nonesuch", "--import"]),
        (("nonesuch.package:Toy-v0",), ["nonesuch", "--import"]),
        (("Toy-v0", "--env-kwargs", '{"size": 3}'), ["Toy-v0", "size"]),
        (("Toy-v0", "--env-kwargs", "[1]"), ["--env-kwargs", "JSON object"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "box"}'), ["Box", "Discrete or MultiDiscrete"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "many"}'), ["10000 actions", "4096"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "raises"}'), ["raised at action 1 of step", "KeyError"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "raises in reset"}'), ["in reset", "no level is left"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "nan"}'), ["paid nan at step 0"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "unseeded"}'), ["not deterministic given its seed", "played again"]),
        (("Toy-v0", "--env-kwargs", '{"quirk": "leaks"}'), ["not deterministic given its seed", "begin all anew"]),
        (("DeafToy-v0", "--lanes", "4"), ["not deterministic given its seed", "leave --lanes out"]),
        (("FrozenLake-v1", "--lanes", "4"), ["no vector environment of its own", "leave --lanes out"]),
        (("Toy-v0", "--policy", "reads"), ["'reads'", "MODULE:FUNCTION"]),
        (("Toy-v0", "--policy", f"{TOYS}:none"), ["no function 'none'"]),
        (("Toy-v0", "--policy", f"{TOYS}:NUMBER"), ["no function 'NUMBER'"]),
        (("Toy-v0", "--policy", f"{TOYS}:odd"), ["takes other arguments", "an info"]),
        (("Toy-v0", "--policy", f"{TOYS}:wrong"), ["gave 0.5 at step 0 of seed", "Discrete(3, start=-1)"]),
        (("Toy-v0", "--policy", f"{TOYS}:far"), ["gave 2 at step 0 of seed", "Discrete(3, start=-1)"]),
        (("Toy-v0", "--policy", f"{TOYS}:breaks"), ["raised at step 0 of seed", "nothing known of this"]),
        (("Toy-v0", "--policy", "nonesuch:reads"), ["'nonesuch'", "cannot be imported"]),
        (("Toy-v0", "--import", "absent.py"), ["'absent.py'", "cannot be imported"]),
        ((), ["no environment is given"]),
    ],
)
def test_what_cannot_be_audited_is_one_line(run: Run, tmp_path: Path, words: tuple[str, ...], said: list[str]) -> None:
    code, told = run(
        *words,
        "--budget",
        "tiny",
        "--out",
        str(tmp_path / "out"),
        *(() if "--policy" in words else ("--policy", f"{TOYS}:reads")),
    )
    assert code == 2 and told.count("\n") == 1 and all(word in told for word in said), told
    assert not (tmp_path / "out").exists()


# --- witnesses ------------------------------------------------------------------------------------------------------


def test_witnesses_are_played_again_or_refused(run: Run, tmp_path: Path) -> None:
    audit(run, tmp_path, "Toy-v0", "--env-kwargs", '{"quirk": "multi"}', "--policy", f"{TOYS}:reads_multi")
    names = sorted(p.name for p in (tmp_path / "witnesses").iterdir())
    assert len(names) == 2 and "reading.json" in names
    path = tmp_path / "witnesses" / "reading.json"
    record = json.loads(path.read_text("utf-8"))
    code, told = run("--replay", str(path))
    assert code == 0 and told.splitlines()[-1] == f"return {record['return']:g} in 6 steps, as recorded"
    assert len(told.splitlines()) == 8 and str(record["actions"][0]) in told
    more = record["actions"][0]
    for name, change, said in (
        ("return", {"return": record["return"] + 0.5}, "is not that recorded"),
        ("seed", {"seed": -1}, "in reset of seed -1"),
        ("short", {"actions": record["actions"][:-1] + [[6, -1]] * 2}, "in 6 steps is not that recorded"),
        ("action", {"actions": [[0, 0]]}, "actions hold [0, 0]"),
        ("ragged", {"actions": [[more, [more]]]}, "actions hold"),
        ("kwargs", {"kwargs": {"max_episode_steps": 3}}, "cannot be made"),
        ("kind", {"horizon": True}, "horizon = True is not possible"),
        ("none", {"environment": None}, "environment = None is not possible"),
    ):
        path.write_text(json.dumps(record | change))
        code, told = run("--replay", str(path))
        assert code == 2 and told.count("\n") == 1 and said in told and str(path) in told, (name, told)
    for text in ("", "[]", "[" * 100_000, '{"seed": 1'):
        path.write_text(text)
        code, told = run("--replay", str(path))
        assert code == 2 and told.count("\n") == 1, told


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_policy_is_trained_and_obeys_masks() -> None:
    world = made()
    reader, who = readers.trained(world, 16_384, 600.0, 0)
    played = episodes.play_policy(world, reader, list(range(20)))
    assert who.startswith("PPO") and played.returns.mean() > 5.5
    world = made(id="MaskedToy-v0")
    reader, who = readers.trained(world, 1024, 600.0, 0)
    played = episodes.play_policy(world, reader, list(range(20)))
    assert who.startswith("MaskablePPO") and max(map(max, played.actions)) == 1
    assert readers.trained(world, 10**9, 0.0, 0)[1].startswith("MaskablePPO of Stable-Baselines3, 8 steps")


def test_training_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(Refused, match=r"sb3_contrib.*--policy"):
        readers.trained(made(), 64, 60.0, 0)


# --- the project's own environment ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_agrees_with_the_audit_of_the_published_reward(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of a small search earns more than the investigate-then-contain policy: that reward is degenerate."""
    monkeypatch.setitem(plans.EFFORTS, "tiny", TINY._replace(steps=60_000, keep=8))
    game = {"scenario": "supply_chain_token_drift", "rules": "classic", "reward": "linear"}
    policy = str(Path(__file__).parent / "soc_policy.py:evidence")
    words = ("--env-kwargs", json.dumps(game), "--lanes", "128", "--policy", policy, "--episodes", "48")
    found = audit(run, tmp_path, "jaxsim.gym:Soc-v0", *words)
    own = json.loads((Path(audit_folder.__file__).parent / "verdicts.json").read_text("utf-8"))["verdicts"]
    (same,) = [v for v in own if all(v[k] == game[k] for k in game)]
    assert found["verdict"] == same["verdict"] == verdict.DEGENERATE
    assert found["evg_ci"][1] < 0 and found["best_blind"] == verdict.PLAN
