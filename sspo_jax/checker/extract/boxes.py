"""The boxes of a response (`\\boxed{...}`, `\\fbox{...}`, `\\boxed 7`): the last complete one, or several joined."""

import re

from ..verdict import Extraction, Options

_BRACE = re.compile(r"\\?[{}]|\\\\")
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_UNBRACED = re.compile(r"[-+]?\d[\d.,]*\d|[-+]?\d|[A-Za-z](?=\s?(?:\$|\\\)|$))")
_JOINER = re.compile(
    r"(?:[\s$~]|\\[,;:! ]|,|;|\\q?quad|\\\(|\\\)|\b(?:and|or)\b"
    r"|\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)?\s*,?\s*\}"
    r"|[、，和或])*"
)
_JOINER_WORD = re.compile(r",|;|\\q?quad|and|or|[、，和或]")
_NAMED_VALUES = re.compile(r"[A-Za-z]\s*=[^=,()]+(?:,\s*[A-Za-z]\s*=[^=,()]+)+")  # p = 2, q = 5
_TAKEN_BACK = re.compile(
    r"(?:\bnot\b|\bconfidence\b|\bn't\b)(?:\W|\b(?:is|be|equal|to|score|level)\b){0,12}$", re.IGNORECASE
)
_MOST_SKIPPED = 64
_MOST_JOINED = 64
_LONGEST_JOINED = 2000  # characters from one joined box to the next


def from_boxes(response: str, options: Options) -> tuple[Extraction, int] | None:
    """The last complete box, with those that are joined to it, and where it ends; None where there is no box at all.

    An empty box that only repeats the instruction, a box that is denied and a bare `\\boxed` are passed over.
    """
    if "box" not in response:
        return None
    position, last, skipped = len(response), None, None
    for _ in range(_MOST_SKIPPED):
        position = _last_command(response, 0, position)
        if position < 0:
            break
        found = _read_box(response, position)
        if found is None:
            if not _is_open(response, position):
                continue
            complete = _all_boxes(response[:position])  # it is cut off: find every complete one in a single pass
            if not complete:
                return Extraction(None, "the only box is cut off"), len(response)
            position, found = complete[-1]
        before = response[max(0, position - 40) : position]
        is_suspect = "not" in before or "Not" in before or "n't" in before or "onfidence" in before
        if found[0].strip() and not (is_suspect and _TAKEN_BACK.search(before)):
            last = found
            break
        skipped = skipped or found
    if last is None:
        return (Extraction("", "an empty box"), skipped[1]) if skipped is not None else None
    answers, start = [last[0]], position
    while options.join_boxes and len(answers) < _MOST_JOINED:
        window_start = max(0, start - _LONGEST_JOINED)
        previous = _last_command(response, window_start, start)
        box = _read_box(response, previous, start) if previous >= 0 else None
        if box is None:
            break
        between = response[box[1] : start]
        if len(between) > 60 or not _JOINER.fullmatch(between) or not _JOINER_WORD.search(between) or "\n\n" in between:
            break
        answers.append(box[0])
        start = previous
    if len(answers) == 1:
        return Extraction(answers[0].strip(), "last box"), last[1]
    distinct = list(dict.fromkeys(answer.strip() for answer in reversed(answers)))
    joined = ", ".join(f"({box})" if _NAMED_VALUES.fullmatch(box) else box for box in distinct)
    return Extraction(joined, f"the last {len(answers)} boxes, joined", tuple(distinct)), last[1]


def _last_command(text: str, start: int, end: int) -> int:
    """Where the last box command between two positions begins; -1 where there is none."""
    last = text.rfind("\\boxed", start, end)
    for other in ("\\fbox", "\\framebox"):
        if other in text:  # which is seldom, and searching forwards is faster
            last = max(last, text.rfind(other, start, end))
    return last


def _is_open(text: str, position: int) -> bool:
    """Whether the box command at `position` has an opening brace."""
    command = _BOX_COMMAND.match(text, position)
    return command is not None and text.startswith("{", command.end())


def _read_box(text: str, position: int, limit: int | None = None) -> tuple[str, int] | None:
    """The content of the box at `position` and where it ends; None where it does not close before `limit`."""
    limit = len(text) if limit is None else limit
    command = _BOX_COMMAND.match(text, position)
    if command is None or command.end() >= limit:
        return None
    start = command.end()
    if text[start] != "{":
        bare = _UNBRACED.match(text, start)
        return (bare.group(), bare.end()) if bare else None
    closing = text.find("}", start, limit)
    content = text[start + 1 : closing] if closing >= 0 else "{"
    if "{" not in content and "\\" not in content:
        return content, closing + 1
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
