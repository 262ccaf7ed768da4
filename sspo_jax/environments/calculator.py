"""A calculator: a turn that is an expression is answered with its value, any other ends the conversation."""

import re

from sspo_jax.environments.protocol import Reply, Task

_EXPRESSION = re.compile(r"\s*(-?\d{1,9})\s*([-+*])\s*(-?\d{1,9})\s*=?\s*")


class Calculator:
    """Answers `12 * 34` with `408`; gives no reward, which the checker does for the answer at the end.

    Args:
      most: calculations in a conversation; after them it is over.
    """

    def __init__(self, most: int = 3):
        self._left = most

    def reset(self, task: Task) -> None:
        """Nothing is said at first."""

    def step(self, text: str) -> Reply:
        """The value of an expression of two whole numbers, or the end."""
        found = _EXPRESSION.fullmatch(text)
        if found is None or not self._left:
            return Reply()
        self._left -= 1
        left, right = int(found[1]), int(found[3])
        return Reply(text=str({"+": left + right, "-": left - right, "*": left * right}[found[2]]))
