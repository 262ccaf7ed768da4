"""Rollouts from an OpenAI-compatible server in another process: `sspo serve`, or vLLM.

Prompts go out as token ids, one request a sample, and come back as token ids with log-probabilities. A request that
fails is sent again, with growing pauses, until `patience_seconds` have passed without any answer; responses that have
come back are kept, whatever happens to the server meanwhile. Weights travel as a safetensors directory that appears
under its final name only when complete (`save_qwen`), followed by a reload call.

Against `sspo serve` the tokens are those of the local engine, because the seed of a request is the key of its row.
Other servers sample with noise of their own. vLLM must report the log-probabilities of the tempered distribution
(`--logprobs-mode processed_logprobs`); by default it reports those before the temperature. Treat either as
diagnostics: training recomputes them (`sampler/logprob_gap_*`).
"""

import concurrent.futures
import dataclasses
import http.client
import json
import pathlib
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.weights import DType, save_qwen
from sspo_jax.sampler.assemble import assemble, pad_rows
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.types import FinishReason, Rollout


class ServerError(RuntimeError):
    """The server could not be reached for too long, or refuses what it is asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reload:
    """How a server is told to load weights; strings in `body` may hold {path} and {version}."""

    route: str = "/sspo/reload"
    """POSTed to."""
    body: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"path": "{path}", "version": "{version}"})
    """The JSON body; a field that is just "{version}" becomes a number."""

    def filled(self, path: str, version: int) -> dict[str, Any]:
        """The body for these weights."""

        def fill(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: fill(part) for name, part in value.items()}
            if value == "{version}":
                return version
            return value.format(path=path, version=version) if isinstance(value, str) else value

        return fill(self.body)


class RemoteEngine:
    """`RolloutEngine` over HTTP."""

    def __init__(
        self,
        url: str,
        config: QwenConfig,
        sampling: SamplingParams,
        *,
        export_directory: str | pathlib.Path,
        export_dtype: DType = "float32",
        model: str | None = None,
        reload: Reload | None = None,
        concurrency: int = 64,
        timeout_seconds: float | int = 600,
        patience_seconds: float | int = 60,
    ):
        """
        Args:
          url: of the server, without /v1.
          config: shape of the model, for the export.
          sampling: as for `Sampler`; stop strings are the server's task.
          export_directory: where weights are written; the server must see it under the same path.
          export_dtype: of the weights written; bfloat16 halves the files and rounds.
          model: name in the requests; by default what the server lists first.
          reload: the call after an export; by default that of `sspo serve`.
          concurrency: requests in flight.
          timeout_seconds: for the answer to one request.
          patience_seconds: how long requests are repeated while the server does not answer at all.
        """
        self._url, self._config, self._sampling = url.rstrip("/"), config, sampling
        self._export_directory = pathlib.Path(export_directory).resolve()
        self._export_dtype: DType = export_dtype
        self._model, self._reload = model, reload or Reload()
        self._concurrency, self._timeout, self._patience = concurrency, timeout_seconds, patience_seconds
        self._version, self._exported = -1, None
        self._reloading = threading.Lock()
        self._last_answer = time.monotonic()
        self.retries = 0
        """Requests that were sent again so far."""

    @property
    def version(self) -> int:
        """Of the weights handed over last."""
        return self._version

    def sync(self, params: Any, version: int) -> None:
        """Exports the weights and has the server load them; the export before the last one is deleted.

        Raises:
          ServerError: the server refuses them or stays away.
        """
        path = self._export_directory / f"weights-{version:08d}"
        save_qwen(path, params, self._config, dtype=self._export_dtype, overwrite=True)  # moved into place when whole
        previous, self._exported, self._version = self._exported, path, version
        self._last_answer = time.monotonic()
        self._load_weights()
        if previous is not None and previous != path:
            shutil.rmtree(previous, ignore_errors=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
    ) -> Rollout:
        """See `Sampler.generate`.

        Raises:
          ServerError: the server stayed away for `patience_seconds`, refuses a request, or samples from other weights
            than those handed over last, even after they were handed over again.
        """
        if not prompts or group_size < 1 or not all(prompts):
            raise ValueError(f"there are {len(prompts)} prompts, group_size is {group_size}: want at least 1 of each")
        rows = [(list(prompt), index, sample) for index, prompt in enumerate(prompts) for sample in range(group_size)]
        ids = list(range(len(prompts))) if prompt_ids is None else prompt_ids
        keys = row_keys(seed, step, [ids[index] for _, index, _ in rows], [sample for *_, sample in rows])
        self._last_answer = time.monotonic()
        if self._model is None:
            self._model = self._call("/v1/models")["data"][0]["id"]
        choices: list[dict[str, Any]] = [{} for _ in rows]
        pool = concurrent.futures.ThreadPoolExecutor(min(self._concurrency, len(rows)))
        try:
            futures = {pool.submit(self._complete, row[0], key): i for i, (row, key) in enumerate(zip(rows, keys))}  # noqa: B905
            for future in concurrent.futures.as_completed(futures):
                row = futures[future]
                choices[row] = future.result()
                if on_finished is not None:
                    on_finished(row, list(choices[row]["token_ids"]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        logprobs = [np.asarray(choice["logprobs"]["token_logprobs"], np.float32) for choice in choices]
        stopped = [
            FinishReason.STOP if choice["finish_reason"] == "stop" else FinishReason.LENGTH for choice in choices
        ]
        return assemble(
            prompts,
            group_size,
            [choice["token_ids"] for choice in choices],
            pad_rows(logprobs)[0],
            [*map(int, stopped)],
        )

    def _complete(self, prompt: list[int], key: np.ndarray) -> dict[str, Any]:
        """One sample: the choice of the answer, checked."""
        sampling = self._sampling
        word = int(key[0]) << 32 | int(key[1])
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "min_tokens": sampling.min_new_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "ignore_eos": True,  # the end tokens are those of `sampling`
            "stop": list(sampling.stop_strings),
            "seed": word - 2**64 if word >= 2**63 else word,  # servers take a signed integer
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        answer: dict[str, Any] = {}
        for attempt in range(3):
            answer = self._call("/v1/completions", body)
            choice = answer["choices"][0]
            if not isinstance(choice.get("token_ids"), list) or not choice.get("logprobs"):
                raise ServerError(
                    f"{self._url} answers without token_ids or logprobs: it does not know return_token_ids"
                )
            if answer.get("weights_version", self._version) == self._version or self._version < 0:
                return choice
            if attempt < 2:  # the server was started anew, with the weights it began with
                self._load_weights()
        raise ServerError(
            f"{self._url} samples from weights {answer['weights_version']}, want {self._version}, which it was handed "
            "twice: does another run use this server?"
        )

    def _load_weights(self) -> None:
        with self._reloading:
            health = self._call("/health") if self._reload.route == "/sspo/reload" else {}
            if health.get("weights_version") != self._version:
                self._call(self._reload.route, self._reload.filled(str(self._exported), self._version))

    def _call(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer; repeated while the server is away or fails, refused requests are not."""
        data = None if body is None else json.dumps(body).encode()
        pause = 0.05
        while True:
            request = urllib.request.Request(self._url + route, data, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    text = response.read()
                self._last_answer = time.monotonic()
                return json.loads(text) if text.strip() else {}
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read().decode(errors='replace')[:500]}"
                if error.code < 500 and error.code not in (408, 429):
                    raise ServerError(f"{self._url}{route} refuses: {reason}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:  # away, cut off, or half an answer
                reason = str(error) or type(error).__name__
            if time.monotonic() - self._last_answer > self._patience:
                raise ServerError(
                    f"{self._url}{route} has not answered for {self._patience:g} seconds ({reason}): is the server up?"
                )
            self.retries += 1
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
