"""A trace of chosen steps by `jax.profiler`, and what share of the roofline their stages reached.

profile/                 traces: plugins/profile/<time>/*.xplane.pb for TensorBoard, *.trace.json.gz for Perfetto
profile/roofline.json    the devices' peaks, and for each stage seconds, FLOPs, bytes, bound and share
"""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from sspo_jax.files import read_json, write_json
from sspo_jax.runs.compilation import CompileLog
from sspo_jax.runs.roofline import Counts, Peak, Work, shares

logger = logging.getLogger(__name__)

FOLDER = "profile"


class Profiler:
    """Traces the steps that are to be profiled. What goes wrong in it is a warning: a profile is not the run.

    Args:
      path: of the run directory.
      steps: to be traced.
      peak: measures or looks up what the devices can do; called once, if any step is traced.
      works: what the stages of a step have to compute and to move.
      say: prints a line.
    """

    def __init__(
        self,
        path: pathlib.Path,
        steps: range,
        *,
        peak: Callable[[], Peak],
        works: Callable[[Counts], Mapping[str, tuple[Work, ...]]],
        say: Callable[[str], None],
    ):
        self._folder, self._steps, self._works, self._say = path / FOLDER, steps, works, say
        self._peak = self._guarded(peak) if steps else None
        self._compiles = CompileLog() if steps else None
        self._compiled = 0.0  # seconds, before the first traced step
        self._done: list[tuple[int, Counts, Mapping[str, float]]] = []
        self._is_tracing = False

    @contextlib.contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        """Around a step."""
        if step not in self._steps:
            yield
            return
        if not self._is_tracing:
            self._is_tracing = self._guarded(self._start) is not None
        with jax.profiler.StepTraceAnnotation("step", step_num=step):
            yield
        if step == self._steps[-1]:
            self.close()

    def add(self, step: int, counts: Callable[[], Counts], seconds: Mapping[str, float]) -> None:
        """What a step consisted of, and the seconds of its stages; nothing happens where it is not traced."""
        if self._is_tracing and step in self._steps:
            self._done.append((step, counts(), dict(seconds)))

    def close(self) -> None:
        """Ends the trace and writes what came of it; does nothing where none is being made."""
        if not self._is_tracing:
            return
        self._is_tracing = False
        if self._guarded(self._stop) is not None:
            self._say(f"profile of {_named([step for step, *_ in self._done])} in {self._folder}")

    def _start(self) -> bool:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call as an event would make the step another one
        self._folder.mkdir(exist_ok=True)
        self._compiled = self._compiles.seconds if self._compiles else 0.0
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
        return True

    def _stop(self) -> bool:
        jax.profiler.stop_trace()
        if not self._done or self._peak is None:
            return True
        rows = shares([(counts, seconds) for _, counts, seconds in self._done], self._peak, self._works)
        compiled = self._compiles.seconds - self._compiled if self._compiles else 0.0
        record = {
            "steps": [step for step, *_ in self._done],
            "device": self._peak.source,
            "peak_flops": self._peak.flops,
            "peak_bytes_per_second": self._peak.bandwidth,
            "compile_seconds": compiled,
            "stages": rows,
        }
        write_json(self._folder / "roofline.json", record)
        return True

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """What it returns; None and a warning where it fails."""
        try:
            return call()
        except Exception as error:  # the profiler, the device or the disk
            logger.warning("no profile: %s: %s", type(error).__name__, error)
            return None


def read_roofline(path: pathlib.Path) -> dict[str, Any] | None:
    """The shares of the last profile of a run; None where there is none.

    Raises:
      ValueError: the file is damaged; names it.
    """
    file = path / FOLDER / "roofline.json"
    if not file.exists():
        return None
    record = read_json(file)
    if not (isinstance(record, dict) and isinstance(record.get("stages"), list) and record.get("steps")):
        raise ValueError(f"{file} is not the record of a profile: remove it, and profile again")
    return record


def _named(steps: list[int]) -> str:
    if not steps:
        return "no whole step"
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
