r"""Generated problems: chains of single-digit steps modulo ten, with solutions that reason in clauses.

    Modulo ten, start with 7, plus 4, minus 2, then times 3. What is the result?

    7 plus 4 is 1, 1 minus 2 is 9.
    9 times 3 is 7.
    The answer is \boxed{7}.

Every step is a bijection of the digits, so the answer is uniform over the ten digits
whatever part of the chain one has understood, and a guess scores one in ten. Nothing but doing the steps helps, and
the steps are within reach of a model of a million parameters: what reinforcement learning has to find is that
writing them down pays.

Whether a problem is training or held-out is a property of its chain (a hash of start and steps, not of the wording),
so the two splits cannot share a problem, whatever the seeds.
"""

import dataclasses
import hashlib
import json
import random
from typing import Any, Literal

from sspo_jax.data.problems import Problem
from sspo_jax.ranges import Count, FileOnly, Fraction, Seed

Step = tuple[str, int]
Split = Literal["train", "held_out"]

# Ninety facts in all (a digit, an operation, an operand): a million parameters learn them in a minute or two.
_OPERANDS = {"+": range(1, 5), "-": range(1, 5), "*": (3,)}
# The steps of a chain are different ones, so that where one is in reading it can be told from the step before.
_STEPS = [(operation, operand) for operation, operands in _OPERANDS.items() for operand in operands]
_CLAUSE_WORDS = {"+": "plus", "-": "minus", "*": "times"}
_OPENINGS = ("Modulo ten, start with {}", "Modulo ten, take {}", "Counting modulo ten, begin at {}")
_QUESTIONS = ("What is the result?", "Where do you end?")
_HELD_OUT_ONE_IN = 8
_VERSION = 1  # part of the digest: raise it when the same (config, index) would give another problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticData:
    """Settings of the generated problems; `.open()` gives the source."""

    split: FileOnly[Split] = "train"
    """`train` or `held_out`; the two share no chain."""
    seed: FileOnly[Seed] = 0
    """Problems are a function of (seed, index)."""
    size: Count = 1_000_000
    """Number of problems; they are made on demand, so a large number costs nothing."""
    min_steps: Count = 4
    """Fewest steps of a chain."""
    max_steps: Count = 6
    """Most steps of a chain."""
    reasoned_fraction: FileOnly[Fraction] = 0.4
    """Share of the demonstrations that reason step by step; the others guess a digit at once."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "held_out"):
            raise ValueError(f"split is {self.split!r}; expected train or held_out")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1")
        if not 1 <= self.min_steps <= self.max_steps <= len(_STEPS):
            raise ValueError(
                f"min_steps is {self.min_steps} and max_steps {self.max_steps}; expected 1 <= min_steps <= "
                f"max_steps <= {len(_STEPS)}, the number of different steps"
            )
        if not 0.0 <= self.reasoned_fraction <= 1.0:
            raise ValueError(f"reasoned_fraction is {self.reasoned_fraction}; expected 0 to 1")

    def open(self, tokenizer: Any = None) -> "ArithmeticSource":
        """The source of these problems; the tokenizer is not used, other data counts tokens with it."""
        del tokenizer
        return ArithmeticSource(self)


class ArithmeticSource:
    """Random access to the generated problems; nothing is stored."""

    def __init__(self, data: ArithmeticData):
        self.data = data
        self.name = f"arithmetic_{data.split}"
        content = json.dumps({"version": _VERSION, **dataclasses.asdict(data)}, sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return self.data.size

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: problem {index}; expected 0 to {len(self) - 1}")
        rng = self._rng("problem", index)
        while True:
            start, steps = _draw_chain(rng, self.data.min_steps, self.data.max_steps)
            if split_of(start, steps) == self.data.split:
                break
        return Problem(
            id=f"arithmetic-{self.data.split}-{self.data.seed}-{index}",
            problem=_state(rng, start, steps),
            answer=str(evaluate_chain(start, steps)[-1]),
            solution=_explain(start, steps),
            level=min(max(len(steps) - 1, 1), 5),
            subject="Arithmetic",
            source="arithmetic",
        )

    def demonstration(self, index: int) -> str:
        """A response to problem `index` to imitate: the solution, or (more often) a digit at random.

        The imitating model learns both habits and the frequencies of them; the guess is right once in ten.
        """
        rng = self._rng("demonstration", index)
        if rng.random() < self.data.reasoned_fraction:
            solution = self[index].solution
            assert solution is not None
            return solution
        return _conclude(rng.randrange(10))

    def _rng(self, purpose: str, index: int) -> random.Random:
        # A string seed goes through SHA-512: the same on every platform, and neighbouring indices are unrelated.
        return random.Random(f"{purpose}/{self.data.seed}/{self.data.split}/{index}")


def split_of(start: int, steps: list[Step]) -> Split:
    """The split a chain belongs to, from its content alone: one chain in eight is held out."""
    chain = str(start) + "".join(f"{operation}{operand}" for operation, operand in steps)
    return "held_out" if hashlib.sha256(chain.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0 else "train"


def evaluate_chain(start: int, steps: list[Step]) -> list[int]:
    """The digit after each step, modulo ten; the last one is the answer.

    >>> evaluate_chain(7, [("+", 5), ("-", 3), ("*", 9)])
    [2, 9, 1]
    """
    values = []
    value = start
    for operation, operand in steps:
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation] % 10
        values.append(value)
    return values


def _draw_chain(rng: random.Random, min_steps: int, max_steps: int) -> tuple[int, list[Step]]:
    return rng.randrange(10), rng.sample(_STEPS, rng.randint(min_steps, max_steps))


def _state(rng: random.Random, start: int, steps: list[Step]) -> str:
    clauses = [f"{_CLAUSE_WORDS[operation]} {operand}" for operation, operand in steps]
    if len(clauses) > 1:
        clauses[-1] = f"then {clauses[-1]}"
    return f"{rng.choice(_OPENINGS).format(start)}, {', '.join(clauses)}. {rng.choice(_QUESTIONS)}"


def _explain(start: int, steps: list[Step]) -> str:
    values = [start, *evaluate_chain(start, steps)]
    clauses = [
        f"{left} {_CLAUSE_WORDS[operation]} {operand} is {right}"
        for (operation, operand), left, right in zip(steps, values[:-1], values[1:], strict=True)
    ]
    sentences = [", ".join(clauses[first : first + 2]) for first in range(0, len(clauses), 2)]
    return ".\n".join([*sentences, _conclude(values[-1])])


def _conclude(digit: int) -> str:
    return rf"The answer is \boxed{{{digit}}}."
