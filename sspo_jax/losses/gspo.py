"""GSPO: Group Sequence Policy Optimization (arXiv:2507.18071)."""

import dataclasses

from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import Gradient, check_shapes, importance_ratio, level_units
from sspo_jax.losses.surrogate import RESPONSE_LOG_RATIO_LIMIT, Decisions, clipped_surrogate, finish
from sspo_jax.ranges import FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch


def gspo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    clip_low: Number = 3e-4,
    clip_high: Number = 4e-4,
    gradient: str = "token",
    aggregation: str = "seq-mean-token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = RESPONSE_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """GSPO, negated (arXiv:2507.18071): the ratio of a whole response, length-normalised.

        log s = (1 / L) * sum over the response of (logprob_t - old_logprob_t)                          eq. 7
        r_t   = s                                                               gradient "plain", GSPO, eq. 5
                stop_gradient(s) * exp(logprob_t - stop_gradient(logprob_t))    gradient "token", GSPO-token, eq. 14
        J_t   = min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
        loss  = - mean over responses ( mean over their valid tokens ( J_t ) )

    Both forms have one value, and one gradient when the advantage is constant in a response. The clamp of log s at 10,
    from above alone, is verl's; verl also fixes the aggregation. With the common
    default of 0.2 nothing is ever clipped.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      clip_low, clip_high: widths of the bounds below and above 1.
      gradient: "token" or "plain".
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    A row with log-ratios log 2 and log 8 has ratio 4, clipped at 1.0004.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 2))
    >>> loss, _ = gspo_loss(jnp.log(jnp.array([[2.0, 8.0]])), 0 * one, one, one > 0)
    >>> round(float(loss), 6)
    -1.0004
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    units = level_units("response", mask, segment_ids=segment_ids)
    ratio = importance_ratio(
        logprobs,
        old_logprobs,
        mask,
        units,
        gradient=gradient,
        log_ratio_limit=log_ratio_limit,
        clamp_both_sides=False,
    )
    objective, clipped = clipped_surrogate(ratio, advantages, mask, clip_low, clip_high)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gspo(Objective):
    """GSPO (arXiv:2507.18071) as a value; see `gspo_loss`."""

    function = staticmethod(gspo_loss)

    clip_low: NotNegative = 3e-4
    """Width of the bound below 1."""
    clip_high: NotNegative = 4e-4
    """Width of the bound above 1."""
    gradient: FileOnly[Gradient] = "token"
    """Gradient through each token's own ratio ("token", GSPO-token) or the geometric mean ("plain", GSPO)."""
    log_ratio_limit: FileOnly[Positive | None] = RESPONSE_LOG_RATIO_LIMIT
    """Clamp of log s from above, nats; None means none."""

    @classmethod
    def luspo(cls, **changes: object) -> "Gspo":
        """LUSPO (arXiv:2602.05261): summed over the response, so that length does not dilute it; bounds as TRL has."""
        return dataclasses.replace(cls(clip_low=2e-3, clip_high=2.5e-3, aggregation="seq-mean-token-sum"), **changes)

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        ratio = importance_ratio(
            logprobs,
            batch.old_logprobs,
            batch.mask,
            level_units("response", batch.mask, segment_ids=batch.segment_ids),
            gradient="plain",
            log_ratio_limit=self.log_ratio_limit,
            clamp_both_sides=False,
        )
        _, clipped = clipped_surrogate(ratio, batch.advantages, batch.mask, self.clip_low, self.clip_high)
        return Decisions.between(ratio, 1 - self.clip_low, 1 + self.clip_high, clipped)
