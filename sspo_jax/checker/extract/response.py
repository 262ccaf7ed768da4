"""Which part of a response is its answer.

In order, on the text after the last `</think>`: the last complete box; the last `<answer>...</answer>`; `#### X`; the
last "the final answer is X" or "Answer: X"; a closing sentence that says what the answer is; a last line that is
nothing but an answer. Otherwise there is none: nothing is guessed from the middle of a text, unless `lenient`. Every
step is linear in the response.
"""

import re

from ..verdict import EXACT, Extraction, Options
from .boxes import from_boxes
from .sentences import from_last_sentence, last_formula, right_hand_side
from .statements import TAIL_CHARACTERS, from_statement

_END_MARK = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>)$")
_ANY_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:/\d+)?")


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
    response = _without_end_marks(response)
    boxed = from_boxes(response, options)
    if boxed is not None:
        return boxed
    tagged = _from_tag(response)
    if tagged is not None:
        return tagged
    marker = response.rfind("####")
    if marker >= 0:
        answer = response[marker + 4 :].strip().split("\n", 1)[0].strip()
        if answer and len(answer) <= TAIL_CHARACTERS:
            return Extraction(answer, "after ####")
    tail = response[-TAIL_CHARACTERS:].rstrip()
    stated = from_statement(tail) or from_last_sentence(tail)
    if stated is not None:
        return stated
    if options.lenient:
        return _last_formula_or_number(tail)
    return Extraction(None, "no answer is stated")


def _without_end_marks(response: str) -> str:
    """The response without the special tokens that a sampler may have left at its end."""
    for _ in range(8):
        tail = response[-60:].rstrip()
        mark = _END_MARK.search(tail)
        if mark is None:
            break
        response = response[:-60] + tail[: mark.start()]
    return response


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
    formula = last_formula(tail)
    if formula is not None:
        return Extraction(right_hand_side(formula), "lenient: last formula")
    numbers = _ANY_NUMBER.findall(tail)
    if numbers:
        return Extraction(numbers[-1], "lenient: last number")
    return Extraction(None, "no answer is stated")
