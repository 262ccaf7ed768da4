"""A gradient that is not finite changes neither parameters nor optimizer: it stops the run, or is left out."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.trainer.loop import NonFiniteError, Trainer
from tests.trainer.conftest import run_cli

Spoil = Callable[..., None]


@pytest.fixture
def spoil(trainer: Trainer, groups: GradedRollout, monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Makes the trainer sample `groups`, and gives one response of each named minibatch an advantage of NaN."""

    def spoil(*minibatches: int, skip: int) -> None:
        advantages = np.where(groups.rewards > 0, 1, -1).astype(np.float32)
        for minibatch in minibatches:
            advantages[trainer.parts(groups)[minibatch][0]] = np.nan
        update = dataclasses.replace(trainer.config.update, skip_non_finite=skip)
        monkeypatch.setattr(trainer, "config", dataclasses.replace(trainer.config, update=update))
        monkeypatch.setattr(trainer, "advantages", lambda _: advantages)
        monkeypatch.setattr(trainer.schedule, "take", take)
        monkeypatch.setattr(trainer, "skipped", 0)

    def take(step: int, watch: Stopwatch) -> tuple[GradedRollout, GradedRollout]:
        with watch("rollout"), watch("verify"):
            return groups, groups

    return spoil


def state_of(trainer: Trainer) -> list[np.ndarray]:
    return jax.tree.leaves(jax.device_get((trainer.state.params, trainer.state.optimizer)))


def test_it_stops_the_run_and_the_step_and_update_are_named(trainer: Trainer, spoil: Spoil):
    before = state_of(trainer)
    spoil(0, 1, skip=0)
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient of update 1 of 2 is not finite\. It was left out"):
        trainer.step(1)
    assert all(np.array_equal(old, new) for old, new in zip(before, state_of(trainer), strict=True))


def test_it_is_left_out_and_counted_where_so_many_may_be(trainer: Trainer, spoil: Spoil):
    before = state_of(trainer)
    spoil(0, 1, skip=2)
    metrics = trainer.step(1)
    assert metrics["optim/skipped_updates"] == 2
    assert np.isnan(metrics["optim/grad_norm"])  # not 0, which a step without any gradient has
    assert all(np.array_equal(old, new) for old, new in zip(before, state_of(trainer), strict=True))
    with pytest.raises(NonFiniteError, match="as were the 2 before it"):  # in the next step
        trainer.step(1)


def test_updates_beside_it_are_applied_and_begin_a_new_count(trainer: Trainer, spoil: Spoil):
    before = state_of(trainer)
    spoil(0, skip=1)
    for _ in range(2):
        metrics = trainer.step(1)
        assert metrics["optim/skipped_updates"] == 1
        assert metrics["optim/grad_norm"] > 0
    after = state_of(trainer)
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_finite_gradient_whose_update_is_not_changes_nothing(trainer: Trainer):
    """A rate of 1e25: the parameters would be numbers, and everything computed from them not."""
    settings = dataclasses.replace(trainer.config.optimizer, learning_rate=1e25)
    programs = dataclasses.replace(trainer.programs, optimizer_config=settings)
    with jax.set_mesh(trainer.inputs.mesh):
        params = jax.tree.map(jnp.copy, trainer.state.params)
        state = programs.init_optimizer(params)
        before = jax.tree.leaves(jax.device_get((params, state)))
        gradients = jax.tree.map(jnp.ones_like, params)
        params, state, gradients, figures = programs.apply_update(params, state, gradients)
    assert np.isfinite(figures["grad_norm"])
    assert not figures["is_applied"]
    after = jax.tree.leaves(jax.device_get((params, state)))
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(gradients)))


SPOILT = """
import dataclasses, importlib.util, pathlib
import numpy as np
import sspo_jax.trainer.loop as loop
spec = importlib.util.spec_from_file_location("small", {small!r})
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
honest = loop.Trainer.advantages

def advantages(self, groups):
    return honest(self, groups) + (np.nan if self.state.step == 2 else 0)

loop.Trainer.advantages = advantages

def config():
    return dataclasses.replace(small.config(), warm_start=None)
"""


@pytest.mark.slow
def test_of_a_run_the_checkpoints_before_it_stay_and_no_other_is_written(tmp_path: pathlib.Path):
    experiment = tmp_path / "spoilt.py"
    experiment.write_text(SPOILT.format(small=str(pathlib.Path(__file__).parent / "small_experiment.py")))
    done = run_cli("train", str(experiment), "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "step 3: the gradient of update 1 of 2 is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()) == [
        "1",
        "2",
    ]
    experiment.write_text(experiment.read_text().replace("np.nan if", "0 if"))
    again = run_cli("train", str(experiment), "--run-dir", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
