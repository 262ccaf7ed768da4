"""Attention within segments, causal, grouped-query: three implementations of one function.

- `xla`: matrix products and a softmax; everywhere. Holds most of the scores, [batch, heads, time, time].
- `cudnn`: the fused kernel of NVIDIA's library, through `jax.nn.dot_product_attention`; bfloat16 on GPUs.
- `splash`: the Pallas kernel of JAX for TPUs; skips the blocks above the diagonal and never holds the scores.

Each has a sliding window where one is wanted: in its mask, or in the blocks that the kernel skips.

Training and scoring use this; decoding against a cache is the sampler's own.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.models.visible_blocks import attend_visible
from sspo_jax.sharding import GPU, constrain, is_one_cpu, part_of, partition_spec, platform, shards

Implementation = Literal["auto", "xla", "cudnn", "splash"]
Attention = Callable[..., Array]

_SPLASH_BLOCK = 128  # the kernel's tiles: time must be a multiple
_EXCLUDED = -1e30  # finite, because -inf - -inf is NaN
_VISIBLE_FROM, _VISIBLE_BLOCK = 256, 64  # on one CPU rows so long are computed in such blocks, where one sees another
_MOST_BLOCKS, _SMALLEST_BLOCK = 3, 64  # of queries; more blocks save little and take longer to compile


def choose(
    implementation: Implementation, *, platform: str, dtype: str, head_dim: int, time: int, time_shards: int = 1
) -> str:
    """The implementation that "auto" stands for; another one is returned as it is, where the shapes allow it.

    Args:
      time: of a row.
      time_shards: devices that cut it between them.

    Raises:
      ValueError: the implementation asked for by name cannot compute these shapes.
    """
    cudnn_fits = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128
    multiple = _SPLASH_BLOCK * time_shards
    splash_fits = time % multiple == 0 and head_dim % 64 == 0
    if implementation == "splash" and not splash_fits:
        raise ValueError(
            f"--model.attention splash needs rows of a multiple of {multiple} tokens and head_dim a multiple of "
            f"64, got {time} and {head_dim}: choose such rows (--update.row-tokens), or auto"
        )
    if implementation == "cudnn" and not (cudnn_fits and platform in GPU):
        raise ValueError(
            "--model.attention cudnn needs an NVIDIA GPU, bfloat16 and head_dim a multiple of 8 up to 128, got "
            f"{platform}, {dtype} and {head_dim}: choose auto"
        )
    if implementation != "auto":
        return implementation
    if platform == "tpu" and splash_fits:
        return "splash"
    if platform in GPU and cudnn_fits:
        return "cudnn"
    return "xla"


def make_attention(
    segment_ids: Int[Array, "batch time"],
    prefix_ids: Int[Array, "batch time"] | None = None,
    *,
    implementation: Implementation,
    dtype: str,
    head_dim: int,
    positions: Int[Array, "batch time"] | None = None,
    window: int = 0,
) -> Attention:
    """A function of query [batch, time, heads, head_dim], key and value [batch, time, kv_heads, head_dim].

    It returns [batch, time, heads, head_dim]: each token attends to itself and to what precedes it in its segment. A
    fourth argument, false by default, says whether it attends to no more than a window of that: a bool, or an array,
    which may differ between the layers of a loop.

    Args:
      segment_ids: of each token, 0 for padding.
      prefix_ids: of each token, the segment that it attends to as well, such as the prompt of its response; its own
        where there is none. None: of no token is there one.
      positions: of each token in its sequence, rising by one along a segment; a segment's go on from those of its
        prefix. None: the places in the row, which do where there are no prefixes.
      window: tokens that a token attends to at most, itself among them; 0: there is none.
    """
    time, parts = segment_ids.shape[1], shards("time")
    chosen = choose(implementation, platform=platform(), dtype=dtype, head_dim=head_dim, time=time, time_shards=parts)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(time)[None], segment_ids.shape)
    if window >= time:  # all of the row is inside
        window = 0
    if chosen == "splash":
        ids = (segment_ids,) if prefix_ids is None else (segment_ids, prefix_ids, positions)
        every, near = (functools.partial(_splash, ids=ids, window=size) for size in (0, window))
        return functools.partial(_either, every, near if window else every)
    mask = constrain(segment_mask(segment_ids, prefix_ids), "batch", None, "time", None)
    near_mask = mask
    if window:
        near_mask = constrain(mask & _near(positions, positions, window), "batch", None, "time", None)
    attend = _xla
    if is_one_cpu() and time >= _VISIBLE_FROM:
        attend = functools.partial(attend_visible, block=_VISIBLE_BLOCK)
    if chosen == "cudnn":
        attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        attend = attend if parts == 1 else functools.partial(_on_own_queries, attend)
    return functools.partial(_masked, attend, mask, near_mask)


def _masked(
    attend: Any, mask: Array, near_mask: Array, query: Array, key: Array, value: Array, slides: Array | bool = False
) -> Array:
    """By the mask for layers with the window or by that for the others."""
    if isinstance(slides, bool):
        chosen = near_mask if slides else mask
    else:
        chosen = mask if near_mask is mask else jnp.where(slides, near_mask, mask)
    return attend(query, key, value, mask=chosen)


def _either(
    every: Attention, near: Attention, query: Array, key: Array, value: Array, slides: Array | bool = False
) -> Array:
    """By the kernel for layers with the window or by that for the others."""
    if isinstance(slides, bool) or near is every:
        return (near if slides is True else every)(query, key, value)
    return jax.lax.cond(slides, near, every, query, key, value)


def _on_own_queries(fused: Any, query: Array, key: Array, value: Array, *, mask: Array) -> Array:
    """A kernel on each device's part of the queries, with the keys and values of the whole row."""
    heads = partition_spec(("batch", "time", "heads", "head_dim"))
    whole = partition_spec(("batch", None, "kv_heads", "head_dim"))
    return jax.shard_map(
        lambda query, key, value, mask: fused(query, key, value, mask=mask),
        in_specs=(heads, whole, whole, partition_spec(("batch", None, "time", None))),
        out_specs=heads,
        check_vma=False,
    )(query, key, value, mask)


def segment_mask(
    segment_ids: Int[Array, "batch time"], prefix_ids: Int[Array, "batch time"] | None = None
) -> Bool[Array, "batch 1 time time"]:
    """True where the second token is seen by the first: the same segment or its prefix, and not later."""
    return _seen(segment_ids, segment_ids, prefix_ids, 0)


def _seen(
    own_ids: Int[Array, "batch own"],
    segment_ids: Int[Array, "batch time"],
    prefix_ids: Int[Array, "batch own"] | None,
    start: Array | int,
) -> Bool[Array, "batch 1 own time"]:
    """`segment_mask` of the queries from `start` on, of which the segments and prefixes are given."""
    same = own_ids[:, :, None] == segment_ids[:, None, :]
    if prefix_ids is not None:
        same |= prefix_ids[:, :, None] == segment_ids[:, None, :]
    is_earlier = jnp.arange(segment_ids.shape[1])[None, :] <= start + jnp.arange(own_ids.shape[1])[:, None]
    return (same & is_earlier[None])[:, None]


def _near(
    own_positions: Int[Array, "batch own"], positions: Int[Array, "batch time"], window: int
) -> Bool[Array, "batch 1 own time"]:
    """Whether the second token is less than the window before the first."""
    return (own_positions[:, None, :, None] - positions[:, None, None, :]) < window


def _xla(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
    *,
    mask: Bool[Array, "batch 1 time time"],
) -> Float[Array, "batch time heads head_dim"]:
    """softmax(q k / sqrt(head_dim)) v, scores in float32.

    The query heads of a group are stacked along time: one large product per key head, where
    `jax.nn.dot_product_attention` has many small ones (twice as slow forward and backward on a CPU). Queries are
    taken in up to three blocks, each against the keys up to its end: two thirds of the work and of the scores. Where
    the row is cut between devices each takes its own queries as one block.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    query = (query * head_dim**-0.5).reshape(batch, time, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = (constrain(x, "batch", None, "kv_heads", None).transpose(0, 2, 1, 3) for x in (key, value))

    def block(start: int, end: int) -> Array:
        seen = slice(0, end)  # what comes later is masked for all of these queries
        queries = query[:, :, :, start:end].reshape(batch, kv_heads, group * (end - start), head_dim)
        scores = jnp.einsum("bgqd,bgkd->bgqk", queries, key[:, :, seen], preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, kv_heads, group, end - start, end)
        scores = jnp.where(mask[:, :, None, start:end, seen], scores, _EXCLUDED)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = weights.reshape(batch, kv_heads, group * (end - start), end)
        attended = jnp.einsum("bgqk,bgkd->bgqd", weights, value[:, :, seen])
        return attended.reshape(batch, kv_heads, group, end - start, head_dim)

    count = max(1, min(_MOST_BLOCKS, time // _SMALLEST_BLOCK)) if shards("time") == 1 else 1
    edges = [round(i * time / count) for i in range(count + 1)]
    attended = jnp.concatenate([block(*edge) for edge in itertools.pairwise(edges)], axis=3)
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim)


def _splash(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
    *,
    ids: tuple[Int[Array, "batch time"], ...],
    window: int,
) -> Float[Array, "batch time heads head_dim"]:
    """The same, by the Pallas kernel; on a mesh each device runs it on its own rows, heads and queries.

    Args:
      ids: segments; where there are prefixes, these and the positions as well.
      window: 0: all that precedes.
    """
    mesh, parts = jax.sharding.get_abstract_mesh(), shards("time")
    time, group = query.shape[1], query.shape[2] // key.shape[2]
    causal = _causal_kernel(time, group, parts, window) if len(ids) == 1 else None
    whole_ids = ids[::2]
    attend = functools.partial(_splash_local, window=window)
    if mesh.empty:
        return attend(query, key, value, whole_ids, ids, causal)
    heads = partition_spec(("batch", "time", "heads", "head_dim"))
    whole = partition_spec(("batch", None, "kv_heads", "head_dim"))
    rows, own = partition_spec(("batch", None)), partition_spec(("batch", "time"))
    own_queries = NamedSharding(mesh, partition_spec((None, "time")))
    return jax.shard_map(
        attend,
        in_specs=(
            *(heads, whole, whole, (rows,) * len(whole_ids), (own,) * len(ids)),
            None if causal is None else causal.manual_sharding_spec(own_queries),
        ),
        out_specs=heads,
        check_vma=False,  # the kernel does not say how its outputs vary over the mesh
    )(query, key, value, whole_ids, ids, causal)


def _kernel(mask: splash_attention_mask.MultiHeadMask | Array, *, queries: int, keys: int, parts: int = 1) -> Any:
    """Of the query heads of one key head.

    Args:
      queries, keys: of a device.
      parts: devices that the queries are cut between; the mask is for all of them.
    """
    block_q, block_kv = (next(size for size in (512, 256, 128) if time % size == 0) for time in (queries, keys))
    made = splash_attention_kernel.make_splash_mqa(
        mask,
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=parts,
        interpret=platform() != "tpu",  # elsewhere only its numbers are of interest
    )
    if made.fwd_mask_info.is_dynamic_mask is not None:  # made a traced array inside jit, and then asked for its truth
        for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
            setattr(made, name, getattr(made, name)._replace(is_dynamic_mask=True))
    return made


def _causal_kernel(time: int, group: int, parts: int, window: int) -> Any:
    mask = splash_attention_mask.CausalMask((time, time))
    if window:  # a token and window - 1 before it, none after it
        mask = splash_attention_mask.LocalMask((time, time), window_size=(window - 1, 0), offset=0)
    heads = splash_attention_mask.MultiHeadMask([mask] * group)
    return _kernel(heads, queries=time // parts, keys=time, parts=parts)


def _splash_local(
    query: Array,
    key: Array,
    value: Array,
    whole_ids: tuple[Array, ...],
    own_ids: tuple[Array, ...],
    causal: Any,
    *,
    window: int,
) -> Array:
    """On one device.

    Args:
      query: of its part of the row; keys and values are of all of it.
      whole_ids: segments of the row, and where there are prefixes its positions.
      own_ids: segments of the queries, and where there are any their prefixes and positions.
      causal: the kernel where there are none.
    """
    batch, own, heads, head_dim = query.shape
    time, kv_heads = key.shape[1:3]
    group = heads // kv_heads
    query = (query * head_dim**-0.5).reshape(batch, own, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)

    def row(parts: tuple[Array, Array, Array, Array, Array]) -> Array:
        """Of one row: equal segments below the diagonal."""
        query, key, value, own_segments, segments = parts
        ids = splash_attention_kernel.SegmentIds(q=own_segments, kv=segments)
        return jax.vmap(functools.partial(causal, segment_ids=ids))(query, key, value)

    def row_with_prefixes(parts: tuple[Array, Array, Array, Array]) -> Array:
        """By a mask in memory, of which the kernel skips the empty blocks: equality cannot say that two are seen."""
        query, key, value, mask = parts
        kernel = _kernel(jnp.broadcast_to(mask, (group, own, time)), queries=own, keys=time)
        return jax.vmap(kernel)(query, key, value)

    if causal is not None:
        # [batch, kv_heads, group, time, head_dim]
        attended = jax.vmap(row)((query, key, value, own_ids[0], whole_ids[0]))
    else:
        mask = _seen(own_ids[0], whole_ids[0], own_ids[1], part_of("time") * own)
        if window:
            mask &= _near(own_ids[2], whole_ids[1], window)
        attended = jax.lax.map(row_with_prefixes, (query, key, value, mask[:, 0]))
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, own, heads, head_dim).astype(value.dtype)
