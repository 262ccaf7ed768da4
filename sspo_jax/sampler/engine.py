"""What the training loop asks of an engine, and the engine in this process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh

from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.kept import KeptSamplers
from sspo_jax.sampler.sampler import Sampler
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.types import Rollout

NO_WEIGHTS = -1
"""`RolloutEngine.version` before the first `sync`, and after a `release`."""


@runtime_checkable
class RolloutEngine(Protocol):
    """Something that samples responses: `LocalEngine` here, `remote.RemoteEngine` in another process."""

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


class LocalEngine:
    """A `Sampler` for each way of sampling, and a reference to the weights that all of them sample from.

    Args:
      config: shape of the model.
      slots, mesh, decode: as for `Sampler`.
      most_samplers: kept with their compiled programs; see `KeptSamplers`.
    """

    def __init__(
        self,
        config: QwenConfig,
        *,
        slots: int | None = None,
        mesh: Mesh | None = None,
        decode: Callable[[list[int]], str] | None = None,
        most_samplers: int = 8,
    ):
        self._config = config
        self._settings = {"slots": slots, "mesh": mesh, "decode": decode}
        self._samplers = KeptSamplers(most_samplers)
        self._params: Any = None
        self._version = NO_WEIGHTS

    @property
    def version(self) -> int:
        return self._version

    def sync(self, params: Any, version: int, *, poll: Callable[[], None] | None = None) -> None:
        """Keeps a reference to the parameters; nothing is copied before the next `generate`, and that copy goes."""
        self._params, self._version = params, version

    def release(self) -> None:
        self._params, self._version = None, NO_WEIGHTS

    def sampler(self, sampling: SamplingParams) -> Sampler:
        """The one that samples in this way, for its statistics and programs; made when first asked for."""
        return self._samplers(self._config, sampling, **self._settings)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """See `Sampler.generate`. Raises ValueError where no weights are handed over."""
        if self._params is None:
            raise ValueError("no weights yet: call sync(params, version) before generate")
        return self.sampler(sampling).generate(
            self._params,
            prompts,
            group_size=group_size,
            seed=seed,
            step=step,
            prompt_ids=prompt_ids,
            on_finished=on_finished,
            progress=progress,
        )
