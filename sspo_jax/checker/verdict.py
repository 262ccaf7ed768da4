"""What the checker finds (`Extraction`), what it returns (`Verdict`) and what a data set may ask of it (`Options`)."""

import dataclasses
from typing import NamedTuple

STATUSES = ("correct", "wrong", "unparsed", "timeout", "error")
VERSION = 7  # part of every cache key; raise it when a verdict may change


class Extraction(NamedTuple):
    """An answer as written, and the rule that found it; `answer` is None where there is none.

    `parts` are the boxes that were joined to the answer: the same answer may be given in two forms side by side.
    """

    answer: str | None
    rule: str
    parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    `correct` and `wrong` are decisions. `unparsed`: no answer was found in the response, or it could not be read.
    `timeout` and `error` say nothing about the response: a limit was hit, or the gold could not be read.
    """

    status: str
    """One of `STATUSES`."""
    extracted: str | None
    """The answer found in the response, as written; None where there is none."""
    gold: str
    """The gold answer, as given."""
    reason: str
    """Which rule decided, or what went wrong."""
    seconds: float
    """Time spent on this check, waiting in a queue not included."""

    @property
    def is_correct(self) -> bool:
        """True for the status `correct` only."""
        return self.status == "correct"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What counts as the same answer, where data sets differ. The defaults are exact."""

    relative_tolerance: float | int | None = None
    """Numbers agree where |answer - gold| <= this * |gold|; None compares exactly."""
    absolute_tolerance: float | int | None = None
    """Numbers agree where |answer - gold| <= this; None compares exactly."""
    lenient: bool = False
    """Where no answer is stated, take the last formula or number of the response instead of `unparsed`."""
    join_boxes: bool = True
    """Boxes of one sentence joined only by a comma, "and" or `\\quad` are one list."""

    def __post_init__(self) -> None:
        for name in ("relative_tolerance", "absolute_tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e300:
                raise ValueError(f"{name} is {value}; expected a number >= 0 or None")


EXACT = Options()
