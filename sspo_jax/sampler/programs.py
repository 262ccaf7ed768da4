"""Compiled programs by name and shape, with their number and the seconds they took."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import jax


class Programs:
    """Compiles ahead of time, once for each key, and keeps the result.

    Ahead-of-time compilation makes the two numbers a user asks for exact: how many programs there are and what they
    cost. A call with other shapes than the program was compiled for raises; it never recompiles in silence.
    """

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Any] = {}
        self.seconds = 0.0
        """Spent tracing and compiling so far."""

    def __len__(self) -> int:
        return len(self._compiled)

    @property
    def names(self) -> list[str]:
        """What was compiled, in order."""
        return [" ".join(str(part) for part in key) if isinstance(key, tuple) else str(key) for key in self._compiled]

    def __call__(self, key: Hashable, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Any:
        """function(*args), compiled at the first call with this key; arguments `donate` are consumed."""
        compiled = self._compiled.get(key)
        if compiled is None:
            start = time.perf_counter()
            compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
            self.seconds += time.perf_counter() - start
            self._compiled[key] = compiled
        return compiled(*args)

    def temporary_bytes(self) -> int:
        """The largest scratch memory that any of the programs takes besides its arguments and results."""
        sizes = [compiled.memory_analysis() for compiled in self._compiled.values()]
        return max((size.temp_size_in_bytes for size in sizes if size is not None), default=0)
