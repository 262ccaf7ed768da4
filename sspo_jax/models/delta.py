"""The gated delta rule of Qwen3-Next and Qwen3.5 (arXiv:2412.06464): attention whose past is one matrix a head.

With keys and queries of length 1, a decay exp(g_t) and a rate beta_t, the state S [key, value] of a value head goes on
by

    S_t = exp(g_t) S_(t-1) + k_t (beta_t (v_t - k_t' exp(g_t) S_(t-1)))',    o_t = S_t' q_t / sqrt(key_dim)

`chunked` takes it in chunks of tokens, by matrix products, and carries the state from chunk to chunk; `one_step` takes
one token. Queries, keys and values come out of a causal convolution over the last few tokens. Both begin anew where a
sequence does, and padding, whose inputs are zero, leaves them as they are.

Heads are grouped: `K` key heads, each with a group of `G` value heads. State and sums are float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sspo_jax.models.configs import QwenConfig

CHUNK = 64
"""Tokens taken at a time; a power of two."""


class Inputs(NamedTuple):
    """What the rule takes of each token; leading axes [batch, time], or [slots] in a single step."""

    query: Float[Array, "... K key_dim"]
    key: Float[Array, "... K key_dim"]
    value: Float[Array, "... K G value_dim"]
    log_decay: Float[Array, "... K G"]
    rate: Float[Array, "... K G"]


def delta_inputs(block: dict[str, Any], config: QwenConfig, mixed: Array, rate: Array, decay: Array) -> Inputs:
    """Splits what the convolution gives, normalizes keys and queries, and makes rate and decay of their projections.

    Args:
      mixed: [..., K, 2 key_dim + G value_dim], after the convolution.
      rate, decay: [..., K, G], as projected.
    """
    mixed = mixed.astype(jnp.float32)
    width = config.delta_key_dim
    query, key, value = mixed[..., :width], mixed[..., width : 2 * width], mixed[..., 2 * width :]
    value = value.reshape(*value.shape[:-1], config.delta_group, config.delta_value_dim)

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    def parameter(name: str) -> Array:
        return jnp.expand_dims(block[name].astype(jnp.float32), tuple(range(decay.ndim - 2)))

    steps = jax.nn.softplus(decay.astype(jnp.float32) + parameter("delta_step_bias"))
    log_decay = -jnp.exp(parameter("delta_log_decay")) * steps
    return Inputs(unit(query) * width**-0.5, unit(key), value, log_decay, jax.nn.sigmoid(rate.astype(jnp.float32)))


def convolve(
    x: Float[Array, "batch time K channels"],
    kernel: Float[Array, "K channels taps"],
    before: Float[Array, "batch K taps_before channels"],
    runs: Int[Array, "batch time"] | None = None,
    padding: Int[Array, " batch"] | None = None,
) -> tuple[Array, Array]:
    """silu(sum over j of kernel[j] x[t - taps + 1 + j]), each channel by itself; and what the next call needs.

    Args:
      before: the inputs of the tokens just before, the latest last.
      runs: which sequence a token belongs to: an input of another one than the token's counts as 0, and so does
        `before`. None: all are one, which `before` belongs to.
      padding: how many tokens of padding come first: `before` goes just behind them, and their results are 0. None:
        there are none.
    """
    taps, time = kernel.shape[-1], x.shape[1]
    before = before.transpose(0, 2, 1, 3).astype(x.dtype)
    inputs, is_padding = jnp.concatenate([before, x], axis=1), None
    if padding is not None:
        place = (jnp.arange(inputs.shape[1])[None] - padding[:, None])[..., None, None]
        moved = jnp.take_along_axis(before, jnp.clip(place, 0, taps - 2), axis=1)
        inputs = jnp.where((place >= 0) & (place < taps - 1), moved, inputs)
        is_padding = place[:, :time] < 0
    total = jnp.zeros_like(x)
    for tap in range(taps):
        term = inputs[:, tap : tap + time]
        if runs is not None and (back := taps - 1 - tap):
            earlier = jnp.pad(runs, ((0, 0), (back, 0)), constant_values=-1)[:, :time]
            term = jnp.where((earlier == runs)[..., None, None], term, 0)
        total = total + term * kernel[None, None, :, :, tap].astype(x.dtype)
    if is_padding is not None:
        total = jnp.where(is_padding, 0, total)
    return jax.nn.silu(total), inputs[:, time:].transpose(0, 2, 1, 3)


def one_step(inputs: Inputs, state: Float[Array, "slots K G key_dim value_dim"]) -> tuple[Array, Array]:
    """(o [slots, K, G, value_dim], the state after it) of one token each."""
    query, key, value, log_decay, rate = inputs
    state = state * jnp.exp(log_decay)[..., None, None]
    missing = (value - jnp.einsum("skd,skgdv->skgv", key, state)) * rate[..., None]
    state = state + key[:, :, None, :, None] * missing[:, :, :, None]
    return jnp.einsum("skd,skgdv->skgv", query, state), state


def chunked(
    inputs: Inputs,
    state: Float[Array, "batch K G key_dim value_dim"],
    runs: Int[Array, "batch time"] | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Array, Array]:
    """(o [batch, time, K, G, value_dim], the state after the last token).

    With D_ij the product of the decays after token j up to i and A_ij = beta_i D_ij k_i' k_j for j < i, the tokens of a
    chunk write (I + A)^-1 beta (V - decayed K S) to the state S that the chunk begins with (section 3.3 of the paper).

    Args:
      runs: which sequence a token belongs to, rising; the state begins at zero in each. None: all tokens belong to the
        sequence of `state`.
      chunk: tokens taken at a time, at most; a power of two.
    """
    batch, time = inputs.query.shape[:2]
    chunk = min(chunk, 1 << (time - 1).bit_length())
    padding, groups = -time % chunk, inputs.value.shape[3]
    if runs is None:
        runs, before = jnp.zeros((batch, time), jnp.int32), jnp.zeros((batch,), jnp.int32)
    else:
        before = jnp.full((batch,), -1, runs.dtype)

    def by_chunk(x: Array, mode: str = "constant") -> Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2), mode=mode)
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    earlier, upto = jnp.tri(chunk, k=-1, dtype=bool), jnp.tri(chunk, dtype=bool)

    def step(carry: tuple[Array, Array], here: tuple[Inputs, Array]) -> tuple[tuple[Array, Array], Array]:
        state, last_run = carry
        (query, key, value, log_decay, rate), runs = here  # [batch, chunk, ...]
        log_decay, rate = (x.transpose(0, 2, 3, 1) for x in (log_decay, rate))  # [batch, K, G, chunk]
        value = value.transpose(0, 2, 3, 1, 4)
        query, key = (x.transpose(0, 2, 1, 3) for x in (query, key))
        same = (runs[:, :, None] == runs[:, None, :])[:, None, None]
        # Summed from each token on, not as a difference of sums: those lose digits where decays are large.
        between = jnp.cumsum(jnp.where(earlier[None, None, None], log_decay[..., None], 0), axis=-2)
        decays = jnp.where(same & upto[None, None, None], jnp.exp(between), 0)
        goes_on = (runs == last_run[:, None])[:, None, None]
        from_start = jnp.where(goes_on, jnp.exp(jnp.cumsum(log_decay, axis=-1)), 0)
        to_end = decays[..., -1, :]

        overlap = jnp.einsum("bkid,bkjd->bkij", key, key)[:, :, None]
        system = jnp.where(earlier[None, None, None], rate[..., None] * decays * overlap, 0)
        known = jnp.einsum("bkid,bkgdv->bkgiv", key, state) * from_start[..., None]
        written = _unit_lower_inverse(system) @ (rate[..., None] * (value - known))
        seen = decays * jnp.einsum("bkid,bkjd->bkij", query, key)[:, :, None]
        out = jnp.einsum("bkid,bkgdv->bkgiv", query, state) * from_start[..., None] + seen @ written
        state = state * from_start[..., -1, None, None]
        state = state + jnp.einsum("bkjd,bkgjv->bkgdv", key, to_end[..., None] * written)
        return (state, runs[:, -1]), out.transpose(0, 3, 1, 2, 4)

    parts = Inputs(*(by_chunk(x) for x in inputs)), by_chunk(runs, "edge")
    # What padding adds has rate, key and decay 0: it leaves the state as it is.
    (state, _), out = jax.lax.scan(step, (state, before), parts)
    out = jnp.moveaxis(out, 0, 1).reshape(batch, -1, out.shape[3], groups, out.shape[-1])
    return out[:, :time], state


def _unit_lower_inverse(strict: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """(I + strict)^-1 of strictly lower triangular matrices, by blocks of doubling size; n is a power of two.

    [[X, 0], [B, Y]]^-1 = [[X^-1, 0], [-Y^-1 B X^-1, Y^-1]]: as stable as substitution, and all matrix products.
    """
    *lead, size, _ = strict.shape
    inverses = jnp.ones((*lead, size, 1, 1), strict.dtype)
    width = 1
    while width < size:
        count = size // (2 * width)
        blocks = strict.reshape(*lead, count, 2, width, count, 2, width)[..., :, 1, :, :, 0, :]
        is_own = jnp.expand_dims(jnp.eye(count, dtype=bool)[:, None, :, None], tuple(range(len(lead))))
        below = jnp.sum(jnp.where(is_own, blocks, 0), axis=-2)
        first, second = inverses[..., 0::2, :, :], inverses[..., 1::2, :, :]
        corner = -(second @ below @ first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverses = jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        width *= 2
    return inverses[..., 0, :, :]


def sequence_runs(segment_ids: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Numbers the runs of equal ids of each row, rising from 0."""
    return jnp.pad(jnp.cumsum(jnp.diff(segment_ids, axis=1) != 0, axis=1), ((0, 0), (1, 0)))
