"""What is kept of a run while it goes on: its state, metrics, best policy, and the times of its stages."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sspo_jax.config import CheckpointConfig
from sspo_jax.distributed.processes import is_main, on_main
from sspo_jax.runs.best import BestPolicy
from sspo_jax.runs.checkpoint import Checkpoint, Checkpoints
from sspo_jax.runs.compilation import CompileLog
from sspo_jax.runs.directory import RunDirectory
from sspo_jax.runs.display import Display
from sspo_jax.runs.metrics_file import MetricsWriter
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.runs.summary import Summary, peak_memory_bytes
from sspo_jax.runs.trackers import Tracker

logger = logging.getLogger(__name__)


class RunManager:
    """The files of a run and what a person sees of it. Nothing here knows the algorithm.

    Args:
      directory: of the run.
      display: its terminal.
      steps: of the whole run.
      checkpoint: how often the state is saved, and how many are kept.
      best: score by which the best policy is kept, or `none`.
      trackers: opens those of a run that goes on with a step.
    """

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        *,
        steps: int,
        checkpoint: CheckpointConfig,
        best: str,
        trackers: Callable[[int], list[Tracker]],
    ):
        self.directory, self.display = directory, display
        self.steps, self._every, self._keep, self._metric = steps, checkpoint.every, checkpoint.keep, best
        self._trackers = trackers
        self.best = BestPolicy(directory.checkpoints, best)
        self.stage_seconds = Stopwatch()
        self.history: list[dict[str, float]] = []
        """Metrics of the steps that this process has done."""
        self.saved_step = 0
        self._checkpoints: Checkpoints | None = None
        self._writer: MetricsWriter | None = None

    def open(self) -> None:
        """Opens the checkpoints; as often as `close` is called."""
        self.best = BestPolicy(self.directory.checkpoints, self._metric)
        self._checkpoints = Checkpoints(self.directory.checkpoints, keep=self._keep)

    def close(self) -> None:
        """Waits for what is being written, and frees files and threads; only `wait` raises what goes wrong there."""
        writer, checkpoints = self._writer, self._checkpoints
        self._writer = self._checkpoints = None
        for part in (writer, checkpoints):
            if part is not None:
                try:
                    part.close()
                except OSError as error:
                    logger.warning("%s", error)

    def wait(self) -> None:
        """Returns when all that was saved is on the disk; raises what went wrong there."""
        assert self._checkpoints is not None, "open() comes first"
        self._checkpoints.wait()

    def save_last(self, state: Checkpoint) -> OSError | None:
        """Saves the state that the run ends with, waits, and says what prevents it.

        Where the disk refuses it is tried once more, without what the first attempt has left half written.
        """
        assert self._checkpoints is not None, "open() comes first"
        failure = None
        for _ in range(2):
            try:
                self.save(state)
                self.wait()
                return None
            except OSError as error:
                failure = error
            if jax.process_count() > 1:  # the others do not know, and would be waited for
                break
            self._checkpoints.reopen()
            self.saved_step = max([0, *self._checkpoints.steps])
        return failure

    def restore(self, like: Any) -> Checkpoint | None:
        """The newest intact state, None where the run has not saved any.

        Args:
          like: abstract arrays that say where each leaf goes.

        Raises:
          NoIntactCheckpointError: it has saved some, and all are damaged.
        """
        assert self._checkpoints is not None, "open() comes first"
        state = self._checkpoints.restore(like)
        if state is not None:
            self.display.say(f"resuming after step {state.step}")
        return state

    def begin(self, state: Checkpoint, *, is_resumed: bool) -> None:
        """Cuts the files back to `state`; what is written comes after it."""
        self.saved_step = state.step
        if is_resumed:
            self.directory.forget_after(state.step)
            if state.step < self.steps:
                self.directory.keep_summary(state.step)
        else:
            self.directory.begin_anew()
        if is_resumed and on_main(lambda: self.directory.is_recorded(state.step)):
            state.unrecorded = None  # its metrics were written after the checkpoint
        if is_main():
            self._writer = MetricsWriter(self.directory.metrics, self._trackers(state.step + 1))

    def save(self, state: Checkpoint) -> None:
        """Starts writing the state, unless it is on disk; that of step 0 is made again instead."""
        assert self._checkpoints is not None, "open() comes first"
        if state.step != self.saved_step:
            self._checkpoints.save(state)
            self.saved_step = state.step

    def is_save_due(self, step: int) -> bool:
        """Whether the state after this step is saved."""
        return step % self._every == 0 or step == self.steps

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step; those of step 0 are of the evaluation before the first."""
        if self._writer is not None:
            self._writer.write(step, metrics)
        if step:
            self.history.append(metrics)
            self.display.step_done(step, self.steps, _note(metrics))

    def offer(self, params: Any, step: int, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Says how the policy scored, and keeps it if it is the best so far."""
        is_best = self.best.offer(params, step, scores)
        kind = "greedy" if all("greedy" in score for score in scores.values()) else "avg"
        shown = "  ".join(f"{name} {100 * score[kind]['value']:.1f} %" for name, score in scores.items())
        self.display.say(f"evaluation after step {step}, {kind}: {shown}{'  (best so far)' if is_best else ''}")

    def summary(
        self,
        experiment: str,
        step: int,
        *,
        is_complete: bool,
        seconds: float,
        compiles: CompileLog,
        updates_per_step: int,
        scores: tuple[dict[str, Any] | None, dict[str, Any] | None],
        examples: list[dict[str, Any]],
    ) -> Summary:
        """What the run has come to.

        Args:
          step: the last one done.
          is_complete: whether it was the last of the run, and nothing is left to do.
          seconds: since the start of this process.
          scores: of the evaluations before the first step and after the last one.
          examples: responses before and after.
        """

        def median(name: str) -> float:
            return float(np.median([metrics[name] for metrics in self.history])) if self.history else 0.0

        stages = {name: round(value, 2) for name, value in self.stage_seconds.seconds.items()}
        return Summary(
            experiment=experiment,
            steps=step,
            is_complete=is_complete,
            before=scores[0] or {},
            after=scores[1] or {},
            best=dataclasses.asdict(self.best.best) if self.best.best else None,
            metrics=self.history[-1] if self.history else {},
            seconds={**stages, "all": seconds},
            rates={
                "rollout_tokens_per_second": median("throughput/rollout_tokens_per_second"),
                "rollout_seconds": median("time/rollout_seconds"),
                "verify_seconds": median("time/verify_seconds"),
                "score_seconds": median("time/score_seconds"),
                "update_seconds": median("time/update_seconds") / updates_per_step,
            },
            programs=compiles.programs,
            compile_seconds=round(compiles.seconds, 2),
            peak_memory_bytes=peak_memory_bytes(),
            examples=examples,
        )


def _note(metrics: Mapping[str, float]) -> str:
    """A step in half a line."""
    return (
        f"reward {metrics['reward/mean']:.3f}  clipped {100 * metrics.get('ratio/clip_fraction', 0):.2f} %  "
        f"length {metrics['response/length_mean']:.0f}  "
        f"{metrics['throughput/rollout_tokens_per_second']:,.0f} tokens/s"
    )
