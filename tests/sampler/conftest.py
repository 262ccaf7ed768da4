"""One tiny model for all tests of the rollout engine."""

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


@pytest.fixture(scope="session")
def tiny() -> tuple[QwenConfig, Params]:
    """(config, params) of a model of two layers."""
    return TINY, init_qwen(TINY, jax.random.key(3))


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Six prompts of unequal length, one of a single token, one longer than a bucket."""
    lengths = (5, 1, 19, 12, 2, 7)
    return [[(7 * i + 3 * j * j + j) % 90 + 4 for j in range(length)] for i, length in enumerate(lengths)]
