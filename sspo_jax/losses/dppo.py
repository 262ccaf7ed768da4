"""DPPO: Divergence Proximal Policy Optimization (arXiv:2602.04879): a trust region in probabilities, not in ratios."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Aggregation, Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import check_shapes, importance_ratio, level_units
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Clipped, Decisions, finish
from sspo_jax.ranges import AboveOne, FileOnly, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar, TrainBatch

Divergence = Literal["tv", "kl"]

# Added to 1 - p, as in verl: a token of probability 1 has then a divergence of at most some 18 nats.
_EPSILON = 1e-8


def dppo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    divergence: str = "tv",
    threshold: Number = 0.2,
    truncate_at: Number = 20.0,
    aggregation: str = "token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """DPPO with a divergence of the sampled token against all others, negated (arXiv:2602.04879).

        p_t = exp(logprob_t), q_t = exp(old_logprob_t), r_t = p_t / q_t
        D_t = |p_t - q_t|                                                 divergence "tv"
        D_t = q_t log(q_t / p_t) + (1 - q_t) log((1 - q_t) / (1 - p_t))   divergence "kl"
        m_t = 0 where D_t > threshold and p_t has moved where A_t pushes it, else 1
        J_t = stop_gradient(m_t min(r_t, truncate_at)) A_t logprob_t
        loss = - sum over valid tokens ( J_t ) / number of valid tokens

    A rare token may double its probability, a frequent one may not fall by half: a bound on the ratio says the
    opposite. The value means nothing, the gradient does. The formula is that of verl and of other frameworks; their
    thresholds are 0.1 to 0.2 for "tv" and differ for "kl". Peers: verl counts in its clip fraction also tokens of
    advantage 0; here they are never clipped.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      divergence: "tv", of probabilities, or "kl", in nats; both of two outcomes, the sampled token and any other.
      threshold: the largest divergence with a gradient away from the old policy.
      truncate_at: the largest weight.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    Probability 0.6 after 0.3, advantage 1: beyond 0.2, so nothing; 0.02 after 0.01: 2 * log(0.02).

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> for p in (0.6, 0.02):
    ...     loss, _ = dppo_loss(jnp.log(p * one), jnp.log(p / 2 * one), one, one > 0)
    ...     print(round(float(loss), 4) + 0)
    0.0
    7.824
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    units = level_units("token", mask)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, gradient="plain", log_ratio_limit=log_ratio_limit)
    ratio = jax.lax.stop_gradient(ratio)
    clipped = _clipped(logprobs, old_logprobs, advantages, mask, divergence, threshold)
    weight = jnp.where(clipped.low | clipped.high, 0, jnp.minimum(ratio, truncate_at)).astype(ratio.dtype)
    objective = weight * jnp.where(mask, advantages, 0).astype(ratio.dtype)
    objective = objective * jnp.where(mask, logprobs, 0).astype(ratio.dtype)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


def _clipped(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    divergence: str,
    threshold: Number,
) -> Clipped:
    """Where the divergence is above the threshold in the direction of the advantage; no gradient flows."""
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence is {divergence!r}, expected one of {', '.join(get_args(Divergence))}")
    dtype = jnp.result_type(jnp.float32, logprobs.dtype, old_logprobs.dtype)
    new, old = (jax.lax.stop_gradient(jnp.where(mask, x, 0).astype(dtype)) for x in (logprobs, old_logprobs))
    p, q = jnp.exp(new), jnp.exp(old)
    if divergence == "tv":
        distance = jnp.abs(p - q)
    else:
        others = jnp.log((jnp.maximum(1 - q, 0) + _EPSILON) / (jnp.maximum(1 - p, 0) + _EPSILON))
        distance = q * (old - new) + (1 - q) * others
    is_far = mask & (distance > threshold)
    return Clipped(is_far & (advantages < 0) & (p < q), is_far & (advantages > 0) & (p > q), jnp.zeros_like(mask))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dppo(Objective):
    """DPPO (arXiv:2602.04879) as a value; see `dppo_loss`."""

    function = staticmethod(dppo_loss)

    aggregation: Aggregation = "token-mean"
    """From tokens to a scalar: see `sspo_jax.losses.aggregation`."""
    divergence: Divergence = "tv"
    """Total variation of probabilities, or the KL divergence in nats."""
    threshold: Positive = 0.2
    """The largest divergence with a gradient away from the old policy."""
    truncate_at: AboveOne = 20.0
    """The largest weight of a token."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of the log-ratio, nats; None means none."""

    @classmethod
    def kl(cls, **changes: object) -> "Dppo":
        """The KL divergence, bounded at 0.05 nats."""
        return dataclasses.replace(cls(divergence="kl", threshold=0.05), **changes)

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        """The bounds of the ratio are those of "tv", (q - threshold) / q and (q + threshold) / q; "kl" has none."""
        units, mask, limit = level_units("token", batch.mask), batch.mask, self.log_ratio_limit
        ratio = importance_ratio(logprobs, batch.old_logprobs, mask, units, gradient="plain", log_ratio_limit=limit)
        bounds = self.divergence, self.threshold
        clipped = _clipped(logprobs, batch.old_logprobs, batch.advantages, mask, *bounds)
        if self.divergence == "kl":
            return Decisions.between(ratio, 0.0, float("inf"), clipped)
        width = self.threshold * jnp.exp(-jnp.where(mask, batch.old_logprobs, 0).astype(ratio.dtype))
        return Decisions.between(ratio, jnp.maximum(1 - width, 0), 1 + width, clipped)
