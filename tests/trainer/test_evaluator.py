"""The evaluation inside a run, asked for as little as it can be."""

import dataclasses

import jax
import pytest

from sspo_jax.files import read_json
from sspo_jax.report.reader import read_held_out
from sspo_jax.trainer.evaluator import metrics_of
from sspo_jax.trainer.loop import Trainer
from tests.trainer.conftest import small


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


def test_without_greedy_responses_and_without_the_first(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    settings = dataclasses.replace(trainer.config.evaluation, samples=2, greedy=False, first=False, best="avg")
    monkeypatch.setattr(trainer.evaluator, "_settings", settings)
    assert [step for step in range(5) if trainer.evaluator.is_due(step)] == [4]
    with jax.set_mesh(trainer.inputs.mesh):
        scores = trainer.evaluator(trainer.synced_engine(lambda: None), 4, trainer.display)
    (name,) = scores
    assert "greedy" not in scores[name]
    assert set(metrics_of(scores)) == {
        *(f"eval/{name}/{what}" for what in ("length_mean", "truncated_fraction", "avg_at_2"))
    }
    monkeypatch.setattr(trainer.manager.best, "_metric", "none")
    trainer.manager.offer(trainer.state.params, 4, scores)  # says the average
    file = trainer.evaluator._directory.evaluation(4).with_suffix(".jsonl")
    held = read_held_out(file)[name]
    assert held.greedy is None
    assert held.sampled is not None
    assert held.sampled.shape == (4, 2)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"samples": 0, "greedy": False}, "nothing would be sampled"),
        ({"samples": 0, "best": "avg"}, "expected at least 1, or greedy"),
        ({"greedy": False}, "expected avg, or none"),
    ],
)
def test_evaluations_that_cannot_be(changes: dict, wanted: str):
    config = small()
    with pytest.raises(ValueError, match=wanted):
        dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changes)).check()
