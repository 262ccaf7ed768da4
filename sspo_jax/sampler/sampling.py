"""From logits to a token: temperature, top-k, top-p, min-p, greedy; exact, with 64 random bits a token.

Tokens are drawn by inverse CDF in two levels: first a block of some sqrt(vocab) tokens, then a token inside it, each
with 32 random bits of its own and with cumulative sums in integers. Float32 cumulative sums over 152 k entries lose
tokens whose probability is below about 1e-7 of the sum before them; integer sums are exact, and a token is drawn with
its float32 probability up to 2^-31 of its block. It also costs one pass of `exp`, where Gumbel noise for every token
of the vocabulary (`jax.random.categorical`) is about a third of a decoding step on CPU.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

COOLEST = 1e-5
"""The lowest temperature above 0: logits divided by a lower one exceed what float32 holds to a useful precision."""
_LEAST_TOP_P = 1e-20  # keeps the most probable token alone, as any smaller one; float32 holds it without underflow
_FIXED_ONE = 2.0**31  # sums of rounded float32 shares exceed one by parts in 1e6: half the range of uint32 is slack


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn and when a response ends.

    The filters apply in this order to the tempered distribution: top-k, top-p on what is left, min-p. Tokens that tie
    with the last one kept are kept too, so that the result does not depend on the order of the vocabulary.
    """

    max_new_tokens: int
    """Length budget of a response, in tokens, the end token included."""
    temperature: float | int = 1.0
    """Logits are divided by it; 0 is greedy (and log-probabilities are then those of temperature 1)."""
    top_p: float | int = 1.0
    """Keeps the fewest most probable tokens whose probabilities add up to this; 1 keeps all."""
    top_k: int = 0
    """Keeps this many most probable tokens; 0 keeps all."""
    min_p: float | int = 0.0
    """Keeps tokens at least this probable relative to the most probable one."""
    stop_token_ids: tuple[int, ...] = ()
    """Any of these ends the response and is its last token."""
    stop_strings: tuple[str, ...] = ()
    """A response ends with the token that completes any of these; needs `decode` where tokens are generated."""
    min_new_tokens: int = 0
    """Stop tokens are not drawn, and stop strings not looked for, before the response has this many tokens."""
    entropies: bool = False
    """Also return the entropy of the tempered distribution at each token, in nats."""
    truncated_logprobs: bool = False
    """Also return log-probabilities under the distribution that top-k, top-p and min-p leave."""

    def __post_init__(self) -> None:
        for name, wanted, is_valid in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            (
                "temperature",
                f"0 (greedy), or at least {COOLEST:g}",
                math.isfinite(self.temperature) and (self.temperature == 0 or self.temperature >= COOLEST),
            ),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("top_k", "0 or more", self.top_k >= 0),
            ("min_p", "in [0, 1]", 0 <= self.min_p <= 1),
            ("stop_token_ids", "0 or more each", all(token >= 0 for token in self.stop_token_ids)),
            ("stop_strings", "not empty each", all(self.stop_strings)),
            ("min_new_tokens", f"in [0, {self.max_new_tokens}]", 0 <= self.min_new_tokens <= self.max_new_tokens),
        ):
            if not is_valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {wanted}")

    @property
    def is_greedy(self) -> bool:
        """Whether no randomness is used."""
        return self.temperature == 0

    @property
    def is_truncated(self) -> bool:
        """Whether a filter can remove tokens."""
        return not self.is_greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token for each row."""

    tokens: Int[Array, " batch"]
    logprobs: Float[Array, " batch"]  # temperature-only softmax, float32
    truncated_logprobs: Float[Array, " batch"]  # what top-k, top-p and min-p leave, renormalized; 0 when greedy
    entropies: Float[Array, " batch"]  # nats, of the temperature-only softmax; zeros unless asked for
    top_ids: Int[Array, "batch top"] | None = None  # the most probable tokens, falling; of `draw_each` alone
    top_logprobs: Float[Array, "batch top"] | None = None  # theirs, temperature-only softmax


def draw(
    logits: Float[Array, "batch vocab"],
    bits: tuple[UInt32[Array, " batch"], UInt32[Array, " batch"]],
    sampling: SamplingParams,
    *,
    forbid_stops: Bool[Array, " batch"] | None = None,
) -> Drawn:
    """Draws a token for each row.

    Args:
      logits: float32, before the temperature.
      bits: 64 uniform random bits a row, in two words (`random_bits.token_bits`).
      sampling: temperature and filters.
      forbid_stops: rows that may not draw a stop token; log-probabilities are of the unrestricted distribution.
    """
    scaled = logits if sampling.temperature in (0.0, 1.0) else logits / sampling.temperature
    allowed, log_forbidden = scaled, None
    stops = np.array(sorted({token for token in sampling.stop_token_ids if token < logits.shape[-1]}), np.int32)
    if len(stops) and forbid_stops is not None and sampling.min_new_tokens:
        is_stop = np.zeros(logits.shape[-1], bool)
        is_stop[stops] = True
        allowed = jnp.where(forbid_stops[:, None] & jnp.asarray(is_stop)[None], -jnp.inf, scaled)
        log_forbidden = jnp.where(forbid_stops, jax.nn.logsumexp(scaled[:, stops], axis=-1), -jnp.inf)

    def at(tokens: Array) -> Array:
        return jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]

    if sampling.is_greedy:
        tokens = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
        log_kept = at(tokens)
    else:
        kept = _truncate(allowed, sampling) if sampling.is_truncated else allowed
        tokens, log_kept = _inverse_cdf(kept, bits)
    if sampling.is_truncated or sampling.is_greedy:
        log_total = jax.nn.logsumexp(scaled, axis=-1)
    else:  # one pass over the vocabulary less
        log_total = log_kept if log_forbidden is None else jnp.logaddexp(log_kept, log_forbidden)
    entropies = jnp.zeros(tokens.shape, jnp.float32)
    if sampling.entropies:
        logprobs = scaled - log_total[:, None]
        entropies = -jnp.sum(jnp.where(jnp.isfinite(logprobs), jnp.exp(logprobs) * logprobs, 0.0), axis=-1)
    chosen = at(tokens)
    return Drawn(tokens, chosen - log_total, chosen - log_kept, entropies)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotSettings:
    """`SamplingParams` of each slot as arrays, so that one compiled program serves all of them."""

    # Arrays of NumPy or JAX, and what JAX puts in their place while it compiles.
    inverse_temperature: Any  # [slots] float32; 1 where greedy
    is_greedy: Any  # [slots] bool
    top_p: Any  # [slots] float32
    top_k: Any  # [slots] int32; 0 keeps all
    log_min_p: Any  # [slots] float32; minus infinity keeps all
    min_new_tokens: Any  # [slots] int32
    stop_ids: Any  # [slots, stops] int32; -1 is none

    @classmethod
    def of(cls, rows: Sequence[SamplingParams | None], *, stops: int) -> "SlotSettings":
        """The settings of each slot; those of an empty one (None) do not matter.

        Args:
          stops: stop tokens that any slot may have.

        Raises:
          ValueError: a slot has more.
        """
        most = max((len(set(row.stop_token_ids)) for row in rows if row is not None), default=0)
        if most > stops:
            raise ValueError(f"there are {most} stop tokens in one slot; expected at most {stops}")
        plain = SamplingParams(max_new_tokens=1)
        settings = [plain if row is None else row for row in rows]
        stop_ids = np.full((len(rows), stops), -1, np.int32)
        for slot, row in enumerate(settings):
            ids = sorted(set(row.stop_token_ids))
            stop_ids[slot, : len(ids)] = ids
        # The compiler turns a division by a constant into a product with its reciprocal; the same is done here.
        temperatures = np.array([row.temperature or 1.0 for row in settings], np.float32)
        return cls(
            inverse_temperature=np.float32(1.0) / temperatures,
            is_greedy=np.array([row.is_greedy for row in settings]),
            top_p=np.array([max(row.top_p, _LEAST_TOP_P) for row in settings], np.float32),
            top_k=np.array([min(row.top_k, 2**31 - 1) for row in settings], np.int32),
            log_min_p=np.array([math.log(row.min_p) if row.min_p > 0 else -np.inf for row in settings], np.float32),
            min_new_tokens=np.array([row.min_new_tokens for row in settings], np.int32),
            stop_ids=stop_ids,
        )


def draw_each(
    logits: Float[Array, "slots vocab"],
    bits: tuple[UInt32[Array, " slots"], UInt32[Array, " slots"]],
    settings: SlotSettings,
    *,
    generated: Int[Array, " slots"],
    top: int = 0,
) -> Drawn:
    """`draw` with settings of its own for each row: the tokens are those that `draw` gives with the same settings.

    What no row asks for is skipped at run time: the filters, stop tokens that may not be drawn yet.

    Args:
      generated: tokens that each response has, to be compared with `min_new_tokens`.
      top: how many of the most probable tokens are reported.
    """
    vocab = logits.shape[-1]
    scaled = logits * settings.inverse_temperature[:, None]
    forbid = (generated < settings.min_new_tokens)[:, None] & (settings.stop_ids >= 0)
    is_truncated = (settings.top_p < 1) | (settings.top_k > 0) | (settings.log_min_p > -jnp.inf)
    is_truncated &= ~settings.is_greedy
    rows = jnp.arange(logits.shape[0])[:, None]
    # Places beyond the vocabulary are dropped by the scatter; -1 would count from the end.
    places = jnp.where(forbid, settings.stop_ids, vocab)
    allowed = jax.lax.cond(jnp.any(forbid), lambda: scaled.at[rows, places].set(-jnp.inf, mode="drop"), lambda: scaled)
    kept = jax.lax.cond(
        jnp.any(is_truncated),
        lambda: jnp.where(is_truncated[:, None], _truncate_each(allowed, settings), allowed),
        lambda: allowed,
    )
    tokens, log_kept = _inverse_cdf(kept, bits)
    greedy = jax.lax.cond(
        jnp.any(settings.is_greedy), lambda: jnp.argmax(allowed, axis=-1).astype(jnp.int32), lambda: tokens
    )
    tokens = jnp.where(settings.is_greedy, greedy, tokens)
    at_stops = jnp.take_along_axis(scaled, jnp.minimum(places, vocab - 1), axis=-1)
    log_forbidden = jax.nn.logsumexp(jnp.where(forbid & (places < vocab), at_stops, -jnp.inf), axis=-1)
    log_total = jnp.logaddexp(log_kept, log_forbidden)
    is_partial = is_truncated | settings.is_greedy
    log_total = jax.lax.cond(
        jnp.any(is_partial),
        lambda: jnp.where(is_partial, jax.nn.logsumexp(scaled, axis=-1), log_total),
        lambda: log_total,
    )
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    drawn = Drawn(
        tokens,
        chosen - log_total,
        jnp.where(settings.is_greedy, 0.0, chosen - log_kept),
        jnp.zeros(tokens.shape, jnp.float32),
    )
    if not top:
        return drawn
    values, ids = jax.lax.top_k(scaled, min(top, vocab))
    return dataclasses.replace(drawn, top_ids=ids, top_logprobs=values - log_total[:, None])


def _truncate_each(logits: Float[Array, "slots vocab"], settings: SlotSettings) -> Float[Array, "slots vocab"]:
    """`_truncate` with filters of its own for each row."""
    top = jnp.max(logits, axis=-1, keepdims=True)

    def by_count(logits: Array) -> Array:
        same_zero = jnp.where(logits == 0, 0.0, logits)  # the search below tells -0 from 0
        wanted = jnp.asarray(settings.top_k, jnp.float32)[:, None]
        found = _keep_heaviest(same_zero, jnp.ones_like(logits), wanted)
        return jnp.where(settings.top_k[:, None] > 0, found, logits)

    def by_mass(logits: Array) -> Array:
        shares = jnp.exp(logits - top)
        wanted = jnp.asarray(settings.top_p)[:, None] * jnp.sum(shares, axis=-1, keepdims=True)
        return jnp.where(settings.top_p[:, None] < 1, _keep_heaviest(logits, shares, wanted), logits)

    logits = jax.lax.cond(jnp.any(settings.top_k > 0), by_count, lambda logits: logits, logits)
    logits = jax.lax.cond(jnp.any(settings.top_p < 1), by_mass, lambda logits: logits, logits)
    return jnp.where(logits >= top + settings.log_min_p[:, None], logits, -jnp.inf)


def _block_size(vocab: int) -> int:
    """Tokens in a block: a divisor of the vocabulary near its square root, else the root (the last block is padded)."""
    root = math.isqrt(vocab)
    near = [size for size in range(max(1, root // 4), 4 * root + 1) if vocab % size == 0]
    return min(near, key=lambda size: abs(math.log(size / root))) if near else root


def _inverse_cdf(
    logits: Float[Array, "batch vocab"], bits: tuple[UInt32[Array, " batch"], UInt32[Array, " batch"]]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """(tokens drawn from softmax(logits), log of its normalizer)."""
    vocab = logits.shape[-1]
    top = jnp.max(logits, axis=-1, keepdims=True)
    size = _block_size(vocab)
    if vocab % size:
        logits = jnp.pad(logits, ((0, 0), (0, -vocab % size)), constant_values=-jnp.inf)
    blocks = logits.reshape(logits.shape[0], -1, size)
    masses = jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1)
    block = _draw_index(masses, bits[0])
    inside = jnp.exp(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - top)
    token = block * size + _draw_index(inside, bits[1])
    return token, jnp.log(jnp.sum(masses, axis=-1)) + top[:, 0]


def _draw_index(weights: Float[Array, "batch n"], bits: UInt32[Array, " batch"]) -> Int[Array, " batch"]:
    """An index with probability proportional to its weight, up to 2^-31; never one of weight 0."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    sums = jnp.cumsum((weights / total * _FIXED_ONE).astype(jnp.uint32), axis=-1)
    point = _multiply_high(bits, sums[:, -1])
    return jnp.sum(sums <= point[:, None], axis=-1, dtype=jnp.int32)


def _multiply_high(a: UInt32[Array, " batch"], b: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
    """floor(a * b / 2^32), without 64-bit integers."""
    a_high, a_low = a >> 16, a & 0xFFFF
    b_high, b_low = b >> 16, b & 0xFFFF
    middle = a_high * b_low + ((a_low * b_low) >> 16)
    carry = (middle & 0xFFFF) + a_low * b_high
    return a_high * b_high + (middle >> 16) + (carry >> 16)


def _truncate(logits: Float[Array, "batch vocab"], sampling: SamplingParams) -> Float[Array, "batch vocab"]:
    """The logits with what the filters remove at minus infinity."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if sampling.top_p < 1:
        shares = jnp.exp(logits - top)
        wanted = max(sampling.top_p, _LEAST_TOP_P) * jnp.sum(shares, axis=-1, keepdims=True)
        logits = _keep_heaviest(logits, shares, wanted)
    if sampling.min_p > 0:
        logits = jnp.where(logits >= top + math.log(sampling.min_p), logits, -jnp.inf)
    return logits


def _keep_heaviest(
    logits: Float[Array, "batch vocab"], weights: Float[Array, "batch vocab"], wanted: Float[Array, "batch 1"]
) -> Float[Array, "batch vocab"]:
    """Keeps the fewest largest logits (and ties with the last) whose weights add up to at least `wanted`.

    Finds the threshold bit by bit, 32 passes over the vocabulary; a sort costs several times as much on CPU.
    """
    raw = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    negative = raw >> 31 == 1
    order = jnp.where(negative, ~raw, raw | jnp.uint32(1 << 31))  # unsigned integers in the order of the floats

    def refine(i: Array, threshold: Array) -> Array:
        candidate = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        above = jnp.sum(jnp.where(order >= candidate, weights, 0.0), axis=-1, keepdims=True)
        return jnp.where(above >= wanted, candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros(wanted.shape, jnp.uint32))
    return jnp.where(order >= threshold, logits, -jnp.inf)
