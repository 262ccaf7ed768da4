"""The rollout engine: responses to prompts, with continuous batching over a shared ring cache."""

from sspo_jax.sampler.connection import ServerError, ServerGoneError
from sspo_jax.sampler.engine import RolloutStats, Sampler
from sspo_jax.sampler.generate import generate
from sspo_jax.sampler.interface import NO_WEIGHTS, LocalEngine, RolloutEngine
from sspo_jax.sampler.remote import VLLM_RELOAD, Reload, RemoteEngine
from sspo_jax.sampler.sampling import Drawn, SamplingParams, draw

__all__ = [
    "NO_WEIGHTS",
    "VLLM_RELOAD",
    "Drawn",
    "LocalEngine",
    "Reload",
    "RemoteEngine",
    "RolloutEngine",
    "RolloutStats",
    "Sampler",
    "SamplingParams",
    "ServerError",
    "ServerGoneError",
    "draw",
    "generate",
]
