"""A study as a value: which runs, what is measured of them, and which comparisons are made, fixed before the first run.

A file of studies/ has a function `study()` that returns one `Study`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from sspo_jax.config import TrainConfig
from sspo_jax.studies.outcomes import CLIP, FINAL, MASS, Outcome

Load = Callable[[str], TrainConfig]
"""Gives an experiment by its name."""
Changes = Mapping[str, Any]
"""Dotted name of a field of TrainConfig to its value: {"optimizer.learning_rate": 2e-4}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all variants are tried in: a task, a learning rate."""

    name: str
    changes: Changes = dataclasses.field(default_factory=dict)
    task: str = "task"
    """Settings of one task differ in the learning rate alone; a stability boundary is one per task and variant."""
    seeds: int | None = None
    """Only the first so many seeds; None: all."""
    is_pilot: bool = False
    """Where the ranges of this task are matched; without any, in its first setting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What is compared: an objective, or a way to cut."""

    name: str
    changes: Changes
    match_clip: float | None = None
    """Clip fraction to which pilot runs scale both bounds of the objective, per task; None: bounds as they are."""
    match_mass: float | None = None
    """The same by the share of the sum of |A d| that the clip removes: clips of the same strength."""
    settings: tuple[str, ...] | None = None
    """Only in these settings; None: in all."""

    @property
    def target(self) -> "Target | None":
        """What pilot runs are to find; None where the bounds are as they are."""
        if self.match_clip is not None:
            return Target(outcome=CLIP, wanted=self.match_clip, tolerance=0.1)
        if self.match_mass is not None:
            return Target(outcome=MASS, wanted=self.match_mass, tolerance=0.05)
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A value of an outcome, which falls as bounds are widened."""

    outcome: Outcome
    wanted: float
    tolerance: float
    """A pilot is near enough where it is within this share of what is wanted."""

    def is_near(self, value: float) -> bool:
        """Whether it is within the tolerance."""
        return abs(value - self.wanted) <= self.tolerance * self.wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question that the study answers with a p-value: does `first` differ from `second` in an outcome?"""

    first: str
    second: str
    outcome: str
    task: str | None = None
    """Of one task, the mean over its settings seed by seed; None: over all settings."""
    settings: tuple[str, ...] | None = None
    """Only these settings; None: all of the task."""

    @property
    def label(self) -> str:
        """For people."""
        where = ", ".join(self.settings) if self.settings else self.task or "all settings"
        return f"{self.outcome}: {self.first} - {self.second} ({where})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """All cells are every variant in every setting (or in those it names) with every seed."""

    title: str
    question: str
    base: str
    """Name of the experiment that all cells are variants of, as in `sspo train NAME`."""
    variants: tuple[Variant, ...]
    settings: tuple[Setting, ...] = (Setting(name="as-it-is"),)
    seeds: tuple[int, ...] = (0,)
    warm_starts: tuple[int, ...] = (0,)
    """Seeds of the warm starts, dealt out to the seeds in turn; all variants of a seed start from the same."""
    changes: Changes = dataclasses.field(default_factory=dict)
    """Made in all cells, before those of the setting and of the variant."""
    outcomes: tuple[Outcome, ...] = (FINAL,)
    comparisons: tuple[Comparison, ...] = ()
    passing_score: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Task to the score below which the last evaluation of a seed is a failure: gives the stability boundary."""
    differences_of_interest: tuple[float, ...] = (0.02, 0.05)
    """Of the last score: how many seeds would show them."""
    related: tuple[str, ...] = ()
    """Outcomes whose rank correlation with the last score, over the variants of a setting, is shown."""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Variant to the score that a paper reports, shown beside."""
    seconds_per_run: float = 60.0
    """One cell on one core, start-up included; only for `--dry-run` before any cell is done."""
    pilot_seed: int = 10_000
    """Seed of the pilot runs, none of those of the cells."""
    pilot_steps: int | None = None
    """Steps of a pilot run; None: as many as a cell has."""
    keeps_checkpoints: bool = False
    """Whether the checkpoints of a finished cell are kept."""

    def check(self) -> None:
        """Refuses what no study can be.

        Raises:
          ValueError: names that are there twice, not fit for a folder, or named in a comparison but not there.
        """
        for kind, members in (("variants", self.variants), ("settings", self.settings), ("outcomes", self.outcomes)):
            names = [member.name for member in members]
            if not names:
                raise ValueError(f"{kind} are empty; expected at least one")
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} are {', '.join(names)}; expected each name once")
            for name in names if kind != "outcomes" else ():
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
                    raise ValueError(f"{kind}: {name!r} names a folder; expected letters, digits and . _ + - alone")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds or not self.warm_starts:
            raise ValueError(f"seeds are {self.seeds}; expected at least one seed and warm start, each seed once")
        known = [setting.name for setting in self.settings]
        for variant in self.variants:
            if variant.match_clip is not None and variant.match_mass is not None:
                raise ValueError(f"{variant.name}: match_clip and match_mass are set; one factor cannot match both")
            for name in variant.settings or ():
                if name not in known:
                    raise ValueError(f"{variant.name}: no setting {name!r}; expected one of {', '.join(known)}")
        for name in self.related:
            if name not in (known := [outcome.name for outcome in self.outcomes]):
                raise ValueError(f"related: no outcome {name!r}; expected some of {', '.join(known)}")
        for comparison in self.comparisons:
            self._check_comparison(comparison)

    def _check_comparison(self, comparison: Comparison) -> None:
        known = {
            "variant": [variant.name for variant in self.variants],
            "outcome": [outcome.name for outcome in self.outcomes],
            "task": [setting.task for setting in self.settings],
            "setting": [setting.name for setting in self.settings],
        }
        asked = [("variant", comparison.first), ("variant", comparison.second), ("outcome", comparison.outcome)]
        asked += [("task", comparison.task)] if comparison.task else []
        asked += [("setting", name) for name in comparison.settings or ()]
        for kind, name in asked:
            if name not in known[kind]:
                raise ValueError(
                    f"comparison {comparison.label}: no {kind} {name!r}; expected one of "
                    f"{', '.join(dict.fromkeys(known[kind]))}"
                )

    def cells(self) -> "Iterator[Cell]":
        """Every cell, seed by seed, so that a study that is cut short has whole seeds."""
        for number, seed in enumerate(self.seeds):
            for setting in self.settings:
                if setting.seeds is None or number < setting.seeds:
                    for variant in self.variants:
                        if variant.settings is None or setting.name in variant.settings:
                            yield Cell(setting=setting, variant=variant, seed=seed)

    def pilot_setting(self, task: str) -> Setting:
        """Where the ranges of a task are matched."""
        own = [setting for setting in self.settings if setting.task == task]
        return next((setting for setting in own if setting.is_pilot), own[0])

    def matched(self, names: Collection[str] | None = None) -> list[tuple[str, Variant]]:
        """Every (task, variant) whose range pilots find.

        Args:
          names: of the cells that need it; None: all.
        """
        cells = [cell for cell in self.cells() if names is None or cell.name in names]
        pairs = {(cell.setting.task, cell.variant.name): cell.variant for cell in cells}
        return [(task, variant) for (task, _), variant in pairs.items() if variant.target is not None]

    def comparisons_of(self, cells: Sequence[str]) -> tuple[Comparison, ...]:
        """Comparisons whose variants are both among these."""
        return tuple(own for own in self.comparisons if own.first in cells and own.second in cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    setting: Setting
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Path of its run directory in that of the study."""
        return f"{self.setting.name}/{self.variant.name}/seed-{self.seed:04d}"

    def config(self, study: Study, load: Load, factor: float = 1.0) -> TrainConfig:
        """What it runs, but for the run directory.

        Args:
          study: of the cell.
          load: gives an experiment by its name.
          factor: of both bounds, found by pilot runs.

        Raises:
          ValueError: no such field, or bounds that do not scale.
        """
        place = study.seeds.index(self.seed) if self.seed in study.seeds else 0
        config = changed(load(study.base), study.changes)
        config = changed(config, self.setting.changes)
        config = changed(config, {**self.variant.changes, "seed": self.seed})
        if config.warm_start is not None:
            own = {"warm_start.seed": study.warm_starts[place % len(study.warm_starts)], "warm_start.shipped": False}
            config = changed(config, own)  # made here, on the cores of a cell, whatever comes with the package
        return changed(config, {"loss": scaled(config.loss, factor)}) if factor != 1.0 else config


def scaled(loss: Any, factor: float) -> Any:
    """An objective with both bounds multiplied by a factor, to four digits."""
    if not (hasattr(loss, "clip_low") and hasattr(loss, "clip_high")):
        raise ValueError(f"{type(loss).__name__} has no clip_low and clip_high, so its clip cannot be matched")
    low, high = (float(f"{bound * factor:.4g}") for bound in (loss.clip_low, loss.clip_high))
    return dataclasses.replace(loss, clip_low=low, clip_high=high)


def changed(config: Any, changes: Changes) -> Any:
    """A dataclass with some fields set, by dotted names.

    Raises:
      ValueError: no such field; the known ones are listed.
    """
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        names = [field.name for field in dataclasses.fields(config)]
        if head not in names:
            raise ValueError(f"{type(config).__name__} has no field {head!r}; expected one of {', '.join(names)}")
        inner = getattr(config, head)
        if rest and not dataclasses.is_dataclass(inner):
            raise ValueError(f"{head} is {inner!r}, so {name} cannot be set; set {head} as a whole")
        config = dataclasses.replace(config, **{head: changed(inner, {rest: value}) if rest else value})
    return config
