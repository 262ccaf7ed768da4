"""Every regular expression of the checker, and every step that a whole response goes through, is linear in its text."""

import ast
import contextlib
import pathlib
import re
import time
from collections.abc import Callable, Iterator

import pytest

from .plain import NAME, modules, plain

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


def patterns() -> dict[str, tuple[re.Pattern[str], bool]]:
    """Every compiled pattern of the checker by name, and whether it is searched for or only matched at one place."""
    found: dict[str, tuple[re.Pattern[str], bool]] = {}
    for module in modules():
        source = ast.parse(pathlib.Path(module.__file__ or "").read_text(encoding="utf-8"))
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
                    key = f"{module.__name__.removeprefix(NAME)}.{name}" + f"[{index}]" * (item is not value)
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
    started = time.process_time()
    run(text)
    return time.process_time() - started


ONE_BLANK = ("sentences", "statements", "reading")
"""Modules whose patterns see texts in which each run of white space is one blank (`_tail`, `_trees`)."""


def is_linear(run: Callable[[str], object], piece: str, ending: str) -> bool:
    large = seconds(run, piece * (SMALL * FACTOR // len(piece)) + ending)
    if large < NOISE_SECONDS:
        return True
    return large < MOST_GROWTH * seconds(run, piece * (SMALL // len(piece)) + ending) + NOISE_SECONDS


def check(run: Callable[[str], object]) -> None:
    for piece in PIECES:
        for ending in ENDINGS:  # missed once may be the other jobs of the machine, missed each time is the pattern
            assert any(is_linear(run, piece, ending) for _ in range(3)), f"{piece!r} ... {ending!r}"


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
        source = ast.parse(pathlib.Path(module.__file__ or "").read_text(encoding="utf-8"))
        for node in ast.walk(source):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re":
                assert node.attr in ("compile", "Match", "Pattern", "escape", "IGNORECASE", "DOTALL", "ASCII"), (
                    module,
                    node.lineno,
                )


def read(text: str) -> None:
    reading, limits = plain("parse.reading"), plain("limits")
    with contextlib.suppress(reading.ParseError, RecursionError, limits.NeedsWorker):
        reading.readings(text)


STEPS = {
    "extract": plain("extract.response").extract,
    "plain_number": plain("parse.fastpath").plain_number,
    "fold": plain("parse.normalise").fold,
    "tidy": plain("parse.normalise").tidy,
    "read": read,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_linear(step: str):
    check(STEPS[step])
