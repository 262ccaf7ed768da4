"""Is this answer right? Plain Python, no JAX: `verify`, `is_correct`, `Verifier`; see docs/checker.md."""

from .ledger import ledger
from .verdict import STATUSES, Options, Verdict
from .verifier import Verifier, is_correct, verify

__all__ = ["STATUSES", "Options", "Verdict", "Verifier", "is_correct", "ledger", "verify"]
