"""When answers in letters, words, times and dates are the same."""

from ..expression import Kind, Node, name_set
from .judge import Judge

_NOTHING = (
    "no solution", "no solutions", "none", "empty set", "no real solution", "no real solutions", "does not exist",
    "无解", "empty",
)  # fmt: skip
_ABBREVIATIONS = {"dne": "doesnotexist"}


def same_choice(answer: Node, gold: Node, judge: Judge) -> str | None:
    letters = [str(node.value).upper() if node.kind in (Kind.CHOICE, Kind.SYMBOL) else None for node in (answer, gold)]
    if answer.kind == gold.kind == Kind.CHOICE and letters[0] != letters[1]:
        return None
    if letters[0] == letters[1]:
        return "the same choice letter"
    if Kind.LIST in (answer.kind, gold.kind):
        return None
    contents = [node.args[0] if node.kind == Kind.CHOICE and node.args else node for node in (answer, gold)]
    if any(node.kind == Kind.CHOICE for node in contents) or letters[0] is not None is not letters[1]:
        return None
    rule = judge.same(contents[0], contents[1])
    return rule and f"what the choice letter stands for is {rule}"


def same_letter(answer: Node, gold: Node) -> bool:
    """Whether a small letter answers a gold that is a capital one, as with choices: b for B."""
    if answer.kind is not Kind.SYMBOL or gold.kind is not Kind.SYMBOL or str(gold.value) not in _CHOICES:
        return False
    return str(answer.value).upper() == gold.value


_CHOICES = tuple("ABCDE")


def same_words(answer: Node, gold: Node) -> str | None:
    if answer.kind == gold.kind == Kind.TEXT:
        alike = answer.value == gold.value or _plural(answer.value) == _plural(gold.value)
        return "the same words" if alike or (answer.value in _NOTHING and gold.value in _NOTHING) else None
    if any(_reasoned(*pair) for pair in ((answer, gold), (gold, answer))):
        return "yes or no with a reason"
    if answer.kind == gold.kind == Kind.TIME:
        (seconds, has_half), (gold_seconds, gold_has_half) = answer.value, gold.value
        if seconds == gold_seconds:
            return "the same time"
        half_day = 12 * 3600
        loose = not (has_half and gold_has_half) and seconds % half_day == gold_seconds % half_day
        afternoon = max(seconds, gold_seconds) >= 13 * 3600 and not (has_half or gold_has_half)
        twelve_hour = all(value < 13 * 3600 or half for value, half in (answer.value, gold.value))
        return "the same time, am or pm missing on one side" if loose and twelve_hour and not afternoon else None
    if answer.kind == gold.kind == Kind.DATE:
        (year, *day), (gold_year, *gold_day) = answer.value, gold.value
        return "the same date" if day == gold_day and (year == gold_year or None in (year, gold_year)) else None
    texts = [node.value if node.kind == Kind.TEXT else None for node in (answer, gold)]
    if Kind.EMPTYSET in (answer.kind, gold.kind) and (texts[0] in _NOTHING or texts[1] in _NOTHING):
        return "both say that there is nothing"
    names = [_ABBREVIATIONS.get(name, name) for name in map(_as_name, (answer, gold)) if name is not None]
    if len(names) < 2:
        return None
    return "the same words" if names[0] == names[1] else None


def _reasoned(node: Node, other: Node) -> bool:
    """Whether one text is "yes" or "no" and the other begins with it and goes on without a denial."""
    if node.kind is not Kind.LIST or node.value != "," or any(part.kind is not Kind.TEXT for part in node.args):
        return False
    first, *rest = (str(part.value) for part in node.args)
    return (
        first == other.value and first in _VERDICTS and not _DENIALS & {word for part in rest for word in part.split()}
    )


_VERDICTS = ("yes", "no", "true", "false")
_DENIALS = name_set("yes no not but true false or maybe")


def _plural(text: object) -> str:
    return str(text).removesuffix("s")


def _as_name(node: Node) -> str | None:
    if node.kind == Kind.TEXT:
        return str(node.value).replace(" ", "")
    if node.kind in (Kind.SYMBOL, Kind.CONSTANT):
        return str(node.value).lower()
    if node.kind == Kind.CHOICE and not node.args:
        return str(node.value).lower()
    if node.kind == Kind.MUL and all(arg.kind in (Kind.SYMBOL, Kind.CONSTANT) for arg in node.args):
        return "".join(str(arg.value) for arg in node.args).lower()
    return None
