"""The keys and values of the tokens decoded so far: a ring of columns that all slots share.

Every decoding step writes one column for all slots, whatever the lengths of their responses: rotary embedding is
applied before caching, so the column of a token need not equal its position. The write is then one
`dynamic_update_slice` a layer instead of a scatter a row. At a given moment column `j` has an age, `(clock - j) mod
columns`: 0 for the column that is being written. A slot that holds `n` tokens attends to the columns of age 0 to
n - 1. A new sample's prompt is written into the columns just behind the clock, over what the slot held before.

Keys lie as [slots, kv_heads, head_dim, columns] and values as [slots, kv_heads, columns, head_dim]: both products of
attention then read them along their last axis (on CPU 1.2 to 2 times as fast as keys laid out like values).

A cache is a `Cache`, of tuples of arrays: one for each layer (`unrolled`), or a single one with a leading axis of
layers. Every function here counts axes from the end and so serves both. Layers with the gated delta rule have no
columns but, for each slot, a state and the last inputs of the convolution; models with such layers are always unrolled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import DeltaState, empty_delta_state
from sspo_jax.sharding import constrain, named_sharding, partition_spec, platform


class Cache(NamedTuple):
    """What the sampler keeps of the tokens so far."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    deltas: tuple[DeltaState, ...] = ()
    """Of the layers with the gated delta rule, in their order; slots lie on the same axis as in keys and values."""


KEY_COLUMNS, VALUE_COLUMNS = -1, -2
SLOTS = -4


def shard_cache(cache: Cache) -> Cache:
    """Slots along the batch, heads along the tensor axis of the mesh."""
    return jax.tree.map(lambda x: constrain(x, *logical_axes(x)), cache)


def logical_axes(x: Any, slots: str | None = "batch") -> tuple[str | None, ...]:
    """Of an array of the cache, keys or values, of one layer or stacked."""
    return (*(None,) * (x.ndim - 4), slots, "kv_heads", None, None)


def _partition_specs(cache: Cache, slots: str | None = "batch") -> Any:
    return jax.tree.map(lambda x: partition_spec(logical_axes(x, slots)), cache)


def place_cache(cache: Any, mesh: Mesh) -> Any:
    """`jax.ShapeDtypeStruct` of a cache as `shard_cache` places it on this mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named_sharding(mesh, logical_axes(x))), cache
    )


def empty_cache(config: QwenConfig, slots: int, columns: int, dtype: Any, *, unrolled: bool) -> Cache:
    """Zeros: unwritten columns are masked, but a NaN in one would still reach the sum as 0 * NaN."""
    lead, count = ((), len(config.attention_layers)) if unrolled else ((config.num_layers,), 1)
    heads, dim = config.num_kv_heads, config.head_dim
    keys = tuple(jnp.zeros((*lead, slots, heads, dim, columns), dtype) for _ in range(count))
    values = tuple(jnp.zeros((*lead, slots, heads, columns, dim), dtype) for _ in range(count))
    return shard_cache(Cache(keys, values, empty_deltas(config, slots, dtype)))


def empty_deltas(config: QwenConfig, slots: int, dtype: Any) -> tuple[DeltaState, ...]:
    """The states of layers with the gated delta rule before the first token."""
    return tuple(empty_delta_state(config, slots, dtype) for _ in config.delta_layers)


def cache_bytes(config: QwenConfig, slots: int, columns: int, dtype: Any) -> int:
    """Size of the cache on all devices together."""
    return slots * (columns * column_bytes(config, dtype) + delta_state_bytes(config, dtype))


def column_bytes(config: QwenConfig, dtype: Any) -> int:
    """Keys and values of one token, of all layers with attention; those with a window keep as many columns."""
    return len(config.attention_layers) * layer_column_bytes(config, dtype)


def layer_column_bytes(config: QwenConfig, dtype: Any) -> int:
    """Keys and values of one token in one layer."""
    return 2 * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def delta_state_bytes(config: QwenConfig, dtype: Any) -> int:
    """What a slot keeps in layers with the gated delta rule: states in float32, and inputs of the convolution."""
    inputs = (config.delta_taps - 1) * config.delta_key_heads * config.delta_channels * jnp.dtype(dtype).itemsize
    return len(config.delta_layers) * (4 * config.delta_state_size + inputs)


def column_buckets(longest: int, *, count: int, multiple: int) -> tuple[int, ...]:
    """The numbers of columns a cache may have, rising: `longest`, and about 0.7 of the next, rounded up.

    >>> column_buckets(192, count=3, multiple=8)
    (96, 136, 192)
    """
    buckets = {-(-longest // multiple) * multiple}
    for i in range(1, count):
        buckets.add(-(-max(1, round(longest * 0.5 ** (i / 2))) // multiple) * multiple)
    return tuple(sorted(buckets))


def column_ages(clock: Int[Array, ""], columns: int) -> Int[Array, " columns"]:
    """Steps since each column was written, 0 for the one that `clock` points to."""
    return (clock - jnp.arange(columns)) % columns


def write_column(
    cache: Array,
    update: Array,
    column: Int[Array, ""],
    *,
    axis: int,
    layer: Any = None,
    only: Bool[Array, " slots"] | None = None,
) -> Array:
    """Writes the keys [slots, kv_heads, head_dim] (or values) of one step.

    Args:
      layer: which one of a stacked cache.
      only: the slots that are written. None: all, which is cheaper.
    """
    update = jnp.expand_dims(update.astype(cache.dtype), axis)
    start = [0] * update.ndim
    start[axis] = column  # type: ignore[call-overload]
    if layer is not None:
        update, start = update[None], [layer, *start]
    if only is not None:
        old = jax.lax.dynamic_slice(cache, start, update.shape)
        update = jnp.where(jnp.expand_dims(only, _other_axes(update)), update, old)
    return _as_it_lies(jax.lax.dynamic_update_slice(cache, update, start))


def _other_axes(x: Any) -> tuple[int, ...]:
    """All but that of the slots."""
    return tuple(axis for axis in range(x.ndim) if axis != x.ndim + SLOTS)


def _as_it_lies(cache: Array) -> Array:
    """Keeps the compiler for TPUs from laying the cache out anew for the sake of the column that is written.

    Left alone, it gives the cache the order of axes that suits the write: [layer, columns, heads, slots, head_dim].
    Then the whole cache is copied before and after the loop of steps, and each layer once more for attention.
    """
    if platform() != "tpu":
        return cache
    layout = Layout(tuple(range(cache.ndim)))

    def constrained(cache: Array) -> Array:
        return with_layout_constraint(cache, layout)

    if jax.sharding.get_abstract_mesh().empty:
        return constrained(cache)
    spec = partition_spec(logical_axes(cache))  # the compiler does not know how to divide this constraint itself
    return jax.shard_map(constrained, in_specs=spec, out_specs=spec)(cache)


def resize_cache(
    cache: Cache, clock: Int[Array, ""], rows: Int[Array, " slots"] | None = None, *, columns: int
) -> Cache:
    """Moves slot `rows[i]` to slot i (by default all stay) and makes the ring one of another size.

    A ring that grows gets its new columns at the clock, before the oldest ones, and the clock goes on from where it
    is. One that shrinks is unrolled, the newest column last, and the clock goes on from 0: the caller makes sure that
    no slot it still needs holds more tokens than that.

    On a mesh slots stay on their devices: `rows` counts from the first slot of the device that slot i lies on.
    """

    def move(x: Array, clock: Array, rows: Array | None, axis: int) -> Array:
        if x.ndim > -SLOTS:  # one layer at a time: what is computed on the way is as large as what comes in
            return jax.lax.map(lambda x: move(x, clock, rows, axis), x)
        old = x.shape[axis]
        if rows is not None:
            x = jnp.take(x, rows, axis=SLOTS)
        if columns < old:
            return jnp.take(x, (clock - columns + jnp.arange(columns)) % old, axis=axis)
        if columns == old:
            return x
        shape, before, behind = [1] * x.ndim, [(0, 0)] * x.ndim, [(0, 0)] * x.ndim
        shape[axis], before[axis], behind[axis] = columns, (columns - old, 0), (0, columns - old)
        is_newer = (jnp.arange(columns) < clock).reshape(shape)
        return jnp.where(is_newer, jnp.pad(x, behind), jnp.pad(x, before))

    def here(cache: Cache, clock: Array, rows: Array | None) -> Cache:
        deltas = cache.deltas
        if rows is not None:
            deltas = jax.tree.map(lambda x: jnp.take(x, rows, axis=SLOTS), deltas)
        return Cache(
            tuple(move(x, clock, rows, KEY_COLUMNS) for x in cache.keys),
            tuple(move(x, clock, rows, VALUE_COLUMNS) for x in cache.values),
            deltas,
        )

    if jax.sharding.get_abstract_mesh().empty:
        return here(cache, clock, rows)
    specs = _partition_specs(cache)
    in_specs = (specs, partition_spec(()), partition_spec(("batch",)))
    return jax.shard_map(here, in_specs=in_specs, out_specs=specs)(cache, clock, rows)


def turn_slots(cache: Cache, by: Int[Array, " slots"]) -> Cache:
    """Turns the ring of each slot by itself: column j is then what column (j + `by`) mod columns was.

    One slot after the other, so that a donated cache is changed in place.
    """

    def turn(x: Array, by: Array, axis: int) -> Array:
        columns = x.shape[axis]

        def one(i: Array, x: Array) -> Array:
            row = jax.lax.dynamic_slice_in_dim(x, i, 1, axis=x.ndim + SLOTS)
            twice = jnp.concatenate([row, row], axis=axis)
            row = jax.lax.dynamic_slice_in_dim(twice, by[i] % columns, columns, axis=x.ndim + axis)
            return jax.lax.dynamic_update_slice_in_dim(x, row, i, axis=x.ndim + SLOTS)

        return jax.lax.fori_loop(0, len(by), one, x)

    def here(cache: Cache, by: Array) -> Cache:
        keys = tuple(turn(x, by, KEY_COLUMNS) for x in cache.keys)
        return Cache(keys, tuple(turn(x, by, VALUE_COLUMNS) for x in cache.values), cache.deltas)

    if jax.sharding.get_abstract_mesh().empty:
        return here(cache, by)
    specs = _partition_specs(cache)
    return jax.shard_map(here, in_specs=(specs, partition_spec(("batch",))), out_specs=specs)(cache, by)


def insert_prompts(
    cache: Cache,
    prompts: Cache,
    clock: Int[Array, ""],
    slots: Int[Array, " n"],
    sources: Int[Array, " n"],
    count: Int[Array, ""],
) -> Cache:
    """Copies row `sources[i]` of the prefilled prompts to slot `slots[i]`, for i < `count`.

    Prompts are aligned at their last token, which goes to the column just behind the clock. What lies before the
    first token of a short prompt is copied too: it is older than what the slot attends to.
    """

    def copy(x: Array, new: Array, axis: int) -> Array:
        columns, width = x.shape[axis], new.shape[axis]
        back = (clock - 1 - jnp.arange(columns)) % columns  # 0 for the column just behind the clock
        source_column = jnp.maximum(width - 1 - back, 0)
        shape = [1] * x.ndim
        shape[axis] = columns
        is_prompt = (back < width).reshape(shape)

        def one(i: Array, x: Array) -> Array:
            old = jax.lax.dynamic_slice_in_dim(x, slots[i], 1, axis=x.ndim + SLOTS)
            row = jax.lax.dynamic_slice_in_dim(new, sources[i], 1, axis=x.ndim + SLOTS)
            row = jnp.where(is_prompt, jnp.take(row, source_column, axis=axis).astype(x.dtype), old)
            return jax.lax.dynamic_update_slice_in_dim(x, row, slots[i], axis=x.ndim + SLOTS)

        return jax.lax.fori_loop(0, count, one, x)

    def copy_state(x: Array, new: Array) -> Array:
        def one(i: Array, x: Array) -> Array:
            row = jax.lax.dynamic_slice_in_dim(new, sources[i], 1, axis=x.ndim + SLOTS)
            return jax.lax.dynamic_update_slice_in_dim(x, row.astype(x.dtype), slots[i], axis=x.ndim + SLOTS)

        return jax.lax.fori_loop(0, count, one, x)

    keys = tuple(copy(x, new, KEY_COLUMNS) for x, new in zip(cache.keys, prompts.keys, strict=True))
    values = tuple(copy(x, new, VALUE_COLUMNS) for x, new in zip(cache.values, prompts.values, strict=True))
    return Cache(keys, values, jax.tree.map(copy_state, cache.deltas, prompts.deltas))


def insert_prompts_everywhere(
    cache: Cache,
    prompts: Cache,
    clock: Int[Array, ""],
    is_new: Bool[Array, " slots"],
    sources: Int[Array, " slots"],
) -> Cache:
    """`insert_prompts` on a mesh: every device gets all the prompts and fills the slots that lie on it."""

    def here(cache: Cache, prompts: Cache, clock: Array, is_new: Array, sources: Array) -> Cache:
        slots = jnp.argsort(~is_new)  # the new ones first
        return insert_prompts(cache, prompts, clock, slots, sources[slots], jnp.sum(is_new))

    specs, each_slot = _partition_specs(cache), partition_spec(("batch",))
    in_specs = (specs, _partition_specs(prompts, slots=None), partition_spec(()), each_slot, each_slot)
    return jax.shard_map(here, in_specs=in_specs, out_specs=specs)(cache, prompts, clock, is_new, sources)
