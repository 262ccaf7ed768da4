"""Bodies of requests: what is refused, with which status and which name, without a server."""

import pytest

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.serving.errors import RequestError
from sspo_jax.serving.http import parse_object
from sspo_jax.serving.limits import Limits
from sspo_jax.serving.requests import RequestReader
from sspo_jax.serving.text import Codec
from tests.serving.conftest import SPEAKING

READER = RequestReader(
    SPEAKING, Codec(load_tokenizer("tiny")), name="small", max_tokens=100, limits=Limits(samples=8, prompts=4)
)
HELLO = [{"role": "user", "content": "hello"}]


def refusal(body: dict, *, chat: bool = False, status: int = 400) -> RequestError:
    with pytest.raises(RequestError) as error:
        (READER.chat if chat else READER.completion)(body)
    assert error.value.status == status
    assert set(error.value.body["error"]) == {"message", "type", "param", "code"}
    return error.value


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 0),
        ("n", -1),
        ("n", 1.5),
        ("n", True),
        ("n", 9),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "9"),
        ("max_tokens", 101),
        ("max_tokens", 10**40),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 1e300),
        ("seed", 2**64),
        ("seed", 1.0),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", ""),
        ("stop", {"a": 1}),
        ("stop", ["x"] * 17),
        ("stop", "x" * 300),
        ("stop_token_ids", 5),
        ("stop_token_ids", ["5"]),
        ("stop_token_ids", [512]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", list(range(100))),
        ("top_k", -2),
        ("top_k", 0.5),
        ("min_tokens", 17),
        ("logprobs", 21),
        ("logprobs", True),
        ("echo", 1),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("ignore_eos", "no"),
        ("prompt", None),
        ("prompt", []),
        ("prompt", ""),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", [512]),
        ("prompt", [[1]] * 5),
        ("prompt", [1] * 128),
        ("prompt", {"text": "a"}),
        ("prompt", "a\ud800"),
    ],
)
def test_a_field_with_an_odd_value_is_named(param: str, value: object):
    error = refusal({"prompt": "1 + 1", param: value})
    assert error.param == param
    assert param in str(error) or error.code == "context_length_exceeded" or "stop tokens" in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize("changes", [{"temperature": 1e-40}, {"temperature": -1}, {"top_p": 0}, {"min_p": 2}], ids=str)
def test_settings_outside_their_range(changes: dict):
    assert next(iter(changes)) in str(refusal({"prompt": "1", **changes}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
        ("repetition_penalty", 1.1),
        ("logit_bias", {"5": 1}),
        ("best_of", 3),
        ("suffix", "end"),
        ("response_format", {"type": "json_object"}),
        ("tools", [{}]),
        ("functions", [{}]),
        ("guided_json", {}),
        ("anything_else", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, value: object):
    for chat, body in ((False, {"prompt": "1"}), (True, {"messages": HELLO})):
        error = refusal({**body, name: value}, chat=chat)
        assert (error.param, error.code) == (name, "unsupported") or name == "best_of"
        assert name in str(error)


def test_what_asks_for_nothing_is_accepted():
    neutral = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "best_of": None,
        "suffix": None,
        "user": "someone",
        "response_format": {"type": "text"},
        "tools": [],
        "store": False,
    }
    assert READER.completion({"prompt": "1", **neutral}).count == 1
    assert READER.completion({"prompt": "1", "n": 2, "best_of": 2}).count == 2
    assert READER.chat({"messages": HELLO, **neutral}).is_chat


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        ["hello"],
        [{}],
        [{"role": "user"}],
        [{"role": "robot", "content": "a"}],
        [{"role": ["user"], "content": "a"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": "a\ud800"}],
        [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
    ],
)
def test_malformed_messages(messages: object):
    assert str(refusal({"messages": messages}, chat=True).param).startswith("messages")


def test_chats():
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert READER.chat({"messages": parts}).prompts == READER.chat({"messages": HELLO}).prompts
    assert READER.chat({"messages": HELLO, "max_tokens": 9, "max_completion_tokens": 5}).budgets == [5]
    room = 128 - len(READER.chat({"messages": HELLO}).prompts[0])
    assert READER.chat({"messages": HELLO}).budgets == [min(100, room)]
    assert refusal({"messages": HELLO, "top_logprobs": 2}, chat=True).param == "top_logprobs"
    assert refusal({"messages": HELLO, "echo": True}, chat=True).param == "echo"


def test_another_model():
    error = refusal({"prompt": "1", "model": "gpt-4"}, status=404)
    assert (error.param, error.code) == ("model", "model_not_found")
    assert refusal({"prompt": "1", "model": 5}).param == "model"
    assert READER.completion({"prompt": "1", "model": "small"}).count == 1


@pytest.mark.parametrize(
    "raw",
    [b"[" * 10**6, b'{"a":' * 10**5, b"{", b"[]", b"5", b"\xff\xfe", b'{"a": NaN}', b'{"a": ' + b"9" * 5000 + b"}"],
    ids=lambda raw: repr(raw[:12]),
)
def test_bodies_that_are_no_json_object(raw: bytes):
    with pytest.raises(RequestError, match="the body is"):
        parse_object(raw)
