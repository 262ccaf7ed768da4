"""`sspo serve` in a process of its own, asked over HTTP: same tokens as here, weights handed over, death survived."""

import http.server
import json
import threading
import time
import urllib.request

import jax
import numpy as np
import pytest

from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import init_qwen
from sspo_jax.sampler import NO_WEIGHTS, LocalEngine, SamplingParams
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.serving import VLLM_RELOAD, RemoteEngine, ServerError, ServerGoneError
from sspo_jax.serving.remote_engine import checked_choice
from sspo_jax.serving.service import CompletionService
from sspo_jax.types import FinishReason
from tests.serving.server_process import ServerProcess, free_port

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


def test_responses_go_on_through_a_server(server, tiny, prompts, tmp_path):
    """The last tokens of responses, each with the key and the place that it had, within a budget of its own."""
    remote, here = RemoteEngine(server.url, tiny[0], export_directory=tmp_path), local(tiny)
    whole = here.generate(prompts, SAMPLING, seed=9)
    begun = [[*prompt, *response[:1].tolist()] for prompt, response in zip(prompts, whole.responses, strict=True)]
    keys = row_keys(9, 0, list(range(6)), [0] * 6)
    options = {"seed": 1, "keys": keys, "places": [1] * 6, "budgets": [3, 4, 5, 6, 7, 8]}
    rest = remote.generate(begun, SAMPLING, **options)
    assert_same(rest, here.generate(begun, SAMPLING, **options))
    for response, row, budget in zip(rest.responses, whole.responses, options["budgets"], strict=True):
        assert response.tolist() == row[1 : 1 + budget].tolist()


@pytest.mark.slow
def test_servers_that_share_the_prompts_give_the_tokens_of_one(server, checkpoint, tiny, prompts, tmp_path):
    other = ServerProcess(checkpoint)
    try:
        before = [one.ask("/health")["tokens"] for one in (server, other)]
        remote = RemoteEngine([server.url, other.url], tiny[0], export_directory=tmp_path, concurrency=2)
        here = local(tiny)
        for engine in (remote, here):
            engine.sync(init_qwen(tiny[0], jax.random.key(8)), 5)
        assert_same(*(engine.generate(prompts, SAMPLING, group_size=2, seed=1) for engine in (remote, here)))
        for one, tokens in zip((server, other), before, strict=True):
            health = one.ask("/health")
            assert health["tokens"] > tokens
            assert health["weights_version"] == 5
    finally:
        other.kill()
    gone = RemoteEngine([server.url, other.url], tiny[0], export_directory=tmp_path, patience_seconds=0.5)
    with pytest.raises(ServerGoneError):
        gone.generate(prompts, SAMPLING, seed=1)


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
    assert "reload expected" in server.refusal("/sspo/reload", {"path": str(tmp_path)})
    assert server.ask("/health") == before


def test_requests_that_make_no_sense_are_answered_with_what_is_wanted(server):
    assert "empty" in server.refusal("/v1/completions", {"prompt": []})
    assert "outside 0 to 95" in server.refusal("/v1/completions", {"prompt": [96]})
    assert "no tokenizer" in server.refusal("/v1/completions", {"prompt": "text"})
    assert "temperature is -1.0" in server.refusal("/v1/completions", {"prompt": [4], "temperature": -1})
    assert "256 positions" in server.refusal("/v1/completions", {"prompt": [4] * 256})
    assert "expected a whole number" in server.refusal("/v1/completions", {"prompt": [4], "max_tokens": "9"})


def test_openai_fields(server):
    body = {"prompt": [[4, 9, 8], [7]], "max_tokens": 5, "n": 2, "seed": 3, "logprobs": 0, "return_token_ids": True}
    answer = server.ask("/v1/completions", body)
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in answer["choices"])
    assert answer["choices"][0]["token_ids"] != answer["choices"][1]["token_ids"]
    again = server.ask("/v1/completions", body)["choices"]
    assert [choice["token_ids"] for choice in again] == [choice["token_ids"] for choice in answer["choices"]]
    for one, other in zip(again, answer["choices"], strict=True):  # in other slots at other times
        np.testing.assert_allclose(one["logprobs"]["token_logprobs"], other["logprobs"]["token_logprobs"], atol=1e-5)
    assert server.ask("/v1/models")["data"][0]["id"] == "tiny"


@pytest.mark.slow
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


class AsVllm(http.server.BaseHTTPRequestHandler):
    """Before a real `sspo serve`, speaks as vLLM does: its reload call, and no word on which weights sampled."""

    behind: str
    calls: list[tuple[str, dict]]

    def do_GET(self) -> None:
        self.pass_on(self.path, None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions":
            self.pass_on(self.path, body)
            return
        self.calls.append((self.path, body))
        if self.path == "/collective_rpc":
            self.pass_on("/sspo/reload", {"path": body["kwargs"]["weights_path"], "version": 0})
        else:
            self.send(200, b"")

    def pass_on(self, route: str, body: dict | None) -> None:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.behind + route, data), timeout=60) as response:
                answer = json.load(response)
        except OSError:
            self.send(502, b"nobody behind")
            return
        self.send(200, json.dumps({k: v for k, v in answer.items() if not k.startswith("weights_")}).encode())

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
def test_a_server_that_does_not_say_which_weights_it_has(checkpoint, tiny, prompts, tmp_path):
    """vLLM's calls. When it dies and comes back with other weights, nothing that these have sampled is kept."""
    config, _ = tiny
    port = free_port()
    servers = [ServerProcess(checkpoint, port=port)]
    handler = type("Handler", (AsVllm,), {"behind": servers[0].url, "calls": []})
    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{front.server_address[1]}"
    other = init_qwen(config, jax.random.key(8))
    remote = RemoteEngine(
        url, config, export_directory=tmp_path, reload=VLLM_RELOAD, concurrency=3, patience_seconds=100.0
    )
    remote.sync(other, 5)
    reload = [
        (
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "weights-00000005")}},
        ),
        ("/reset_prefix_cache", {}),
    ]
    assert handler.calls == reload
    finished: list[int] = []

    def kill_after_a_few(row: int, tokens: list[int]) -> None:
        finished.append(row)
        if len(finished) == 6:
            servers[0].kill()
            servers.append(ServerProcess(checkpoint, port=port))

    try:
        rollout = remote.generate(prompts, SAMPLING, group_size=3, seed=9, on_finished=kill_after_a_few)
    finally:
        front.shutdown()
        front.server_close()
        for server in servers:
            server.kill()
    here = local(tiny)
    here.sync(other, 5)
    assert_same(rollout, here.generate(prompts, SAMPLING, group_size=3, seed=9))
    assert sorted(finished) == list(range(18))
    assert handler.calls[2:4] == reload


def test_an_answer_without_what_was_asked_for_is_refused():
    logprobs = {"token_logprobs": [-1.0, -2.0]}
    good = {"token_ids": [4, 5], "logprobs": logprobs, "finish_reason": "stop"}
    assert checked_choice({"choices": [good]}, "there") == ([4, 5], [-1.0, -2.0], FinishReason.STOP)
    assert checked_choice({"choices": [{**good, "finish_reason": "abort"}]}, "there") is None
    for bad in ({"logprobs": logprobs}, {"token_ids": [4, 5]}, {"token_ids": [4], "logprobs": logprobs}):
        with pytest.raises(ServerError, match="there answers without token_ids or logprobs"):
            checked_choice({"choices": [bad]}, "there")
    with pytest.raises(ServerError, match="without token_ids"):
        checked_choice({}, "there")


def test_progress_and_a_look_end_the_wait(server, tiny, prompts, tmp_path):
    """What they raise comes out soon, whatever is in flight; they are called also while nothing comes back."""
    remote = RemoteEngine(server.url, tiny[0], export_directory=tmp_path, concurrency=2)
    counts: list[int] = []

    def stop(tokens: int) -> None:
        counts.append(tokens)
        if tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.generate(prompts, SAMPLING, group_size=100, seed=9, progress=stop)
    assert counts[-1] < 600
    nobody = f"http://127.0.0.1:{free_port()}"
    away = RemoteEngine(nobody, tiny[0], export_directory=tmp_path, patience_seconds=300)
    polls: list[float] = []

    def poll() -> None:
        polls.append(time.monotonic())
        if len(polls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        away.sync(tiny[1], 1, poll=poll)
    assert max(np.diff(polls)) < 2
    assert away.version == NO_WEIGHTS


def test_patience_ends(tiny, tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    remote = RemoteEngine(url, tiny[0], export_directory=tmp_path, patience_seconds=0.5)
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"has not answered for 0\.5 seconds"):
        remote.generate([[4]], SAMPLING, seed=0)
    assert time.monotonic() - start < 10


def test_a_short_response_is_answered_while_a_long_one_is_decoded(tiny):
    """Together; what had been sampled in all when each was let go."""
    config, params = tiny
    service = CompletionService(params, config, gather_seconds=0.2)
    answered: list[tuple[int, int]] = []
    over = threading.Semaphore(0)
    jobs = []
    for tokens in (40, 2, 20):

        def on_change(tokens: int = tokens) -> None:
            answered.append((tokens, service.tokens))
            over.release()

        body = {"prompt": [4, 9], "max_tokens": tokens, "ignore_eos": True, "seed": tokens}
        jobs += service.submit(service.reader.completion(body), ("here", tokens), on_change)
    for _ in jobs:
        assert over.acquire(timeout=300)
    service.close()
    assert [tokens for tokens, _ in answered] == [2, 20, 40]
    assert [total for _, total in answered] == [2 + 8, 2 + 20 + 24, 62]  # blocks of 8 steps, slot by slot
    assert [len(job.tokens) for job in jobs] == [len(job.logprobs) for job in jobs] == [40, 2, 20]
