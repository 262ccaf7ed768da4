"""What the rules of comparison share: the options of a check, its limits, and the way back to the whole comparison."""

import dataclasses
from collections.abc import Callable, Sequence

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

    def same_in_order(self, answers: Sequence[Node], golds: Sequence[Node]) -> bool:
        """Whether there are as many parts, and they are the same one by one."""
        return len(answers) == len(golds) and all(self.same(a, b) for a, b in zip(answers, golds, strict=True))

    def same_in_any_order(
        self, answers: Sequence[Node], golds: Sequence[Node], is_same: Callable[[Node, Node], object] | None = None
    ) -> bool:
        """Whether each gold has an answer of its own that is the same, and none is left over."""
        remaining = list(answers)
        for gold in golds:
            place = next((i for i, answer in enumerate(remaining) if (is_same or self.same)(answer, gold)), None)
            if place is None:
                return False
            del remaining[place]
        return not remaining

    def equal(self, answer: Node, gold: Node) -> bool:
        """Whether two expressions have the same value."""
        return equal_values(answer, gold, self.options, self.limits)
