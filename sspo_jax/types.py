"""The records that travel through the system: `Mean`, `SampleSize`, `Max`, `Rollout`, `TrainBatch`.

Those that enter compiled programs are registered as JAX pytrees, without Flax, so that the losses can be used on their
own; a `Rollout` lives on the host.

Axes: `batch` is rows (responses, or rows of packed responses), `time` is positions. Position `t` of every per-token
array speaks of token `t` of `tokens`: `logprobs[b, t]` is the log-probability of `tokens[b, t]` given what precedes it.
"""

import dataclasses
import enum
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# An int where a float is wanted is fine with Python and with pyright; the run-time checker of the tests is told.
Number = float | int
Scalar = Float[Array, ""] | Int[Array, ""] | Number
NormLength = Float[Array, "batch time"] | Number | None  # tokens that an aggregation divides by


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

    >>> float(Mean(6.0, 2.0) + Mean(0.0, 1.0))
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

    def __float__(self) -> float:
        return float(self.value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleSize(Mean):
    """The effective share of `count` weighted samples: (sum w)^2 / (count * sum w^2), 1 when all weights are equal.

    Both sums travel, so that parts of a batch add up to the whole exactly; the quotient of a part would not.

    >>> a, b = SampleSize(2.0, 2.0, 2.0), SampleSize(6.0, 2.0, 18.0)  # weights 1, 1 and 3, 3
    >>> float(a), float(b), round(float(a + b), 4)
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

    >>> float(Max(3.0, 2.0) + Max(1.0, 5.0))
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

    def __float__(self) -> float:
        return float(self.value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loads:
    """How often each of several was chosen, with `Mean`'s interface; its value is the busiest one's over the mean.

    >>> float(Loads(jnp.array([[3.0, 1.0]]), 2.0) + Loads(jnp.array([[3.0, 1.0]]), 2.0))
    1.5
    """

    total: Float[Array, "rows chosen"] | Float[np.ndarray, "rows chosen"]
    """By row (a layer), the choices of each (an expert)."""
    count: Float[Array, ""] | Float[np.ndarray, ""] | float

    def __add__(self, other: "Loads") -> "Loads":
        return Loads(self.total + other.total, self.count + other.count)

    @property
    def relative(self) -> Any:
        """Each one's choices over the mean of its row, [rows, chosen]; 0 where nothing was chosen."""
        mean = jnp.mean(self.total, axis=-1, keepdims=True)
        return jnp.where(mean == 0, 0.0, self.total / jnp.where(mean == 0, 1, mean))

    @property
    def value(self) -> Any:
        """The largest of `relative`: 1 where all are chosen equally often."""
        return jnp.max(self.relative)

    def __float__(self) -> float:
        return float(self.value)


@_record
class Rollout:
    """Sampled responses, one a row, on the host; the samples of one prompt are a group.

    Each row is as long as it is: what the sampler has drawn is packed into training rows from here, once. The padded
    arrays are views for people and files, made when they are first asked for.
    """

    prompts: tuple[Int[np.ndarray, " _"], ...]
    responses: tuple[Int[np.ndarray, " _"], ...]  # the end token, when sampled, is part of it
    logprobs: tuple[Float[np.ndarray, " _"], ...]  # of the responses; temperature-only softmax, as the sampler saw it
    finish_reasons: Int[np.ndarray, " batch"]  # values of FinishReason
    group_ids: Int[np.ndarray, " batch"]  # the index of the prompt
    sample_ids: Int[np.ndarray, " batch"]  # the index inside the group
    versions: tuple[Int[np.ndarray, " _"], ...] = ()  # of the weights that sampled each token; empty: not recorded
    said: tuple[
        Bool[np.ndarray, " _"], ...
    ] = ()  # false where an environment wrote a token; empty: the policy wrote all
    rewards: tuple[float, ...] = ()  # of an environment, NaN where a response is to be left out; empty: there is none

    def __len__(self) -> int:
        return len(self.responses)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " batch"]:
        """Tokens of each response."""
        return np.array([len(response) for response in self.responses], np.int64)

    @functools.cached_property
    def prompt_tokens(self) -> Int[np.ndarray, "batch prompt_time"]:
        """The prompts, padded on the right with 0."""
        return pad_rows(self.prompts, np.int32)

    @functools.cached_property
    def prompt_mask(self) -> Bool[np.ndarray, "batch prompt_time"]:
        """True where `prompt_tokens` is not padding."""
        return _is_filled(self.prompts)

    @functools.cached_property
    def response_tokens(self) -> Int[np.ndarray, "batch response_time"]:
        """The responses, padded on the right with 0."""
        return pad_rows(self.responses, np.int32)

    @functools.cached_property
    def response_mask(self) -> Bool[np.ndarray, "batch response_time"]:
        """True where `response_tokens` is not padding."""
        return _is_filled(self.responses)

    @functools.cached_property
    def sampler_logprobs(self) -> Float[np.ndarray, "batch response_time"]:
        """The log-probs, nats, padded on the right with 0."""
        return pad_rows(self.logprobs, np.float32)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Rollout":
        """The given rows, in the given order."""
        index = np.asarray(rows, np.int64)
        return Rollout(
            prompts=tuple(self.prompts[row] for row in index),
            responses=tuple(self.responses[row] for row in index),
            logprobs=tuple(self.logprobs[row] for row in index),
            finish_reasons=self.finish_reasons[index],
            group_ids=self.group_ids[index],
            sample_ids=self.sample_ids[index],
            versions=tuple(self.versions[row] for row in index) if self.versions else (),
            said=tuple(self.said[row] for row in index) if self.said else (),
            rewards=tuple(self.rewards[row] for row in index) if self.rewards else (),
        )

    @staticmethod
    def concatenate(rollouts: Sequence["Rollout"]) -> "Rollout":
        """Rollouts one after the other."""
        if len(rollouts) == 1:
            return rollouts[0]
        return Rollout(
            prompts=tuple(prompt for rollout in rollouts for prompt in rollout.prompts),
            responses=tuple(response for rollout in rollouts for response in rollout.responses),
            logprobs=tuple(logprobs for rollout in rollouts for logprobs in rollout.logprobs),
            finish_reasons=np.concatenate([rollout.finish_reasons for rollout in rollouts]),
            group_ids=np.concatenate([rollout.group_ids for rollout in rollouts]),
            sample_ids=np.concatenate([rollout.sample_ids for rollout in rollouts]),
            versions=tuple(versions for rollout in rollouts for versions in rollout.versions),
            said=tuple(said for rollout in rollouts for said in rollout.said),
            rewards=tuple(reward for rollout in rollouts for reward in rollout.rewards),
        )


def rows_of_groups(prompts: Sequence[Sequence[int]], group_size: int) -> dict[str, Any]:
    """What the rows of a `Rollout` are, ordered by prompt, then by sample: its prompts, group_ids and sample_ids."""
    rows = np.arange(len(prompts) * group_size, dtype=np.int32)
    shared = [np.asarray(prompt, np.int32) for prompt in prompts]
    return {
        "prompts": tuple(prompt for prompt in shared for _ in range(group_size)),
        "group_ids": rows // group_size,
        "sample_ids": rows % group_size,
    }


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray], dtype: type) -> np.ndarray:
    """Rows of unequal length in one array, zeros at the right."""
    mask = _is_filled(rows)
    padded = np.zeros(mask.shape, dtype)
    if len(rows):
        padded[mask] = np.concatenate([np.asarray(row, dtype) for row in rows])
    return padded


def _is_filled(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.arange(lengths.max(initial=0))[None] < lengths[:, None]


Ints = Int[Array, "batch time"] | Int[np.ndarray, "batch time"]
Bools = Bool[Array, "batch time"] | Bool[np.ndarray, "batch time"]
Scalars = Float[Array, ""] | Float[np.ndarray, ""]
Floats = Float[Array, "batch time"] | Float[np.ndarray, "batch time"]


@_record
class TrainBatch:
    """What one policy update consumes. Rows hold a prompt and its response, or several of them packed.

    On the host its arrays are NumPy's, in the jitted programs JAX's.
    """

    tokens: Ints
    positions: Ints  # restart at 0 in each packed sequence
    segment_ids: Ints  # which packed sequence a token belongs to, 0 for padding
    mask: Bools  # true where a token enters the loss
    advantages: Floats
    old_logprobs: Floats  # the training program, parameters at the start of the update
    entropies: Floats  # nats, of the same pass as old_logprobs
    sampler_logprobs: Floats
    subsentence_ids: Ints  # -1 where mask is false
    ref_logprobs: Floats | None = None  # under the frozen reference policy
    mean_entropy: Scalars | None = None  # over all valid tokens of the whole rollout batch
    entropy_std: Scalars | None = None  # of `Objective.entropy_unit` over those tokens; for one rule of SSPO
    denominator: Scalars | None = None  # of the loss, over the whole update, before it is cut into parts
    cutoff: Scalars | None = None  # squares of log-ratios below it are kept, over the whole update; for M2PO
    entropy_coefficient: Scalars | None = None  # of this step, where it follows the entropy
    group_tokens: Floats | None = None  # tokens of all responses to the prompt, in the whole update; for `prompt-mean`
    experts: Int[Array, "layers batch time chosen"] | Int[np.ndarray, "layers batch time chosen"] | None = (
        None  # to go through instead of those that the router ranks highest, where not negative
    )
    prefix_ids: Ints | None = None  # the segment that a token sees beside its own, its prompt's; None: there are none
