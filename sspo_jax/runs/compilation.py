"""How many programs a run compiled and how long that took, from JAX's own events."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax

from sspo_jax.files import cache_directory
from sspo_jax.host_memory import release_freed_memory

_COMPILE = "/jax/core/compile/backend_compile_duration"
_TRACE = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_LAST_SECONDS = 10.0  # of a run that has been interrupted while a program is compiled
_SMALL_SECONDS = 0.1  # below it is a helper of a few operations, not one of the run's programs


class CompileLog:
    """Listens from its creation on, and hands back the memory that the compiler has freed, some hundred MB a program.

    `programs` counts what took longer than 0.1 s to compile (with the persistent cache: to load); `seconds` is all
    time spent compiling, `trace_seconds` all time spent turning Python into programs.
    """

    def __init__(self) -> None:
        self.programs = 0
        self.seconds = 0.0
        self.trace_seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE:
            self.seconds += duration_secs
            if duration_secs > _SMALL_SECONDS:
                self.programs += 1
                release_freed_memory()
        elif event in _TRACE:
            self.trace_seconds += duration_secs


class CompileAhead:
    """Compiles programs in a thread while the first responses are sampled; they are found in the persistent cache.

    Where there is no such cache nothing is done. An error is left to the call that needs the program.

    Args:
      traced: called in the thread; gives what is to be compiled, one after the other.
    """

    def __init__(self, traced: Callable[[], Iterable[Any]]):
        self._traced, self._is_over = traced, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="compile ahead")
        if all(getattr(jax.config, name) for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")):
            self._thread.start()

    def _work(self) -> None:
        with contextlib.suppress(Exception):
            for program in self._traced():
                if self._is_over.is_set():
                    return
                program.lower().compile()

    def wait(self) -> None:
        """Returns when it is compiled, so that nothing is compiled twice."""
        if self._thread.is_alive():
            self._thread.join()

    def stop(self) -> None:
        """Begins with no further program, and waits for the present one, but not long."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where or is empty."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
