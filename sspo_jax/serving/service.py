"""`sspo serve`: an OpenAI-compatible server over the rollout engine, to try a checkpoint or to sample from afar.

sspo serve --model DIR --port 8000
curl localhost:8000/v1/completions -d '{"prompt": "1 + 1 =", "max_tokens": 16}'

Routes: GET /health, GET /v1/models, POST /v1/completions, POST /v1/chat/completions, POST /sspo/reload. Requests that
arrive together are decoded together, each with its own length, seed and slot, and each is answered when it has ended;
equal prompts are prefilled once. What arrives meanwhile is decoded next.

Two fields go beyond OpenAI's, as in vLLM: `prompt` may be token ids, and `return_token_ids` adds `token_ids` to each
choice. `seed` is a 64-bit key: the tokens of a choice depend on weights, prompt, seed and settings, not on what else
the server decodes. `weights_version` and `weights_path` tell which weights sampled; `/sspo/reload` with `path` and
`version` replaces them between two batches.
"""

import dataclasses
import logging
import queue
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sspo_jax.models.configs import QwenConfig, architecture_differences
from sspo_jax.models.end_tokens import end_tokens
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.qwen import Params
from sspo_jax.sampler.random_bits import threefry
from sspo_jax.sampler.sampler import Sampler
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.sampler.schedule import Sample
from sspo_jax.types import FinishReason

LOG = logging.getLogger(__name__)


class RequestError(ValueError):
    """The client's mistake: answered with status 400."""


@dataclasses.dataclass(eq=False)
class _Job:
    """One choice of one request."""

    prompt: list[int]
    budget: int
    key: int
    sampling: SamplingParams
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish_reason: str = ""
    weights_version: int = 0
    weights_path: str = ""
    error: Exception | None = None


class CompletionService:
    """Turns request bodies into answers; one thread of its own decodes."""

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
    ):
        self._params, self._config, self._tokenizer, self._name = params, config, tokenizer, name
        self._slots, self._gather_seconds = slots, gather_seconds
        self._end_tokens = end_tokens(tokenizer, config.eos_token_ids)
        self._max_tokens = min(max_tokens, config.max_positions - 1)
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._samplers: dict[SamplingParams, Sampler] = {}
        self._weights = threading.Lock()  # held while a batch decodes, and while weights are replaced
        self.version = 0
        """Of the weights; 0 for those of the start."""
        self.path = path
        """Directory that the weights were read from."""
        self.tokens = 0
        """Generated since the start."""
        threading.Thread(target=self._work, daemon=True, name="decode").start()

    # -- routes -------------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """State of the server."""
        return {
            "status": "ok",
            "weights_version": self.version,
            "weights_path": self.path,
            "tokens": self.tokens,
        }

    def models(self) -> dict[str, Any]:
        """The one model there is."""
        card = {
            "id": self._name,
            "object": "model",
            "owned_by": "sspo_jax",
            "max_model_len": self._config.max_positions,
            "max_tokens": self._max_tokens,
            "architecture": self._config.architecture,
        }
        return {"object": "list", "data": [card]}

    def reload(self, body: dict[str, Any]) -> dict[str, Any]:
        """Replaces the weights by those of the checkpoint directory `path`; what decodes now still ends with the old.

        Raises:
          RequestError: fields are missing, or the checkpoint is not one of this model's shape.
        """
        if not isinstance(body.get("path"), str) or not isinstance(body.get("version"), int):
            raise RequestError("reload wants {'path': directory of a checkpoint, 'version': whole number}")
        try:
            params, config = load_qwen(
                body["path"], dtype=self._config.compute.dtype, param_dtype=self._config.compute.dtype
            )
        except (OSError, ValueError) as error:
            raise RequestError(f"checkpoint {body['path']}: {error}") from None
        differing = architecture_differences(config.architecture, self._config, whose="served")
        if differing:
            raise RequestError(
                f"checkpoint {body['path']} has another shape than the model that is served: {'; '.join(differing)}"
            )
        with self._weights:
            self._params, self.version, self.path = params, body["version"], body["path"]
        return self.health()

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/completions."""
        prompts = self._prompts(body.get("prompt"))
        jobs = [job for prompt in prompts for job in self._make_jobs(prompt, body)]
        self._decode(jobs)
        choices = []
        for index, job in enumerate(jobs):
            choice: dict[str, Any] = {
                "index": index,
                "text": self._text(job.tokens),
                "finish_reason": job.finish_reason,
            }
            if body.get("logprobs") is not None:
                tokens = [self._text([token]) if self._tokenizer else f"token_id:{token}" for token in job.tokens]
                choice["logprobs"] = {"tokens": tokens, "token_logprobs": job.logprobs}
            if body.get("return_token_ids"):
                choice["token_ids"], choice["prompt_token_ids"] = job.tokens, job.prompt
            choices.append(choice)
        return self._answer("text_completion", "cmpl", jobs, choices, sum(map(len, prompts)))

    def chat_completions(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/chat/completions, with the tokenizer's chat template."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise RequestError("messages is missing or empty, want a list of {'role': ..., 'content': ...}")
        if self._tokenizer is None or not self._tokenizer.chat_template:
            raise RequestError("this server has no tokenizer with a chat template: use /v1/completions")
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        body = {**body, "max_tokens": body.get("max_completion_tokens") or body.get("max_tokens")}
        jobs = self._make_jobs(prompt, body, default_tokens=self._max_tokens)
        self._decode(jobs)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": self._text(job.tokens)},
                "finish_reason": job.finish_reason,
            }
            for index, job in enumerate(jobs)
        ]
        return self._answer("chat.completion", "chatcmpl", jobs, choices, len(prompt))

    # -- requests to jobs ---------------------------------------------------------------------------------------------

    def _prompts(self, prompt: Any) -> list[list[int]]:
        many = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else [prompt]
        prompts = []
        for one in many:
            if isinstance(one, str):
                if self._tokenizer is None:
                    raise RequestError("this server has no tokenizer: give prompt as token ids")
                one = self._tokenizer.encode(one, add_special_tokens=False)
            if not isinstance(one, list) or not one or not all(type(token) is int for token in one):
                raise RequestError("prompt is missing, empty or neither text nor token ids")
            if min(one) < 0 or max(one) >= self._config.vocab_size:
                raise RequestError(f"prompt has token ids outside 0 to {self._config.vocab_size - 1}")
            prompts.append(one)
        return prompts

    def _make_jobs(self, prompt: list[int], body: dict[str, Any], default_tokens: int = 16) -> list[_Job]:
        def number(name: str, default: Any, kind: type = float) -> Any:
            value = body.get(name)
            if value is None:
                return default
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
                raise RequestError(f"{name} is {value!r}, want a number")
            return kind(value)

        if body.get("stream"):
            raise RequestError("stream is not supported")
        room = self._config.max_positions - len(prompt)
        if room < 1:
            raise RequestError(f"prompt has {len(prompt)} tokens, the model {self._config.max_positions} positions")
        budget = min(number("max_tokens", default_tokens, int), room, self._max_tokens)
        stop = body.get("stop") or []
        stops = set(body.get("stop_token_ids") or []) | (set() if body.get("ignore_eos") else set(self._end_tokens))
        try:
            sampling = SamplingParams(
                max_new_tokens=self._max_tokens,
                temperature=number("temperature", 1.0),
                top_p=number("top_p", 1.0),
                top_k=max(0, number("top_k", 0, int)),
                min_p=number("min_p", 0.0),
                stop_token_ids=tuple(sorted(stops)),
                stop_strings=tuple([stop] if isinstance(stop, str) else stop),
                min_new_tokens=number("min_tokens", 0, int),
            )
        except (TypeError, ValueError) as error:
            raise RequestError(str(error)) from None
        if budget < 1:
            raise RequestError(f"max_tokens is {budget}, want at least 1")
        if sampling.stop_strings and self._tokenizer is None:
            raise RequestError("this server has no tokenizer: stop strings are not available")
        seed = number("seed", None, int)
        key = secrets.randbits(64) if seed is None else seed % 2**64
        count = number("n", 1, int)
        return [_Job(prompt, budget, _choice_key(key, index), sampling) for index in range(count)]

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True) if self._tokenizer else ""

    def _answer(self, kind: str, prefix: str, jobs: list[_Job], choices: list, prompt_tokens: int) -> dict[str, Any]:
        completion_tokens = sum(len(job.tokens) for job in jobs)
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self._name,
            "choices": choices,
            "weights_version": jobs[0].weights_version,
            "weights_path": jobs[0].weights_path,
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(self, jobs: list[_Job]) -> None:
        for job in jobs:
            self._jobs.put(job)
        for job in jobs:
            job.done.wait()
            if job.error is not None:
                raise job.error

    def _work(self) -> None:
        """Takes what is waiting, decodes what of it agrees on settings together, forever."""
        held: list[_Job] = []
        while True:
            jobs = held or [self._jobs.get()]
            time.sleep(self._gather_seconds)
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            sampling = jobs[0].sampling
            batch = [job for job in jobs if job.sampling == sampling]
            held = [job for job in jobs if job.sampling != sampling]
            try:
                with self._weights:
                    self._decode_batch(batch)
            except Exception as error:  # handed to the threads that wait; the server lives on
                LOG.exception("a batch of %d could not be decoded", len(batch))
                for job in batch:
                    if not job.done.is_set():
                        job.error = error
                        job.done.set()

    def _decode_batch(self, batch: list[_Job]) -> None:
        sampling = batch[0].sampling
        if sampling not in self._samplers:
            decode = None if self._tokenizer is None else self._text
            self._samplers[sampling] = Sampler(self._config, sampling, slots=self._slots, block_steps=8, decode=decode)
            if len(self._samplers) > 8:
                self._samplers.pop(next(iter(self._samplers)))
        self._params = self._samplers[sampling].ready(self._params)  # the others can go
        words = np.array([[job.key >> 32, job.key & 0xFFFFFFFF] for job in batch], np.uint32)

        def answer(sample: Sample) -> None:
            """Lets the thread of the request go on, while others are still decoded."""
            job = batch[sample.row]
            job.tokens, job.logprobs = list(sample.tokens), sample.logprobs.tolist()
            job.finish_reason = "stop" if sample.finish == FinishReason.STOP else "length"
            job.weights_version, job.weights_path = self.version, self.path
            self.tokens += len(job.tokens)
            job.done.set()

        self._samplers[sampling].generate(
            self._params,
            [job.prompt for job in batch],
            seed=0,
            budgets=[job.budget for job in batch],
            keys=words,
            on_sample=answer,
        )


def _choice_key(key: int, index: int) -> int:
    """The key of the choice with this index: for the first one, that of the request itself."""
    if index == 0:
        return key
    words = [np.array([word], np.uint32) for word in (key >> 32, key & 0xFFFFFFFF, index, 0)]
    high, low = threefry((words[0], words[1]), (words[2], words[3]))
    return int(high[0]) << 32 | int(low[0])
