"""Ctrl-C and SIGTERM: abandon the current step, save the last finished one, exit. A second one ends it at once.

Where a step has only sampled or scored so far, nothing of it is in the state of the run, so it can be dropped and done
again after the restart with the same result. Once its updates have begun it is finished.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

from sspo_jax.distributed.processes import gather

EXCHANGE_SECONDS = 1.0
"""About how often several processes ask each other whether one of them is to stop."""


class Interrupted(Exception):
    """The run was asked to stop, at a place where the state is that of the last finished step."""


class StopRequest:
    """A context in which SIGINT and SIGTERM only set a flag.

    Args:
      say: prints a line for the person who pressed Ctrl-C.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._before: dict[int, Any] = {}
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        for caught, handler in self._before.items():
            signal.signal(caught, handler)
        self._say(f"{self.name}: stopping and saving; once more ends the run at once")

    def polls(self) -> Callable[[], None]:
        """A function to call often during one stage of a step; it raises `Interrupted` where a stop was asked for.

        All processes call it equally often and it raises on all or on none: they exchange what they know, as often as
        makes about `EXCHANGE_SECONDS` between two exchanges.
        """
        return AgreedPoll(self) if jax.process_count() > 1 else self._poll

    def _poll(self) -> None:
        if self:
            raise Interrupted


class AgreedPoll:
    def __init__(self, stop: StopRequest):
        self._stop = stop
        self._every, self._left = 1, 1  # calls from one exchange to the next
        self._last = time.monotonic()

    def __call__(self) -> None:
        self._left -= 1
        if self._left:
            return
        now = time.monotonic()
        votes = gather([bool(self._stop), now - self._last])
        if any(is_asked for is_asked, _ in votes):
            raise Interrupted
        self._last = now
        slowest = max(seconds for _, seconds in votes)  # of clocks that differ all must make the same number
        fitting = int(self._every * EXCHANGE_SECONDS / max(slowest, 1e-9))
        self._every = self._left = max(1, min(2 * self._every, fitting))
