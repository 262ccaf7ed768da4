"""Two real processes train together: the numbers of one process, and a kill that costs no step."""

import pathlib
import signal
import time

import pytest

from sspo_jax.distributed.processes import DistributedConfig, settings
from sspo_jax.distributed.watch import LOST
from tests.trainer.conftest import SMALL
from tests.trainer.launch import Launch, assert_close, environment, metrics, run_alone

_EXPERIMENT = """
import dataclasses
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import EvaluationConfig

def config():
    small = load_experiment({small!r})
    return dataclasses.replace(small, steps=3, warm_start=None, evaluation=EvaluationConfig())
"""


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, str]]:
    """An experiment file, and an environment whose compiled programs are shared by all launches."""
    folder = tmp_path_factory.mktemp("processes")
    experiment = folder / "small_pair.py"
    experiment.write_text(_EXPERIMENT.format(small=str(SMALL)), encoding="utf-8")
    return experiment, environment(folder)


@pytest.fixture(scope="module")
def uninterrupted(setting: tuple[pathlib.Path, dict[str, str]]) -> pathlib.Path:
    """The run directory of a run to the end."""
    experiment, environment = setting
    launch = Launch(experiment.parent / "whole", experiment, environment)
    assert launch.wait() == [0, 0], launch.text(0) + launch.text(1)
    return launch.run_dir


@pytest.mark.slow
def test_two_processes_train_like_one_with_two_devices(
    setting: tuple[pathlib.Path, dict[str, str]], uninterrupted: pathlib.Path
) -> None:
    experiment, environment = setting
    run_dir = experiment.parent / "one"
    run_alone(run_dir, experiment, environment)
    one, two = metrics(run_dir), metrics(uninterrupted)
    assert [row["step"] for row in one] == [1, 2, 3]
    assert_close(one, two)
    for step in (1, 2, 3):
        file = f"rollouts/step_{step:06d}.jsonl"
        assert (run_dir / file).read_text() == (uninterrupted / file).read_text()


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_restart_loses_nothing(
    setting: tuple[pathlib.Path, dict[str, str]], uninterrupted: pathlib.Path
) -> None:
    experiment, environment = setting
    launch = Launch(experiment.parent / "killed", experiment, environment)
    launch.reach(step=2)
    launch.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = launch.wait()
    assert time.monotonic() - killed < 30
    assert codes == [LOST, -signal.SIGKILL]
    assert "process 1 of 2 is gone" in launch.text(0)
    assert f"--run-dir {launch.run_dir}" in launch.text(0)

    again = Launch(experiment.parent / "killed", experiment, environment)
    assert again.wait() == [0, 0], again.text(0) + again.text(1)
    assert "resuming after step" in again.text(0)
    assert metrics(again.run_dir) == metrics(uninterrupted)


@pytest.mark.slow
def test_processes_that_were_started_differently_say_so(setting: tuple[pathlib.Path, dict[str, str]]) -> None:
    experiment, environment = setting
    launch = Launch(experiment.parent / "different", experiment, environment, per_process=("--seed", "{number}"))
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
        (DistributedConfig(coordinator="a", num_processes=2, process_id=0), "expected HOST:PORT"),
        (DistributedConfig(coordinator="a:1", num_processes=2, process_id=2), "expected 0 to 1"),
    ],
)
def test_settings_that_name_no_process(config: DistributedConfig, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        settings(config, {})
