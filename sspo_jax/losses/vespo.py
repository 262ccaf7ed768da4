"""VESPO: Variational Sequence-Level Soft Policy Optimization (arXiv:2602.10693)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Aggregation, Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import check_shapes, clamp_log_ratio, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Clipped, Decisions, finish
from sspo_jax.ranges import FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch

# Nats; below it a response has no weight to speak of, and with exponent 0 the weight would still be finite.
_LOWEST = math.log(1e-8)


def vespo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    exponent_positive: Number = 2.0,
    rate_positive: Number = 3.0,
    exponent_negative: Number = 3.0,
    rate_negative: Number = 2.0,
    aggregation: str = "token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """VESPO, negated (arXiv:2602.10693, as TRL computes it): a smooth weight of the whole response, without a clip.

        log W = sum over the response of (logprob_t - old_logprob_t), not divided by its length
        phi   = W^k exp(lambda (1 - W)),  k and lambda by the sign of A_t
        J_t   = stop_gradient(phi) A_t logprob_t
        loss  = - sum over valid tokens ( J_t ) / number of valid tokens

    phi is 1 at W = 1, falls to 0 on both sides, and is largest at W = k / lambda. The value means nothing, the gradient
    does. Peers: TRL multiplies W by the weight that corrects the sampler; here that is `weights`, as for every loss.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      exponent_positive, rate_positive: k and lambda where A_t >= 0.
      exponent_negative, rate_negative: k and lambda where A_t < 0.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of each log-ratio and of log W from above, nats; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*` (of W), `policy/kl_old`, `loss/policy`.

    W = 2, advantage 1, logprob log 2: 4 exp(-3) log 2.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> round(float(vespo_loss(jnp.log(2 * one), 0 * one, one, one > 0)[0]), 4)
    -0.138
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    log_weight = _log_weight(logprobs, old_logprobs, mask, segment_ids, log_ratio_limit)
    ratio = jnp.exp(log_weight)
    advantages = jnp.where(mask, advantages, 0).astype(ratio.dtype)
    exponent = jnp.where(advantages >= 0, exponent_positive, exponent_negative).astype(ratio.dtype)
    rate = jnp.where(advantages >= 0, rate_positive, rate_negative).astype(ratio.dtype)
    weight = jnp.exp(exponent * log_weight + rate * (1 - ratio))
    objective = weight * advantages * jnp.where(mask, logprobs, 0).astype(ratio.dtype)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, Clipped.nowhere(mask), logprobs, old_logprobs, mask, weights, reduction)


def _log_weight(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    segment_ids: Int[Array, "batch time"] | None,
    limit: Number | None,
) -> Float[Array, "batch time"]:
    """log W of each token's response, nats, no gradient; 0 where the mask is false."""
    units = level_units("response", mask, segment_ids=segment_ids)
    log_ratio = clamp_log_ratio(jax.lax.stop_gradient(token_log_ratio(logprobs, old_logprobs, mask)), limit)
    total = unit_mean(log_ratio, mask, units) * units.lengths.astype(log_ratio.dtype)
    return jnp.clip(total, _LOWEST, limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vespo(Objective):
    """VESPO (arXiv:2602.10693) as a value; see `vespo_loss`."""

    function = staticmethod(vespo_loss)

    aggregation: Aggregation = "token-mean"
    """From tokens to a scalar: see `sspo_jax.losses.aggregation`."""
    exponent_positive: NotNegative = 2.0
    """k where the advantage is not negative: how fast the weight falls below 1."""
    rate_positive: NotNegative = 3.0
    """lambda there: how fast it falls above 1."""
    exponent_negative: NotNegative = 3.0
    """k where the advantage is negative."""
    rate_negative: NotNegative = 2.0
    """lambda there."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of each log-ratio and of their sum, nats; None means none."""

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        """The ratio of the response, and no bounds."""
        mask = batch.mask
        log_weight = _log_weight(logprobs, batch.old_logprobs, mask, batch.segment_ids, self.log_ratio_limit)
        return Decisions.between(jnp.exp(log_weight), 0.0, float("inf"), Clipped.nowhere(mask))
