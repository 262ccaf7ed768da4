"""Two steps that change the weights a lot: a price on length, end tokens that random weights hit, a high rate."""

import dataclasses
import pathlib

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import OptimizerConfig, TrainConfig
from sspo_jax.rewards import Length, RewardConfig


def config() -> TrainConfig:
    """The small experiment without a warm start."""
    small = load_experiment(str(pathlib.Path(__file__).with_name("small_experiment.py")))
    return dataclasses.replace(
        small,
        steps=2,
        warm_start=None,
        rollout=dataclasses.replace(small.rollout, stop_token_ids=tuple(range(20, 40))),
        reward=RewardConfig(length=Length(scale_tokens=100, only_correct=False)),
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
