"""GMPO: Geometric-Mean Policy Optimization (arXiv:2507.20673)."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import check_shapes, clamp_log_ratio, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Clipped, Decisions, finish
from sspo_jax.ranges import FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch


def gmpo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    clip_low: Number = 0.4,
    clip_high: Number = 0.4,
    aggregation: str = "seq-mean-token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """GMPO, negated (arXiv:2507.20673 eq. 4 and algorithm 1): the geometric mean of clipped token ratios.

        d_t  = logprob_t - old_logprob_t
        c_t  = min(d_t, clip_high) where A > 0,  max(d_t, -clip_low) where A < 0
        J    = A * exp( (1 / L) * sum over the response of c_t )
        loss = - mean over responses ( J )

    The bounds are on the log-ratio (nats), so 0.4 is the paper's (e^-0.4, e^0.4). A is the mean advantage of the
    response: as in verl, the formula wants it constant there. Departure from verl: `ratio/clip_fraction` counts the
    tokens whose gradient the clip removes; verl counts every d_t outside the two bounds, whatever the sign of A.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      clip_low, clip_high: bounds of the log-ratio, nats.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    Log-ratios 1 (clipped at 0.4) and 0, advantage 1: exp(0.2).

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 2))
    >>> loss, _ = gmpo_loss(jnp.array([[1.0, 0.0]]), 0 * one, one, one > 0)
    >>> round(float(loss), 6)
    -1.221403
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    units = level_units("response", mask, segment_ids=segment_ids)
    log_ratio = clamp_log_ratio(token_log_ratio(logprobs, old_logprobs, mask), log_ratio_limit)
    advantages = unit_mean(advantages.astype(log_ratio.dtype), mask, units)
    is_high = (advantages > 0) & (log_ratio > clip_high)
    is_low = (advantages < 0) & (log_ratio < -clip_low)
    bounded = jnp.where(is_high, clip_high, jnp.where(is_low, -clip_low, log_ratio))
    ratio = jnp.exp(unit_mean(bounded, mask, units))
    objective = ratio * advantages
    clipped = Clipped(is_low, is_high, jnp.zeros_like(mask))
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gmpo(Objective):
    """GMPO (arXiv:2507.20673) as a value; see `gmpo_loss`."""

    function = staticmethod(gmpo_loss)

    clip_low: NotNegative = 0.4
    """Bound of the log-ratio below 0, nats."""
    clip_high: NotNegative = 0.4
    """Bound of the log-ratio above 0, nats."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of each log-ratio, nats; None means none."""

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        """Of each token, before the mean over the response."""
        mask = batch.mask
        log_ratio = clamp_log_ratio(token_log_ratio(logprobs, batch.old_logprobs, mask), self.log_ratio_limit)
        units = level_units("response", mask, segment_ids=batch.segment_ids)
        advantages = unit_mean(batch.advantages.astype(log_ratio.dtype), mask, units)
        clipped = Clipped(
            (advantages < 0) & (log_ratio < -self.clip_low),
            (advantages > 0) & (log_ratio > self.clip_high),
            jnp.zeros_like(mask),
        )
        return Decisions.between(jnp.exp(log_ratio), math.exp(-self.clip_low), math.exp(self.clip_high), clipped)
