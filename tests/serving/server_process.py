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

import pytest


def free_port() -> int:
    """One that nobody listens on, for a moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """`sspo serve` as a user starts it."""

    def __init__(
        self,
        model: str,
        *,
        port: int = 0,
        tokenizer: str | None = None,
        options: tuple[str, ...] = (),
        reload_directory: str | None = "/",
        key: str | None = None,
    ):
        self.key = key
        command = [sys.executable, "-m", "sspo_jax", "serve", "--model", model, "--port", str(port)]
        command += ["--tokenizer", tokenizer] if tokenizer else []
        command += ["--reload-directory", reload_directory] if reload_directory else []
        command += options
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if key is not None:
            environment["SSPO_API_KEY"] = key
        environment["PYTHONPATH"] = str(pathlib.Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        assert line.startswith("serving "), line
        self.url = line.split(" at ")[1].strip().removesuffix("/v1")

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def text(self, route: str, body: dict | None = None) -> str:
        """The answer as it comes."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + route, data, headers), timeout=120) as response:
            return response.read().decode()

    def ask(self, route: str, body: dict | None = None) -> dict:
        return json.loads(self.text(route, body))

    def error(self, route: str, body: dict | None = None, *, status: int = 400) -> dict:
        """The error in OpenAI's format that this is answered with."""
        with pytest.raises(urllib.error.HTTPError) as raised:
            self.ask(route, body)
        assert raised.value.code == status
        error = json.loads(raised.value.read())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def refusal(self, route: str, body: dict) -> str:
        return self.error(route, body)["message"]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)
