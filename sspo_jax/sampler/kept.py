"""Samplers kept with their compiled programs, for callers that come back with the same settings."""

from typing import Any

from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.sampler import Sampler
from sspo_jax.sampler.sampling import SamplingParams


class KeptSamplers:
    """A `Sampler` for each combination of its arguments, made when first asked for.

    Args:
      most: kept at a time; the one not used for longest goes first.
    """

    def __init__(self, most: int = 8):
        self._most = most
        self._samplers: dict[Any, Sampler] = {}

    def __call__(self, config: QwenConfig, sampling: SamplingParams, **settings: Any) -> Sampler:
        """`Sampler(config, sampling, **settings)`, or the one that was made of equal arguments."""
        key = (config, sampling, tuple(sorted(settings.items())))
        found = self._samplers.pop(key, None) or Sampler(config, sampling, **settings)
        self._samplers[key] = found  # the latest is the last
        if len(self._samplers) > self._most:
            self._samplers.pop(next(iter(self._samplers)))
        return found
