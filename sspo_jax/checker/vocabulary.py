"""Which LaTeX commands the grammar takes for names, accents, matrices, and for the beginning of a value."""

from .expression import names
from .tokens import FUNCTIONS

MATRICES = {"pmatrix": 1, "bmatrix": 1, "matrix": 1, "array": 1, "smallmatrix": 1, "Bmatrix": 1, "vmatrix": 0}
"""Environments of rows; 0 where its value is the determinant."""
SYSTEMS = frozenset(names("cases aligned align alignat gather gathered split equation dcases rcases"))
"""Environments of lines, each a relation or an answer."""
GREEK_OR_NAMED = frozenset(
    names(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
        "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell aleph nabla partial"
    )
)
"""Commands that are names."""
ACCENTS = frozenset(
    names("vec hat bar overline dot ddot tilde widehat overrightarrow overleftarrow widetilde mathbb mathcal")
)
"""Commands that mark a name."""
STARTERS = (
    FUNCTIONS
    | GREEK_OR_NAMED
    | ACCENTS
    | frozenset(
        names("frac sqrt cbrt pi infty binom { lfloor lceil langle sum prod int lim e i emptyset mathbb angle triangle")
    )
    | frozenset("begin " + name for name in (*MATRICES, *SYSTEMS))
)
"""Commands that a value may begin with."""
