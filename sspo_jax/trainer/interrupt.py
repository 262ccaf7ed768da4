"""Ctrl-C and SIGTERM: finish the step, save, exit. A second one ends the process at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


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
        self._say(f"{self.name}: finishing this step, then saving; once more ends the run at once")
