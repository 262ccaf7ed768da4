"""Models: declaration and forward pass, shapes, Hugging Face checkpoints in and out.

One decoder covers Qwen 2, 2.5, 3, 3-MoE, 3-Next and the text part of 3.5, Llama and SmolLM2. The names with `model` and
with `qwen` are the same.
"""

from sspo_jax.models.configs import ComputeConfig, QwenConfig, QwenModel
from sspo_jax.models.hf.hub import model_digest
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import apply_qwen, init_qwen

apply_model, init_model, load_model, save_model = apply_qwen, init_qwen, load_qwen, save_qwen

__all__ = [
    "ComputeConfig",
    "QwenConfig",
    "QwenModel",
    "apply_model",
    "apply_qwen",
    "init_model",
    "init_qwen",
    "load_model",
    "load_qwen",
    "model_digest",
    "save_model",
    "save_qwen",
]
