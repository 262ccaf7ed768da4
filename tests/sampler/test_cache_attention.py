"""Attention over the ring against a float64 softmax; over all columns and in chunks; growing and shrinking rings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.sampler import Sampler, SamplingParams, cache_attention, held_attention
from sspo_jax.sampler.cache_attention import attend_in_chunks, attend_ring
from sspo_jax.sampler.held_attention import attend_held, held_blocks, work_list
from sspo_jax.sampler.kv_cache import Cache, resize_cache
from sspo_jax.sampler.schedule import cache_columns
from sspo_jax.sharding import MeshConfig, make_mesh

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
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_for_tpus_is_the_softmax_over_what_is_held(clock, dtype, arrays):
    """Interpreted, on the second layer of a stacked cache; what no slot holds is NaN, and is not read."""
    query, keys, values = arrays
    want = oracle(query, np.float64(jnp.asarray(keys, dtype)), np.float64(jnp.asarray(values, dtype)), SHORT, clock)
    held = {(clock - age) % COLUMNS // CHUNK for age in range(SHORT.max() + 1)}
    unread = np.array([column // CHUNK not in held for column in range(COLUMNS)])
    assert unread.any()
    stacked_keys = jnp.asarray(np.stack([keys + 1, np.where(unread, np.nan, keys)]), dtype)
    stacked_values = jnp.asarray(np.stack([values + 1, np.where(unread[:, None], np.nan, values)]), dtype)
    got = _kernel(jnp.asarray(query), stacked_keys, stacked_values, jnp.asarray(SHORT), jnp.int32(clock), jnp.int32(1))
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("clock", [0, 8, 47, 48 + 5])
def test_the_kernel_for_gpus_is_the_softmax_over_what_is_held(clock, arrays):
    """Interpreted; on a ring that is hardly held the rest is NaN, and is not read."""
    query, keys, values = arrays
    positions, now = jnp.asarray(POSITIONS), jnp.int32(clock)
    want = oracle(query, keys, values, POSITIONS, clock)
    np.testing.assert_allclose(_gpu_kernel(query, keys, values, positions, now), want, atol=2e-6)
    held = {(clock - age) % COLUMNS // CHUNK for age in range(SHORT.max() + 1)}
    unread = np.array([column // CHUNK not in held for column in range(COLUMNS)])
    keys, values = np.where(unread, np.nan, keys), np.where(unread[:, None], np.nan, values)
    want = oracle(query, keys, values, SHORT, clock)
    np.testing.assert_allclose(_gpu_kernel(query, keys, values, jnp.asarray(SHORT), now), want, atol=2e-6)


def test_the_kernel_for_gpus_is_lowered_without_one_and_not_taken_where_it_does_not_run(arrays):
    assert not held_attention.runs_on_this_gpu(12, 2, 128, "bfloat16")  # a CPU
    shapes = [(8, 12, 128), (8, 2, 128, 2944), (8, 2, 2944, 128)]
    query, keys, values = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    integers = jax.ShapeDtypeStruct((8,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("one",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):  # jax 0.12 lowers for a GPU that it knows
        traced = jax.jit(held_attention.attend_held_on_gpu).trace(query, keys, values, *integers)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert held_attention.suits_gpu(query, keys)
    assert not held_attention.suits_gpu(*(jnp.asarray(x) for x in arrays[:2]))  # float32


@pytest.mark.parametrize(
    ("platform", "slots", "columns", "kernels", "taken"),
    [
        ("tpu", 2, 1024, True, "_attend_held"),
        ("tpu", 2, 512, True, None),
        ("tpu", 2, 1024, False, None),
        ("gpu", 64, 1024, True, "_attend_on_gpu"),
        ("gpu", 64, 256, True, "_attend_on_gpu"),
        ("gpu", 64, 128, True, None),
        ("gpu", 63, 1024, True, None),  # too few programs for its processors
        ("gpu", 64, 1024, False, None),
    ],
)
def test_kernels_are_taken_for_long_rings_where_they_run_and_unless_xla_is_asked_for(
    platform, slots, columns, kernels, taken, monkeypatch
):
    found = []
    monkeypatch.setattr(cache_attention, "platform", lambda: platform)
    monkeypatch.setattr(cache_attention, "runs_on_this_gpu", lambda *_: True)
    for name in ("_attend_held", "_attend_on_gpu"):
        monkeypatch.setattr(cache_attention, name, lambda query, *_, name=name: found.append(name) or query)
    shapes = (slots, 2, 16), (slots, 1, 16, columns), (slots, 1, columns, 16)
    query, keys, values = (jnp.zeros(shape, jnp.bfloat16) for shape in shapes)
    attend_ring(query, keys, values, jnp.zeros(slots, jnp.int32), jnp.int32(3), kernels=kernels)
    assert found == ([] if taken is None else [taken])


def test_where_attention_reads_what_is_held_the_cache_has_one_shape(tiny, prompts, monkeypatch):
    """One decoding program, no resize, and the tokens of a cache that grows and gives up slots."""
    config, params = tiny
    monkeypatch.setattr("sspo_jax.sampler.schedule.SHRINK_STEPS", 8)
    budgets = [140] + [6] * 17

    def sampled() -> tuple[Sampler, np.ndarray]:
        sampler = Sampler(config, SamplingParams(max_new_tokens=140, stop_token_ids=(5,)), slots=8, block_steps=4)
        return sampler, sampler.generate(params, prompts, group_size=3, seed=2, budgets=budgets).response_tokens

    grows, want = sampled()
    assert any(name.startswith("resize") for name in grows.programs.names)
    asked = []
    monkeypatch.setattr("sspo_jax.sampler.schedule.reads_held", lambda *shapes: asked.append(shapes) or True)
    sampler, got = sampled()
    np.testing.assert_array_equal(got, want)
    assert not any(name.startswith("resize") for name in sampler.programs.names)
    assert sum(name.startswith("decode") for name in sampler.programs.names) == 1
    query, keys = asked[0]
    assert query.shape == (8, config.num_heads, config.head_dim)
    assert keys.shape[:3] == (8, config.num_kv_heads, config.head_dim)
    assert keys.shape[3] >= 140


@pytest.mark.accelerator
def test_the_kernel_runs_on_the_gpu_at_hand():
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    assert held_attention.runs_on_this_gpu(12, 2, 128, "bfloat16")


SHORT = np.array([0, 7, 20, 3, 19], np.int32)
_gpu_kernel = jax.jit(functools.partial(held_attention.attend_held_on_gpu, block=CHUNK, interpret=True))
_kernel = jax.jit(functools.partial(attend_held, block=CHUNK, interpret=True))


@pytest.mark.parametrize("clock", [0, 7, 8, 30, 47, 48 + 5])
def test_the_work_of_the_kernel_is_each_block_that_is_held_once(clock):
    slot, block, edges, count = map(np.asarray, work_list(jnp.asarray(POSITIONS), jnp.int32(clock), COLUMNS, CHUNK))
    for number, position in enumerate(POSITIONS):
        own = [int(place) for place in range(count) if slot[place] == number]
        held = {(clock - age) % COLUMNS // CHUNK for age in range(position + 1)}
        assert own == list(range(own[0], own[0] + len(held)))  # one after the other
        assert {int(block[place]) for place in own} == held
        assert [int(edges[place]) for place in own] == [(place == own[0]) + 2 * (place == own[-1]) for place in own]
    assert count == sum(np.asarray(held_blocks(jnp.asarray(POSITIONS), jnp.int32(clock), COLUMNS, CHUNK)))


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_on_a_mesh_each_device_runs_the_kernel_over_its_slots_and_heads(platform, arrays, monkeypatch):
    query, keys, values = (np.concatenate([x, x[:3]]) for x in arrays)
    positions = np.concatenate([POSITIONS, POSITIONS[:3]])
    monkeypatch.setattr(cache_attention, "block_columns", lambda columns: CHUNK)
    monkeypatch.setattr(
        cache_attention, "attend_held_on_gpu", functools.partial(held_attention.attend_held_on_gpu, block=CHUNK)
    )
    on_tpu = functools.partial(cache_attention._attend_held, layer=None)
    function = on_tpu if platform == "tpu" else cache_attention._attend_on_gpu
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        got = jax.jit(functools.partial(function, interpret=True))(query, keys, values, positions, jnp.int32(9))
    np.testing.assert_allclose(got, oracle(query, keys, values, positions, 9), atol=2e-6)


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
