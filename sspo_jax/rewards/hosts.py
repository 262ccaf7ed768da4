"""Where reward functions run: plain ones in worker processes, asynchronous ones side by side on one event loop.

`AsyncHost` keeps one process with an event loop in it and sends it calls; a call that overruns is cancelled there.
Where the loop itself is blocked the process is killed and started again: calls that had begun and overrun by then fail.
Nothing of the user's runs in the process that trains.
"""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

from sspo_jax.checker.workers.pool import Answer, WorkerDied, WorkerError, search_path
from sspo_jax.checker.workers.zygote import load_function, receive, send

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__name__} import main; main(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))"
)
_GRACE_SECONDS = 2.0  # beyond its own limit, which the event loop keeps, before a call is taken for one that blocks it


class AsyncHost:
    """One process that runs `async` functions, `concurrency` calls at a time.

    Args:
      concurrency: calls at a time; others wait.
      memory_limit_bytes: address space of the process; 0 for no limit.
    """

    def __init__(self, concurrency: int, memory_limit_bytes: int = 0):
        self._concurrency, self._memory = concurrency, memory_limit_bytes
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._calls: dict[int, _Call] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._closed = False

    def start(self) -> None:
        """Starts the process, without waiting for it."""
        with self._lock:
            self._start()

    def submit(
        self, function: str, positional: tuple[Any, ...], keywords: dict[str, Any], *, seconds: float | int
    ) -> Answer:
        """Starts `module:function`; the future raises TimeoutError, WorkerError or WorkerDied where it has no result.

        Args:
          seconds: the most the call may take, from when it begins.
        """
        call = _Call((function, positional, keywords, seconds), seconds)
        call.future.set_running_or_notify_cancel()
        with self._lock:
            number = next(self._numbers)
            self._calls[number] = call
            self._start()
            self._send(number, call)
        return call.future

    def close(self) -> None:
        """Ends the process; calls that are still there fail."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
            if self._channel is not None:
                self._channel.close()
            calls, self._calls = self._calls, {}
        if process is not None:
            process.kill()
            process.wait()
        for call in calls.values():
            call.future.set_exception(WorkerDied("the process of the reward functions was closed"))

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError("the host is closed; submit before that")
        if self._process is not None:
            return
        self._channel, theirs = socket.socketpair()
        numbers = (theirs.fileno(), self._concurrency, self._memory)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(search_path()), *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()
        arguments = (self._process, self._channel)
        threading.Thread(target=self._listen, args=arguments, name="sspo-rewards", daemon=True).start()

    def _send(self, number: int, call: "_Call") -> None:
        assert self._channel is not None
        with contextlib.suppress(OSError):  # a process that is gone is met by the thread that listens to it
            send(self._channel, (number, *call.request))

    def _listen(self, process: "subprocess.Popen[bytes]", channel: socket.socket) -> None:
        """What one thread does: bring results to their futures, and end a process that no longer answers."""
        poll = select.poll()
        with contextlib.suppress(OSError, ValueError):
            poll.register(channel, select.POLLIN)
            while not self._overdue():
                if poll.poll(200):
                    message = receive(channel)
                    if message is None:
                        break
                    self._take(*message)
        process.kill()
        process.wait()
        with self._lock:
            if self._closed or self._process is not process:
                return
            channel.close()
            self._process = self._channel = None
            self._again()

    def _take(self, number: int, kind: str, *what: Any) -> None:
        with self._lock:
            call = self._calls.get(number)
            if call is None:
                return
            if kind == "begun":
                call.begun = time.monotonic()
                return
            del self._calls[number]
        call.future.seconds = time.monotonic() - call.begun
        if kind == "done":
            call.future.set_result(what[0])
        elif kind == "late":
            call.future.set_exception(TimeoutError(f"cancelled after {call.seconds} s"))
        else:
            call.future.set_exception(WorkerError(*what))

    def _overdue(self) -> bool:
        """Whether a call has long been to be cancelled: the event loop is blocked."""
        now = time.monotonic()
        with self._lock:
            return any(now > call.begun + call.seconds + _GRACE_SECONDS for call in self._calls.values())

    def _again(self) -> None:
        """After the process has ended: what overran has failed, what else was under way is tried once more."""
        now, remaining = time.monotonic(), {}
        for number, call in self._calls.items():
            if now > call.begun + call.seconds:
                call.future.set_exception(TimeoutError("the function blocked its event loop, which was ended"))
            elif call.begun < float("inf") and call.is_second:
                call.future.set_exception(WorkerDied("its process ended during the call, twice"))
            else:
                call.is_second |= call.begun < float("inf")
                call.begun = float("inf")
                remaining[number] = call
        self._calls = remaining
        if remaining:
            self._start()
            for number, call in remaining.items():
                self._send(number, call)


class _Call:
    """A call until its result is there."""

    def __init__(self, request: tuple[Any, ...], seconds: float | int):
        self.request, self.seconds = request, seconds
        self.future = Answer()
        self.begun = float("inf")  # of time.monotonic()
        self.is_second = False


def main(descriptor: int, concurrency: int, memory_limit_bytes: int) -> None:
    """The process: serve calls until the parent closes its end or dies; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asyncio.run(_serve(socket.socket(fileno=descriptor), concurrency))


async def _serve(channel: socket.socket, concurrency: int) -> None:
    loop, slots, tasks = asyncio.get_running_loop(), asyncio.Semaphore(concurrency), set[asyncio.Task[None]]()
    lock = threading.Lock()

    def answer(*message: Any) -> None:
        with lock, contextlib.suppress(OSError):
            try:
                send(channel, message)
            except OSError:
                raise
            except Exception as error:  # a result that cannot be pickled
                send(channel, (message[0], "raised", f"the result cannot be sent back: {error}", ""))

    def begin(message: Any) -> None:
        task = loop.create_task(_call(message, slots, answer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def read() -> None:
        while (message := receive(channel)) is not None:
            loop.call_soon_threadsafe(begin, message)
        os._exit(0)  # the parent is gone, whatever the event loop is at

    threading.Thread(target=read, daemon=True).start()
    await asyncio.Event().wait()


async def _call(message: Any, slots: asyncio.Semaphore, answer: Any) -> None:
    number, function, positional, keywords, seconds = message
    async with slots:
        answer(number, "begun")
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                result = await load_function(function)(*positional, **keywords)
        except BaseException as error:  # whatever a function raises belongs to its caller
            if limit.expired():
                answer(number, "late")
                return
            text = "".join(traceback.format_exception(error, limit=-6))
            answer(number, "raised", f"{type(error).__name__}: {error}"[:2000], text[-6000:])
        else:
            answer(number, "done", result)
