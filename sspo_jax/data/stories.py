r"""Generated problems in words: one or two steps of arithmetic with small numbers, for small pretrained models.

    Anna has 6 shells, finds 9 more and gives 4 to a friend. How many shells does Anna have now?

A model of a hundred million parameters solves some of them some of the time, which is what reinforcement learning needs
to begin; nothing has to be downloaded.

Whether a problem is training or held-out is a property of its kind and its numbers (a hash, not the wording), so the
two splits cannot share one, whatever the seeds.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from sspo_jax.data.arithmetic import Split
from sspo_jax.data.problems import Problem
from sspo_jax.ranges import Count, FileOnly, Seed

_NAMES = ("Anna", "Tom", "Mia", "Ben", "Lily", "Sam", "Nora", "Max", "Zoe", "Paul")
_THINGS = ("apples", "marbles", "stickers", "books", "shells", "coins", "cards", "pencils", "cookies", "stamps")
_BOXES = ("boxes", "bags", "baskets", "jars")
_HELD_OUT_ONE_IN = 8
_VERSION = 1  # part of the digest: raise it when the same (config, index) would give another problem


@dataclasses.dataclass(frozen=True)
class Kind:
    """A sort of story: its text, and what its numbers come to."""

    text: str
    """With {name}, {things}, {boxes} and the numbers {a}, {b}, {c}."""
    result: Callable[[int, int, int], int]
    largest: tuple[int, int, int]
    """The largest a, b and c; the smallest is 2. One that the text does not have is 0."""


ONE_STEP = (
    Kind("{name} has {a} {things} and gets {b} more. {now}", lambda a, b, c: a + b, (20, 20, 0)),
    Kind("{name} had {a} {things} and gave {b} to a friend. {now}", lambda a, b, c: a - b, (20, 20, 0)),
    Kind("There are {a} {boxes} with {b} {things} in each. {all}", lambda a, b, c: a * b, (9, 9, 0)),
    Kind("{name} has {a} {things}. A friend has {b} more than that. {friend}", lambda a, b, c: a + b, (20, 20, 0)),
)
TWO_STEPS = (
    Kind(
        "{name} has {a} {things}, finds {b} more and gives {c} to a friend. {now}",
        lambda a, b, c: a + b - c,
        (12, 12, 12),
    ),
    Kind("{name} has {a} {boxes} of {b} {things} and {c} more {things}. {all}", lambda a, b, c: a * b + c, (6, 6, 9)),
    Kind("{name} fills {a} {boxes} with {b} {things} each, then {c} {things} are eaten by mice. {left}",
         lambda a, b, c: a * b - c, (6, 6, 9)),
    Kind("{name} buys {a} {things} on Monday, {b} on Tuesday and {c} on Friday. {now}",
         lambda a, b, c: a + b + c, (12, 12, 12)),
)  # fmt: skip
_QUESTIONS = {
    "now": "How many {things} does {name} have now?",
    "all": "How many {things} are there in all?",
    "left": "How many {things} are left?",
    "friend": "How many {things} does the friend have?",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoryData:
    """Settings of the generated stories; `.open()` gives the source."""

    split: FileOnly[Split] = "train"
    """`train` or `held_out`; the two share no kind with the same numbers."""
    seed: FileOnly[Seed] = 0
    """Problems are a function of (seed, index)."""
    size: Count = 1_000_000
    """Number of problems; they are made on demand, so a large number costs nothing."""
    least_steps: Count = 1
    """Fewest steps of arithmetic, 1 or 2."""
    most_steps: Count
    """Most steps of arithmetic, 1 or 2; always given, so that a record of stories is never taken for other data."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "held_out"):
            raise ValueError(f"split is {self.split!r}; expected train or held_out")
        if not 1 <= self.least_steps <= self.most_steps <= 2:
            raise ValueError(
                f"least_steps is {self.least_steps} and most_steps {self.most_steps}; expected 1 <= "
                "least_steps <= most_steps <= 2"
            )

    def open(self, tokenizer: Any = None) -> "StorySource":
        """The source of these problems; the tokenizer is not used, other data counts tokens with it."""
        del tokenizer
        return StorySource(self)


class StorySource:
    """Random access to the generated problems; nothing is stored."""

    def __init__(self, data: StoryData):
        self.data = data
        self.name = f"stories_{data.split}"
        content = json.dumps({"version": _VERSION, **dataclasses.asdict(data)}, sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()
        self._kinds = [*ONE_STEP * (data.least_steps == 1), *TWO_STEPS * (data.most_steps == 2)]

    def __len__(self) -> int:
        return self.data.size

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: problem {index}; expected 0 to {len(self) - 1}")
        # A string seed goes through SHA-512: the same on every platform, and neighbouring indices are unrelated.
        rng = random.Random(f"story/{self.data.seed}/{self.data.split}/{index}")
        while True:
            kind = rng.choice(self._kinds)
            a, b, c = (rng.randint(2, most) if most else 0 for most in kind.largest)
            result = kind.result(a, b, c)
            if result > 0 and split_of(kind, (a, b, c)) == self.data.split:
                break
        words = {"name": rng.choice(_NAMES), "things": rng.choice(_THINGS), "boxes": rng.choice(_BOXES)}
        questions = {name: text.format(**words) for name, text in _QUESTIONS.items()}
        return Problem(
            id=f"story-{self.data.split}-{self.data.seed}-{index}",
            problem=kind.text.format(a=a, b=b, c=c, **words, **questions),
            answer=str(result),
            level=1 if kind in ONE_STEP else 2,
            subject="Arithmetic",
            source="stories",
        )


def split_of(kind: Kind, numbers: tuple[int, int, int]) -> Split:
    """The split a problem belongs to, from its kind and numbers alone: one in eight is held out."""
    content = f"{kind.text}{numbers}"
    return "held_out" if hashlib.sha256(content.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0 else "train"
