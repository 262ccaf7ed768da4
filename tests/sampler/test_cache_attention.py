"""Attention over the ring against a float64 softmax; over all columns and in chunks; growing and shrinking rings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.sampler import Sampler, SamplingParams, cache_attention
from sspo_jax.sampler.cache_attention import attend_in_chunks, attend_ring
from sspo_jax.sampler.kv_cache import Cache, resize_cache
from sspo_jax.sampler.schedule import cache_columns

SLOTS, KV_HEADS, GROUP, DIM, COLUMNS, CHUNK = 5, 2, 3, 8, 48, 8


def oracle(query: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray, clock: int) -> np.ndarray:
    """Slot by slot and head by head, in float64, over the columns from the clock backwards."""
    out = np.zeros(query.shape)
    columns = keys.shape[-1]
    for slot, position in enumerate(positions):
        held = [(clock - age) % columns for age in range(min(position + 1, columns))]
        for head in range(query.shape[1]):
            kv_head = head // (query.shape[1] // keys.shape[1])
            scores = query[slot, head].astype(np.float64) @ keys[slot, kv_head][:, held] / np.sqrt(query.shape[2])
            shares = np.exp(scores - scores.max())
            out[slot, head] = shares / shares.sum() @ values[slot, kv_head][held]
    return out


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(SLOTS, KV_HEADS * GROUP, DIM)).astype(np.float32)
    keys = rng.normal(size=(SLOTS, KV_HEADS, DIM, COLUMNS)).astype(np.float32) * 3
    values = rng.normal(size=(SLOTS, KV_HEADS, COLUMNS, DIM)).astype(np.float32)
    return query, keys, values


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_attention, "CHUNK", CHUNK)
    monkeypatch.setattr(cache_attention, "_SMALLEST", 2 * CHUNK)


# A slot that holds one column, one that ends where a chunk begins, ones that wrap, and full ones.
POSITIONS = np.array([0, 7, 20, 40, 47], np.int32)


@pytest.mark.parametrize("clock", [0, 7, 8, 30, 47, 48 + 5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_chunks_and_over_all_columns_it_is_the_softmax(clock, dtype, arrays, small_chunks):
    query, keys, values = jnp.asarray(arrays[0]), jnp.asarray(arrays[1], dtype), jnp.asarray(arrays[2], dtype)
    want = oracle(
        arrays[0], np.float64(keys), np.float64(values), POSITIONS, clock
    )  # cached values are what was rounded
    positions, now = jnp.asarray(POSITIONS), jnp.int32(clock)
    visits = cache_attention._chunk_visits(positions, now, COLUMNS)
    got = jax.jit(attend_in_chunks)(query, keys, values, positions, now, visits)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(attend_ring(query, keys, values, positions, now), want, atol=2e-6)


@pytest.mark.parametrize("clock", [0, 7, 8, 30, 47, 48 + 5])
def test_visited_chunks_are_those_that_hold_columns(clock, small_chunks):
    visits = cache_attention._chunk_visits(jnp.asarray(POSITIONS), jnp.int32(clock), COLUMNS)
    for visit, position in zip(np.asarray(visits), POSITIONS, strict=True):
        held = {(clock - age) % COLUMNS // CHUNK for age in range(position + 1)}
        assert visit == len(held)
        newest = clock % COLUMNS // CHUNK
        assert held == {(newest - back) % (COLUMNS // CHUNK) for back in range(visit)}


def test_chunks_are_chosen_where_few_columns_are_held(arrays, small_chunks, monkeypatch):
    """What is chosen shows in a value that only the dense product touches: 0 * NaN."""
    query, keys, values = map(jnp.asarray, arrays)
    values = values.at[:, :, 25].set(jnp.nan)  # held by nobody, in a chunk that nobody visits
    short = jnp.arange(5)
    assert np.isfinite(attend_ring(query, keys, values, short, jnp.int32(4))).all()
    monkeypatch.setattr(cache_attention, "_CHUNK_COST", 1e6)
    assert np.isnan(attend_ring(query, keys, values, short, jnp.int32(4))).all()


def test_a_rollout_in_chunks_has_the_tokens_of_one_without(tiny, prompts, small_chunks, monkeypatch):
    config, params = tiny
    sampling = SamplingParams(max_new_tokens=40, stop_token_ids=(5,))
    budgets = [40 if row % 3 else 6 for row in range(18)]
    want = Sampler(config, sampling, slots=4, block_steps=4, cache_buckets=1)
    want = want.generate(params, prompts, group_size=3, seed=2, budgets=budgets)
    traced = []
    inner = cache_attention.attend_in_chunks
    monkeypatch.setattr(cache_attention, "attend_in_chunks", lambda *args: traced.append(1) or inner(*args))
    monkeypatch.setattr(cache_attention, "_CHUNK_COST", 0.0)  # always
    got = Sampler(config, sampling, slots=4, block_steps=4, cache_buckets=1)
    got = got.generate(params, prompts, group_size=3, seed=2, budgets=budgets)
    assert traced
    np.testing.assert_array_equal(got.response_tokens, want.response_tokens)
    np.testing.assert_allclose(got.sampler_logprobs, want.sampler_logprobs, atol=2e-5)


def test_long_budgets_on_a_cpu_have_whole_chunks():
    """Or nothing would be visited in chunks."""
    for longest in (600, 1000, 3072):
        assert all(
            columns % cache_attention.CHUNK == 0 for columns in cache_columns(64, longest, count=None, on_cpu=True)
        )


@pytest.mark.parametrize(("old", "new"), [(16, 24), (16, 40), (24, 16), (16, 16)])
@pytest.mark.parametrize("clock", [0, 1, 9, 15])
@pytest.mark.parametrize("rows", [None, [3, 0]])
def test_a_ring_of_another_size_holds_the_same_columns_at_the_same_age(old, new, clock, rows):
    rng = np.random.default_rng(1)
    keys, values = rng.normal(size=(5, 2, 4, old)), rng.normal(size=(5, 2, old, 4))
    cache = ((jnp.asarray(keys, jnp.float32),), (jnp.asarray(values, jnp.float32),))
    chosen = None if rows is None else jnp.asarray(rows, jnp.int32)
    (got_keys,), (got_values,), _ = resize_cache(Cache(*cache), jnp.int32(clock), chosen, columns=new)
    moved = 0 if new < old else clock
    for slot, source in enumerate(rows or range(5)):
        for age in range(1, min(old, new) + 1):  # the column at the clock is the next to be written
            there, here = (clock - age) % old, (moved - age) % new
            np.testing.assert_array_equal(got_keys[slot, :, :, here], np.float32(keys[source, :, :, there]))
            np.testing.assert_array_equal(got_values[slot, :, here], np.float32(values[source, :, there]))
