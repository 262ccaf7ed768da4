"""Kernels stored by outputs against float64 products, for few and for many rows, and what XLA makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.cpu_kernels import OutputMajor, fusable, fuse_kernels
from sspo_jax.models.qwen import (
    attention_inputs,
    init_qwen,
    matmul,
    mlp,
    rotary_angles,
)


@pytest.mark.parametrize("rows", [1, 16, 65])
@pytest.mark.parametrize(("shape", "summed"), [((24, 40), 1), ((24, 4, 10), 1), ((4, 6, 40), 2)])
def test_against_a_product_in_float64(rows, shape, summed):
    random = np.random.default_rng(0)
    kernel, x = random.normal(size=shape), random.normal(size=(rows, 1, *shape[:summed]))
    want = np.tensordot(x, kernel, axes=summed)
    kernel, x = jnp.asarray(kernel, jnp.float32), jnp.asarray(x, jnp.float32)
    stored = OutputMajor.of(kernel, summed=summed)
    got = jax.jit(lambda x, stored: matmul(x, stored, summed=summed))(x, stored)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_few_rows_are_the_right_operand():
    """The product of the compiled program is [outputs, rows]: XLA has not turned it back into [rows, outputs]."""
    stored = OutputMajor(jax.ShapeDtypeStruct((40, 24), jnp.float32), (40,))

    def program(rows: int) -> str:
        x = jax.ShapeDtypeStruct((rows, 24), jnp.float32)
        return jax.jit(matmul).lower(x, stored).compile().as_text()

    assert "f32[40,8]" in program(8)
    assert "f32[40,96]" not in program(96)


@pytest.mark.parametrize("rows", [(3,), (65,), (2, 5)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"attention_bias": False, "qk_norm": True}], ids=["biases", "norms"])
def test_kernels_in_one_compute_what_they_do_apart(rows, changes):
    config = QwenConfig(
        vocab_size=8,
        hidden_size=24,
        intermediate_size=40,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        **changes,
    )
    block = jax.tree.map(lambda x: x[0], init_qwen(config, jax.random.key(0))["blocks"])
    for place, name in enumerate(name for name in block if name.endswith("_bias")):
        block[name] = jax.random.normal(jax.random.key(10 + place), block[name].shape)
    kernels = ("query", "key", "value", "gate", "up", "down")
    stored = block | {name: OutputMajor.of(block[name]) for name in kernels}
    together = fuse_kernels(stored)
    assert set(stored) - set(together) == set(fusable(stored)) >= {"query", "key", "value", "gate", "up"}
    x = jax.random.normal(jax.random.key(1), (*rows, 24))
    angles = rotary_angles(jnp.arange(np.prod(rows)).reshape(rows), config)
    for got, want in zip(
        (*attention_inputs(together, config, x, angles)[:3], mlp(together, config, x)),
        (*attention_inputs(block, config, x, angles)[:3], mlp(block, config, x)),
        strict=True,
    ):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
