"""M2PO: Second-Moment Trust Policy Optimization (arXiv:2510.01161): the mean square of the log-ratios is bounded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Aggregation, Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import Level, Units, check_shapes, importance_ratio, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Clipped, Decisions, finish
from sspo_jax.ranges import FileOnly, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch


def m2po_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    subsentence_ids: Int[Array, "batch time"] | None = None,
    *,
    threshold: Number = 0.04,
    ratio_level: str = "token",
    cutoff: Scalar | None = None,
    aggregation: str = "token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """M2PO, negated (arXiv:2510.01161): tokens of the largest log-ratios are left out, no more than it takes.

        d_k  = log-ratio of the unit of token t: its own, or the mean over a subsentence or response
        keep the smallest d_k^2, as many tokens as there can be with a mean of d_k^2 below `threshold`
        J_t  = r_t A_t where token t is kept, else 0
        loss = - sum over valid tokens ( J_t ) / number of valid tokens

    There is no clip. What is kept is decided over a whole update, so a part of one needs its `cutoff`; tokens whose
    squares are equal are kept or left out together. A token that is left out stays in the denominator. The paper's
    ratio is to the policy that sampled: in a run that is --update.old-logprobs sampler. Peers: AReaL decides once a
    rollout, by the log-ratio between the sampler and the policy at the start of the updates, and takes tokens out of
    the denominator. Neither looks at the sign of the advantage.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      subsentence_ids: [batch, time], for that level.
      threshold: nats squared, the bound of the mean.
      ratio_level: unit of the ratio and of what is bounded: "token" is published; the others are ours.
      cutoff: nats squared, from `second_moment_cutoff` over the whole update; None means these rows'.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    Log-ratios 0, 0.1 and 1: the mean square of the first two is 0.005, of all three 0.34; (1 + 1.1052) / 3.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 3))
    >>> loss, metrics = m2po_loss(jnp.array([[0.0, 0.1, 1.0]]), 0 * one, one, one > 0)
    >>> round(float(loss), 4), round(float(metrics["ratio/clip_fraction"].value), 4)
    (-0.7017, 0.3333)
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    check_shapes(logprobs, subsentence_ids=subsentence_ids)
    units = level_units(ratio_level, mask, subsentence_ids, segment_ids)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, log_ratio_limit=log_ratio_limit)
    squares = _squares(logprobs, old_logprobs, mask, units)
    clipped = _clipped(
        squares, ratio, mask, second_moment_cutoff(squares, mask, threshold) if cutoff is None else cutoff
    )
    objective = jnp.where(clipped.low | clipped.high, 0, ratio * jnp.where(mask, advantages, 0).astype(ratio.dtype))
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


def second_moment_cutoff(
    squares: Float[Array, "batch time"], mask: Bool[Array, "batch time"], threshold: Number
) -> Float[Array, ""]:
    """The square below which tokens are kept, so that the mean of the kept squares is below `threshold`.

    It lies halfway between the largest kept and the smallest other one; inf where all are kept.
    """
    ascending = jnp.sort(jnp.where(mask, squares, jnp.inf).reshape(-1))
    means = jnp.cumsum(ascending) / jnp.arange(1, ascending.size + 1)
    kept = jnp.sum(means < threshold)
    first_out = jnp.pad(ascending, (0, 1), constant_values=jnp.inf)[kept]
    last_in = jnp.max(jnp.where(ascending < first_out, ascending, 0), initial=0)  # equal ones leave together
    return (last_in + first_out) / 2


def _squares(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    units: Units,
) -> Float[Array, "batch time"]:
    """d_k^2 at each token; no gradient flows."""
    return jax.lax.stop_gradient(unit_mean(token_log_ratio(logprobs, old_logprobs, mask), mask, units)) ** 2


def _clipped(
    squares: Float[Array, "batch time"],
    ratio: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    cutoff: Scalar,
) -> Clipped:
    """What is left out, by the side of 1 that its ratio is on."""
    is_out = mask & ~(squares < cutoff)
    return Clipped(is_out & (ratio < 1), is_out & (ratio >= 1), jnp.zeros_like(mask))


@dataclasses.dataclass(frozen=True, kw_only=True)
class M2po(Objective):
    """M2PO (arXiv:2510.01161) as a value; see `m2po_loss`."""

    function = staticmethod(m2po_loss)

    aggregation: Aggregation = "token-mean"
    """From tokens to a scalar: see `sspo_jax.losses.aggregation`."""
    threshold: Positive = 0.04
    """Bound of the mean square of the log-ratios of an update, nats squared."""
    ratio_level: Level = "token"
    """The unit of the ratio: "token" is published, "subsentence", "turn" and "response" are ours."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of the log-ratio, nats; None means none."""

    @property
    def reads_cutoff(self) -> bool:
        return True

    def options(self, batch: TrainBatch) -> dict[str, Any]:
        return super().options(batch) | {"subsentence_ids": batch.subsentence_ids, "cutoff": batch.cutoff}

    def cutoff(self, logprobs: Sequence[Float[Array, "batch time"]], batches: Sequence[TrainBatch]) -> Scalar:
        """That of the tokens of all parts of an update."""
        parts = zip(logprobs, batches, strict=True)
        squares = [_squares(own, batch.old_logprobs, batch.mask, self._units(batch)) for own, batch in parts]
        masks = jnp.concatenate([batch.mask for batch in batches])
        return second_moment_cutoff(jnp.concatenate(squares), masks, self.threshold)

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        """The bounds of the ratio are exp of the cutoff's root, and its inverse."""
        units, mask, limit = self._units(batch), batch.mask, self.log_ratio_limit
        ratio = importance_ratio(logprobs, batch.old_logprobs, mask, units, gradient="plain", log_ratio_limit=limit)
        cutoff = self.cutoff([logprobs], [batch]) if batch.cutoff is None else batch.cutoff
        clipped = _clipped(_squares(logprobs, batch.old_logprobs, mask, units), ratio, mask, cutoff)
        width = jnp.sqrt(jnp.asarray(cutoff, ratio.dtype)) * jnp.ones_like(ratio)
        return Decisions.between(ratio, jnp.exp(-width), jnp.exp(width), clipped)

    def _units(self, batch: TrainBatch) -> Units:
        return level_units(self.ratio_level, batch.mask, batch.subsentence_ids, batch.segment_ids)
