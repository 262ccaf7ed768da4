"""`Choice`, `Regex`, `JsonSchema`: rewards that look at the form of the answer, or at one letter of it."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Mapping
from typing import Any

from sspo_jax.checker import Verifier
from sspo_jax.rewards.calls import RewardError, Wanted
from sspo_jax.rewards.own import UserReward

_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\b\s*[.):]?[^{}]*\}?\s*\}")
_STATED = re.compile(r"(?:answer|choice|option)(?:\s+is|\s*:)?\s*:?\s*\(?([A-Z])\)?(?![A-Za-z'])", re.IGNORECASE)
_LETTER = re.compile(r"(?<![A-Za-z'\\])\(?([A-Z])\)?[.:]?\s*\Z")
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(UserReward):
    """1 where the letter that the answer chooses is that of the gold answer, else 0.

    The letter is the last one in a box, else after "answer", "choice" or "option", else the one the answer ends with.
    """

    function: str = f"{__name__}:chosen"
    letters: str = "ABCDEFGHIJ"
    """Those that can be chosen; an answer that chooses another scores 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch("[A-Z]+", self.letters):
            raise ValueError(f"letters is {self.letters!r}; expected capital letters, such as ABCD")

    @property
    def name(self) -> str:
        return "choice"

    def keywords(self) -> dict[str, Any]:
        return {"letters": self.letters}


def chosen(response: str, gold: str, *, letters: str) -> float:
    """Whether the letter is right; see `Choice`."""
    expected = letter_of(gold, letters) or gold.strip().strip("().").upper()
    if expected not in letters or len(expected) != 1:
        raise ValueError(f"the gold answer is {gold!r:.100}; expected one of the letters {letters}")
    return float(letter_of(_answer(response), letters) == expected)


def letter_of(text: str, letters: str) -> str | None:
    """The letter that a text chooses, None where it chooses none of them."""
    for pattern in (_BOXED, _STATED, _LETTER):
        if found := [
            letter.upper() for letter in pattern.findall(text.replace("*", "").strip()) if letter.upper() in letters
        ]:
            return found[-1]
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regex(UserReward):
    """1 where a regular expression is found in the response, else 0. It runs in a worker, so that a slow one is ended.

    `{gold}` in the pattern stands for the gold answer, as it is.
    """

    function: str = f"{__name__}:is_found"
    pattern: str = ""
    """Of Python's `re`, searched in the whole response; `(?s)` and the like set flags."""
    whole: bool = False
    """The whole response has to match, white space at both ends aside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern.replace("{gold}", ""))
        except re.error as error:
            raise ValueError(f"pattern is {self.pattern!r}; expected a regular expression: {error}") from None
        if not self.pattern:
            raise ValueError("pattern is empty; expected a regular expression")

    @property
    def name(self) -> str:
        return "regex"

    def keywords(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "whole": self.whole}


def is_found(response: str, gold: str, *, pattern: str, whole: bool) -> bool:
    """Whether the pattern is there; see `Regex`."""
    pattern = pattern.replace("{gold}", re.escape(gold))
    return bool(re.fullmatch(pattern, response.strip()) if whole else re.search(pattern, response))


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSchema(UserReward):
    """1 where the answer is JSON that a schema allows, else 0. Needs the package jsonschema (`sspo-jax[rewards]`).

    The JSON is the last fenced block of the answer, else all of it.
    """

    function: str = f"{__name__}:is_valid"
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What is allowed, as JSON Schema says it; `extra[field]` of a problem comes before it."""
    field: str = "schema"
    """Where in `extra` of a problem its own schema is, an object or a text."""

    @property
    def name(self) -> str:
        return "json_schema"

    def keywords(self) -> dict[str, Any]:
        return {"schema": dict(self.schema), "field": self.field}

    def described(self, verifier: Verifier) -> Wanted:
        """What the function asks for.

        Raises:
          RewardError: jsonschema is not installed, or the schema is none.
        """
        if importlib.util.find_spec("jsonschema") is None:
            raise RewardError("JsonSchema needs the package jsonschema: pip install 'sspo-jax[rewards]'")
        from jsonschema import SchemaError, validators

        try:
            validators.validator_for(self.schema).check_schema(dict(self.schema))
        except SchemaError as error:
            raise RewardError(f"schema of JsonSchema: {error.message}") from None
        return super().described(verifier)


def is_valid(response: str, extra: Mapping[str, Any], *, schema: Mapping[str, Any], field: str) -> bool:
    """Whether the answer is JSON that the schema allows; see `JsonSchema`."""
    from jsonschema import validators

    own = extra.get(field)
    used = json.loads(own) if isinstance(own, str) else own if own is not None else schema
    answer = _answer(response)
    blocks = _FENCE.findall(answer)
    try:
        value = json.loads(blocks[-1] if blocks else answer)
    except (json.JSONDecodeError, RecursionError):
        return False
    return validators.validator_for(used)(used).is_valid(value)


def _answer(response: str) -> str:
    """What follows the thinking."""
    return response.rpartition("</think>")[2]
