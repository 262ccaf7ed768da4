"""A guessing game: the policy learns to heed "higher" and "lower", in minutes on a laptop CPU.

    make train EXP=guessing_tiny

Stage 1 imitates games of which three in five are guesses at random. In stage 2 the environment rewards the right guess,
the more the earlier it comes: halving what is left finds every number from 0 to 9 in four guesses, and earns 0.81.
"""

import dataclasses

from sspo_jax.config import EvaluationConfig, RolloutConfig, TrainConfig, WarmStartConfig
from sspo_jax.data.dialogues import DialogueData
from sspo_jax.environments import EnvironmentConfig
from sspo_jax.losses import Sspo
from sspo_jax.rewards import Correctness, RewardConfig

from . import calculator_tiny


def config() -> TrainConfig:
    """The reward is the environment's alone."""
    base = calculator_tiny.config()
    return dataclasses.replace(
        base,
        steps=24,
        data=DialogueData(kind="numbers"),
        rollout=RolloutConfig(
            prompts=32,
            group_size=8,
            max_new_tokens=64,
            max_prompt_tokens=32,
            environment=EnvironmentConfig(environment="sspo_jax.environments:GuessingGame", max_turns=4),
        ),
        reward=RewardConfig(correctness=Correctness(weight=0.0)),
        loss=dataclasses.replace(Sspo.calibrated(clip_low=0.1, clip_high=0.14), ratio_level="turn"),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=3e-4),
        warm_start=WarmStartConfig(updates=300, rows=24, row_tokens=96, learning_rate=3e-3),
        evaluation=EvaluationConfig(),
    )
