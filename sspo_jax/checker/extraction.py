"""Which part of a response is its answer.

In order, on the text after the last `</think>`: the last complete box; `#### X`; the last "the final answer is X" or
"Answer: X"; a closing sentence that ends in "is X" or "= X"; a last line that is nothing but an answer. Otherwise there
is none: nothing is guessed from the middle of a text, unless `lenient`. Every step is linear in the response.
"""

import re
from typing import NamedTuple

from .verdict import EXACT, Options


class Extraction(NamedTuple):
    """An answer as written, and the rule that found it; `answer` is None where there is none.

    `parts` are the boxes that were joined to the answer: the same answer may be given in two forms side by side.
    """

    answer: str | None
    rule: str
    parts: tuple[str, ...] = ()


_BRACE = re.compile(r"\\?[{}]|\\\\")
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_UNBRACED = re.compile(r"\\[A-Za-z]+|[-+]?\d[\d.,]*\d|[-+]?\d|[A-Za-z]")
_JOINER = re.compile(
    r"(?:[\s$~]|\\[,;:! ]|,|;|\\q?quad|\\\(|\\\)|\b(?:and|or)\b"
    r"|\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)?\s*,?\s*\}"
    r"|[、，和或])*"
)
_JOINER_WORD = re.compile(r",|;|\\q?quad|and|or|[、，和或]")
_STATED = re.compile(
    r"(?:\bfinal\s+(?:answer|result)(?:\s+(?:to|for)\s[^.\n:]{0,80}?)?\s*(?:is|are|:|：|=)"
    r"|\b(?:correct\s+)?(?:answer|result|choice|option)\s*(?:\([^()\n]{0,40}\)\s*)?(?:is|are)\b(?!\s+n[o']t)"
    r"|\banswers?(?:\s+(?:to|for)\s[^.\n:]{0,80}?)?\s*(?:\*\*)?\s*[:：]"
    r"|答案\s*(?:应该|应)?\s*(?:是|为|：|:|就是)+|(?:^|\n)\s*答\s*[:：])"
    r"[\s:：*_]*(?:therefore|thus|simply|just|exactly|given by|equal to)?[\s:：*_]*",
    re.IGNORECASE,
)
_TAIL_CHARACTERS = 4000  # a stated answer and its sentence fit in this much of the end of a response
_MATH_END = re.compile(r"(?:\$\$|\$|\\\)|\\\])\s*[.。]?\s*$")
_CONCLUSION = re.compile(
    r"(?:\bis|\bare|\bequals|\bequal to|\bbe|\bgives|\bhave|\bget|\bto|\bobtain|\bof|为|是|:|=)\s*[*_]*\s*",
    re.IGNORECASE,
)


def extract(response: str, options: Options = EXACT) -> Extraction:
    """The answer of a response and the rule that found it.

    >>> extract(r"So it is $\\boxed{3}$. But wait, it is $\\boxed{\\frac{1}{2}}$.")
    Extraction(answer='\\\\frac{1}{2}', rule='last box', parts=())
    >>> extract("There are 12 apples in")
    Extraction(answer=None, rule='no answer is stated', parts=())
    """
    thinking_end = response.rfind("</think>")
    if thinking_end >= 0:
        response = response[thinking_end + len("</think>") :]
    elif "<think>" in response and not options.lenient:
        return Extraction(None, "cut off inside <think>")
    boxed = _from_boxes(response, options)
    if boxed is not None:
        return boxed
    marker = response.rfind("####")
    if marker >= 0:
        answer = response[marker + 4 :].strip().split("\n", 1)[0].strip()
        if answer and len(answer) <= _TAIL_CHARACTERS:
            return Extraction(answer, "after ####")
    stated = _from_statement(response)
    if stated is not None:
        return stated
    if options.lenient:
        return _last_formula_or_number(response[-_TAIL_CHARACTERS:])
    return Extraction(None, "no answer is stated")


def _from_boxes(response: str, options: Options) -> Extraction | None:
    position = max(response.rfind("\\boxed"), response.rfind("\\fbox"), response.rfind("\\framebox"))
    if position < 0:
        return None
    last = _read_box(response, position)
    if last is None:  # the last box is cut off: find every complete one in a single pass
        complete = _all_boxes(response)
        if not complete:
            return Extraction(None, "the only box is cut off")
        position, last = complete[-1]
    answers, start = [last[0]], position
    while options.join_boxes and len(answers) < 64:
        window_start = max(0, start - 2000)
        previous = max(response.rfind("\\boxed", window_start, start), response.rfind("\\fbox", window_start, start))
        box = _read_box(response, previous, start) if previous >= 0 else None
        if box is None:
            break
        between = response[box[1] : start]
        if len(between) > 60 or not _JOINER.fullmatch(between) or not _JOINER_WORD.search(between) or "\n\n" in between:
            break
        answers.append(box[0])
        start = previous
    if len(answers) == 1:
        return Extraction(answers[0].strip(), "last box")
    distinct = list(dict.fromkeys(answer.strip() for answer in reversed(answers)))
    return Extraction(", ".join(distinct), f"the last {len(answers)} boxes, joined", tuple(distinct))


def _read_box(text: str, position: int, limit: int | None = None) -> tuple[str, int] | None:
    """The content of the box at `position` and where it ends; None where it does not close before `limit`."""
    limit = len(text) if limit is None else limit
    command = _BOX_COMMAND.match(text, position)
    if command is None:
        return None
    start = command.end()
    if start >= limit:
        return None
    if text[start] != "{":
        bare = _UNBRACED.match(text, start)
        return (bare.group(), bare.end()) if bare else None
    depth = 0
    for brace in _BRACE.finditer(text, start, limit):
        kind = brace.group()
        if kind == "{":
            depth += 1
        elif kind == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : brace.start()], brace.end()
    return None


_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?=[{])|\\?[{}]|\\\\")


def _all_boxes(text: str) -> list[tuple[int, tuple[str, int]]]:
    """Every complete braced box as (position, (content, end)), in one pass over the text."""
    boxes, stack, pending = [], [], -1
    for token in _BOX_OR_BRACE.finditer(text):
        kind = token.group()
        if kind == "{":
            stack.append((pending, token.end()))
        elif kind == "}" and stack:
            position, start = stack.pop()
            if position >= 0:
                boxes.append((position, (text[start : token.start()], token.end())))
        pending = token.start() if kind.startswith(("\\b", "\\f")) else -1
    return sorted(boxes, key=lambda box: box[0])


def _from_statement(response: str) -> Extraction | None:
    tail = response[-_TAIL_CHARACTERS:].rstrip()
    statements = list(_STATED.finditer(tail))
    final = [s for s in statements if "final" in s.group().lower()]
    for statement in [*reversed(final or statements)]:
        answer = _clip(tail[statement.end() :])
        if answer and (is_bare_answer(answer) or (len(answer) < 200 and _SAYS_ANSWER.search(statement.group()))):
            if _is_remark(answer):
                continue
            return Extraction(answer, "stated answer")
        if not answer and statement is statements[-1]:
            return Extraction(None, "cut off before the answer")
    return _from_last_sentence(tail)


_SAYS_ANSWER = re.compile(r"answer|final|答", re.IGNORECASE)
_REMARK = re.compile(
    r"(?:not|clear|clearly|trivial|obvious|obtained|that|correct|incorrect|wrong|reasonable|as follows)\b",
    re.IGNORECASE,
)


def _is_remark(answer: str) -> bool:
    """Whether what follows "the answer is" says something about the answer, as in "the answer is clear"."""
    return _REMARK.match(answer) is not None or (len(answer.split()) > 12 and "$" not in answer)


_CLAUSE_END = re.compile(
    r"\s+(?:because|since|as|which|where|so|but|however|and\s+(?:the|we|it|so|this))\b", re.IGNORECASE
)


def _clip(text: str) -> str:
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
    return answer.strip().strip("*").strip()


_STATES = re.compile(r"(?:\b(?:is|are|equals|be|namely)|equal to|为|是|:)[\s*_$({\[\\]*$", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|finally|consequently|conclude|answer)\b|所以|因此|故", re.IGNORECASE
)


def _from_last_sentence(tail: str) -> Extraction | None:
    lines = [line for line in tail.split("\n") if line.strip()]
    if not lines:
        return None
    last = lines[-1].strip().strip("*").strip()
    if len(lines) > 1 and last in ("$$", r"\]", "\\end{align*}", "\\end{aligned}"):
        last = " ".join(lines[-4:])
    if is_bare_answer(last):
        return Extraction(last, "last line")
    math = _MATH_END.search(last)
    ended = last.endswith((".", "。", "!"))
    if not (math or ended):
        return None  # cut off in the middle of a sentence
    sentence = re.split(r"(?<=[.。!?])\s+(?=[A-Z\u4e00-\u9fff$\\])", last)[-1].rstrip(".。! ")
    if math:
        formula = _last_formula(sentence)
        before = sentence[: sentence.rfind(formula)] if formula is not None else ""
        if formula is not None and (_STATES.search(before) or ("=" in formula and _CONCLUDES.search(before))):
            return Extraction(formula if _STATES.search(before) else _right_hand_side(formula), "formula at the end")
    pieces = list(_CONCLUSION.finditer(sentence))
    for piece in reversed(pieces):
        answer = sentence[piece.end() :].strip()
        if is_bare_answer(answer):
            return Extraction(answer, "end of the last sentence")
    return None


_BARE = re.compile(
    r"[-+]?(?:\\?\$)?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?\s*(?:\\?%|°)?(?:\s+[A-Za-z]+){0,2}"
    r"|\$[^$]{1,300}\$(?:\s*[A-Za-z]+){0,2}|\\\([^\n]{1,300}?\\\)|\\\[[^\n]{1,300}?\\\]|\(?[A-J]\)?"
    r"|\\[a-z]+frac\{[^\n]{1,80}\}|[-+\d./^*x√π()\s]{1,40}"
)


def is_bare_answer(line: str) -> bool:
    """Whether a line is nothing but a number with at most two words of unit, one formula, or a choice letter."""
    line = line.strip().rstrip(".。").strip("* ")
    return bool(line) and len(line) < 400 and any(c.isalnum() for c in line) and bool(_BARE.fullmatch(line))


_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def _last_formula(text: str) -> str | None:
    formulas = _FORMULA.findall(text)
    return next(group for group in formulas[-1] if group) if formulas else None


def _right_hand_side(formula: str) -> str:
    """What a chain of equalities arrives at: the text after its last top-level `=`, else the formula."""
    depth, start = 0, 0
    for token in re.finditer(r"\\[{}]|[{}()=]", formula):
        kind = token.group()
        depth += (kind in "{(") - (kind in "})") if len(kind) == 1 else 0
        if kind == "=" and depth == 0:
            start = token.end()
    return formula[start:].strip(" &\n") or formula


_ANY_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:/\d+)?")


def _last_formula_or_number(tail: str) -> Extraction:
    formula = _last_formula(tail)
    if formula is not None:
        return Extraction(_right_hand_side(formula), "lenient: last formula")
    numbers = _ANY_NUMBER.findall(tail)
    if numbers:
        return Extraction(numbers[-1], "lenient: last number")
    return Extraction(None, "no answer is stated")
