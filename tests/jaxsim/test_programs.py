"""Programs kept between runs: another process takes them back, and whatever is wrong with them is only slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsim import programs

PLAY = """
import jax, jaxsim
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
env, params = jaxsim.make("supply_chain_token_drift")
print(jax.config.jax_compilation_cache_dir)
print(jax.jit(env.reset)(jax.random.key(0), params)[1].order.tolist())
print(len(hits))
"""


def play(home: Path, **more: str) -> list[str]:
    """The cache's folder, an order drawn and how many programs were taken back, as a process of its own prints them.

    `home` is the user's cache folder.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    env |= {"XDG_CACHE_HOME": str(home)} | more
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAY], env=env, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout.splitlines()


def entries(home: Path) -> list[Path]:
    return sorted(home.rglob("*-cache"))


def test_they_are_taken_back_and_an_entry_cut_short_is_compiled_anew(tmp_path: Path) -> None:
    where, drawn, none = play(tmp_path)
    if where == "None":
        pytest.skip("XLA does not take back what it compiles for this processor")
    first = entries(tmp_path)
    assert none == "0"
    assert first
    assert Path(where) == first[0].parent
    assert Path(where).stat().st_mode & 0o077 == 0
    again = play(tmp_path)
    assert again[:2] == [where, drawn]
    assert int(again[2]) >= len(first)
    for entry in first:
        entry.write_bytes(entry.read_bytes()[:1000])
    assert play(tmp_path)[:2] == [where, drawn]


def test_jax_has_a_switch_and_a_place_of_its_own(tmp_path: Path) -> None:
    where, _, _ = play(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "there"))
    assert where == str(tmp_path / "there")
    play(tmp_path / "home", JAX_ENABLE_COMPILATION_CACHE="false")
    assert not entries(tmp_path / "home")


def test_a_place_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert play(tmp_path / "file")[0] == "None"


def test_another_version_or_processor_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = programs.folder()
    monkeypatch.setattr(programs.jaxlib.version, "__version__", "0.0.1")
    other_version = programs.folder()
    monkeypatch.setattr(programs, "processor", lambda: ["model name : another"])
    assert len({mine, other_version, programs.folder()}) == 3


@pytest.mark.parametrize(("bugs", "able"), [("bugs : gds mmio_stale_data", False), ("bugs : gdsx", True), ("", True)])
def test_where_xla_refuses_its_own_programs_none_is_kept(bugs: str, able: bool) -> None:
    assert programs.reloads(["model name : x", bugs]) == able
