"""`sspo data get NAME ...`, `sspo data overlap TRAIN EVAL ...` and `sspo data audit FILE`."""

import collections
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from sspo_jax.commands.data_get import GetConfig, get_command
from sspo_jax.commands.options import parse
from sspo_jax.data.audit import audit, read_rows
from sspo_jax.data.overlap import find_overlap, one_line, write_problems
from sspo_jax.data.problems import iterate
from sspo_jax.data.sources import open_problems
from sspo_jax.files import write_json_lines
from sspo_jax.ranges import Count, Range, Whole
from sspo_jax.runs.next_commands import next_commands

_USAGE = """usage: sspo data COMMAND ... (`sspo data COMMAND --help` for its options)

  get NAME [NAME ...]             published sets by name, from the Hub or a local copy: eval, gsm8k, ...
  overlap TRAIN EVAL [EVAL ...]   training problems that are, exactly or nearly, in evaluation sets
  audit FILE                      golds that cannot be read, are ambiguous, or do not match themselves"""


def main(arguments: Sequence[str]) -> int:
    """Runs one of them; exit code 2 for another word."""
    command, *rest = arguments or [""]
    if command == "get":
        return get_command(parse(GetConfig, rest, prog="sspo data get"))
    if command == "overlap":
        return overlap_command(parse(OverlapConfig, rest, prog="sspo data overlap"))
    if command == "audit":
        return audit_command(parse(AuditConfig, rest, prog="sspo data audit"))
    is_help = command in ("-h", "--help")
    print(_USAGE, file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """List the golds of a file of problems that cannot be parsed, are ambiguous, or do not match themselves."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """Problems as JSON lines with `id`, `problem`, `answer` and, where there is one, `solution`."""
    output: str | None = None
    """Write the findings as JSON lines."""
    solutions: bool = True
    """Also check that the worked solution, where there is one, leads to the gold."""


def audit_command(config: AuditConfig) -> int:
    """Print the findings by kind; 0 where there are none, else 1.

    Raises:
        ValueError: a line of the file is no problem.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = list(read_rows(config.file))
    findings = audit(rows, solutions=config.solutions)
    table = Table("kind", "id", "gold", "what was found")
    for finding in sorted(findings, key=lambda finding: (finding.kind, finding.id)):
        table.add_row(finding.kind, escape(finding.id), escape(finding.answer[:60]), escape(finding.detail[:110]))
    console = Console()
    console.print(table)
    counts = collections.Counter(finding.kind for finding in findings)
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    console.print(f"{len(rows):,} golds: {summary}", highlight=False)
    if config.output is not None:
        write_json_lines(pathlib.Path(config.output), map(dataclasses.asdict, findings))
    return 1 if findings else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapConfig:
    """Finds training problems that are in evaluation sets."""

    train: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRAIN")]
    """Training problems: a .jsonl path, tfds:NAME, ..."""
    evals: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="EVAL [EVAL ...]")]
    """Evaluation sets: names of files in the data folder, or paths."""
    data_dir: str | None = None
    """Folder of the sets called by name; none: $SSPO_DATA, then data/."""
    ngram: Count = 8
    """Words of an n-gram."""
    near_share: Annotated[float, Range(above=0, most=1)] = 0.5
    """Share of common n-grams from which two problems are near duplicates."""
    write: str | None = None
    """Write the training problems without the ones found to this .jsonl file."""
    show: Whole = 10
    """Pairs to print."""


def overlap_command(config: OverlapConfig) -> int:
    """Prints what was found, writes the cleaned file if asked to; exit code 1 if there was overlap and none written.

    Raises:
      ValueError, FileNotFoundError: as `open_problems`; `write` is not a new .jsonl file.
    """
    if config.write is not None and (not config.write.endswith(".jsonl") or os.path.exists(config.write)):
        raise ValueError(f"--write is {config.write}; expected a .jsonl file that does not exist yet")
    if not config.evals:
        raise ValueError("no evaluation set is named; expected one or more after the training problems")
    train = open_problems(config.train, data_dir=config.data_dir)
    evals = [open_problems(spec, data_dir=config.data_dir) for spec in config.evals]
    found = find_overlap(train, evals, ngram=config.ngram, near_share=config.near_share)
    counts = collections.Counter((overlap.eval_set, overlap.kind) for overlap in found)
    print(f"{train.name}: {len(found)} of {len(train)} problems are in the evaluation sets")
    for (name, kind), count in sorted(counts.items()):
        print(f"  {name:<16} {kind:<8} {count}")
    by_set = {source.name: source for source in evals}
    for overlap in sorted(found, key=lambda one: one.share)[: config.show]:  # the doubtful ones: those to look at
        other = next(problem for problem in iterate(by_set[overlap.eval_set]) if problem.id == overlap.eval_id)
        print(f"\n{overlap.kind}, {overlap.share:.0%}: {overlap.train_id} / {overlap.eval_id}")
        print(f"  {one_line(train[overlap.train_index].problem)}\n  {one_line(other.problem)}")
    if config.write is not None:
        dropped = {overlap.train_index for overlap in found}
        write_problems(config.write, (problem for index, problem in enumerate(iterate(train)) if index not in dropped))
        print(f"\nwrote {len(train) - len(dropped)} problems to {config.write}")
        print(next_commands(f"train EXPERIMENT --data.path {config.write}"))
        return 0
    return 1 if found else 0
