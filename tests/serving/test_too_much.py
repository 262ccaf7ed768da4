"""What the server has no room for is answered with status 429, and with when to come back."""

import asyncio

import httpx2
import pytest

from sspo_jax.serving.access import Gate
from sspo_jax.serving.errors import BusyError
from sspo_jax.serving.http import Application
from sspo_jax.serving.limits import Budget, Limits
from sspo_jax.serving.service import CompletionService


def asked(tiny, limits: Limits, body: dict) -> httpx2.Response:
    """The answer of a server with these limits."""
    config, params = tiny
    service = CompletionService(params, config, limits=limits)
    transport = httpx2.ASGITransport(Application(service, Gate(None)).app)

    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post("/v1/completions", json={"prompt": [4, 5, 6], **body})

    try:
        return asyncio.run(ask())
    finally:
        service.close()


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        (Limits(waiting_samples=2), {"n": 3}),
        (Limits(waiting_tokens=2), {}),
        (Limits(all_body_bytes=8), {}),
    ],
    ids=["samples", "tokens", "bytes"],
)
def test_later(tiny, limits: Limits, body: dict):
    answer = asked(tiny, limits, body)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_an_answer_of_too_many_numbers_is_refused(tiny):
    answer = asked(tiny, Limits(answer_values=100), {"n": 2, "max_tokens": 10, "logprobs": 5})
    assert answer.status_code == 400
    assert "the answer may hold 120 log-probabilities; expected at most 100" in answer.json()["error"]["message"]


def test_bytes_are_given_back():
    budget = Budget(10)
    budget.take(9)
    with pytest.raises(BusyError):
        budget.take(2)
    budget.give_back(9)
    budget.take(10)
