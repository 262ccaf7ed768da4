"""GradedRollout of equal rewards are replaced, at most so many times, and a step without any of use changes nothing."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from sspo_jax.rewards import Length, RewardConfig
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.trainer.grading import Grader
from sspo_jax.trainer.loop import Trainer


@pytest.fixture
def dynamic(trainer: Trainer) -> Iterator[Trainer]:
    """The trainer with up to two more draws; its random weights answer nothing right, so every reward is 0."""
    before = trainer.config
    rollout = dataclasses.replace(before.rollout, dynamic_sampling=2)
    trainer.config = dataclasses.replace(before, rollout=rollout)
    trainer.schedule = trainer.open_schedule()
    yield trainer
    trainer.config = before
    trainer.schedule = trainer.open_schedule()


def test_the_bound_holds_and_nothing_is_learnt_from_equal_rewards(dynamic: Trainer):
    before = jax.device_get(dynamic.state.params)
    position = dynamic.stream.state()["position"]
    metrics = dynamic.step(1)
    assert dynamic.stream.state()["position"] == position + 3
    assert len(dynamic.sampled_groups) == 3 * 16
    assert len(set(dynamic.sampled_groups.rollout.group_ids.tolist())) == 3 * 4
    assert metrics["reward/mean"] == 0.0
    assert metrics["reward/informative_fraction"] == 0.0
    assert metrics["optim/grad_norm"] == 0.0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(dynamic.state.params), strict=True):
        assert np.array_equal(old, np.asarray(new))


def test_kept_groups_have_different_rewards(dynamic: Trainer, monkeypatch):
    price = RewardConfig(length=Length(scale_tokens=100, only_correct=False))
    with Grader(price, dynamic.inputs.tokenizer) as judge:
        monkeypatch.setattr(dynamic, "grader", judge)
        dynamic.schedule = dynamic.open_schedule()
        _, groups = dynamic.schedule.take(2, Stopwatch())
    assert 0 < len(groups) <= 16
    for group in set(groups.rollout.group_ids.tolist()):
        members = groups.rollout.group_ids == group
        assert members.sum() == 4
        assert len(set(groups.rewards[members])) > 1
        assert len({groups.problems[row].id for row in np.flatnonzero(members)}) == 1
