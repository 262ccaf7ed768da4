"""Notices at once when another process of the run is gone, and ends this one with a message that says what to do.

A collective whose partner has died may hang until JAX's heartbeat runs out, and then ends in an abort. But the kernel
closes the sockets of a process that dies, however it dies: every process keeps a connection to process 0, and its end
without a goodbye is the news. A host that vanishes without a word (power, network) is left to the heartbeat.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading

import jax

from sspo_jax.distributed.processes import gather

LOST = 75
"""Exit code when another process is gone: temporary failure, start all of them again (EX_TEMPFAIL)."""
_GOODBYE = b"goodbye"
_CONNECT_SECONDS = 20.0


class Watch:
    """A context around the work of all processes. With one process it does nothing.

    Args:
      advice: how to go on, added to the message.
    """

    def __init__(self, advice: str):
        self._advice = advice
        self._connections: list[socket.socket] = []
        self._is_over = False

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            self._connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over = True
        for connection in self._connections:
            with contextlib.suppress(OSError):
                if kind is None:  # after an error the others are to hear that this process is gone
                    connection.sendall(_GOODBYE)
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def _connect(self) -> None:
        server = socket.create_server(("", 0)) if jax.process_index() == 0 else None
        address = None
        if server is not None:
            address = [_own_address(), server.getsockname()[1], secrets.token_hex(16)]
        host, port, token = gather(address)[0]
        if server is not None:
            self._accept(server, token.encode())
            return
        try:
            connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
            connection.sendall(token.encode() + jax.process_index().to_bytes(4, "big"))
        except OSError as error:
            print(
                f"process {jax.process_index()} cannot reach process 0 at {host}:{port} ({error}): a process that dies "
                "will only be noticed by its missing heartbeat",
                file=sys.stderr,
            )
            return
        connection.settimeout(None)
        self._follow(connection, 0)

    def _accept(self, server: socket.socket, token: bytes) -> None:
        def run() -> None:
            server.settimeout(_CONNECT_SECONDS)
            waited_for = jax.process_count() - 1
            with contextlib.suppress(OSError), server:
                while waited_for and not self._is_over:
                    connection, _ = server.accept()
                    connection.settimeout(_CONNECT_SECONDS)
                    greeting = _receive(connection, len(token) + 4)
                    if greeting[:-4] != token:
                        connection.close()
                        continue
                    connection.settimeout(None)
                    self._follow(connection, int.from_bytes(greeting[-4:], "big"))
                    waited_for -= 1

        threading.Thread(target=run, daemon=True, name="watch").start()

    def _follow(self, connection: socket.socket, process: int) -> None:
        self._connections.append(connection)

        def run() -> None:
            try:
                words = _receive(connection, len(_GOODBYE))
            except OSError:
                words = b""
            if words != _GOODBYE and not self._is_over:
                self._abandon(process)

        threading.Thread(target=run, daemon=True, name=f"watch process {process}").start()

    def _abandon(self, process: int) -> None:
        sys.stdout.flush()
        print(
            f"sspo: process {process} of {jax.process_count()} is gone, so process {jax.process_index()} ends too. "
            f"{self._advice}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)  # the main thread hangs in a collective, and so would an orderly end


def _receive(connection: socket.socket, size: int) -> bytes:
    """Up to `size` bytes: fewer where the other side has ended."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def _own_address() -> str:
    """An address of this host that the others reach; the name where it does not resolve here."""
    name = socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name
