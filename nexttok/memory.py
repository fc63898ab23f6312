"""Freed memory stays with the process, on CPUs."""

import ctypes
import sys

# names of malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed blocks instead of returning them to the kernel.

    XLA allocates the buffers of a step anew at every step; by default each of their pages is mapped
    and zeroed again, which costs a fifth of a small training step on two cores. Call it before
    threads start (before jax is imported). The price is memory that stays at its peak.

    Returns:
      Whether it took effect; False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, largest))
    return all([mallopt(name, value) == 1 for name, value in settings])
