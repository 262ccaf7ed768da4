"""Seconds by name, which are named in traces of the JAX profiler as well."""

import time

import jax


class Stopwatch:
    """Adds up seconds by name.

    >>> watch = Stopwatch()
    >>> with watch("rollout"):
    ...     pass
    >>> watch.seconds["rollout"] >= 0
    True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> "_Lap":
        return _Lap(self, name)


class _Lap:
    def __init__(self, watch: Stopwatch, name: str):
        self._watch, self._name = watch, name
        self._annotation = jax.profiler.TraceAnnotation(name)

    def __enter__(self) -> None:
        self._annotation.__enter__()
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        elapsed = time.monotonic() - self._start
        self._annotation.__exit__(None, None, None)
        self._watch.seconds[self._name] = self._watch.seconds.get(self._name, 0.0) + elapsed
