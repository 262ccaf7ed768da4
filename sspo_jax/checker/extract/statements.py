"""Statements of an answer: "the final answer is X", "Answer: X", "答案是 X"; where the X ends."""

import re

from ..verdict import Extraction
from .sentences import is_bare_answer

TAIL_CHARACTERS = 4000  # a stated answer and its sentence fit in this much of the end of a response
_STATED = re.compile(
    r"(?:\bfinal\s+(?:answer|result)(?:\s+(?:to|for)\s[^.\n:]{0,80}?)?\s*(?:is|are|:|：|=)"
    r"|\b(?:correct\s+)?(?:answer|result|choice|option)\s*(?:\([^()\n]{0,40}\)\s*)?(?:is|are)\b(?!\s+n[o']t)"
    r"|\banswers?(?:\s+(?:to|for)\s[^.\n:]{0,80}?)?\s*(?:\*\*)?\s*[:：]"
    r"|(?:^|\n)[\s#*]*(?:the\s+)?(?:final\s+)?(?:answer|result)[\s*]*\n"
    r"|答案\s*(?:应该|应)?\s*(?:是|为|：|:|就是)+|(?:^|\n)\s*答\s*[:：]|(?:故|因此|所以|应|故应)选)"
    r"[\s:：*_]*(?:(?:therefore|thus|then|hence|simply|just|exactly|indeed|given by|equal to)\b)?[\s:：*_]*",
    re.IGNORECASE,
)


def from_statement(tail: str) -> Extraction | None:
    """What the last statement of an answer says; without an answer where the text ends before it."""
    statements = list(_STATED.finditer(tail))
    final = [s for s in statements if "final" in s.group().lower()]
    for statement in [*reversed(final or statements)]:
        answer = clip(tail[statement.end() :])
        if answer and (is_bare_answer(answer) or (len(answer) < 200 and _SAYS_ANSWER.search(statement.group()))):
            if _is_remark(answer, tail[tail.find(answer, statement.end()) + len(answer) :]):
                continue
            return Extraction(answer, "stated answer")
        if not answer and statement is statements[-1]:
            return Extraction(None, "cut off before the answer")
    return None


_SAYS_ANSWER = re.compile(r"answer|final|答", re.IGNORECASE)
_DESCRIPTION = re.compile(r"(?:the|either|one|both|that|what|obtained)\b", re.IGNORECASE)
_ASIDE = re.compile(r"\s+\((?!mod\b)[a-z]{2,}[^()]*\)$")
_REMARK = re.compile(
    r"(?:not|clear|clearly|trivial|obvious|obtained|that|correct|incorrect|wrong|reasonable|as follows)\b",
    re.IGNORECASE,
)


def _is_remark(answer: str, following: str) -> bool:
    """Whether what follows "the answer is" says something about the answer, as in "the answer is clear"."""
    if _REMARK.match(answer) is not None or (len(answer.split()) > 12 and "$" not in answer):
        return True
    described = _DESCRIPTION.match(answer) is not None and len(answer.split()) > 3
    return described and bool(following.strip(" .\n"))  # what it is comes later


_CLAUSE_END = re.compile(
    r"\s+(?:because|since|as|which|where|so|but|however|and\s+(?:the|we|it|so|this))\b", re.IGNORECASE
)


def clip(text: str) -> str:
    """The answer at the start of `text`: a formula with its unit, else what comes before the sentence's end."""
    text = text.lstrip()
    depth, end = 0, len(text)
    in_math = False
    for token in re.finditer(r"\\\\|\\[()\[\]]|\\\$|\$\$?|[{}]|\n\s*\n|\n|[.。!?](?=[\s*\"')]|$)", text[:2000]):
        kind = token.group()
        if kind in ("$", "$$"):
            in_math = not in_math
        elif kind in (r"\(", r"\["):
            in_math = True
        elif kind in (r"\)", r"\]"):
            in_math = False
        elif kind == "{":
            depth += 1
        elif kind == "}":
            depth -= 1
        elif kind.startswith("\n") or kind in ".。!?":
            if (in_math or depth > 0) and not kind.startswith("\n\n"):
                continue
            if kind[0] == "\n" and not text[: token.start()].strip():
                continue
            end = token.start()
            break
    answer = text[:end]
    outside = re.sub(r"\$[^$]*\$", lambda m: "x" * len(m.group()), answer)
    clause = _CLAUSE_END.search(outside)
    if clause and clause.start() > 0:
        answer = answer[: clause.start()]
    return _ASIDE.sub("", answer.strip()).strip("*").strip()
