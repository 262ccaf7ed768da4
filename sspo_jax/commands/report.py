"""`sspo report RUN [RUN ...]`: one HTML file of a run, or of several beside each other."""

import dataclasses
import pathlib
import webbrowser
from collections.abc import Sequence
from typing import Annotated

import tyro

from sspo_jax.commands.options import parse
from sspo_jax.files import check_writable_file
from sspo_jax.report.page import write_report
from sspo_jax.report.reader import RunReader
from sspo_jax.runs.next_commands import next_commands
from sspo_jax.runs.policy import read_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Writes a page with curves, clauses and problems that opens without a network."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories; several are drawn over each other, and compared with the first."""
    out: str | None = None
    """File to write; None: report.html in the run directory, or report.html here for several runs."""
    open: bool = False
    """Open it in the browser."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo report`."""
    config = parse(ReportConfig, arguments, prog="sspo report")
    if not config.runs:
        raise ValueError("no run is named; expected one run directory or more, as in sspo report runs/NAME")
    paths = [pathlib.Path(run) for run in config.runs]
    for number, path in enumerate(paths):
        read_record(path)
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise ValueError(f"{path} is named twice; expected each run once")
    file = pathlib.Path(config.out) if config.out else (paths[0] if len(paths) == 1 else pathlib.Path()) / "report.html"
    check_writable_file("--out", file)
    write_report([RunReader(path) for path in paths], file)
    print(f"report: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    if not config.open:
        print(next_commands(f"report {' '.join(config.runs)} --open", f"inspect {paths[0]}"))
    if config.open and not webbrowser.open(file.resolve().as_uri()):
        print("no browser answered; open the file by hand")
    return 0
