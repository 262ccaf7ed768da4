"""Logits where a short batch of `test_families` does not reach: far positions, bfloat16, padding that is poisoned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models import apply_qwen, configs, load_qwen
from sspo_jax.models.qwen import hidden_states
from tests.models.conftest import VOCAB

TOLERANCE = 2e-5  # of logits, absolute; they are of order 1 to 10 here

apply = jax.jit(apply_qwen, static_argnums=1)


def tokens_of(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCAB, shape).astype(np.int32)


def assert_same_logits(ours: jax.Array, theirs: np.ndarray) -> None:
    assert np.abs(theirs).max() > 0.5  # else a bound on the difference would say little
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(np.argmax(ours, -1), np.argmax(theirs, -1))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096, "attention_factor": 1.3},
    ],
    ids=["plain", "yarn"],
)
def test_long_positions(make_checkpoint, rope):
    """32 k positions: the angles are in the tens of thousands, where float32 has 1e-3 left."""
    checkpoint = make_checkpoint("qwen2-tied", rope_parameters={"rope_theta": 1e6, **rope})
    params, config = load_qwen(checkpoint.path)
    tokens = tokens_of((2, 12))
    positions = (np.arange(12) * 17 + np.array([[3000], [32000]])).astype(np.int32)
    theirs = checkpoint.logits(tokens, position_ids=positions.astype(np.int64))
    assert_same_logits(apply(params, config, tokens, positions=positions), theirs)


def test_bfloat16_weights(make_checkpoint):
    """A bfloat16 checkpoint, computed in float32, is exact; computed in bfloat16 it is as close as transformers is."""
    import torch

    checkpoint = make_checkpoint("qwen3", dtype="bfloat16")
    tokens = tokens_of((2, 12))
    exact = checkpoint.logits(tokens)
    params, config = load_qwen(checkpoint.path)
    assert_same_logits(apply(params, config, tokens), exact)

    params, config = load_qwen(checkpoint.path, dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    half = type(checkpoint.model).from_pretrained(checkpoint.path, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = half(torch.as_tensor(tokens).long()).logits.float().numpy()
    ours = np.asarray(apply(params, config, tokens))
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1.2 * np.sqrt(np.mean((theirs - exact) ** 2))


def test_poisoned_padding_changes_nothing(make_checkpoint):
    """Padding whose embedding is huge leaves the logits of real tokens and the gradients bit for bit as they were."""
    params, config = load_qwen(make_checkpoint("qwen2").path)
    segments = np.array([[0, 0, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0, 0, 0]], np.int32)
    real = segments > 0
    tokens, segments = jnp.where(real, tokens_of((2, 8)) % 90, 95), jnp.asarray(segments)

    @jax.jit
    def loss_and_logits(params, fill):
        params = params | {"embedding": params["embedding"].at[95].set(fill)}
        logits = apply_qwen(params, config, tokens, segment_ids=segments)
        return jnp.sum(jnp.where(real[..., None], jnp.sin(logits), 0)), logits

    (calm, poisoned) = (
        jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))(params, fill) for fill in (0.5, 1e18)
    )
    np.testing.assert_array_equal(calm[0][1][real], poisoned[0][1][real])
    jax.tree.map(np.testing.assert_array_equal, calm[1], poisoned[1])


def test_keys_and_values_of_padding_do_not_leak(make_checkpoint):
    """The same for huge keys and values themselves: the mask cuts them off, it does not outweigh them."""
    params, config = load_qwen(make_checkpoint("qwen2").path)
    tokens = tokens_of((1, 8)) % 90
    segments = np.array([[1, 1, 1, 1, 1, 0, 0, 0]], np.int32)

    @jax.jit
    def with_padding(token: jax.Array) -> jax.Array:
        filled = jnp.where(segments > 0, tokens, token)
        return hidden_states(params, config, filled, segment_ids=jnp.asarray(segments))[0]

    np.testing.assert_array_equal(with_padding(91)[:, :5], with_padding(95)[:, :5])


def test_named_shapes_have_the_published_sizes():
    """Parameters in millions, as on the model cards (with embeddings)."""
    published = {"QWEN25_0P5B": 494, "QWEN25_1P5B": 1544, "QWEN25_7B": 7616, "QWEN25_14B": 14770, "QWEN3_0P6B": 596,
                 "QWEN3_4B": 4022, "QWEN3_8B": 8191, "QWEN3_30B_A3B": 30532, "LLAMA32_1B": 1236, "LLAMA32_3B": 3213,
                 "LLAMA31_8B": 8030, "SMOLLM2_135M": 135, "SMOLLM2_360M": 362, "SMOLLM2_1P7B": 1711}  # fmt: skip
    for name, millions in published.items():
        assert round(getattr(configs, name).num_parameters / 1e6) == millions, name
