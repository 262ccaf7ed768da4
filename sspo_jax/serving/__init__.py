"""Sampling across processes: the server, and the engine that samples through one."""

from sspo_jax.serving.connection import ServerError, ServerGoneError
from sspo_jax.serving.remote_engine import VLLM_RELOAD, Reload, RemoteEngine

__all__ = ["VLLM_RELOAD", "Reload", "RemoteEngine", "ServerError", "ServerGoneError"]
