"""Rollouts from an OpenAI-compatible server in another process: `sspo serve`, or vLLM.

Prompts go out as token ids, one request a sample, and come back as token ids with log-probabilities. A request that
fails is sent again until patience ends (`connection.py`); responses that have come back are kept, whatever happens to
the server meanwhile. Weights travel as a safetensors directory that appears under its final name only when complete
(`save_qwen`), followed by a reload call. Where several processes train together, process 0 talks to the server and
hands every answer on; all of them return the same rollout.

`sspo serve` says with each answer which weights sampled it. Of other servers it is assumed that they have those handed
over last, until a connection breaks: then the server may be another process, so they are handed over again, and what
was being sampled meanwhile is asked for again.

Against `sspo serve` the tokens are those of the local engine, because the seed of a request is the key of its row.
Other servers sample with noise of their own. vLLM must report the log-probabilities of the tempered distribution
(`--logprobs-mode processed_logprobs`); by default it reports those before the temperature. Treat either as
diagnostics: training recomputes them (`sampler/logprob_gap_*`).
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sspo_jax.distributed.processes import is_main
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.layout import DType
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.lora import fold_lora, has_lora
from sspo_jax.sampler.engine import NO_WEIGHTS
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.serving.connection import Connection, ServerError, arrivals
from sspo_jax.types import FinishReason, Rollout, rows_of_groups

ATTEMPTS = 5
"""Times that one response is asked for, while the server turns out to have other weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reload:
    """How a server is told to load weights; strings in `body` may hold {path} and {version}."""

    route: str = "/sspo/reload"
    """POSTed to."""
    body: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"path": "{path}", "version": "{version}"})
    """The JSON body; a field that is just "{version}" becomes a number."""
    then: tuple[str, ...] = ()
    """Routes POSTed to afterwards, without a body."""

    def filled(self, path: str, version: int) -> dict[str, Any]:
        """The body for these weights."""

        def fill(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: fill(part) for name, part in value.items()}
            if value == "{version}":
                return version
            return value.format(path=path, version=version) if isinstance(value, str) else value

        return fill(self.body)


VLLM_RELOAD = Reload(
    route="/collective_rpc",
    body={"method": "reload_weights", "kwargs": {"weights_path": "{path}"}},
    then=("/reset_prefix_cache",),  # keys and values of prompts under the weights before
)
"""vLLM's, as its documentation has it (Sleep Mode, Layerwise Reloading); routes of VLLM_SERVER_DEV_MODE=1."""


class RemoteEngine:
    """`RolloutEngine` over HTTP, by one server or by several that share the prompts."""

    def __init__(
        self,
        url: str | Sequence[str],
        config: QwenConfig,
        *,
        export_directory: str | pathlib.Path,
        export_dtype: DType = "float32",
        model: str | None = None,
        reload: Reload | None = None,
        concurrency: int = 256,
        timeout_seconds: float | int = 600,
        patience_seconds: float | int = 60,
        api_key: str | None = None,
    ):
        """
        Args:
          url: of the server, without /v1; or of each of several, which get every n-th prompt.
          config: shape of the model, for the export.
          export_directory: where weights are written, this engine's alone; servers must see it under the same path.
          export_dtype: of the weights written; bfloat16 halves the files and rounds.
          model: name in the requests; by default what each server lists first.
          reload: the call after an export; by default that of `sspo serve`.
          concurrency: requests in flight at each server.
          timeout_seconds: for the answer to one request.
          patience_seconds: how long requests are repeated while a server does not answer at all.
          api_key: that of the servers, where they ask for one.
        """
        settings = {"timeout_seconds": timeout_seconds, "patience_seconds": patience_seconds, "api_key": api_key}
        self._servers = [
            _Server(Connection(one, **settings), model, reload or Reload())
            for one in ([url] if isinstance(url, str) else url)
        ]
        self._config = config
        self._export_directory = pathlib.Path(export_directory).resolve()
        self._export_dtype: DType = export_dtype
        self._concurrency = concurrency
        self._version = NO_WEIGHTS

    @property
    def version(self) -> int:
        """Version of the weights handed over last."""
        return self._version

    @property
    def retries(self) -> int:
        """Requests that were sent again so far."""
        return sum(server.connection.retries for server in self._servers)

    def sync(self, params: Any, version: int, *, poll: Callable[[], None] | None = None) -> None:
        """Exports the weights, adapters folded in, and has the servers load them; earlier exports are deleted.

        Raises:
          ServerError: a server refuses them or stays away.
        """
        path = self._export_directory / f"weights-{version:08d}"
        plain = _folded(params) if has_lora(params) else params
        save_qwen(path, plain, self._config, dtype=self._export_dtype, overwrite=True)  # moved into place when whole
        self._hand_over(path, version)
        try:
            loads = [functools.partial(server.load_weights, is_forced=True) for server in self._servers]
            with contextlib.closing(arrivals(loads, threads=len(loads))) as results:
                for _ in results:
                    if poll is not None:
                        poll()
        except BaseException:
            self.release()
            raise
        if is_main():
            for other in self._export_directory.glob("weights-" + 8 * "[0-9]"):
                if other != path:
                    shutil.rmtree(other, ignore_errors=True)

    def release(self) -> None:
        """Nothing is held here: the servers keep their copies."""
        self._hand_over(self._export_directory, NO_WEIGHTS)

    def _hand_over(self, path: pathlib.Path, version: int) -> None:
        self._version = version
        for server in self._servers:
            server.path, server.version = path, version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        keys: np.ndarray | None = None,
        places: Sequence[int] | None = None,
        is_alone: bool = False,
        on_finished: Callable[[int, list[int]], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """See `Sampler.generate`; without a `sync` before, from the weights that the servers have.

        Args:
          sampling: stop strings are the server's task; entropies and truncated_logprobs are not available.
          is_alone: process 0 calls it and the others do not: the rollout stays there.
          progress: the tokens counted are those of finished responses.

        Raises:
          ValueError: no prompts, an empty one, or `sampling` asks for what servers do not report.
          ServerError: a server stayed away for `patience_seconds`, refuses a request, or samples from other weights
            than those handed over last, even after they were handed over again.
        """
        if not prompts or group_size < 1 or not all(prompts):
            raise ValueError(
                f"there are {len(prompts)} prompts, group_size is {group_size}; expected at least 1 of each"
            )
        if sampling.entropies or sampling.truncated_logprobs:
            raise ValueError("servers report neither entropies nor truncated_logprobs: leave them out of `sampling`")
        rows = [(index, sample) for index in range(len(prompts)) for sample in range(group_size)]
        if keys is None:
            ids = list(range(len(prompts))) if prompt_ids is None else prompt_ids
            keys = row_keys(seed, step, [ids[index] for index, _ in rows], [sample for _, sample in rows])
        jobs = []
        for row, (index, _) in enumerate(rows):
            own = sampling if budgets is None else dataclasses.replace(sampling, max_new_tokens=budgets[row])
            place = 0 if places is None else places[index]
            server = self._servers[index % len(self._servers)]
            jobs.append(functools.partial(server.sample, list(prompts[index]), own, keys[row], place))
        choices = self._choices(jobs, on_finished, progress, is_alone=is_alone)
        tokens, logprobs, reasons = zip(*choices, strict=True)
        return Rollout(
            **rows_of_groups(prompts, group_size),
            responses=tuple(np.array(row, np.int32) for row in tokens),
            logprobs=tuple(np.array(row, np.float32) for row in logprobs),
            finish_reasons=np.array(reasons, np.int32),
        )

    def _choices(
        self,
        jobs: list[Callable[[threading.Event], Any]],
        on_finished: Callable[[int, list[int]], None] | None,
        progress: Callable[[int], None] | None,
        *,
        is_alone: bool,
    ) -> list[Any]:
        """What the servers answer, row by row."""
        choices: list[Any] = [None] * len(jobs)
        num_tokens = 0
        threads = self._concurrency * len(self._servers)
        with contextlib.closing(arrivals(jobs, threads=threads, is_alone=is_alone)) as finished:
            for results in finished:
                for row, choice in results:
                    choices[row] = choice
                    num_tokens += len(choice[0])
                    if on_finished is not None:
                        on_finished(row, list(choice[0]))
                if progress is not None:
                    progress(num_tokens)
        return choices


class _Server:
    """One of the servers, and what it is to have loaded.

    Args:
      connection: to it.
      model: name in the requests; None: what it lists first.
      reload: how it is told to load weights.
    """

    def __init__(self, connection: Connection, model: str | None, reload: Reload):
        self.connection = connection
        self.path, self.version = pathlib.Path(), NO_WEIGHTS
        self._model, self._reload = model, reload
        self._reloading = threading.Lock()
        self._loads = 0  # so far
        self._broken = 0  # connections, at the start of the load before

    def sample(
        self, prompt: list[int], sampling: SamplingParams, key: np.ndarray, place: int, is_over: threading.Event
    ) -> tuple[list[int], list[float], int]:
        """One response: its tokens, their log-probabilities, and the value of its `FinishReason`."""
        if self._model is None:
            self._model = served_models(self.connection, is_over=is_over)[0]["id"]
        body = completion_request(self._model, prompt, sampling, key)
        if place and self._is_sspo:  # others have noise of their own
            body["response_place"] = place
        answer: dict[str, Any] = {}
        for _ in range(ATTEMPTS):
            if self._broken != self.connection.broken:
                self.load_weights(is_over)
            loads = self._loads
            answer = self.connection.call("/v1/completions", body, is_over=is_over)
            choice = checked_choice(answer, self.connection.url)
            if choice is not None and self._are_ours(answer, loads):
                return choice
            self.load_weights(is_over)
        said = f" from weights {answer['weights_version']}" if "weights_version" in answer else ""
        raise ServerError(
            f"{self.connection.url} has not sampled{said} with weights {self.version}, which it was handed "
            f"{ATTEMPTS} times: does another run use this server, or does it end again and again?"
        )

    @property
    def _is_sspo(self) -> bool:
        return self._reload.route == Reload.route

    def _are_ours(self, answer: Mapping[str, Any], loads: int) -> bool:
        """Whether the weights handed over last have sampled all of the answer to a request sent after `loads`."""
        if self.version == NO_WEIGHTS:
            return True
        if "weights_version" in answer:
            return self._has_ours(answer)
        return loads == self._loads and self._broken == self.connection.broken

    def _has_ours(self, answer: Mapping[str, Any]) -> bool:
        path = str(self.path)
        return answer["weights_version"] == self.version and answer.get("weights_path", path) == path

    def load_weights(self, is_over: threading.Event, *, is_forced: bool = False) -> None:
        """Has the server load the weights handed over last, unless it has them."""
        if self.version == NO_WEIGHTS:
            return
        with self._reloading:
            broken = self.connection.broken
            if not is_forced:
                if self._is_sspo:
                    has_them = self._has_ours(self.connection.call("/health", is_over=is_over))
                    broken = self.connection.broken  # it has answered since
                else:
                    has_them = self._broken == broken
                if has_them:
                    self._broken = broken
                    return
            body = self._reload.filled(str(self.path), self.version)
            self.connection.call(self._reload.route, body, is_over=is_over)
            for route in self._reload.then:
                self.connection.call(route, {}, is_over=is_over)
            self._broken = self.connection.broken
            self._loads += 1


@jax.jit
def _folded(params: Any) -> Any:
    return fold_lora(params)


def completion_request(model: str, prompt: list[int], sampling: SamplingParams, key: np.ndarray) -> dict[str, Any]:
    """The body of a request for one response; `key` is that of its row, two words."""
    word = int(key[0]) << 32 | int(key[1])
    return {
        "model": model,
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


def checked_choice(answer: Mapping[str, Any], url: str) -> tuple[list[int], list[float], int] | None:
    """Tokens, log-probabilities and `FinishReason` of the one choice; None where the server has broken it off.

    Raises:
      ServerError: it is not what was asked for.
    """
    choice = (answer.get("choices") or [{}])[0]
    tokens, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        raise ServerError(
            f"{url} answers without token_ids or logprobs; expected one of each per token: it does not know "
            "return_token_ids; use `sspo serve`, or a vLLM that has it"
        )
    reasons = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
    if choice.get("finish_reason") not in reasons or not tokens:
        return None
    return tokens, logprobs, int(reasons[choice["finish_reason"]])


def served_models(connection: Connection, *, is_over: threading.Event | None = None) -> list[dict[str, Any]]:
    """What the server lists, at least one.

    Raises:
      ServerError: it lists none.
    """
    cards = connection.call("/v1/models", is_over=is_over).get("data")
    if not isinstance(cards, list) or not cards:
        raise ServerError(f"{connection.url}/v1/models lists no model; expected an OpenAI-compatible server")
    return cards
