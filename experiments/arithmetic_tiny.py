"""SSPO on generated arithmetic with a 1.0 M-parameter Qwen2.5, from random weights, on a laptop CPU.

    make train

Stage 1 imitates demonstrations of which two thirds guess the answer at once; greedy, the model then guesses too and is
right about once in ten. Stage 2 is RLVR with SSPO: the reward makes it find out that reasoning step by step pays.
"""

from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.losses import Sspo
from sspo_jax.models.configs import QwenConfig
from sspo_jax.trainer.config import (
    CheckpointConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
    UpdateConfig,
    WarmStartConfig,
)


def config() -> TrainConfig:
    """The default experiment."""
    return TrainConfig(
        steps=40,
        model=ModelConfig(
            shape=QwenConfig(
                vocab_size=512,
                hidden_size=160,
                intermediate_size=448,
                num_layers=3,
                num_heads=4,
                num_kv_heads=4,
                head_dim=40,
                max_positions=256,
            ),
            tokenizer="tiny",
            dtype="float32",
            remat="none",
        ),
        data=ArithmeticData(split="train"),
        prompt="chat",
        rollout=RolloutConfig(prompts=32, group_size=8, max_new_tokens=64, max_prompt_tokens=48),
        loss=Sspo.paper_like(),
        update=UpdateConfig(per_rollout=4, row_tokens=192, micro_rows=16),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_updates=8, b2=0.99),
        warm_start=WarmStartConfig(updates=600, rows=12, row_tokens=192),
        evaluation=EvaluationConfig(data=(ArithmeticData(split="held_out", size=256),), samples=8),
        checkpoint=CheckpointConfig(every=10),
    )
