"""Log-probabilities and entropies of tokens from hidden states, without ever holding the logits.

The output layer of a 152k vocabulary makes [tokens, vocab] the largest array of an update by far. Here it exists one
tile [token chunk, vocabulary chunk] at a time, in the forward pass and again in the backward pass; only where all the
logits of a device take a few megabytes they are kept for the backward pass.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.sharding import platform
from sspo_jax.types import Number

# Below every logit, and finite: 0 * _EXCLUDED is 0 where 0 * -inf would be NaN.
_EXCLUDED = -1e30

_KEPT_BYTES = 32 << 20
"""Logits of at most this many bytes per device are kept for the backward pass instead of computed again."""


def logprobs_and_entropies(
    hidden: Float[Array, "n d"],
    unembedding: Float[Array, "d vocab"] | Float[Array, "vocab d"],
    targets: Int[Array, " n"],
    *,
    temperature: Number = 1.0,
    chunk_size: int | None = None,
    token_chunk_size: int | None = None,
    vocab_size: int | None = None,
    mask: Bool[Array, " n"] | None = None,
    vocab_axis: int = 1,
    vocab_shards: int = 1,
    token_shards: int = 1,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log p(target) and the entropy of p = softmax(hidden @ unembedding / temperature), at each position.

        z = hidden @ unembedding / temperature            one tile at a time, accumulated in float32
        logprob = z[target] - logsumexp(z)
        entropy = logsumexp(z) - sum(p * z)
        d logprob / dz_j = [j = target] - p_j,    d entropy / dz_j = -p_j (log p_j + entropy)

    Args:
      hidden: [n, d], the last hidden states, position t predicting `targets[t]`.
      unembedding: [d, vocab], or [vocab, d] with `vocab_axis=0`, the way a tied embedding is stored.
      targets: [n], token ids below `vocab_size`.
      temperature: of the softmax; the one the tokens were sampled at.
      chunk_size: columns of a tile, over all vocabulary shards together; None means `tile_sizes()`.
      token_chunk_size: rows of a tile, over all token shards together; None means `tile_sizes()`.
      vocab_size: real tokens; columns from there on are padding and get probability 0. None means all are real.
      mask: [n]; where false nothing is computed, the results are 0 and so are the gradients: whole tiles are skipped,
        since the valid positions are gathered first. None means all.
      vocab_axis: which axis of `unembedding` is the vocabulary.
      vocab_shards, token_shards: devices that the vocabulary axis, and n, are split over. A tile then takes an equal
        part of every shard, so that no device needs another's part of `unembedding` or `hidden`.
      precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
      log-probabilities [n] and entropies [n], nats, float32 (float64 for float64 inputs), both differentiable with
      respect to `hidden` and `unembedding`.

    Two tokens with logits 0 and log 3: probabilities 1/4 and 3/4.

    >>> import jax.numpy as jnp
    >>> logprob, entropy = logprobs_and_entropies(jnp.ones((1, 1)), jnp.log(jnp.array([[1.0, 3.0]])), jnp.array([1]))
    >>> round(float(jnp.exp(logprob[0])), 4), round(float(entropy[0]), 4)
    (0.75, 0.5623)
    """
    _check(hidden, unembedding, targets, temperature, vocab_size, mask, vocab_axis, vocab_shards, token_shards)
    n, d, rows = *hidden.shape, unembedding.shape[vocab_axis]
    dtype = jnp.result_type(jnp.float32, hidden.dtype, unembedding.dtype)
    if n == 0:
        return jnp.zeros((0,), dtype), jnp.zeros((0,), dtype)
    columns, token_rows = _tile(chunk_size, token_chunk_size)
    plan = _Plan(
        temperature=float(temperature),
        vocab_chunk=_chunk(rows // vocab_shards, max(columns // vocab_shards, 1)),
        token_chunk=_chunk(n // token_shards, max(token_rows // token_shards, 1)),
        vocab_size=rows if vocab_size is None else vocab_size,
        vocab_axis=vocab_axis,
        precision=precision,
        dtype=dtype,
        keeps_logits=n // token_shards * (rows // vocab_shards) * dtype.itemsize <= _KEPT_BYTES,
    )
    # Splitting a sharded axis into [shards, local] keeps each shard in place; slices are then taken of the local part.
    hidden = hidden.reshape(token_shards, n // token_shards, d)
    targets = targets.reshape(token_shards, n // token_shards)
    valid = jnp.ones(targets.shape, bool) if mask is None else mask.reshape(targets.shape)
    local = rows // vocab_shards
    unembedding = unembedding.reshape((vocab_shards, local, d) if vocab_axis == 0 else (d, vocab_shards, local))
    # custom_vjp hides the type of what it wraps.
    logprobs, entropies = cast(tuple[Array, Array], _scores(plan, hidden, unembedding, targets, valid))
    return logprobs.reshape(n), entropies.reshape(n)


def _check(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    temperature: Number,
    vocab_size: int | None,
    mask: Array | None,
    vocab_axis: int,
    vocab_shards: int,
    token_shards: int,
) -> None:
    """Raises ValueError where the arguments of `logprobs_and_entropies` do not go together."""
    if vocab_axis not in (0, 1):
        raise ValueError(f"vocab_axis is {vocab_axis}, expected 0 or 1")
    (n, d), rows = hidden.shape, unembedding.shape[vocab_axis]
    if unembedding.shape[1 - vocab_axis] != d:
        raise ValueError(
            f"unembedding has shape {unembedding.shape}, expected {d} on axis {1 - vocab_axis}, as hidden has"
        )
    if targets.shape != (n,) or (mask is not None and mask.shape != (n,)):
        raise ValueError(
            f"targets has shape {targets.shape} and mask {getattr(mask, 'shape', None)}, expected both ({n},)"
        )
    if rows % vocab_shards or n % token_shards:
        raise ValueError(
            f"vocabulary {rows} and {n} positions must divide by vocab_shards {vocab_shards} and "
            f"token_shards {token_shards}: pad them"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected above 0; score greedy samples at 1")
    if vocab_size is not None and not 0 < vocab_size <= rows:
        raise ValueError(f"vocab_size is {vocab_size}, expected 1 to {rows}, the rows of the unembedding")


def tile_sizes() -> tuple[int, int]:
    """(columns, rows) of a tile where the caller names none, for the platform the program is traced for.

    On a CPU a tile stays in the cache (2 MiB in float32) and few rows are computed in vain; an accelerator wants the
    largest product that its memory has room for (32 MiB).
    """
    return (2048, 256) if platform() == "cpu" else (8192, 1024)


def _tile(columns: int | None, rows: int | None) -> tuple[int, int]:
    """`tile_sizes()` where the caller names none."""
    usual_columns, usual_rows = tile_sizes()
    columns, rows = usual_columns if columns is None else columns, usual_rows if rows is None else rows
    if columns < 1 or rows < 1:
        raise ValueError(f"chunk_size is {columns} and token_chunk_size is {rows}, expected both 1 or more")
    return columns, rows


def _chunk(length: int, wanted: int) -> int:
    """A chunk of at most about `wanted` that cuts `length` evenly, rounded up to 128 where that is possible."""
    count = -(-length // min(wanted, length))
    even = -(-length // count)
    return min(-(-even // 128) * 128, length) if even >= 128 else even


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """The static part of a call: hashable, so that `custom_vjp` can carry it."""

    temperature: float
    vocab_chunk: int  # columns of a tile from each vocabulary shard
    token_chunk: int  # rows of a tile from each token shard
    vocab_size: int
    vocab_axis: int
    precision: Any
    dtype: Any
    keeps_logits: bool

    def columns(self, unembedding: Array, index: Array) -> tuple[Array, Array, Array]:
        """The index-th vocabulary chunk of every shard: its weights [shards, chunk, d] or [d, shards, chunk], where it
        starts in each shard, and [shards, chunk] bools of the columns that are real and in no earlier chunk."""
        axis = 1 if self.vocab_axis == 0 else 2
        shards, local = unembedding.shape[axis - 1], unembedding.shape[axis]
        # The last chunk is moved back to fit; what it repeats is excluded, and the shape stays the same.
        start = jnp.minimum(index * self.vocab_chunk, local - self.vocab_chunk)
        inside = start + jnp.arange(self.vocab_chunk)
        column = jnp.arange(shards)[:, None] * local + inside[None, :]
        is_new = (inside >= index * self.vocab_chunk)[None, :] & (column < self.vocab_size)
        return jax.lax.dynamic_slice_in_dim(unembedding, start, self.vocab_chunk, axis), start, is_new

    def logits(self, hidden: Array, weights: Array, is_new: Array) -> Array:
        """[token shards, rows, vocabulary shards, columns], `_EXCLUDED` where `is_new` is false."""
        subscripts = "tnd,svd->tnsv" if self.vocab_axis == 0 else "tnd,dsv->tnsv"
        logits = self.dot(subscripts, hidden, weights) * (1 / self.temperature)
        return jnp.where(is_new[None, None], logits, _EXCLUDED)

    def dot(self, subscripts: str, a: Array, b: Array) -> Array:
        """einsum, computed without the shard axes (t, s) where they are 1: with them XLA's CPU backend copies the
        weights into another order before every product, which costs as much as half of it."""
        inputs, output = subscripts.split("->")
        sizes = dict(zip(inputs.replace(",", ""), (*a.shape, *b.shape), strict=True))
        dropped = [axis for axis in "ts" if sizes[axis] == 1]
        shape = [sizes[axis] for axis in output]
        for axis in dropped:
            subscripts = subscripts.replace(axis, "")
        terms = subscripts.split("->")[0].split(",")
        a, b = (x.reshape([sizes[axis] for axis in term]) for x, term in zip((a, b), terms, strict=True))
        product = jnp.einsum(subscripts, a, b, precision=self.precision, preferred_element_type=self.dtype)
        return product.reshape(shape)

    def over_columns(self, reduction: Any, tile: Array) -> Array:
        """The reduction over the last axis, without the shard axes where they are 1: XLA's CPU backend takes four times
        as long for a sum of products over [1, rows, 1, columns] as over [rows, columns]."""
        tokens, rows, shards, columns = tile.shape
        if tokens == shards == 1:
            return reduction(tile.reshape(rows, columns), axis=-1).reshape(1, rows, 1)
        return reduction(tile, axis=-1)

    def num_vocab_chunks(self, unembedding: Array) -> int:
        return -(-unembedding.shape[1 if self.vocab_axis == 0 else 2] // self.vocab_chunk)


def _hits(plan: _Plan, targets: Array, start: Array, shards: int, local: int) -> Array:
    """[token shards, rows, vocabulary shards, columns] bools: is this column the target? At most one a row."""
    column = jnp.arange(shards)[:, None] * local + (start + jnp.arange(plan.vocab_chunk))[None, :]
    return targets[:, :, None, None] == column[None, None].astype(targets.dtype)


def _target_logits(plan: _Plan, logits: Array, targets: Array, start: Array, is_new: Array, local: int) -> Array:
    """[token shards, rows, vocabulary shards]: the target's logit where it is one of these columns, else 0."""
    shards = is_new.shape[0]
    if platform() != "cpu":
        # Accelerators fuse the comparison into the reductions that read the tile anyway.
        is_target = _hits(plan, targets, start, shards, local) & is_new[None, None]
        return jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    # On a CPU that is one more pass over the tile: here one number a row is picked out.
    column = targets[:, :, None] - (jnp.arange(shards) * local + start).astype(targets.dtype)[None, None]
    inside = jnp.clip(column, 0, plan.vocab_chunk - 1)[..., None]
    is_counted = jnp.take_along_axis(jnp.broadcast_to(is_new[None, None], logits.shape), inside, axis=-1)
    found = jnp.where(is_counted, jnp.take_along_axis(logits, inside, axis=-1), 0)[..., 0]
    return jnp.where(column == inside[..., 0], found, 0)


def _order(plan: _Plan, valid: Array) -> tuple[Array, Array]:
    """The valid positions of each token shard first, in order; and how many token chunks hold any of them."""
    order = jnp.argsort(~valid, axis=1, stable=True)
    most = jnp.max(jnp.sum(valid, axis=1))
    return order, -(-most // plan.token_chunk)


def _rows(plan: _Plan, chunk: Array, local: int) -> tuple[Array, Array]:
    """Where the chunk-th token chunk starts, and which of its rows are in no earlier chunk."""
    start = jnp.minimum(chunk * plan.token_chunk, local - plan.token_chunk)
    return start, (start + jnp.arange(plan.token_chunk)) >= chunk * plan.token_chunk


def _take(array: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, size, 1)


def _put(array: Array, part: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, start, 1)


def _clean(hidden: Array, valid: Array) -> Array:
    """0 where not valid: the last chunk of rows may hold such positions, and 0 * NaN would reach the weights."""
    return jnp.where(valid[..., None], hidden, 0)


def _gather(array: Array, order: Array) -> Array:
    return jnp.take_along_axis(array, order if array.ndim == 2 else order[..., None], axis=1)


def _ungather(array: Array, order: Array) -> Array:
    return _gather(array, jnp.argsort(order, axis=1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(plan: _Plan, hidden: Array, unembedding: Array, targets: Array, valid: Array) -> tuple[Array, Array]:
    plan = dataclasses.replace(plan, keeps_logits=False)
    (logprobs, entropies), _ = _scores_forward(plan, hidden, unembedding, targets, valid)
    return logprobs, entropies


def _scores_forward(plan: _Plan, hidden: Array, unembedding: Array, targets: Array, valid: Array) -> tuple[Any, Any]:
    """Online over vocabulary chunks: per vocabulary shard m = max z, s = sum e^(z - m), u = sum e^(z - m) (z - m)."""
    order, num_token_chunks = _order(plan, valid)
    sorted_hidden, sorted_targets = _gather(_clean(hidden, valid), order), _gather(targets, order)
    local_rows, num_vocab_chunks = hidden.shape[1], plan.num_vocab_chunks(unembedding)
    shards, local = (unembedding.shape[:2]) if plan.vocab_axis == 0 else unembedding.shape[1:]

    def token_chunk(chunk: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        outputs, kept = state
        row, _ = _rows(plan, chunk, local_rows)
        rows, row_targets = _take(sorted_hidden, row, plan.token_chunk), _take(sorted_targets, row, plan.token_chunk)

        def vocab_chunk(index: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            m, s, u, z_target, kept = state
            weights, start, is_new = plan.columns(unembedding, index)
            logits = plan.logits(rows, weights, is_new)
            if plan.keeps_logits:
                zero = jnp.zeros_like(index)
                kept = jax.lax.dynamic_update_slice(kept, logits[None], (index, zero, row, zero, zero))
            m_new = jnp.maximum(m, plan.over_columns(jnp.max, logits))
            # The reductions below read the tile together, without an array of exponentials in between.
            shifted = logits - m_new[..., None]
            exp = jnp.exp(shifted)
            decay = jnp.exp(m - m_new)
            u = (u + s * (m - m_new)) * decay + plan.over_columns(jnp.sum, exp * shifted)
            s = s * decay + plan.over_columns(jnp.sum, exp)
            return m_new, s, u, z_target + _target_logits(plan, logits, row_targets, start, is_new, local), kept

        zeros = jnp.zeros((*row_targets.shape, shards), plan.dtype)
        m, s, u, z_target, kept = jax.lax.fori_loop(
            0, num_vocab_chunks, vocab_chunk, (zeros + _EXCLUDED, zeros, zeros, zeros, kept)
        )
        top = jnp.max(m, axis=-1, keepdims=True)
        decay = jnp.exp(m - top)
        total = jnp.sum(s * decay, axis=-1)
        weighted = jnp.sum((u + s * (m - top)) * decay, axis=-1)
        log_total = jnp.log(total)
        logsumexp = top[..., 0] + log_total
        # H = log sum e^(z - top) - E[z - top]: no difference of two large numbers.
        entropy = jnp.maximum(log_total - weighted / total, 0)
        values = jnp.stack([jnp.sum(z_target, axis=-1) - logsumexp, entropy, logsumexp], axis=-1)
        return _put(outputs, values, row), kept

    outputs = jnp.zeros((*valid.shape, 3), plan.dtype)
    # Each tile contiguous: [vocabulary chunks, token shards, rows, vocabulary shards, columns].
    shape = (num_vocab_chunks, *valid.shape, shards, plan.vocab_chunk) if plan.keeps_logits else (0,)
    kept = jnp.zeros(shape, plan.dtype)
    outputs, kept = jax.lax.fori_loop(0, num_token_chunks, token_chunk, (outputs, kept))
    outputs = jnp.where(valid[..., None], _ungather(outputs, order), 0)
    logprobs, entropies, logsumexps = outputs[..., 0], outputs[..., 1], outputs[..., 2]
    return (logprobs, entropies), (hidden, unembedding, targets, valid, logsumexps, entropies, kept)


def _scores_backward(plan: _Plan, residuals: Any, cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
    """dz = g_logprob ([target] - p) - g_entropy p (log p + H), one tile at a time; both products are accumulated."""
    hidden, unembedding, targets, valid, logsumexps, entropies, kept = residuals
    order, num_token_chunks = _order(plan, valid)
    # Not valid: no gradient, whatever the cotangent holds there.
    g_logprob, g_entropy = (jnp.where(valid, g, 0).astype(plan.dtype) for g in cotangents)
    sorted_hidden, sorted_targets, g_logprob, g_entropy, logsumexps, entropies = (
        _gather(x, order) for x in (_clean(hidden, valid), targets, g_logprob, g_entropy, logsumexps, entropies)
    )
    local_rows = hidden.shape[1]
    axis = 1 if plan.vocab_axis == 0 else 2
    shards, local = unembedding.shape[axis - 1], unembedding.shape[axis]
    # A leading vocabulary-shard axis on the gradient of hidden keeps its sum on the device until the very end.
    d_hidden = jnp.zeros((shards, *hidden.shape), plan.dtype)
    d_unembedding = jnp.zeros(unembedding.shape, unembedding.dtype)

    def vocab_chunk(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_unembedding = state
        weights, start, is_new = plan.columns(unembedding, index)

        def token_chunk(chunk: Array, inner: tuple[Array, Array]) -> tuple[Array, Array]:
            d_hidden, d_weights = inner
            row, is_new_row = _rows(plan, chunk, local_rows)
            take = functools.partial(_take, start=row, size=plan.token_chunk)
            rows = take(sorted_hidden)
            g, h = (jnp.where(is_new_row[None, :], take(x), 0)[..., None, None] for x in (g_logprob, g_entropy))
            if plan.keeps_logits:
                tile = jax.lax.dynamic_index_in_dim(kept, index, keepdims=False)
                logits = take(tile)
            else:
                logits = plan.logits(rows, weights, is_new)
            log_p = logits - take(logsumexps)[..., None, None]
            is_target = _hits(plan, take(sorted_targets), start, shards, local) & is_new[None, None]
            d_logits = jnp.where(is_target, g, 0) - jnp.exp(log_p) * (
                g + h * (log_p + take(entropies)[..., None, None])
            )
            # In the storage type, as the matrix units want both operands; the sums stay in float32.
            d_logits = (d_logits * (1 / plan.temperature)).astype(jnp.result_type(hidden.dtype, weights.dtype))
            to_hidden = "tnsv,svd->stnd" if plan.vocab_axis == 0 else "tnsv,dsv->stnd"
            part = jax.lax.dynamic_slice_in_dim(d_hidden, row, plan.token_chunk, 2)
            part = part + plan.dot(to_hidden, d_logits, weights)
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, part, row, 2)
            # [d, shards, columns] for both orders: as [columns, d] a CPU takes half as long again for the product, and
            # twice as long for that of the rows as they lie.
            turned = jnp.moveaxis(rows, -1, 0)
            if platform() == "cpu":
                turned = jax.lax.optimization_barrier(turned)
            return d_hidden, d_weights + plan.dot("dtn,tnsv->dsv", turned, d_logits)

        d_weights = jnp.zeros((hidden.shape[-1], *is_new.shape), plan.dtype)
        d_hidden, d_weights = jax.lax.fori_loop(0, num_token_chunks, token_chunk, (d_hidden, d_weights))
        if plan.vocab_axis == 0:
            d_weights = jnp.moveaxis(d_weights, 0, -1)
        # Added, not written: the last chunk overlaps the one before, with zeros.
        d_weights = d_weights.astype(unembedding.dtype)
        d_weights = d_weights + jax.lax.dynamic_slice_in_dim(d_unembedding, start, plan.vocab_chunk, axis)
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_unembedding, d_weights, start, axis)

    d_hidden, d_unembedding = jax.lax.fori_loop(
        0, plan.num_vocab_chunks(unembedding), vocab_chunk, (d_hidden, d_unembedding)
    )
    d_hidden = _ungather(jnp.sum(d_hidden, axis=0), order).astype(hidden.dtype)
    return d_hidden, d_unembedding, None, None


_scores.defvjp(_scores_forward, _scores_backward)
