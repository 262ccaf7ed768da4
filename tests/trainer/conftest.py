"""A trainer on the small experiment, built once; its programs are compiled once for all tests."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import TrainConfig
from sspo_jax.runs.directory import RunDirectory
from sspo_jax.runs.display import Display
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.trainer.grading import GradedRollout, Grader
from sspo_jax.trainer.loop import Trainer
from sspo_jax.trainer.setup import RunInputs, check

SMALL = pathlib.Path(__file__).parent / "small_experiment.py"


def small(**changes: object) -> TrainConfig:
    """The small experiment on one device; field names may be dotted with double underscores for nested ones."""
    config = load_experiment(str(SMALL))
    for name, value in changes.items():
        section, _, field = name.partition("__")
        value = dataclasses.replace(getattr(config, section), **{field: value}) if field else value
        config = dataclasses.replace(config, **{section: value})
    return config


def run_directory(config: TrainConfig, inputs: RunInputs) -> RunDirectory:
    """The directory of a run of the small experiment."""
    return RunDirectory(
        config.run_dir, config.resolved(), experiment="small", model=inputs.model, provenance=inputs.provenance
    )


def run_cli(
    *arguments: str, cwd: pathlib.Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """The real program in a process of its own, on one device."""
    return subprocess.run(
        [sys.executable, "-m", "sspo_jax", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A cache directory of the tests' own."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("SSPO_CACHE_DIR")
    os.environ["SSPO_CACHE_DIR"] = str(path)
    yield path
    if before is None:
        del os.environ["SSPO_CACHE_DIR"]
    else:
        os.environ["SSPO_CACHE_DIR"] = before


@pytest.fixture(scope="module")
def trainer(cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A trainer from random weights on a mesh of one device, before its first step."""
    config = small(warm_start=None, mesh__fsdp=1, run_dir=str(tmp_path_factory.mktemp("run") / "run"))
    with one_device():
        inputs = check(config)
        directory = run_directory(config, inputs)
        judge = Grader(config.reward, inputs.tokenizer)
        with judge, jax.set_mesh(inputs.mesh):
            built = Trainer(config, inputs, directory, Display(quiet=True), judge)
            built.manager.open()
            built.start()
            built.manager.close()
            yield built
        directory.close()


@pytest.fixture(scope="module")
def groups(trainer: Trainer) -> GradedRollout:
    """One rollout of it, with rewards that differ inside groups whatever the verdicts."""
    _, groups = trainer.schedule.take(1, Stopwatch())
    rewards = (groups.rollout.sample_ids % 2).astype(float)
    return dataclasses.replace(groups, rewards=rewards)


class one_device:
    """Lets `jax.devices()` of the mesh show the first device only."""

    def __enter__(self) -> None:
        import sspo_jax.trainer.setup as setup

        self._make_mesh = setup.make_mesh
        setup.make_mesh = lambda config: self._make_mesh(config, jax.devices()[:1])

    def __exit__(self, *_: object) -> None:
        import sspo_jax.trainer.setup as setup

        setup.make_mesh = self._make_mesh
