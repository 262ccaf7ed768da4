"""The process that workers are forked from, and what a worker does. Runs apart from the caller; never imports JAX.

The parent starts this with a fresh interpreter, so nothing of the parent (threads, JAX, its `__main__`) is inherited.
It loads sympy once and then only forks on request: a new worker costs some milliseconds, so killing one is cheap.

Messages from the parent on the control socket, one a datagram: `fork` with one end of a socket pair attached, answered
with the worker's process id; `kill <pid>`, answered when the worker is gone. Its end of file ends everything.
"""

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
from typing import Any

_HEADER = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1
_STACK_BYTES = 256 << 20  # of a worker's thread; parsing and sympy recurse


def main(control_fd: int, memory_limit_bytes: int) -> None:
    """Serve fork and kill requests until the parent closes its end or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    from . import deep  # sympy, loaded once for all workers

    deep.warm_up()
    control = socket.socket(fileno=control_fd)
    children: set[int] = set()
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 256, 1)
        except OSError:
            message, descriptors = b"", []
        if not message:
            break
        if message == b"fork":
            pid = os.fork()
            if pid == 0:
                control.close()
                _worker(socket.socket(fileno=descriptors[0]), memory_limit_bytes)
            for descriptor in descriptors:
                os.close(descriptor)
            children.add(pid)
            control.send(str(pid).encode())
        elif message.startswith(b"kill "):
            pid = int(message[5:])
            if pid in children:
                _end(pid)
                children.discard(pid)
            control.send(b"gone")
    for pid in children:
        _end(pid)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _worker(channel: socket.socket, memory_limit_bytes: int) -> None:
    """Answer requests until the channel closes; never returns."""
    if sys.platform == "linux":  # a worker that computes does not see its channel close: let the kernel end it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(60_000)
    sys.set_int_max_str_digits(0)
    threading.stack_size(_STACK_BYTES)
    server = threading.Thread(target=_serve, args=(channel,))
    server.start()
    server.join()
    os._exit(0)


def _serve(channel: socket.socket) -> None:
    while True:
        request = receive(channel)
        if request is None:
            return
        try:
            answer = ("done", _run(*request))
        except BaseException as error:  # whatever a task raises belongs to its caller, the worker stays
            text = "".join(traceback.format_exception(error, limit=-6))
            answer = ("raised", f"{type(error).__name__}: {error}"[:2000], text[-6000:])
        try:
            send(channel, answer)
        except OSError:
            return
        except Exception as error:
            send(channel, ("raised", f"the result cannot be sent back: {error}", ""))


def _run(task: str, arguments: tuple[Any, ...]) -> Any:
    if task == "decide":
        from .deep import decide_with_sympy

        return decide_with_sympy(*arguments)
    if task == "call":
        path, search_path, positional, keywords = arguments
        sys.path[:] = search_path
        return load_function(path)(*positional, **keywords)
    raise ValueError(f"the task is {task!r}; expected decide or call")


def load_function(path: str) -> Any:
    """The function that `module:function` names.

    Raises:
        ValueError: the path has another form, or the module has no such function.
    """
    import importlib

    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"the path of a function is {path!r}; expected module:function")
    target: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(target, part):
            raise ValueError(f"{module_name} has no {name}; is {path!r} spelled right?")
        target = getattr(target, part)
    if not callable(target):
        raise ValueError(f"{path} is a {type(target).__name__}; expected a function")
    return target


def send(channel: socket.socket, message: Any) -> None:
    """One pickled message with its length before it."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    channel.sendall(_HEADER.pack(len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """The next message; None where the other side has closed."""
    header = _receive_exactly(channel, _HEADER.size)
    if header is None:
        return None
    data = _receive_exactly(channel, _HEADER.unpack(header)[0])
    return None if data is None else pickle.loads(data)


def _receive_exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            piece = channel.recv(min(size - len(parts), 1 << 20))
        except (ConnectionError, OSError):
            return None
        if not piece:
            return None
        parts += piece
    return bytes(parts)
