"""Memory that a model has freed is there when it is wanted again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from grpo.model import allocator
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8_000_000)  # 64 MB, and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    def faults(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout
        )

    # How large a page is is the system's choice.
    assert faults("keep") * 10 < faults("leave")
