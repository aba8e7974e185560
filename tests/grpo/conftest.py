"""Models, games and rows that several files here use, made once a worker. What they need is imported when they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import tiny

    return tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its adapter."""
    from exported_models import adapter_of
    from tiny_models import tiny

    folder = tmp_path_factory.mktemp("qwen")
    model = tiny(folder / "tiny")
    return model, adapter_of(model, folder / "adapter")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from exported_models import adapter_of, tiny_llama

    folder = tmp_path_factory.mktemp("llama")
    model = tiny_llama(folder / "tiny")
    return model, adapter_of(model, folder / "adapter")


@pytest.fixture(scope="session")
def game() -> Any:
    """A campaign to train on."""
    from taught_rows import campaign

    return campaign("hardened")


@pytest.fixture(scope="session")
def found(game: Any) -> Any:
    """Rows of the teacher's play, with their credit."""
    from taught_rows import taught

    return taught(game)
