"""Attention on a CPU over the pairs of blocks of a row that see each other, and over no others.

In a row of packed responses, or of one prompt and its responses, most tokens do not see each other: with eight
responses of 128 tokens to a prompt of 64, a ninth of the square does. The pairs of blocks with anything to see are
listed when the program runs, and a loop goes through the list: its length, not the row's, decides what is computed. The
softmax goes on with a running maximum and sum; the backward pass goes through the list again (Dao et al.,
arXiv:2205.14135).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_EXCLUDED = -1e30  # finite, because -inf - -inf is NaN
# Scores are [kv_heads, keys, group, queries], and what has a row for each query comes with its features before the
# group: every product is one of two plain matrices, and sums over keys go along whole vectors. Were group and queries
# one axis, a CPU would compute the elements one by one.
_FEATURES_THIRD, _FEATURES_LAST = (0, 1, 4, 2, 3), (0, 1, 3, 4, 2)
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend_visible(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
    *,
    mask: Bool[Array, "batch 1 time time"],
    block: int,
) -> Float[Array, "batch time heads head_dim"]:
    """softmax(q k / sqrt(head_dim)) v where the mask is true, scores in float32; 0 where a token sees nothing.

    Args:
      mask: no token sees a later one.
      block: tokens of a block.
    """
    return _attend(query, key, value, mask, block)


class _Blocks(NamedTuple):
    """Arrays of a call, in blocks of all rows of the batch."""

    query: Array  # [rows, kv_heads, group, block, head_dim], times 1 / sqrt(head_dim)
    key: Array  # [rows, kv_heads, block, head_dim]
    value: Array
    mask: Array  # [rows, blocks, block of keys, block of queries]
    pairs: Array  # of row and block, in one number, those that see each other first
    num_pairs: Array  # of those

    def pair(self, place: Array) -> tuple[Array, Array, Array]:
        """(row of the queries, row of the keys, mask) at a place in the list."""
        blocks = self.mask.shape[1]
        row, other = self.pairs[place] // blocks, self.pairs[place] % blocks
        return row, row // blocks * blocks + other, self.mask[row, other]


def _blocks(query: Array, key: Array, value: Array, mask: Array, block: int) -> _Blocks:
    batch, time = query.shape[:2]
    blocks = -(-time // block)
    pad = blocks * block - time
    mask = jnp.pad(mask[:, 0], ((0, 0), (0, pad), (0, pad))).reshape(batch, blocks, block, blocks, block)
    mask = mask.transpose(0, 1, 3, 4, 2).reshape(batch * blocks, blocks, block, block)
    is_visible = jnp.any(mask, axis=(2, 3)).reshape(-1)
    most = batch * blocks * (blocks + 1) // 2  # none sees a later one
    (pairs,) = jnp.nonzero(is_visible, size=most, fill_value=0)
    return _Blocks(
        query=_grouped(query, key.shape[2], block) * query.shape[-1] ** -0.5,
        key=_grouped(key, key.shape[2], block)[:, :, 0],
        value=_grouped(value, value.shape[2], block)[:, :, 0],
        mask=mask,
        pairs=pairs,
        num_pairs=jnp.sum(is_visible),
    )


def _turned(x: Array, *axes: int) -> Array:
    """The axes in another order, in memory too."""
    return jax.lax.optimization_barrier(x.transpose(axes))


def _grouped(x: Array, kv_heads: int, block: int) -> Array:
    """[batch, time, heads, head_dim] as [rows, kv_heads, group, block, head_dim]."""
    batch, time, heads, dim = x.shape
    blocks = -(-time // block)
    x = jnp.pad(x, ((0, 0), (0, blocks * block - time), (0, 0), (0, 0)))
    x = x.reshape(batch * blocks, block, kv_heads, heads // kv_heads, dim)
    return x.transpose(0, 2, 3, 1, 4)


def _in_rows(x: Array, like: Array) -> Array:
    """The way back: with the shape and dtype of `like`."""
    batch, time, heads, dim = like.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, -1, heads, dim)[:, :time].astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: Array, key: Array, value: Array, mask: Array, block: int) -> Array:
    return _forward(query, key, value, mask, block)[0]


def _forward(query: Array, key: Array, value: Array, mask: Array, block: int) -> tuple[Array, Any]:
    held = _blocks(query, key, value, mask, block)
    queries, values = _turned(held.query, *_FEATURES_THIRD), _turned(held.value, 0, 1, 3, 2)

    def one_pair(place: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, other, seen = held.pair(place)
        top, total, attended = (x[row] for x in state)
        scores = _product("kcd,kdgq->kcgq", held.key[other], queries[row])
        scores = jnp.where(seen[None, :, None], scores, _EXCLUDED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        # Where a token has seen nothing so far all are 1; what follows takes them back, or the end does.
        shares = jnp.exp(scores - new_top[:, None])
        kept = jnp.exp(top - new_top)
        added = _product("kdc,kcgq->kdgq", values[other], shares.astype(value.dtype))
        return (
            state[0].at[row].set(new_top),
            state[1].at[row].set(total * kept + jnp.sum(shares, axis=1)),
            state[2].at[row].set(attended * kept[:, None] + added),
        )

    shape = held.query.shape[:4]
    start = jnp.full(shape, _EXCLUDED), jnp.zeros(shape), jnp.zeros(queries.shape)
    top, total, attended = jax.lax.fori_loop(0, held.num_pairs, one_pair, start)
    sees = top > _EXCLUDED
    total = jnp.where(sees, total, 1)
    attended = jnp.where(sees[:, :, None], attended, 0) / total[:, :, None]
    log_total = jnp.where(sees, top + jnp.log(total), 0)
    out = _in_rows(attended.transpose(*_FEATURES_LAST), query)
    return out, (query, key, value, mask, attended, log_total)


def _backward(block: int, residuals: Any, cotangent: Array) -> tuple[Array | None, ...]:
    query, key, value, mask, attended, log_total = residuals
    held = _blocks(query, key, value, mask, block)
    down = _grouped(cotangent, key.shape[2], block)
    queries, downs = (_turned(x, *_FEATURES_THIRD) for x in (held.query, down))
    keys = _turned(held.key, 0, 1, 3, 2)
    together = jnp.sum(downs.astype(jnp.float32) * attended, axis=2)

    def one_pair(place: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, other, seen = held.pair(place)
        scores = _product("kcd,kdgq->kcgq", held.key[other], queries[row])
        shares = jnp.exp(jnp.where(seen[None, :, None], scores, _EXCLUDED) - log_total[row][:, None])
        to_shares = _product("kcd,kdgq->kcgq", held.value[other], downs[row])
        to_scores = (shares * (to_shares - together[row][:, None])).astype(query.dtype)
        to_query, to_key, to_value = state
        return (
            to_query.at[row].add(_product("kdc,kcgq->kdgq", keys[other], to_scores)),
            to_key.at[other].add(_product("kcgq,kgqd->kcd", to_scores, held.query[row])),
            to_value.at[other].add(_product("kcgq,kgqd->kcd", shares.astype(query.dtype), down[row])),
        )

    start = tuple(jnp.zeros(x.shape) for x in (queries, held.key, held.value))
    to_query, to_key, to_value = jax.lax.fori_loop(0, held.num_pairs, one_pair, start)
    to_query = to_query.transpose(*_FEATURES_LAST) * query.shape[-1] ** -0.5
    found = to_query, to_key[:, :, None], to_value[:, :, None]
    return *(_in_rows(x, like) for x, like in zip(found, (query, key, value), strict=True)), None


_attend.defvjp(_forward, _backward)
