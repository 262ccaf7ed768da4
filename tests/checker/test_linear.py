"""Every regular expression of the checker, and every step that a whole response goes through, is linear in its text."""

import ast
import contextlib
import importlib
import pathlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator

import pytest

import sspo_jax.checker
from sspo_jax.checker.extract.response import extract
from sspo_jax.checker.limits import NeedsWorker
from sspo_jax.checker.parse.fastpath import plain_number
from sspo_jax.checker.parse.normalise import fold, tidy
from sspo_jax.checker.parse.reading import ParseError, readings

SMALL, FACTOR = 400, 10
MOST_GROWTH = 4 * FACTOR  # a quadratic step grows a hundredfold
NOISE_SECONDS = 0.003
SEARCHES = ("search", "sub", "subn", "finditer", "findall", "split")
PIECES = (
    " ", "\n", " \n", "\n\n", "\t", "\r\n", "\xa0", "1", "1 ", "1,", "1,000", ",000", " 000", "1.", "0.1", "-",
    "- ", "=", "= ", "a", "a ", "A", "ab ", "a=", "x^2+", "is ", " is the only", "the answer is ", "answer ",
    "answer (", "Answer:\n", "answer to ", "final answer ", "not ", "not the ", "or ", " (ab", " (ab(c)", "(", ")",
    "[", "{", "}", "\\", "\\{", "\\}", "$", "$$", "$a", "$a$ or ", "\\(", "\\[", "\\)", "\\]", "**", "**1", "*",
    "#", "#*", "\n#", "\n*", "####", ":", "：", "\\boxed", "\\boxed ", "\\boxed{", "\\boxed{}", "\\boxed{1} and ",
    "\\fbox{", "\\frac", "\\frac{1}{", "\\text{", "\\text{ ", "\\text{a} ", "\\mathbf{", "\\begin{aligned}", "\\\\",
    "&", "<img_1>", "Figure 1 ", "<think>", "</think>", "<|im_end|>", "<|", "<answer>", "there are 1 ",
    "John has 1 ", "in total ", "。", "是", "答案", "\xbd", "\xb2", "√", "1/2", "%", "'", "\"", "_1", "^{", "for all ",
    "about ", "mod 7) ", "(mod ", "3 out of ", "(A) ", "A. ", "10:30 ", "May 1, ", "one hundred ", "$1 ", ";",
    "the value is ", "we can check ", "..", "...", "? ", "! ",
)  # fmt: skip
ENDINGS = ("", "!)")


def modules() -> Iterator[object]:
    package = sspo_jax.checker
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def patterns() -> dict[str, tuple[re.Pattern[str], bool]]:
    """Every compiled pattern of the checker by name, and whether it is searched for or only matched at one place."""
    found: dict[str, tuple[re.Pattern[str], bool]] = {}
    for module in modules():
        source = ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
        searched = {
            node.value.id
            for node in ast.walk(source)
            if isinstance(node, ast.Attribute) and node.attr in SEARCHES and isinstance(node.value, ast.Name)
        }
        for name, value in vars(module).items():
            several = value if isinstance(value, tuple) else (value,)
            for index, item in enumerate(several):
                pattern = item[0] if isinstance(item, tuple) and item else item
                if isinstance(pattern, re.Pattern):
                    key = f"{module.__name__.removeprefix('sspo_jax.checker')}.{name}" + f"[{index}]" * (
                        item is not value
                    )  # type: ignore[attr-defined]
                    found[key] = pattern, name in searched or item is not value
    return found


PATTERNS = patterns()


class OnOneBlank:
    """A pattern on texts whose runs of white space are one blank each."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        return self.pattern.finditer(" ".join(text.split()))

    def fullmatch(self, text: str) -> object:
        return self.pattern.fullmatch(" ".join(text.split()))

    def match(self, text: str) -> object:
        return self.pattern.match(" ".join(text.split()))


def seconds(run: Callable[[str], object], text: str) -> float:
    times = []
    for _ in range(3):
        started = time.process_time()
        run(text)
        times.append(time.process_time() - started)
        if times[-1] < NOISE_SECONDS:
            break
    return min(times)


ONE_BLANK = ("sentences", "statements", "reading")
"""Modules whose patterns see texts in which each run of white space is one blank (`_tail`, `_trees`)."""


def check(run: Callable[[str], object]) -> None:
    for piece in PIECES:
        for ending in ENDINGS:
            large = seconds(run, piece * (SMALL * FACTOR // len(piece)) + ending)
            if large < NOISE_SECONDS:
                continue
            small = seconds(run, piece * (SMALL // len(piece)) + ending)
            assert large < MOST_GROWTH * small + NOISE_SECONDS, (
                f"{piece!r} ... {ending!r}: {small:.4f} s, {large:.4f} s"
            )


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_pattern_is_linear(name: str):
    pattern, is_searched = PATTERNS[name]
    if name.split(".")[2] in ONE_BLANK:
        pattern = OnOneBlank(pattern)
    if is_searched:
        check(lambda text: sum(1 for _ in pattern.finditer(text)))
    check(pattern.fullmatch)
    check(pattern.match)


def test_there_are_patterns():
    assert len(PATTERNS) > 60


def test_every_pattern_is_compiled_once_and_under_a_name():
    """A pattern written in a call would escape the test above."""
    for module in modules():
        source = ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
        for node in ast.walk(source):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re":
                assert node.attr in ("compile", "Match", "Pattern", "escape", "IGNORECASE", "DOTALL", "ASCII"), (
                    module,
                    node.lineno,
                )


def read(text: str) -> None:
    with contextlib.suppress(ParseError, RecursionError, NeedsWorker):
        readings(text)


@pytest.mark.parametrize("step", [extract, plain_number, fold, tidy, read], ids=lambda step: step.__name__)
def test_a_step_is_linear(step: Callable[[str], object]):
    check(step)
