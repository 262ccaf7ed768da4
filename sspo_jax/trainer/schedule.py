"""Which weights sample for which step, and what has been sampled ahead of its step.

With lag d the responses of step k are sampled from the weights after step max(0, k - 1 - d): those that step k finds
with lag 0, older ones with more. At the start of step k, then, what step k + d will be trained on is sampled, and d
rollouts wait in a queue. Which weights sample what follows from the number of the step alone, never from the clock, so
it makes no difference where and when the sampling is done: in this thread, or in another one while step k is trained.

The queue and the problems drawn are part of the state of a run: `state` goes into a checkpoint with the tokens, their
log-probabilities and versions, `restore` takes it out. Verdicts are not saved: a response is judged when its step
comes, or when dynamic sampling has to know, and after a restart again.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sspo_jax.config import RolloutConfig
from sspo_jax.data.curriculum import CurriculumStream
from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import Problem
from sspo_jax.runs.display import Display
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.sampler import RolloutEngine, SamplingParams
from sspo_jax.trainer import stream as curriculum
from sspo_jax.trainer.background import Background
from sspo_jax.trainer.batch import NO_ROLLOUT
from sspo_jax.trainer.grading import GradedRollout, Grader, Grading
from sspo_jax.trainer.partial import begun, go_on, is_complete
from sspo_jax.trainer.rollout_record import decoded, encoded, problem_record
from sspo_jax.types import Rollout

Poll = Callable[[], None]


@dataclasses.dataclass(kw_only=True)
class Draw:
    """Problems from the stream, and a group of responses to each."""

    problems: tuple[Problem, ...]  # one per response
    step: int  # that they are drawn for, or finished in
    rollout: Rollout = NO_ROLLOUT
    grading: Grading | None = None  # that is under way
    graded: GradedRollout | None = None

    def begin_grading(self, grader: Grader) -> Grading:
        """Has all responses judged, unless that is under way."""
        if self.grading is None:
            group_size = 1 + int(self.rollout.sample_ids.max(initial=0))  # whole groups, one after the other
            self.grading = grader.begin(self.problems[::group_size], group_size, step=self.step)
            for row, tokens in enumerate(self.rollout.responses):
                self.grading.finished(row, tokens.tolist())
        return self.grading

    def take(self, rows: np.ndarray) -> "Draw":
        """The given responses, still to be judged."""
        problems = tuple(self.problems[row] for row in rows)
        return Draw(problems=problems, step=self.step, rollout=self.rollout.take(rows))

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {
            "problems": [problem_record(problem) for problem in self.problems],
            "step": self.step,
            "rollout": encoded(self.rollout),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Draw":
        """What `to_json` made a record of."""
        problems = tuple(Problem(**problem) for problem in record["problems"])
        return cls(problems=problems, step=record["step"], rollout=decoded(record["rollout"]))


@dataclasses.dataclass(kw_only=True)
class Queued:
    """What was sampled for a step, until the step has come."""

    step: int
    seconds: float  # that the sampling took
    draws: list[Draw]  # more than one where dynamic sampling replaced groups
    rows: np.ndarray | None = None  # of all draws, those that are trained on; None: all
    record: dict[str, Any] | None = None  # as a checkpoint holds it

    def to_json(self) -> dict[str, Any]:
        """For `from_json`; made once."""
        if self.record is None:
            self.record = {
                "step": self.step,
                "seconds": self.seconds,
                "rows": None if self.rows is None else self.rows.tolist(),
                "draws": [draw.to_json() for draw in self.draws],
            }
        return self.record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Queued":
        """What `to_json` made a record of; its responses are to be judged again."""
        rows = record["rows"]
        return cls(
            step=record["step"],
            seconds=record["seconds"],
            draws=[Draw.from_json(draw) for draw in record["draws"]],
            rows=None if rows is None else np.array(rows, np.int64),
            record=dict(record),
        )


@dataclasses.dataclass(kw_only=True)
class _Sampling:
    """Problems whose responses are sampled next, or in a thread."""

    problems: tuple[Problem, ...]  # one per response
    step: int  # that they are drawn for
    attempt: int
    version: int  # of the weights
    grading: Grading | None  # of responses that are judged as they come
    sample: Callable[[], Rollout]  # in this thread
    thread: Background | None  # in which they are sampled instead
    seconds: float  # of the hand-over of the weights and of the sampling


class Schedule:
    """Samples ahead of the steps, and hands each step its own.

    Args:
      config: of the rollouts.
      seed: of the run.
      sampling: how tokens are drawn.
      prompts: a problem to token ids.
      stream: the problems; it learns from the verdicts where it is a curriculum.
      grader: of the responses.
      engine: the engine with the newest weights, `engine(poll)`; `poll` may raise to end a hand-over.
      polls: makes a function that raises where the run is asked to stop.
      display: of the run.
      each_term: whether a group has a signal where one term of its rewards differs, though their sums do not.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        seed: int,
        sampling: SamplingParams,
        prompts: Callable[[Problem], list[int]],
        stream: ProblemStream | CurriculumStream,
        grader: Grader,
        engine: Callable[[Poll], RolloutEngine],
        polls: Callable[[], Poll],
        display: Display,
        each_term: bool = False,
    ):
        self._config, self._seed, self._sampling, self._prompts = config, seed, sampling, prompts
        self._stream, self._grader, self._engine = stream, grader, engine
        self._polls, self._display, self._each_term = polls, display, each_term
        self._queue: dict[int, Queued] = {}  # by step
        self._unfinished: Draw | None = None  # responses that go on in the next step
        self._ahead: tuple[int, _Sampling] | None = None  # what a thread samples, and for which step

    @property
    def is_sampling(self) -> bool:
        """Whether a thread samples: the engine's weights must then stay as they are."""
        return self._ahead is not None

    def take(self, step: int, watch: Stopwatch) -> tuple[GradedRollout, GradedRollout]:
        """(all that was sampled for a step, what it is trained on), once all that is due ahead of it is on its way.

        Raises:
          Interrupted, ServerError: while it is sampled; the schedule is then of no use any more, see `restore`.
          RewardError: a user's reward function failed.
        """
        lag = self._config.lag
        for due in range(step, step + lag + 1):
            if due in self._queue:
                continue
            is_ahead = lag > 0 and due == step + lag and self._config.is_elsewhere
            first = self._draw(due, 0, watch, self._polls, in_thread=is_ahead)
            if is_ahead:
                self._ahead = due, first
            else:
                self._queue[due] = self._completed(due, first, watch, self._polls)
        own = self._queue.pop(step)
        watch.seconds["rollout"] = own.seconds
        graded = self._graded(own.draws, watch)
        if own.rows is None:
            curriculum.learn(self._stream, graded)
            return graded, graded
        return graded, graded.take(own.rows)

    def finish(self, watch: Stopwatch) -> None:
        """Waits for what a thread samples; with `state`, that is the end of a step.

        Raises:
          ServerError: the server of rollouts is gone or of no use.
        """
        if self._ahead is not None:
            step, first = self._ahead
            self._display.phase("rollout")
            with watch("wait"):
                self._queue[step] = self._completed(step, first, watch, lambda: _never)
            self._ahead = None

    def abandon(self) -> None:
        """Ends what a thread samples."""
        if self._ahead is not None and self._ahead[1].thread is not None:
            self._ahead[1].thread.abandon()
        self._ahead = None

    def state(self) -> dict[str, Any] | None:
        """What waits for its step or goes on, as JSON holds it; None where nothing does."""
        state: dict[str, Any] = {}
        if self._config.lag:
            state["queue"] = [queued.to_json() for queued in self._queue.values()]
        if self._unfinished is not None:
            state["unfinished"] = self._unfinished.to_json()
        return state or None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a state."""
        state = state or {}
        self._queue = {record["step"]: Queued.from_json(record) for record in state.get("queue", ())}
        self._unfinished = Draw.from_json(state["unfinished"]) if "unfinished" in state else None

    def _completed(self, step: int, first: _Sampling, watch: Stopwatch, polls: Callable[[], Poll]) -> Queued:
        """What a step will be trained on, from the first draw on.

        With dynamic sampling (DAPO, arXiv:2503.14476, section 3.2), groups whose rewards are all equal are replaced
        by those of further problems, at most `dynamic_sampling` times.
        """
        most = 1 + self._config.dynamic_sampling
        wanted = self._config.prompts * self._config.group_size
        queued = Queued(step=step, seconds=0.0, draws=[])
        kept: list[np.ndarray] = []
        drawn = 0
        for attempt in range(most):
            sampling = first if attempt == 0 else self._draw(step, attempt, watch, polls, in_thread=False)
            draw = self._sampled(sampling, watch)
            queued.draws.append(draw)
            queued.seconds += sampling.seconds
            if most == 1:
                return queued
            graded = self._graded([draw], watch)
            curriculum.learn(self._stream, graded)
            kept.append(graded.informative(each_term=self._each_term) + drawn)
            drawn += len(graded)
            if sum(map(len, kept)) >= wanted:
                break
        queued.rows = np.concatenate(kept)[:wanted]
        return queued

    def _draw(
        self, step: int, attempt: int, watch: Stopwatch, polls: Callable[[], Poll], *, in_thread: bool
    ) -> _Sampling:
        """Takes a batch of problems and hands over the weights; a thread begins to sample the responses at once."""
        poll = polls()
        problems = self._stream.next()
        self._display.phase("rollout")
        start = time.monotonic()
        with watch("rollout"):
            engine = self._engine(poll)  # the hand-over of the weights is part of the sampling
        handed_over = time.monotonic() - start
        is_alone = in_thread and jax.process_count() > 1  # only the main threads of the processes talk to each other
        call = self._begun if self._config.partial is not None else self._whole
        of_each, grading, sample = call(step, attempt, problems, engine, is_alone=is_alone)

        def progress(tokens: int) -> None:
            self._display.phase("rollout", note=f"{tokens:,} tokens")
            poll()

        return _Sampling(
            problems=of_each,
            step=step,
            attempt=attempt,
            version=engine.version,
            grading=grading,
            sample=functools.partial(sample, progress=progress),
            thread=Background(lambda progress: sample(progress=progress)) if in_thread else None,
            seconds=handed_over,
        )

    def _whole(
        self, step: int, attempt: int, problems: list[Problem], engine: RolloutEngine, *, is_alone: bool
    ) -> tuple[tuple[Problem, ...], Grading | None, Callable[..., Rollout]]:
        """What samples a group of whole responses to each problem; they are judged as they come."""
        config = self._config
        grading = None if is_alone else self._grader.begin(problems, config.group_size, step=step)
        sample = functools.partial(
            engine.generate,
            [self._prompts(problem) for problem in problems],
            self._sampling,
            group_size=config.group_size,
            seed=self._seed,
            step=step,
            prompt_ids=[attempt * config.prompts + place for place in range(len(problems))],  # own noise
            on_finished=None if grading is None else grading.finished,
            **({"is_alone": True} if is_alone else {}),
        )
        return tuple(problem for problem in problems for _ in range(config.group_size)), grading, sample

    def _begun(
        self, step: int, attempt: int, problems: list[Problem], engine: RolloutEngine, *, is_alone: bool
    ) -> tuple[tuple[Problem, ...], None, Callable[..., Rollout]]:
        """What begins responses to each problem and goes on with those of the steps before."""
        config = self._config
        assert config.partial is not None
        new = begun([self._prompts(problem) for problem in problems], step=step, group_size=config.group_size)
        before = self._unfinished or Draw(problems=(), step=step)
        each = (problem for problem in problems for _ in range(config.group_size))
        sample = functools.partial(
            go_on,
            engine,
            Rollout.concatenate([before.rollout, new]),
            self._sampling,
            config.partial,
            seed=self._seed,
            prompts=config.prompts,
            **({"is_alone": True} if is_alone else {}),
        )
        return (*before.problems, *each), None, sample

    def _sampled(self, sampling: _Sampling, watch: Stopwatch) -> Draw:
        """The draw with its responses, once they are sampled; those that go on are kept here.

        They are judged already or begin to be.
        """
        config = self._config
        if sampling.thread is not None:
            rollout = sampling.thread.result()
            sampling.seconds += sampling.thread.seconds
        else:
            start = time.monotonic()
            with watch("rollout"):
                rollout = sampling.sample()
            sampling.seconds += time.monotonic() - start
        if config.partial is None:
            group_ids = rollout.group_ids + np.int32(sampling.attempt * config.prompts)  # other problems
            rollout = dataclasses.replace(rollout, group_ids=group_ids)
            if config.lag:
                versions = [np.full(length, sampling.version, np.int32) for length in rollout.lengths]
                rollout = dataclasses.replace(rollout, versions=tuple(versions))
        draw = Draw(problems=sampling.problems, step=sampling.step, rollout=rollout, grading=sampling.grading)
        if config.partial is not None:
            complete = is_complete(rollout)
            self._unfinished = draw.take(np.flatnonzero(~complete))
            draw = draw.take(np.flatnonzero(complete))
        draw.begin_grading(self._grader)
        return draw

    def _graded(self, draws: Sequence[Draw], watch: Stopwatch) -> GradedRollout:
        """The responses with verdicts and rewards; waits for those that are not there yet, each draw once.

        Raises:
          RewardError: a user's reward function failed.
        """
        self._display.phase("verify")
        parts = []
        with watch("verify"):  # what the rollout did not hide
            for draw in draws:
                if draw.graded is None:
                    grades = draw.begin_grading(self._grader).result(draw.rollout.lengths, draw.rollout.rewards)
                    draw.graded = GradedRollout(rollout=draw.rollout, **vars(grades))
                parts.append(draw.graded)
            return parts[0] if len(parts) == 1 else GradedRollout.concatenate(parts)


def _never() -> None:
    """In place of a poll where the updates are made: the step is finished."""


def ages(rollout: Rollout, step: int) -> dict[str, float]:
    """rollout/age_*: how many steps were done between the weights that sampled a token and those that `step` found."""
    if not rollout.versions:
        return {}
    age = step - 1 - np.concatenate([np.zeros(0, np.int32), *rollout.versions])
    return {
        "rollout/age_mean": float(age.mean()) if len(age) else 0.0,
        "rollout/age_max": float(age.max(initial=0)),
    }
