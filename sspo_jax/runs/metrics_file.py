"""Metrics of a step to metrics.jsonl and TensorBoard."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sspo_jax.files import read_json_lines
from sspo_jax.types import Max, Mean


def combine(parts: Iterable[Mapping[str, Mean | Max]]) -> dict[str, Mean | Max]:
    """Adds up metrics of the parts of a batch that have come to the host, as Python's floats."""
    total: dict[str, Mean | Max] = {}
    for part in parts:
        for name, metric in part.items():
            metric = jax.tree.map(float, metric)
            before: Any = total.get(name)  # of the same kind: a name is a Mean everywhere, or a Max
            total[name] = metric if before is None else before + metric
    return total


def read_metrics(file: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where there is no file. A last line that is still being written is left out.

    Raises:
      ValueError: a line before it is damaged; names file and line.
    """
    rows = []
    for where, row in read_json_lines(file, may_be_cut=True) if file.exists() else ():
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{where}: not the metrics of a step; remove the line")
        rows.append(row)
    return rows


class MetricsWriter:
    """Appends to metrics.jsonl and, if asked, to TensorBoard events.

    Args:
      file: metrics.jsonl; rows already there are kept.
      tensorboard: directory of the events, or None.
      start: the first step that will be written; later events of an interrupted run are hidden.
    """

    def __init__(self, file: pathlib.Path, tensorboard: pathlib.Path | None, *, start: int):
        self._stream = open(file, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        self._events = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(tensorboard), purge_step=start)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; numbers only. Not-a-number has no JSON and is written as null."""
        row = {"step": step} | {
            name: float(value) if math.isfinite(value) else None for name, value in sorted(metrics.items())
        }
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        self._stream.close()
        if self._events is not None:
            self._events.close()


def host_value(metric: Mean | Max) -> float:
    """The number of a metric whose parts are on the host."""
    return float(np.asarray(metric.value))
