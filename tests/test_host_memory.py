"""The C library keeps freed memory where nothing else is chosen; a large block is not faulted in twice."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from sspo_jax.host_memory import keep_freed_memory
kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=clean | environment
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_a_block_is_faulted_in_once():
    assert faults(MALLOC_ARENA_MAX="4") == (False, pytest.approx(16384, rel=0.5))  # the user's choice: 64 MiB of pages
    kept, count = faults()
    assert kept
    assert count < 100
