"""Worker processes with a time limit on each task: a worker that overruns is killed, its neighbours go on.

One thread of this process tends each worker, so tasks may be submitted from any thread, with or without an event loop;
no signals and no `multiprocessing` are involved, and the caller's `__main__` is never imported again.
"""

import atexit
import concurrent.futures
import contextlib
import json
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

from .zygote import receive, send

_START_SECONDS = 60.0  # the longest that a fresh interpreter may take to load sympy on a busy machine
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__package__}.zygote import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class WorkerError(RuntimeError):
    """A task raised in its worker; the message holds the error, `traceback` the worker's own."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class WorkerDied(RuntimeError):
    """A worker ended in the middle of a task, as when it runs into its memory limit."""


class Answer(concurrent.futures.Future[Any]):
    """The future of a task; `seconds` is how long a worker was at it, without the wait in the queue."""

    seconds = 0.0


class _Task(NamedTuple):
    future: Answer
    request: tuple[str, tuple[Any, ...]]
    timeout_seconds: float | int
    deadline: float  # of time.monotonic(); infinite where only the time in the worker counts


class WorkerPool:
    """`workers` processes forked from one sympy-laden process, which starts with the first task or with `start`."""

    def __init__(self, workers: int, memory_limit_bytes: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; expected at least 1")
        self.workers = workers
        self.memory_limit_bytes = memory_limit_bytes
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._zygote: _Zygote | None = None
        self._closed = False
        self._pid = os.getpid()

    def submit(
        self, task: str, arguments: tuple[Any, ...], *, timeout_seconds: float | int, deadline: float = float("inf")
    ) -> Answer:
        """Queue a task; the future raises TimeoutError, WorkerError or WorkerDied where it has no result.

        `timeout_seconds` counts from when a worker takes the task, `deadline` (time.monotonic) is absolute.
        """
        if self._pid != os.getpid():
            raise RuntimeError("this pool belongs to the process before a fork; make a new Verifier in the child")
        future = Answer()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed; submit inside of its `with` block")
            while len(self._threads) < self.workers:
                thread = threading.Thread(target=self._tend, name="sspo-checker", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put(_Task(future, (task, arguments), timeout_seconds, deadline))
        return future

    def start(self) -> None:
        """Begin to start the worker processes, without waiting for them."""
        threading.Thread(target=self._started_zygote, name="sspo-checker-start", daemon=True).start()

    def close(self) -> None:
        """Finish what is queued, then end every process."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._tasks.put(None)
        for thread in threads:
            thread.join()
        with self._lock:
            if self._zygote is not None:
                self._zygote.close()

    def kill(self) -> None:
        """End every process at once; what is queued fails."""
        with self._lock:
            self._closed = True
            if self._zygote is not None:
                self._zygote.close()

    def _started_zygote(self) -> "_Zygote":
        with self._lock:
            if self._zygote is None or not self._zygote.is_alive():
                if self._closed and self._zygote is not None:
                    raise WorkerDied("the pool is closed")
                self._zygote = _Zygote(self.memory_limit_bytes)
            return self._zygote

    def _tend(self) -> None:
        """What one thread does: take tasks and see them through its worker."""
        worker: _Worker | None = None
        while True:
            task = self._tasks.get()
            if task is None:
                break
            if not task.future.set_running_or_notify_cancel():
                continue
            started = time.monotonic()
            try:
                if worker is None:
                    worker = self._new_worker(task.deadline)
                    started = time.monotonic()
                answer = worker.run(task.request, min(task.timeout_seconds, task.deadline - started))
                task.future.seconds = time.monotonic() - started
            except BaseException as error:
                task.future.seconds = time.monotonic() - started
                if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                    error = WorkerDied(f"the worker ended during the task: {error}")
                task.future.set_exception(error)  # before the worker is gone, which takes time on a busy machine
                if worker is not None:
                    worker.kill()
                    worker = None
                continue
            if answer[0] == "done":
                task.future.set_result(answer[1])
            else:
                task.future.set_exception(WorkerError(answer[1], answer[2]))
        if worker is not None:
            worker.kill()

    def _new_worker(self, deadline: float) -> "_Worker":
        zygote = self._started_zygote()
        return zygote.fork(min(_START_SECONDS, max(0.0, deadline - time.monotonic())))


class _Zygote:
    """The process that workers are forked from, as its parent sees it."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self._lock = threading.Lock()
        self._overdue = 0  # answers that nobody waits for any more
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        arguments = [json.dumps(search_path()), str(theirs.fileno()), str(memory_limit_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # signals of the terminal are for the parent
        )
        theirs.close()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, seconds: float) -> "_Worker":
        """A new worker; TimeoutError where the process has not come up in time."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
                pid = int(self._answer(seconds))
            except BaseException:
                ours.close()
                raise
        return _Worker(self, pid, ours)

    def end(self, pid: int) -> None:
        with self._lock, contextlib.suppress(OSError, WorkerDied):
            self._control.send(b"kill %d" % pid)
            self._answer(_START_SECONDS)

    def _answer(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while True:
            if not _readable(self._control, deadline - time.monotonic()):
                self._overdue += 1
                raise TimeoutError("the checker's processes have not started in time")
            message = self._control.recv(64)
            if not message:
                status = self._process.wait()
                raise WorkerDied(f"the checker's process ended with status {status}; its error is on stderr")
            if not self._overdue:
                return message
            self._overdue -= 1

    def close(self) -> None:
        self._control.close()  # its end of file ends the zygote and all workers
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Worker:
    """One worker process and the channel to it."""

    def __init__(self, zygote: _Zygote, pid: int, channel: socket.socket) -> None:
        self._zygote, self._pid, self._channel = zygote, pid, channel

    def run(self, request: tuple[str, tuple[Any, ...]], seconds: float) -> Any:
        if seconds <= 0:
            raise TimeoutError("the time was over before a worker was free")
        started = time.monotonic()
        send(self._channel, request)
        if not _readable(self._channel, seconds - (time.monotonic() - started)):
            raise TimeoutError(f"the worker was killed after {seconds:.2f} s")
        answer = receive(self._channel)
        if answer is None:
            raise WorkerDied("the worker ended during the task; it may have run into its memory limit")
        return answer

    def kill(self) -> None:
        self._channel.close()
        self._zygote.end(self._pid)


def _readable(channel: socket.socket, seconds: float) -> bool:
    poll = select.poll()  # select.select fails on descriptors above 1,023
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def search_path() -> list[str]:
    """The parent's import path with the current folder spelled out, at its end if nowhere else, and this package.

    After them come the folders of `search_also`.
    """
    path = [os.path.abspath(entry) if entry else os.getcwd() for entry in sys.path]
    path += [folder for folder in (os.getcwd(), *_FOLDERS) if folder not in path]
    package_parent = os.path.abspath(os.path.join(__file__, *[os.pardir] * (len(__name__.split(".")))))
    return path if package_parent in path else [package_parent, *path]


def search_also(folder: str | os.PathLike[str]) -> None:
    """Lets workers import modules from a folder that the parent does not search, such as that of an experiment."""
    if (path := os.path.abspath(folder)) not in _FOLDERS:
        _FOLDERS.append(path)


_FOLDERS: list[str] = []


def close_at_exit(pool: WorkerPool) -> None:
    """End the processes of a pool when the interpreter ends."""
    atexit.register(pool.kill)
