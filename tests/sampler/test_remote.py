"""`sspo serve` in a process of its own, asked over HTTP: same tokens as here, weights handed over, death survived."""

import time

import jax
import numpy as np
import pytest

from sspo_jax.models.qwen import init_qwen
from sspo_jax.models.weights import save_qwen
from sspo_jax.sampler import LocalEngine, RemoteEngine, SamplingParams, ServerError
from tests.sampler.server_process import ServerProcess, free_port

SAMPLING = SamplingParams(max_new_tokens=12, stop_token_ids=(5, 6))


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> str:
    config, params = tiny
    path = tmp_path_factory.mktemp("served") / "tiny"
    save_qwen(path, params, config, dtype="float32")
    return str(path)


@pytest.fixture(scope="module")
def server(checkpoint):
    server = ServerProcess(checkpoint)
    yield server
    server.kill()


def local(tiny) -> LocalEngine:
    engine = LocalEngine(tiny[0], slots=8)
    engine.sync(tiny[1], 0)
    return engine


def assert_same(got, want) -> None:
    for name in ("prompt_tokens", "response_tokens", "response_mask", "finish_reasons", "group_ids", "sample_ids"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    np.testing.assert_allclose(got.sampler_logprobs, want.sampler_logprobs, atol=2e-5)


def test_the_server_gives_the_tokens_of_the_local_engine(server, tiny, prompts, tmp_path):
    remote = RemoteEngine(server.url, tiny[0], export_directory=tmp_path)
    finished = {}
    arguments = {"group_size": 3, "seed": 9, "step": 2, "prompt_ids": [3, 1, 4, 15, 9, 2]}
    rollout = remote.generate(prompts, SAMPLING, on_finished=finished.__setitem__, **arguments)
    assert_same(rollout, local(tiny).generate(prompts, SAMPLING, **arguments))
    want = {row: rollout.response_tokens[row][rollout.response_mask[row]].tolist() for row in range(18)}
    assert finished == want


def test_weights_are_handed_over_and_checked(server, tiny, prompts, tmp_path):
    config, _ = tiny
    other = init_qwen(config, jax.random.key(8))
    remote = RemoteEngine(server.url, config, export_directory=tmp_path)
    here = local(tiny)
    for version, params in ((41, other), (42, tiny[1])):
        remote.sync(params, version)
        here.sync(params, version)
        assert remote.version == here.version == version
        assert server.ask("/health")["weights_version"] == version
        assert_same(remote.generate(prompts, SAMPLING, seed=1), here.generate(prompts, SAMPLING, seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["weights-00000042"]
    server.ask("/sspo/reload", {"path": str(tmp_path / "weights-00000042"), "version": 7})  # another run meddles
    assert_same(remote.generate(prompts, SAMPLING, seed=1), here.generate(prompts, SAMPLING, seed=1))
    assert server.ask("/health")["weights_version"] == 42


def test_a_checkpoint_that_does_not_fit_is_refused_and_the_server_lives_on(server, tmp_path):
    before = server.ask("/health")
    assert "config.json" in server.refusal("/sspo/reload", {"path": str(tmp_path), "version": 1})
    assert "wants" in server.refusal("/sspo/reload", {"path": str(tmp_path)})
    assert server.ask("/health") == before


def test_requests_that_make_no_sense_are_answered_with_what_is_wanted(server):
    assert "empty" in server.refusal("/v1/completions", {"prompt": []})
    assert "outside 0 to 95" in server.refusal("/v1/completions", {"prompt": [96]})
    assert "no tokenizer" in server.refusal("/v1/completions", {"prompt": "text"})
    assert "temperature is -1.0" in server.refusal("/v1/completions", {"prompt": [4], "temperature": -1})
    assert "256 positions" in server.refusal("/v1/completions", {"prompt": [4] * 256})
    assert "stream" in server.refusal("/v1/completions", {"prompt": [4], "stream": True})
    assert "want a number" in server.refusal("/v1/completions", {"prompt": [4], "max_tokens": "9"})


def test_openai_fields(server):
    body = {"prompt": [[4, 9, 8], [7]], "max_tokens": 5, "n": 2, "seed": 3, "logprobs": 0, "return_token_ids": True}
    answer = server.ask("/v1/completions", body)
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in answer["choices"])
    assert answer["choices"][0]["token_ids"] != answer["choices"][1]["token_ids"]
    assert server.ask("/v1/completions", body)["choices"] == answer["choices"]
    assert server.ask("/v1/models")["data"][0]["id"] == "tiny"


def test_a_server_that_dies_mid_batch_loses_nothing(checkpoint, tiny, prompts, tmp_path):
    config, _ = tiny
    port = free_port()
    servers = [ServerProcess(checkpoint, port=port)]
    remote = RemoteEngine(servers[0].url, config, export_directory=tmp_path, concurrency=2, patience_seconds=100.0)
    other = init_qwen(config, jax.random.key(8))
    remote.sync(other, 5)
    finished: list[int] = []

    def kill_after_a_few(row: int, tokens: list[int]) -> None:
        finished.append(row)
        if len(finished) == 6:
            servers[0].kill()
            servers.append(ServerProcess(checkpoint, port=port))

    try:
        rollout = remote.generate(prompts, SAMPLING, group_size=3, seed=9, on_finished=kill_after_a_few)
        health = servers[-1].ask("/health")
    finally:
        for server in servers:
            server.kill()
    here = local(tiny)
    here.sync(other, 5)
    assert_same(rollout, here.generate(prompts, SAMPLING, group_size=3, seed=9))
    assert sorted(finished) == list(range(18))  # each once
    assert health["weights_version"] == 5  # the new server began with others
    assert remote.retries > 0


def test_patience_ends(tiny, tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    remote = RemoteEngine(url, tiny[0], export_directory=tmp_path, patience_seconds=0.5)
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"has not answered for 0\.5 seconds"):
        remote.generate([[4]], SAMPLING, seed=0)
    assert time.monotonic() - start < 10


def test_text_chat_and_stop_strings(tmp_path):
    from sspo_jax.data.tokenizer import load_tokenizer
    from sspo_jax.models.configs import QwenConfig

    tokenizer = load_tokenizer("tiny")
    config = QwenConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=128,
    )
    save_qwen(tmp_path / "m", init_qwen(config, jax.random.key(0)), config, dtype="float32", tokenizer=tokenizer)
    server = ServerProcess(str(tmp_path / "m"))
    try:
        body = {"prompt": "1 + 1", "max_tokens": 30, "seed": 1, "return_token_ids": True, "ignore_eos": True}
        free = server.ask("/v1/completions", body)["choices"][0]
        assert tokenizer.decode(free["token_ids"], skip_special_tokens=True) == free["text"]
        assert free["prompt_token_ids"] == tokenizer.encode("1 + 1", add_special_tokens=False)
        stop = free["text"][8:10]
        cut = server.ask("/v1/completions", {**body, "stop": stop})["choices"][0]
        assert cut["finish_reason"] == "stop"
        assert free["text"].startswith(cut["text"])
        assert stop in cut["text"]
        assert len(cut["token_ids"]) < 30
        chat = {"messages": [{"role": "user", "content": "2 + 2"}], "max_tokens": 8, "temperature": 0}
        message = server.ask("/v1/chat/completions", chat)["choices"][0]["message"]
        assert message["role"] == "assistant"
    finally:
        server.kill()
