"""`UserReward`, a function of one's own as a term of the reward, and `Runner`, which calls it during a rollout."""

import concurrent.futures
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from sspo_jax.checker import Verifier
from sspo_jax.checker.workers.pool import WorkerDied, WorkerError, WorkerPool, search_path
from sspo_jax.ranges import Positive, Workers
from sspo_jax.rewards.calls import Outcome, Real, RewardError, Wanted, describe, outcomes
from sspo_jax.rewards.hosts import AsyncHost

ON_FAILURE = ("stop", "exclude", "zero")
ASYNC_CONCURRENCY = 32
"""Calls at a time of an `async` function whose record names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserReward:
    """A function of yours by import path. It says by the names of its parameters what it wants: see docs/rewards.md.

    It returns a number, Python's or NumPy's, a dict of several by name, or None to take the sample out of its group;
    with a parameter `responses` it is called once for a group and returns a list. It starts when its response, or its
    group, has ended, while others are still sampled.

    A plain function runs in worker processes and is killed after `timeout_seconds`; an `async` one runs with others on
    an event loop of one process and is cancelled. Both must be importable there, under the memory limit of the workers.
    """

    function: str
    """`module:function`, importable from the folder the run was started in or from that of the experiment file."""
    weight: Real = 1.0
    """Multiplies this term in the sum; where there are several, each of them."""
    weights: Mapping[str, Real] = dataclasses.field(default_factory=dict)
    """Where the function returns a dict: further factors of terms by their names; 1 for those not named."""
    timeout_seconds: Positive = 5.0
    """The most one call may take."""
    concurrency: Workers | None = None
    """Calls at a time; None: as many as the checker has workers, and shared with it, or for an `async` function 32."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further keyword arguments of every call."""
    on_failure: str = "stop"
    """Where it raises, overruns or returns something else: "stop" ends the run with a RewardError, "exclude" takes
    the sample out, "zero" counts it as 0."""

    def __post_init__(self) -> None:
        module, colon, name = self.function.partition(":")
        if not (module and colon and name):
            raise ValueError(f"function is {self.function!r}; expected module:function")
        if self.on_failure == "raise":  # as it was called before
            object.__setattr__(self, "on_failure", "stop")
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure is {self.on_failure!r}; expected 'stop', 'exclude' or 'zero'")

    @property
    def name(self) -> str:
        """Of the term, where the function returns a single number."""
        return self.function

    @property
    def short_name(self) -> str:
        """How options speak of it: --reward.SHORT_NAME.weight."""
        return re.split("[:.]", self.function)[-1] if self.name == self.function else self.name

    def keywords(self) -> dict[str, Any]:
        """Of every call, beside what the function asks for."""
        return dict(self.arguments)

    def check(self, verifier: Verifier) -> None:
        """Looks the function up in a worker, and what it asks for, without calling it.

        Raises:
          ValueError: it cannot be imported there, or asks for something that is not known.
        """
        self.described(verifier)

    def described(self, verifier: Verifier) -> Wanted:
        """What the function asks for; raises a RewardError, see `check`."""
        found = verifier.call(
            f"{describe.__module__}:{describe.__name__}", self.function, tuple(self.keywords()), timeout_seconds=60.0
        )
        try:
            return found.result()
        except (TimeoutError, WorkerError, WorkerDied) as error:
            reason = str(error).removeprefix("ValueError: ")
        if reason.startswith("its parameter"):
            raise RewardError(f"--reward.user {self.function}: {reason}")
        raise RewardError(
            f"--reward.user {self.function} cannot be imported: {reason}. Expected module:function, importable from "
            "the working directory or the folder of the experiment file"
        )

    def outcomes(self, future: "concurrent.futures.Future[Any]", wanted: Wanted, size: int) -> list[Outcome]:
        """What one call came to for each of its responses, after `on_failure`.

        Raises:
          RewardError: it failed, and `on_failure` is "stop".
        """
        try:
            return outcomes(self._result(future), wanted, size, self.function)
        except RewardError:
            if self.on_failure == "stop":
                raise
            return [Outcome({}, self.on_failure == "exclude")] * size

    def _result(self, future: "concurrent.futures.Future[Any]") -> Any:
        try:
            return future.result()
        except TimeoutError as error:
            raise RewardError(f"{self.function} took longer than {self.timeout_seconds} s") from error
        except (WorkerError, WorkerDied) as error:
            detail = getattr(error, "traceback", "")
            raise RewardError(f"{self.function} failed in its worker: {error}\n{detail}".rstrip()) from error


class Runner:
    """Calls one reward function, in the processes that it is to run in.

    Args:
      reward: which one.
      verifier: of the checker, whose workers are shared where the record asks for no concurrency of its own.
      memory_limit_bytes: of each process.
    """

    def __init__(self, reward: UserReward, verifier: Verifier, memory_limit_bytes: int):
        self.reward = reward
        self.wanted = reward.described(verifier)
        self._verifier = verifier
        self._host: AsyncHost | WorkerPool | None = None
        if self.wanted.is_async:
            self._host = AsyncHost(reward.concurrency or ASYNC_CONCURRENCY, memory_limit_bytes)
        elif reward.concurrency is not None:
            self._host = WorkerPool(reward.concurrency, memory_limit_bytes)
        if self._host is not None:
            self._host.start()

    def submit(self, values: Mapping[str, Any]) -> "concurrent.futures.Future[Any]":
        """Starts a call.

        Args:
          values: all that a function may ask for, by name.
        """
        reward, wanted = self.reward, self.wanted
        asked = {name: values[name] for name in wanted.names}
        positional, keywords = (tuple(asked.values()), {}) if wanted.is_positional else ((), asked)
        keywords |= reward.keywords()
        seconds = reward.timeout_seconds
        if isinstance(self._host, AsyncHost):
            return self._host.submit(reward.function, positional, keywords, seconds=seconds)
        if self._host is None:
            return self._verifier.call(reward.function, *positional, timeout_seconds=seconds, **keywords)
        return self._host.submit(
            "call", (reward.function, search_path(), positional, keywords), timeout_seconds=seconds
        )

    def outcomes(self, future: "concurrent.futures.Future[Any]", size: int = 1) -> list[Outcome]:
        """What a call came to for each of its responses; see `UserReward.outcomes`."""
        return self.reward.outcomes(future, self.wanted, size)

    def close(self) -> None:
        """Ends the processes of its own at once."""
        if isinstance(self._host, AsyncHost):
            self._host.close()
        elif self._host is not None:
            self._host.kill()
