"""When answers in letters, words, times and dates are the same."""

from .expression import Node
from .judge import Judge

_NOTHING = frozenset(
    [
        "no solution",
        "no solutions",
        "none",
        "empty set",
        "no real solution",
        "no real solutions",
        "does not exist",
        "无解",
        "empty",
    ]
)
_ABBREVIATIONS = {"dne": "doesnotexist"}


def same_choice(answer: Node, gold: Node, judge: Judge) -> str | None:
    letters = [str(node.value).upper() if node.kind in ("choice", "symbol") else None for node in (answer, gold)]
    if answer.kind == gold.kind == "choice" and letters[0] != letters[1]:
        return None
    if letters[0] == letters[1]:
        return "the same choice letter"
    if "list" in (answer.kind, gold.kind):
        return None
    contents = [node.args[0] if node.kind == "choice" and node.args else node for node in (answer, gold)]
    if any(node.kind == "choice" for node in contents) or letters[0] is not None is not letters[1]:
        return None
    rule = judge.same(contents[0], contents[1])
    return rule and f"what the choice letter stands for is {rule}"


def same_words(answer: Node, gold: Node) -> str | None:
    if answer.kind == gold.kind == "text":
        return "the same words" if answer.value == gold.value or _plural(answer.value) == _plural(gold.value) else None
    if answer.kind == gold.kind == "time":
        (seconds, has_half), (gold_seconds, gold_has_half) = answer.value, gold.value  # type: ignore[misc]
        if seconds == gold_seconds:
            return "the same time"
        half_day = 12 * 3600
        loose = not (has_half and gold_has_half) and seconds % half_day == gold_seconds % half_day
        afternoon = max(seconds, gold_seconds) >= 13 * 3600 and not (has_half or gold_has_half)
        twelve_hour = all(value < 13 * 3600 or half for value, half in (answer.value, gold.value))  # type: ignore[misc]
        return "the same time, am or pm missing on one side" if loose and twelve_hour and not afternoon else None
    if answer.kind == gold.kind == "date":
        (year, *day), (gold_year, *gold_day) = answer.value, gold.value  # type: ignore[misc]
        return "the same date" if day == gold_day and (year == gold_year or None in (year, gold_year)) else None
    texts = [node.value if node.kind == "text" else None for node in (answer, gold)]
    if "emptyset" in (answer.kind, gold.kind) and (texts[0] in _NOTHING or texts[1] in _NOTHING):
        return "both say that there is nothing"
    names = [_ABBREVIATIONS.get(name, name) for name in map(_as_name, (answer, gold)) if name is not None]
    if len(names) < 2:
        return None
    return "the same words" if names[0] == names[1] else None


def _plural(text: object) -> str:
    return str(text).removesuffix("s")


def _as_name(node: Node) -> str | None:
    if node.kind == "text":
        return str(node.value).replace(" ", "")
    if node.kind in ("symbol", "constant"):
        return str(node.value).lower()
    if node.kind == "choice" and not node.args:
        return str(node.value).lower()
    if node.kind == "mul" and all(arg.kind in ("symbol", "constant") for arg in node.args):
        return "".join(str(arg.value) for arg in node.args).lower()
    return None
