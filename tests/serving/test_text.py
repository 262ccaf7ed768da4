"""Text as it grows token by token, against the text of all tokens at once."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.serving.errors import RequestError
from sspo_jax.serving.text import Codec, GrowingText

CODEC = Codec(load_tokenizer("tiny"))
TEXTS = st.lists(st.sampled_from(["a", "ab", "stop", "é", "你好", "👩‍🚀", " 1 + 1", "\n\n", "st", "op"]), max_size=12)


def shown(growing: GrowingText, tokens: list[int]) -> tuple[list[str], int]:
    """The pieces that are handed out, and the number of tokens taken."""
    pieces = []
    for count, token in enumerate(tokens, 1):
        is_over = growing.add(token)
        if is_over or count == len(tokens):
            growing.finish()
        pieces.append(growing.new())
        if is_over:
            return pieces, count
    return pieces, len(tokens)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 511), min_size=1, max_size=30))
def test_pieces_add_up_whatever_the_tokens_are(tokens: list[int]):
    growing = GrowingText(CODEC)
    pieces, _ = shown(growing, tokens)
    assert "".join(pieces) == growing.finish() == CODEC.decode(tokens)


@settings(deadline=None, max_examples=60)
@given(
    TEXTS, st.lists(st.sampled_from(["stop", "b", "好", "🚀", "\n\n", "1 + 1é"]), min_size=1, max_size=3, unique=True)
)
def test_the_text_ends_before_the_first_stop_string(parts: list[str], stops: list[str]):
    text = "".join(parts) + "."
    tokens = CODEC.encode(text)
    found = sorted((text.find(stop) + 0, stop) for stop in stops if stop in text)
    for keeps_stop in (False, True):
        growing = GrowingText(CODEC, stops, keeps_stop=keeps_stop)
        pieces, count = shown(growing, tokens)
        result = growing.finish()
        assert "".join(pieces) == result
        assert text.startswith(result)
        assert all("\ufffd" not in piece for piece in pieces)
        if not found:
            assert result == text
            continue
        whole = CODEC.decode(tokens[:count])
        assert any(stop in whole for stop in stops)
        assert not any(stop in CODEC.decode(tokens[: count - 1]) for stop in stops)
        if keeps_stop:
            assert any(result.endswith(stop) for stop in stops)
        else:
            assert not any(stop in result for stop in stops)


def test_a_stop_string_before_the_least_number_of_tokens_does_not_count():
    tokens = CODEC.encode("a stop b stop c")
    first = next(n for n in range(len(tokens)) if "stop" in CODEC.decode(tokens[:n]))
    growing = GrowingText(CODEC, ["stop"], minimum=first + 1)
    _, count = shown(growing, tokens)
    assert growing.finish() == "a stop b "
    assert count > first
    growing = GrowingText(CODEC, ["stop"], minimum=first)
    assert shown(growing, tokens)[1] == first
    assert growing.finish() == "a "


def test_texts_that_are_none():
    with pytest.raises(RequestError, match="half of a surrogate pair at 1"):
        CODEC.encode("a\ud800")
    with pytest.raises(RequestError, match="no tokenizer"):
        Codec(None).encode("a")
