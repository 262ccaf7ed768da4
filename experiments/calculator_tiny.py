"""Products with a calculator: the policy talks to an environment and learns to ask it, in minutes on a laptop CPU.

    make train EXP=calculator_tiny

Stage 1 imitates conversations of which two in five ask the calculator and the others guess the digits, so that the
model mostly guesses, and is wrong. In stage 2 the answer is rewarded, and it finds out that asking pays. The unit of
the ratio is a turn.
"""

import dataclasses

from sspo_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
    UpdateConfig,
    WarmStartConfig,
)
from sspo_jax.data.dialogues import DialogueData
from sspo_jax.environments import EnvironmentConfig
from sspo_jax.losses import Sspo
from sspo_jax.models.configs import QwenConfig


def config() -> TrainConfig:
    """Twelve steps; the second turn costs another prefill."""
    return TrainConfig(
        steps=12,
        model=ModelConfig(
            shape=QwenConfig(
                vocab_size=512,
                hidden_size=128,
                intermediate_size=384,
                num_layers=2,
                num_heads=4,
                num_kv_heads=2,
                head_dim=32,
                rope_theta=1e4,
                max_positions=128,
                init_scale=0.07,
            ),
            tokenizer="tiny",
            dtype="float32",
            remat="none",
        ),
        data=DialogueData(kind="products"),
        prompt="chat",
        rollout=RolloutConfig(
            prompts=16,
            group_size=8,
            max_new_tokens=48,
            max_prompt_tokens=24,
            environment=EnvironmentConfig(environment="sspo_jax.environments:Calculator", max_turns=2),
        ),
        loss=dataclasses.replace(Sspo.calibrated(), ratio_level="turn"),
        update=UpdateConfig(per_rollout=4, row_tokens=96, micro_rows=8),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_updates=4, b2=0.99),
        warm_start=WarmStartConfig(updates=600, rows=24, row_tokens=96, learning_rate=3e-3),
        evaluation=EvaluationConfig(data=(DialogueData(kind="products", split="held_out", size=64),), samples=4),
        checkpoint=CheckpointConfig(every=6),
    )
