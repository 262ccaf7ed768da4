"""Tiny models for all tests of the rollout engine."""

import dataclasses

import jax
import pytest

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import Params, init_qwen

TINY = QwenConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=256,
    init_scale=0.3,  # peaked distributions: a wrong mask or position shows in the tokens
)

HYBRID = dataclasses.replace(
    TINY,
    attention_bias=False,
    qk_norm=True,
    layer_types=("linear_attention", "full_attention"),
    rotary_fraction=0.5,
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=8,
    delta_value_dim=8,
    init_scale=0.2,
)


@pytest.fixture(scope="session")
def tiny() -> tuple[QwenConfig, Params]:
    """(config, params) of a model of two layers."""
    return TINY, init_qwen(TINY, jax.random.key(3))


@pytest.fixture(scope="session")
def hybrid() -> tuple[QwenConfig, Params]:
    """(config, params) with a layer of the gated delta rule before one of attention."""
    params = init_qwen(HYBRID, jax.random.key(5))
    # A slow decay, so that what an earlier sample left would show; and embeddings that make distributions peaked.
    blocks = params["blocks"] | {"delta_log_decay": params["blocks"]["delta_log_decay"] - 4}
    return HYBRID, params | {"blocks": blocks, "embedding": 3 * params["embedding"]}


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Six prompts of unequal length, one of a single token, one longer than a bucket."""
    lengths = (5, 1, 19, 12, 2, 7)
    return [[(7 * i + 3 * j * j + j) % 90 + 4 for j in range(length)] for i, length in enumerate(lengths)]
