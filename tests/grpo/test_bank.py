"""The bank: which states are collected, and its files."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from forks import CAMPAIGNS, CLASSIC, DIMS, ENV, HARDENED, KEY, collected, one, rows_of, scripted

from grpo.rows import bank as banks
from grpo.rows.bank import Bank
from jaxsim import env, replay
from jaxsim.policies import BASELINES
from jaxsim.types import (
    HORIZON,
    RUNNING,
    Dims,
    Params,
)
from jaxsim.version import SIMULATOR_VERSION


def test_collected_states_are_those_of_the_episodes() -> None:
    bank = banks.collect_heuristic(ENV, HARDENED, *BASELINES["monitor"], KEY, 5, 2)
    assert bank.params_index.tolist() == [0] * 10 + [1] * 10
    assert bank.episode.tolist() == [e for _ in range(2) for e in range(5) for _ in range(2)]
    assert (bank.state.tick % 2).tolist() == [0, 1] * 10, "no tick twice"
    assert (bank.state.end == RUNNING).all() and (bank.action == 0).all()
    for r in range(0, 20, 3):
        p, e, tick = int(bank.params_index[r]), int(bank.episode[r]), int(bank.state.tick[r])
        again = replay(ENV, rows_of(p), jax.random.fold_in(KEY, p), e, np.zeros(80, np.int32))
        jax.tree.map(lambda a, b, t=tick: np.testing.assert_array_equal(a[t], b), again.state, one(bank, r))


def test_ticks_are_chosen_evenly_and_by_the_seed() -> None:
    a, b, c = scripted(KEY), scripted(KEY), scripted(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a.state.tick != c.state.tick).any() and (a.state.end == RUNNING).all()
    ticks = collected().state.tick[collected().params_index == 0]
    assert abs(ticks.mean() - 34.5) < 5 and ticks.min() < 5 and ticks.max() > 64
    with pytest.raises(ValueError, match="snapshots = 0 is too few"):
        banks.collect_heuristic(ENV, CLASSIC, *BASELINES["heuristic"], KEY, 3, 0)


def test_rows_are_taken_and_put_together() -> None:
    bank = collected()
    some = banks.take(bank, bank.params_index == 1)
    assert (some.params_index == 1).all() and len(some.episode) == 120
    jax.tree.map(np.testing.assert_array_equal, banks.concatenate([banks.take(bank, np.arange(120)), some]), bank)
    with pytest.raises(ValueError, match="banks are empty"):
        banks.concatenate([])
    with pytest.raises(ValueError, match="other dims"):
        banks.concatenate([bank, bank._replace(state=bank.state._replace(marks=bank.state.marks[..., :-1]))])
    with pytest.raises(ValueError, match="params are empty"):
        banks.stack([])
    bigger = env.make_params(CAMPAIGNS[0], DIMS._replace(assets=9), "hardened1", "operational1", "any")
    with pytest.raises(ValueError, match=r"params\[1\]\.scenario\.exists has shape \(14,\)"):
        banks.stack([rows_of(0), bigger])


def saved(folder: Path, bank: Bank | None = None) -> Path:
    path = folder / "rows.npz"
    banks.save(path, banks.take(collected(), np.arange(100, 130)) if bank is None else bank, DIMS, HARDENED)
    return path


def test_a_bank_comes_back_from_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    back = banks.load(path, DIMS, HARDENED)
    jax.tree.map(np.testing.assert_array_equal, back, banks.take(collected(), np.arange(100, 130)))
    assert [x.dtype for x in jax.tree.leaves(back)] == [x.dtype for x in jax.tree.leaves(collected())]
    other = HARDENED._replace(reward=jax.tree.map(lambda x: x * 2, HARDENED.reward))
    banks.load(path, DIMS, other)  # the reward may change
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npz"]


def test_what_kills_a_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["rows.npz"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for content in (b"", b"PK", whole[:middle], whole[:-30], b"\x93NUMPY junk", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"rows\.npz: not a readable bank .*collect the bank again"):
            banks.load(path, DIMS, HARDENED)
    for at in range(50, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            back = banks.load(path, DIMS, HARDENED)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a byte that nothing reads
            jax.tree.map(np.testing.assert_array_equal, back, banks.take(collected(), np.arange(100, 130)))
    np.save(tmp_path / "one.npy", np.zeros(3))
    for missing in (tmp_path / "none.npz", tmp_path / "one.npy"):
        with pytest.raises(ValueError, match="not a readable bank"):
            banks.load(missing, DIMS, HARDENED)


def test_files_that_do_not_match_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)

    def refused(dims: Dims = DIMS, params: Params = HARDENED, **changes: Any) -> str:
        np.savez(path, allow_pickle=False, **{k: v for k, v in (arrays | changes).items() if v is not None})
        with pytest.raises(ValueError, match=r"rows\.npz: .*collect the bank again") as caught:
            banks.load(path, dims, params)
        return str(caught.value)

    assert "dims = [6, 5" in refused(DIMS._replace(assets=7))
    assert "params_digest" in refused(params=CLASSIC)
    assert f"simulator_version = '0', but {SIMULATOR_VERSION!r}" in refused(simulator_version=np.asarray("0"))
    assert "format = None" in refused(format=None)
    assert "action is missing" in refused(action=None)
    assert "state.tick is of shape (30,) and float64" in refused(**{"state.tick": np.zeros(30)})
    assert "state.marks is of shape (29, " in refused(**{"state.marks": arrays["state.marks"][1:]})
    assert "params_index = 2 is not in 0..1" in refused(params_index=arrays["params_index"] * 0 + np.int32(2))
    assert "state.targets = 99 is not" in refused(**{"state.targets": arrays["state.targets"] * 0 + np.int32(99)})
    assert "state.end = 3" in refused(**{"state.end": arrays["state.end"] * 0 + np.int32(HORIZON)})
    assert "state.tick = 80 is past" in refused(**{"state.tick": arrays["state.tick"] * 0 + np.int32(80)})
    assert "state.load holds" in refused(**{"state.load": arrays["state.load"] * np.float32(np.nan)})
