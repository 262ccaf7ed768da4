"""Answers in words, times of day and dates, read into nodes that compare by meaning and not by spelling."""

import re
from fractions import Fraction

from ..expression import Kind, Node, ParseError, names, number

_CLOCK = re.compile(r"(\d{1,2})\s*:\s*([0-5]\d)(?:\s*:\s*([0-5]\d))?\s*([ap])?\.?\s*(m)?\.?", re.IGNORECASE | re.ASCII)
_CLOCK_HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?\s*m\.?", re.IGNORECASE)
_MONTHS = names("january february march april may june july august september october november december")
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]}|\\.)?" + ("|sept\\.?" if month[0] == "s" else "") for month in _MONTHS)
_DATE = re.compile(
    rf"(?:(?P<m1>{_MONTH})\s+(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?(?:\s*,?\s+(?P<y1>\d{{4}}))?"
    rf"|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<m2>{_MONTH})(?:\s*,?\s+(?P<y2>\d{{4}}))?"
    r"|(?P<y3>\d{4})[-/](?P<m3>\d{1,2})[-/](?P<d3>\d{1,2})|(?P<y4>\d{4})年(?P<m4>\d{1,2})月(?P<d4>\d{1,2})[日号]"
    r"|(?P<m5>\d{1,2})月(?P<d5>\d{1,2})[日号])",
    re.IGNORECASE,
)
_LONGEST_DATE = 80
_SPACE = re.compile(r"\\[!,;: ]|\\q?quad")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|mathrm|operatorname|textnormal|mathbf|emph)\b")
_NO_LETTERS = re.compile(r"[\s{}$~\"`]+")
_LONE_LETTER = re.compile(r"(?<!\w)[(]([a-z])[)]")
_PUNCTUATION = re.compile(r"[.,;:!?](?![^.,;:!?\s])")
_SUBJECT = re.compile(r"^(?:it|[b-z]) is (?=[a-z]{3})")
_ARTICLE = re.compile(r"\b(?:the|a|an) (?=\w{2})")
_WRAPPED_TEXT = re.compile(r"\\(?:text|mbox|textbf|textrm|mathrm|textit)\s*\{([^{}]*)\}")


def clock_or_date(text: str) -> Node | None:
    """A time of day or a date, None where the text is neither."""
    if len(text) > _LONGEST_DATE:
        return None
    plain = _SPACE.sub(" ", _WRAPPED_TEXT.sub(r"\1", text)).replace("\\", " ").replace("~", " ").strip(" .")
    plain = " ".join(plain.split())
    plain = {"noon": "12:00 pm", "midnight": "12:00 am"}.get(plain.removeprefix("12 ").removeprefix("12:00 "), plain)
    if ":" in plain and (match := _CLOCK.fullmatch(plain)) and int(match[1]) < 24 and bool(match[4]) >= bool(match[5]):
        hour = int(match[1]) % 12 + (12 if (match[4] or "").lower() == "p" else 0) if match[4] else int(match[1])
        seconds = int(match[3] or 0)
        return Node(Kind.TIME, (), (hour * 3600 + int(match[2]) * 60 + seconds, bool(match[4])))
    if match := _CLOCK_HOUR.fullmatch(plain):
        if 1 <= int(match[1]) <= 12:
            return Node(Kind.TIME, (), ((int(match[1]) % 12 + (12 if match[2].lower() == "p" else 0)) * 3600, True))
        return None
    match = _DATE.fullmatch(plain)
    if match is None:
        return None
    found = {key[0]: value for key, value in match.groupdict().items() if value}
    month = found["m"].lower()[:3]
    month_number = int(month) if month.isdigit() else [name[:3] for name in _MONTHS].index(month) + 1
    return Node(Kind.DATE, (), (int(found["y"]) if "y" in found else None, month_number, int(found["d"])))


_SMALL = names(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL)}
_TENS = dict(zip(names("twenty thirty forty fifty sixty seventy eighty ninety"), range(20, 100, 10), strict=True))
_GROUPS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_ALL_REALS = (
    "all real numbers",
    "all reals",
    "real numbers",
    "any real number",
    "set of all real numbers",
    "all real x",
)
_DAYS = names("monday tuesday wednesday thursday friday saturday sunday")


def spoken_number(text: str) -> Fraction | None:
    """`four`, `twenty-one`, `one hundred and five`, `two thirds`; None for other words."""
    *spoken, last = text.replace("-", " ").split() or [""]
    part = _PARTS.get(last) or _PARTS.get(last.removesuffix("s"))
    if part is not None:
        whole = _spoken_integer(spoken)
        return None if whole is None else Fraction(whole, part)
    whole = _spoken_integer([*spoken, last])
    return None if whole is None else Fraction(whole)


def _spoken_integer(spoken: list[str]) -> int | None:
    total, group = 0, None
    for word in spoken:
        small = _NUMBER_WORDS.get(word, _TENS.get(word))
        if small is not None:
            tens = group is not None and group % 100 in _TENS.values() and 0 < small < 10
            if group is not None and not tens and (group == 0 or group % 100):
                return None
            group = small + (group or 0)
        elif word == "hundred":
            if group is not None and not 0 < group < 100:
                return None
            group = 100 * (group or 1)
        elif word in _GROUPS:
            total, group = total + (1 if group is None else group) * _GROUPS[word], None
        elif word != "and" or (group is None and not total):
            return None
    return None if group is None and not total else total + (group or 0)


def words(text: str, *, whole: bool = True) -> Node:
    """An answer in words: case, punctuation, articles and LaTeX's text commands do not count.

    Where it is the `whole` answer, `four` is the number and "all real numbers" the set.
    """
    plain = _SPACE.sub(" ", _TEXT_COMMAND.sub(" ", text))
    plain = _NO_LETTERS.sub(" ", plain).lower()
    plain = _LONE_LETTER.sub(r"\1", plain)
    plain = _PUNCTUATION.sub(" ", plain)
    plain = _ARTICLE.sub("", " ".join(plain.split()))
    plain = " ".join(plain.split()).strip(" '.")
    if plain[:1] + plain[-1:] == "()" and plain.count("(") == 1:
        plain = plain[1:-1]
    if not plain:
        raise ParseError("the answer holds no words")
    if not whole:
        return Node(Kind.TEXT, (), plain)
    value = spoken_number(plain)
    if value is not None:
        return number(value)
    if plain in _ALL_REALS:
        return Node(Kind.REALS)
    if plain in ("infinity", "positive infinity", "negative infinity", "minus infinity"):
        infinity = Node(Kind.CONSTANT, (), "inf")
        return Node(Kind.NEG, (infinity,)) if plain[0] in "nm" else infinity
    plain = "does not exist" if plain == "dne" else plain
    plain = _SUBJECT.sub("", plain.removeprefix("on "))
    plain = next((day for day in _DAYS if plain == day[:3] or plain == day[:4]), plain)
    return Node(Kind.TEXT, (), plain)
