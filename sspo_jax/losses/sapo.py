"""SAPO: Soft Adaptive Policy Optimization (arXiv:2511.20347)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.aggregation import Reduction
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import check_shapes, importance_ratio, level_units
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, Clipped, finish
from sspo_jax.ranges import FileOnly, Positive
from sspo_jax.types import Max, Mean, NormLength, Number, Scalar


def sapo_loss(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    temperature_positive: Number = 1.0,
    temperature_negative: Number = 1.05,
    aggregation: str = "seq-mean-token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
    log_ratio_limit: Number | None = TOKEN_LOG_RATIO_LIMIT,
    weights: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """SAPO, negated (arXiv:2511.20347 eq. 5 and 6): a sigmoid gate in place of the clip.

        f(r) = sigmoid(tau (r - 1)) * 4 / tau,  tau = temperature_positive where A_t > 0, else temperature_negative
        J_t  = f(r_t) A_t
        loss = - mean over responses ( mean over their valid tokens ( J_t ) )

    At r = 1 the gradient is the policy gradient: f'(1) = 1. The value there is 2 A / tau, not A. Nothing is clipped,
    so the clip fractions are 0. Peers: TRL has the paper's 1.0 / 1.05, as here; verl reads both from its configuration,
    and aggregates by seq-mean-token-mean whatever is asked.

    Args:
      logprobs, old_logprobs: [batch, time], nats, new policy (differentiable) and policy at the start of the update.
      advantages: [batch, time].
      mask: [batch, time], true where a token enters the loss; elsewhere the arrays may hold anything, also NaN.
      temperature_positive, temperature_negative: tau by the sign of the advantage.
      aggregation, norm_length, denominator: see `sspo_jax.losses.aggregation`.
      segment_ids: [batch, time], packed responses (0 = padding); without it a row is one response.
      log_ratio_limit: clamp of the log-ratio, nats, with no gradient beyond it; None means none.
      weights: [batch, time], detached factors of J_t, such as `correction.correction_weights`.

    Returns:
      The loss, a scalar, and metrics: `ratio/*`, `policy/kl_old`, `loss/policy`.

    Ratio 1, advantage 1: sigmoid(0) * 4.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 1))
    >>> float(sapo_loss(one, one, one, one > 0)[0])
    -2.0
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask, segment_ids=segment_ids, weights=weights
    )
    if not (temperature_positive > 0 and temperature_negative > 0):
        raise ValueError(
            f"temperature_positive is {temperature_positive} and temperature_negative is {temperature_negative}, "
            "expected both above 0"
        )
    units = level_units("token", mask)
    ratio = importance_ratio(logprobs, old_logprobs, mask, units, gradient="plain", log_ratio_limit=log_ratio_limit)
    advantages = jnp.where(mask, advantages, 0).astype(ratio.dtype)
    temperature = jnp.where(advantages > 0, temperature_positive, temperature_negative).astype(ratio.dtype)
    objective = jax.nn.sigmoid(temperature * (ratio - 1)) * (4 / temperature) * advantages
    clipped = Clipped.nowhere(mask)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    return finish(objective, ratio, clipped, logprobs, old_logprobs, mask, weights, reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sapo(Objective):
    """SAPO (arXiv:2511.20347) as a value; see `sapo_loss`."""

    function = staticmethod(sapo_loss)

    temperature_positive: Positive = 1.0
    """tau of tokens with a positive advantage."""
    temperature_negative: Positive = 1.05
    """tau of the others; larger decays faster."""
    log_ratio_limit: FileOnly[Positive | None] = TOKEN_LOG_RATIO_LIMIT
    """Clamp of the log-ratio, nats; None means none."""
