"""`sspo serve` in a process of its own, asked over HTTP."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import pytest


def free_port() -> int:
    """One that nobody listens on, for a moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """`sspo serve` as a user starts it."""

    def __init__(self, model: str, *, port: int = 0, tokenizer: str | None = None, options: tuple[str, ...] = ()):
        command = [sys.executable, "-m", "sspo_jax", "serve", "--model", model, "--port", str(port)]
        command += ["--tokenizer", tokenizer] if tokenizer else []
        command += options
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if cache := jax.config.jax_compilation_cache_dir:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
        environment["PYTHONPATH"] = str(pathlib.Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        assert line.startswith("serving "), line
        self.url = line.split(" at ")[1].strip().removesuffix("/v1")

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ask(self, route: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + route, data), timeout=120) as response:
            return json.load(response)

    def refusal(self, route: str, body: dict) -> str:
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(route, body)
        assert error.value.code == 400
        return json.loads(error.value.read())["error"]["message"]
