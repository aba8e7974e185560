"""Compiled programs, kept between runs: compiling takes most of the time until a first result.

JAX's persistent compilation cache, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR names another place.
JAX_ENABLE_COMPILATION_CACHE=false turns it off. The folder may be deleted at any time.
"""

import hashlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

CPU_INFO = Path("/proc/cpuinfo")  # Linux; elsewhere the name of the processor has to do
# An entry that another process is still writing, or was killed while it wrote, is read as none: it costs time only.
UNREADABLE = "Error (reading|writing) persistent compilation cache entry"


def processor() -> list[str]:
    """What code compiled here may use and run into: the lines of CPU_INFO that tell models of processors apart."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = ("vendor_id", "model name", "flags", "Features", "bugs")
    return [x for x in lines if x.startswith(told)] or [platform.machine(), platform.processor()]


def reloads(cpu: list[str]) -> bool:
    """Whether XLA takes back what it compiled for this processor.

    Where gathers are slow (Intel's with the flaw `gds`), it notes a preference as if it were an instruction, misses it
    on reading, and says so in a long line for each program (jax-ml/jax issue 38445).
    """
    return not any(x.startswith("bugs") and "gds" in x.split() for x in cpu)


def folder() -> Path:
    """Where programs are kept: a folder for each pair of versions and each kind of processor."""
    cpu = "\n".join([jax.__version__, jaxlib.version.__version__, *processor()])
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "jaxsim-soc" / "programs" / hashlib.sha256(cpu.encode()).hexdigest()[:16]


def keep() -> None:
    """Have JAX keep what it compiles, unless the user has said where, or there is no place that can be written to."""
    config: Any = jax.config  # its settings have no types
    if config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache:
        if not reloads(processor()):
            return
        try:
            # Whoever can write there can have this program run what they wrote.
            path = folder()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # read-only, full, or no home at all
            return
        if not os.access(path, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    warnings.filterwarnings("ignore", UNREADABLE)
