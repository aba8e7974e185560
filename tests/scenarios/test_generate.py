"""Generated networks: valid, winnable for both sides, the same wherever drawn, and compiled as scenarios are."""

import heapq
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scenarios
from jaxsim.compile import compile_scenario, dims_of
from jaxsim.generated import compile_networks, dims_of_networks
from jaxsim.types import ScenarioArrays
from scenarios import attack
from scenarios.__main__ import main
from scenarios.generate import generate, scenario
from scenarios.networks import (
    BENIGN,
    EXFIL,
    HORIZON,
    JOBS,
    LAYERS,
    MAX_ENTITIES,
    MAX_SEED,
    SPLITS,
    TEAMS,
    TECHNIQUES,
    Networks,
    draw,
)

ROOT = Path(__file__).resolve().parents[2]
SIZES = (10, 20, 100, 1000, 10_000)

seeds = st.integers(0, MAX_SEED)
# Small ones mostly, where there is least room.
sizes = st.one_of(st.integers(10, 30), st.integers(10, 300))
splits = st.sampled_from(SPLITS)


def same(left: Networks | ScenarioArrays, right: Networks | ScenarioArrays) -> None:
    """Every array is equal, in shape and dtype too."""
    for name, a, b in zip(left._fields, left, right, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name, strict=True)


def row(arrays: ScenarioArrays, k: int) -> ScenarioArrays:
    return ScenarioArrays(*(np.asarray(x[k]) for x in arrays))


def shortest(stages: tuple[scenarios.Stage, ...], without: frozenset[str] = frozenset()) -> float:
    """Least ticks of mean dwell until an exfil stage is done, one stage at a time; inf when there is no way.

    Dijkstra's search over the sets of stages done: for a dozen stages at most.
    """
    usable = [x for x in stages if x.id not in without]
    exfil = {x.id for x in usable if x.exfil}
    best: dict[frozenset[str], float] = {frozenset(): 0.0}
    heap: list[tuple[float, list[str]]] = [(0.0, [])]
    while heap:
        ticks, ids = heapq.heappop(heap)
        done = frozenset(ids)
        if done & exfil:
            return ticks
        for x in usable:
            met = done.issuperset(x.prerequisites) and (not x.any_prerequisites or done & set(x.any_prerequisites))
            after, when = done | {x.id}, ticks + sum(x.dwell) / 2
            if met and when < best.get(after, np.inf):
                best[after] = when
                heapq.heappush(heap, (when, sorted(after)))
    return float("inf")


def plain_way(s: scenarios.Scenario, without: str | None) -> float:
    """Ticks of mean dwell on the shortest path of stages that need no stage in particular; inf when there is none.

    No less than `shortest`, and quick on large graphs.
    """
    ticks: dict[str, float] = {}
    for x in reversed(s.stages):  # listed from the goal back, so that what comes before is done
        if x.prerequisites or x.id == without:
            continue
        before = [ticks[p] for p in x.any_prerequisites if p in ticks] if x.any_prerequisites else [0.0]
        if before:
            ticks[x.id] = min(before) + sum(x.dwell) / 2
    return min((ticks[x.id] for x in s.stages if x.exfil and x.id in ticks), default=float("inf"))


def check(s: scenarios.Scenario) -> None:
    """All that is promised of a generated scenario."""
    entities = len(s.assets) + len(s.identities)
    assert abs(len(s.assets) - 0.6 * entities) <= 0.5
    assert s.horizon == HORIZON == 70
    assert 0.10 <= s.noise_rate <= 0.20
    assert 2 <= len(s.benign) <= 4
    assert 0.08 <= sum(b.rate for b in s.benign) <= 0.15
    assert all(0.3 <= b.strength <= 0.6 and b.rate > 0 for b in s.benign)
    assert 6 <= len(s.stages) <= 24
    assert all(x.lag[1] <= 7 for x in s.stages)

    entries = [x for x in s.stages if not x.prerequisites and not x.any_prerequisites]
    assert 2 <= len(entries) <= 4
    assert any(x.prerequisites for x in s.stages)
    assert any(len(x.any_prerequisites) >= 2 for x in s.stages)
    layer = {x.id: LAYERS.index(x.id.rpartition("-")[0]) for x in s.stages}
    assert {layer[x.id] for x in entries} == {0}
    for x in s.stages:
        assert x.exfil == (layer[x.id] == EXFIL)
        assert x.exfil or x.compromises_asset or x.compromises_identity
        assert all(layer[p] < layer[x.id] for p in (*x.prerequisites, *x.any_prerequisites))
        assert x.exfil or any(x.id in (*y.prerequisites, *y.any_prerequisites) for y in s.stages)

    named = Counter(name for x in s.stages for name in (x.asset, x.identity) if name)
    assert max(named.values()) <= 2
    assert 3 * len(named) <= 2 * entities
    if entities >= 50:
        assert max(named.values()) == 1

    # The attacker has a way in time, whichever stage but an exfil it cannot take; the defender has one too, by holding
    # what the entries are made on.
    assert all(plain_way(s, without) <= HORIZON for without in (None, *(x.id for x in s.stages if not x.exfil)))
    held = {name for x in entries for name in (x.asset, x.identity) if name}
    assert shortest(s.stages, frozenset(x.id for x in s.stages if held & {x.asset, x.identity})) == float("inf")


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entities", SIZES)
@pytest.mark.parametrize("split", SPLITS)
def test_sizes(entities: int, split: str) -> None:
    few = 3 if entities >= 1000 else 20
    networks = draw(range(few), entities, split)
    assert {len(x) for x in networks} == {few}
    for k in range(few):
        s = scenario(networks, k)
        assert len(s.assets) + len(s.identities) == entities
        assert s.id == f"generated-{split}-{entities}-{k}"
        assert s.held_out == (split == "held_out")
        check(s)


@given(seeds, sizes, splits)
@settings(max_examples=60)
def test_any_network(seed: int, entities: int, split: str) -> None:
    s = generate(seed, entities, split)
    check(s)


def test_stage_counts_grow_slowly() -> None:
    counts = {n: draw(range(300), n).stage_count for n in (*SIZES, 300)}
    assert set(counts[10]) == {6}
    assert set(counts[20]) == {8, 9, 10}
    assert set(counts[1000]) == set(counts[10_000]) == {20, 21, 22, 23, 24}
    means = [counts[n].mean() for n in sorted(counts)][:5]
    assert means == sorted(means)


def test_the_search_agrees_with_the_quick_way() -> None:
    """The graph search over sets of stages finds a way no longer, joint stages included."""
    for seed in range(15):
        s = generate(seed, (10, 20)[seed % 2])
        for without in (None, *(x.id for x in s.stages if not x.exfil)):
            assert shortest(s.stages, frozenset([without] if without else [])) <= plain_way(s, without) <= HORIZON


def test_benign_activities_name_targets_and_decoys() -> None:
    networks = draw(range(200), 20)
    for benign, of_stages in (
        (networks.benign_asset, networks.asset),
        (networks.benign_identity, networks.identity),
    ):
        assert benign.shape[1] == 4
        named = (benign[:, :, None] == of_stages[:, None, :]).any(2)[benign >= 0]
        assert 0.4 < named.mean() < 0.6
    assert len({name for name, *_ in BENIGN}) == len(BENIGN)


def test_tables() -> None:
    known = attack.techniques()
    for row_ in TECHNIQUES:
        assert len(row_) == len(TECHNIQUES[0])
        for tactic, technique in row_:
            assert attack.pair_problem(tactic, technique) is None and technique in known
    assert len(TECHNIQUES) == len(LAYERS)
    assert len(JOBS) == len(TEAMS)


# --- the same wherever they are drawn ---------------------------------------------------------------------------------


@given(st.lists(st.tuples(seeds, sizes), min_size=1, max_size=5), splits)
@settings(max_examples=40)
def test_a_network_does_not_depend_on_its_batch(wanted: list[tuple[int, int]], split: str) -> None:
    networks = draw([seed for seed, _ in wanted], [n for _, n in wanted], split)
    dims = dims_of_networks(networks)
    arrays = compile_networks(networks, dims)
    for k, (seed, entities) in enumerate(wanted):
        alone = draw([seed], entities, split)
        assert scenario(networks, k) == scenario(alone, 0)
        same(row(arrays, k), row(compile_networks(alone, dims), 0))


def test_splits_and_seeds_differ() -> None:
    every = [draw(range(1000), 20, split) for split in SPLITS]
    prints = {
        np.concatenate([n.criticality[k], n.privilege[k], n.success[k], n.benign_rate[k]]).tobytes()
        for n in every
        for k in range(1000)
    }
    assert len(prints) == 2000


def test_networks_never_change() -> None:
    """The same seed gives the same network on every machine and in every version."""
    n = draw([0, 7, MAX_SEED], [10, 20, 30], "held_out")
    assert n.stage_count.tolist() == [6, 9, 11]
    assert n.noise_rate.tolist() == [0.14, 0.19, 0.18]
    assert n.asset[1].tolist() == [3, 1, -1, 9, 6, 5, 10, 2, 4, -1, -1]


@pytest.mark.parametrize(
    ("given_", "wrong"),
    [
        (([], 20), "no seed"),
        (([-1], 20), "seed -1"),
        (([MAX_SEED + 1], 20), f"seed {MAX_SEED + 1}"),
        (([0], 9), "entities = 9"),
        (([0], MAX_ENTITIES + 1), "entities = 10001"),
        (([0], 20.0), "whole number"),
        (([0, 1], [20, 20, 20]), "one for each seed"),
        (([0], 20, "test"), "split 'test'"),
    ],
)
def test_bad_values(given_: tuple[object, ...], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        draw(*given_)  # type: ignore[arg-type]


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entities", SIZES)
@pytest.mark.parametrize("extra", [0, 3])
def test_compiled_directly_or_as_a_scenario(entities: int, extra: int) -> None:
    few = 2 if entities >= 1000 else 30
    networks = draw(range(few), entities)
    dims = dims_of_networks(networks)
    built = [scenario(networks, k) for k in range(few)]
    assert dims == dims_of(built) and dims_of_networks(networks, True) == dims_of(built, True)
    dims = dims._replace(
        assets=dims.assets + extra,
        identities=dims.identities + extra,
        stages=dims.stages + extra,
        benign=dims.benign + extra,
        max_lag=dims.max_lag + extra,
    )
    arrays = compile_networks(networks, dims)
    for k, s in enumerate(built):
        same(row(arrays, k), ScenarioArrays(*map(np.asarray, compile_scenario(s, dims))))


def test_mixed_sizes_share_dims() -> None:
    networks = draw(range(40), np.arange(10, 50))
    dims = dims_of_networks(networks)
    arrays = compile_networks(networks, dims)
    for k in range(40):
        same(row(arrays, k), ScenarioArrays(*map(np.asarray, compile_scenario(scenario(networks, k), dims))))


@pytest.mark.parametrize("field", ["assets", "identities", "stages", "max_lag", "benign"])
def test_too_little_room(field: str) -> None:
    networks = draw(range(5), 20)
    dims = dims_of_networks(networks)
    size = getattr(dims, field)
    with pytest.raises(scenarios.ScenarioError, match=rf"{field} = {size} does not fit .* Dims\({field}={size}\)"):
        compile_networks(networks, dims._replace(**{field: size - 1}))


@pytest.mark.parametrize("entities", [10, 20, 1000])
def test_export_and_load(entities: int) -> None:
    networks = draw([5], entities)
    s = scenarios.loads(scenarios.dump(scenario(networks, 0)))
    assert s == scenario(networks, 0)
    dims = dims_of_networks(networks)
    same(row(compile_networks(networks, dims), 0), ScenarioArrays(*map(np.asarray, compile_scenario(s, dims))))


# --- command line -----------------------------------------------------------------------------------------------------


def ended(argv: list[str]) -> object:
    """The exit code of a command that is refused."""
    with pytest.raises(SystemExit) as refused:
        main(argv)
    return refused.value.code


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "networks"
    command = ["generate", "--entities", "12", "--seed", "3", "--count", "2", "--split", "held_out", "--out", str(out)]
    assert main(command) == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == [str(out / f"generated-held_out-12-{seed}.yaml") for seed in (3, 4)]
    assert sorted(map(str, out.iterdir())) == paths
    assert main(["validate", *paths]) == 0
    assert scenarios.load(paths[1]) == generate(4, 12, "held_out")

    # An existing file stops all of them, and is replaced only by force.
    Path(paths[0]).unlink()
    Path(paths[1]).write_text("mine")
    capsys.readouterr()
    assert ended(command) == 2
    assert capsys.readouterr().err.partition("error: ")[2].startswith(f"{paths[1]} exists; add --force")
    assert [x.name for x in out.iterdir()] == [Path(paths[1]).name]
    assert main([*command, "--force"]) == 0
    assert scenarios.load(paths[1]) == generate(4, 12, "held_out")


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--entities", "9"], "--entities: '9' is not possible; give a whole number from 10 to 10000"),
        (["--entities", "many"], "--entities: 'many' is not possible"),
        (["--seed", "-1"], "--seed: '-1' is not possible"),
        (["--seed", str(MAX_SEED), "--count", "2"], f"--seed: '{MAX_SEED}' is not possible"),
        (["--count", "0"], "--count: '0' is not possible"),
        (["--split", "test"], "--split: 'test' is unknown; choose one of train, held_out"),
        (["--out", ""], "--out: '' is no directory"),
        (["--out", "file"], "file: File exists"),
        (["--out", "file/below"], "file/below: Not a directory"),
    ],
)
def test_bad_options(
    options: list[str],
    wrong: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert ended(["generate", "--out", "new", *options]) == 2
    error = capsys.readouterr().err
    assert error.partition("error: ")[2].startswith(wrong) and error.count("\n") == 1
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scenarios.__main__.dump", full)
    assert ended(["generate", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_list_has_both_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == [*scenarios.names(), *scenarios.names("hardened")]


def test_the_generator_does_not_need_jax() -> None:
    code = "import sys, scenarios.generate as g; g.generate(0); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
