"""The boxes of a response (`\\boxed{...}`, `\\fbox{...}`, `\\boxed 7`): the last complete one, or several joined."""

import re

from ..verdict import Extraction, Options

_BRACE = re.compile(r"\\?[{}]|\\\\")
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_UNBRACED = re.compile(r"\\[A-Za-z]+|[-+]?\d[\d.,]*\d|[-+]?\d|[A-Za-z]")
_JOINER = re.compile(
    r"(?:[\s$~]|\\[,;:! ]|,|;|\\q?quad|\\\(|\\\)|\b(?:and|or)\b"
    r"|\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)?\s*,?\s*\}"
    r"|[、，和或])*"
)
_JOINER_WORD = re.compile(r",|;|\\q?quad|and|or|[、，和或]")


def from_boxes(response: str, options: Options) -> Extraction | None:
    """The last complete box, with those that are joined to it; None where there is no box at all."""
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
