"""`CodeTests`: a response is a Python program, and the problem's tests say how far it works."""

import contextlib
import dataclasses
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sspo_jax.checker import Verifier
from sspo_jax.ranges import Count, Positive
from sspo_jax.rewards import jail
from sspo_jax.rewards.calls import RewardError, Wanted
from sspo_jax.rewards.own import UserReward
from sspo_jax.rewards.sandbox import Limits, run_program

_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeTests(UserReward):
    """Runs the last fenced block of a response (or all of it) against the tests of the problem.

    The tests are `extra[tests]` of the problem: Python statements, as a text or a list of texts, (`assert f(2) == 4`)
    or `{"inputs": [...], "outputs": [...]}`, what the program reads and what it is to print. JSON in a text is read.

    Each program runs in a process that may neither write files nor read others than Python's own, has no network, and
    can start no process; see docs/rewards.md for what holds it. Statements run in the process of the program, which
    can forge their success if it sets out to; what a program prints is compared outside.
    """

    function: str = f"{__name__}:score"
    timeout_seconds: Positive = 120.0
    """The most all tests of one response may take."""
    tests: str = "tests"
    """Where in `extra` of a problem its tests are."""
    seconds: Positive = 4.0
    """The most one program may take."""
    memory_mib: Count = 512
    """Address space of one program."""
    output_kib: Count = 1024
    """The most it may print."""
    most: Count = 20
    """Tests that are run of a problem: the first so many."""
    partial: bool = False
    """Give the share of tests that are passed; otherwise 1 where all are, and no test runs after a failure."""
    unconfined: bool = False
    """Run programs also where the system cannot keep them from files, network and processes."""

    @property
    def name(self) -> str:
        return "code_tests"

    def keywords(self) -> dict[str, Any]:
        limits = Limits(seconds=self.seconds, memory_bytes=self.memory_mib << 20, output_bytes=self.output_kib << 10)
        settings = {"tests": self.tests, "most": self.most, "partial": self.partial}
        return {"limits": limits, **settings}

    def described(self, verifier: Verifier) -> Wanted:
        """What the function asks for.

        Raises:
          RewardError: programs cannot be confined here.
        """
        if not self.unconfined and (missing := jail.missing()):
            raise RewardError(
                "code_tests runs programs that the policy writes, and cannot confine them here. "
                f"{'; '.join(missing)}. Run on Linux with both, or set CodeTests(unconfined=True)"
            )
        return super().described(verifier)


def score(
    response: str, extra: Mapping[str, Any], *, limits: Limits, tests: str, most: int, partial: bool
) -> float | None:
    """The share of tests that are passed, or whether all are; None where the problem has none.

    Raises:
      ValueError: the tests of the problem are not in one of the forms that `CodeTests` names.
    """
    found = _tests_of(extra.get(tests), tests)[:most]
    if not found:
        return None
    program, passed = program_of(response), 0
    for test in found:
        is_passed = test.is_passed(program, limits)
        passed += is_passed
        if not is_passed and not partial:
            break
    return passed / len(found) if partial else float(passed == len(found))


def program_of(response: str) -> str:
    """The last fenced block after the thinking, or all of it where there is none."""
    answer = response.rpartition("</think>")[2]
    blocks = _BLOCK.findall(answer)
    return blocks[-1] if blocks else answer


@dataclasses.dataclass(frozen=True)
class Statements:
    """Python that fails where the program is wrong."""

    text: str

    def is_passed(self, program: str, limits: Limits) -> bool:
        """Whether both run to their end."""
        nonce = secrets.token_hex(16)
        result = run_program(f"{program}\n\n{self.text}\n", limits=limits, nonce=nonce)
        return result.is_clean and result.output.rstrip().endswith(nonce)


@dataclasses.dataclass(frozen=True)
class Pair:
    """What a program reads, and what it is to print."""

    stdin: str
    stdout: str

    def is_passed(self, program: str, limits: Limits) -> bool:
        """Whether the output is the same, white space at the ends of lines and of the text aside."""
        result = run_program(program, self.stdin, limits=limits)
        return result.is_clean and _lines(result.output) == _lines(self.stdout)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _tests_of(given: Any, name: str) -> Sequence[Statements | Pair]:
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):  # Python may begin with a bracket
            given = json.loads(given)
    match given:
        case None | "" | []:
            return []
        case str():
            return [Statements(given)]
        case list() if all(isinstance(text, str) for text in given):
            return [Statements(text) for text in given]
        case {"inputs": list() as inputs, "outputs": list() as outputs} if (
            len(inputs) == len(outputs)
            and all(isinstance(text, str) for text in (*inputs, *outputs))
            and not given.get("fn_name")
        ):
            return [Pair(*pair) for pair in zip(inputs, outputs, strict=True)]
    raise ValueError(
        f"extra.{name} of the problem is {given!r:.200}; expected Python statements as a text or a list of texts, or "
        '{"inputs": [texts], "outputs": [texts]} of the same number (no fn_name: write calls as statements)'
    )
