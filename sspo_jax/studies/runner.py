"""The cells of a study, some at a time, each on a core of its own; a process runs several in turn."""

import dataclasses
import math
import os
import pathlib
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sspo_jax.files import read_json
from sspo_jax.studies.cells import StudyFolder
from sspo_jax.studies.matching import MOST_PILOTS, Pilot, matched

_POLL_SECONDS = 0.2
_CELLS_PER_PROCESS = 40
"""In turn, so that imports, tracing and compiled programs are paid for once; what a run leaves in memory ends there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is left to do."""

    cells: int
    done: int
    most_pilots: int
    """Pilot runs that may still be needed, at most."""
    seconds_per_run: float
    is_measured: bool
    """From cells that are done, rather than as the study says."""

    def hours(self, jobs: int) -> tuple[float, float]:
        """(without pilots, with the most there can be) on so many cores."""
        left = (self.cells - self.done) * self.seconds_per_run / jobs / 3600
        return left, left + self.most_pilots * self.seconds_per_run / jobs / 3600


def estimate(folder: StudyFolder, names: Sequence[str]) -> Estimate:
    """What is left of these cells.

    Args:
      names: of the cells that are asked for.
    """
    seconds = [seconds_of(folder.path / name) for name in names if folder.is_done(name)]
    measured = [value for value in seconds if value is not None]
    study = folder.study
    found = {(match.task, match.variant): match for match in folder.matches()}
    pilots = 0
    for task, variant in study.matched(set(names)):
        match = found.get((task, variant.name))
        pilots += MOST_PILOTS if match is None else 0 if match.is_near else MOST_PILOTS - match.pilots
    return Estimate(
        cells=len(names),
        done=sum(map(folder.is_done, names)),
        most_pilots=pilots,
        seconds_per_run=statistics.median(measured) if measured else study.seconds_per_run,
        is_measured=bool(measured),
    )


def seconds_of(path: pathlib.Path) -> float | None:
    """How long the process of a finished run took; None where it is not known."""
    file = path / "process.json"
    return float(read_json(file)["seconds"]) if file.is_file() else None


@dataclasses.dataclass
class _Running:
    names: list[str]
    """Its cells that are not done; the first is running."""
    process: subprocess.Popen[bytes]
    core: int | None
    started: float
    """When the first was."""


class Runner:
    """Runs cells in processes, several in each.

    A process that fails ends at the cell it failed at; those after it are run by the next one.

    Args:
      folder: of the study.
      command: the command line that runs cells one after another, given their names and a core.
      jobs: processes at a time, each pinned to a core where the system can.
      console: where progress is shown.
    """

    def __init__(
        self,
        folder: StudyFolder,
        command: Callable[[Sequence[str], int | None], list[str]],
        *,
        jobs: int,
        console: Console,
    ):
        self._folder, self._command, self._jobs, self._console = folder, command, jobs, console
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if cores and jobs > len(cores):
            raise ValueError(f"--jobs is {jobs}; expected at most {len(cores)}, the cores of this machine")
        self._free: list[int | None] = list(cores[:jobs]) if cores and jobs > 1 else [None] * jobs
        self._seconds: list[float] = []

    def match(self, names: Sequence[str]) -> None:
        """Runs the pilots that these cells need and that are missing, of all variants side by side."""

        def run(pilots: Sequence[Pilot]) -> list[str]:
            return self.run([pilot.name for pilot in pilots], what="pilots")

        for match in matched(self._folder.study, self._folder.path, run, names=set(names)):
            near = "" if match.is_near else f", NOT near enough to {match.wanted:.2%}"
            self._console.print(
                f"{match.task}, {match.variant}: bounds x {match.factor:.4g}, {match.outcome} {match.reached:.2%} "
                f"after {match.pilots} pilots{near}"
            )

    def run(self, names: Sequence[str], *, what: str = "cells") -> list[str]:
        """Runs those that are not done; returns the names of those that failed, which are recorded.

        Raises:
          KeyboardInterrupt: the running cells were asked to stop, and have saved what they had.
        """
        waiting = [name for name in names if not self._folder.is_done(name)]
        failed: list[str] = []
        running: list[_Running] = []
        columns = (
            *(TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(what, total=len(names), completed=len(names) - len(waiting), note="")
            try:
                while waiting or running:
                    while waiting and self._free:
                        count = min(_CELLS_PER_PROCESS, math.ceil(len(waiting) / len(self._free)))
                        running.append(self._start(waiting[:count], self._free.pop(0)))
                        del waiting[:count]
                    time.sleep(_POLL_SECONDS)
                    for own in list(running):
                        has_ended = own.process.poll() is not None  # asked before what it has done
                        ended = self._finished(own, has_ended)
                        if has_ended:
                            running.remove(own)
                            self._free.append(own.core)
                            waiting[:0] = own.names
                            own.names = []
                        for name, error in ended:
                            failed += [name] if error else []
                            progress.advance(task)
                            left = len(waiting) + sum(len(other.names) for other in running)
                            note = self._note(left, len(failed))
                            progress.update(task, note=note)
                            if error or not self._console.is_terminal:
                                self._console.print(f"{name}: {error or 'done'}  {note}", markup=False)
            except KeyboardInterrupt:
                self._stop(running)
                raise
        return failed

    def _start(self, names: Sequence[str], core: int | None) -> _Running:
        log = self._folder.log(names[0])
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            # A session of its own: Ctrl-C at the terminal is handed on by `_stop`, once.
            process = subprocess.Popen(
                self._command(names, core), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        return _Running(names=list(names), process=process, core=core, started=time.monotonic())

    def _finished(self, own: _Running, has_ended: bool) -> list[tuple[str, str]]:
        """Records the cells that a process is through with, with what went wrong, or nothing; they leave its names."""
        found = []
        while own.names and self._folder.is_done(own.names[0]):
            name, now = own.names.pop(0), time.monotonic()
            self._seconds.append(now - own.started)
            own.started = now
            (self._folder.path / name / "process.json").write_text(f'{{"seconds": {self._seconds[-1]:.2f}}}\n')
            self._folder.record_failure(name, None)
            found.append((name, ""))
        if has_ended and own.names:
            name = own.names.pop(0)
            found.append((name, self._failed(name, own.process.returncode, time.monotonic() - own.started)))
        return found

    def _failed(self, name: str, code: int, seconds: float) -> str:
        """Records that a cell failed; says so."""
        log = self._folder.log(name)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        self._folder.record_failure(
            name, {"code": code, "last_line": last, "log": str(log), "seconds": round(seconds, 1)}
        )
        return f"failed with code {code}: {last}"

    def _note(self, left: int, failed: int) -> str:
        if not self._seconds:
            return f"{failed} failed" if failed else ""
        minutes = statistics.mean(self._seconds[-20:]) * left / self._jobs / 60
        time_left = f"{minutes / 60:.1f} h left" if minutes >= 90 else f"{minutes:.0f} min left"
        return f"{statistics.mean(self._seconds[-20:]):.0f} s each, {time_left}" + (f", {failed} failed" * bool(failed))

    def _stop(self, running: Sequence[_Running]) -> None:
        self._console.print("stopping: running cells save what they have; the same command goes on")
        for own in running:
            if own.process.poll() is None:
                own.process.send_signal(signal.SIGTERM)
        for own in running:
            own.process.wait()
