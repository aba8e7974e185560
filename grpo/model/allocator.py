"""How memory is given back to a CPU's system: not at all while a model works, which allocates the same again at once.

By default glibc maps every large tensor anew, and the system writes zeros to each of its pages before it is used.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3), malloc.h
MOST = 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Let this process keep what it has freed. Nothing happens where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, MOST)
