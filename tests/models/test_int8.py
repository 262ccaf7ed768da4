"""Weights in int8: how far they are from what they stand for, and that nothing else is computed with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sspo_jax.models import apply_qwen, init_qwen
from sspo_jax.models.int8 import Int8, dense, is_int8, quantize, quantized, sharded
from sspo_jax.models.qwen import Params, matmul
from sspo_jax.sampler import Sampler, SamplingParams
from sspo_jax.sharding import MeshConfig, make_mesh, named_sharding
from tests.models.test_meshes import DENSE, EXPERTS, SEGMENTS, TOKENS


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        (3, 4, 5),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-20),
    )
)
def test_each_weight_is_off_by_half_a_scale_at_most(kernel: np.ndarray):
    found = quantized(jnp.asarray(kernel), summed=1, outputs=1)
    scale = np.abs(kernel).max(axis=1) / 127
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    assert found.values.dtype == jnp.int8
    error = np.abs(np.asarray(found.astype(jnp.float32), np.float64) - kernel)
    assert (error <= scale[:, None] * 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 4), (3, 2, 8)])
def test_a_product_is_that_with_the_weights_they_stand_for(shape: tuple[int, ...]):
    summed = 2 if shape == (3, 2, 8) else 1
    noise = np.random.default_rng(0)
    kernel = quantized(jnp.asarray(noise.normal(size=shape), jnp.float32), summed=summed, outputs=len(shape) - summed)
    x = noise.normal(size=(5, *shape[:summed]))
    y = matmul(jnp.asarray(x, jnp.float32), kernel, summed=summed)
    weights = np.asarray(kernel.values, np.float64) * np.asarray(kernel.scale, np.float64)
    assert y.shape == (5, *shape[summed:])
    np.testing.assert_allclose(y, np.tensordot(x, weights, axes=summed), rtol=1e-5, atol=1e-5)
    assert matmul(jnp.asarray(x, jnp.bfloat16), kernel, summed=summed).dtype == jnp.bfloat16


def quantized_params(params: Params) -> Params:
    return params | {"blocks": {name: quantize(name, x, lead=1) for name, x in params["blocks"].items()}}


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_a_model_is_that_of_the_weights_they_stand_for(config):
    params = init_qwen(config, jax.random.key(0))
    rounded = quantized_params(params)
    large = {name for name, x in rounded["blocks"].items() if is_int8(x)}
    assert {"query", "output", "expert_gate" if config.num_experts else "gate"} <= large
    assert not large & {"router", "attention_norm", "query_bias"}
    run = jax.jit(apply_qwen, static_argnums=1)
    ours = run(rounded, config, TOKENS, segment_ids=SEGMENTS)
    theirs = run(rounded | {"blocks": dense(rounded["blocks"])}, config, TOKENS, segment_ids=SEGMENTS)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    before = run(params, config, TOKENS, segment_ids=SEGMENTS)
    assert 0 < np.abs(before - theirs).mean() < 0.05 * np.abs(theirs).mean()


def test_scales_lie_like_the_outputs():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    kernel = jnp.ones((2, 8, 4, 6))
    lies = named_sharding(mesh, ("layers", "embed", "heads", "head_dim"))
    placed = sharded(jax.eval_shape(lambda x: quantize("query", x, lead=1), kernel), lies)
    assert placed.values == lies
    found = jax.device_put(quantize("query", kernel, lead=1), placed)
    assert found.scale.shape == (2, 4, 6)
    assert found.scale.sharding.shard_shape((2, 4, 6)) == (2, 2, 6)


@pytest.mark.parametrize("unrolled", [True, False], ids=["unrolled", "stacked"])
@pytest.mark.parametrize("has_mesh", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "handed-over"])
def test_a_sampler_decodes_from_them(unrolled: bool, has_mesh: bool):
    config = dataclasses.replace(DENSE, num_layers=2)
    one = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    meshes = (make_mesh(MeshConfig(fsdp=8)), make_mesh(MeshConfig(data=4, tensor=2))) if has_mesh else (one, one)
    params = init_qwen(config, jax.random.key(0), mesh=meshes[0])
    prompts = [[5, 9, 17], [3, 4]]
    sampling = SamplingParams(max_new_tokens=6)
    sampler = Sampler(config, sampling, mesh=meshes[1], unrolled=unrolled, int8=True)
    weights = sampler.ready(params)
    blocks = weights["blocks"][0] if unrolled else weights["blocks"]
    assert isinstance(blocks["query"], Int8)
    assert blocks["query"].values.dtype == jnp.int8
    assert sampler.ready(weights) is weights
    ours = sampler.generate(params, prompts, seed=3, group_size=2)
    plain = {name: quantize(name, x, lead=1) for name, x in params["blocks"].items()}
    theirs = Sampler(config, sampling, mesh=meshes[1], unrolled=unrolled).generate(
        params | {"blocks": dense(plain)}, prompts, seed=3, group_size=2
    )
    assert [row.tolist() for row in ours.responses] == [row.tolist() for row in theirs.responses]
    np.testing.assert_allclose(np.concatenate(ours.logprobs), np.concatenate(theirs.logprobs), atol=2e-5)
