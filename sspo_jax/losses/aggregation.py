"""From a per-token loss to a scalar: every denominator has a name, and sums and counts travel apart.

    loss = sum_t weight_t * x_t / denominator

| aggregation               | weight_t            | denominator                     |
|---------------------------|---------------------|---------------------------------|
| `token-mean`              | 1                   | valid tokens                    |
| `seq-mean-token-mean`     | 1 / tokens of its response | responses with a valid token |
| `seq-mean-token-sum`      | 1                   | responses with a valid token    |
| `seq-mean-token-sum-norm` | 1 / norm_length     | responses with a valid token    |
| `prompt-mean`             | 1 / tokens of all responses to its prompt | prompts       |
| `token-sum`               | 1                   | 1                               |

With `prompt-mean` each prompt counts alike, however long its responses are (arXiv:2510.13786 calls it prompt average).
Its responses may lie in several rows and parts, so the tokens are counted beforehand and come as `norm_length`, an
array; a part counts of each prompt the share of its tokens. `token-sum` divides by nothing: the gradient grows with the
tokens of an update, and `max_grad_norm` and the learning rate have to fit. Its metrics are means over tokens.

A denominator is a plain count that adds up over any cut of the update into parts between responses. A trainer sums
`loss_denominator` over the whole update first and passes the result to each part: the parts' losses and gradients
then add up to those of the whole.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.losses.ratios import level_units
from sspo_jax.types import Max, Mean, NormLength, Scalar

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "prompt-mean", "token-sum"
]


class Reduction(NamedTuple):
    """How a loss goes from tokens to a scalar: the keyword arguments of `aggregate`."""

    aggregation: str
    norm_length: NormLength
    segment_ids: Int[Array, "batch time"] | None
    denominator: Scalar | None


def loss_denominator(
    aggregation: str,
    mask: Bool[Array, "batch time"],
    segment_ids: Int[Array, "batch time"] | None = None,
    norm_length: NormLength = None,
) -> Float[Array, ""]:
    """The denominator of `aggregation` for these rows: valid tokens, responses with at least one of them, or prompts.

    That of `token-sum` is of its metrics alone: valid tokens.

    Args:
      aggregation: one of the names above.
      mask: [batch, time], true where a token enters the loss.
      segment_ids: [batch, time], packed responses; without it a row is one response.
      norm_length: read by `prompt-mean` alone: [batch, time], tokens of all responses to the prompt of each token.

    >>> import jax.numpy as jnp
    >>> float(loss_denominator("seq-mean-token-mean", jnp.array([[True, True], [False, False]])))
    1.0
    """
    _check(aggregation)
    if aggregation in ("token-mean", "token-sum"):
        return jnp.sum(mask, dtype=jnp.float32)
    if aggregation == "prompt-mean":
        return jnp.sum(_prompt_share(mask, norm_length))
    if segment_ids is None:
        return jnp.sum(jnp.any(mask, axis=1), dtype=jnp.float32)
    ids = level_units("response", mask, segment_ids=segment_ids).ids
    # Numbers are dense in a row, so the largest one counts the responses.
    return jnp.sum(jnp.max(jnp.where(mask, ids, -1), axis=1, initial=-1) + 1).astype(jnp.float32)


def token_weights(
    aggregation: str,
    mask: Bool[Array, "batch time"],
    segment_ids: Int[Array, "batch time"] | None = None,
    norm_length: NormLength = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch time"]:
    """`weight_t` of the table above, 0 where the mask is false.

    `norm_length` (tokens) is read by `prompt-mean`, see `loss_denominator`, and by `seq-mean-token-sum-norm`. There
    None means the width of the rows, verl's default, and is refused for packed rows, whose width says nothing about a
    response.
    """
    _check(aggregation)
    ones = mask.astype(dtype)
    if aggregation == "seq-mean-token-mean":
        return ones / level_units("response", mask, segment_ids=segment_ids).lengths.astype(dtype)
    if aggregation == "prompt-mean":
        return _prompt_share(mask, norm_length).astype(dtype)
    if aggregation == "seq-mean-token-sum-norm":
        if isinstance(norm_length, jax.Array):
            raise ValueError("norm_length is an array, expected a number of tokens: only prompt-mean takes an array")
        if norm_length is None and segment_ids is not None:
            raise ValueError(
                "norm_length is None with segment_ids, expected the tokens to divide by: pass norm_length=..."
            )
        if norm_length is not None and not norm_length > 0:
            raise ValueError(f"norm_length is {norm_length}, expected a positive number of tokens")
        return ones / (mask.shape[1] if norm_length is None else norm_length)
    return ones


def aggregate(
    values: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    aggregation: str = "seq-mean-token-mean",
    norm_length: NormLength = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    denominator: Scalar | None = None,
) -> tuple[Float[Array, ""], Mean]:
    """Reduces a per-token quantity to a scalar; 0 with gradient 0 where no token is valid.

    Args:
      values: [batch, time]; anything, also NaN, where the mask is false.
      mask: [batch, time], true where a token enters the loss.
      aggregation, norm_length: see the module.
      segment_ids: [batch, time], packed responses.
      denominator: the count to divide by; None means these rows' own.

    Returns:
      The scalar, and the same as a `Mean` over these rows' own count, for metrics.
    """
    weights = token_weights(aggregation, mask, segment_ids, norm_length, values.dtype)
    total = jnp.sum(jnp.where(mask, values, 0) * weights)
    own = loss_denominator(aggregation, mask, segment_ids, norm_length).astype(values.dtype)
    if aggregation == "token-sum":
        return total, Mean(total, own)
    divisor = own if denominator is None else jnp.asarray(denominator, values.dtype)
    return total / jnp.where(divisor == 0, 1, divisor), Mean(total, own)


def _prompt_share(mask: Bool[Array, "batch time"], norm_length: NormLength) -> Float[Array, "batch time"]:
    """Of its prompt, the share that each valid token is; 0 elsewhere, whatever is stored there."""
    if not isinstance(norm_length, jax.Array):
        raise ValueError(
            f"norm_length is {norm_length} with aggregation prompt-mean, expected an array [batch, time]: the tokens "
            "of all responses to the prompt of each token, TrainBatch.group_tokens"
        )
    return jnp.where(mask, 1 / jnp.where(mask, norm_length, 1), 0)


def masked_mean(
    values: Float[Array, "batch time"] | Bool[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Mean:
    """The mean over valid tokens, as a `Mean`; for metrics."""
    values = values.astype(jnp.result_type(jnp.float32, values.dtype))
    return Mean(jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask, dtype=values.dtype))


def masked_max(values: Float[Array, "batch time"], mask: Bool[Array, "batch time"]) -> Max:
    """The maximum over valid tokens, as a `Max`; for metrics."""
    return Max(jnp.max(jnp.where(mask, values, -jnp.inf), initial=-jnp.inf), jnp.sum(mask, dtype=values.dtype))


def _check(aggregation: str) -> None:
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation is {aggregation!r}, expected one of {', '.join(get_args(Aggregation))}")
