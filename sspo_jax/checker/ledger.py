"""What became of a batch of checks: statuses kept apart, time, and how many went beyond the fast path."""

from collections import Counter
from collections.abc import Iterable

from .verdict import STATUSES, Verdict


def ledger(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """`verify/<status>_fraction` for every status, and `verify/seconds`, their summed time; zeros for no verdicts.

    >>> verdicts = [Verdict("correct", "1", "1", "", 0.5), Verdict("timeout", "2", "1", "", 1.5)]
    >>> ledger(verdicts)["verify/timeout_fraction"]
    0.5
    """
    verdicts = list(verdicts)
    counts = Counter(verdict.status for verdict in verdicts)
    metrics = {f"verify/{status}_fraction": counts[status] / max(1, len(verdicts)) for status in STATUSES}
    metrics["verify/seconds"] = float(sum(verdict.seconds for verdict in verdicts))
    return metrics
