"""The best policy of a run so far, by its evaluations on the held-out sets.

It is a checkpoint of its own, parameters only, in `checkpoints/best/<step>`, so the rotation of the others does not
touch it. `checkpoints/best.json` says which step it is and what it scored; it is replaced, atomically, after the new
checkpoint is on disk and before the old one is removed, so a killed run has the old best or the new one.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from sspo_jax.distributed.processes import is_main
from sspo_jax.files import read_json, write_json
from sspo_jax.ranges import from_record
from sspo_jax.runs.checkpoint import Checkpoint, Checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """Which evaluation of a run was the best."""

    step: int
    """After this step; 0 is the policy that reinforcement learning started from."""
    metric: str
    """What was compared: `greedy` or `avg`."""
    score: float
    """The mean over the held-out sets, 0 to 1."""


def mean_score(scores: Mapping[str, Mapping[str, Any]], metric: str) -> float:
    """The unweighted mean over the sets of their score `metric`."""
    return sum(score[metric]["value"] for score in scores.values()) / len(scores)


def read_best(checkpoints: pathlib.Path) -> Best | None:
    """The best policy in a run's folder of checkpoints; None before the first evaluation that chose one.

    Raises:
      ValueError: best.json is damaged; names the file and the way on.
    """
    file = checkpoints / "best.json"
    if not file.is_file():
        return None
    advice = "Remove it: the run goes on, and its next evaluation is the best one until a better one comes"
    record = read_json(file, advice=advice)
    try:
        return from_record(Best, record, str(file))
    except ValueError as error:
        raise ValueError(f"{error}. {advice}") from None


def open_best(checkpoints: pathlib.Path, *, is_reader: bool = False) -> Checkpoints:
    """The checkpoint(s) of the best policy; `read_best` says which step counts."""
    return Checkpoints(checkpoints / "best", keep=None, is_reader=is_reader)


class BestPolicy:
    """Keeps the best policy of a run; one that a killed run left is known again.

    Args:
      checkpoints: the run's folder of checkpoints.
      metric: `greedy`, `avg`, or `none` to keep nothing.
    """

    def __init__(self, checkpoints: pathlib.Path, metric: str):
        self._folder = checkpoints
        self._metric = metric
        self.best = read_best(checkpoints)

    def offer(self, params: Any, step: int, scores: Mapping[str, Mapping[str, Any]]) -> bool:
        """Keeps this policy if it scores higher than all before it (of equal ones the first stays); whether it did.

        All processes call this together, with the same scores.
        """
        if self._metric == "none" or not scores:
            return False
        best = Best(step=step, metric=self._metric, score=mean_score(scores, self._metric))
        if self.best is not None and best.score <= self.best.score:
            return False
        store = open_best(self._folder)
        try:
            if step in store.steps:  # its write was not followed by best.json
                store.delete(step)
            store.save(Checkpoint(params=params, optimizer={}, step=step, data=dataclasses.asdict(best)))
            store.wait()
            if is_main():
                write_json(self._folder / "best.json", dataclasses.asdict(best))
            for other in set(store.steps) - {step}:
                store.delete(other)
        finally:
            store.close()
        self.best = best
        return True
