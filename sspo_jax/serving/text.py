"""Text and tokens for the server: encoding, text as it grows token by token, stop strings."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from sspo_jax.models.end_tokens import end_tokens
from sspo_jax.serving.errors import RequestError

_CUT = "�"  # what a decoder writes for bytes that are not a whole character


class Codec:
    """A tokenizer, or none: then requests hold token ids alone, and texts are empty.

    Args:
      tokenizer: of transformers, or None.
      declared: end tokens that the checkpoint names.
    """

    def __init__(self, tokenizer: Any, declared: Iterable[int] = ()):
        self._tokenizer = tokenizer
        # Encoding may set options of the tokenizer, which fails while another thread uses it. Once they are as encoding
        # wants them they are not set again, so that decoding need not wait for long texts to be encoded.
        self._lock = threading.Lock()
        if tokenizer is not None:
            tokenizer.encode("", add_special_tokens=False)
        self.has_text = tokenizer is not None
        self.has_chat = tokenizer is not None and bool(tokenizer.chat_template)
        self.end_tokens = frozenset(end_tokens(tokenizer, declared))
        """What ends a response."""

    def encode(self, text: str) -> list[int]:
        """Token ids. Raises RequestError where the text cannot be encoded."""
        if not self.has_text:
            raise RequestError("this server has no tokenizer: give prompt as token ids", param="prompt")
        _check_text(text, "prompt")
        with self._lock:
            return self._tokenizer.encode(text, add_special_tokens=False)

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of the conversation in the tokenizer's chat template, ready for the answer.

        Raises:
          RequestError: there is no template, or it does not take these messages.
        """
        import jinja2

        if not self.has_chat:
            raise RequestError("this server has no tokenizer with a chat template: use /v1/completions")
        for message in messages:
            _check_text(message["content"], "messages")
        try:
            with self._lock:
                return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"the chat template does not take these messages: {error}", param="messages") from None

    def decode(self, tokens: Sequence[int], *, with_special: bool = False) -> str:
        """The text; special tokens are left out unless they are wanted."""
        if not self.has_text:
            return ""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=not with_special)

    def name(self, token: int) -> str:
        """How one token is shown among log-probabilities."""
        return self.decode([token], with_special=True) if self.has_text else f"token_id:{token}"


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} holds half of a surrogate pair at {error.start}: not a text", param=name) from None


class GrowingText:
    """The text of a response while its tokens come, and the first stop string in it.

    Bytes that are not yet a whole character are held back, and so is what may become a stop string.

    Args:
      codec: tokens to text.
      stops: strings that end the response.
      keeps_stop: the text ends with the stop string, in place of just before it.
      minimum: a stop string counts if it is complete only once there are this many tokens.
    """

    def __init__(self, codec: Codec, stops: Sequence[str] = (), *, keeps_stop: bool = False, minimum: int = 0):
        self._codec, self._stops, self._keeps_stop, self._minimum = codec, tuple(stops), keeps_stop, minimum
        self._tokens: list[int] = []
        self._text = ""  # of whole characters
        self._start, self._read = 0, 0  # tokens that are decoded again for context; tokens whose text is in `_text`
        self._floor = 0  # characters within which a stop string does not count
        self._end: int | None = None  # of the text, where a stop string was found
        self._given = 0  # characters handed out

    def add(self, token: int) -> bool:
        """Adds a token; whether a stop string is complete with it."""
        self._tokens.append(token)
        before = self._codec.decode(self._tokens[self._start : self._read])
        both = self._codec.decode(self._tokens[self._start :])
        pending = both[len(before) :]
        searched = max(self._floor, len(self._text))
        if pending and not pending.endswith(_CUT):
            self._text += pending
            pending = ""
            self._start, self._read = self._read, len(self._tokens)
        text = self._text + pending.rstrip(_CUT)
        if len(self._tokens) < self._minimum:
            self._floor = len(text)
            return False
        found = [(text.find(stop, max(0, searched - len(stop) + 1)), stop) for stop in self._stops]
        found = [(place, stop) for place, stop in found if place >= 0]
        if not found:
            return False
        place, stop = min(found)
        self._text, self._end = text, place + (len(stop) if self._keeps_stop else 0)
        return True

    def finish(self) -> str:
        """The whole text, when the last token has come."""
        if self._end is None:
            whole = self._codec.decode(self._tokens)
            self._text = whole if whole.startswith(self._text) else self._text
            self._end = len(self._text)
        return self._text[: self._end]

    def new(self) -> str:
        """What may be shown beyond what was handed out before."""
        end = self._end
        if end is None:
            end = len(self._text) - max((_overlap(self._text, stop) for stop in self._stops), default=0)
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that are the beginning of the stop string, but not all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
