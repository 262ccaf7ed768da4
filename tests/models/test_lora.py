"""Adapters: nothing at the start, the merged model afterwards, and nothing else is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models import QwenConfig, apply_qwen, configs, init_qwen
from sspo_jax.models.lora import LoraConfig, init_lora, lora_shapes, merge_lora, with_lora

CONFIG = QwenConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
                    head_dim=4, init_scale=0.3)  # fmt: skip
TOKENS = jnp.arange(14).reshape(2, 7)

apply = jax.jit(apply_qwen, static_argnums=1)


@pytest.mark.parametrize("targets", [LoraConfig().targets, ("query", "output"), ("down",)])
def test_merged_equals_applied(targets):
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets)
    params = init_qwen(CONFIG, jax.random.key(0))
    adapters = init_lora(CONFIG, lora, jax.random.key(1))
    plain = apply(params, CONFIG, TOKENS)
    np.testing.assert_array_equal(apply(with_lora(params, adapters, lora), CONFIG, TOKENS), plain)
    trained = jax.tree.map(lambda x: x + 0.1, adapters)
    applied = apply(with_lora(params, trained, lora), CONFIG, TOKENS)
    assert jnp.abs(applied - plain).max() > 0.1
    np.testing.assert_allclose(apply(merge_lora(params, trained, lora), CONFIG, TOKENS), applied, rtol=0, atol=2e-5)


def test_merge_by_hand():
    """rank 1, alpha 2: W + 2 a b. With a = (1, 2) and b = (3, 4): 2 * [[3, 4], [6, 8]]."""
    lora = LoraConfig(rank=1, alpha=2.0, targets=("up",))
    params = {"blocks": {"up": jnp.ones((1, 2, 2))}}
    adapters = {"up": {"a": jnp.array([[[1.0], [2.0]]]), "b": jnp.array([[[3.0, 4.0]]])}}
    np.testing.assert_array_equal(merge_lora(params, adapters, lora)["blocks"]["up"], [[[7, 9], [13, 17]]])


def test_what_cannot_be_adapted_is_named():
    with pytest.raises(ValueError, match=r"targets \['gate', 'up', 'down'\] are not weights"):
        lora_shapes(configs.QWEN3_30B_A3B, LoraConfig())
    with pytest.raises(ValueError, match="rank is 0 with 7 targets"):
        LoraConfig(rank=0)
