"""The service behind `sspo serve`: requests wait, are decoded together, and are answered as they end.

One thread decodes. What arrives joins between two blocks of steps, each sample with its own settings, length and key;
equal prompts that arrive together are prefilled once. The tokens of a sample depend on weights, prompt, seed and
settings, not on what else is decoded. Weights are replaced when what is being decoded has ended; what waits then
starts with the new ones.
"""

import dataclasses
import logging
import pathlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sspo_jax.data.tokenizer import count_tokens
from sspo_jax.models.configs import QwenConfig, architecture_differences
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.qwen import Params
from sspo_jax.sampler.random_bits import threefry
from sspo_jax.sampler.sampler import Sampler
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.serving.decoding import Block, Request, Stream
from sspo_jax.serving.errors import RequestError
from sspo_jax.serving.limits import Client, FairQueue, Limits
from sspo_jax.serving.requests import STOP_TOKENS, TOP, Generation, RequestReader, shown, unknown_model
from sspo_jax.serving.scoring import prompt_scores
from sspo_jax.serving.text import Codec, GrowingText
from sspo_jax.types import FinishReason

LOG = logging.getLogger(__name__)

Tops = tuple[Sequence[int], Sequence[float]]
"""The most probable tokens at one place, falling, and their log-probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What has been added to a response since the piece before."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    tops: list[Tops]


@dataclasses.dataclass(eq=False, kw_only=True)
class Job:
    """One sample of a request; the decoding thread fills it in."""

    prompt: list[int]
    budget: int
    key: int
    generation: Generation
    on_change: Callable[[], None]
    """Called in the decoding thread when there is a new piece, or when the job has ended."""
    growing: GrowingText | None
    """The text, where it is looked at before the end."""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    tops: list[Tops] = dataclasses.field(default_factory=list)
    pieces: deque[Piece] = dataclasses.field(default_factory=deque)
    prompt_scores: dict[str, np.ndarray] | None = None
    """See `scoring.prompt_scores`; for requests that ask for them."""
    text: str | None = None
    """The whole of it; None: that of the tokens."""
    finish_reason: str = ""
    weights_version: int = 0
    weights_path: str = ""
    error: Exception | None = None
    is_done: bool = False
    is_cancelled: bool = False
    """Nobody waits for it any more."""


class CompletionService:
    """Decodes requests, in a thread of its own, and replaces weights."""

    def __init__(
        self,
        params: Params,
        config: QwenConfig,
        *,
        tokenizer: Any = None,
        name: str = "model",
        path: str = "",
        slots: int | None = None,
        max_tokens: int = 4096,
        gather_seconds: float = 0.005,
        limits: Limits | None = None,
        reload_directory: str | pathlib.Path | None = None,
    ):
        """
        Args:
          params, config: weights and shape of the model.
          tokenizer: of transformers; none: requests hold token ids.
          name: of the model in requests.
          path: directory that the weights were read from.
          slots: samples decoded at once; by default 64 on a CPU, 256 elsewhere.
          max_tokens: most tokens of a response.
          gather_seconds: how long the first request waits for others to be decoded with it.
          limits: of requests.
          reload_directory: weights are only read from below it; none: not at all.
        """
        if tokenizer is not None:
            config = config.with_tokens(count_tokens(tokenizer))
        self._params, self._config, self._name = params, config, name
        self._gather_seconds = gather_seconds
        self._max_tokens = min(max_tokens, config.max_positions - 1)
        self.limits = limits or Limits()
        self.reload_directory = None if reload_directory is None else pathlib.Path(reload_directory).resolve()
        self.codec = Codec(tokenizer, config.eos_token_ids)
        self.reader = RequestReader(config, self.codec, name=name, max_tokens=self._max_tokens, limits=self.limits)
        sampling = SamplingParams(max_new_tokens=self._max_tokens)
        self._sampler = Sampler(config, sampling, slots=slots, block_steps=8)
        self._changed = threading.Condition()  # guards what follows
        self._queue: FairQueue[Job] = FairQueue(samples=self.limits.waiting_samples, tokens=self.limits.waiting_tokens)
        self._taken: set[Job] = set()
        self._swaps = 0  # reloads that wait for the decoding to end
        self._is_decoding = self._is_closing = False
        self._reloading = threading.Lock()
        self.version = 0
        """Version of the weights; 0 for those of the start."""
        self.path = path
        """Directory that the weights were read from."""
        self.tokens = 0
        """Generated since the start."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="decode")
        self._thread.start()

    @property
    def programs(self) -> list[str]:
        """What was compiled so far."""
        return self._sampler.programs.names

    def close(self, timeout_seconds: float | int = 10.0) -> None:
        """Ends the decoding; jobs under way stay unanswered."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)

    def health(self) -> dict[str, Any]:
        """State of the server."""
        return {
            "status": "ok",
            "weights_version": self.version,
            "weights_path": self.path,
            "tokens": self.tokens,
            "waiting": len(self._queue),
            "reload_directory": None if self.reload_directory is None else str(self.reload_directory),
        }

    def model(self, name: str | None = None) -> dict[str, Any]:
        """The card of the model. Raises RequestError with status 404 for another one's name."""
        if name not in (None, self._name):
            raise unknown_model(str(name), self._name)
        return {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "sspo_jax",
            "max_model_len": self._config.max_positions,
            "max_tokens": self._max_tokens,
            "architecture": self._config.architecture,
        }

    def reload(self, body: dict[str, Any]) -> dict[str, Any]:
        """Replaces the weights by those of the checkpoint directory `path`; what decodes now still ends with the old.

        Raises:
          RequestError: fields are missing, the directory is not below `reload_directory` (status 403), or the
            checkpoint is not one of this model's shape.
        """
        path, version = body.get("path"), body.get("version")
        if not isinstance(path, str) or type(version) is not int or not 0 <= version < 2**63 or "\0" in path:
            raise RequestError("reload expected {'path': directory of a checkpoint, 'version': whole number}")
        self._check_path(path)
        with self._reloading:
            try:
                params, config = load_qwen(
                    path, dtype=self._config.compute.dtype, param_dtype=self._config.compute.dtype
                )
            except (OSError, ValueError) as error:
                raise RequestError(f"checkpoint {path}: {error}") from None
            differing = architecture_differences(config.architecture, self._config, whose="served")
            if differing:
                raise RequestError(
                    f"checkpoint {path} has another shape than the model that is served: {'; '.join(differing)}"
                )
            with self._changed:
                self._swaps += 1
                self._changed.wait_for(lambda: not self._is_decoding or self._is_closing)
                self._params, self.version, self.path = params, version, path
                self._swaps -= 1
                self._changed.notify_all()
                return self.health()

    def _check_path(self, path: str) -> None:
        if self.reload_directory is None:
            raise RequestError(
                "this server reads no other weights: start it with --reload-directory DIR to allow those below DIR",
                status=403,
                code="reload_off",
            )
        if not pathlib.Path(path).resolve().is_relative_to(self.reload_directory):
            raise RequestError(
                f"{shown(path)} is not below {self.reload_directory}, where this server may read weights: write them "
                "there, or start it with another --reload-directory",
                status=403,
                code="reload_elsewhere",
            )

    def submit(self, generation: Generation, client: Client, on_change: Callable[[], None]) -> list[Job]:
        """Puts a request into the queue: one job a sample, prompt by prompt.

        Args:
          client: whose turn it counts as.
          on_change: called in the decoding thread when there is something new.

        Raises:
          BusyError: too much waits.
        """
        seed = generation.seed
        key = secrets.randbits(64) if seed is None else seed % 2**64
        is_looked_at = self.codec.has_text and (generation.stream or bool(generation.stops))
        jobs = [
            Job(
                prompt=prompt,
                budget=budget,
                key=_choice_key(key, index),
                generation=generation,
                on_change=on_change,
                growing=self._growing(generation) if is_looked_at else None,
            )
            for prompt, budget in zip(generation.prompts, generation.budgets, strict=True)
            for index in range(generation.count)
        ]
        with self._changed:
            self._queue.put(client, jobs, tokens=sum(map(len, generation.prompts)))
            self._changed.notify_all()
        return jobs

    def leave(self, generation: Generation, client: Client, jobs: list[Job]) -> None:
        """Ends a request, answered or not; to be called once for each `submit`."""
        for job in jobs:
            job.is_cancelled = True
        with self._changed:
            self._queue.release(client, tokens=sum(map(len, generation.prompts)))

    def _growing(self, generation: Generation) -> GrowingText:
        return GrowingText(
            self.codec,
            generation.stops,
            keeps_stop=generation.keeps_stop,
            minimum=generation.sampling.min_new_tokens,
        )

    def _work(self) -> None:
        """Decodes whenever something waits, forever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or (len(self._queue) > 0 and not self._swaps))
                if self._is_closing:
                    return
                self._is_decoding = True
            try:
                time.sleep(self._gather_seconds)
                self._params = self._sampler.ready(self._params)  # the others can go
                Stream(self._sampler, self._params, self._take, stops=STOP_TOKENS, top=TOP).run()
            except Exception as error:  # handed to those who wait; the server lives on
                LOG.exception("%d samples could not be decoded", len(self._taken))
                for job in list(self._taken):
                    self._end(job, error=error)
            finally:
                with self._changed:
                    self._is_decoding = False
                    self._changed.notify_all()

    def _take(self, room: int) -> list[Request]:
        """The next samples; none while weights wait to be replaced."""
        jobs: list[Job] = []
        with self._changed:
            if self._swaps or self._is_closing:
                return []
            while len(jobs) < room and len(self._queue):
                job = self._queue.take()
                if not job.is_cancelled:
                    jobs.append(job)
        self._taken.update(jobs)
        self._score(jobs)
        for job in jobs:
            if not job.budget:
                self._end(job, finish_reason="length")
        return [self._request(job) for job in jobs if not job.is_done]

    def _score(self, jobs: list[Job]) -> None:
        """Log-probabilities of the prompts for which they are wanted, each prompt of a request once."""
        wanted: dict[tuple[int, int], list[Job]] = {}
        for job in jobs:
            if job.generation.scores_prompts:
                wanted.setdefault((id(job.generation), id(job.prompt)), []).append(job)
        if not wanted:
            return
        first = [same[0] for same in wanted.values()]
        found = prompt_scores(
            self._sampler,
            self._params,
            [job.prompt for job in first],
            [job.generation.sampling.temperature for job in first],
            top=TOP if any(job.generation.top for job in first) else 0,
        )
        for same, scores in zip(wanted.values(), found, strict=True):
            for job in same:
                job.prompt_scores = scores

    def _request(self, job: Job) -> Request:
        return Request(
            prompt=job.prompt,
            budget=job.budget,
            key=job.key,
            sampling=job.generation.sampling,
            top=job.generation.top or 0,
            place=job.generation.place,
            receive=lambda block: self._receive(job, block),
            is_over=lambda: self._is_over(job),
        )

    def _is_over(self, job: Job) -> bool:
        """Whether nobody waits for the job any more."""
        if job.is_cancelled:
            self._taken.discard(job)
        return job.is_cancelled or self._is_closing

    def _receive(self, job: Job, block: Block) -> bool:
        """Adds what a block has brought; whether the job goes on."""
        count, is_stopped = len(block.tokens), False
        if job.growing is not None:
            for place, token in enumerate(block.tokens):
                if job.growing.add(token):  # what the block sampled beyond it is dropped
                    count, is_stopped = place + 1, True
                    break
        tokens, logprobs = block.tokens[:count], block.logprobs[:count].tolist()
        tops: list[Tops] = []
        if block.top_ids is not None and block.top_logprobs is not None:
            ids, values = block.top_ids[:count].tolist(), block.top_logprobs[:count].tolist()
            tops = list(zip(ids, values, strict=True))
        job.tokens += tokens
        job.logprobs += logprobs
        job.tops += tops
        self.tokens += count
        is_over = is_stopped or block.finish is not None
        if is_over and job.growing is not None:
            job.text = job.growing.finish()
        if job.generation.stream:
            text = "" if job.growing is None else job.growing.new()
            job.pieces.append(Piece(text=text, tokens=tokens, logprobs=logprobs, tops=tops))
        if is_over:
            is_stop = is_stopped or block.finish == FinishReason.STOP
            self._end(job, finish_reason="stop" if is_stop else "length")
        elif job.generation.stream:
            job.on_change()
        return not is_over

    def _end(self, job: Job, *, finish_reason: str = "", error: Exception | None = None) -> None:
        """Lets whoever waits for the job go on, while others are still decoded."""
        job.finish_reason, job.error = finish_reason, error
        job.weights_version, job.weights_path = self.version, self.path
        self._taken.discard(job)
        job.is_done = True
        job.on_change()


def _choice_key(key: int, index: int) -> int:
    """The key of the choice with this index: for the first one, that of the request itself."""
    if index == 0:
        return key
    words = [np.array([word], np.uint32) for word in (key >> 32, key & 0xFFFFFFFF, index, 0)]
    high, low = threefry((words[0], words[1]), (words[2], words[3]))
    return int(high[0]) << 32 | int(low[0])
