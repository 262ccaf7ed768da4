"""CISPO: clipped importance-sampling weights (MiniMax-M1, arXiv:2506.13585)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Aggregation, Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import check_shapes, importance_ratio, level_units
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Clipped, Decisions, finish
from sspo_jax.ranges import FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch


def cispo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    clip_low: Number = 1.0,
    clip_high: Number = 0.28,
    aggregation: str = "token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """CISPO, negated (arXiv:2506.13585 eq. 4 and 5): every token keeps a gradient, its weight is clipped.

        w_t  = stop_gradient(clip(r_t, 1 - clip_low, 1 + clip_high))
        J_t  = w_t * A_t * logprob_t
        loss = - sum over valid tokens ( J_t ) / number of valid tokens

    The value means nothing, the gradient does. `clip_low` 1 is no lower bound, as in the paper. Peers: verl caps at
    1 + clip_high, as the paper and here; TRL's `epsilon_high` is the cap itself, so its 5.0 is `clip_high=4.0`.
    `ratio/clip_fraction*` is the share of tokens whose *weight* is clipped; the bound does not look at the advantage.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      clip_low, clip_high: widths of the bounds of the weight below and above 1.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    Ratio 2 (weight 1.28), advantage 1, logprob log 2: 1.28 * 0.6931.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> loss, _ = cispo_loss(jnp.log(2 * one), 0 * one, one, one > 0)
    >>> round(float(loss), 4)
    -0.8872
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    units = level_units("token", mask)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, gradient="plain", log_ratio_limit=log_ratio_limit)
    ratio = jax.lax.stop_gradient(ratio)
    weight = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    objective = weight * jnp.where(mask, advantages, 0).astype(ratio.dtype)
    objective = objective * jnp.where(mask, logprobs, 0).astype(ratio.dtype)
    clipped = Clipped(mask & (ratio < 1 - clip_low), mask & (ratio > 1 + clip_high), jnp.zeros_like(mask))
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cispo(Objective):
    """CISPO (arXiv:2506.13585) as a value; see `cispo_loss`."""

    function = staticmethod(cispo_loss)

    aggregation: Aggregation = "token-mean"
    """From tokens to a scalar: see `sspo_jax.losses.aggregation`."""
    clip_low: NotNegative = 1.0
    """Width of the bound of the weight below 1; 1 is none."""
    clip_high: NotNegative = 0.28
    """Width of the bound of the weight above 1."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of the log-ratio, nats; None means none."""

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        units, mask, limit = level_units("token", batch.mask), batch.mask, self.log_ratio_limit
        ratio = importance_ratio(logprobs, batch.old_logprobs, mask, units, gradient="plain", log_ratio_limit=limit)
        low, high = 1 - self.clip_low, 1 + self.clip_high
        clipped = Clipped(mask & (ratio < low), mask & (ratio > high), jnp.zeros_like(mask))
        return Decisions.between(ratio, low, high, clipped)
