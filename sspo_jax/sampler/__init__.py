"""The rollout engine: responses to prompts, with continuous batching over a shared ring cache."""

from sspo_jax.sampler.engine import RolloutStats, Sampler
from sspo_jax.sampler.generate import generate
from sspo_jax.sampler.interface import LocalEngine, RolloutEngine
from sspo_jax.sampler.remote import Reload, RemoteEngine, ServerError
from sspo_jax.sampler.sampling import Drawn, SamplingParams, draw

__all__ = [
    "Drawn",
    "LocalEngine",
    "Reload",
    "RemoteEngine",
    "RolloutEngine",
    "RolloutStats",
    "Sampler",
    "SamplingParams",
    "ServerError",
    "draw",
    "generate",
]
