"""Starts the real program on two processes of one CPU device each, or on one process with two devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from tests.trainer.conftest import SMALL


def environment(folder: pathlib.Path) -> dict[str, str]:
    """Of launches that share their compiled programs and warm starts, kept in `folder`."""
    own = {"JAX_PLATFORMS": "cpu", "SSPO_CACHE_DIR": str(folder / "cache")}
    return {**os.environ, **own, "PYTHONPATH": str(SMALL.parents[2])}


def run_alone(run_dir: pathlib.Path, experiment: pathlib.Path, environment: dict[str, str], *options: str) -> None:
    """One process with two devices, to the end."""
    alone = subprocess.run(
        [sys.executable, "-m", "sspo_jax", "train", str(experiment), "--run-dir", str(run_dir), *options],
        env={**environment, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        cwd=experiment.parent,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stderr


class Launch:
    """`sspo train` on two processes of one device each."""

    def __init__(
        self,
        run_dir: pathlib.Path,
        experiment: pathlib.Path,
        environment: dict[str, str],
        *,
        per_process: tuple[str, ...] = (),
    ):
        with socket.socket() as probe:  # a free port, for a moment
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.run_dir = run_dir
        self.logs = [run_dir.with_name(f"{run_dir.name}.{number}.log") for number in range(2)]
        self.processes = []
        for number, log in enumerate(self.logs):
            command = [sys.executable, "-m", "sspo_jax", "train", str(experiment), "--run-dir", str(run_dir)]
            command += ["--distributed.coordinator", f"localhost:{port}", "--distributed.num-processes", "2"]
            command += ["--distributed.process-id", str(number)]
            command += [option.format(number=number) for option in per_process]
            with open(log, "ab") as stream:
                self.processes.append(
                    subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=run_dir.parent)
                )

    def wait(self, timeout: float = 300) -> list[int]:
        """Exit codes."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def reach(self, step: int, timeout: float = 300) -> None:
        """Returns when the metrics of a step are written."""
        deadline = time.monotonic() + timeout
        while not any(row["step"] == step for row in metrics(self.run_dir)):
            assert time.monotonic() < deadline, self.text(0)
            assert all(process.poll() is None for process in self.processes), self.text(0) + self.text(1)
            time.sleep(0.05)

    def text(self, number: int) -> str:
        return self.logs[number].read_text(encoding="utf-8", errors="replace")


def metrics(run_dir: pathlib.Path) -> list[dict[str, float]]:
    """Rows without what the clock decides."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # being written
            break
        rows.append(
            {
                name: value
                for name, value in row.items()
                if not name.startswith(("time/", "throughput/", "verify/seconds"))
            }
        )
    return rows


def assert_close(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    """The same metrics, up to the order in which devices add."""
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            # The gap between sampler and training program is rounding itself: both are small, and no more can be said.
            absolute = 2e-5 if name.startswith("sampler/logprob_gap") else 1e-6
            assert second[name] == pytest.approx(value, rel=1e-4, abs=absolute), name
