"""How far an evaluation may go, and the ways in which it can fail to go there.

All arithmetic is bounded beforehand: the size of a power, a factorial or a sum is estimated before it is computed, so
`9^{9^{9^9}}` costs nothing. `Limits` says how far to go: little in the caller's process, more in a worker.
"""

import dataclasses

from .expression import Undecided


class TooLarge(Undecided):
    """A value exceeds every bound; more effort would not help."""


class NeedsWorker(Undecided):
    """A value exceeds the bounds of the caller's process; a worker may reach it."""


class NotRational(Exception):
    """The exact evaluation met something that is no fraction."""


class OutsideDomain(Exception):
    """A real expression has no real value at this point."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far an evaluation may go."""

    bits: int
    """Of numerator or denominator of an exact fraction."""
    nodes: int
    """Of an expression tree."""
    factorial: int
    """The largest n of n! and of binomials."""
    terms: int
    """Of a written-out sum or product."""
    digits: int
    """Decimal digits of working precision."""


IN_PROCESS = Limits(bits=60_000, nodes=400, factorial=3_000, terms=500, digits=600)
IN_WORKER = Limits(bits=2_000_000, nodes=4_000, factorial=60_000, terms=100_000, digits=20_000)
