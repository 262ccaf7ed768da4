"""The tiny model of the sampler's tests."""

from tests.sampler.conftest import prompts, tiny

__all__ = ["prompts", "tiny"]
