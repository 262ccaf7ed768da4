"""`sspo train EXPERIMENT --supervise`: starts a run again when its process dies.

A preempted host, a lost process, a killed kernel, a disk without space (code 75, temporary): the same command with the
same run directory goes on at the last checkpoint, after a wait. What will not get better by itself is not tried again:
a wrong command line, or an error before the first checkpoint of an attempt.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

RESTARTS = 20
"""Restarts in a row without a new checkpoint before it gives up, unless told."""
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0
_OWN_ERRORS = (1, 2)


def supervise(
    command: Sequence[str],
    run_dir: pathlib.Path,
    *,
    restarts: int = RESTARTS,
    say: Callable[[str], None] | None = None,
    first_wait: float | None = None,
) -> int:
    """Runs the command until it succeeds, is stopped, or cannot go on; returns its last exit code.

    SIGINT and SIGTERM are passed on, and end the supervision with the command.

    Args:
      command: of the run, with `--run-dir`.
      run_dir: where its checkpoints appear: a new one starts the count of restarts anew.
      restarts: in a row without a new checkpoint.
      say: prints a line; by default on standard error.
      first_wait: seconds before the first restart, doubled for each further one up to five minutes; by default
        $SSPO_SUPERVISE_WAIT or 5.
    """
    say = say or (lambda text: print(f"sspo: {text}", file=sys.stderr, flush=True))
    wait_at_first = float(os.environ.get("SSPO_SUPERVISE_WAIT", _FIRST_WAIT)) if first_wait is None else first_wait
    relay = _Relay()
    with relay:
        used, wait = 0, wait_at_first
        while True:
            before = newest_checkpoint(run_dir)
            code = relay.run(command)
            if code == 0 or relay.caught is not None:
                return code
            progressed = newest_checkpoint(run_dir) > before
            if code in _OWN_ERRORS and not progressed:
                say(f"the run ended with code {code} before a new checkpoint: not started again")
                return code
            if progressed:
                used, wait = 0, wait_at_first
            if used >= restarts:
                say(f"the run ended with {_reason(code)}; {restarts} restarts without a new checkpoint are used up")
                return code
            used += 1
            say(f"the run ended with {_reason(code)}; restart {used} of {restarts} in {wait:g} s")
            if relay.sleep(wait):
                return 128 + (relay.caught or 0)
            wait = min(2 * wait, _LONGEST_WAIT)


def newest_checkpoint(run_dir: pathlib.Path) -> int:
    """Its step; -1 where there is none."""
    return max((int(entry.name) for entry in (run_dir / "checkpoints").glob("*") if entry.name.isdigit()), default=-1)


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


class _Relay:
    """Passes SIGINT and SIGTERM on to the command that runs."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Relay":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        if self._process is not None:
            self._process.send_signal(number)

    def run(self, command: Sequence[str]) -> int:
        """Exit code; negative for a signal. A group of its own, or a Ctrl-C would reach the command twice."""
        self._process = subprocess.Popen(command, process_group=0)
        if self.caught is not None:  # it came while the process was being started
            self._process.send_signal(self.caught)
        code = self._process.wait()
        self._process = None
        return code

    def sleep(self, seconds: float) -> bool:
        """Waits; true if a signal ended it."""
        deadline = time.monotonic() + seconds
        while self.caught is None and time.monotonic() < deadline:
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        return self.caught is not None
