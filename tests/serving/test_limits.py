"""Turns and room in the queue; who may ask."""

import hmac

import pytest

from sspo_jax.ranges import check
from sspo_jax.serving.access import Gate, check_reachable, is_loopback, listen, server_key
from sspo_jax.serving.errors import AccessError, BusyError
from sspo_jax.serving.limits import FairQueue, Limits


def test_addresses_take_turns_and_so_do_their_connections():
    queue: FairQueue[str] = FairQueue(samples=100, tokens=100)
    queue.put(("hog", 1), [f"h1-{i}" for i in range(5)], tokens=5)
    queue.put(("hog", 2), [f"h2-{i}" for i in range(5)], tokens=5)
    queue.put(("other", 1), ["o-0", "o-1"], tokens=2)
    assert [queue.take() for _ in range(6)] == ["h1-0", "o-0", "h2-0", "o-1", "h1-1", "h2-1"]
    assert len(queue) == 6
    assert [queue.take() for _ in range(6)] == ["h1-2", "h2-2", "h1-3", "h2-3", "h1-4", "h2-4"]
    with pytest.raises(IndexError):
        queue.take()


def test_one_address_cannot_fill_the_queue():
    queue: FairQueue[int] = FairQueue(samples=8, tokens=1000)
    for _ in range(6):
        queue.put(("hog", 1), [0], tokens=1)
    with pytest.raises(BusyError, match="6 of them from hog") as error:
        queue.put(("hog", 2), [0], tokens=1)
    assert (error.value.status, error.value.retry_seconds) == (429, 1)
    queue.put(("other", 1), [0, 0], tokens=2)
    with pytest.raises(BusyError):
        queue.put(("third", 1), [0], tokens=1)
    queue.take()
    queue.put(("third", 1), [0], tokens=1)


def test_prompt_tokens_are_held_until_they_are_released():
    queue: FairQueue[int] = FairQueue(samples=100, tokens=10)
    queue.put(("a", 1), [0], tokens=9)
    queue.take()
    with pytest.raises(BusyError, match="prompt tokens"):
        queue.put(("b", 1), [0], tokens=2)
    queue.release(("a", 1), tokens=9)
    queue.put(("b", 1), [0], tokens=2)


def test_limits_are_numbers_above_zero():
    for changes in ({"samples": 0}, {"header_seconds": float("nan")}, {"body_bytes": -1}):
        with pytest.raises(ValueError, match=r"; expected a (whole|finite) number"):
            check(Limits(**changes), "--limits.")


def test_the_key():
    gate = Gate("s3cret")
    gate.check("Bearer s3cret", None)
    gate.check("bearer s3cret", "https://page")
    for header, code in ((None, "no_api_key"), ("Basic s3cret", "no_api_key"), ("Bearer s3cre", "invalid_api_key")):
        with pytest.raises(AccessError) as error:
            gate.check(header, None)
        assert (error.value.status, error.value.code) == (401, code)
        assert "s3cret" not in str(error.value)
    Gate(None).check(None, None)
    with pytest.raises(AccessError, match="web pages"):
        Gate(None).check(None, "https://page")


def test_keys_are_compared_in_constant_time(monkeypatch):
    """By a function for that, on values of one length whatever was sent."""
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, two: compared.append((one, two)) or one == two)
    gate = Gate("s3cret")
    gate.check("Bearer s3cret", None)
    for wrong in ("s", "s3cret" * 100):
        with pytest.raises(AccessError):
            gate.check(f"Bearer {wrong}", None)
    assert len(compared) == 3
    assert len({len(value) for pair in compared for value in pair}) == 1


def test_where_the_key_comes_from(monkeypatch):
    monkeypatch.delenv("SSPO_API_KEY", raising=False)
    assert server_key(None) is None
    monkeypatch.setenv("SSPO_API_KEY", "one")
    assert server_key(None) == "one"
    assert server_key("two") == "two"
    for bad in ("", "a b", "é"):
        with pytest.raises(ValueError, match="--api-key"):
            server_key(bad)
    monkeypatch.setenv("SSPO_API_KEY", "")
    with pytest.raises(ValueError, match="SSPO_API_KEY is empty"):
        server_key(None)


def test_other_machines_need_a_key_or_leave():
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    for host in ("0.0.0.0", "::", ""):
        with pytest.raises(ValueError, match="--allow-anonymous"):
            check_reachable(host, has_key=False, allow_anonymous=False)
        check_reachable(host, has_key=True, allow_anonymous=False)
        check_reachable(host, has_key=False, allow_anonymous=True)
    check_reachable("127.0.0.1", has_key=False, allow_anonymous=False)


def test_a_port_that_is_taken_is_named():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} of 127\.0\.0\.1 is taken"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="expected 0 to 65535"):
        listen("127.0.0.1", 70000)
