"""The judge: whether a response answers a problem, the same for rewards, for evaluations and for the command lines.

A problem says more than its gold answer: the set it belongs to may compare numbers with a tolerance (Minerva), and the
data may state a unit (`extra.unit`) or an error (`extra.error`) beside the answer (OlympiadBench). `Judge` hands all of
it to the checker.

>>> from sspo_jax.checker import Verifier
>>> from sspo_jax.data.problems import Problem
>>> with Verifier(workers=1) as verifier:
...     judge = Judge(verifier)
...     far = Problem(id="a", problem="How far is it?", answer="30", extra={"unit": "km"})
...     answers = [r"\\boxed{30 \\text{ kg}}", r"\\boxed{30000 \\text{ m}}"]
...     [verdict.status for verdict in judge.verdicts(answers, [far, far])]
['wrong', 'correct']
"""

import concurrent.futures
import math
from collections.abc import Callable, Sequence
from typing import Any

from sspo_jax.checker import Verdict, Verifier
from sspo_jax.data.problems import Problem
from sspo_jax.evaluation.presets import facts_for

Pending = concurrent.futures.Future[Verdict]
Collect = Callable[[int, Callable[[int], Pending]], list[Verdict]]
"""`collect(count, start)` calls `start(index)` for each of `count` checks and returns their verdicts, in order."""


def in_this_process(count: int, start: Callable[[int], Pending]) -> list[Verdict]:
    """All checks, side by side in the verifier's workers."""
    return [pending.result() for pending in [start(index) for index in range(count)]]


class Judge:
    """Verdicts on responses to problems.

    Args:
      verifier: the checker; kept by whoever made it.
      collect: who does the checks of `verdicts`; processes that evaluate together share them.
      options: fields of `sspo_jax.checker.Options`; they hold whatever the problem says.
    """

    def __init__(self, verifier: Verifier, *, collect: Collect = in_this_process, **options: Any):
        self._verifier = verifier
        self._collect = collect
        self._options = options

    def submit(self, response: str, problem: Problem) -> Pending:
        """Starts the check of one response; for responses that arrive one by one."""
        return self._verifier.submit(response, gold_of(problem), **{**tolerances_of(problem), **self._options})

    def verdicts(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """The verdict on each response to the problem at the same place.

        Raises:
          ValueError: there are more responses than problems, or fewer.
        """
        if len(responses) != len(problems):
            raise ValueError(f"{len(responses)} responses and {len(problems)} problems; expected one problem for each")
        return self._collect(len(responses), lambda index: self.submit(responses[index], problems[index]))

    def is_same(self, first: str, second: str) -> bool:
        """Whether two extracted answers say the same, without tolerance: how votes for maj@k are counted."""
        (verdict,) = self._collect(1, lambda _: self._verifier.submit(rf"\boxed{{{first}}}", second))
        return verdict.is_correct


def gold_of(problem: Problem) -> str:
    """The answer to check against: with the unit that the data states beside it (`extra.unit`), where it has one.

    The checker takes an answer without a unit for one with it, so this only makes wrong units wrong and other units of
    the same quantity right. Answers of several parts are left alone: a unit there would belong to the last part.
    """
    unit = str(problem.extra.get("unit") or "").replace("$", "").strip()
    if not unit or problem.extra.get("is_multiple_answer"):
        return problem.answer
    return f"{problem.answer} {unit}"


def tolerances_of(problem: Problem) -> dict[str, float]:
    """Options of the checker: the relative tolerance of the problem's set, and its own absolute one.

    OlympiadBench states the latter (`extra.error`) where the answer is a measurement; what is there and is not a
    number of at least 0 states nothing.
    """
    found = {"relative_tolerance": facts_for(problem).relative_tolerance}
    try:
        error = float(problem.extra.get("error") or 0.0)
    except (TypeError, ValueError):
        error = 0.0
    if 0.0 < error < math.inf:
        found["absolute_tolerance"] = error
    return {name: value for name, value in found.items() if value is not None}
