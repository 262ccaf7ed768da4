"""A thread that dies of an error ends the run: work that nobody does any more would be waited for without end."""

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Collection
from types import TracebackType

from sspo_jax.distributed.interrupt import StopRequest

logger = logging.getLogger(__name__)

GRACE_SECONDS = 600.0
"""For the step under way to end, and to save, after a thread has died; then the process ends as it is."""
_SOFTWARE = 70  # EX_SOFTWARE


class ThreadDiedError(RuntimeError):
    """A thread that works beside the run ended with an error."""


class ThreadGuard:
    """A context in which an error that a thread does not catch asks the run to stop.

    Args:
      stop: is told to stop; the run saves as after Ctrl-C.
      grace_seconds: until the process ends itself, if the main thread waits for the dead one.
      bystanders: packages whose threads nobody waits for, those of trackers: where one dies, that is a warning.
    """

    def __init__(self, stop: StopRequest, *, grace_seconds: float = GRACE_SECONDS, bystanders: Collection[str] = ()):
        self._stop, self._grace, self._bystanders = stop, grace_seconds, frozenset(bystanders)
        self._timer: threading.Timer | None = None
        self.failure: ThreadDiedError | None = None

    def __enter__(self) -> "ThreadGuard":
        self._before = threading.excepthook, sys.unraisablehook
        threading.excepthook, sys.unraisablehook = self._died, self._unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        threading.excepthook, sys.unraisablehook = self._before
        if self._timer is not None:
            self._timer.cancel()

    def _unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Passes over what the writes of a checkpoint say that was given up: their event loop is closed by then."""
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._before[1](unraisable)

    def _died(self, args: "threading.ExceptHookArgs") -> None:
        if args.exc_value is None or self.failure is not None:
            return
        name = args.thread.name if args.thread is not None else "unknown"
        if self._bystanders & _packages(args.exc_traceback):
            logger.warning("the thread %s ended with %r; the run goes on", name, args.exc_value)
            return
        with contextlib.suppress(OSError):  # where the disk is full, so may be that of the log
            traceback.print_exception(args.exc_value, file=sys.stderr)
        self.failure = ThreadDiedError(f"the thread {name} ended with {args.exc_value!r}")
        self.failure.__cause__ = args.exc_value
        self._stop.name = f"the end of the thread {name}"
        self._timer = threading.Timer(self._grace, self._give_up, (name,))
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self, name: str) -> None:
        with contextlib.suppress(OSError):
            print(
                f"sspo: the thread {name} has died, and the run does not come to an end within {self._grace:g} s: "
                "the process ends; the same --run-dir goes on at the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(_SOFTWARE)


def _packages(trace: TracebackType | None) -> set[str]:
    """Names of the packages whose code an error went through."""
    modules = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(trace))
    return {module.partition(".")[0] for module in modules}
