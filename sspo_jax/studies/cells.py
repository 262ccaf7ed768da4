"""The run directories of a study: what each is, and one of them run in this process."""

import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sspo_jax.config import TrainConfig
from sspo_jax.files import read_json, write_json
from sspo_jax.studies.matching import Match, Pilot, matched
from sspo_jax.studies.outcomes import CellRun, read_cell
from sspo_jax.studies.study import Cell, Load, Study, changed


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """The directory of a study.

    <setting>/<variant>/seed-N/    an ordinary run directory each
    pilots/<task>/<variant>/xF/    those by which ranges were matched
    logs/                          what the processes of the cells printed
    failures.json                  cells that failed at their last attempt, and why
    report.md, report.json, report.html
    """

    study: Study
    name: str
    path: pathlib.Path
    load: Load

    def factors(self) -> dict[tuple[str, str], float]:
        """Of the bounds, by task and variant, as far as the pilots are done."""
        return {(match.task, match.variant): match.factor for match in self.matches()}

    def matches(self) -> list[Match]:
        """What the pilots came to so far."""
        return matched(self.study, self.path)

    def is_done(self, name: str) -> bool:
        """Whether a cell or pilot is complete."""
        return (self.path / name / "summary.json").is_file()

    def runs(self) -> Iterator[tuple[Cell, CellRun]]:
        """The cells that are complete."""
        for cell in self.study.cells():
            run = read_cell(self.path / cell.name)
            if run is not None:
                yield cell, run

    def config_of(self, name: str) -> TrainConfig:
        """What a cell or a pilot runs, by its name.

        Raises:
          ValueError: there is none of that name, or no pilot of it is done.
        """
        kind, *parts = name.split("/")
        if kind == "pilots" and len(parts) == 3:
            for task, variant in self.study.matched():
                if parts[:2] == [task, variant.name]:
                    return self._pilot(Pilot(task=task, variant=variant, factor=float(parts[2].removeprefix("x"))))
        factors = self.factors()
        for cell in self.study.cells():
            if cell.name == name:
                is_matched = cell.variant.target is not None
                factor = factors.get((cell.setting.task, cell.variant.name)) if is_matched else 1.0
                if factor is None:
                    raise ValueError(
                        f"{name}: no pilot run of {cell.variant.name} in {cell.setting.task} is done, so its range is "
                        "not known; run the study without --cell, which runs the pilots first"
                    )
                return changed(cell.config(self.study, self.load, factor), self._place(name))
        raise ValueError(f"no cell {name!r} in {self.name}; a name is setting/variant/seed-0000")

    def _pilot(self, pilot: Pilot) -> TrainConfig:
        config = pilot.cell(self.study).config(self.study, self.load, pilot.factor)
        steps = self.study.pilot_steps
        return changed(config, ({} if steps is None else {"steps": steps}) | self._place(pilot.name))

    def _place(self, name: str) -> dict[str, Any]:
        return {"run_dir": str(self.path / name), "log.quiet": True}

    def check_done(self, names: Sequence[str]) -> None:
        """Refuses to take finished cells for what they are not: the study file may have changed since.

        Raises:
          ValueError: a cell was run with another configuration; names the first field that differs.
        """
        factors = self.factors()
        cells = {cell.name: cell for cell in self.study.cells()}
        for name in names:
            if not self.is_done(name):
                continue
            cell = cells[name]
            factor = factors.get((cell.setting.task, cell.variant.name), 1.0)
            config = cell.config(self.study, self.load, factor)
            now = _flat(config.resolved())
            before = _flat(config.completed(read_json(self.path / name / "config.json")["config"]))
            for field in sorted(now.keys() | before.keys()):
                if not field.startswith(("run_dir", "log.")) and now.get(field) != before.get(field):
                    raise ValueError(
                        f"{self.path / name} was run with {field} = {before.get(field)!r}, the study now has "
                        f"{now.get(field)!r}: choose another --out, or remove the run"
                    )

    def log(self, name: str) -> pathlib.Path:
        """Where what a cell prints is kept."""
        return self.path / "logs" / f"{name}.log"

    def run_cells(self, names: Sequence[str]) -> bool:
        """Runs cells one after another, each with its log as this process's output; false if one was interrupted."""
        for name in names:
            self.log(name).parent.mkdir(parents=True, exist_ok=True)
            sys.stdout.flush()
            sys.stderr.flush()
            with open(self.log(name), "ab") as stream:
                for own in (1, 2):
                    os.dup2(stream.fileno(), own)
            if not self.run_cell(name):
                return False
        return True

    def run_cell(self, name: str) -> bool:
        """Runs a cell here, or goes on with it, unless it is done; false if it was interrupted."""
        from sspo_jax.trainer import train

        if self.is_done(name):
            return True
        summary = train(self.config_of(name), experiment=f"{self.name}/{name}")
        if summary.is_complete and not self.study.keeps_checkpoints:
            shutil.rmtree(self.path / name / "checkpoints", ignore_errors=True)
        return summary.is_complete

    def failures(self) -> dict[str, Any]:
        """Name of a cell that failed to its exit code and last words."""
        file = self.path / "failures.json"
        return read_json(file) if file.exists() else {}

    def record_failure(self, name: str, failure: dict[str, Any] | None) -> None:
        """Notes that a cell failed, or that it did not this time."""
        failures = self.failures()
        if failure is None and name not in failures:
            return
        failures.pop(name, None)
        write_json(self.path / "failures.json", failures | ({name: failure} if failure else {}))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of a record by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf
        for inner, own in value.items()
        for key, leaf in _flat(own, f"{name}.{inner}" if name else inner).items()
    }
