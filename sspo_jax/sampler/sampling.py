"""From logits to a token: temperature, top-k, top-p, min-p, greedy; exact, with 64 random bits a token.

Tokens are drawn by inverse CDF in two levels: first a block of some sqrt(vocab) tokens, then a token inside it, each
with 32 random bits of its own and with cumulative sums in integers. Float32 cumulative sums over 152 k entries lose
tokens whose probability is below about 1e-7 of the sum before them; integer sums are exact, and a token is drawn with
its float32 probability up to 2^-31 of its block. It also costs one pass of `exp`, where Gumbel noise for every token
of the vocabulary (`jax.random.categorical`) is about a third of a decoding step on CPU.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

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
            ("temperature", "0 or more", math.isfinite(self.temperature) and self.temperature >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("top_k", "0 or more", self.top_k >= 0),
            ("min_p", "in [0, 1]", 0 <= self.min_p <= 1),
            ("stop_token_ids", "0 or more each", all(token >= 0 for token in self.stop_token_ids)),
            ("stop_strings", "not empty each", all(self.stop_strings)),
            ("min_new_tokens", f"in [0, {self.max_new_tokens}]", 0 <= self.min_new_tokens <= self.max_new_tokens),
        ):
            if not is_valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}, want {wanted}")

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
        logits = _keep_heaviest(logits, shares, sampling.top_p * jnp.sum(shares, axis=-1, keepdims=True))
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
