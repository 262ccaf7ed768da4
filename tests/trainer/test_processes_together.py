"""Two real processes with LoRA, a curriculum and a best policy: the run of one process, also when one is stopped."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.lora import LoraConfig, merge_lora
from sspo_jax.runs.checkpoint import steps_in
from sspo_jax.runs.policy import read_policy, read_trained
from tests.trainer.conftest import SMALL
from tests.trainer.launch import Launch, assert_close, environment, metrics, run_alone

pytestmark = pytest.mark.slow
_PATIENT = ("--distributed.heartbeat-seconds", "150")  # on a machine that is paused nobody has died

_EXPERIMENT = """
import dataclasses
from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.curriculum import CurriculumConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import *

def config():
    small = load_experiment({small!r})
    data = ArithmeticData(split="train", size=6, min_steps=1, max_steps=1)
    return dataclasses.replace(
        small,
        steps=3,
        model=dataclasses.replace(small.model, lora=LoraConfig(rank=4)),
        data=data,
        curriculum=CurriculumConfig(floor=0.2),
        rollout=dataclasses.replace(small.rollout, group_size=8, slots=2, dynamic_sampling=1),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        warm_start=WarmStartConfig(updates=300, rows=4, row_tokens=96),
        evaluation=EvaluationConfig(data=(dataclasses.replace(data, split="held_out", size=48),), samples=0, every=1),
        checkpoint=CheckpointConfig(every=10),
    )
"""


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, str]]:
    """An experiment on six problems; its held-out set is solved now and then, differently after each step."""
    folder = tmp_path_factory.mktemp("together")
    experiment = folder / "everything.py"
    experiment.write_text(_EXPERIMENT.format(small=str(SMALL)), encoding="utf-8")
    return experiment, environment(folder)


@pytest.fixture(scope="module")
def one(setting: tuple[pathlib.Path, dict[str, str]]) -> pathlib.Path:
    """The run directory of one process; its warm start is in the cache for the others."""
    experiment, environment = setting
    run_alone(experiment.parent / "one", experiment, environment)
    return experiment.parent / "one"


@pytest.fixture(scope="module")
def two(setting: tuple[pathlib.Path, dict[str, str]], one: pathlib.Path) -> pathlib.Path:
    """Of two processes, uninterrupted."""
    experiment, environment = setting
    launch = Launch(experiment.parent / "two", experiment, environment, per_process=_PATIENT)
    assert launch.wait() == [0, 0], launch.text(0) + launch.text(1)
    return launch.run_dir


def test_two_processes_are_one(one: pathlib.Path, two: pathlib.Path) -> None:
    rows = metrics(one)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["curriculum/solve_rate_mean"] > 0
    assert_close(rows, metrics(two))
    best, other = (json.loads((run / "checkpoints" / "best.json").read_text()) for run in (one, two))
    accuracies = [row["eval/arithmetic_held_out/accuracy"] for row in rows]
    assert best == other == {"step": int(np.argmax(accuracies)), "metric": "greedy", "score": max(accuracies)}
    assert len(set(accuracies)) > 1  # there was something to choose from
    for step in (None, "best"):
        ours, _, last = read_trained(two, step=step)
        theirs, _, expected = read_trained(one, step=step)
        assert last == expected
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=1e-4), ours, theirs
        )
    merged, _, _ = read_policy(two)
    base, _ = load_qwen(two / "base")
    adapters, _, _ = read_trained(two)
    expected = merge_lora(base, adapters, LoraConfig(rank=4))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), merged, expected)


def test_one_of_two_is_told_to_stop(setting: tuple[pathlib.Path, dict[str, str]], two: pathlib.Path) -> None:
    """SIGTERM to the process that does not write: both save and end well, and the restart is the uninterrupted run."""
    experiment, environment = setting
    launch = Launch(experiment.parent / "stopped", experiment, environment, per_process=_PATIENT)
    launch.reach(step=1)
    launch.processes[1].send_signal(signal.SIGTERM)
    assert launch.wait() == [0, 0], launch.text(0) + launch.text(1)
    step = metrics(launch.run_dir)[-1]["step"]
    assert step < 3
    assert f"stopped after step {step:.0f}," in launch.text(0)
    assert steps_in(launch.run_dir / "checkpoints") == [step]
    again = Launch(launch.run_dir, experiment, environment, per_process=_PATIENT)
    assert again.wait() == [0, 0], again.text(0) + again.text(1)
    assert f"resuming after step {step:.0f}" in again.text(0)
    assert metrics(again.run_dir) == metrics(two)
    for step in (None, "best"):
        ours, theirs = read_trained(again.run_dir, step=step), read_trained(two, step=step)
        assert ours[2] == theirs[2]
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), ours[0], theirs[0])
