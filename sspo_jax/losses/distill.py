"""On-policy distillation: the reverse KL to a teacher, on what the student samples."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Aggregation, Reduction, masked_mean
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import Level, Units, check_shapes, importance_ratio, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Decisions, clipped_surrogate, finish
from sspo_jax.ranges import FileOnly, NotNegative, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch


def distill_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    subsentence_ids: Int[Array, "batch time"] | None = None,
    *,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    ratio_level: str = "token",
    aggregation: str = "token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """The clipped surrogate whose advantages are `teacher_advantages`, negated.

        r_t  = ratio of the unit of token t, with the gradient of the token
        J_t  = min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
        loss = - sum over valid tokens ( J_t ) / number of valid tokens

    Before the first update of a rollout its gradient is, per token, that of the reverse KL as `kl_penalty` has it with
    k2: each token answers for its own distance to the teacher, not for that of what follows.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time], from `teacher_advantages`.
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      subsentence_ids: [batch, time], for that level.
      clip_low, clip_high: widths of the bounds below and above 1.
      ratio_level: unit of the ratio.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    check_shapes(logprobs, subsentence_ids=subsentence_ids)
    units = level_units(ratio_level, mask, subsentence_ids, segment_ids)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, log_ratio_limit=log_ratio_limit)
    objective, clipped = clipped_surrogate(ratio, advantages, mask, clip_low, clip_high)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


def teacher_advantages(
    old_logprobs: Float[Array, "batch time"],
    ref_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    units: Units,
) -> Float[Array, "batch time"]:
    """A_t = mean over the unit of token t of (teacher's log-prob - old_logprob), detached; 0 where the mask is false.

    Minus its expectation over what the student samples is the reverse KL, KL(student || teacher), in nats a token.

    >>> import jax.numpy as jnp
    >>> old, teacher = jnp.array([[-1.0, -2.0]]), jnp.array([[-0.5, -2.5]])
    >>> teacher_advantages(old, teacher, old < 0, level_units("token", old < 0)).tolist()
    [[0.5, -0.5]]
    """
    return jax.lax.stop_gradient(unit_mean(token_log_ratio(ref_logprobs, old_logprobs, mask), mask, units))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Objective):
    """On-policy distillation as a value; the teacher is the reference policy. See `distill_loss`."""

    function = staticmethod(distill_loss)

    aggregation: Aggregation = "token-mean"
    """From tokens to a scalar: see `sspo_jax.losses.aggregation`."""
    clip_low: NotNegative = 0.2
    """Width of the bound below 1."""
    clip_high: NotNegative = 0.2
    """Width of the bound above 1."""
    ratio_level: Level = "token"
    """The unit of the ratio and of the distance to the teacher: "token", "subsentence", "turn" or "response"."""
    reward_weight: NotNegative = 0.0
    """Weight of the advantages from rewards, which are added to those from the teacher; 0: the teacher alone."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of the log-ratio, nats; None means none."""

    @property
    def reads_reference(self) -> bool:
        return True

    @property
    def reads_rewards(self) -> bool:
        return self.reward_weight > 0

    def prepared(self, batch: TrainBatch) -> TrainBatch:
        """`batch` with the teacher's advantages beside, or in place of, those of the rewards."""
        if batch.ref_logprobs is None:
            raise ValueError("the batch has no ref_logprobs; expected the teacher's log-probs of its tokens")
        units = level_units(self.ratio_level, batch.mask, batch.subsentence_ids, batch.segment_ids)
        taught = teacher_advantages(batch.old_logprobs, batch.ref_logprobs, batch.mask, units)
        rewarded = self.reward_weight * jnp.where(batch.mask, batch.advantages, 0)
        return dataclasses.replace(batch, advantages=(taught + rewarded).astype(batch.advantages.dtype))

    def options(self, batch: TrainBatch) -> dict[str, Any]:
        options = super().options(batch) | {"subsentence_ids": batch.subsentence_ids}
        del options["reward_weight"]  # is in the advantages
        return options

    def __call__(
        self,
        logprobs: Float[Array, "batch time"],
        batch: TrainBatch,
        entropies: Float[Array, "batch time"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
        """As every objective; also reports `policy/kl_teacher`, the reverse KL before the updates, nats a token."""
        loss, metrics = super().__call__(logprobs, self.prepared(batch), entropies)
        assert batch.ref_logprobs is not None
        gap = token_log_ratio(batch.old_logprobs, batch.ref_logprobs, batch.mask)
        return loss, metrics | {"policy/kl_teacher": masked_mean(gap, batch.mask)}

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        mask, advantages = batch.mask, self.prepared(batch).advantages
        units = level_units(self.ratio_level, mask, batch.subsentence_ids, batch.segment_ids)
        limit = self.log_ratio_limit
        ratio = importance_ratio(logprobs, batch.old_logprobs, mask, units, gradient="plain", log_ratio_limit=limit)
        _, clipped = clipped_surrogate(ratio, advantages, mask, self.clip_low, self.clip_high)
        return Decisions.between(ratio, 1 - self.clip_low, 1 + self.clip_high, clipped)
