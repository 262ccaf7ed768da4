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
    """Arrays of a call, in blocks of all rows of the batch; those of queries with the heads of a group in one."""

    query: Array  # [rows, kv_heads, group x block, head_dim], times 1 / sqrt(head_dim)
    key: Array  # [rows, kv_heads, block, head_dim]
    value: Array
    mask: Array  # [rows, blocks, block, block]
    pairs: Array  # of row and block, in one number, those that see each other first
    num_pairs: Array  # of those

    def pair(self, place: Array) -> tuple[Array, Array, Array]:
        """(row of the queries, row of the keys, mask) at a place in the list."""
        blocks = self.mask.shape[1]
        row, other = self.pairs[place] // blocks, self.pairs[place] % blocks
        return row, row // blocks * blocks + other, self.mask[row, other]

    def scores(self, row: Array, other: Array, seen: Array) -> tuple[Array, Array]:
        """Of a row's queries with another's keys, [kv_heads, group x block, block], and what is seen of them."""
        scores = jnp.einsum("kqd,kcd->kqc", self.query[row], self.key[other], preferred_element_type=jnp.float32)
        return scores, jnp.tile(seen, (self.query.shape[2] // seen.shape[0], 1))[None]


def _blocks(query: Array, key: Array, value: Array, mask: Array, block: int) -> _Blocks:
    batch, time = query.shape[:2]
    blocks = -(-time // block)
    pad = blocks * block - time
    mask = jnp.pad(mask[:, 0], ((0, 0), (0, pad), (0, pad))).reshape(batch, blocks, block, blocks, block)
    mask = mask.swapaxes(2, 3).reshape(batch * blocks, blocks, block, block)
    is_visible = jnp.any(mask, axis=(2, 3)).reshape(-1)
    most = batch * blocks * (blocks + 1) // 2  # none sees a later one
    (pairs,) = jnp.nonzero(is_visible, size=most, fill_value=0)
    return _Blocks(
        query=_grouped(query, key.shape[2], block) * query.shape[-1] ** -0.5,
        key=_grouped(key, key.shape[2], block),
        value=_grouped(value, value.shape[2], block),
        mask=mask,
        pairs=pairs,
        num_pairs=jnp.sum(is_visible),
    )


def _grouped(x: Array, kv_heads: int, block: int) -> Array:
    """[batch, time, heads, head_dim] as [rows, kv_heads, group x block, head_dim]."""
    batch, time, heads, dim = x.shape
    blocks = -(-time // block)
    x = jnp.pad(x, ((0, 0), (0, blocks * block - time), (0, 0), (0, 0)))
    x = x.reshape(batch * blocks, block, kv_heads, heads // kv_heads, dim)
    return x.transpose(0, 2, 3, 1, 4).reshape(batch * blocks, kv_heads, -1, dim)


def _in_rows(x: Array, like: Array, block: int) -> Array:
    """The way back: with the shape and dtype of `like`."""
    batch, time, heads, dim = like.shape
    x = x.reshape(x.shape[0], x.shape[1], heads // x.shape[1], block, dim).transpose(0, 3, 1, 2, 4)
    return x.reshape(batch, -1, heads, dim)[:, :time].astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: Array, key: Array, value: Array, mask: Array, block: int) -> Array:
    return _forward(query, key, value, mask, block)[0]


def _forward(query: Array, key: Array, value: Array, mask: Array, block: int) -> tuple[Array, Any]:
    held = _blocks(query, key, value, mask, block)

    def one_pair(place: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, other, seen = held.pair(place)
        top, total, attended = (x[row] for x in state)
        scores, seen = held.scores(row, other, seen)
        new_top = jnp.maximum(top, jnp.max(jnp.where(seen, scores, _EXCLUDED), axis=-1))
        shares = jnp.where(seen, jnp.exp(jnp.where(seen, scores, _EXCLUDED) - new_top[..., None]), 0)
        kept = jnp.exp(top - new_top)
        added = jnp.einsum(
            "kqc,kcd->kqd", shares.astype(value.dtype), held.value[other], preferred_element_type=jnp.float32
        )
        return (
            state[0].at[row].set(new_top),
            state[1].at[row].set(total * kept + jnp.sum(shares, axis=-1)),
            state[2].at[row].set(attended * kept[..., None] + added),
        )

    shape = held.query.shape
    start = jnp.full(shape[:3], _EXCLUDED), jnp.zeros(shape[:3]), jnp.zeros(shape)
    top, total, attended = jax.lax.fori_loop(0, held.num_pairs, one_pair, start)
    total = jnp.where(total > 0, total, 1)
    attended /= total[..., None]
    out = _in_rows(attended, query, block)
    return out, (query, key, value, mask, attended, top + jnp.log(total))


def _backward(block: int, residuals: Any, cotangent: Array) -> tuple[Array | None, ...]:
    query, key, value, mask, attended, log_total = residuals
    held = _blocks(query, key, value, mask, block)
    down = _grouped(cotangent, key.shape[2], block)
    together = jnp.sum(down.astype(jnp.float32) * attended, axis=-1)

    def one_pair(place: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, other, seen = held.pair(place)
        scores, seen = held.scores(row, other, seen)
        shares = jnp.where(seen, jnp.exp(jnp.where(seen, scores, _EXCLUDED) - log_total[row][..., None]), 0)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        to_shares = product("kqd,kcd->kqc", down[row], held.value[other])
        to_scores = (shares * (to_shares - together[row][..., None])).astype(query.dtype)
        to_query, to_key, to_value = state
        return (
            to_query.at[row].add(product("kqc,kcd->kqd", to_scores, held.key[other])),
            to_key.at[other].add(product("kqc,kqd->kcd", to_scores, held.query[row])),
            to_value.at[other].add(product("kqc,kqd->kcd", shares.astype(query.dtype), down[row])),
        )

    start = tuple(jnp.zeros(x.shape) for x in (held.query, held.key, held.value))
    to_query, to_key, to_value = jax.lax.fori_loop(0, held.num_pairs, one_pair, start)
    found = to_query * query.shape[-1] ** -0.5, to_key, to_value
    return *(_in_rows(x, like, block) for x, like in zip(found, (query, key, value), strict=True)), None


_attend.defvjp(_forward, _backward)
