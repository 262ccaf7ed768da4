"""Eight fake devices in other arrangements than `test_families` has; recomputation, loops and kernels on them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models import QwenConfig, apply_qwen, init_qwen
from sspo_jax.models.qwen import Params, qwen_shardings
from sspo_jax.sharding import MeshConfig, make_mesh, named_sharding

# Biases, head norms and an output projection of its own: every parameter there is.
DENSE = QwenConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=16, num_kv_heads=8,
                   head_dim=8, attention_bias=True, output_bias=True, qk_norm=True, tie_embeddings=False,
                   init_scale=0.2)  # fmt: skip
TIED = dataclasses.replace(DENSE, tie_embeddings=True, qk_norm=False, output_bias=False)
EXPERTS = dataclasses.replace(DENSE, num_experts=8, experts_per_token=2, expert_size=16)
WINDOW = dataclasses.replace(DENSE, sliding_window=4, sliding_layers=(1,))
SPARSE = dataclasses.replace(EXPERTS, num_layers=3, dense_layers=(0,), sliding_window=4, sliding_layers=(0, 1, 2))
HYBRID = QwenConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=8, num_kv_heads=4,
                    head_dim=16, qk_norm=True, tie_embeddings=False, init_scale=0.2, rotary_fraction=0.25,
                    layer_types=("linear_attention", "full_attention"), delta_key_heads=4, delta_value_heads=8,
                    delta_key_dim=16, delta_value_dim=8)  # fmt: skip

TOKENS = np.random.default_rng(0).integers(0, 96, (8, 16)).astype(np.int32)
SEGMENTS = np.where(np.arange(16)[None] < np.arange(8, 16)[:, None], 1 + (np.arange(16) >= 5), 0).astype(np.int32)


def loss(params: Params, config: QwenConfig, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = apply_qwen(params, config, tokens, segment_ids=segments)
    logprobs = jax.nn.log_softmax(logits)[:, :-1]
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.mean(jnp.where(segments[:, 1:] > 0, chosen, 0)), logits


@functools.cache
def on_one_device(config: QwenConfig) -> tuple[Params, jax.Array, Params]:
    """(parameters, logits, gradients)"""
    params = init_qwen(config, jax.random.key(0))
    # Biases start at zero and norms at one; moved, so that a wrong sharding of theirs shows.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
    gradients, logits = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, config, TOKENS, SEGMENTS)
    return params, logits, gradients


def check(config: QwenConfig, mesh_config: MeshConfig) -> None:
    params, logits, gradients = on_one_device(config)
    mesh = make_mesh(mesh_config)
    shardings = qwen_shardings(config, mesh)
    rows = named_sharding(mesh, ("batch", None))
    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1, out_shardings=(shardings, None))
    with jax.set_mesh(mesh):
        arguments = (
            jax.device_put(params, shardings),
            config,
            jax.device_put(TOKENS, rows),
            jax.device_put(SEGMENTS, rows),
        )
        mesh_gradients, mesh_logits = step(*arguments)
    np.testing.assert_allclose(mesh_logits, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest),
        mesh_gradients,
        gradients,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 1, "tensor": 8}, {"data": 4, "tensor": 2}], ids=["tensor", "data"])
def test_dense(sizes):
    check(DENSE, MeshConfig(**sizes))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"expert": 8}, {"expert": 2, "context": 4}], ids=["expert", "context"])
@pytest.mark.parametrize("config", [EXPERTS, SPARSE], ids=["all-layers", "some-layers"])
def test_experts(sizes, config):
    check(config, MeshConfig(fsdp=1, **sizes))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["data", "all"])
@pytest.mark.parametrize("config", [WINDOW, SPARSE], ids=["window", "sparse"])
def test_layers_that_differ(config, sizes):
    check(config, MeshConfig(**sizes))


@pytest.mark.parametrize(
    "config",
    [DENSE, *(pytest.param(config, marks=pytest.mark.slow) for config in (HYBRID, WINDOW))],
    ids=["dense", "delta", "window"],
)
def test_rows_cut_in_time(config):
    """Two segments, the second of which crosses the cut, and padding."""
    check(config, MeshConfig(fsdp=2, context=2, tensor=2))


@pytest.mark.slow
def test_delta_heads_that_do_not_go_around():
    check(HYBRID, MeshConfig(fsdp=1, context=8))


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("base", [DENSE, pytest.param(WINDOW, marks=pytest.mark.slow)], ids=["dense", "window"])
def test_remat_changes_no_gradient(base, remat):
    params, _, gradients = on_one_device(base)
    config = base.computed(remat=remat)
    again, _ = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, config, TOKENS, SEGMENTS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), again, gradients)


@pytest.mark.parametrize("base", [DENSE, WINDOW], ids=["dense", "window"])
def test_scanned_layers_equal_unrolled_ones(base, monkeypatch):
    from sspo_jax.models import qwen

    params, _, gradients = on_one_device(base)
    monkeypatch.setattr(qwen, "UNROLLED_LAYERS", 0)
    other = dataclasses.replace(base, init_scale=0.3)  # else the compiled program of `on_one_device` would be found
    again, _ = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, other, TOKENS, SEGMENTS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), again, gradients)


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 4, "tensor": 2}, pytest.param({"fsdp": 2, "context": 4}, marks=pytest.mark.slow)],
    ids=["rows", "time"],
)
@pytest.mark.parametrize(
    "window", [{}, pytest.param({"sliding_window": 37, "sliding_layers": (1,)}, marks=pytest.mark.slow)],
    ids=["all", "window"],
)  # fmt: skip
def test_tpu_kernel_on_a_mesh(sizes: dict[str, int], window: dict[str, Any]):
    """Splash attention inside shard_map (interpreted here): each device computes its own rows, heads and queries."""
    base = dataclasses.replace(TIED, num_heads=4, num_kv_heads=2, head_dim=64, num_layers=2 if window else 1, **window)
    repeats = 8 * sizes.get("context", 1)
    tokens, segments = np.tile(TOKENS, (1, repeats)), np.repeat(SEGMENTS, repeats, axis=1)
    mesh = make_mesh(MeshConfig(**sizes))
    params = init_qwen(base, jax.random.key(0))
    rows = named_sharding(mesh, ("batch", None))

    def gradients(
        params: Params, config: QwenConfig, tokens: jax.Array, segments: jax.Array
    ) -> tuple[Params, jax.Array]:
        return jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, config, tokens, segments)

    whole = jnp.asarray(tokens), jnp.asarray(segments)
    wanted, reference = gradients(params, base.computed(attention="xla"), *whole)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, qwen_shardings(base, mesh))
        arguments = jax.device_put((tokens, segments), rows)
        found, logits = gradients(placed, base.computed(attention="splash"), *arguments)
    is_token = segments > 0
    np.testing.assert_allclose(np.asarray(logits)[is_token], np.asarray(reference)[is_token], rtol=0, atol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), found, wanted)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    config = dataclasses.replace(DENSE, num_kv_heads=2)
    with pytest.raises(ValueError, match=r"'key'\] has 2 along 'kv_heads', which mesh axis 'tensor' of size 4"):
        qwen_shardings(config, make_mesh(MeshConfig(fsdp=2, tensor=4)))
