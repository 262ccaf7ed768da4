"""The LaTeX commands and plain words that the tokenizer and the grammar know, by what they are."""

from ..expression import name_set

FUNCTIONS = name_set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot asin acos atan sinh cosh tanh coth sech csch "
    "arcsinh arccosh arctanh log ln lg exp max min gcd lcm abs floor ceil det sgn Re Im arg cis"
)
"""Functions with an argument."""
NAMED_OPERATORS = name_set("dim ker rank deg tr Var Cov Pr vol card im span diam ord null nullity Tr")
"""Functions that have a name and no value here."""
FUNCTIONS |= NAMED_OPERATORS
PLAIN_COMMANDS = (
    FUNCTIONS
    | name_set(
        "sqrt cbrt pi infty alpha beta gamma delta theta lambda mu phi omega sigma rho tau epsilon frac "
        "binom cdot times circ pm degree"
    )
) - {"Re", "Im", "det", "arg", *NAMED_OPERATORS}
"""Commands that are read without their backslash too."""
ALIASES = {
    "infinity": "infty", "inf": "infty", "oo": "infty", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac",
    "bigcup": "cup", "bigcap": "cap", "nicefrac": "frac", "sfrac": "frac", "xfrac": "frac", "flatfrac": "frac",
    "dbinom": "binom", "tbinom": "binom", "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge",
    "geqq": "ge", "lt": "<", "gt": ">", "neq": "ne", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]",
    "arcsec": "arcsec", "tg": "tan", "ctg": "cot", "arctg": "arctan", "cosec": "csc", "asin": "arcsin",
    "acos": "arccos", "atan": "arctan", "varnothing": "emptyset", "varphi": "phi", "varepsilon": "epsilon",
    "vartheta": "theta", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "ast": "*", "times": "*", "cdot": "*",
    "bullet": "*", "div": "/", "colon": ":", "degrees": "degree", "backslash": "setminus", "smallsetminus": "setminus",
    "wedge": "land", "vee": "lor", "lnot": "neg", "lim": "lim", "Leftrightarrow": "iff",
    "ldots": "dots", "cdots": "dots", "dotsc": "dots", "dotsb": "dots", "implies": "Rightarrow", "to": "to",
    "rightarrow": "to", "longrightarrow": "to", "star": "*", "euro": "euro", "EUR": "euro", "mathdollar": "$",
    "exponentialE": "e", "imaginaryI": "i", "Pi": "Pi", "lcm": "lcm", "floor": "floor", "ceil": "ceil",
}  # fmt: skip
"""Commands by another name."""
IGNORED = name_set(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle "
    "textstyle scriptstyle limits nolimits quad qquad phantom hphantom vphantom thinspace enspace space "
    "checkmark therefore blacksquare qed qedsymbol "
    "hspace hfill nonumber null boldsymbol mathstrut strut displaylimits rm bf it cal large Large small "
    "tiny scriptscriptstyle normalsize"
)
"""Commands that say nothing about the value."""
TEXT_WRAPPERS = name_set(
    "text mbox textbf textit textrm textsf texttt textnormal textup mathrm operatorname mathsf mathtt "
    "emph hbox mathit mathnormal textsc"
)
"""Commands whose argument is text."""
MATH_WRAPPERS = name_set("mathbf boxed fbox bm pmb underline ensuremath mathop mathord cancel")
"""Commands whose argument is mathematics."""

SHORT_WORDS = name_set(
    "no not for but any how all are the has was yes odd red one two six ten sun mon tue wed thu fri sat dne none"
)
"""Words that could be taken for products of variables."""
CONDITION_WORDS = name_set("for where with when if whenever provided given while")
"""Words before the conditions of an answer."""

MATRICES = {"pmatrix": 1, "bmatrix": 1, "matrix": 1, "array": 1, "smallmatrix": 1, "Bmatrix": 1, "vmatrix": 0}
"""Environments of rows; 0 where its value is the determinant."""
SYSTEMS = name_set("cases aligned align alignat gather gathered split equation dcases rcases")
"""Environments of lines, each a relation or an answer."""
GREEK_OR_NAMED = name_set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell aleph nabla partial"
)
"""Commands that are names."""
ACCENTS = name_set("vec hat bar overline dot ddot tilde widehat overrightarrow overleftarrow widetilde mathbb mathcal")
"""Commands that mark a name."""
STARTERS = (
    FUNCTIONS
    | GREEK_OR_NAMED
    | ACCENTS
    | name_set(
        "digits frac sqrt cbrt pi infty binom { lfloor lceil langle sum prod int lim e i emptyset mathbb angle triangle"
    )
    | {"unit i", "unit j", "unit k"}
    | frozenset("begin " + name for name in (*MATRICES, *SYSTEMS))
)
"""Commands that a value may begin with."""
