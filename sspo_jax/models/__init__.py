"""Qwen models: declaration and forward pass, shapes, Hugging Face checkpoints in and out."""

from sspo_jax.models.configs import ComputeConfig, QwenConfig, QwenModel
from sspo_jax.models.hf.hub import model_digest
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import apply_qwen, init_qwen

__all__ = [
    "ComputeConfig",
    "QwenConfig",
    "QwenModel",
    "apply_qwen",
    "init_qwen",
    "load_qwen",
    "model_digest",
    "save_qwen",
]
