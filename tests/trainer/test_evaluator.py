"""The evaluation inside a run, asked for as little as it can be."""

import dataclasses

import jax
import pytest

from sspo_jax.files import read_json
from sspo_jax.trainer.loop import Trainer


def test_one_sample_a_problem(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    """pass@1 is then the accuracy."""
    settings = dataclasses.replace(trainer.config.evaluation, samples=1)
    monkeypatch.setattr(trainer.evaluator, "_settings", settings)
    with jax.set_mesh(trainer.inputs.mesh):
        trainer.evaluator(trainer.synced_engine(lambda: None), 0, trainer.display)
    scores = read_json(trainer.evaluator._directory.evaluation(0))
    for found in scores.values():
        assert found["samples"] == 1
        assert found["pass@1"] == found["avg"]
