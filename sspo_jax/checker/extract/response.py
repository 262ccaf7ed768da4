"""Which part of a response is its answer.

In order, on the text after the last `</think>` and before the end of the turn: the last complete box; the last
`<answer>...</answer>`; `#### X`; the last "the final answer is X" or "Answer: X"; a closing sentence that says what the
answer is; a last line that is nothing but an answer. Otherwise there is none: nothing is guessed from the middle of a
text, unless `lenient`. Every step is linear in the response.
"""

import re

from ..verdict import EXACT, Extraction, Options
from .boxes import from_boxes
from .sentences import formulas, from_last_sentence, right_hand_side
from .statements import TAIL_CHARACTERS, from_last_label, from_statement

_END_OF_TURN = re.compile(
    r"<\|(?!(?:begin|end)_of_(?:thought|solution))[^|<>\s]{1,40}\|>|</s>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]"
    r"|\n(?:Human|User)[ \t]*:",
    re.IGNORECASE,
)
_THOUGHTS = ("<think>", "<thinking>", "<|begin_of_thought|>")
_THOUGHT_ENDS = ("</think>", "</thinking>", "<|end_of_thought|>")
_TAIL_SOURCE = 20_000  # characters in which the tail is looked for, runs of white space included
_WHITE_SPACE = re.compile(r"\s{2,}")
_AFTER_THE_END = re.compile(
    r"(?:\s?I hope (?:it|this|that) (?:is|helps)[^.\n]{0,30}[.!]?"
    r"|\s(?:Q\.?E\.?D\.?|∎|□|\$\\(?:blacksquare|square|qed|Box)\$))$",
    re.IGNORECASE,
)
_ANY_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:/\d+)?")
_BASE_AFTER = re.compile(r"_\{?(\d{1,2})\b|(?:\$|\\\)|\\\])?\s?\(?in base[ -]\$?(\d{1,2})\b", re.ASCII)
_DECIMAL_COMMA = re.compile(r"\$?-?\d+,\d{1,2}\$?")
_COMMA_LANGUAGES = re.compile(
    r"\b(?:réponse|donc|alors|antwort|ergibt|beträgt|lösung|respuesta|entonces|risposta|quindi|resposta|portanto|ответ)\b",
    re.IGNORECASE,
)


def extract(response: str, options: Options = EXACT) -> Extraction:
    """The answer of a response and the rule that found it.

    >>> extract(r"So it is $\\boxed{3}$. But wait, it is $\\boxed{\\frac{1}{2}}$.")
    Extraction(answer='\\\\frac{1}{2}', rule='last box', parts=())
    >>> extract("There are 12 apples in")
    Extraction(answer=None, rule='no answer is stated', parts=())
    """
    if _has_chat_mark(response):
        response = _turn(response)
    if "<" in response and ("think" in response or "_of_" in response):
        response = response[max(response.rfind(end) + len(end) if end in response else 0 for end in _THOUGHT_ENDS) :]
        response = response.removeprefix("<|begin_of_solution|>").removesuffix("<|end_of_solution|>")
        thought = min((at for start in _THOUGHTS if (at := response.find(start)) >= 0), default=-1)
        if thought >= 0 and not options.lenient:
            response = response[:thought]
            if not response.strip():
                return Extraction(None, "cut off inside <think>")
    found = _stated(response, options)
    has_comma = bool(found.answer) and "," in str(found.answer) and _DECIMAL_COMMA.fullmatch(str(found.answer))
    if has_comma and _COMMA_LANGUAGES.search(response):
        return Extraction(str(found.answer).replace(",", "."), f"{found.rule}, with a decimal comma")
    return found


def _stated(response: str, options: Options) -> Extraction:
    boxed = from_boxes(response, options)
    if boxed is not None:
        extraction, end = boxed
        based = _BASE_AFTER.match(response, end) if extraction.answer and extraction.answer.isalnum() else None
        if based is not None:  # \boxed{1254} in base 7
            with_base = f"{extraction.answer}_{{{based[1] or based[2]}}}"
            extraction = Extraction(with_base, "last box, with its base", (str(extraction.answer),))
        is_labelled = response.find("nswer", end) >= 0
        return (from_last_label(response[end : end + TAIL_CHARACTERS]) if is_labelled else None) or extraction
    tagged = _from_tag(response)
    if tagged is not None:
        return tagged
    marker = response.rfind("####")
    if marker >= 0:
        answer = response[marker + 4 :].strip().split("\n", 1)[0].strip()
        if answer and len(answer) <= TAIL_CHARACTERS:
            return Extraction(answer, "after ####")
    tail = _tail(response)
    stated = from_statement(tail) or from_last_sentence(tail)
    if stated is not None:
        return stated
    return _last_formula_or_number(tail) if options.lenient else Extraction(None, "no answer is stated")


def _has_chat_mark(response: str) -> bool:
    if "INST]" in response or "\nHuman" in response or "\nUser" in response:
        return True
    return "<" in response and ("<|" in response or "</s" in response or "_turn>" in response or "<eos" in response)


def _turn(response: str) -> str:
    """The response up to the first special token or chat marker after its text."""
    start = 0
    for mark in _END_OF_TURN.finditer(response):
        if response[start : mark.start()].strip():
            return response[start : mark.start()]
        start = mark.end()
    return response[start:]


def _tail(response: str) -> str:
    """The last characters, each run of white space as one blank or an end of line or of a paragraph."""
    tail = _WHITE_SPACE.sub(_shortened, response.rstrip()[-_TAIL_SOURCE:])[-TAIL_CHARACTERS:]
    return _AFTER_THE_END.sub("", tail).rstrip()


def _shortened(run: re.Match[str]) -> str:
    lines = run.group().count("\n")
    return "\n\n" if lines > 1 else "\n" if lines else " "


def _from_tag(response: str) -> Extraction | None:
    """What stands in the last `<answer>...</answer>`."""
    start = response.rfind("<answer>")
    if start < 0:
        return None
    end = response.find("</answer>", start)
    if end < 0:
        return Extraction(None, "cut off inside <answer>")
    inside = response[start + len("<answer>") : end].strip()
    if not inside or len(inside) > TAIL_CHARACTERS:
        return Extraction(None, "<answer> holds no answer")
    return from_statement(inside) or Extraction(inside, "<answer>")


def _last_formula_or_number(tail: str) -> Extraction:
    found = formulas(tail)
    if found:
        return Extraction(right_hand_side(found[-1].content), "lenient: last formula")
    numbers = _ANY_NUMBER.findall(tail)
    if numbers:
        return Extraction(numbers[-1], "lenient: last number")
    return Extraction(None, "no answer is stated")
