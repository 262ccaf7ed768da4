"""Two real processes train together: the numbers of one process, and a kill that costs no step."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from trainer.conftest import SMALL

from sspo_jax.processes import DistributedConfig, settings
from sspo_jax.trainer.watch import LOST

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # most of the time is compiling
_EXPERIMENT = """
import dataclasses
from sspo_jax.train import load_experiment
from sspo_jax.trainer.config import EvaluationConfig

def config():
    small = load_experiment({small!r})
    return dataclasses.replace(small, steps=3, warm_start=None, evaluation=EvaluationConfig())
"""


class _Launch:
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
        while not any(row["step"] == step for row in _metrics(self.run_dir)):
            assert time.monotonic() < deadline, self.text(0)
            assert all(process.poll() is None for process in self.processes), self.text(0) + self.text(1)
            time.sleep(0.05)

    def text(self, number: int) -> str:
        return self.logs[number].read_text(encoding="utf-8", errors="replace")


def _metrics(run_dir: pathlib.Path) -> list[dict[str, float]]:
    """Rows without what the clock decides."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # being written
            break
        rows.append({name: value for name, value in row.items() if not name.startswith(("time/", "throughput/"))})
    return rows


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, str]]:
    """An experiment file, and an environment whose compiled programs are shared by all launches."""
    folder = tmp_path_factory.mktemp("processes")
    experiment = folder / "small_pair.py"
    experiment.write_text(_EXPERIMENT.format(small=str(SMALL)), encoding="utf-8")
    root = str(SMALL.parents[2])
    environment = {**os.environ, "XLA_FLAGS": _QUICK, "JAX_PLATFORMS": "cpu", "SSPO_CACHE_DIR": str(folder / "cache")}
    return experiment, {**environment, "PYTHONPATH": root}


@pytest.fixture(scope="module")
def uninterrupted(setting: tuple[pathlib.Path, dict[str, str]]) -> pathlib.Path:
    """The run directory of a run to the end."""
    experiment, environment = setting
    launch = _Launch(experiment.parent / "whole", experiment, environment)
    assert launch.wait() == [0, 0], launch.text(0) + launch.text(1)
    return launch.run_dir


def test_two_processes_train_like_one_with_two_devices(
    setting: tuple[pathlib.Path, dict[str, str]], uninterrupted: pathlib.Path
) -> None:
    experiment, environment = setting
    run_dir = experiment.parent / "one"
    alone = subprocess.run(
        [sys.executable, "-m", "sspo_jax", "train", str(experiment), "--run-dir", str(run_dir)],
        env={**environment, "XLA_FLAGS": f"{_QUICK} --xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        cwd=experiment.parent,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stderr
    one, two = _metrics(run_dir), _metrics(uninterrupted)
    assert [row["step"] for row in one] == [1, 2, 3] == [row["step"] for row in two]
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for step in (1, 2, 3):
        file = f"rollouts/step_{step:06d}.jsonl"
        assert (run_dir / file).read_text() == (uninterrupted / file).read_text()


def test_a_killed_process_ends_the_other_and_the_restart_loses_nothing(
    setting: tuple[pathlib.Path, dict[str, str]], uninterrupted: pathlib.Path
) -> None:
    experiment, environment = setting
    launch = _Launch(experiment.parent / "killed", experiment, environment)
    launch.reach(step=2)
    launch.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = launch.wait()
    assert time.monotonic() - killed < 30
    assert codes == [LOST, -signal.SIGKILL]
    assert "process 1 of 2 is gone" in launch.text(0)
    assert f"--run-dir {launch.run_dir}" in launch.text(0)

    again = _Launch(experiment.parent / "killed", experiment, environment)
    assert again.wait() == [0, 0], again.text(0) + again.text(1)
    assert "resuming after step" in again.text(0)
    assert _metrics(again.run_dir) == _metrics(uninterrupted)


@pytest.mark.slow
def test_processes_that_were_started_differently_say_so(setting: tuple[pathlib.Path, dict[str, str]]) -> None:
    experiment, environment = setting
    launch = _Launch(experiment.parent / "different", experiment, environment, per_process=("--seed", "{number}"))
    assert launch.wait() == [1, 1]
    for number in range(2):
        assert "config.seed: 0 and 1" in launch.text(number)
    assert not launch.run_dir.exists()


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        (DistributedConfig(), {}, None),
        (
            DistributedConfig(coordinator="a:1", num_processes=2, process_id=1),
            {},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1},
        ),
        (DistributedConfig(coordinator="a:1", num_processes=1, process_id=0), {}, None),
        (
            DistributedConfig(),
            {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            {"coordinator_address": "b:2", "num_processes": 4, "process_id": 3},
        ),
        (
            DistributedConfig(),
            {"MASTER_ADDR": "c", "MASTER_PORT": "3", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"},
            {"coordinator_address": "c:3", "num_processes": 8, "process_id": 5, "local_device_ids": [1]},
        ),
        (DistributedConfig(), {"SLURM_STEP_NUM_TASKS": "2"}, {}),
        (DistributedConfig(launcher="none"), {"SLURM_STEP_NUM_TASKS": "2"}, None),
        (DistributedConfig(launcher="auto"), {}, {}),
    ],
)
def test_settings_of_launchers(config: DistributedConfig, environment: dict[str, str], expected: object) -> None:
    assert settings(config, environment) == expected


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (DistributedConfig(coordinator="a:1"), "num-processes is missing"),
        (DistributedConfig(coordinator="a", num_processes=2, process_id=0), "want HOST:PORT"),
        (DistributedConfig(coordinator="a:1", num_processes=2, process_id=2), "want 0 to 1"),
    ],
)
def test_settings_that_name_no_process(config: DistributedConfig, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        settings(config, {})
