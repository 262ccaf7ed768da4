"""What is measured of a cell: numbers of its run directory, defined before the runs.

The *score* of a run is that of its held-out sets: avg@k where responses are sampled, else greedy, mean over the sets.
The *curve* is the share of correct responses among those sampled in training, smoothed by a trailing mean of three
steps; it costs nothing.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sspo_jax.files import read_json, step_files
from sspo_jax.runs.metrics_file import read_metrics

WINDOW = 3
"""Steps of the trailing mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRun:
    """What a finished cell wrote."""

    path: pathlib.Path
    rows: list[dict[str, Any]]
    """metrics.jsonl, from step 1."""
    scores: Mapping[int, float]
    """Step to the mean over the held-out sets."""
    sets: Mapping[int, Mapping[str, Mapping[str, Any]]]
    """Step to the scores of each set."""
    summary: Mapping[str, Any]

    def curve(self) -> Float[np.ndarray, " steps"]:
        """Trailing mean of the share of correct responses, one value a step."""
        shares = np.array([row["verify/correct_fraction"] for row in self.rows], float)
        sums = np.concatenate([[0.0], np.cumsum(shares)])
        ends = np.arange(1, len(shares) + 1)
        starts = np.maximum(ends - WINDOW, 0)
        return (sums[ends] - sums[starts]) / (ends - starts)


def read_cell(path: pathlib.Path) -> CellRun | None:
    """A cell that is done, None for any other.

    Raises:
      ValueError: a file of it is damaged; names the file.
    """
    if not (path / "summary.json").is_file():
        return None
    sets = {step: read_json(file) for step, file in step_files(path / "evaluations", ".json").items()}
    return CellRun(
        path=path,
        rows=[row for row in read_metrics(path / "metrics.jsonl") if row["step"] > 0],
        scores={step: mean_score(own) for step, own in sets.items() if own},
        sets=sets,
        summary=read_json(path / "summary.json"),
    )


def mean_score(sets: Mapping[str, Mapping[str, Any]]) -> float:
    """Unweighted mean over the sets of avg@k, or of greedy where nothing else was sampled."""
    kind = "avg" if all("avg" in score for score in sets.values()) else "greedy"
    return float(np.mean([score[kind]["value"] for score in sets.values()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A number of a cell."""

    name: str
    meaning: str
    measure: Callable[[CellRun], float | None]
    """None where it is not defined, such as the step at which a score was reached that never was."""
    is_share: bool = False
    """Shown in percent."""


def _final(run: CellRun) -> float | None:
    return run.scores[max(run.scores)] if run.scores else None


def _best(run: CellRun) -> float | None:
    return max(run.scores.values(), default=None)


def _area(run: CellRun) -> float | None:
    return float(np.mean([row["verify/correct_fraction"] for row in run.rows])) if run.rows else None


FINAL = Outcome(name="final score", meaning="held-out score after the last step", measure=_final, is_share=True)
BEST = Outcome(name="best score", meaning="highest held-out score of the run", measure=_best, is_share=True)
AREA = Outcome(
    name="area under curve", meaning="mean over steps of the share of correct responses in training", measure=_area,
    is_share=True,
)  # fmt: skip


def stable(scores: Mapping[str, float]) -> Outcome:
    """1 where the last held-out scores are at least these, else 0; the mean over rates is the share that is survived.

    Args:
      scores: by held-out set; one that is not named always passes.
    """

    def measure(run: CellRun) -> float | None:
        if not run.sets:
            return None
        last = run.sets[max(run.sets)]
        return float(all(mean_score({name: own}) >= scores.get(name, 0.0) for name, own in last.items()))

    least = ", ".join(f"{score:g} on {name}" for name, score in scores.items())
    return Outcome(
        name="stable", meaning=f"ends at a held-out score of at least {least}", measure=measure, is_share=True
    )


def collapsed(drop: float = 0.2) -> Outcome:
    """1 where the curve ends at least `drop` below the highest that it was."""

    def measure(run: CellRun) -> float | None:
        curve = run.curve()
        return float(curve.max() - curve[-1] >= drop) if len(curve) else None

    meaning = f"the trailing mean of {WINDOW} steps ends {drop:g} or more below its peak"
    return Outcome(name="collapsed", meaning=meaning, measure=measure, is_share=True)


def steps_to(score: float) -> Outcome:
    """The first step at which the curve is at least this; one more than there are steps where it never is."""

    def measure(run: CellRun) -> float | None:
        reached = np.flatnonzero(run.curve() >= score)
        return float(run.rows[reached[0]]["step"]) if len(reached) else float(len(run.rows) + 1)

    meaning = f"first step whose trailing mean is {score:g} or above (the last step and one more where none is)"
    return Outcome(name=f"steps to {score:g}", meaning=meaning, measure=measure)


def mean_of(
    key: str, meaning: str, *, name: str | None = None, is_share: bool = True, weight: str | None = None
) -> Outcome:
    """The mean over the steps of a metric of metrics.jsonl; steps without it are left out.

    Args:
      weight: metric by which the steps count, for a share whose whole is of another size every step; None where it is
        0 throughout, so that the share is of nothing.
    """

    def measure(run: CellRun) -> float | None:
        rows = [row for row in run.rows if row.get(key) is not None]
        values = np.array([row[key] for row in rows], float)
        weights = np.array([1.0 if weight is None else row.get(weight) or 0.0 for row in rows])
        return float((values * weights).sum() / weights.sum()) if weights.sum() > 0 else None

    return Outcome(name=name or key, meaning=meaning, measure=measure, is_share=is_share)


def largest_of(key: str, meaning: str, *, name: str | None = None) -> Outcome:
    """The largest value of a metric over the steps."""

    def measure(run: CellRun) -> float | None:
        return max((row[key] for row in run.rows if row.get(key) is not None), default=None)

    return Outcome(name=name or key, meaning=meaning, measure=measure)


CLIP = mean_of(
    "ratio/clip_fraction_after_first", "tokens whose gradient the clip removes, without the first update of a step",
    name="clip fraction",
)  # fmt: skip
MASS = mean_of("clip/mass_removed", "of the sum of abs(A d), what is removed", name="mass removed")
MECHANISM = (
    mean_of("clip/extreme_removed", "of the tokens whose own ratio is extreme, those removed", name="extreme removed",
            weight="clip/extreme_fraction"),
    mean_of("clip/moderate_removed", "of the other tokens, those removed", name="moderate removed"),
    mean_of("clip/precision", "of the removed tokens, those that are extreme", name="precision",
            weight="ratio/clip_fraction"),
    MASS,
    mean_of("clip/response_fraction", "responses with a removed token", name="responses touched"),
    *(
        mean_of(f"ratio/{level}_effective_sample_size", f"effective sample size by {level}", name=f"ESS, {level}")
        for level in ("token", "subsentence", "response")
    ),
    *(
        mean_of(f"ratio/{level}_log_square", f"mean square of the log-ratio of a {level}, nats squared",
                name=f"log-ratio square, {level}", is_share=False)
        for level in ("token", "subsentence", "response")
    ),
    mean_of("policy/entropy", "entropy of the policy, nats a token", name="entropy", is_share=False),
)  # fmt: skip
"""How a clip acts: what each level removes, and how far the ratios of each level move."""
