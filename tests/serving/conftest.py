"""The tiny model of the sampler's tests, and a server of a model with a tokenizer."""

import pathlib
from collections.abc import Iterator

import jax
import pytest

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import init_qwen
from tests.sampler.conftest import prompts, tiny
from tests.serving.server_process import ServerProcess

__all__ = ["prompts", "tiny"]

SPEAKING = QwenConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=128,
    init_scale=0.3,
)


@pytest.fixture(scope="session")
def speaking_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint with the tiny tokenizer, and its chat template."""
    path = tmp_path_factory.mktemp("speaking") / "small"
    params = init_qwen(SPEAKING, jax.random.key(0))
    save_qwen(path, params, SPEAKING, dtype="float32", tokenizer=load_tokenizer("tiny"))
    return path


@pytest.fixture(scope="session")
def speaking(speaking_model: pathlib.Path) -> Iterator[ServerProcess]:
    """Its server, with few slots and with limits that a test can reach."""
    limits = ("--limits.body-bytes", "100000", "--limits.header-seconds", "2", "--limits.body-seconds", "3")
    options = ("--slots", "8", "--limits.samples", "64", "--limits.waiting-samples", "400", *limits)
    server = ServerProcess(str(speaking_model), options=options, reload_directory=None)
    yield server
    server.kill()
