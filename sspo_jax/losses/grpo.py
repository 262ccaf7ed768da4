"""GRPO (arXiv:2402.03300), and its variants Dr. GRPO (arXiv:2503.20783) and DAPO (arXiv:2503.14476).

The three are one token-level clipped surrogate; they differ in bounds and aggregation. Their KL term, where a paper
has one, is `Objective.kl_coefficient`.
"""

import dataclasses
import functools

from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import check_shapes, importance_ratio, level_units
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Decisions, clipped_surrogate, finish
from sspo_jax.ranges import AboveOne, FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch


def grpo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    dual_clip: Number | None = None,
    aggregation: str = "seq-mean-token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """GRPO's clipped surrogate, negated (arXiv:2402.03300 eq. 3, without its KL term).

        r_t  = exp(logprob_t - old_logprob_t)
        J_t  = min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
        loss = - mean over responses ( mean over their valid tokens ( J_t ) )

    Peers: verl clamps the log-ratio at 20, as here, and aggregates by token-mean unless told; TRL does not clamp.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      clip_low, clip_high: widths of the bounds below and above 1.
      dual_clip: c of arXiv:1912.09729, the largest ratio at a negative advantage; None means none.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    Ratios 2 (clipped at 1.2), 0.5 and 1 with advantage 1: (1.2 + 0.5 + 1) / 3.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 3))
    >>> loss, metrics = grpo_loss(jnp.log(jnp.array([[2.0, 0.5, 1.0]])), 0 * one, one, one > 0)
    >>> round(float(loss), 6), round(float(metrics["ratio/clip_fraction"].value), 4)
    (-0.9, 0.3333)
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    units = level_units("token", mask)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, gradient="plain", log_ratio_limit=log_ratio_limit)
    objective, clipped = clipped_surrogate(ratio, advantages, mask, clip_low, clip_high, dual_clip)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


dr_grpo_loss = functools.partial(grpo_loss, aggregation="seq-mean-token-sum-norm")
dr_grpo_loss.__doc__ = """Dr. GRPO: `grpo_loss` without the length bias (arXiv:2503.20783 eq. 2 and section 3.2).

    loss = - mean over responses ( sum over their valid tokens ( J_t ) / norm_length )

`norm_length` is the generation budget in tokens; None means the width of the rows, as in verl (TRL divides by the
budget). Earlier versions of verl sum over the responses instead of taking their mean. The paper's advantages are
`group_relative(..., scale="none")`.
"""

dapo_loss = functools.partial(grpo_loss, clip_high=0.28, dual_clip=10.0, aggregation="token-mean")
dapo_loss.__doc__ = """DAPO: `grpo_loss` with clip-higher and the mean over all tokens (arXiv:2503.14476 eq. 8).

    loss = - sum over valid tokens ( J_t ) / number of valid tokens

The dual clip of 10 is that of the authors' scripts. Its other parts live elsewhere: `rewards.Overlong`, and dynamic
sampling in the trainer.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grpo(Objective):
    """GRPO (arXiv:2402.03300) as a value; see `grpo_loss`. Dr. GRPO and DAPO are settings of it."""

    function = staticmethod(grpo_loss)

    clip_low: NotNegative = 0.2
    """Width of the bound below 1."""
    clip_high: NotNegative = 0.2
    """Width of the bound above 1."""
    dual_clip: AboveOne | None = None
    """Largest ratio at a negative advantage; None means none."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of the log-ratio, nats; None means none."""

    @classmethod
    def dr_grpo(cls, **changes: object) -> "Grpo":
        """Dr. GRPO (arXiv:2503.20783); see `dr_grpo_loss`. A run divides by its own budget of tokens."""
        return dataclasses.replace(cls(aggregation="seq-mean-token-sum-norm"), **changes)

    @classmethod
    def dapo(cls, **changes: object) -> "Grpo":
        """DAPO (arXiv:2503.14476); see `dapo_loss`."""
        return dataclasses.replace(cls(clip_high=0.28, dual_clip=10.0, aggregation="token-mean"), **changes)

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        units = level_units("token", batch.mask)
        limit = self.log_ratio_limit
        ratio = importance_ratio(
            logprobs, batch.old_logprobs, batch.mask, units, gradient="plain", log_ratio_limit=limit
        )
        bounds = self.clip_low, self.clip_high, self.dual_clip
        _, clipped = clipped_surrogate(ratio, batch.advantages, batch.mask, *bounds)
        return Decisions.between(ratio, 1 - self.clip_low, 1 + self.clip_high, clipped)
