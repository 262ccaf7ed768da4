"""`sspo serve` as clients meet it: streams, OpenAI's client, lm-eval's requests, odd bytes, keys, 64 clients."""

import itertools
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterable

import openai
import pytest

from sspo_jax.serving.connection import ServerError
from sspo_jax.serving.remote_engine import RemoteEngine
from tests.serving.conftest import SPEAKING
from tests.serving.server_process import ServerProcess, free_port

BODY = {"prompt": "1 + 1", "max_tokens": 24, "seed": 1, "ignore_eos": True}


def events(text: str) -> list[dict]:
    """Of a stream that has ended as it should."""
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def joined(parts: Iterable[list]) -> list:
    return list(itertools.chain.from_iterable(parts))


def near(values: list) -> list:
    """Equal but for the rounding of log-probs, which may differ with what else is decoded at the time."""
    return [pytest.approx(value, abs=2e-5) if isinstance(value, float | dict) else value for value in values]


def test_stop_strings_are_cut_from_the_text_and_never_shown(speaking: ServerProcess):
    whole = speaking.ask("/v1/completions", {**BODY, "return_token_ids": True})["choices"][0]
    for start in (2, 7, 12):
        stop = whole["text"][start : start + 2]
        body = {**BODY, "stop": [stop, "never"], "return_token_ids": True}
        cut = speaking.ask("/v1/completions", body)["choices"][0]
        assert cut["text"] == whole["text"][: whole["text"].index(stop)]
        assert cut["finish_reason"] == "stop"
        assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])]
        streamed = events(speaking.text("/v1/completions", {**body, "stream": True}))
        assert "".join(event["choices"][0]["text"] for event in streamed) == cut["text"]
        kept = speaking.ask("/v1/completions", {**body, "include_stop_str_in_output": True})["choices"][0]
        assert kept["text"] == cut["text"] + stop


def test_streams_hold_what_whole_answers_hold(speaking: ServerProcess):
    body = {**BODY, "n": 3, "logprobs": 2, "echo": True, "return_token_ids": True}
    whole = speaking.ask("/v1/completions", body)
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *streamed, last = events(speaking.text("/v1/completions", asked))
    assert last["usage"] == whole["usage"]
    assert last["choices"] == []
    for index, choice in enumerate(whole["choices"]):
        own = [event["choices"][0] for event in streamed if event["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]
        assert joined(part.get("token_ids", []) for part in own) == choice["token_ids"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [part["logprobs"][name] for part in own if part["logprobs"]]
            assert joined(parts) == near(choice["logprobs"][name])


def test_the_official_client(speaking: ServerProcess):
    client = openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none", max_retries=0, timeout=120)
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("other")
    assert missing.value.code == "model_not_found"
    answer = client.completions.create(model="small", prompt="1 + 1", max_tokens=6, logprobs=2, seed=3)
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.token_logprobs) == answer.usage.completion_tokens
    messages = [{"role": "user", "content": "2 + 2"}]
    asked = {"model": "small", "messages": messages, "max_tokens": 6, "seed": 3}
    chat = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 3
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == chat.choices[0].message.content
    assert pieces[-1].usage == chat.usage
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**asked, "model": "other"})
    with pytest.raises(openai.BadRequestError, match="frequency_penalty is 1"):
        client.chat.completions.create(**asked, frequency_penalty=1)
    with pytest.raises(openai.BadRequestError, match="n is 0"):
        client.completions.create(model="small", prompt="1", n=0)


def test_loglikelihoods_as_lm_eval_asks_for_them(speaking: ServerProcess):
    """Its `local-completions` sends context and continuation as tokens and reads the continuation's part."""
    context = [40, 50, 60, 70]
    best = speaking.ask(
        "/v1/completions",
        {"prompt": context, "max_tokens": 3, "temperature": 0, "ignore_eos": True, "return_token_ids": True},
    )["choices"][0]["token_ids"]
    other = [token % 400 + 5 for token in best]
    asked = {"model": "small", "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "temperature": 0}
    answer = speaking.ask("/v1/completions", {**asked, "prompt": [context + best, context + other]})
    found = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        logprobs = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        is_greedy = all(logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True))
        found.append((sum(logprobs), is_greedy))
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert found[0][0] > found[1][0]
    only = speaking.ask("/v1/completions", {**asked, "prompt": context + best, "max_tokens": 0})["choices"][0]
    assert only["logprobs"]["token_logprobs"] == answer["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert only["logprobs"]["token_logprobs"][0] is None


def exchange(server: ServerProcess, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for raw bytes, until the server closes the connection."""
    with socket.create_connection(server.address, timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def status_and_error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def post(*headers: str, body: bytes = b"") -> bytes:
    lines = ("POST /v1/completions HTTP/1.1", "Host: here", "Connection: close", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def test_odd_bytes_are_answered(speaking: ServerProcess):
    for length in ("abc", "-5", "1e3", "5, 6"):
        assert status_and_error(exchange(speaking, post(f"Content-Length: {length}", body=b"{}")))[0] == 400
    assert status_and_error(exchange(speaking, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"))[0] == 400
    deep = b"[" * 50_000
    status, message = status_and_error(exchange(speaking, post(f"Content-Length: {len(deep)}", body=deep)))
    assert (status, "nested too deeply" in message) == (400, True)
    large = post("Content-Length: 100000000", body=b"x" * 200_000)
    assert status_and_error(exchange(speaking, large))[0] == 413
    assert status_and_error(exchange(speaking, b"GET /health HTTP/1.1\r\nX: " + b"x" * 100_000))[0] == 400
    assert status_and_error(exchange(speaking, b"GET /health HTTP/1.1\r\nHost:"))[0] == 408  # and no more
    assert status_and_error(exchange(speaking, post("Content-Length: 50", body=b"{")))[0] == 408
    assert speaking.error("/v1/nothing", status=404)["code"] == "not_found"
    speaking.error("/v1/completions", status=405)


def test_chunked_bodies(speaking: ServerProcess):
    raw = json.dumps({**BODY, "max_tokens": 2}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (raw[:7], raw[7:])) + b"0\r\n\r\n"
    answer = exchange(speaking, post("Transfer-Encoding: chunked"), chunks)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert json.loads(body)["usage"]["completion_tokens"] == 2
    assert b" 400 " in exchange(speaking, post("Transfer-Encoding: chunked", body=b"zz\r\n")).split(b"\r\n")[0]


def test_weights_are_not_read_without_a_directory_for_them(speaking: ServerProcess, speaking_model: pathlib.Path):
    error = speaking.error("/sspo/reload", {"path": str(speaking_model), "version": 1}, status=403)
    assert "--reload-directory" in error["message"]


def test_a_key_and_a_directory_for_weights(speaking_model: pathlib.Path, tmp_path: pathlib.Path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(speaking_model)
    server = ServerProcess(str(speaking_model), key="k3y", reload_directory=str(allowed))
    try:
        assert server.ask("/health")["reload_directory"] == str(allowed)
        for path in (speaking_model, allowed / ".." / ".." / "etc", allowed / "link", "/"):
            error = server.error("/sspo/reload", {"path": str(path), "version": 1}, status=403)
            assert error["code"] == "reload_elsewhere"
        assert "config.json" in server.refusal("/sspo/reload", {"path": str(allowed), "version": 1})
        for key in (None, "", "k3", "k3yy"):
            server.key = key
            for route, body in (
                ("/health", None),
                ("/v1/models", None),
                ("/v1/completions", BODY),
                ("/sspo/reload", {}),
            ):
                assert server.error(route, body, status=401)["type"] == "authentication_error"
        arguments = {"export_directory": tmp_path / "out", "patience_seconds": 1}
        keyed = RemoteEngine(server.url, SPEAKING, api_key="k3y", **arguments)
        sampled = keyed.generate([[5, 6]], sampling(), seed=0)
        assert sampled.response_mask.any()
        with pytest.raises(ServerError, match=r"401 no API key was sent.*SSPO_API_KEY"):
            RemoteEngine(server.url, SPEAKING, **arguments).generate([[5, 6]], sampling(), seed=0)
    finally:
        server.kill()


def sampling():
    from sspo_jax.sampler import SamplingParams

    return SamplingParams(max_new_tokens=3)


def started(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`sspo serve` that is expected to end at once."""
    command = [sys.executable, "-m", "sspo_jax", "serve", *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).resolve().parents[2])
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_what_keeps_the_server_from_starting_is_said_before_weights_are_read(speaking: ServerProcess):
    """The model does not exist: it is not what is complained about."""
    nothing = ("--model", "/nonexistent/model")
    _, port = speaking.address
    taken = started(*nothing, "--port", str(port))
    assert taken.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in taken.stderr
    assert "Traceback" not in taken.stderr
    reachable = started(*nothing, "--host", "0.0.0.0", "--port", "0")
    assert reachable.returncode == 1
    assert "--allow-anonymous" in reachable.stderr


class Load:
    """Clients of one server, and what became of each."""

    def __init__(self, server: ServerProcess):
        self.server = server
        self.results: list[str] = []
        self.failures: list[BaseException] = []
        self.refused = 0
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        kinds = (
            self.honest,
            self.honest,
            self.streaming,
            self.leaving,
            self.slow,
            self.garbage,
            self.greedy,
            self.honest,
        )
        kind = kinds[number % len(kinds)]
        try:
            kind(number)
        except BaseException as error:
            self.failures.append(error)
        else:
            with self._lock:
                self.results.append(kind.__name__)

    def honest(self, number: int) -> None:
        for turn in range(3):
            answer = self.patient({**BODY, "seed": number, "max_tokens": 6 + turn})
            assert answer["usage"]["completion_tokens"] == 6 + turn

    def streaming(self, number: int) -> None:
        """Reads a stream of which it takes a little at a time."""
        raw = json.dumps({**BODY, "seed": number, "stream": True}).encode()
        answer = b" 429 "
        while b" 429 " in answer[:20]:
            with socket.create_connection(self.server.address, timeout=120) as connection:
                connection.sendall(post(f"Content-Length: {len(raw)}", body=raw))
                answer = b""
                while chunk := connection.recv(512):
                    answer += chunk
                    time.sleep(0.01)
        assert b"data: [DONE]" in answer

    def leaving(self, number: int) -> None:
        """Asks for much, and hangs up at once, with a reset."""
        raw = json.dumps({**BODY, "max_tokens": 100, "n": 8, "stream": number % 2 == 0}).encode()
        connection = socket.create_connection(self.server.address, timeout=30)
        connection.sendall(post(f"Content-Length: {len(raw)}", body=raw))
        time.sleep(0.2)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def slow(self, number: int) -> None:
        """Sends its headers a byte at a time, and never all of them."""
        with socket.create_connection(self.server.address, timeout=30) as connection:
            begun = time.monotonic()
            while time.monotonic() - begun < 30:
                try:
                    connection.sendall(b"G")
                except OSError:
                    return
                time.sleep(0.1)
        raise AssertionError("a client that sends no headers was kept for 30 seconds")

    def garbage(self, number: int) -> None:
        assert b" 400 " in exchange(self.server, b"\x00\xff nonsense\r\n\r\n")[:20]

    def greedy(self, number: int) -> None:
        """More samples than there is room for."""
        for _ in range(3):
            self.patient({**BODY, "n": 64, "max_tokens": 2})

    def patient(self, body: dict) -> dict:
        """The answer to a request that is sent again while the server has too much to do."""
        while True:
            try:
                return self.server.ask("/v1/completions", body)
            except urllib.error.HTTPError as error:
                if error.code != 429:
                    raise
                with self._lock:
                    self.refused += 1
                time.sleep(0.2 * int(error.headers["Retry-After"]))


def test_64_clients_slow_and_broken_ones_among_them(speaking: ServerProcess):
    load = Load(speaking)
    threads = [threading.Thread(target=load.client, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    assert not load.failures, load.failures[:3]
    assert len(load.results) == 64
    for _ in range(100):
        health = speaking.ask("/health")
        if not health["waiting"]:
            break
        time.sleep(0.1)
    assert health["waiting"] == 0
    assert speaking.ask("/v1/completions", BODY)["usage"]["completion_tokens"] == 24
    assert open_files(speaking.process.pid) < 100


def open_files(pid: int) -> int:
    """Files and connections that the process has open."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        pytest.skip("no /proc on this system")


def test_a_port_that_nobody_else_has_is_bound_while_the_model_is_read(speaking_model: pathlib.Path):
    """Who connects then waits for the answer, in place of being turned away."""
    port = free_port()
    server = ServerProcess(str(speaking_model), port=port)
    try:
        assert server.address == ("127.0.0.1", port)
        assert server.ask("/v1/models/small")["id"] == "small"
    finally:
        server.kill()
