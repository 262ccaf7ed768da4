r"""Generated problems for conversations: products that want a calculator, and numbers to be guessed.

    What is 47 * 86?                    Guess my number, from 0 to 9.
    47 * 86                             3
        4042                                higher
    The answer is \boxed{4042}.         8

What is indented the environment says: `environments.Calculator`, `environments.GuessingGame`. A small model does not
find the digits of such a product by itself, and the number cannot be known.
"""

import dataclasses
import hashlib
import json
import random
from typing import Any, Literal

from sspo_jax.data.arithmetic import Split
from sspo_jax.data.problems import Problem
from sspo_jax.ranges import Count, FileOnly, Fraction, Seed

Kind = Literal["products", "numbers"]
_HELD_OUT_ONE_IN = 8
_VERSION = 1  # part of the digest: raise it when the same (config, index) would give another problem
_GUESSES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueData:
    """Settings of the generated problems; `.open()` gives the source."""

    kind: FileOnly[Kind]
    """products: of two numbers of two digits; numbers: of one digit, to be guessed."""
    split: FileOnly[Split] = "train"
    """`train` or `held_out`; the two share no product."""
    seed: FileOnly[Seed] = 0
    """Problems are a function of (seed, index)."""
    size: Count = 1_000_000
    """Number of problems; they are made on demand, so a large number costs nothing."""
    asking_fraction: Fraction = 0.4
    """Share of the demonstrations that ask the calculator, or that heed what the game says; the others just guess."""

    def open(self, tokenizer: Any = None) -> "DialogueSource":
        """The source of these problems; the tokenizer is not used, other data counts tokens with it."""
        del tokenizer
        return DialogueSource(self)


class DialogueSource:
    """Random access to the generated problems; nothing is stored."""

    def __init__(self, data: DialogueData):
        self.data = data
        self.name = f"{data.kind}_{data.split}"
        content = json.dumps({"version": _VERSION, **dataclasses.asdict(data)}, sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return self.data.size

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: problem {index}; expected 0 to {len(self) - 1}")
        rng = self._rng("problem", index)
        if self.data.kind == "numbers":
            question, answer = "Guess my number, from 0 to 9.", rng.randrange(10)
        else:
            left, right = self._factors(rng)
            question, answer = f"What is {left} * {right}?", left * right
        return Problem(
            id=f"{self.data.kind}-{self.data.split}-{self.data.seed}-{index}",
            problem=question,
            answer=str(answer),
            source=self.data.kind,
        )

    def demonstration(self, index: int) -> str:
        """A conversation about problem `index` to imitate, the environment's part of it included.

        Some ask the calculator, or guess only numbers that can still be right; the others guess at random.
        """
        problem, rng = self[index], self._rng("demonstration", index)
        if self.data.kind == "numbers":
            return self._guesses(int(problem.answer), rng)
        if rng.random() < self.data.asking_fraction:
            asked = problem.problem.removeprefix("What is ").removesuffix("?")
            return f"{asked}{_said(problem.answer)}{_conclude(problem.answer)}"
        return _conclude(str(rng.randrange(100, 9802)))

    def _factors(self, rng: random.Random) -> tuple[int, int]:
        while True:
            left, right = rng.randrange(10, 100), rng.randrange(10, 100)
            digest = hashlib.sha256(f"{min(left, right)}*{max(left, right)}".encode()).digest()
            if (digest[0] % _HELD_OUT_ONE_IN == 0) == (self.data.split == "held_out"):
                return left, right

    def _guesses(self, secret: int, rng: random.Random) -> str:
        text, left, heeds = "", list(range(10)), rng.random() < self.data.asking_fraction
        for number in range(1, _GUESSES + 1):
            guess = rng.choice(left)
            left = [other for other in left if (other - guess) * (secret - guess) > 0 or (not heeds and other != guess)]
            text += str(guess)
            if guess == secret or number == _GUESSES:
                break
            text += _said("higher" if guess < secret else "lower")
        return text

    def _rng(self, purpose: str, index: int) -> random.Random:
        # A string seed goes through SHA-512: the same on every platform, and neighbouring indices are unrelated.
        return random.Random(f"{purpose}/{self.data.kind}/{self.data.seed}/{self.data.split}/{index}")


def _said(text: str) -> str:
    """What the environment says, between two turns of the policy."""
    return f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def _conclude(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."
