"""An experiment of seconds: the real program on a model of 30 k parameters."""

from sspo_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    LogConfig,
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
    """Four steps, a checkpoint after each."""
    return TrainConfig(
        steps=4,
        model=ModelConfig(
            shape=QwenConfig(
                vocab_size=512,
                hidden_size=32,
                intermediate_size=64,
                num_layers=2,
                num_heads=2,
                num_kv_heads=1,
                head_dim=16,
                max_positions=128,
            ),
            tokenizer="tiny",
            dtype="float32",
            remat="none",
        ),
        data=ArithmeticData(split="train", min_steps=1, max_steps=2),
        prompt="chat",
        rollout=RolloutConfig(prompts=4, group_size=4, max_new_tokens=16, max_prompt_tokens=40),
        loss=Sspo.paper_like(),
        update=UpdateConfig(per_rollout=2, row_tokens=64, micro_rows=8),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        warm_start=WarmStartConfig(updates=30, rows=4, row_tokens=96),
        evaluation=EvaluationConfig(
            data=(ArithmeticData(split="held_out", size=4, min_steps=1, max_steps=2),), samples=2
        ),
        checkpoint=CheckpointConfig(every=1, keep=3),
        log=LogConfig(tokens_every=2, tokens_responses=6),
    )
