"""A guessing game: higher, lower, or right."""

import re

from sspo_jax.environments.protocol import Reply, Task


class GuessingGame:
    """The gold answer of the problem is a whole number, and each turn of the policy a guess at it.

    The reward is 1 for the right guess, less `price` for each guess before it, and 0 where it is not found.

    Args:
      most: guesses.
      price: of each guess before the right one.
    """

    def __init__(self, most: int = 4, price: float = 0.1):
        self._most, self._price, self._guesses, self._secret = most, price, 0, 0

    def reset(self, task: Task) -> None:
        """The number is in the task."""
        self._secret = int(task.gold)

    def step(self, text: str) -> Reply:
        """Whether the number is higher or lower than the last number in the text."""
        self._guesses += 1
        numbers = re.findall(r"\d{1,9}", text)
        if not numbers:
            return Reply()
        guess = int(numbers[-1])
        if guess == self._secret:
            return Reply(reward=max(0.0, 1.0 - self._price * (self._guesses - 1)))
        if self._guesses == self._most:
            return Reply()
        return Reply(text="higher" if guess < self._secret else "lower")
