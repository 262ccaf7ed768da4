"""An update token by token, for the token log: what the objective decided, and what the published ones would have."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sspo_jax.losses.diagnostics import PUBLISHED
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.surrogate import Clipped
from sspo_jax.types import TrainBatch

LOW, HIGH, DUAL = -1, 1, 2
"""Codes of a clipped token: at the lower bound, the upper one, the dual clip. 0: its gradient is kept."""


def per_token(objective: Objective, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> dict[str, Array]:
    """Arrays [batch, time] by name; they mean nothing where the mask is false.

    `ratio`, `low`, `high`, `entropy_scale`, `length_scale` and `clipped` are of the run's own objective, see
    `Decisions`; `clipped_grpo`, `clipped_gspo` and `clipped_sspo` of the published ones, whose clip fractions are
    `counterfactual/*`. Clips are codes of this module.

    Args:
      objective: of the run.
      logprobs: [batch, time], nats, under the parameters that the update starts from.
      batch: the rest.
    """
    logprobs = jax.lax.stop_gradient(logprobs)
    own = objective.decisions(logprobs, batch)
    fields = own._asdict() | {"clipped": _codes(own.clipped)}
    batch = objective.prepared(batch)
    others = {f"clipped_{name}": _codes(each.decisions(logprobs, batch).clipped) for name, each in PUBLISHED.items()}
    return fields | others


def _codes(clipped: Clipped) -> Int[Array, "batch time"]:
    codes = LOW * clipped.low + HIGH * clipped.high + DUAL * clipped.dual
    return codes.astype(jnp.int8)
