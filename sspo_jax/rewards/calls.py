"""What a reward function wants, by the names of its parameters, and what may come back from it."""

import contextlib
import dataclasses
import difflib
import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from sspo_jax.checker.workers.zygote import load_function
from sspo_jax.ranges import Range

Real = Annotated[float | int, Range()]

OF_A_PROBLEM = {
    "problem": "the question",
    "gold": "the gold answer",
    "solution": "a worked solution, or None",
    "id": "of the problem",
    "set": "the set it is judged as",
    "level": "its difficulty, or None",
    "subject": "its field, or None",
    "extra": "what else the data says, a dict",
    "step": "the step of the run, from 1",
}
"""What functions of one response and of a group may ask for."""
OF_A_RESPONSE = {
    "response": "the text, without the prompt and without control tokens",
    "tokens": "token ids of the response, its end token included",
    "finish": "stop, or length where it was cut off at the budget",
    "verdict": "of the checker: .status, .extracted, .reason, .is_correct",
    "sample": "its place in the group, from 0",
}
"""What a function of one response may ask for besides."""
OF_A_GROUP = {
    "responses": "the texts of all responses to the problem",
    "tokens": "token ids of each",
    "finishes": "stop or length of each",
    "verdicts": "of the checker on each",
}
"""What a function of a whole group may ask for besides; `responses` makes it one."""


class RewardError(ValueError):
    """A user's reward function raised, ran out of time or memory, or returned no finite number."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How a reward function is called."""

    names: tuple[str, ...]
    """What it asks for."""
    is_positional: bool = False
    """Called as function(response, gold), whatever its parameters are called."""
    is_group: bool = False
    """Called once for all responses to a problem."""
    is_async: bool = False
    """An `async def`."""

    @property
    def wants_verdicts(self) -> bool:
        """Whether it has to wait for the checker."""
        return not {"verdict", "verdicts"}.isdisjoint(self.names)


class Outcome(NamedTuple):
    """What one call came to for one response."""

    terms: dict[str, float]
    """Its terms by name; a single number has the name ''. Empty where there is none."""
    is_excluded: bool
    """Whether the sample is taken out of its group."""


def describe(path: str, arguments: Sequence[str] = ()) -> Wanted:
    """What the function that `module:function` names asks for. Imports its module: called in a worker.

    Args:
      path: module:function.
      arguments: names of the keyword arguments that its record gives.

    Raises:
      ValueError: it is not there, is no function, or asks for something that is not known.
    """
    function = load_function(path)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions do not say
        return Wanted(("response", "gold"), is_positional=True)
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    free = [one for one in named if one.name not in arguments]
    required = [one for one in free if one.default is one.empty]
    is_group = any(one.name == "responses" for one in named)
    known = OF_A_PROBLEM | (OF_A_GROUP if is_group else OF_A_RESPONSE)
    unknown = [one for one in required if one.name not in known]
    by_place = [one for one in required if one.kind is not one.KEYWORD_ONLY]
    only_by_place = any(one.kind is one.POSITIONAL_ONLY for one in required)
    if not unknown and not only_by_place:
        return Wanted(tuple(one.name for one in free if one.name in known), is_group=is_group, is_async=is_async)
    is_a_slip = any(difflib.get_close_matches(one.name, known, n=1, cutoff=0.75) for one in unknown)
    is_pair = len(by_place) == len(required) == 2 or (not named and len(parameters) > 0)
    if is_pair and not is_group and (only_by_place or not is_a_slip):
        return Wanted(("response", "gold"), is_positional=True, is_async=is_async)
    names = ", ".join(one.name for one in (unknown or required))
    kind = "a function of a whole group (it has `responses`)" if is_group else "a function of one response"
    raise ValueError(
        f"its parameter {names} is not known; {kind} may ask for {', '.join(known)}, or for names that `arguments` of "
        "its record gives. A function of two parameters by other names is called with the response and the gold answer"
    )


def outcomes(result: Any, wanted: Wanted, size: int, path: str) -> list[Outcome]:
    """What a call came to for each of `size` responses: one, or those of a group.

    Raises:
      RewardError: it returned something else.
    """
    if not wanted.is_group:
        return [_outcome(result, path)]
    values = result.tolist() if isinstance(result, np.ndarray) and result.ndim == 1 else result
    if not isinstance(values, list | tuple) or len(values) != size:
        raise RewardError(
            f"{path} returned {result!r:.200}; expected a list with one entry for each of {size} responses"
        )
    return [_outcome(value, path) for value in values]


def _outcome(value: Any, path: str) -> Outcome:
    if value is None:
        return Outcome({}, True)
    if isinstance(value, Mapping):
        if not value or not all(isinstance(name, str) and name for name in value):
            raise RewardError(f"{path} returned {value!r:.200}; expected the names of terms as keys, at least one")
        if any(one is None for one in value.values()):
            return Outcome({}, True)
        return Outcome({name: _number(one, path) for name, one in value.items()}, False)
    return Outcome({"": _number(value, path)}, False)


def _number(value: Any, path: str) -> float:
    is_number = isinstance(value, numbers.Real | np.generic) or getattr(value, "shape", None) == ()
    with contextlib.suppress(TypeError, ValueError):  # a text of NumPy's, an object in an array, a complex number
        if is_number and not isinstance(value, str | bytes) and math.isfinite(value):
            return float(value)
    raise RewardError(f"{path} returned {value!r:.200}; expected a finite number, None, or a dict of them by name")
