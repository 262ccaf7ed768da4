"""What every objective offers besides its own ratio and clip: aggregation, KL and entropy terms, rollout correction.

    loss = policy + kl_coefficient * aggregate(kl_t) - entropy_coefficient * aggregate(H_t)

All three terms use the same aggregation and the same denominator.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sspo_jax.losses.aggregation import Aggregation, aggregate, loss_denominator, masked_mean
from sspo_jax.losses.correction import RolloutCorrection, off_policy_mask
from sspo_jax.losses.kl import KlEstimator, kl_penalty
from sspo_jax.losses.ratios import Level, importance_ratio, level_units
from sspo_jax.losses.surrogate import Clipped, Decisions
from sspo_jax.ranges import FileOnly, NotNegative, Positive, Range
from sspo_jax.types import Max, Mean, NormLength, Scalar, TrainBatch

Loss = tuple[Float[Array, ""], dict[str, Mean | Max]]  # a scalar, and metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """An objective as a value: its fields are the keyword arguments of a loss, calling it picks the arrays."""

    aggregation: Aggregation = "seq-mean-token-mean"
    """From tokens to a scalar: see `sspo_jax.losses.aggregation`."""
    norm_length: Positive | None = None
    """Tokens to divide by, read by the aggregation `seq-mean-token-sum-norm`; None: in a run, the longest response."""
    kl_coefficient: NotNegative = 0.0
    """Weight of the KL to the reference policy; above 0 the batch must have ref_logprobs."""
    kl_estimator: KlEstimator = "k3"
    """Which estimate of that KL; k1 has zero expected gradient, see `kl_penalty`."""
    entropy_coefficient: Annotated[float | int, Range()] = 0.0
    """Weight of the entropy bonus; other than 0 the call must be given entropies. With `entropy_target`: the first."""
    entropy_target: Positive | None = None
    """Entropy below which the bonus acts, nats a token: its weight then rises from step to step, above it falls
    (arXiv:2505.22312, which has 0.2). None: the weight stays as it is."""
    entropy_step: FileOnly[Positive] = 0.005
    """What the weight rises or falls by in a step."""
    entropy_most: FileOnly[Positive] = 1.0
    """The largest weight."""
    correction: RolloutCorrection = dataclasses.field(default_factory=RolloutCorrection)
    """Correction of the gap between the sampler and the training program."""
    off_policy_threshold: Positive | None = None
    """Leave out responses of negative advantage that the policy has moved away from by more than this, in nats a token
    on average (off-policy sequence masking, arXiv:2512.02556); None: none."""

    @staticmethod
    @abc.abstractmethod
    def function(*arrays: Any, **options: Any) -> Loss:
        """The loss function, such as `grpo_loss`; a class sets it by `function = staticmethod(grpo_loss)`.

        Args:
          arrays: log-probs, old log-probs, advantages, mask, as every loss takes them.
          options: `segment_ids`, `denominator`, `weights`, and what `options` gives.
        """

    def options(self, batch: TrainBatch) -> dict[str, Any]:
        """Further keyword arguments of `function`: `aggregation`, `norm_length` and the fields of the class itself."""
        own = [field.name for field in dataclasses.fields(self) if field.name not in _TERMS]
        return {name: getattr(self, name) for name in own} | {"norm_length": self._norm_length(batch)}

    def with_budget(self, max_new_tokens: int, vocab_size: int | None = None) -> "Objective":
        """This objective in a run, which settles what is not set.

        Args:
          max_new_tokens: the longest response, which `norm_length` is unless it is set.
          vocab_size: tokens of the tokenizer, for an objective that reads it.
        """
        del vocab_size  # read by classes that need it
        if self.norm_length is None and self.aggregation == "seq-mean-token-sum-norm":
            return dataclasses.replace(self, norm_length=float(max_new_tokens))
        return self

    @property
    def reads_entropies(self) -> bool:
        """Whether it reads `TrainBatch.entropies`, those of the old policy."""
        return False

    @property
    def entropy_unit(self) -> Level:
        """Whose entropies `TrainBatch.entropy_std` is the spread of."""
        return "subsentence"

    @property
    def reads_reference(self) -> bool:
        """Whether it reads `TrainBatch.ref_logprobs`, those of the reference policy."""
        return bool(self.kl_coefficient)

    @property
    def reads_rewards(self) -> bool:
        """Whether it reads the advantages that come from rewards."""
        return True

    def prepared(self, batch: TrainBatch) -> TrainBatch:
        """`batch` as the loss reads it, for metrics: with other advantages where the objective has its own."""
        return batch

    @property
    def reads_cutoff(self) -> bool:
        """Whether it reads `TrainBatch.cutoff`, which takes the log-probs of a whole update before its gradient."""
        return False

    def cutoff(self, logprobs: Sequence[Float[Array, "batch time"]], batches: Sequence[TrainBatch]) -> Scalar:
        """`TrainBatch.cutoff` of all parts of an update, under the parameters that it starts from."""
        raise TypeError(f"{type(self).__name__} reads no cutoff over an update: expected reads_cutoff before a call")

    def decisions(self, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> Decisions:
        """Ratio, bounds and clip of each token, by the functions that the loss is made of; no gradient flows.

        An objective that does not say gets the ratio of each token, and no bounds.
        """
        units = level_units("token", batch.mask)
        ratio = importance_ratio(logprobs, batch.old_logprobs, batch.mask, units, gradient="plain")
        return Decisions.between(ratio, 0.0, float("inf"), Clipped.nowhere(batch.mask))

    def denominator(self, batch: TrainBatch) -> Float[Array, ""]:
        """This objective's count for these rows: sum it over all parts of an update, then set `batch.denominator`."""
        return loss_denominator(self.aggregation, batch.mask, batch.segment_ids, self._norm_length(batch))

    def _norm_length(self, batch: TrainBatch) -> NormLength:
        if self.aggregation != "prompt-mean":
            return self.norm_length
        if batch.group_tokens is None:
            raise ValueError("aggregation is prompt-mean but the batch has no group_tokens")
        return jnp.asarray(batch.group_tokens)

    def __call__(
        self,
        logprobs: Float[Array, "batch time"],
        batch: TrainBatch,
        entropies: Float[Array, "batch time"] | None = None,
    ) -> Loss:
        """The loss of `batch` and its metrics.

        Args:
          logprobs: [batch, time], nats, under the parameters being trained; differentiable.
          batch: everything else. With `batch.denominator` set, parts of an update add up to the whole.
          entropies: [batch, time], nats, under the parameters being trained; differentiable, for the entropy bonus.
        """
        weights, metrics = self.correction(batch)
        if self.off_policy_threshold is not None:
            kept = off_policy_mask(
                logprobs,
                batch.sampler_logprobs,
                batch.advantages,
                batch.mask,
                threshold=self.off_policy_threshold,
                segment_ids=batch.segment_ids,
            )
            weights = kept.astype(batch.advantages.dtype) if weights is None else jnp.where(kept, weights, 0)
            metrics = metrics | {"correction/off_policy_fraction": masked_mean(~kept, batch.mask)}
        loss, policy_metrics = self.function(
            logprobs,
            batch.old_logprobs,
            batch.advantages,
            batch.mask,
            segment_ids=batch.segment_ids,
            denominator=batch.denominator,
            weights=weights,
            **self.options(batch),
        )
        metrics = metrics | policy_metrics
        if self.kl_coefficient:
            if batch.ref_logprobs is None:
                raise ValueError(f"kl_coefficient is {self.kl_coefficient} but the batch has no ref_logprobs")
            # Masked first: kl_penalty sees only finite numbers and cannot make a NaN gradient.
            old = batch.old_logprobs if self.kl_estimator == "k3_unbiased" else None
            kl = kl_penalty(
                logprobs, batch.ref_logprobs, estimator=self.kl_estimator, mask=batch.mask, old_logprobs=old
            )
            term, metrics["loss/kl"] = self._aggregate(kl, batch)
            loss = loss + self.kl_coefficient * term
        if self.entropy_coefficient or self.entropy_target is not None:
            if entropies is None:
                raise ValueError(f"entropy_coefficient is {self.entropy_coefficient} but entropies is None")
            is_fixed = batch.entropy_coefficient is None
            coefficient = self.entropy_coefficient if is_fixed else batch.entropy_coefficient
            term, metrics["loss/entropy"] = self._aggregate(entropies, batch)
            loss = loss - coefficient * term
        return loss, jax.lax.stop_gradient(metrics)

    def _aggregate(self, values: Float[Array, "batch time"], batch: TrainBatch) -> tuple[Float[Array, ""], Mean]:
        return aggregate(
            values,
            batch.mask,
            aggregation=self.aggregation,
            norm_length=self._norm_length(batch),
            segment_ids=batch.segment_ids,
            denominator=batch.denominator,
        )


# Fields that the objective reads itself: they are no options of a loss function.
_TERMS = (
    *("kl_coefficient", "kl_estimator", "entropy_coefficient", "entropy_target", "entropy_step", "entropy_most"),
    *("correction", "off_policy_threshold"),
)
