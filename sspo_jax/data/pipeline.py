"""The stream of training problems: seeded shuffle, epochs, a share for every process, exact resume.

grain orders the indices (a seeded permutation, another one each epoch) and gives random access to that order, so the
stream's whole state is the number of batches taken. What that number means depends on seed, batch size, number of
processes and the data; they are stored beside it, and a state is refused, by name, when one of them differs.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from sspo_jax.data.problems import Problem, ProblemSource


class ProblemStream:
    """Batches of problems for this process, without end.

    Batch `n` is elements `n * batch_size` to `(n + 1) * batch_size` of the global order; each process takes an equal
    run of it. An epoch is a permutation of the source: every problem comes once before any comes twice.

    Args:
      source: the problems.
      batch_size: problems per batch over all processes.
      seed: of the order.
      process_index, process_count: which share is ours.

    Raises:
      ValueError: `batch_size` does not divide by `process_count`, or an index out of range.
    """

    def __init__(
        self, source: ProblemSource, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ):
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size is {batch_size}; expected a positive multiple of the {process_count} processes"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index is {process_index}; expected 0 to {process_count - 1}")
        self.source = source
        self._batch_size = batch_size
        self._seed = seed
        self._process_index = process_index
        self._process_count = process_count
        self._position = 0
        self._order = _shuffled_indices(len(source), seed)

    def next(self) -> list[Problem]:
        """This process's share of the next batch: `batch_size / process_count` problems."""
        return [self.source[index] for index in self.next_indices()]

    def next_indices(self) -> list[int]:
        """As `next`, but the indices into the source."""
        share = self._batch_size // self._process_count
        first = self._position * self._batch_size + self._process_index * share
        self._position += 1
        return [int(self._order[place]) for place in range(first, first + share)]

    @property
    def epoch(self) -> float:
        """How many times the source has been gone through, with the fraction of the present epoch."""
        return self._position * self._batch_size / len(self.source)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly from here: a small JSON object, the same on every process."""
        return {"position": self._position, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Raises:
          ValueError: the state is of another stream; the fields that differ are named with both values.
        """
        identity = self._identity()
        differing = [
            f"{key} was {state.get(key)!r} and is {value!r}"
            for key, value in identity.items()
            if state.get(key) != value
        ]
        if differing:
            raise ValueError(
                "the saved position belongs to another stream of problems: "
                + "; ".join(differing)
                + ". Start again with the old settings, or in a new run directory"
            )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"position is {position!r}; expected the number of batches taken")
        self._position = position

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "batch_size": self._batch_size,
            "process_count": self._process_count,
            "source_name": self.source.name,
            "source_size": len(self.source),
            "source_digest": self.source.digest,
        }


_SMALL = 1_024  # grain walks 2^16 / length steps for an index of a short source: milliseconds each


def _shuffled_indices(length: int, seed: int) -> Any:
    """`order[place]`: the epochs' permutations one after the other."""
    if length <= _SMALL:
        return _SmallOrder(length, seed)
    import grain

    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


class _SmallOrder:
    """The same for short sources: a permutation of its own for (seed, epoch), kept while the epoch lasts."""

    def __init__(self, length: int, seed: int):
        self._length = length
        self._permutation = functools.lru_cache(maxsize=4)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(length)
        )

    def __getitem__(self, place: int) -> int:
        epoch, row = divmod(place, self._length)
        return int(self._permutation(epoch)[row])
