"""The rollout engine: responses to prompts, with continuous batching over a shared ring cache."""

from sspo_jax.sampler.engine import NO_WEIGHTS, KeepingEngine, RolloutEngine
from sspo_jax.sampler.generate import generate
from sspo_jax.sampler.kept_rows import KeptRows
from sspo_jax.sampler.sampler import LocalEngine, RolloutStats, Sampler
from sspo_jax.sampler.sampling import Drawn, SamplingParams, draw

__all__ = [
    "NO_WEIGHTS",
    "Drawn",
    "KeepingEngine",
    "KeptRows",
    "LocalEngine",
    "RolloutEngine",
    "RolloutStats",
    "Sampler",
    "SamplingParams",
    "draw",
    "generate",
]
