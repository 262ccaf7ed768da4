"""Sampling in a thread of its own, while the main thread trains."""

import threading
import time
from collections.abc import Callable

import jax

from sspo_jax.distributed.processes import gather, is_main
from sspo_jax.serving import ServerError, ServerGoneError
from sspo_jax.trainer.rollout_record import decoded, encoded
from sspo_jax.types import Rollout

LOOK_SECONDS = 1.0
"""Several processes ask that often whether process 0 has the rollout."""


class AbandonedError(Exception):
    """Nobody waits for what the thread samples."""


class Background:
    """A rollout that is sampled in a thread of process 0; `result` brings it to all processes.

    Args:
      sample: called in the thread with a function that it calls now and then, with the number of tokens so far.
    """

    def __init__(self, sample: Callable[[Callable[[int], None]], Rollout]):
        self._sample = sample
        self._is_done, self._is_over = threading.Event(), threading.Event()
        self._rollouts: list[Rollout] = []  # none until it is there
        self._error: BaseException | None = None
        self.seconds = 0.0
        """That the sampling took, once there is a result."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="rollout")
        if is_main():
            self._thread.start()

    def _work(self) -> None:
        start = time.monotonic()
        try:
            self._rollouts.append(self._sample(self._progress))
        except BaseException as error:  # raised where the result is waited for
            self._error = error
        self.seconds = time.monotonic() - start
        self._is_done.set()

    def _progress(self, _: int) -> None:
        if self._is_over.is_set():
            raise AbandonedError

    def abandon(self) -> None:
        """Ends the sampling, and returns when it has ended; the result is lost."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def result(self) -> Rollout:
        """The rollout, once it is complete; all processes call it together.

        Raises:
          ServerError: the server of rollouts is gone or of no use, on all processes.
          BaseException: whatever else ended the thread, on process 0.
        """
        while not gather(is_main() and self._is_done.wait(LOOK_SECONDS))[0]:
            pass
        error = self._error
        if error is not None and not isinstance(error, ServerError):
            raise error
        failure = None if error is None else [isinstance(error, ConnectionError), str(error)]
        is_shared = jax.process_count() > 1
        packed = encoded(self._rollouts[0]) if is_shared and self._rollouts else ""
        failure, packed, self.seconds = gather([failure, packed, self.seconds])[0]
        if error is not None:
            raise error
        if failure is not None:
            raise (ServerGoneError if failure[0] else ServerError)(failure[1])
        return self._rollouts[0] if self._rollouts else decoded(packed)
