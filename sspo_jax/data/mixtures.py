"""Several sources as one, with weights."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from sspo_jax.data.problems import Problem, ProblemSource


class MixtureSource:
    """Several sources in fixed proportions.

    One pass over the mixture goes at least once through every source: the one that is largest for its weight exactly
    once, the others repeated from their beginning as their weights ask. Ids become `source/id`, with
    `#1`, `#2` for the repetitions.

    Args:
      sources: at least one, of different names.
      weights: a positive share for each, of any sum; None is in proportion to their sizes (each source once).

    Raises:
      ValueError: numbers of sources and weights differ, a weight that is not positive, a name twice.
    """

    def __init__(self, sources: Sequence[ProblemSource], weights: Sequence[float] | None = None):
        names = [source.name for source in sources]
        if not sources or len(set(names)) != len(names):
            raise ValueError(f"the sources of a mixture are {names}; expected at least one and no name twice")
        if weights is None:
            weights = [float(len(source)) for source in sources]
        if len(weights) != len(sources):
            raise ValueError(f"{len(weights)} weights for {len(sources)} sources; expected one each")
        if not all(weight > 0 for weight in weights):
            raise ValueError(f"weights are {list(weights)}; expected positive numbers: leave a source out instead of 0")
        self.name = "+".join(names)
        self._sources = tuple(sources)
        scale = max(len(source) / weight for source, weight in zip(sources, weights, strict=True))
        self._counts = [round(scale * weight) for weight in weights]
        self._ends = np.cumsum(self._counts)
        content = json.dumps([[source.digest, count] for source, count in zip(sources, self._counts, strict=True)])
        self.digest = hashlib.sha256(content.encode()).hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Problems of each source in one pass."""
        return dict(zip((source.name for source in self._sources), self._counts, strict=True))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: problem {index}; expected 0 to {len(self) - 1}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[part]
        repetition, row = divmod(index - int(self._ends[part]) + self._counts[part], len(source))
        problem = source[row]
        suffix = f"#{repetition}" if repetition else ""
        return dataclasses.replace(problem, id=f"{source.name}/{problem.id}{suffix}")
