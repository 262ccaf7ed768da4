"""The records that travel through the system: `Mean`, `SampleSize`, `Max`, `Rollout`, `TrainBatch`.

All are plain containers of arrays, registered as JAX pytrees without Flax, so the losses can be used on their own.
Axes: `batch` is rows (responses, or rows of packed responses), `time` is positions. Position `t` of every per-token
array speaks of token `t` of `tokens`: `logprobs[b, t]` is the log-probability of `tokens[b, t]` given what precedes it.
"""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# An int where a float is wanted is fine with Python and with pyright; the run-time checker of the tests is told.
Number = float | int
Scalar = Float[Array, ""] | Int[Array, ""] | Number


class FinishReason(enum.IntEnum):
    """Why a response ended."""

    LENGTH = 0  # the length budget: the response is truncated
    STOP = 1  # an end token or a stop string


def _record(cls: type) -> type:
    """A frozen, keyword-only dataclass that is a pytree; fields with `metadata={"static": True}` are not traced."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    static = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static")]
    traced = [field.name for field in dataclasses.fields(cls) if not field.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, data_fields=traced, meta_fields=static)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean whose sum and count travel apart, so that parts of a batch add up to the whole exactly.

    >>> float((Mean(6.0, 2.0) + Mean(0.0, 1.0)).value)
    2.0
    """

    total: Float[Array, ""] | Float[np.ndarray, ""] | float  # NumPy's once it has come to the host
    count: Float[Array, ""] | Float[np.ndarray, ""] | float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> Any:
        """total / count, 0 where nothing was counted."""
        return jnp.where(self.count == 0, 0.0, self.total / jnp.where(self.count == 0, 1, self.count))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleSize(Mean):
    """The effective share of `count` weighted samples: (sum w)^2 / (count * sum w^2), 1 when all weights are equal.

    Both sums travel, so that parts of a batch add up to the whole exactly; the quotient of a part would not.

    >>> a, b = SampleSize(2.0, 2.0, 2.0), SampleSize(6.0, 2.0, 18.0)  # weights 1, 1 and 3, 3
    >>> float(a.value), float(b.value), round(float((a + b).value), 4)
    (1.0, 1.0, 0.8)
    """

    squares: Float[Array, ""] | Float[np.ndarray, ""] | float  # sum of w^2; `total` is the sum of w

    def __add__(self, other: Mean) -> "SampleSize":
        assert isinstance(other, SampleSize)
        return SampleSize(self.total + other.total, self.count + other.count, self.squares + other.squares)

    @property
    def value(self) -> Any:
        """(sum w)^2 / (count * sum w^2), 0 where nothing was counted."""
        weight = self.count * self.squares
        return jnp.where(weight == 0, 0.0, self.total * (self.total / jnp.where(weight == 0, 1, weight)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max:
    """A maximum with `Mean`'s interface: `total` is the largest value met, `count` how many were compared.

    >>> float((Max(3.0, 2.0) + Max(1.0, 5.0)).value)
    3.0
    """

    total: Float[Array, ""] | Float[np.ndarray, ""] | float  # NumPy's once it has come to the host
    count: Float[Array, ""] | Float[np.ndarray, ""] | float

    def __add__(self, other: "Max") -> "Max":
        return Max(jnp.maximum(self.total, other.total), self.count + other.count)

    @property
    def value(self) -> Any:
        """The maximum, 0 where nothing was compared (`total` is then -inf)."""
        return jnp.where(self.count == 0, 0.0, self.total)


@_record
class Rollout:
    """Sampled responses, one a row, on the host; the samples of one prompt are a group.

    Prompts and responses are padded on the right, each to its own width; padding holds token 0.
    """

    prompt_tokens: Int[np.ndarray, "batch prompt_time"]
    prompt_mask: Bool[np.ndarray, "batch prompt_time"]
    response_tokens: Int[np.ndarray, "batch response_time"]  # the end token, when sampled, is part of it
    response_mask: Bool[np.ndarray, "batch response_time"]
    sampler_logprobs: Float[np.ndarray, "batch response_time"]  # temperature-only softmax, as the sampler computed it
    finish_reasons: Int[np.ndarray, " batch"]  # values of FinishReason
    group_ids: Int[np.ndarray, " batch"]  # the index of the prompt
    sample_ids: Int[np.ndarray, " batch"]  # the index inside the group


@_record
class TrainBatch:
    """What one policy update consumes. Rows hold a prompt and its response, or several of them packed."""

    tokens: Int[Array, "batch time"]
    positions: Int[Array, "batch time"]  # restart at 0 in each packed sequence
    segment_ids: Int[Array, "batch time"]  # which packed sequence a token belongs to, 0 for padding
    mask: Bool[Array, "batch time"]  # true where a token enters the loss
    advantages: Float[Array, "batch time"]
    old_logprobs: Float[Array, "batch time"]  # the training program, parameters at the start of the update
    entropies: Float[Array, "batch time"]  # nats, of the same pass as old_logprobs
    sampler_logprobs: Float[Array, "batch time"]
    subsentence_ids: Int[Array, "batch time"]  # -1 where mask is false
    ref_logprobs: Float[Array, "batch time"] | None = None  # under the frozen reference policy
    mean_entropy: Float[Array, ""] | None = None  # over all valid tokens of the whole rollout batch
    entropy_std: Float[Array, ""] | None = None  # of `Objective.entropy_unit` over those tokens; for one rule of SSPO
    denominator: Float[Array, ""] | None = None  # of the loss, over the whole update, before it is cut into parts
