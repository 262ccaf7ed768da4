"""`sspo study STUDY`: runs what is missing of a study and writes its report."""

import dataclasses
import functools
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from sspo_jax.commands.experiments import load_experiment, load_file, named_files
from sspo_jax.commands.options import parse
from sspo_jax.studies.cells import StudyFolder
from sspo_jax.studies.report import write_reports
from sspo_jax.studies.results import results
from sspo_jax.studies.runner import Runner, estimate
from sspo_jax.studies.study import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Runs the cells of a study that are not done, each an ordinary run directory, then writes its report."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """Name of a file in studies/, or the path of one."""
    out: str | None = None
    """Directory of its runs; None: runs/studies/NAME. One with runs in it is gone on with."""
    jobs: int = 1
    """Cells at a time, each pinned to a core of its own. On an accelerator leave it at 1."""
    dry_run: bool = False
    """Say how many runs are left and how many hours they take; run nothing."""
    only: str = ""
    """Only cells whose name (setting/variant/seed-0000) contains this."""
    report: bool = False
    """Run nothing; write the report of what is done."""
    cell: str | None = None
    """Run this cell in this process; nothing else. Several names, with commas between, are run one after another, each
    printing to its log, as the study does."""
    core: int | None = None
    """With --cell: the core that it is pinned to."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo study`; exit code 1 where a cell failed, 3 where one was interrupted."""
    config = parse(StudyConfig, arguments, prog="sspo study")
    if not config.study:
        raise ValueError(f"no study is named; expected one of:\n{known()}")
    if config.jobs < 1:
        raise ValueError(f"--jobs is {config.jobs}; expected at least 1")
    if config.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {config.core})  # before anything makes threads
    name = pathlib.Path(config.study).stem
    path = pathlib.Path(config.out) if config.out else pathlib.Path("runs") / "studies" / name
    folder = StudyFolder(study=load_study(config.study), name=name, path=path, load=functools.cache(load_experiment))
    if config.cell is not None:
        from sspo_jax.runs.compilation import enable_compilation_cache

        enable_compilation_cache()
        cells = config.cell.split(",")
        return 0 if (folder.run_cells(cells) if len(cells) > 1 else folder.run_cell(cells[0])) else 3
    names = [cell.name for cell in folder.study.cells() if config.only in cell.name]
    console = Console(highlight=False)
    if config.dry_run:
        _say_what_is_left(console, folder, names, config.jobs)
        return 0
    path.mkdir(parents=True, exist_ok=True)
    failed = [] if config.report else _run(console, folder, names, config)
    for file in write_reports(results(folder), path):
        console.print(f"report: {file}", soft_wrap=True)
    if failed:
        console.print(
            f"next: the same command tries the {len(failed)} that failed again; see {path / 'logs'}", soft_wrap=True
        )
    return 1 if failed else 0


def _run(console: Console, folder: StudyFolder, names: Sequence[str], config: StudyConfig) -> list[str]:
    """Pilots, then cells; the names of those that failed."""

    def command(cells: Sequence[str], core: int | None) -> list[str]:
        pinned = [] if core is None else ["--core", str(core)]
        own = [sys.executable, "-m", "sspo_jax", "study", config.study, "--out", str(folder.path)]
        return [*own, "--cell", ",".join(cells), *pinned]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    folder.check_done(names)
    _say_what_is_left(console, folder, names, config.jobs)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        runner = Runner(folder, command, jobs=config.jobs, console=console)
        runner.match(names)
        return runner.run(names)
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_what_is_left(console: Console, folder: StudyFolder, names: Sequence[str], jobs: int) -> None:
    left = estimate(folder, names)
    least, most = left.hours(jobs)
    source = "measured" if left.is_measured else "as the study says"
    console.print(
        f"{folder.name}: {left.cells} runs, {left.done} done, at most {left.most_pilots} pilots; "
        f"{left.seconds_per_run:.0f} s a run ({source}), so {least:.1f} to {most:.1f} h with --jobs {jobs}",
        soft_wrap=True,
    )


def load_study(name: str) -> Study:
    """The `study()` of a study file.

    Raises:
      ValueError: no such study (the known ones are listed), or its file gives none; names the line.
    """
    study = load_file(name, named_files("studies"), kind="study", function="study", gives=Study, known=known)
    study.check()
    return study


def known() -> str:
    """Names of the studies, one a line."""
    return "\n".join(f"  {name}" for name in sorted(named_files("studies")))
