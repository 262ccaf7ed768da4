"""SSPO on generated arithmetic with a 1.0 M-parameter Qwen2.5, from random weights, on a laptop CPU.

    make train

Stage 1 imitates demonstrations of which three in five guess the answer at once and the others reason step by step, so
that the model, greedy, mostly guesses. Stage 2 is RLVR with SSPO: the reward makes it find out that reasoning pays.
"""

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
from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.losses import Sspo
from sspo_jax.models.configs import QwenConfig


def config() -> TrainConfig:
    """The default experiment."""
    return TrainConfig(
        steps=20,
        model=ModelConfig(
            shape=QwenConfig(
                vocab_size=512,
                hidden_size=192,
                intermediate_size=640,
                num_layers=2,
                num_heads=6,
                num_kv_heads=2,
                head_dim=32,
                rope_theta=1e4,
                max_positions=128,
                init_scale=0.07,  # about 1 / sqrt(width): the usual 0.02 makes so narrow a model start slowly
            ),
            tokenizer="tiny",
            dtype="float32",
            remat="none",
        ),
        data=ArithmeticData(split="train"),
        prompt="chat",
        rollout=RolloutConfig(prompts=32, group_size=8, max_new_tokens=52, max_prompt_tokens=44),
        loss=Sspo.calibrated(clip_low=0.01, clip_high=0.014),  # half the preset's range, so that it acts: docs/study.md
        update=UpdateConfig(per_rollout=4, share_prompts=True, row_tokens=192, micro_rows=4),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_updates=8, b2=0.99),
        warm_start=WarmStartConfig(updates=800, rows=24, row_tokens=96, learning_rate=3e-3, shipped=True),
        evaluation=EvaluationConfig(data=(ArithmeticData(split="held_out", size=256),), samples=8),
        checkpoint=CheckpointConfig(every=10),
    )
