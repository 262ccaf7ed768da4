"""Attention of new tokens over the cache: over all of its columns, or over those that a slot's sample holds.

Where lengths differ much, most of a slot's columns are older than its sample: with log-normal lengths up to 3,072 four
in five. On a CPU `attend_ring` then visits the columns chunk by chunk and each slot only as far back as its sample
reaches; a chunk is copied before it is multiplied, so a column costs about twice as much that way. On TPUs and
GPUs kernels do so (`held_attention.py`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.sampler.held_attention import (
    attend_held,
    attend_held_on_gpu,
    block_columns,
    runs_on_this_gpu,
    suits_gpu,
)
from sspo_jax.sampler.kv_cache import KEY_COLUMNS, column_ages, logical_axes
from sspo_jax.sharding import GPU, is_one_cpu, partition_spec, platform, shards

CHUNK = 256
"""Columns of a slot that are visited at a time."""
_SMALLEST = 1024  # columns below which all are read
_SMALLEST_ON_GPU = 256  # the same there
_CHUNK_COST = 2.0  # time of a column in a chunk, where 1 is that of a column among all
_FEWEST_PROGRAMS = 64  # of the kernel on a GPU, one for each slot and key head: fewer leave most of it idle
_MASKED = -1e30  # finite: a row that masks every column still yields finite numbers


def attend(
    query: Float[Array, "slots time heads head_dim"],
    keys: Float[Array, "slots kv_heads head_dim columns"],
    values: Float[Array, "slots kv_heads columns head_dim"],
    mask: Bool[Array, "*slots time columns"],
) -> Float[Array, "slots time heads head_dim"]:
    """Grouped-query attention over the columns where `mask` [slots, time, columns] is true; softmax in float32."""
    slots, time, heads, dim = query.shape
    kv_heads = keys.shape[-3]
    query = query.reshape(slots, time, kv_heads, heads // kv_heads, dim) * dim**-0.5
    keys, values = keys.astype(query.dtype), values.astype(query.dtype)
    query = query.swapaxes(1, 2).reshape(slots, kv_heads, time * heads // kv_heads, dim)
    scores = jnp.einsum("bkqd,bkds->bkqs", query, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(slots, kv_heads, time, heads // kv_heads, -1)
    scores = jnp.where(mask[:, None, :, None], scores, _MASKED)
    shares = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(shares, axis=-1, keepdims=True)
    shares = shares.reshape(slots, kv_heads, time * heads // kv_heads, -1).astype(values.dtype)
    attended = jnp.einsum("bkqs,bksd->bkqd", shares, values, preferred_element_type=jnp.float32)
    attended = attended.reshape(slots, kv_heads, time, heads // kv_heads, dim) / total
    return attended.swapaxes(1, 2).reshape(slots, time, heads, dim).astype(query.dtype)


def attend_ring(
    query: Float[Array, "slots heads head_dim"],
    keys: Float[Array, "*layers slots kv_heads head_dim columns"],
    values: Float[Array, "*layers slots kv_heads columns head_dim"],
    positions: Int[Array, " slots"],
    clock: Int[Array, ""],
    layer: Any = None,
    *,
    kernels: bool = True,
) -> Float[Array, "slots heads head_dim"]:
    """Attention of one token a slot over the ring: columns of age 0 to its position (`kv_cache.column_ages`).

    Args:
      positions: smaller ones where a window ends sooner.
      layer: which one of a stacked cache; None: the cache is of one layer.
      kernels: whether to use those of `held_attention` where there are some.
    """
    columns = keys.shape[KEY_COLUMNS]
    if kernels and platform() == "tpu" and columns >= _SMALLEST and block_columns(columns) is not None:
        return _attend_held(query, keys, values, positions, clock, layer)
    if layer is not None:
        keys, values = keys[layer], values[layer]
    if kernels and reads_held(query, keys):
        return _attend_on_gpu(query, keys, values, positions, clock)

    def over_all() -> Array:
        return _attend_to_all(query, keys, values, positions, clock)

    if columns < _SMALLEST or columns % CHUNK or not is_one_cpu():
        return over_all()
    visits = _chunk_visits(positions, clock, columns)
    is_cheaper = _CHUNK_COST * CHUNK * jnp.sum(visits) < positions.shape[0] * columns
    return jax.lax.cond(is_cheaper, lambda: attend_in_chunks(query, keys, values, positions, clock, visits), over_all)


def reads_held(query: Any, keys: Any) -> bool:
    """Whether a GPU's kernel, which reads no column that is not held, attends here: a longer ring then costs no time.

    On an H100 it was faster than products over all columns whatever share of them was held (docs/benchmarks.md).

    Args:
      query, keys: as for `attend_ring`, of one layer and all devices; shapes and dtypes are enough.
    """
    (slots, heads, dim), (kv_heads, columns) = query.shape, (keys.shape[-3], keys.shape[-1])
    if platform() not in GPU or columns < _SMALLEST_ON_GPU or not suits_gpu(query, keys):
        return False
    programs = slots // shards("batch") * (kv_heads // shards("kv_heads"))
    return programs >= _FEWEST_PROGRAMS and runs_on_this_gpu(heads, kv_heads, dim, str(query.dtype))


def _attend_held(
    query: Array, keys: Array, values: Array, positions: Array, clock: Array, layer: Any, *, interpret: bool = False
) -> Array:
    """By the kernel, each device over its own slots and heads."""
    block = block_columns(keys.shape[KEY_COLUMNS])
    assert block is not None
    if layer is None:
        keys, values, layer = keys[None], values[None], 0

    def here(query: Array, keys: Array, values: Array, positions: Array, clock: Array, layer: Array) -> Array:
        return attend_held(query, keys, values, positions, clock, layer, block=block, interpret=interpret)

    args = query, keys, values, positions, clock, jnp.asarray(layer, jnp.int32)
    if jax.sharding.get_abstract_mesh().empty:
        return here(*args)
    of_cache, rows = partition_spec(logical_axes(keys)), partition_spec(("batch", "heads", None))
    none = partition_spec(())
    in_specs = (rows, of_cache, of_cache, partition_spec(("batch",)), none, none)
    # The kernel does not say how its outputs vary over the mesh.
    return jax.shard_map(here, in_specs=in_specs, out_specs=rows, check_vma=False)(*args)


def _attend_to_all(query: Array, keys: Array, values: Array, positions: Array, clock: Array) -> Array:
    """Reads all columns and masks those that are not held."""
    mask = column_ages(clock, keys.shape[KEY_COLUMNS])[None, None] <= positions[:, None, None]
    return attend(query[:, None], keys, values, mask)[:, 0]


def _attend_on_gpu(
    query: Array, keys: Array, values: Array, positions: Array, clock: Array, *, interpret: bool = False
) -> Array:
    """By the kernel, each device over its own slots and heads."""
    here = functools.partial(attend_held_on_gpu, interpret=interpret)
    args = query, keys, values, positions, clock
    if jax.sharding.get_abstract_mesh().empty:
        return here(*args)
    of_cache, rows = partition_spec(logical_axes(keys)), partition_spec(("batch", "heads", None))
    in_specs = (rows, of_cache, of_cache, partition_spec(("batch",)), partition_spec(()))
    return jax.shard_map(here, in_specs=in_specs, out_specs=rows, check_vma=False)(*args)


def _chunk_visits(positions: Int[Array, " slots"], clock: Int[Array, ""], columns: int) -> Int[Array, " slots"]:
    """How many chunks, from that of the clock backwards, hold the columns of age 0 to `positions`."""
    column = clock % columns
    return jnp.minimum(column // CHUNK - (column - positions) // CHUNK + 1, columns // CHUNK)


def attend_in_chunks(
    query: Float[Array, "slots heads head_dim"],
    keys: Float[Array, "slots kv_heads head_dim columns"],
    values: Float[Array, "slots kv_heads columns head_dim"],
    positions: Int[Array, " slots"],
    clock: Int[Array, ""],
    visits: Int[Array, " slots"],
) -> Float[Array, "slots heads head_dim"]:
    """`attend_ring`, slot by slot and `visits` chunks of each, newest first, with a running maximum and sum."""
    slots, heads, dim = query.shape
    kv_heads, columns = keys.shape[-3], keys.shape[KEY_COLUMNS]
    grouped = query.reshape(slots, kv_heads, heads // kv_heads, dim) * dim**-0.5
    ages = column_ages(clock, columns).reshape(-1, CHUNK)
    newest = clock % columns // CHUNK
    zero = jnp.zeros((), jnp.int32)

    def one_slot(slot: Array, out: Array) -> Array:
        own_query = jax.lax.dynamic_index_in_dim(grouped, slot, keepdims=False)

        def one_chunk(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            visit, top, total, attended = state
            chunk = (newest - visit) % len(ages)
            first = chunk * CHUNK
            key = jax.lax.dynamic_slice(keys, (slot, zero, zero, first), (1, kv_heads, dim, CHUNK))[0]
            value = jax.lax.dynamic_slice(values, (slot, zero, first, zero), (1, kv_heads, CHUNK, dim))[0]
            key, value = key.astype(query.dtype), value.astype(query.dtype)
            scores = jnp.einsum("kqd,kds->kqs", own_query, key, preferred_element_type=jnp.float32)
            is_held = jax.lax.dynamic_index_in_dim(ages, chunk, keepdims=False) <= positions[slot]
            scores = jnp.where(is_held[None, None], scores, _MASKED)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            shares, kept = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            added = jnp.einsum("kqs,ksd->kqd", shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
            total = total * kept + jnp.sum(shares, axis=-1, keepdims=True)
            return visit + 1, new_top, total, attended * kept + added

        shape = (*grouped.shape[1:3], 1)
        start = (zero, jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros(grouped.shape[1:]))
        _, _, total, attended = jax.lax.while_loop(lambda state: state[0] < visits[slot], one_chunk, start)
        own = (attended / total).reshape(1, heads, dim).astype(out.dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, own, slot, axis=0)

    return jax.lax.fori_loop(0, slots, one_slot, jnp.zeros_like(query))
