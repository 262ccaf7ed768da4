"""Conversations with an environment: an engine around another one that samples turn by turn.

What the policy has said is kept as the tokens that were drawn, and the texts of the environment are encoded once and
put after them: nothing is ever decoded and encoded again. The response of a conversation is all that follows the
prompt, its `Rollout.said` is false where the environment wrote, and its log-prob there 0.

Where several processes train together, the environments are those of process 0, which hands on what they say.

Where the engine can keep all conversations between their turns (`KeepingEngine`), a turn prefills what has come to
them since; elsewhere its whole context. A turn's noise is that of (seed, step, prompt, sample, turn, position), so that
a step repeats whatever else is sampled beside it.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sspo_jax.checker.workers.pool import search_path
from sspo_jax.checker.workers.zygote import load_function
from sspo_jax.data.problems import Problem
from sspo_jax.data.prompts import PromptTokenizer
from sspo_jax.distributed.processes import is_main, on_main
from sspo_jax.environments import Environment, EnvironmentConfig, Reply, Task
from sspo_jax.rewards import RewardError
from sspo_jax.sampler import KeepingEngine, KeptRows, RolloutEngine, SamplingParams
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.types import FinishReason, Rollout, rows_of_groups

_MOST_PROMPTS, _MOST_ALIKE = 65536, 4096  # of one call: prompts, and problems with the same
_TURN = 1 << 20  # samples of a prompt have smaller numbers, so that sample + turn * this names a turn of one


class RememberingPrompts(PromptTokenizer):
    """A `PromptTokenizer` that can say which problems the latest prompts were made of."""

    def __call__(self, problem: Problem) -> list[int]:
        tokens = super().__call__(problem)
        key = tuple(tokens)
        self._latest[key] = [*self._latest.pop(key, [])[1 - _MOST_ALIKE :], problem]  # the latest is the last
        if len(self._latest) > _MOST_PROMPTS:
            self._latest.pop(next(iter(self._latest)))
        return tokens

    def problems(self, prompts: Sequence[Sequence[int]]) -> list[Problem]:
        """Those that the prompts were just made of, in this order; other problems may have had the same before."""
        keys = [tuple(map(int, prompt)) for prompt in prompts]
        remaining = {key: self._latest[key][-count:] for key, count in collections.Counter(keys).items()}
        return [remaining[key].pop(0) if len(remaining[key]) > 1 else remaining[key][0] for key in keys]

    @functools.cached_property
    def _latest(self) -> dict[tuple[int, ...], list[Problem]]:
        return {}


@dataclasses.dataclass
class Conversation:
    """One response while it grows."""

    environment: Environment | None  # None: another process talks to it
    task: Task
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    said: list[bool] = dataclasses.field(default_factory=list)
    latest: list[int] = dataclasses.field(default_factory=list)
    reward: float = 0.0
    turns: int = 0
    is_over: bool = False
    finish: FinishReason = FinishReason.STOP

    def take_turn(self, sampled: Rollout, row: int) -> None:
        """What the policy has said; without an end of its own it is cut off, and the conversation over."""
        self.latest = sampled.responses[row].tolist()
        self.add(self.latest, sampled.logprobs[row].tolist())
        self.turns, self.finish = self.turns + 1, FinishReason(int(sampled.finish_reasons[row]))
        self.is_over = self.finish == FinishReason.LENGTH

    def add(self, tokens: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Tokens of the policy with their log-probs, or of the environment without."""
        self.tokens += map(int, tokens)
        self.logprobs += [0.0] * len(tokens) if logprobs is None else map(float, logprobs)
        self.said += [logprobs is not None] * len(tokens)


def load_environment(config: EnvironmentConfig) -> Callable[[], Environment]:
    """What makes an environment, from the class that the configuration names.

    Raises:
      ValueError: it cannot be imported or made, or has no reset and step.
    """
    sys.path += [folder for folder in search_path() if folder not in sys.path]
    try:
        make = functools.partial(load_function(config.environment), **config.arguments)
        first = make()
    except Exception as error:  # whatever a person's class can raise
        raise ValueError(
            f"environment {config.environment} cannot be made: {type(error).__name__}: {error}. Expected module:Class, "
            "importable from the working directory or the folder of the experiment file"
        ) from error
    if not isinstance(first, Environment):
        raise ValueError(f"environment {config.environment} is a {type(first).__name__}; expected methods reset, step")
    return make


class ConversationEngine:
    """A `RolloutEngine` whose responses are conversations.

    Args:
      engine: samples the turns.
      config: the environment.
      make: of `load_environment`.
      prompts: that the prompts of `generate` come from.
      tokenizer: of the prompts.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        config: EnvironmentConfig,
        make: Callable[[], Environment],
        prompts: RememberingPrompts,
        tokenizer: Any,
    ):
        self._engine, self._config, self._make, self._prompts = engine, config, make, prompts
        self._tokenizer = tokenizer
        self._special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        self._threads = concurrent.futures.ThreadPoolExecutor(config.concurrency, "environment")

    @property
    def version(self) -> int:
        return self._engine.version

    def sync(self, params: Any, version: int, *, poll: Callable[[], None] | None = None) -> None:
        """Hands over weights."""
        self._engine.sync(params, version, poll=poll)

    def release(self) -> None:
        """Lets go of the weights."""
        self._engine.release()

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
        """As `RolloutEngine.generate`; the budget of a response is for all of its turns and the environment's texts.

        Args:
          is_alone: process 0 calls it and the others do not: the rollout stays there.

        Raises:
          RewardError: the environment failed and `on_failure` is "stop".
          ValueError: budgets, keys or places of single rows are given, which conversations have their own of.
        """
        if any(given is not None for given in (budgets, keys, places)):
            raise ValueError("conversations are not taken up again in the middle: expected no budgets, keys or places")
        rows, budget = rows_of_groups(prompts, group_size), sampling.max_new_tokens
        ids = np.asarray(range(len(prompts)) if prompt_ids is None else prompt_ids)[rows["group_ids"]]
        problems = self._prompts.problems(prompts)
        talks = [
            self._begin(problems[int(group)], int(sample), row_keys(seed, step, own, 0)[0])
            for group, own, sample in zip(rows["group_ids"], ids, rows["sample_ids"], strict=True)
        ]
        ask = functools.partial(self._ask, budget=budget, is_alone=is_alone)
        ask(talks, self._reset, self._opened)
        with self._kept(rows["prompts"], sampling) as kept:
            for turn in range(self._config.max_turns):
                going = [row for row, talk in enumerate(talks) if not talk.is_over]
                if not going:
                    break
                done = sum(len(talk.tokens) for talk in talks)
                how: dict[str, Any] = {"is_alone": True} if is_alone else {}
                if kept is not None:
                    how |= {"kept": kept, "names": going}
                sampled = self._engine.generate(
                    [[*rows["prompts"][row].tolist(), *talks[row].tokens] for row in going],
                    sampling,
                    seed=seed,
                    step=step,
                    budgets=[budget - len(talks[row].tokens) for row in going],
                    keys=row_keys(seed, step, ids[going], rows["sample_ids"][going].astype(np.int64) + turn * _TURN),
                    progress=None if progress is None else lambda tokens, done=done: progress(done + tokens),
                    **how,
                )
                for place, row in enumerate(going):
                    talks[row].take_turn(sampled, place)
                ask([talks[row] for row in going if not talks[row].is_over], self._step, self._replied)
                for row in going:
                    talks[row].is_over |= turn == self._config.max_turns - 1
                    if talks[row].is_over and on_finished is not None:
                        on_finished(row, list(talks[row].tokens))
        for row, talk in enumerate(talks):
            if not talk.turns and on_finished is not None:  # there was no room for one
                on_finished(row, list(talk.tokens))
        return Rollout(
            **rows,
            responses=tuple(np.array(talk.tokens, np.int32) for talk in talks),
            logprobs=tuple(np.array(talk.logprobs, np.float32) for talk in talks),
            finish_reasons=np.array([talk.finish for talk in talks], np.int32),
            said=tuple(np.array(talk.said, bool) for talk in talks),
            rewards=tuple(talk.reward for talk in talks),
        )

    def _kept(
        self, prompts: Sequence[np.ndarray], sampling: SamplingParams
    ) -> contextlib.AbstractContextManager[KeptRows | None]:
        """What the engine keeps of all conversations while they last; None where it keeps nothing."""
        if isinstance(self._engine, KeepingEngine) and self._config.max_turns > 1:
            kept = self._engine.keep(sampling, len(prompts), prompt_tokens=max(map(len, prompts)))
            return kept or contextlib.nullcontext()
        return contextlib.nullcontext()

    def _begin(self, problem: Problem, sample: int, key: np.ndarray) -> Conversation:
        task = Task(
            id=problem.id,
            problem=problem.problem,
            gold=problem.answer,
            extra=problem.extra,
            sample=sample,
            seed=int(key[0]),
        )
        return Conversation(self._make() if is_main() else None, task)

    def _reset(self, talk: Conversation) -> Any:
        assert talk.environment is not None
        return talk.environment.reset(talk.task)

    def _step(self, talk: Conversation) -> Any:
        assert talk.environment is not None
        return talk.environment.step(self._tokenizer.decode(talk.latest, skip_special_tokens=True))

    def _opened(self, talk: Conversation, said: Reply, *, budget: int) -> None:
        """Takes in what the environment says before the first turn."""
        if said.text is not None:
            self._hear(talk, [self._tokenizer.eos_token_id, *self._encode(said.text)], budget)

    def _replied(self, talk: Conversation, said: Reply, *, budget: int) -> None:
        """Takes in what it answers to a turn."""
        talk.reward += said.reward
        if said.text is None or talk.turns == self._config.max_turns:
            talk.is_over = True
        else:
            self._hear(talk, self._encode(said.text), budget)

    def _hear(self, talk: Conversation, tokens: list[int], budget: int) -> None:
        if len(talk.tokens) + len(tokens) < budget:
            talk.add(tokens)
        else:  # the policy could say nothing after it
            talk.is_over, talk.finish = True, FinishReason.LENGTH

    def _encode(self, text: str) -> list[int]:
        for special in self._special:  # which would end its turn early
            text = text.replace(special, "")
        return self._tokenizer.encode(f"{self._config.before}{text}{self._config.after}", add_special_tokens=False)

    def _ask(
        self,
        talks: Sequence[Conversation],
        call: Callable[[Conversation], Any],
        take: Callable[..., None],
        *,
        budget: int,
        is_alone: bool,
    ) -> None:
        """Calls the environments of conversations side by side and takes in their answers, in order."""
        if not talks:
            return

        def ask() -> list[list[Any]]:
            return [self._plain(answer, talks[0].turns) for answer in asyncio.run(self._answers(talks, call))]

        for talk, (failure, text, reward) in zip(talks, ask() if is_alone else on_main(ask), strict=True):
            if failure is None:
                take(talk, Reply(text=text, reward=reward), budget=budget)
                continue
            if self._config.on_failure == "stop":
                raise RewardError(f"environment {self._config.environment} failed: {failure}")
            talk.is_over = True
            talk.reward = math.nan if self._config.on_failure == "exclude" else talk.reward

    def _plain(self, answer: Any, turns: int) -> list[Any]:
        """How it failed, or the text and the reward of an answer after some turns, in what JSON holds."""
        if isinstance(answer, TimeoutError):
            return [f"it took longer than {self._config.timeout_seconds} s", None, 0.0]
        if isinstance(answer, BaseException):
            return [f"{type(answer).__name__}: {answer}", None, 0.0]
        said = answer if turns else Reply(text=answer)
        if not isinstance(said, Reply) or not math.isfinite(said.reward):
            return [f"step returned {answer!r:.200}; expected a Reply with a finite reward", None, 0.0]
        if said.text is not None and not isinstance(said.text, str):
            return [f"it says {said.text!r:.200}; expected a text, or None", None, 0.0]
        return [None, said.text, float(said.reward)]

    async def _answers(self, talks: Sequence[Conversation], call: Callable[[Conversation], Any]) -> list[Any]:
        slots, loop = asyncio.Semaphore(self._config.concurrency), asyncio.get_running_loop()

        async def one(talk: Conversation) -> Any:
            async with slots, asyncio.timeout(self._config.timeout_seconds):
                own = talk.environment
                assert own is not None
                if any(map(inspect.iscoroutinefunction, (own.step, own.reset))):
                    answer = call(talk)
                else:
                    answer = await loop.run_in_executor(self._threads, call, talk)
                return await answer if inspect.isawaitable(answer) else answer

        return await asyncio.gather(*map(one, talks), return_exceptions=True)


def talking(
    engine: RolloutEngine, config: EnvironmentConfig | None, prompts: PromptTokenizer, tokenizer: Any
) -> RolloutEngine:
    """The engine itself, or around it one that talks to the environment of a run."""
    if config is None:
        return engine
    assert isinstance(prompts, RememberingPrompts)
    return ConversationEngine(engine, config, load_environment(config), prompts, tokenizer)
