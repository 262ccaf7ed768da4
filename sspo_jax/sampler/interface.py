"""What the training loop asks of an engine, and the engine in this process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sspo_jax.sampler.engine import Sampler
from sspo_jax.types import Rollout


class RolloutEngine(Protocol):
    """Something that samples responses: `LocalEngine` here, `remote.RemoteEngine` in another process."""

    @property
    def version(self) -> int:
        """Of the weights that the next `generate` samples from."""
        ...

    def sync(self, params: Any, version: int) -> None:
        """Hands over weights; `version` rises from call to call."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
    ) -> Rollout:
        """Samples a group of responses to each prompt, as `Sampler.generate` does."""
        ...


class LocalEngine:
    """A `Sampler` with the weights it samples from."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self._params: Any = None
        self._version = -1

    @property
    def version(self) -> int:
        return self._version

    def sync(self, params: Any, version: int) -> None:
        """Keeps a reference to the parameters; nothing is copied before the next `generate`."""
        self._params, self._version = params, version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
    ) -> Rollout:
        """See `Sampler.generate`. Raises ValueError before the first `sync`."""
        if self._params is None:
            raise ValueError("no weights yet: call sync(params, version) before generate")
        return self.sampler.generate(
            self._params,
            prompts,
            group_size=group_size,
            seed=seed,
            step=step,
            prompt_ids=prompt_ids,
            on_finished=on_finished,
        )
