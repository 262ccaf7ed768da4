"""Text as people and models write it, folded to plain LaTeX in ASCII where it has an ASCII or LaTeX form.

`fold` reads Unicode: minus signs, roots, fractions, powers, Greek, full-width forms, Chinese punctuation, invisible
characters. `tidy` strips what carries no meaning around an answer: dollars, display brackets, emphasis, a full stop.
Both are linear in the text.
"""

import re
import unicodedata

from ..expression import names

_DELETED = "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\u202a\u202b\u202c\u202d\u202e\x00"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t\r\x0b"
_GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho - sigma tau "
    "upsilon phi chi psi omega"
)
_SYMBOLS = {
    "−": "-", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "﹣": "-",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "∞": r"\infty ",
    "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≃": r"\approx ", "≅": r"\approx ", "∼": r"\sim ", "∈": r"\in ", "∉": r"\notin ",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∖": r"\setminus ", "⊂": r"\subset ", "⊆": r"\subseteq ",
    "∣": "|", "∥": r"\parallel ", "⊥": r"\perp ", "∠": r"\angle ", "△": r"\triangle ", "°": r"^\circ ", "º": r"^\circ ",
    "˚": r"^\circ ", "∘": r"\circ ", "′": "'", "″": "''", "’": "'", "‘": "'", "“": '"', "”": '"',
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "…": "...", "⋯": "...", "、": ",", "。": ".", "，": ",", "：": ":", "；": ";", "（": "(", "）": ")",
    "【": "[", "】": "]", "｛": r"\{", "｝": r"\}", "∧": r"\land ", "∨": r"\lor ", "¬": r"\neg ", "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "€": r"\euro ", "£": r"\pounds ", "¥": r"\yen ", "￥": r"\yen ", "¢": " cents ", "％": r"\%", "＄": r"\$",
    "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\theta ", "ℓ": "l", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "㎝": " cm", "㎞": " km", "㎜": " mm", "㎏": " kg", "㎡": " m^2", "℃": r"^\circ C", "℉": r"^\circ F",
    "Å": " angstrom ",
    "⊕": r"\oplus ", "⊗": r"\otimes ", "或者": " or ", "或": " or ", "和": " and ", "与": " and ", "且": " and ",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₐₑₓₙ", "0123456789+-()aexn", strict=True))


def _character_table() -> dict[int, str | None]:
    table: dict[int, str | None] = {ord(c): None for c in _DELETED}
    table.update({ord(c): " " for c in _SPACES})
    table.update({ord(c): latex for c, latex in _SYMBOLS.items() if len(c) == 1})
    for offset, name in enumerate(_GREEK):
        if name != "-":
            table[0x3B1 + offset] = "o" if name == "omicron" else rf"\{name} "
    for letter, name in zip("ΓΔΘΛΞΠΣΦΨΩ", names("Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"), strict=True):
        table[ord(letter)] = rf"\{name} "
    table[ord("ς")] = r"\sigma "
    for code in range(0xBC, 0xBF):
        table[code] = _vulgar_fraction(chr(code))
    for code in range(0x2150, 0x215F):
        table[code] = _vulgar_fraction(chr(code))
    return table


def _vulgar_fraction(character: str) -> str:
    top, bottom = unicodedata.normalize("NFKC", character).split("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


_TABLE = _character_table()
_SUPER_RUN = re.compile(f"[{''.join(map(re.escape, _SUPERSCRIPTS))}]+")
_SUB_RUN = re.compile(f"[{''.join(map(re.escape, _SUBSCRIPTS))}]+")
_COMBINING_DOT_OR_BAR = re.compile("(\\d)([\u0304\u0305\u0307])")
_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _fraction_of_digits(match: re.Match[str]) -> str:
    top, bottom = "".join(_SUPERSCRIPTS[c] for c in match[1]), "".join(_SUBSCRIPTS[c] for c in match[2])
    return rf"\frac{{{top}}}{{{bottom}}}"


def fold(text: str) -> str:
    """The text with Unicode mathematics written in LaTeX; text that is plain ASCII comes back unchanged.

    >>> fold("√2 ≤ ½x²")
    '\\\\sqrt {2} \\\\le  \\\\frac{1}{2}x^{2}'
    """
    if text.isascii():
        return _ASCII_CONTROL.sub("", text) if _ASCII_CONTROL.search(text) else text
    text = _RAISED_FRACTION.sub(_fraction_of_digits, text)
    text = _RAISED_DEGREE.sub(lambda m: r"\sqrt[" + "".join(_SUPERSCRIPTS[c] for c in m[1]) + "]", text)
    text = _SUPER_RUN.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m.group()) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m.group()) + "}", text)
    text = _COMBINING_DOT_OR_BAR.sub(lambda m: (r"\dot{" if m[2] == "\u0307" else r"\overline{") + m[1] + "}", text)
    text = _ROOT_OF_DIGITS.sub(r"\1{\2}", text)
    text = text.replace("或者", " or ").translate(_TABLE)
    if text.isascii():
        return _ASCII_CONTROL.sub("", text)
    return _ASCII_CONTROL.sub("", unicodedata.normalize("NFKC", text).translate(_TABLE))


_RAISED_FRACTION = re.compile("(?<![⁰¹²³⁴⁵⁶⁷⁸⁹])([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/∕]([₀₁₂₃₄₅₆₇₈₉]+)")
_RAISED_DEGREE = re.compile("(?<![\\w)}\\]])([²³⁴⁵⁶⁷⁸⁹ⁿ])√")
_ROOT_OF_DIGITS = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?)")
_DISPLAY = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**"), ("__", "__"), ("`", "`"))


_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|large|Large|LARGE|huge|Huge|small|normalsize|bf|rm|it|boldmath)(?![A-Za-z])\s*"
)
_WRAPPER = re.compile(r"(?:\\(?:boldsymbol|mathbf|bm|pmb|ensuremath|mathord|underline|boxed|fbox)\s*)?\{")
_MOST_WRAPPERS = 8  # each takes a pass over the answer
_INFIX = re.compile(r"\\(?:choose|over|atop|brace|brack)(?![A-Za-z])")
_APART = re.compile(r"\d [\d.,]|\{ ?- \d")  # bold digits set apart, which the tokenizer joins
_ANY_BRACE = re.compile(r"\\?[{}]|\\\\")


def _without_wrapper(answer: str) -> str:
    """The answer without a style command before it, or a group or a bold face around all of it."""
    style = _STYLE.match(answer)
    if style is not None:
        answer = answer[style.end() :]
    wrapper = _WRAPPER.match(answer) if answer.endswith("}") else None
    if wrapper is None or _INFIX.search(answer) or (answer[0] == "\\" and _APART.search(answer)):
        return answer
    depth = 1
    for brace in _ANY_BRACE.finditer(answer, wrapper.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return answer[wrapper.end() : -1] if brace.end() == len(answer) else answer
    return answer


def tidy(answer: str) -> str:
    """The answer without what surrounds it: white space, dollars, display brackets, emphasis, a closing full stop.

    >>> tidy(" $x = 5.$ ")
    'x = 5'
    """
    previous, unwraps = None, 0
    while previous != answer:
        previous = answer
        answer = answer.strip(" \n\t\r\v\f")
        for left, right in _DISPLAY:
            wraps = len(answer) >= len(left) + len(right) and answer.startswith(left) and answer.endswith(right)
            if wraps and not answer.endswith("\\$") and left not in answer[len(left) : -len(right)]:
                answer = answer[len(left) : len(answer) - len(right)]
        if unwraps < _MOST_WRAPPERS:
            unwraps += 1
            answer = _without_wrapper(answer)
        if answer.endswith((",", ";", ":")) and not answer.endswith(("\\,", "\\;", "\\:")):
            answer = answer.rstrip(",;:")
        elif answer.endswith(".") and not answer.endswith("..."):
            answer = answer[:-1]
        elif answer.endswith(("\\\\", "\\,", "\\;", "\\:", "\\!")):
            answer = answer[:-2]
    return answer
