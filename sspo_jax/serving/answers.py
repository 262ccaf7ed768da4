"""Answers in OpenAI's formats: whole ones, and the events of a stream."""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sspo_jax.serving.requests import Generation
from sspo_jax.serving.service import Job, Piece, Tops
from sspo_jax.serving.text import Codec


class Answer:
    """The answer to one request, from its finished jobs or piece by piece.

    Args:
      generation: the request.
      codec: tokens to text.
      model: its name.
    """

    def __init__(self, generation: Generation, codec: Codec, *, model: str):
        self._generation, self._codec, self._model = generation, codec, model
        is_chat = generation.is_chat
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._offsets: dict[int, int] = {}  # characters of a choice that were told before, by index

    def whole(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        choices = [self._choice(index, job) for index, job in enumerate(jobs)]
        kind = "chat.completion" if self._generation.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, **self._tail(jobs), "usage": self._usage(jobs)}

    def opening(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The events before anything is sampled: a chat's role. An echo comes with the first piece."""
        if self._generation.is_chat:
            for index in range(len(jobs)):
                yield self._event(index, delta={"role": "assistant", "content": ""}, finish_reason=None)

    def echo(self, index: int, job: Job) -> dict[str, Any]:
        """The event that holds the prompt."""
        choice: dict[str, Any] = {"text": self._codec.decode(job.prompt), "finish_reason": None, "logprobs": None}
        if self._generation.top is not None:
            choice["logprobs"] = self._legacy_logprobs(index, *self._prompt_scores(job))
        return self._event(index, **choice)

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """The event for what has been added to a choice."""
        fields: dict[str, Any] = {"finish_reason": None}
        if self._generation.is_chat:
            fields |= {"delta": {"content": piece.text}}
        else:
            fields |= {"text": piece.text}
        fields["logprobs"] = self._logprobs(index, piece.tokens, piece.logprobs, piece.tops)
        if self._generation.return_token_ids:
            fields["token_ids"] = piece.tokens
        return self._event(index, **fields)

    def ending(self, index: int, job: Job) -> dict[str, Any]:
        """The event that says why a choice has ended."""
        added = {"delta": {}} if self._generation.is_chat else {"text": ""}
        event = self._event(index, **added, finish_reason=job.finish_reason, logprobs=None)
        return event | {"weights_version": job.weights_version, "weights_path": job.weights_path}

    def closing(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The events after all choices have ended."""
        if self._generation.include_usage:
            kind = "chat.completion.chunk" if self._generation.is_chat else "text_completion"
            yield {**self._head(kind), "choices": [], "usage": self._usage(jobs)}

    def _choice(self, index: int, job: Job) -> dict[str, Any]:
        text = self._codec.decode(job.tokens) if job.text is None else job.text
        choice: dict[str, Any] = {"index": index, "finish_reason": job.finish_reason}
        tokens, logprobs, tops = job.tokens, list[float | None](job.logprobs), list[Tops | None](job.tops)
        if self._generation.is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        elif self._generation.echo:
            choice["text"] = self._codec.decode(job.prompt) + text
            if self._generation.scores_prompts:
                before = self._prompt_scores(job)
                tokens, logprobs, tops = before[0] + tokens, before[1] + logprobs, before[2] + tops
        else:
            choice["text"] = text
        choice["logprobs"] = self._logprobs(index, tokens, logprobs, tops)
        if self._generation.return_token_ids:
            choice["token_ids"], choice["prompt_token_ids"] = job.tokens, job.prompt
        return choice

    def _prompt_scores(self, job: Job) -> tuple[list[int], list[float | None], list[Tops | None]]:
        """Tokens, log-probabilities and alternatives of the prompt; the first token has neither of the latter."""
        scores, top = job.prompt_scores, self._generation.top
        assert scores is not None
        tops: list[Tops | None] = []
        if top:
            ids, values = scores["top_ids"][:, :top].tolist(), scores["top_logprobs"][:, :top].tolist()
            tops = [None, *zip(ids, values, strict=True)]
        return job.prompt, [None, *scores["logprobs"].tolist()], tops

    def _logprobs(
        self,
        index: int,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[Tops | None],
    ) -> dict[str, Any] | None:
        if self._generation.top is None:
            return None
        if self._generation.is_chat:
            return {"content": self._chat_logprobs(tokens, logprobs, tops), "refusal": None}
        return self._legacy_logprobs(index, tokens, logprobs, tops)

    def _legacy_logprobs(
        self,
        index: int,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[Tops | None],
    ) -> dict[str, Any]:
        names = [self._codec.name(token) for token in tokens]
        offsets, offset = [], self._offsets.get(index, 0)
        for name in names:
            offsets.append(offset)
            offset += len(name) if self._codec.has_text else 0
        self._offsets[index] = offset
        alternatives: list[dict[str, float] | None] | None = None
        if self._generation.top:
            alternatives = [
                None if top is None else self._by_name(name, logprob, top)
                for name, logprob, top in zip(names, logprobs, tops, strict=True)
            ]
        return {
            "tokens": names,
            "token_logprobs": list(logprobs),
            "top_logprobs": alternatives,
            "text_offset": offsets,
        }

    def _by_name(self, name: str, logprob: float | None, top: Tops) -> dict[str, float]:
        """Alternatives by their text, and the token itself; of those with the same text the most probable one."""
        found: dict[str, float] = {}
        for token, value in zip(*top, strict=True):
            found.setdefault(self._codec.name(token), value)
        if logprob is not None:
            found.setdefault(name, logprob)
        return found

    def _chat_logprobs(
        self, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Tops | None]
    ) -> list[dict[str, Any]]:
        rows = tops if self._generation.top else [None] * len(tokens)
        return [
            {
                **self._chat_token(token, logprob),
                "top_logprobs": [] if top is None else [self._chat_token(*each) for each in zip(*top, strict=True)],
            }
            for token, logprob, top in zip(tokens, logprobs, rows, strict=True)
        ]

    def _chat_token(self, token: int, logprob: float | None) -> dict[str, Any]:
        name = self._codec.name(token)
        is_whole = "�" not in name  # the bytes of a part of a character are not known here
        return {"token": name, "logprob": logprob, "bytes": list(name.encode()) if is_whole else None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _tail(self, jobs: Sequence[Job]) -> dict[str, Any]:
        return {"weights_version": jobs[0].weights_version, "weights_path": jobs[0].weights_path}

    def _usage(self, jobs: Sequence[Job]) -> dict[str, int]:
        prompt = sum(map(len, self._generation.prompts))
        completion = sum(len(job.tokens) for job in jobs)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _event(self, index: int, **fields: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._generation.is_chat else "text_completion"
        return {**self._head(kind), "choices": [{"index": index, **fields}]}


def server_sent(event: dict[str, Any]) -> bytes:
    """An event as it goes over the wire."""
    return f"data: {json.dumps(event)}\n\n".encode()
