"""Statements of an answer: "the final answer is X", "Answer: X", "答案是 X"; where the X ends."""

import re

from ..verdict import Extraction
from .sentences import is_bare_answer, is_hedged

TAIL_CHARACTERS = 4000  # a stated answer and its sentence fit in this much of the end of a response
_LABELS = r"(?:result|ans|a|réponse|antwort|respuesta|risposta|resposta|ответ|解答|答え|答|정답|답)"
_STATED = re.compile(
    r"(?:\bfinal\s+(?:answer|result)(?:\s+(?:to|for)\s[^.\n:]{0,80}?)?\s*(?:is|are|:|：|=)"
    r"|\b(?:correct\s+)?(?:answer|result|choice|option)\s*(?:\([^()\n]{0,40}\)\s*)?(?:is|are)\b(?!\s+n[o']t)"
    r"|\banswer\s+(?:to|for)\s[^.\n:]{0,80}?\s(?:is|are)\b(?!\s+n[o']t)"
    r"|\banswers?(?:\s+(?:to|for)\s[^.\n:]{0,80}?)?\s*(?:\*\*)?\s*[:：=]"
    r"|(?:^|\n)[ #*]*(?:the\s+)?(?:final\s+)?(?:answer|result)[ *]*(?:\n|(?=\$|\\\[|\\\())"
    rf"|(?:^|\n)[ #*]*{_LABELS}[ *]*[:：]|(?:^|\n)ans\.(?=\s)"
    r"|\b(?:réponse|antwort|respuesta|risposta|resposta|ответ)\s*[:：]"
    r"|\b(?:la\s+(?:réponse|respuesta|risposta)|die\s+antwort|a\s+resposta)(?:\s+fin\w{0,5})?\s+(?:est|es|è|ist|lautet|é)\b"
    r"|答案\s*(?:应该|应)?\s*(?:是|为|：|:|就是)+|答えは|(?:^|\n)\s*答\s*[:：]|(?:故|因此|所以|应|故应)选)"
    r"[\s:：*_]*(?:(?:therefore|thus|then|hence|simply|just|exactly|indeed|given by|equal to|donc|alors|also|entonces"
    r"|quindi)\b)?[\s:：*_]*",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"(?:^|\n)[ #*]*(?:the\s+)?(?:final\s+)?answer[ *]*[:：][ *]*([^\n]{1,200})", re.IGNORECASE)
_LAST_VALUE = re.compile(
    r"(?:^|\n)(?:(?:so|thus|hence|therefore),?\s+)?the\s+(?:final\s+|required\s+|desired\s+)?value\s+is\s+([^\n]{1,80})$",
    re.IGNORECASE,
)
_SAYS_ANSWER = re.compile(
    r"answer|final|答|réponse|antwort|respuesta|risposta|resposta|ответ|ans\b|result\W*:", re.IGNORECASE
)
_DESCRIPTION = re.compile(r"(?:the|either|one|both|that|what|obtained)\b", re.IGNORECASE)
_ASIDE = re.compile(r"\s\((?!mod\b)[a-z]{2,}[^()]*\)$")
_REMARK = re.compile(
    r"(?:not|clear|clearly|trivial|obvious|obtained|that|correct|incorrect|wrong|reasonable|as follows)\b",
    re.IGNORECASE,
)


def from_statement(tail: str) -> Extraction | None:
    """What the last statement of an answer says; without an answer where the text ends before it."""
    statements = list(_STATED.finditer(tail))
    final = [s for s in statements if "final" in s.group().lower()]
    for statement in [*reversed((final or statements)[-_MOST_TRIED:])]:
        answer = _LEAD.sub("", clip(tail[statement.end() :]))
        if answer and (is_bare_answer(answer) or (len(answer) < 200 and _SAYS_ANSWER.search(statement.group()))):
            start = statement.start()
            following = tail[tail.find(answer, statement.end()) + len(answer) :]
            is_asked = following.lstrip("$* ").startswith("?")
            if is_asked or is_hedged(tail[max(0, start - 200) : start]) or _is_remark(answer, following):
                continue
            return Extraction(answer, "stated answer")
        if not answer and statement is statements[-1]:
            return Extraction(None, "cut off before the answer")
    last_value = _LAST_VALUE.search(tail[-160:]) if not statements else None
    return Extraction(last_value[1].rstrip(". "), "the value at the end") if last_value is not None else None


_MOST_TRIED = 16
_LEAD = re.compile(
    r"^the\s(?:(?:final\s)?(?:value|answer|result|solution)\sis\s+"
    r"|(?!not|if)[a-z]{3,20}(?:\s(?!not|if|or)[a-z]{2,20}){0,5}\sis\s+(?=[-+$\\\d]))",
    re.IGNORECASE,
)


def from_last_label(text: str) -> Extraction | None:
    """The answer of a line "Answer: X" that comes after a box."""
    labels = list(_LABELLED.finditer(text))
    answer = clip(labels[-1][1]) if labels else ""
    return Extraction(answer, "stated after the box") if is_bare_answer(answer) else None


def _is_remark(answer: str, following: str) -> bool:
    """Whether what follows "the answer is" says something about the answer, as in "the answer is clear"."""
    if _REMARK.match(answer) is not None or (len(answer.split()) > 12 and "$" not in answer):
        return True
    described = _DESCRIPTION.match(answer) is not None and len(answer.split()) > 3
    return described and bool(following.strip(" .\n"))  # what it is comes later


_CLAUSE_END = re.compile(
    r"\s(?:because|since|as|which|where|so|but|however|and\s+(?:the|we|it|so|this))\b"
    r"|,\s*(?:not|in\s+total|in\s+all|altogether)\b|;\s+(?=[A-Za-z]{2})|\s(?:-|–|—|--)\s(?=[A-Za-z]{2})",
    re.IGNORECASE,
)
_MARK = re.compile(r"\\\\|\\[()\[\]]|\\\$|\$\$?|[{}]|\n\s*\n|\n|[.。!?](?=[\s*\"')]|$)")
_IN_DOLLARS = re.compile(r"\$[^$]*\$")


def clip(text: str) -> str:
    """The answer at the start of `text`: a formula with its unit, else what comes before the sentence's end."""
    text = text.lstrip()[:2000]
    depth, end = 0, len(text)
    in_math = False
    for token in _MARK.finditer(text):
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
    clause = _CLAUSE_END.search(_IN_DOLLARS.sub(lambda m: "x" * len(m.group()), answer))
    if clause and clause.start() > 0:
        answer = answer[: clause.start()].rstrip(",")
    return _ASIDE.sub("", answer.strip()).strip("*").strip()
