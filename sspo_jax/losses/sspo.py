"""SSPO: Subsentence-level Policy Optimization (arXiv:2511.04256v2). Not arXiv:2602.19327, which shares the name.

The paper's abstract is what was available; the delimiters, the clip rule and the ranges are our interpretation of it,
each an option here and explained in docs/algorithm.md.
"""

import dataclasses
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Reduction, masked_mean
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import (
    Gradient,
    Level,
    Units,
    check_shapes,
    float_type,
    importance_ratio,
    level_units,
    unit_mean,
)
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Decisions, clipped_surrogate, finish
from sspo_jax.ranges import AboveOne, FileOnly, NotNegative, Positive, Range
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch

EntropyRule = Literal["power", "tanh", "vocabulary"]
EntropyBounds = Literal["both", "low", "high"]
EntropyLevel = Literal["unit", "token"]


def sspo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    subsentence_ids: Int[Array, "batch time"] | None,
    entropies: Float[Array, "batch time"] | None = None,
    *,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    gradient: str = "token",
    entropy_exponent: Number = 0.5,
    entropy_floor: Number = 0.5,
    entropy_ceiling: Number = 2.0,
    mean_entropy: Scalar | None = None,
    length_reference: Number | None = None,
    aggregation: str = "seq-mean-token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    ratio_level: str = "subsentence",
    entropy_rule: str = "power",
    entropy_bounds: str = "both",
    entropy_level: str = "unit",
    entropy_std: Scalar | None = None,
    vocab_size: int | None = None,
    dual_clip: Number | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """SSPO objective, negated (arXiv:2511.04256v2, our interpretation).

        log s_k = (1 / L_k) * sum over subsentence S_k of (logprob_t - old_logprob_t)
        r_t     = stop_gradient(s_k) * exp(logprob_t - stop_gradient(logprob_t)), or with gradient "plain" s_k itself
        J_t     = min(r_t A_t, clip(r_t, 1 - clip_low * g_k * l_k, 1 + clip_high * g_k * l_k) A_t)
        loss    = - mean over responses ( mean over their valid tokens ( J_t ) )

    Args:
      logprobs, old_logprobs, advantages, mask: [batch, time], as in `grpo_loss`.
      subsentence_ids: [batch, time], any integers, equal inside a subsentence; None with another `ratio_level`.
      entropies, mean_entropy, entropy_std: of the old policy, nats, see `entropy_scale`; without entropies g_k = 1.
      other options: those of `grpo_loss`, and the fields of `Sspo`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`, `clip/scale_mean`.

    A row of two subsentences with ratios 4 (clipped at 1.2) and 1, advantage 1: (1.2 + 1.2 + 1) / 3.

    >>> import jax.numpy as jnp
    >>> ids = jnp.array([[0, 0, 1]])
    >>> loss, _ = sspo_loss(jnp.log(jnp.array([[2.0, 8.0, 1.0]])), jnp.zeros((1, 3)), jnp.ones((1, 3)), ids >= 0, ids)
    >>> round(float(loss), 6)
    -1.133333
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    check_shapes(logprobs, subsentence_ids=subsentence_ids, entropies=entropies)
    units = level_units(ratio_level, mask, subsentence_ids, segment_ids)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, gradient=gradient, log_ratio_limit=log_ratio_limit)
    low, high = bound_scales(
        entropies,
        mask,
        units,
        length_reference=length_reference,
        exponent=entropy_exponent,
        floor=entropy_floor,
        ceiling=entropy_ceiling,
        mean_entropy=mean_entropy,
        entropy_std=entropy_std,
        rule=entropy_rule,
        bounds=entropy_bounds,
        level=entropy_level,
        vocab_size=vocab_size,
        dtype=ratio.dtype,
    )
    objective, clipped = clipped_surrogate(ratio, advantages, mask, clip_low * low, clip_high * high, dual_clip)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    loss, metrics = finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)
    return loss, metrics | {"clip/scale_mean": masked_mean((low + high) / 2, mask)}


def bound_scales(
    entropies: Float[Array, "batch time"] | None,
    mask: Bool[Array, "batch time"],
    units: Units,
    *,
    length_reference: Number | None,
    bounds: str,
    dtype: DTypeLike,
    **entropy_options: Any,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
    """The factors of `clip_low` and of `clip_high` at each token: g_k l_k, and l_k alone for a bound left as it is.

    Args:
      entropies: [batch, time], nats, of the old policy; None means g_k = 1.
      mask, units: the valid tokens and their units.
      length_reference: of `length_scale`.
      bounds: which of the two g_k moves: "both", "low" or "high".
      dtype: of the result.
      entropy_options: of `entropy_scale`.
    """
    if bounds not in get_args(EntropyBounds):
        raise ValueError(f"entropy_bounds is {bounds!r}, expected one of {', '.join(get_args(EntropyBounds))}")
    lengths = length_scale(units, length_reference, dtype)
    if entropies is None:
        return lengths, lengths
    adapted = lengths * entropy_scale(entropies, mask, units, **entropy_options).astype(dtype)
    return adapted if bounds != "high" else lengths, adapted if bounds != "low" else lengths


def length_scale(
    units: Units, length_reference: Number | None, dtype: DTypeLike = jnp.float32
) -> Float[Array, "batch time"]:
    """l_k = clip(sqrt(L_ref / L_k), 1/4, 4), at each token; 1 without `length_reference`.

    For independent tokens the standard deviation of log s_k falls like 1 / sqrt(L_k): with this scale a bound is the
    same number of standard deviations for short and long subsentences.
    """
    if length_reference is None:
        return jnp.ones(units.lengths.shape, dtype)
    if not length_reference > 0:
        raise ValueError(
            f"length_reference is {length_reference}, expected a positive number of tokens, or None for none"
        )
    return jnp.clip(jnp.sqrt(length_reference / units.lengths.astype(dtype)), 0.25, 4.0)


def entropy_scale(
    entropies: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    units: Units,
    *,
    exponent: Number = 0.5,
    floor: Number = 0.5,
    ceiling: Number = 2.0,
    mean_entropy: Scalar | None = None,
    entropy_std: Scalar | None = None,
    rule: str = "power",
    level: str = "unit",
    vocab_size: int | None = None,
) -> Float[Array, "batch time"]:
    """g_k, the factor of the bounds that the entropy sets: bounded and rising in it, detached.

        H_k          = mean_{t in S_k} H_t                      level "unit"; H_t itself with "token"
        "power"      : g = clip((H_k / Hbar) ** exponent, floor, ceiling)
        "tanh"       : z = tanh((H_k - Hbar) / std),  g = 1 + z (ceiling - 1) for z > 0, else 1 + z (1 - floor)
        "vocabulary" : g = clip((H_k / log(vocab_size)) ** exponent, floor, ceiling)

    g = 1 where all entropies are equal, also all 0; not so for "vocabulary".

    Args:
      entropies: [batch, time], nats, of the old policy.
      mask, units: the valid tokens and their units.
      exponent, floor, ceiling: alpha, g_min <= 1, g_max >= 1.
      mean_entropy: Hbar in nats, over all valid tokens of the rollout batch; None means over these rows.
      entropy_std: standard deviation of H_k over those tokens, nats, read by "tanh"; None means over these rows.
      rule: which of the three.
      level: entropy of the unit, or of each token on its own.
      vocab_size: read by "vocabulary".
    """
    if not 0 < floor <= 1 <= ceiling:
        raise ValueError(
            f"entropy_floor is {floor} and entropy_ceiling is {ceiling}, expected 0 < floor <= 1 <= ceiling"
        )
    dtype = float_type(entropies)
    # Entropies are at least 0; a float32 sum may miss that by a rounding, and a root of it would be NaN.
    entropies = jax.lax.stop_gradient(jnp.maximum(jnp.where(mask, entropies, 0).astype(dtype), 0))
    if level not in get_args(EntropyLevel):
        raise ValueError(f"entropy_level is {level!r}, expected one of {', '.join(get_args(EntropyLevel))}")
    of_unit = unit_mean(entropies, mask, units) if level == "unit" else entropies
    if rule == "vocabulary":
        if vocab_size is None:
            raise ValueError("entropy_rule 'vocabulary' needs vocab_size, the number of real tokens")
        return jnp.clip((of_unit / jnp.log(jnp.asarray(vocab_size, dtype))) ** exponent, floor, ceiling)
    mean = masked_mean(entropies, mask).value if mean_entropy is None else mean_entropy
    mean = jax.lax.stop_gradient(jnp.asarray(mean, dtype))
    if rule == "power":
        relative = jnp.where(mean > 0, of_unit / jnp.where(mean > 0, mean, 1), 1)
        return jnp.clip(relative**exponent, floor, ceiling)
    if rule == "tanh":
        if entropy_std is None:
            entropy_std = jnp.sqrt(masked_mean((of_unit - mean) ** 2, mask).value)
        std = jax.lax.stop_gradient(jnp.asarray(entropy_std, dtype))
        # Equal entropies differ from their mean by a rounding, and so would the rounding from its own size.
        is_spread = std > 64 * jnp.finfo(dtype).eps * mean
        z = jnp.tanh(jnp.where(is_spread, (of_unit - mean) / jnp.where(is_spread, std, 1), 0))
        return 1 + z * jnp.where(z > 0, ceiling - 1, 1 - floor)
    raise ValueError(f"entropy_rule is {rule!r}, expected one of {', '.join(get_args(EntropyRule))}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sspo(Objective):
    """SSPO (arXiv:2511.04256v2) as a value; see `sspo_loss`. Without arguments it is `Sspo.paper_like()`."""

    function = staticmethod(sspo_loss)

    clip_low: NotNegative = 0.2
    """Width of the bound below 1."""
    clip_high: NotNegative = 0.2
    """Width of the bound above 1."""
    gradient: FileOnly[Gradient] = "token"
    """Gradient through each token's own ratio ("token") or through the geometric mean ("plain")."""
    ratio_level: Level = "subsentence"
    """The unit of the ratio: "token" is GRPO's, "response" GSPO's; "turn" is what the policy says at a time,
    between texts of an environment."""
    adapt_entropy: bool = True
    """Whether the entropy of a unit scales its bounds."""
    entropy_rule: FileOnly[EntropyRule] = "power"
    """How: a power of H_k / Hbar, tanh of the z-score, or H_k over log(vocabulary)."""
    entropy_exponent: Annotated[float | int, Range(-100, 100)] = 0.5
    """Exponent alpha of the rules that have a power."""
    entropy_floor: FileOnly[NotNegative] = 0.5
    """The smallest factor g_min."""
    entropy_ceiling: FileOnly[NotNegative] = 2.0
    """The largest factor g_max."""
    entropy_bounds: FileOnly[EntropyBounds] = "both"
    """Which bounds the factor moves."""
    entropy_level: FileOnly[EntropyLevel] = "unit"
    """Entropy of the unit, or of each token."""
    vocab_size: FileOnly[Annotated[int, Range(2)] | None] = None
    """Number of real tokens, read by the rule "vocabulary"; None: in a run, those of the tokenizer."""
    length_reference: Positive | None = None
    """L_ref of the length scale, in tokens; None turns it off."""
    dual_clip: AboveOne | None = None
    """Largest ratio at a negative advantage; None means none."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of log s_k, nats; None means none."""

    @classmethod
    def paper_like(cls, **changes: object) -> "Sspo":
        """The published range of one token, 0.2 / 0.2, and no length scale."""
        return dataclasses.replace(cls(clip_low=0.2, clip_high=0.2, length_reference=None), **changes)

    @classmethod
    def calibrated(cls, **changes: object) -> "Sspo":
        """0.02 / 0.028 at 10 tokens, between the ranges published for one token and for whole responses."""
        return dataclasses.replace(cls(clip_low=0.02, clip_high=0.028, length_reference=10.0), **changes)

    @classmethod
    def lpo(cls, **changes: object) -> "Sspo":
        """LPO: the ratio of a sentence, with the segmenter's rule "sentence"; no entropy. The bounds are our choice."""
        return dataclasses.replace(cls(clip_low=0.02, clip_high=0.028, adapt_entropy=False), **changes)

    def with_budget(self, max_new_tokens: int, vocab_size: int | None = None) -> Objective:
        """As every objective; also sets `vocab_size` where the rule "vocabulary" reads it and it is not set."""
        run = super().with_budget(max_new_tokens)
        if self.entropy_rule == "vocabulary" and self.vocab_size is None:
            return dataclasses.replace(run, vocab_size=vocab_size)
        return run

    @property
    def reads_entropies(self) -> bool:
        return self.adapt_entropy

    @property
    def entropy_unit(self) -> Level:
        return "token" if self.entropy_level == "token" else self.ratio_level

    def options(self, batch: TrainBatch) -> dict[str, Any]:
        options = super().options(batch) | {"subsentence_ids": batch.subsentence_ids}
        is_adapted = options.pop("adapt_entropy")
        return options | {
            "entropies": batch.entropies if is_adapted else None,
            "mean_entropy": batch.mean_entropy,
            "entropy_std": batch.entropy_std,
        }

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        mask, limit = batch.mask, self.log_ratio_limit
        units = level_units(self.ratio_level, mask, batch.subsentence_ids, batch.segment_ids)
        ratio = importance_ratio(logprobs, batch.old_logprobs, mask, units, gradient="plain", log_ratio_limit=limit)
        entropy = {
            "exponent": self.entropy_exponent,
            "floor": self.entropy_floor,
            "ceiling": self.entropy_ceiling,
            "mean_entropy": batch.mean_entropy,
            "entropy_std": batch.entropy_std,
            "rule": self.entropy_rule,
            "level": self.entropy_level,
            "vocab_size": self.vocab_size,
        }
        entropies = batch.entropies if self.adapt_entropy else None
        lengths = {"length_reference": self.length_reference, "dtype": ratio.dtype}
        low, high = bound_scales(entropies, mask, units, bounds=self.entropy_bounds, **lengths, **entropy)
        low, high = self.clip_low * low, self.clip_high * high
        _, clipped = clipped_surrogate(ratio, batch.advantages, mask, low, high, self.dual_clip)
        scale = jnp.ones_like(ratio) if entropies is None else entropy_scale(entropies, mask, units, **entropy)
        return Decisions(ratio, 1 - low, 1 + high, clipped, scale, length_scale(units, **lengths))
