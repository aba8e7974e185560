"""Settings that every test runs under: strict arithmetic, one thread, and property tests without a clock.

Mixing dtypes and mixing ranks are errors here (a scalar may still meet an array of any shape). A benchmark that
wants ranks promoted can say so for itself with `jax.numpy_rank_promotion("allow")`.
"""

import gc
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported: a test run is many small programs, for which more threads only get in each other's way, and
# compiling them takes longer than running them. XLA's older emitters take a third of the time; where they fuse
# multiplication and addition, which AVX cannot, roundings depend on the shape of a batch. CI compiles what must not
# depend on it as users do, too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"
    * (platform.machine().lower() in ("x86_64", "amd64")),
)

# All workers, and the commands that tests run, share what they compile; a run begins with nothing.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="jaxsim-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # to read even a small one takes a third of the time

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("local", deadline=None, max_examples=100)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=100, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# What several files use lies beside them, and asserts too.
_beside = (path.stem for path in Path(__file__).parent.glob("*/*.py"))
pytest.register_assert_rewrite(*(name for name in _beside if not name.startswith(("test_", "conftest"))))


# Few tests, none of them slow, and long all the same: they share what takes the time.
LONG = ("test_audit", "test_choices", "test_credit", "test_export")
LONG += ("test_llm_evaluate", "test_metrics", "test_rows", "test_sub_steps")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then the LONG ones, then those with many: a worker takes a file at a time, and none
    should begin a long one when the others have nothing left.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    count = Counter(item.path for item in items)
    items.sort(key=lambda i: (i.path not in slow, i.path.stem not in LONG, -count[i.path], i.path))


def pytest_collection_finish() -> None:
    """To trace is to make many small objects that are soon gone: the collector need not come for each few hundred of
    them, nor look through all that was imported.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


MANY_MAPS = 20_000  # of the memory maps that a process may have, 65,530; each program holds some
MAPS = Path("/proc/self/maps")  # on Linux


# Their programs run for some ticks only: to compile them well takes longer than that saves.
BRIEF = ("test_backend", "test_bank", "test_console", "test_credit", "test_exact", "test_golden", "test_gym")
BRIEF += ("test_incident_page", "test_leaks", "test_learning", "test_live", "test_openenv", "test_outward")
BRIEF += ("test_policy_training", "test_prompt_leaks", "test_queues", "test_race", "test_readme", "test_remote")
BRIEF += ("test_rows", "test_serving", "test_sub_steps", "test_throughput", "test_training", "test_voi", "test_x64")


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of this process, and of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        if quickly := request.path.stem in BRIEF:
            patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", quickly)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """The next files of a worker use what was traced and compiled for the last ones, until there is too much of it."""
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
