"""The answer that a closing sentence states without calling it the answer: "Therefore, there are 12 ways."

A response that is cut off ends somewhere else, so a sentence counts only when it has ended. In order: a last line that
is nothing but an answer; "X is the only solution"; the last value in bold; formulas at the end, one or a list, after
"is" or, with an equality, after "therefore"; what there is or someone has; a number at the end after "is", "gives".
"""

import re
from typing import NamedTuple

from ..verdict import Extraction

_SPACED = r"(?:\s+[A-Za-z]+){0,2}"
_BARE = re.compile(
    rf"(?:[A-Za-z]\w?\s*=\s*)?[-+]?(?:\\?\$)?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?\s?(?:\\?%|°)?{_SPACED}"
    r"|\$(?:[^$\\]|\\.){1,300}\$(?:\s*(?!(?:is|are|was|were|has|have|can|does|divides)\b)[A-Za-z]+){0,2}|\\\([^\n]{1,300}?\\\)"
    r"|\\\[[^\n]{1,300}?\\\]|\(?[A-J]\)?|\\[a-z]+frac\{[^\n]{1,80}\}|[-+\d./^*x√π()\s]{1,40}"
    r"|[-+]?\d+(?:[./]\d+)?(?:\s*,\s*[-+]?\d+(?:[./]\d+)?){0,30}\s*,?\s+(?:and|or)\s+[-+]?\d+(?:[./]\d+)?"
)
_LONGEST_SENTENCE = 1500
_MOST_TRIED = 8
_DISPLAY_ENDS = (("$$", "$$"), (r"\]", r"\["))
_ENVIRONMENT = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|gather\*?|split|array|equation\*?)\}(?:\{\w+\})?"
)
_SENTENCE_END = re.compile(r"(?<=[.。!?])\s+(?=[A-Z\u4e00-\u9fff$\\*])")
_IMAGE = re.compile(r"(?:\s?(?:Figure \d+\s)?<img_\d+>){1,9}(?:\s?Figure \d+)?\s?$")

_STATES = re.compile(
    r"(?:\b(?:is|are|equals|be|namely)"
    r"|\b(?:is|are)\s+(?:just|then|therefore|thus|exactly|simply|at(?:\s+the\s+point)?)|equal to"
    r"|\b(?:unique|only)\s+(?:solution|value|possibility|answer)|为|是|:)"
    r"[\s*_$({\[\\]*$",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|finally|consequently|conclude|answer|whence|follows|altogether|in total|in all"
    r"|(?:which|this)\s+(?:means|gives|implies)|from which)\b"
    r"|所以|因此|故|综上|从而|于是",
    re.IGNORECASE,
)
_ASSUMES = re.compile(
    r"(?:let|suppose|assume|say|consider|denote|define|for example|note|recall|remark|find|determine|compute|calculate"
    r"|prove|show|verify|imagine|if|what|which|how)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:suppose|assume|assuming|if|whether|doubts?|den(?:y|ies)|not|cannot|never|hardly|untrue|false|wrong(?:ly)?"
    r"|incorrect|claims|claimed|mistake"
    r"|tempting|tempted|naively|(?:some|one|people|many|you) (?:may|would|think)"
    r"|pretend|imagine|maybe|perhaps|possibly|might|could|unlikely|disagree|refutes?)\b|n't\b",
    re.IGNORECASE,
)
_RESUMES = re.compile(r"[,:;](?!\s*(?:for|to|that)\b)|\b(?:so|therefore|thus|hence|then)\b", re.IGNORECASE)
_SENTENCE_MARK = re.compile(r"[.!?。]\s|\n")
_DENIED = re.compile(r"(?:\bnot|\bcannot|n't|\bnever|\bneither|\bnor|\bimpossible)\W+(?:\w+\W+){0,2}$", re.IGNORECASE)
_OR_ELSE = re.compile(r"\bor\W+(?:(?:maybe|perhaps|possibly|else|even)\W+)?$", re.IGNORECASE)
_BOUND = re.compile(
    r"(?:\b(?:or|at\s+(?:least|most)|multiple|divisor|factor|power|less|more|greater|smaller|fewer|than|up|minimality"
    r"|coefficient|root|function|side|vertex|point|case|that|instead|out|one|each|some|any|all|none|half)\s+)$",
    re.IGNORECASE,
)
_QUANTITY = re.compile(
    r"(?:\b(?:answer|result|value|quantity|number|sum|product|area|volume|probability|length|perimeter|ratio|total"
    r"|remainder|maximum|minimum|expression|required|desired)\b[^.]{0,60}\b(?:is|are|be|equals)|equal to|\bequals)"
    r"\s*[$\s]*$",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?:\b(?:(?:is|are)(?:\s+(?:therefore|thus|then|hence|just|exactly|simply))?|equals|equal to|be|gives|have|get"
    r"|obtain)|\b(?:is|are|of)\s+[-+*/×x÷().$\d\s]{1,60}="
    r"|\b(?:total|sum|area|volume|probability|value|answer|profit|cost|maximum|minimum|average|difference|product"
    r"|number|remainder|length|perimeter|distance)\s+of|为|是|:(?!\d)|(?P<equals>=))\s*[*_]*\s*",
    re.IGNORECASE,
)
_SUPERLATIVE = (
    r"(?:only|unique|smallest|least|lowest|largest|greatest|biggest|highest|minimum|minimal|maximum|maximal|best|desired"
    r"|required|requested|final|correct|wanted|sought)"
)
_IS_THE_ANSWER = re.compile(
    rf"\b(?:is|are) (?:indeed |therefore |thus |then |clearly |hence )?(?:the|our|my) "
    rf"(?:(?:{_SUPERLATIVE} ){{1,4}}(?:possible |such |positive ){{0,3}}|(?:answers?|solutions?)\b)",
    re.IGNORECASE,
)
_CHOICE_IS_RIGHT = re.compile(
    r"\b(?:option|choice|answer)\s+\(?([A-J])\)?\s+is\s+(?:therefore\s+|thus\s+)?(?:the\s+)?(?:correct|right|answer|best)",
    re.IGNORECASE,
)
_FOR_ALL = re.compile(r",? (?:for|where|with) (?:all|any|every|each|some)\b[^.]{0,80}$")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*|\\(?:mathbf|boldsymbol|textbf)\s*\{([^{}]{1,80})\}")
_COUNTED = re.compile(
    r"\bthere\s+(?:are|is|were|will\s+be|must\s+be)\s+"
    r"(?:(?:exactly|only|altogether|therefore|thus|a\s+total\s+of)\s+)*"
    r"(?:\$(?P<formula>[^$]{1,200})\$|\**(?P<number>\d[\d,]*)\**)\s+(?!or\b|to\b|and\b|times\b|of\b)[a-z]",
    re.IGNORECASE,
)
_HAS = re.compile(
    r"\b[A-Za-z'’]+\s+\**\\?\$?(?P<number>\d[\d,]*(?:\.\d+)?)\**"
    r"(?!\s+(?:divides|is|are|was|were|does|do|can|or|to|times|and|has|have)\b)(?:\s+[A-Za-z'’-]+){0,12}$"
)
_COMPUTED = re.compile(
    r"[-+*/×x÷().,$\\%\d\s]{1,60}=\s*(?:(\d[\d,]*(?:\.\d+)?)\$(?=\s(?!which|so|and|as|by|since)[a-z]))?"
)
_OPENS = re.compile(
    r"(?:therefore|thus|hence|so|finally|consequently|altogether|in total|in all|it (?:will )?takes?)\b", re.IGNORECASE
)
_IN_TOTAL = re.compile(r"\b(?:in\s+total|altogether|in\s+all|left|remaining|overall)$", re.IGNORECASE)
_DIGITS = re.compile(r"\d[\d,]*(?:\.\d+)?")
_NUMBER_AT_END = re.compile(r"(?:^|\s)\**([-+]?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)\**$")
_ASIDE = re.compile(r" \((?!mod\b)[a-z]{2,}[^()]*(?:\([^()]*\)[^()]*)*\)$")
_SOLVED = re.compile(r"[A-Za-z](?:_\{?\w\}?)?\s*=\s*[^=<>A-Za-z]{1,40}")
_CHECKED = re.compile(
    r"(?<=[.$])\s(?:we|one|you)\s+can\s+(?:check|verify)\s[^.]{0,160}\.$|(?<=[.$])\sthe\s+value\s+of\s[^.]{1,20}\sis\s+irrelevant\.$",
    re.IGNORECASE,
)
_AFTERTHOUGHT = re.compile(
    r",? as (?:desired|required|claimed|wanted|needed|stated)$"
    r"|,? (?:(?:and|which) (?:is|are) )?(?:attained|achieved|obtained|reached|occurring|with equality)\b[^.]{0,80}$",
    re.IGNORECASE,
)
_BOLD_AT_END = re.compile(r"(?:\\mathbf\s*\{[^{}]*\}[}\s]*\$|\w\*\*)$")
_JOINED = re.compile(r"(?:,|;|、|和|或)? ?(?:\\q?quad)? ?(?:and|or)? ?(?:\\q?quad)? ?(?:also)?", re.IGNORECASE)
_OR, _COMMA_AND = re.compile(r"\bor\b"), re.compile(r",\s*and\b")
_MOST_JOINED = 40
_NO_EQUALITY = re.compile(r"[<>]|\\(?:neq?|leq?|geq?|leqslant|geqslant|equiv|mid|nmid|in|notin)\b")
_EQUAL_SIGN = re.compile(r"=|\\equiv|\\approx")
_DELIMITER = re.compile(r"\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_CLOSING = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}


class Formula(NamedTuple):
    """A formula of a text: where it begins and ends with its delimiters, and what stands between them."""

    start: int
    end: int
    content: str


def formulas(text: str) -> list[Formula]:
    """The formulas of a text in order, in one pass."""
    found: list[Formula] = []
    opening = None
    for mark in _DELIMITER.finditer(text):
        kind = mark.group()
        if opening is not None and kind == _CLOSING[opening.group()]:
            if mark.start() > opening.end():
                found.append(Formula(opening.start(), mark.end(), text[opening.end() : mark.start()]))
            opening = None
        elif opening is None and kind in _CLOSING:
            opening = mark
    return found


def from_last_sentence(tail: str) -> Extraction | None:
    """The answer that the end of a response states, None where it states none; `tail` has no space at its end."""
    tail = _without_check(_IMAGE.sub("", tail).rstrip())
    if not tail:
        return None
    last = tail[tail.rfind("\n") + 1 :].strip().strip("*").strip()
    if is_bare_answer(last):
        return Extraction(last, "last line")
    sentence, has_display = _last_sentence(tail)
    if sentence is None or len(sentence) > _LONGEST_SENTENCE or _ASSUMES.match(sentence.lstrip("$* ")):
        return None
    for rule, name in _RULES:
        answer = rule(sentence)
        if answer is not None:
            return Extraction(answer, name)
    if has_display:
        return None
    for piece in reversed(list(_CONCLUSION.finditer(sentence))[-_MOST_TRIED:]):
        answer, before = sentence[piece.end() :].strip(), sentence[: piece.start()]
        if (piece["equals"] and not _CONCLUDES.search(before)) or is_hedged(before):
            continue
        if is_bare_answer(answer) and not _DENIED.search(before) and not _BOUND.search(before + " "):
            return Extraction(answer, "end of the last sentence")
    return None


def _without_check(tail: str) -> str:
    """The end of a response without a last paragraph in brackets, or a sentence that says it was checked."""
    paragraph = tail.rfind("\n\n") + 2
    if paragraph > 1 and tail.startswith("(", paragraph) and tail.endswith(")"):
        tail = tail[: paragraph - 2].rstrip()
    return _CHECKED.sub("", tail)


def is_hedged(before: str) -> bool:
    """Whether a statement is denied or only supposed by what stands before it in its sentence: "I doubt that ..."."""
    sentence = _SENTENCE_MARK.split(before)[-1]
    hedges = list(_HEDGE.finditer(sentence))
    return bool(hedges) and _RESUMES.search(sentence, hedges[-1].end()) is None


def _last_sentence(tail: str) -> tuple[str | None, bool]:
    """The last sentence without its full stop, a display formula at its end included; None where it has not ended."""
    for closing, opening in _DISPLAY_ENDS:
        if tail.endswith(closing):
            start = tail.rfind(opening, 0, len(tail) - len(closing))
            if start < 0:
                return None, False
            formula = _ENVIRONMENT.sub(" ", tail[start + len(opening) : len(tail) - len(closing)])
            before = _SENTENCE_END.split(tail[:start].rstrip().split("\n\n")[-1])[-1]
            row, is_derivation = _last_row(formula)
            return f"{before}{' so' if is_derivation else ''} ${row}$", True
    line = tail[tail.rfind("\n\n") + 1 :].replace("\n", " ").strip()
    if not line.endswith((".", "。", "!", ".$", ".**", r".\)")) and not _BOLD_AT_END.search(line[-200:]):
        return None, False
    sentence = _ASIDE.sub("", " ".join(_SENTENCE_END.split(line)[-1].split()).rstrip(".。! "))
    sentence = _AFTERTHOUGHT.sub("", sentence)
    return sentence.replace(".$", "$").replace("=$ $", "=").replace("= $ $", "="), False


def _last_row(formula: str) -> tuple[str, bool]:
    """The last line of a display, and whether it is the value that three lines or more arrive at, `x = 9`."""
    rows = [row for line in formula.split(r"\\") if (row := line.strip(" &\n.,"))]
    last = rows[-1].replace("&", " ").replace("$", " ") if rows else ""
    return last, len(rows) > 2 and _SOLVED.fullmatch(last.strip()) is not None


def _named_as_answer(sentence: str) -> str | None:
    """`X` of "X is the only solution", "X is indeed the answer", "option C is correct"."""
    choice = _CHOICE_IS_RIGHT.search(sentence)
    if choice is not None and choice[1].isupper() and not is_hedged(sentence[: choice.start()]):
        return choice[1]
    for match in reversed(list(_IS_THE_ANSWER.finditer(sentence))[-_MOST_TRIED:]):
        before = _FOR_ALL.sub("", sentence[: match.start()].rstrip(" ,"))
        if _DENIED.search(before + " ") or is_hedged(before):
            return None
        found = _run_of_formulas(before)
        if found:
            only_a_letter = len(found) == 1 and len(found[0].strip()) == 1
            return None if only_a_letter else _listed(found, before)
        number = _NUMBER_AT_END.search(before[-80:])
        if number is not None:
            return number[1]
    return None


def _in_bold(sentence: str) -> str | None:
    """A value in bold, where all that is bold in the sentence is one formula or one number."""
    found = [match for match in _BOLD.finditer(sentence) if any(c.isdigit() for c in match.group())]
    if not found:
        return None
    for formula in formulas(sentence):
        if formula.start < found[0].start() and found[-1].end() < formula.end:
            side = _EQUAL_SIGN.split(formula.content)[-1]
            return side if r"\mathbf" in side or r"\boldsymbol" in side or r"\textbf" in side else None
    text = (found[0][1] or found[0][2] or "").strip()
    before = sentence[: found[0].start()]
    if len(found) > 1 or text.endswith((".", ":")) or not is_bare_answer(text) or _DENIED.search(before):
        return None
    return text


def _formulas_at_end(sentence: str) -> str | None:
    """One formula or a list of them at the end of the sentence, after a word that states or concludes."""
    found = _run_of_formulas(sentence)
    if not found:
        return None
    start = sentence.rfind(found[0]) if len(found) == 1 else sentence.find(found[0])
    before = sentence[:start]
    states = _STATES.search(before)
    bare = before.rstrip("$( \\")
    if _DENIED.search(bare) or _OR_ELSE.search(bare) or is_hedged(before):
        return None
    if not (states or ("=" in found[-1] and _CONCLUDES.search(before))):
        return None
    if len(found) > 1:
        return _listed(found, sentence)
    if not states or _QUANTITY.search(before):
        side = right_hand_side(found[0])
        return None if side != found[0] and _NO_EQUALITY.search(side) else side
    return found[0]


def _counted(sentence: str) -> str | None:
    """`12` of "Thus, there are 12 ways to do this"."""
    match = next(reversed(list(_COUNTED.finditer(sentence))), None)
    if match is None or not _CONCLUDES.search(sentence[: match.start()]):
        return None
    return match["number"] or right_hand_side(match["formula"])


def _has(sentence: str) -> str | None:
    """`36` of "Thus, John has 36 marbles left.", where it is the only number and the sentence concludes."""
    sentence = _COMPUTED.sub(lambda m: " " + (m[1] or ""), sentence)  # $45 - 12 = 33$ marbles
    match = _HAS.search(sentence)
    if match is None or len(_DIGITS.findall(sentence)) > 1:
        return None
    before = sentence[: match.start("number")].rstrip("$\\* ") + " "
    if _BOUND.search(before) or _DENIED.search(before) or is_hedged(before):
        return None
    return match["number"] if _OPENS.match(sentence) or _IN_TOTAL.search(sentence) else None


_RULES = (
    (_named_as_answer, "called the answer"),
    (_in_bold, "bold in the last sentence"),
    (_formulas_at_end, "formula at the end"),
    (_counted, "counted in the last sentence"),
    (_has, "the only number of the last sentence"),
)


def _run_of_formulas(text: str) -> list[str]:
    """The formulas that stand at the end of a text with nothing between them but commas, "and" and "or"."""
    found: list[str] = []
    start = len(text.rstrip())
    for formula in reversed(formulas(text)[-_MOST_JOINED:]):
        between = text[formula.end : start]
        if found and not between.strip():
            return found  # two formulas side by side are no list
        if len(between) > 40 or not _JOINED.fullmatch(" ".join(between.split())) or (not found and between.strip()):
            break
        found.insert(0, formula.content)
        start = formula.start
    return found


def _listed(found: list[str], text: str) -> str:
    """Formulas as one answer: a list, or the last where two equations say different things (`, and`, `or`)."""
    if len(found) == 1:
        return found[0]
    joiner = text[text.rfind(found[-2]) + len(found[-2]) : text.rfind(found[-1])]
    is_or = _OR.search(joiner) is not None
    names = {formula.partition("=")[0].strip() for formula in found} if all("=" in f for f in found) else set()
    if len(names) == len(found) and (is_or or (len(found) == 2 and _COMMA_AND.search(joiner))):
        return found[-1]
    return (r" \text{ or } " if is_or else ", ").join(formula.strip() for formula in found)


def is_bare_answer(line: str) -> bool:
    """Whether a line is nothing but a number with at most two words of unit, one formula, or a choice letter."""
    line = line.strip().rstrip(".。").strip("* ")
    return bool(line) and len(line) < 400 and any(c.isalnum() for c in line) and bool(_BARE.fullmatch(line))


_EQUALS_OR_BRACKET = re.compile(r"\\[{}]|[{}()=]")


def right_hand_side(formula: str) -> str:
    """What a chain of equalities arrives at: the text after its last top-level `=`, else the formula."""
    depth, start = 0, 0
    for token in _EQUALS_OR_BRACKET.finditer(formula):
        kind = token.group()
        depth += (kind in "{(") - (kind in "})") if len(kind) == 1 else 0
        if kind == "=" and depth == 0:
            start = token.end()
    return formula[start:].strip(" &\n") or formula
