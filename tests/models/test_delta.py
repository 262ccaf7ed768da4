"""The gated delta rule: its chunked and one-step forms against a float64 loop, over packed and padded rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models.delta import Inputs, chunked, convolve, one_step, sequence_runs
from tests import oracle

BATCH, TIME, HEADS, GROUP, KEY, VALUE = 2, 21, 2, 2, 8, 4
SEGMENTS = np.array([[1] * 9 + [2] * 3 + [3] * 9, [0] * 4 + [1] * 12 + [0] * 5])


def inputs() -> Inputs:
    """Keys that resemble each other, decays from hardly any to nearly all: what a chunk's inverse must bear."""
    random = np.random.default_rng(0)
    query, key = (random.normal(size=(BATCH, TIME, HEADS, KEY)) + 1 for _ in range(2))
    value = random.normal(size=(BATCH, TIME, HEADS, GROUP, VALUE))
    decay = -np.exp(2 * random.normal(size=(BATCH, TIME, HEADS, GROUP)) - 2)
    rate = random.uniform(size=(BATCH, TIME, HEADS, GROUP))
    rows = query / 3, key / np.linalg.norm(key, axis=-1, keepdims=True), value, decay, rate
    real = SEGMENTS > 0
    return Inputs(*(jnp.asarray(x * np.expand_dims(real, tuple(range(2, x.ndim))), jnp.float32) for x in rows))


def expected(rows: Inputs) -> np.ndarray:
    out = np.zeros((BATCH, TIME, HEADS, GROUP, VALUE))
    for b in range(BATCH):
        edges = [0, *(np.flatnonzero(np.diff(SEGMENTS[b])) + 1), TIME]
        for start, end in itertools.pairwise(edges):
            for h, g in np.ndindex(HEADS, GROUP):
                here = b, slice(start, end)
                query, key = rows.query[here][:, h], rows.key[here][:, h]
                parts = (part[here][:, h, g] for part in (rows.value, rows.log_decay, rows.rate))
                out[here][:, h, g] = oracle.delta_rule(query, key, *parts)
    return out


def empty() -> jax.Array:
    return jnp.zeros((BATCH, HEADS, GROUP, KEY, VALUE))


def step_by_step(rows: Inputs) -> jax.Array:
    """By `one_step`, the state set to zero where a sequence begins."""
    starts = np.diff(SEGMENTS, axis=1, prepend=-1) != 0

    def step(state, here):
        start, *parts = here
        out, state = one_step(Inputs(*parts), jnp.where(start[:, None, None, None, None], 0, state))
        return state, out

    moved = (jnp.moveaxis(x, 1, 0) for x in (jnp.asarray(starts), *rows))
    return jnp.moveaxis(jax.lax.scan(step, empty(), tuple(moved))[1], 0, 1)


def by_chunks(rows: Inputs, chunk: int) -> jax.Array:
    return chunked(rows, empty(), sequence_runs(jnp.asarray(SEGMENTS)), chunk=chunk)[0]


@pytest.mark.parametrize("chunk", [1, 4, 16, 32])
def test_chunked_equals_the_recurrence(chunk):
    rows = inputs()
    np.testing.assert_allclose(jax.jit(by_chunks, static_argnums=1)(rows, chunk), expected(rows), rtol=0, atol=2e-6)


def test_one_step_equals_the_recurrence():
    rows = inputs()
    np.testing.assert_allclose(jax.jit(step_by_step)(rows), expected(rows), rtol=0, atol=2e-6)


def test_gradients_of_both_forms_are_the_same():
    rows = inputs()
    weights = jnp.cos(jnp.arange(BATCH * TIME * HEADS * GROUP * VALUE, dtype=jnp.float32))
    weights = weights.reshape(BATCH, TIME, HEADS, GROUP, VALUE)
    by_step = jax.jit(jax.grad(lambda rows: jnp.sum(weights * step_by_step(rows))))(rows)
    by_chunk = jax.jit(jax.grad(lambda rows: jnp.sum(weights * by_chunks(rows, 8))))(rows)
    real = SEGMENTS > 0
    for ours, theirs in zip(by_chunk, by_step, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[real], np.asarray(theirs)[real], rtol=0, atol=2e-5)


def test_the_state_goes_on_where_the_next_call_begins():
    rows = jax.tree.map(lambda x: x[1:, 4:16], inputs())
    state = empty()[:1]
    whole, last = chunked(rows, state, chunk=16)
    first, state = chunked(jax.tree.map(lambda x: x[:, :5], rows), state, chunk=4)
    second, state = chunked(jax.tree.map(lambda x: x[:, 5:], rows), state, chunk=4)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=0, atol=2e-6)
    np.testing.assert_allclose(state, last, rtol=0, atol=2e-6)


def test_the_convolution_begins_anew():
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(1, 9, 2, 3)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(2, 3, 4)), jnp.float32)
    before = jnp.ones((1, 2, 3, 3))
    packed, _ = convolve(x, kernel, before, jnp.asarray([[0] * 4 + [1] * 5]))
    for start, end in ((0, 4), (4, 9)):
        alone, kept = convolve(x[:, start:end], kernel, jnp.zeros_like(before))
        np.testing.assert_allclose(packed[:, start:end], alone, rtol=0, atol=1e-6)
    by_hand = sum(x[0, 8 - j] * kernel[:, :, 3 - j] for j in range(4))
    np.testing.assert_allclose(packed[0, 8], by_hand * jax.nn.sigmoid(by_hand), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(kept, x[:, 6:].transpose(0, 2, 1, 3))
