"""Qwen models: declaration and forward pass, shapes, Hugging Face checkpoints in and out."""

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.hub import model_digest
from sspo_jax.models.hf.weights import load_qwen, save_qwen
from sspo_jax.models.qwen import apply_qwen, init_qwen

__all__ = ["QwenConfig", "apply_qwen", "init_qwen", "load_qwen", "model_digest", "save_qwen"]
