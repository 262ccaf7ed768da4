"""Programs of others in a process that can do next to nothing; see `jail` for how it is held."""

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time

from sspo_jax.rewards import jail

_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. It may read Python's own files, and write none."""

    seconds: float | int = 4.0
    """On the clock; on the processor as many, rounded up."""
    memory_bytes: int = 512 << 20
    """Of address space."""
    output_bytes: int = 1 << 20
    """Of all that it prints; it is ended beyond."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a program."""

    output: str
    """What it printed, on standard output."""
    errors: str
    """The end of what it printed on standard error."""
    status: int
    """Its exit code, negative where a signal ended it."""
    reason: str
    """"" where it ended by itself, else "time" or "output"."""

    @property
    def is_clean(self) -> bool:
        """Whether it ended by itself and says that all is well."""
        return self.status == 0 and not self.reason


def run_program(source: str, stdin: str = "", *, limits: Limits = Limits(), nonce: str = "") -> Result:
    """Runs Python source under limits.

    Where the system offers less than `jail` needs (`jail.missing`), only resources are limited: whoever calls decides.

    Args:
      source: the program.
      stdin: what it can read.
      limits: time, memory, output.
      nonce: printed as the last line where the program came to its own end.
    """
    with tempfile.TemporaryDirectory(prefix="sspo-program-") as folder:
        program = pathlib.Path(folder) / "program.py"
        program.write_text(source, encoding="utf-8", errors="replace")
        settings = {
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_bytes,
            "nonce": nonce,
            "read": [*_readable(), folder],
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", jail.__file__, str(program), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PATH": "", "LANG": "C.UTF-8", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            output, errors, reason = _read(process, stdin.encode("utf-8", "replace"), limits)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
    return Result(output.decode("utf-8", "replace"), errors[-2000:].decode("utf-8", "replace"), status, reason)


def _readable() -> list[str]:
    """Python's own files, and the libraries that it loads."""
    paths = [sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib")]
    paths += [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]
    return [*dict.fromkeys(map(os.path.realpath, paths)), *_SYSTEM, *_DEVICES]


def _read(process: "subprocess.Popen[bytes]", stdin: bytes, limits: Limits) -> tuple[bytes, bytes, str]:
    """(output, errors, why it has to be ended): feeds and reads the process until it closes both, or too much."""
    streams = process.stdin, process.stdout, process.stderr
    assert all(stream is not None for stream in streams)
    ours, output, errors = (stream.fileno() for stream in streams if stream is not None)
    read: dict[int, bytearray] = {output: bytearray(), errors: bytearray()}
    deadline = time.monotonic() + limits.seconds
    with selectors.DefaultSelector() as selector:
        for descriptor in read:
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(ours, False)
        selector.register(ours, selectors.EVENT_WRITE)
        while len(selector.get_map()) > (1 if ours in selector.get_map() else 0):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return bytes(read[output]), bytes(read[errors]), "time"
            for key, _ in selector.select(remaining):
                if key.fd == ours:
                    try:
                        stdin = stdin[os.write(ours, stdin[:65536]) :]
                    except OSError:  # it does not read what it is given
                        stdin = b""
                    if not stdin:
                        selector.unregister(ours)
                        assert process.stdin is not None
                        with contextlib.suppress(OSError):
                            process.stdin.close()
                    continue
                piece = os.read(key.fd, 65536)
                read[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                if sum(map(len, read.values())) > limits.output_bytes:
                    return bytes(read[output]), bytes(read[errors]), "output"
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # it has closed its output, and goes on
            return bytes(read[output]), bytes(read[errors]), "time"
    return bytes(read[output]), bytes(read[errors]), ""
