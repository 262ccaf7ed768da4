"""The C library's memory, set up for programs that ask for the same large arrays at every call."""

import ctypes
import os
import sys

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of mallopt(3)
_USERS_OWN = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed instead of handing it back to the system; returns whether it does.

    XLA's CPU backend allocates the scratch memory of a program at every call. By default glibc returns blocks of that
    size to the system at once, and the next call faults every page in again: a fifth of the CPU time of an update.
    With this a process stays at its peak, until `release_freed_memory`.

    It has an effect only before there are threads: call it before anything imports jax, as the command line does.
    Nothing is done where this is not glibc, or where the environment chooses an allocator or its settings.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _USERS_OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    # One heap for all threads: the others' are limited to 64 MiB, and what is larger would bypass them.
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1))
    return all(mallopt(name, value) for name, value in settings)


def release_freed_memory() -> None:
    """Hands back what has been freed so far, after something that needed much memory once. Nothing without glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
