"""Random tiny checkpoints of every family, written by transformers; the reference is transformers itself."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

VOCAB = 96  # and 4 key heads: what eight devices divide
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
DELTA = {"num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
         "linear_key_head_dim": 16, "linear_value_head_dim": 8, "rms_norm_eps": 1e-5}  # fmt: skip
SHARED = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
          "shared_expert_intermediate_size": 24}  # fmt: skip
EXPERTS = {"tie_word_embeddings": False, "head_dim": 8, "num_experts": 8, "num_experts_per_tok": 3,
           "moe_intermediate_size": 16, "norm_topk_prob": True}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 16},
    "qwen3moe": EXPERTS,
    "qwen3-bias": {"tie_word_embeddings": False, "head_dim": 8, "attention_bias": True},
    "qwen35": {**DELTA, "tie_word_embeddings": True, "layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen35-untied": {**DELTA, "tie_word_embeddings": False},  # three of one and one of the other, as by default
    "qwen3next": {
        **DELTA,
        **SHARED,
        "tie_word_embeddings": False,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "linear_attention"],
    },
    "qwen35moe": {
        **DELTA,
        **SHARED,
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "full_attention"],
    },
    "qwen2-window": {  # of the last layer
        "tie_word_embeddings": False,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "layer_types": None,
    },
    "qwen3-window": {
        "tie_word_embeddings": True,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "qwen3moe-window": {
        **EXPERTS,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 3,
        "mlp_only_layers": [0],
    },
    "qwen3moe-sparse": {**EXPERTS, "num_hidden_layers": 4, "decoder_sparse_step": 2},
    "qwen3next-dense": {
        **DELTA,
        **SHARED,
        "tie_word_embeddings": True,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_only_layers": [1, 2],
    },
    "llama": {
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_theta": 1e4,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama-tied": {"tie_word_embeddings": True, "num_attention_heads": 4, "head_dim": 16, "eos_token_id": None},
    "llama-bias": {"tie_word_embeddings": True, "attention_bias": True},
    "qwen2-no_bias": {"tie_word_embeddings": True, "num_attention_heads": 4, "head_dim": 16},  # the same to us
}
"""Settings of transformers' configs; what is before the dash is the family."""
CLASSES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3moe": "Qwen3Moe", "llama": "Llama", "qwen35": "Qwen3_5",
           "qwen3next": "Qwen3Next", "qwen35moe": "Qwen3_5Moe"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A directory and the transformers model that wrote it."""

    path: pathlib.Path
    model: Any

    def logits(self, tokens: np.ndarray, **inputs: Any) -> np.ndarray:
        import torch

        with torch.no_grad():
            tensors = {name: torch.as_tensor(np.array(value)) for name, value in inputs.items()}
            return self.model(input_ids=torch.as_tensor(np.array(tokens)).long(), **tensors).logits.float().numpy()


def _random(name: str, noise: Any, *, has_delta: bool) -> Any:
    """A parameter made of standard normal noise, which keeps the logits at order 1 to 10.

    With the gated delta rule the matrices are smaller: it divides queries, keys and outputs by their lengths, which
    multiplies the rounding of short ones, and transformers' own logits would be 5e-5 from those of float64.
    """
    if "norm" in name:
        return (0 if has_delta and "linear_attn" not in name else 1) + 0.2 * noise
    if not has_delta or "layers" not in name:
        return 0.3 * noise
    if name.endswith("A_log"):
        return -1 + 0.3 * noise
    return 0.1 * noise if noise.ndim > 1 and "conv1d" not in name else 0.3 * noise


def _drop_biases(file: pathlib.Path) -> None:
    """As a Qwen2 checkpoint without biases is saved."""
    tensors = {k: v for k, v in safetensors.numpy.load_file(file).items() if not k.endswith("_proj.bias")}
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """make_checkpoint(family, dtype="float32", **config): every weight random, biases and norms too."""
    import torch
    import transformers

    made: dict[str, Checkpoint] = {}

    def make(family: str, *, dtype: str = "float32", save: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
        key = repr((family, dtype, save, sorted(changes.items())))
        if key in made:
            return made[key]
        prefix = CLASSES[family.split("-")[0]]
        whole = getattr(transformers, f"{prefix}ForCausalLM")
        config = whole.config_class(**{**SHAPE, **FAMILIES[family], **changes})
        torch.manual_seed(0)
        model = whole(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.copy_(_random(name, noise, has_delta="linear_num_key_heads" in FAMILIES[family]))
                if family.endswith("no_bias") and name.endswith("bias"):
                    parameter.zero_()
        path = tmp_path_factory.mktemp(family)
        model.to(getattr(torch, dtype)).save_pretrained(str(path), **(save or {}))
        if family.endswith("no_bias"):
            _drop_biases(path / "model.safetensors")
        # Read back: casting the model in place would round the rotary frequencies as well.
        model = whole.from_pretrained(str(path), dtype=torch.float32, attn_implementation="eager")
        made[key] = Checkpoint(path, model.eval())
        return made[key]

    return make
