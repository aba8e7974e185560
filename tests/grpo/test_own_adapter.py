"""The adapter that comes with the project."""

from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from grpo.learning.student import TARGETS
from grpo.model import adapters, embedded
from grpo.model.folders import json_object
from grpo.training import settings
from jaxsim.audit import checkpoint

FOLDER = adapters.folder(adapters.OWN)


def test_it_belongs_to_the_embedded_model_and_is_small() -> None:
    adapters.check_adapter(FOLDER, "embedded", embedded.GGUF_SHA256)
    assert sum(x.stat().st_size for x in FOLDER.iterdir()) < 8_000_000
    config, preset = json_object(FOLDER / "adapter_config.json"), settings.load("adapter")
    assert (config["r"], config["lora_alpha"]) == (preset.lora_r, preset.lora_alpha)
    assert set(config["target_modules"]) == set(TARGETS)
    with safe_open(FOLDER / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert file.get_tensor(name).isfinite().all() and ".lora_" in name
    assert {x.suffix for x in FOLDER.iterdir()} == {".json", ".md", ".safetensors"}


def test_its_teacher_comes_with_it() -> None:
    preset = settings.load("adapter")
    assert preset.teacher == settings.OWN and preset.teacher_file
    made = checkpoint.load(preset.teacher_file)
    assert (made.view, made.about["rules"], made.about["reward"]) == ("memoryless", "hardened", "operational")
    assert all(np.isfinite(x).all() for x in made.weights)


def test_another_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert adapters.folder(str(tmp_path)) == tmp_path
    with pytest.raises(ArgumentTypeError, match="'nowhere' is no folder; give the path of one"):
        adapters.folder("nowhere")
