"""Attention within segments, causal, grouped-query: three implementations of one function.

- `xla`: matrix products and a softmax; everywhere. Holds most of the scores, [batch, heads, time, time].
- `cudnn`: the fused kernel of NVIDIA's library, through `jax.nn.dot_product_attention`; bfloat16 on GPUs.
- `splash`: the Pallas kernel of JAX for TPUs; skips the blocks above the diagonal and never holds the scores.

Training and scoring use this; decoding against a cache is the sampler's own.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.sharding import GPU, partition_spec, platform

Implementation = Literal["auto", "xla", "cudnn", "splash"]
Attention = Callable[[Array, Array, Array], Array]

_SPLASH_BLOCK = 128  # the kernel's tiles: time must be a multiple
_EXCLUDED = -1e30  # finite, because -inf - -inf is NaN
_MOST_BLOCKS, _SMALLEST_BLOCK = 3, 64  # of queries; more blocks save little and take longer to compile


def choose(implementation: Implementation, *, platform: str, dtype: str, head_dim: int, time: int) -> str:
    """The implementation that "auto" stands for; another one is returned as it is, where the shapes allow it.

    Raises:
      ValueError: the implementation asked for by name cannot compute these shapes.
    """
    cudnn_fits = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128
    splash_fits = time % _SPLASH_BLOCK == 0 and head_dim % 64 == 0
    if implementation == "splash" and not splash_fits:
        raise ValueError(
            f"--model.attention splash needs rows of a multiple of {_SPLASH_BLOCK} tokens and head_dim a multiple of "
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
) -> Attention:
    """A function of query [batch, time, heads, head_dim], key and value [batch, time, kv_heads, head_dim].

    It returns [batch, time, heads, head_dim]: each token attends to itself and to what precedes it in its segment.

    Args:
      segment_ids: of each token, 0 for padding.
      prefix_ids: of each token, the segment that it attends to as well, such as the prompt of its response; its own
        where there is none. None: of no token is there one.
    """
    time = segment_ids.shape[1]
    chosen = choose(implementation, platform=platform(), dtype=dtype, head_dim=head_dim, time=time)
    if chosen == "splash":
        return functools.partial(_splash, segment_ids=segment_ids, prefix_ids=prefix_ids)
    mask = segment_mask(segment_ids, prefix_ids)
    if chosen == "cudnn":
        return functools.partial(jax.nn.dot_product_attention, mask=mask, implementation="cudnn")
    return functools.partial(_xla, mask=mask)


def segment_mask(
    segment_ids: Int[Array, "batch time"], prefix_ids: Int[Array, "batch time"] | None = None
) -> Bool[Array, "batch 1 time time"]:
    """True where the second token is seen by the first: the same segment or its prefix, and not later."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    if prefix_ids is not None:
        same |= prefix_ids[:, :, None] == segment_ids[:, None, :]
    return (same & jnp.tri(segment_ids.shape[1], dtype=bool)[None])[:, None]


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
    taken in up to three blocks, each against the keys up to its end: two thirds of the work and of the scores.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    query = (query * head_dim**-0.5).reshape(batch, time, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)

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

    count = max(1, min(_MOST_BLOCKS, time // _SMALLEST_BLOCK))
    edges = [round(i * time / count) for i in range(count + 1)]
    attended = jnp.concatenate([block(*edge) for edge in itertools.pairwise(edges)], axis=3)
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim)


def _splash(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
    *,
    segment_ids: Int[Array, "batch time"],
    prefix_ids: Int[Array, "batch time"] | None,
) -> Float[Array, "batch time heads head_dim"]:
    """The same, by the Pallas kernel; on a mesh each device runs it on its own rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    ids = (segment_ids,) if prefix_ids is None else (segment_ids, prefix_ids)
    if mesh.empty:
        return _splash_local(query, key, value, *ids)
    heads, kv_heads = (partition_spec(("batch", "time", name, "head_dim")) for name in ("heads", "kv_heads"))
    return jax.shard_map(
        _splash_local,
        in_specs=(heads, kv_heads, kv_heads, *(partition_spec(("batch", "time")) for _ in ids)),
        out_specs=heads,
        check_vma=False,  # the kernel does not say how its outputs vary over the mesh
    )(query, key, value, *ids)


def _splash_local(query: Array, key: Array, value: Array, segment_ids: Array, prefix_ids: Array | None = None) -> Array:
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    block = next(size for size in (512, 256, 128) if time % size == 0)
    query = (query * head_dim**-0.5).reshape(batch, time, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)

    def kernel(mask: splash_attention_mask.MultiHeadMask | Array) -> Any:
        made = splash_attention_kernel.make_splash_mqa_single_device(
            mask,
            block_sizes=splash_attention_kernel.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            interpret=platform() != "tpu",  # elsewhere only its numbers are of interest
        )
        if (
            made.fwd_mask_info.is_dynamic_mask is not None
        ):  # made a traced array inside jit, and then asked for its truth
            for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
                setattr(made, name, getattr(made, name)._replace(is_dynamic_mask=True))
        return made

    def row(parts: tuple[Array, Array, Array, Array]) -> Array:
        """Of one row: equal segments below the diagonal."""
        query, key, value, segments = parts
        causal = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((time, time))] * group)
        ids = splash_attention_kernel.SegmentIds(q=segments, kv=segments)
        return jax.vmap(functools.partial(kernel(causal), segment_ids=ids))(query, key, value)

    def row_with_prefixes(parts: tuple[Array, Array, Array, Array]) -> Array:
        """By a mask in memory, of which the kernel skips the empty blocks: equality cannot say that two are seen."""
        query, key, value, mask = parts
        return jax.vmap(kernel(jnp.broadcast_to(mask, (group, time, time))))(query, key, value)

    if prefix_ids is None:
        attended = jax.vmap(row)((query, key, value, segment_ids))  # [batch, kv_heads, group, time, head_dim]
    else:
        mask = segment_mask(segment_ids, prefix_ids)
        attended = jax.lax.map(row_with_prefixes, (query, key, value, mask))
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim).astype(value.dtype)
