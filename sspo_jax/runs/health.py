"""Where a run is at odds with itself: warnings from its metrics, said once while it goes on and shown in the report."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_WINDOW = 10  # steps that a judgement looks back on
_CLIP_RANGE = (0.001, 0.2)


class Remark(NamedTuple):
    """One remark."""

    key: str
    """Which check it is of; a run is told once."""
    step: int
    """The step it was noticed at; 0: true of the whole run."""
    text: str
    """What is the case, and what to do."""


def remarks(
    rows: Sequence[Mapping[str, Any]], *, updates_per_rollout: int, weights: Mapping[str, float]
) -> list[Remark]:
    """What the last steps of a run say against it.

    Args:
      rows: of metrics.jsonl, or its last ones, in order.
      updates_per_rollout: updates of a step.
      weights: of the reward terms, by name.
    """
    rows = [row for row in rows if row["step"] > 0][-_WINDOW:]
    found = []
    if updates_per_rollout == 1:
        found.append(
            Remark(
                "one_update",
                0,
                "one update per rollout: every ratio is 1, nothing is ever clipped, and all objectives are the same up "
                "to aggregation; raise --update.per-rollout",
            )
        )
    if not rows:
        return found
    step = int(rows[-1]["step"])
    checks = (_clip_fraction(rows, updates_per_rollout), _gap(rows), _informative(rows), _cancelling(rows, weights))
    return found + [Remark(key, step, text) for key, text in filter(None, checks)]


def _clip_fraction(rows: Sequence[Mapping[str, Any]], updates: int) -> tuple[str, str] | None:
    values = _values(rows, "ratio/clip_fraction")
    if len(values) < 5 or updates == 1:
        return None
    mean = float(np.mean(values))
    if mean < _CLIP_RANGE[0]:
        return "clip_low", (
            f"the clip removes {mean:.2%} of the tokens' gradients (mean of {len(values)} steps): it is as good as "
            "absent; narrow --loss.clip-low and --loss.clip-high, or make more updates per rollout"
        )
    if mean > _CLIP_RANGE[1]:
        return "clip_high", (
            f"the clip removes {mean:.0%} of the tokens' gradients (mean of {len(values)} steps): most of the signal "
            "is lost; widen the bounds, or lower --optimizer.learning-rate or --update.per-rollout"
        )
    return None


def _gap(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    values = _values(rows, "sampler/logprob_gap_mean")
    if len(values) < _WINDOW or any(_values(rows, "rollout/age_mean")):  # with a lag the policy's own steps count too
        return None
    half = len(values) // 2
    before, now = float(np.mean(values[:half])), float(np.mean(values[half:]))
    if now > 1e-3 and now > 2 * before:
        return "gap", (
            f"the log-prob gap between sampler and training program grows ({before:.2g} to {now:.2g} nats within "
            f"{len(values)} steps): correct for it with --loss.correction.mode truncate"
        )
    return None


def _informative(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    values = _values(rows, "reward/informative_fraction")[-3:]
    if len(values) == 3 and not any(values):
        return "uninformative", (
            "in the last 3 steps all responses of every group had the same reward: there is no gradient; problems of "
            "another difficulty, larger groups, or --rollout.dynamic-sampling"
        )
    return None


def _cancelling(rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> tuple[str, str] | None:
    """Two weighted terms that move against each other, so that their sum hardly moves."""
    terms = {
        name: weight * np.array(values)
        for name, weight in weights.items()
        if len(values := _values(rows, f"reward/{name}_mean")) == _WINDOW
    }
    names = list(terms)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            first, second = terms[one], terms[other]
            moves = first.std() > 0.02 and second.std() > 0.02
            if moves and (first + second).std() < 0.3 * min(first.std(), second.std()):
                return "cancelling", (
                    f"the reward terms {one} and {other} cancel: in {_WINDOW} steps they move by {first.std():.2g} and "
                    f"{second.std():.2g}, their sum by {(first + second).std():.2g}; change their weights"
                )
    return None


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) is not None]
