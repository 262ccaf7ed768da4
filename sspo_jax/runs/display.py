"""Metrics of a step to files and to the terminal."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Display:
    """The terminal: bars and sampled texts where a person looks on, one line a step otherwise.

    Args:
      quiet: one line a step even on a terminal.
      silent: print nothing: another process speaks for the run.
    """

    def __init__(self, *, quiet: bool, silent: bool = False):
        self.console = Console(highlight=False, soft_wrap=False, quiet=silent)
        self.is_live = self.console.is_terminal and not quiet and not silent
        self._quiet = quiet
        self._progress: Progress | None = None
        self._steps: TaskID | None = None
        self._phase: TaskID | None = None

    def say(self, text: str) -> None:
        """A line of plain text."""
        self.console.print(Text(text))

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Two columns: what, and its value."""
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, Text(value))
        self.console.print(table)

    @contextmanager
    def bars(self, what: str, total: int, completed: int = 0) -> Iterator[None]:
        """Shows a bar for the steps (or updates) and one for what is going on inside a step."""
        if not self.is_live:
            self._last_line = 0.0
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=False) as progress:
            self._progress = progress
            self._steps = progress.add_task(what, total=total, completed=completed, note="")
            self._phase = progress.add_task("", total=None, visible=False, note="")
            try:
                yield
            finally:
                progress.update(self._phase, visible=False)
                self._progress = None

    def phase(self, what: str, total: int | None = None, done: int = 0, note: str = "") -> None:
        """What is going on inside the step."""
        if self._progress is not None and self._phase is not None:
            self._progress.update(self._phase, description=what, total=total, completed=done, visible=True, note=note)

    def step_done(self, step: int, total: int, note: str, *, every_seconds: float = 0.0) -> None:
        """Advances the bar; without a terminal prints a line, but not more often than asked."""
        if self._progress is not None and self._steps is not None:
            self._progress.update(self._steps, completed=step, note=note)
        elif step == total or time.monotonic() - self._last_line >= every_seconds:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{total}  {note}")

    def samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """A few sampled texts with their verdicts."""
        if self._quiet:
            return
        for sample in samples:
            title = f"step {step} · {sample['status']} · reward {sample['reward']:g} · gold {sample['gold']}"
            body = Text()
            body.append(str(sample["problem"]).strip() + "\n", style="dim")
            body.append(str(sample["response"]).strip())
            self.console.print(Panel(body, title=Text(title), title_align="left", width=min(100, self.console.width)))
