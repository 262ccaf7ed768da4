"""Attention over the ring that reads what slots hold, as kernels for TPUs and for NVIDIA's GPUs.

On TPUs the columns are cut into blocks. A list of work is made of the blocks that any slot holds, slot by slot and
newest first; the kernel goes through that list, so its length, not the size of the ring, decides what is read. List,
clock and layer are known before the kernel starts (`PrefetchScalarGridSpec`), and a block is on its way while another
is computed with. A stacked cache is handed over whole, with the number of the layer: one layer taken out of it would be
a copy of all its columns. On GPUs, where each layer has arrays of its own, a program for each slot and key head goes
back from the clock as far as the slot holds.
"""

import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

_BLOCKS = (256, 128)
"""Columns of a block, the largest that divides the ring first."""
GPU_BLOCK = 64
"""The same on GPUs: keys and values of two blocks fit into the shared memory of any."""
_MASKED = -1e30  # finite, as in `cache_attention`


def block_columns(columns: int) -> int | None:
    """Columns that are read at a time; None where no block divides them."""
    return next((block for block in _BLOCKS if columns % block == 0), None)


def held_blocks(positions: Int[Array, " slots"], clock: Int[Array, ""], columns: int, block: int) -> Array:
    """How many blocks, from that of the clock backwards, hold the columns of age 0 to `positions`."""
    column = clock % columns
    return jnp.minimum(column // block - (column - positions) // block + 1, columns // block)


def work_list(
    positions: Int[Array, " slots"], clock: Int[Array, ""], columns: int, block: int
) -> tuple[Array, Array, Array, Array]:
    """(slot, block) of each piece of work, whether it is the slot's first (1) or last (2), or both (3); how many.

    The three lists have room for all blocks of all slots.
    """
    slots, blocks = positions.shape[0], columns // block
    held = held_blocks(positions, clock, columns, block)
    ends = jnp.cumsum(held)
    places = jnp.arange(slots * blocks)
    slot = jnp.minimum(jnp.sum(ends[None] <= places[:, None], axis=1), slots - 1)
    back = places - (ends - held)[slot]
    edges = (back == 0).astype(jnp.int32) + 2 * (back == held[slot] - 1).astype(jnp.int32)
    newest = clock % columns // block
    return slot.astype(jnp.int32), ((newest - back) % blocks).astype(jnp.int32), edges, ends[-1]


def attend_held(
    query: Float[Array, "slots heads head_dim"],
    keys: Float[Array, "*layers slots kv_heads head_dim columns"],
    values: Float[Array, "*layers slots kv_heads columns head_dim"],
    positions: Int[Array, " slots"],
    clock: Int[Array, ""],
    layer: Any = None,
    *,
    block: int,
    interpret: bool = False,
) -> Float[Array, "slots heads head_dim"]:
    """`cache_attention.attend_ring` on one device.

    Args:
      layer: which one of a stacked cache.
      block: columns of a block; it divides the ring.
      interpret: compute the kernel's steps with ordinary operations, on any platform.
    """
    slots, heads, dim = query.shape
    if layer is None:
        keys, values, layer = keys[None], values[None], 0
    kv_heads, columns = keys.shape[-3], keys.shape[-1]
    group = heads // kv_heads
    grouped = (query * dim**-0.5).reshape(slots, kv_heads, group, dim)
    slot_of, block_of, edges, count = work_list(positions, clock, columns, block)
    scalars = jnp.stack([clock % columns, jnp.asarray(layer, jnp.int32)]).astype(jnp.int32)
    own = pl.BlockSpec((None, kv_heads, group, dim), lambda i, slot, *_: (slot[i], 0, 0, 0))
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=5,
        grid=(count,),
        in_specs=[
            own,
            pl.BlockSpec(
                (None, None, kv_heads, dim, block),
                lambda i, slot, part, edges, positions, now: (now[1], slot[i], 0, 0, part[i]),
            ),
            pl.BlockSpec(
                (None, None, kv_heads, block, dim),
                lambda i, slot, part, edges, positions, now: (now[1], slot[i], 0, part[i], 0),
            ),
        ],
        out_specs=own,
        scratch_shapes=[
            pltpu.VMEM((kv_heads, group, 1), jnp.float32),
            pltpu.VMEM((kv_heads, group, 1), jnp.float32),
            pltpu.VMEM((kv_heads, group, dim), jnp.float32),
        ],
    )
    attended = pl.pallas_call(
        functools.partial(_one_block, columns=columns, block=block),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, query.dtype),
        grid_spec=spec,
        interpret=interpret,
        name="attend_held",
    )(slot_of, block_of, edges, positions.astype(jnp.int32), scalars, grouped, keys, values)
    return attended.reshape(slots, heads, dim)


def _one_block(
    slot_of: Any,
    block_of: Any,
    edges: Any,
    positions: Any,
    scalars: Any,
    query: Any,
    keys: Any,
    values: Any,
    out: Any,
    top: Any,
    total: Any,
    attended: Any,
    *,
    columns: int,
    block: int,
) -> None:
    """One piece of work: the softmax goes on with a running maximum and sum, as in `attend_in_chunks`."""
    i = pl.program_id(0)

    @pl.when(edges[i] % 2 == 1)
    def _() -> None:
        top[...] = jnp.full(top.shape, _MASKED, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        attended[...] = jnp.zeros(attended.shape, jnp.float32)

    column = block_of[i] * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
    age = scalars[0] - column
    age = jnp.where(age < 0, age + columns, age)
    is_held = age <= positions[slot_of[i]]
    for head in range(query.shape[0]):  # unrolled: a few
        key, value = keys[head].astype(query.dtype), values[head].astype(query.dtype)
        scores = jnp.dot(query[head], key, preferred_element_type=jnp.float32)
        scores = jnp.where(is_held, scores, _MASKED)
        new_top = jnp.maximum(top[head], jnp.max(scores, axis=-1, keepdims=True))
        shares, kept = jnp.exp(scores - new_top), jnp.exp(top[head] - new_top)
        added = jnp.dot(shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
        top[head] = new_top
        total[head] = total[head] * kept + jnp.sum(shares, axis=-1, keepdims=True)
        attended[head] = attended[head] * kept + added

    @pl.when(edges[i] >= 2)
    def _() -> None:
        out[...] = (attended[...] / total[...]).astype(out.dtype)


def attend_held_on_gpu(
    query: Float[Array, "slots heads head_dim"],
    keys: Float[Array, "slots kv_heads head_dim columns"],
    values: Float[Array, "slots kv_heads columns head_dim"],
    positions: Int[Array, " slots"],
    clock: Int[Array, ""],
    *,
    block: int = GPU_BLOCK,
    interpret: bool = False,
) -> Float[Array, "slots heads head_dim"]:
    """The same in Triton, on one device.

    Args:
      block: columns of a block, a power of two that divides the ring.
      interpret: as for `attend_held`.
    """
    slots, heads, dim = query.shape
    kv_heads, columns = keys.shape[-3], keys.shape[-1]
    group = heads // kv_heads
    rows = max(16, 1 << (group - 1).bit_length())  # a product of fewer rows is refused
    grouped = (query * dim**-0.5).reshape(slots, kv_heads, group, dim)
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, rows - group), (0, 0)))
    held = held_blocks(positions, clock, columns, block)
    numbers = jnp.stack([positions, held, jnp.broadcast_to(clock % columns, held.shape)]).astype(jnp.int32)

    def of_slot(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda slot, head: (slot, head, 0, 0))

    attended = pl.pallas_call(
        functools.partial(_one_slot, columns=columns, block=block),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, query.dtype),
        grid=(slots, kv_heads),
        in_specs=[
            pl.BlockSpec((3, None), lambda slot, head: (0, slot)),
            of_slot(rows, dim),
            of_slot(dim, columns),
            of_slot(columns, dim),
        ],
        out_specs=of_slot(rows, dim),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="attend_held",
    )(numbers, grouped, keys, values)
    return attended[:, :, :group].reshape(slots, heads, dim)


def _one_slot(numbers: Any, query: Any, keys: Any, values: Any, out: Any, *, columns: int, block: int) -> None:
    """All blocks of one slot and key head, newest first."""
    position, held, column = numbers[0], numbers[1], numbers[2]
    own = query[...]
    rows, dim = own.shape

    def one_block(back: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, attended = state
        first = (column // block - back + columns // block) % (columns // block) * block
        key = keys[:, pl.ds(first, block)].astype(own.dtype)
        value = values[pl.ds(first, block), :].astype(own.dtype)
        age = column - first - jnp.arange(block, dtype=jnp.int32)
        age = jnp.where(age < 0, age + columns, age)
        scores = jnp.where((age <= position)[None, :], triton.dot(own, key), _MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        shares, kept = jnp.exp(scores - new_top[:, None]), jnp.exp(top - new_top)
        attended = attended * kept[:, None] + triton.dot(shares.astype(value.dtype), value)
        return new_top, total * kept + jnp.sum(shares, axis=1), attended

    start = (
        jnp.full((rows,), _MASKED, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, dim), jnp.float32),
    )
    _, total, attended = jax.lax.fori_loop(0, held, one_block, start)
    out[...] = (attended / total[:, None]).astype(out.dtype)


def suits_gpu(query: Any, keys: Any) -> bool:
    """Whether the kernel computes these shapes: 16 bits, a head of 2^n, a ring of whole blocks, 32-bit offsets."""
    dim, columns = keys.shape[-2:]
    is_short = query.dtype.itemsize == 2 and keys.dtype == query.dtype
    return is_short and dim >= 16 and dim & (dim - 1) == 0 and columns % GPU_BLOCK == 0 and keys.size < 2**31


@functools.cache
def runs_on_this_gpu(heads: int, kv_heads: int, dim: int, dtype: str) -> bool:
    """Whether the kernel compiles for this process's GPU and gives there what it should; asked once.

    In a thread of its own: whoever asks is tracing a program, maybe for a mesh, and this is to be computed.
    """

    def tried() -> bool:
        slots, columns = 4, 4 * GPU_BLOCK
        noise = np.random.default_rng(0)
        shapes = (slots, heads, dim), (slots, kv_heads, dim, columns), (slots, kv_heads, columns, dim)
        query, keys, values = (jnp.asarray(noise.normal(size=shape), dtype) for shape in shapes)
        positions, clock = jnp.asarray([0, 63, 100, columns - 1], jnp.int32), jnp.int32(70)
        got = jax.jit(attend_held_on_gpu)(query, keys, values, positions, clock)
        want = jax.jit(functools.partial(attend_held_on_gpu, interpret=True))(query, keys, values, positions, clock)
        return bool(jnp.allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=0.05))

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(tried).result()
        except Exception:  # a compiler says no in many ways; all columns are read then
            return False
