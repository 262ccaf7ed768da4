"""Correction of the gap between the sampler's probabilities and the training program's (rollout correction).

The sampler decodes with a cache, other kernels and perhaps another precision, so the tokens were really drawn from
`sampler_logprobs`, not from `old_logprobs`. The weight of a token is the ratio between the two, truncated, or 0 where
it is too far from 1.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import masked_max, masked_mean
from sspo_jax.losses.ratios import check_shapes, clamp_log_ratio, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT
from sspo_jax.ranges import FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, Number, TrainBatch

CorrectionLevel = Literal["token", "subsentence", "response"]
CorrectionMode = Literal["off", "truncate", "reject", "truncate-reject"]
Reduction = Literal["mean", "sum"]


def correction_weights(
    old_logprobs: Float[Array, "batch time"],
    sampler_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    mode: str = "truncate",
    level: str = "token",
    reduction: str = "mean",
    truncate_at: Number = 2.0,
    reject_below: Number = 0.5,
    reject_above: Number = 2.0,
    subsentence_ids: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
    """Detached factors of the objective, per token; 0 where the mask is false.

        token:       w_t = exp(old_logprob_t - sampler_logprob_t)
        subsentence: w   = exp(mean, or sum, of those differences over the subsentence)
        response:    w   = exp(mean, or sum, of those differences over the response)
        truncate:  min(w, truncate_at)                        truncated importance sampling
        reject:    1 where reject_below <= w <= reject_above, else 0
        truncate-reject: min(w, truncate_at) where it is kept, else 0

    A rejected token keeps its place in the denominator, so that denominators do not depend on log-probs; verl takes it
    out of the mask instead. The response level with `mean` is the geometric mean that verl calls "geometric". A sum
    grows with the length of what it is over: of 3,000 tokens whose differences are noise of 0.02 nats each, it has a
    standard deviation of 1.1, and half of the responses lie outside bounds of 0.5 and 2.

    Args:
      old_logprobs, sampler_logprobs: [batch, time], nats.
      mask: [batch, time], true where a token enters the loss.
      mode, level, reduction: see above.
      truncate_at, reject_below, reject_above: ratios.
      subsentence_ids: [batch, time], for that level.
      segment_ids: [batch, time], packed responses.

    >>> import jax.numpy as jnp
    >>> old, sampler = jnp.log(jnp.array([[0.5, 0.5, 0.5]])), jnp.log(jnp.array([[0.5, 0.1, 1.0]]))
    >>> [round(float(w), 4) for w in correction_weights(old, sampler, jnp.ones((1, 3), bool))[0]]
    [1.0, 2.0, 0.5]
    """
    ids = {"subsentence_ids": subsentence_ids, "segment_ids": segment_ids}
    raw = raw_weights(old_logprobs, sampler_logprobs, mask, level=level, reduction=reduction, **ids)
    bounds = {"truncate_at": truncate_at, "reject_below": reject_below, "reject_above": reject_above}
    return jnp.where(mask, _factors(raw, mode, **bounds), 0)


def raw_weights(
    old_logprobs: Float[Array, "batch time"],
    sampler_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    level: str,
    reduction: str,
    subsentence_ids: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
    """The weights w of `correction_weights` before they are truncated or rejected; 1 where the mask is false."""
    check_shapes(
        old_logprobs,
        sampler_logprobs=sampler_logprobs,
        mask=mask,
        subsentence_ids=subsentence_ids,
        segment_ids=segment_ids,
    )
    if level not in get_args(CorrectionLevel):
        raise ValueError(f"correction level is {level!r}, expected one of {', '.join(get_args(CorrectionLevel))}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(get_args(Reduction))}")
    log_weight = jax.lax.stop_gradient(token_log_ratio(old_logprobs, sampler_logprobs, mask))
    if level != "token":
        units = level_units(level, mask, subsentence_ids, segment_ids)
        log_weight = unit_mean(log_weight, mask, units)
        if reduction == "sum":
            log_weight = log_weight * units.lengths.astype(log_weight.dtype)
    return jnp.exp(clamp_log_ratio(log_weight, TOKEN_LOG_RATIO_LIMIT))


def _factors(
    raw: Float[Array, "batch time"], mode: str, *, truncate_at: Number, reject_below: Number, reject_above: Number
) -> Float[Array, "batch time"]:
    """What a mode makes of the weights."""
    if mode not in get_args(CorrectionMode):
        raise ValueError(f"correction mode is {mode!r}, expected one of {', '.join(get_args(CorrectionMode))}")
    factor = jnp.minimum(raw, truncate_at) if mode.startswith("truncate") else jnp.ones_like(raw)
    if mode.endswith("reject"):
        factor = jnp.where((raw >= reject_below) & (raw <= reject_above), factor, 0)
    return factor


def off_policy_mask(
    logprobs: Float[Array, "batch time"],
    sampler_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    threshold: Number,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Bool[Array, "batch time"]:
    """Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556): what is kept; false where the mask is.

    A response is left out where its advantage is negative and its mean log-ratio mean_t(sampler_logprob_t - logprob_t)
    is above `threshold`: the policy has moved away from it already. Both the gap to the sampler and the updates since
    count. It keeps its place in the denominator.

    Args:
      logprobs, sampler_logprobs: [batch, time], nats, new policy and the policy the tokens were drawn from.
      advantages: [batch, time]; of a response its mean counts.
      mask: [batch, time], true where a token enters the loss.
      threshold: nats a token.
      segment_ids: [batch, time], packed responses.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((2, 1))
    >>> off_policy_mask(-2 * one, -one, jnp.array([[1.0], [-1.0]]), one > 0, threshold=0.5)[:, 0].tolist()
    [True, False]
    """
    check_shapes(logprobs, sampler_logprobs=sampler_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids)
    units = level_units("response", mask, segment_ids=segment_ids)
    gap = unit_mean(jax.lax.stop_gradient(token_log_ratio(sampler_logprobs, logprobs, mask)), mask, units)
    return mask & ~((unit_mean(advantages, mask, units) < 0) & (gap > threshold))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutCorrection:
    """How an objective corrects for the sampler; see `correction_weights`."""

    mode: CorrectionMode = "off"
    """Truncated weights, rejection, both, or nothing."""
    level: FileOnly[CorrectionLevel] = "token"
    """A weight per token, or one per subsentence or response."""
    reduction: FileOnly[Reduction] = "mean"
    """How the log-ratios of a subsentence or response become one: their mean (geometric), or their sum, which grows
    with the length."""
    truncate_at: FileOnly[Positive] = 2.0
    """The largest weight."""
    reject_below: FileOnly[NotNegative] = 0.5
    """Weights below this are set to 0."""
    reject_above: FileOnly[Positive] = 2.0
    """Weights above this are set to 0."""

    def __call__(self, batch: TrainBatch) -> tuple[Float[Array, "batch time"] | None, dict[str, Mean | Max]]:
        """The factors for `batch`, None when off, and metrics of the weights before they are truncated or rejected."""
        if self.mode == "off":
            return None, {}
        mask = batch.mask
        raw = raw_weights(
            batch.old_logprobs,
            batch.sampler_logprobs,
            mask,
            level=self.level,
            reduction=self.reduction,
            subsentence_ids=batch.subsentence_ids,
            segment_ids=batch.segment_ids,
        )
        bounds = {name: getattr(self, name) for name in ("truncate_at", "reject_below", "reject_above")}
        weights = jnp.where(mask, _factors(raw, self.mode, **bounds), 0)
        return weights, {
            "correction/weight_mean": masked_mean(raw, mask),
            "correction/weight_max": masked_max(raw, mask),
            "correction/truncated_fraction": masked_mean((weights < raw) & (weights > 0), mask),
            "correction/rejected_fraction": masked_mean(weights == 0, mask),
        }
