"""What the training loop asks of an engine; `sampler.LocalEngine` is the one in this process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sspo_jax.sampler.kept_rows import KeptRows
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.types import Rollout

NO_WEIGHTS = -1
"""`RolloutEngine.version` before the first `sync`, and after a `release`."""


@runtime_checkable
class RolloutEngine(Protocol):
    """Something that samples responses: `sampler.LocalEngine` here, `serving.RemoteEngine` in another process."""

    @property
    def version(self) -> int:
        """Version of the weights that the next `generate` samples from; `NO_WEIGHTS` where none are handed over."""
        ...

    def sync(self, params: Any, version: int, *, poll: Callable[[], None] | None = None) -> None:
        """Hands over weights: parameters of the model, LoRA adapters beside them or not.

        Args:
          version: 0 or more; says which weights they are.
          poll: called now and then while this takes time; what it raises ends the wait.
        """
        ...

    def release(self) -> None:
        """Lets go of the weights, before they are changed or their memory is given to others; `sync` comes next."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        keys: np.ndarray | None = None,
        places: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """Samples a group of responses to each prompt, as `Sampler.generate` does.

        Args:
          on_finished: called with row and tokens of a response as soon as it has ended, while others go on.
          progress: called several times a second, where a step of decoding allows it, with the number of tokens that
            are there; what it raises ends the call.
        """
        ...


@runtime_checkable
class KeepingEngine(RolloutEngine, Protocol):
    """One whose `generate` also takes `kept` and `names` as `Sampler.generate` does: rows go on where they lie."""

    def keep(self, sampling: SamplingParams, rows: int, *, prompt_tokens: int) -> KeptRows | None:
        """Room for so many rows between calls, until weights are handed over or let go; see `Sampler.keep`."""
        ...
