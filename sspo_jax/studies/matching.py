"""Pilot runs that give every variant the same clip fraction, or the same strength of its clip, so that levels are
compared and not ranges.

Both bounds of an objective are multiplied by one factor; the wider they are, the less is removed. A pilot is an
ordinary run, and the next factor follows from those that are done, so a study that is stopped goes on where it was.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Sequence

from sspo_jax.studies.outcomes import read_cell
from sspo_jax.studies.study import Cell, Study, Target, Variant

MOST_PILOTS = 8
SMALLEST, LARGEST = 1e-4, 1e4
_STEP = 4.0  # by which the factor moves while all pilots are on one side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot:
    """A run of a variant with its bounds multiplied by a factor."""

    task: str
    variant: Variant
    factor: float

    @property
    def name(self) -> str:
        """Path of its run directory in that of the study."""
        return f"pilots/{self.task}/{self.variant.name}/x{self.factor:.4g}"

    def cell(self, study: Study) -> Cell:
        """The cell that it stands for."""
        return Cell(setting=study.pilot_setting(self.task), variant=self.variant, seed=study.pilot_seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """What the pilots of a task and a variant came to."""

    task: str
    variant: str
    outcome: str
    """What was matched."""
    wanted: float
    factor: float
    reached: float
    """By the nearest pilot."""
    is_near: bool
    """Whether that is within the tolerance; else `MOST_PILOTS` were not enough, or no factor clips so much."""
    pilots: int


def next_factor(done: Sequence[tuple[float, float]], target: Target) -> float | None:
    """The factor to try next, by bisection in its logarithm; None where one is near enough or no more are tried.

    Inside a bracket the line between its ends (both logarithms) says where, but never nearer to an end than a fifth.

    Args:
      done: (factor, value of the outcome) of the pilots so far.
      target: what is wanted.
    """
    wanted = target.wanted
    if not done:
        return 1.0
    if any(target.is_near(clip) for _, clip in done) or len(done) >= MOST_PILOTS:
        return None
    narrow = max((factor for factor, clip in done if clip > wanted), default=None)
    wide = min((factor for factor, clip in done if clip <= wanted), default=None)
    if narrow is None:
        assert wide is not None
        return _rounded(wide / _STEP) if wide > SMALLEST else None
    if wide is None:
        return _rounded(narrow * _STEP) if narrow < LARGEST else None
    if narrow > wide:  # noise: more was clipped by wider bounds
        narrow, wide = wide, narrow
    clips = dict(done)
    ends = [math.log(max(clips[factor], wanted / 100)) for factor in (narrow, wide)]
    part = (ends[0] - math.log(wanted)) / (ends[0] - ends[1]) if ends[0] > ends[1] else 0.5
    part = min(max(part, 0.2), 0.8)
    factor = _rounded(math.exp((1 - part) * math.log(narrow) + part * math.log(wide)))
    return None if factor in clips else factor


def _rounded(factor: float) -> float:
    return float(f"{factor:.4g}")


def pilots_done(study: Study, task: str, variant: Variant, folder: pathlib.Path) -> list[tuple[float, float]]:
    """(factor, value of the outcome) of a variant's pilots in a task whose runs are complete, in the order tried."""
    done: list[tuple[float, float]] = []
    while (target := variant.target) is not None:
        factor = next_factor(done, target)
        if factor is None:
            break
        run = read_cell(folder / Pilot(task=task, variant=variant, factor=factor).name)
        clip = target.outcome.measure(run) if run is not None else None
        if clip is None:
            break
        done.append((factor, clip))
    return done


def matched(
    study: Study,
    folder: pathlib.Path,
    run: Callable[[Sequence[Pilot]], Sequence[str]] | None = None,
    *,
    names: Collection[str] | None = None,
) -> list[Match]:
    """The factor of every task and variant that is to be matched, running what pilots are missing.

    Args:
      study, folder: the study and the directory of its runs.
      run: runs pilots and returns the names of those that failed; None: only what is done is read.
      names: of the cells that need it; None: all.
    """
    pairs = study.matched(names)
    failed: set[str] = set()
    while run is not None:
        due = []
        for task, variant in pairs:
            assert variant.target is not None
            factor = next_factor(pilots_done(study, task, variant, folder), variant.target)
            if factor is not None:
                due.append(Pilot(task=task, variant=variant, factor=factor))
        due = [pilot for pilot in due if pilot.name not in failed]
        if not due:
            break
        failed |= set(run(due))
    found = []
    for task, variant in pairs:
        target = variant.target
        assert target is not None
        done = pilots_done(study, task, variant, folder)
        if done:
            wanted = target.wanted
            factor, value = min(done, key=lambda pilot: abs(math.log(max(pilot[1], 1e-9) / wanted)))
            found.append(
                Match(
                    task=task, variant=variant.name, outcome=target.outcome.name, wanted=wanted, factor=factor,
                    reached=value, is_near=target.is_near(value), pilots=len(done),
                )
            )  # fmt: skip
    return found
