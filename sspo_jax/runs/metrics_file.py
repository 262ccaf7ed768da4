"""Metrics of a step to metrics.jsonl and to trackers."""

import math
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sspo_jax.files import append_json_lines, read_json_lines
from sspo_jax.runs.trackers import Tracker
from sspo_jax.types import Loads, Max, Mean

Metric = Mean | Max | Loads


def combine(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Adds up metrics of the parts of a batch that have come to the host, as Python's floats and arrays of float64."""
    total: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            metric = jax.tree.map(lambda x: np.float64(x) if np.ndim(x) else float(x), metric)
            before: Any = total.get(name)  # of the same kind: a name is a Mean everywhere, or a Max
            total[name] = metric if before is None else before + metric
    return total


def host_values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The numbers of metrics whose parts are on the host: one of each, of loads how uneven they are."""
    values = {}
    for name, metric in metrics.items():
        if isinstance(metric, Loads):
            relative = np.asarray(metric.relative)
            values[f"{name}_max"] = float(relative.max())
            values[f"{name}_std"] = float(relative.std(axis=-1).mean())
            values[f"{name}_idle_fraction"] = float(np.mean(relative == 0))
        else:
            values[name] = host_value(metric)
    return values


_OF_EACH_UPDATE = {
    "clip_fraction": "ratio/clip_fraction",
    "kl_old": "policy/kl_old",
    "effective_sample_size": "ratio/subsentence_effective_sample_size",
}


def each_update(parts: Sequence[Sequence[Mapping[str, Metric]]], norms: Sequence[float]) -> dict[str, float]:
    """`update/<n>/...` of every update of a step, n from 1: what their mean over the step hides.

    Also `ratio/clip_fraction_after_first`, the mean without the first update, in which every ratio is 1.

    Args:
      parts: metrics of the micro-batches of each update, on the host.
      norms: gradient norm of each.
    """
    metrics: dict[str, float] = {}
    for number, (own, norm) in enumerate(zip(parts, norms, strict=True), 1):
        whole = combine({name: part[name] for name in _OF_EACH_UPDATE.values() if name in part} for part in own)
        for name, source in _OF_EACH_UPDATE.items():
            if source in whole:
                metrics[f"update/{number}/{name}"] = host_value(whole[source])
        metrics[f"update/{number}/grad_norm"] = norm
    clip = "ratio/clip_fraction"
    later = combine({clip: part[clip]} for own in parts[1:] for part in own if clip in part)
    if clip in later:
        metrics[f"{clip}_after_first"] = host_value(later[clip])
    return metrics


def read_metrics(file: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where there is no file. A last line that is still being written is left out.

    Raises:
      ValueError: a line before it is damaged; names file and line.
    """
    rows = []
    for where, row in read_json_lines(file, may_be_cut=True) if file.exists() else ():
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{where}: not the metrics of a step; remove the line")
        other = next((name for name, value in row.items() if not isinstance(value, int | float | None)), None)
        if other is not None:
            raise ValueError(f"{where}: {other} is {row[other]!r:.80}; expected a number or null. Remove the line")
        rows.append(row)
    return rows


class MetricsWriter:
    """Appends to metrics.jsonl, and hands each row to the trackers.

    Everything is written by the thread that calls, so that a disk that refuses is an error there.

    Args:
      file: metrics.jsonl; rows already there are kept.
      trackers: see `runs.trackers`; closed by `close`.
    """

    def __init__(self, file: pathlib.Path, trackers: Sequence[Tracker] = ()):
        self._file, self._trackers = file, trackers
        self._started = time.time()
        file.touch()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; numbers only, with the time by the clock. Not-a-number has no JSON and is written as null.

        Raises:
          OSError: the disk is full, or out of order.
        """
        clock = {"time/unix_seconds": time.time(), "time/started_unix_seconds": self._started}
        timed = {**metrics, **{name: round(seconds, 3) for name, seconds in clock.items()}}
        row = {"step": step} | {
            name: float(value) if math.isfinite(value) else None for name, value in sorted(timed.items())
        }
        append_json_lines(self._file, [row])
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def close(self) -> None:
        """Closes the trackers; rows of metrics are on the disk already."""
        for tracker in self._trackers:
            tracker.close()


def host_value(metric: Metric) -> float:
    """The number of a metric whose parts are on the host."""
    return float(np.asarray(metric.value))
