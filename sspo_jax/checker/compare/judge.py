"""What the rules of comparison share: the options of a check, its limits, and the way back to the whole comparison."""

import dataclasses
from collections.abc import Callable

from ..evaluate.values import equal_values
from ..expression import Node
from ..limits import Limits
from ..verdict import Options


@dataclasses.dataclass(frozen=True)
class Judge:
    """Compares the parts of two answers, whatever these parts are."""

    compare: Callable[[Node, Node, "Judge"], str | None]
    """The comparison of whole trees, given here because the rules that it calls need it in their turn."""
    options: Options
    """What counts as the same."""
    limits: Limits
    """How far an evaluation may go."""

    def same(self, answer: Node, gold: Node) -> str | None:
        """The rule by which two parts are the same answer, None where they differ."""
        return self.compare(answer, gold, self)

    def equal(self, answer: Node, gold: Node) -> bool:
        """Whether two expressions have the same value."""
        return equal_values(answer, gold, self.options, self.limits)
