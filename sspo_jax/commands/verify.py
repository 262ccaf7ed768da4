"""`sspo verify`: one response explained step by step, or a file of responses scored, with the ledger."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sspo_jax.checker import STATUSES, Options, Verdict, Verifier, ledger
from sspo_jax.data.problems import Problem
from sspo_jax.evaluation.judging import Judge
from sspo_jax.files import read_json_lines, write_json_lines
from sspo_jax.ranges import NotNegative, Positive, Workers

_CHUNK = 256  # responses submitted at a time, so that the progress bar moves


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Judge a response (--response, --gold), or a file of them: sspo verify FILE."""

    response: str | None = None
    """A whole response; with --gold, the verdict is explained."""
    gold: str | None = None
    """The gold answer, as LaTeX or text."""
    file: str | None = None
    """JSON lines with a response and a gold each; every line is scored. `set`, `source` and `extra` of a line, as in
    problems and in the rollouts of a run, say what is judged with a tolerance or with a unit."""
    response_field: str = "response"
    """The field of the response in a line of the file."""
    gold_field: str = "gold"
    """The field of the gold answer; where it is missing, `answer` is taken."""
    output: str | None = None
    """Write one line of JSON with the verdict for each line of the file."""
    timeout_seconds: Positive = 5.0
    """The most a worker may spend on one check."""
    workers: Workers | None = None
    """Worker processes for hard answers; the processor's count by default."""
    relative_tolerance: NotNegative | None = None
    """Numbers agree where |answer - gold| <= this * |gold|; not set: as the set of the problem says, else exact."""
    absolute_tolerance: NotNegative | None = None
    """Numbers agree where |answer - gold| <= this; not set: as the problem says (`extra.error`), else exact."""
    lenient: bool = False
    """Where no answer is stated, take the last formula or number."""

    @property
    def options(self) -> Options:
        """What counts as the same answer."""
        return Options(
            relative_tolerance=self.relative_tolerance,
            absolute_tolerance=self.absolute_tolerance,
            lenient=self.lenient,
        )


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo verify`: options, or a FILE.jsonl first."""
    from sspo_jax.commands.options import parse

    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--file", *arguments]
    return verify_command(parse(VerifyConfig, arguments, prog="sspo verify"))


def verify_command(config: VerifyConfig) -> int:
    """Print what is asked for; 0 where one response is correct or a file was scored, else 1.

    Raises:
        ValueError: neither a file nor a response with its gold is given, or a line of the file cannot be used.
    """
    if config.file is not None:
        if config.response is not None or config.gold is not None:
            raise ValueError("a file and --response or --gold are given: give one of the two")
        return _score_file(config)
    if config.response is None or config.gold is None:
        raise ValueError("nothing to judge: give FILE.jsonl, or both --response TEXT and --gold TEXT")
    return _explain(config, config.response, config.gold)


def _explain(config: VerifyConfig, response: str, gold: str) -> int:
    from sspo_jax.checker.decide import decide, gold_answer
    from sspo_jax.checker.extract.response import extract
    from sspo_jax.checker.limits import NeedsWorker
    from sspo_jax.checker.parse.normalise import fold, tidy

    say = _printer()
    found = extract(response, config.options)
    say(f"response   {len(response):,} characters")
    say(f"extracted  {_shown(found.answer)}   ({found.rule})")
    if found.answer is not None:
        wanted = gold_answer(gold)
        say(f"tidied     {_shown(tidy(fold(found.answer[:2000])))}")
        say(f"gold       {_shown(wanted)}")
        say(f"tidied     {_shown(tidy(fold(wanted[:2000])))}")
        try:
            decide(found.answer, wanted, config.options, say, reuse=False)
        except NeedsWorker as needs:
            say(f"in a worker, because of {needs}")
    with Verifier(config.workers or 1, config.timeout_seconds, **vars(config.options)) as verifier:
        verdict = verifier.verify(response, gold)
    say(f"verdict    {verdict.status}: {verdict.reason}   ({1000 * verdict.seconds:.2f} ms)")
    return 0 if verdict.is_correct else 1


def _score_file(config: VerifyConfig) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    rows = list(_rows(config))
    stated = {name: value for name, value in vars(config.options).items() if value != getattr(Options(), name)}
    verdicts: list[Verdict] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.perf_counter()
    with (
        Verifier(config.workers, config.timeout_seconds) as verifier,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        judge = Judge(verifier, **stated)
        task = progress.add_task("checking", total=len(rows))
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            verdicts += judge.verdicts([row[0] for row in chunk], [row[1] for row in chunk])
            progress.update(task, advance=len(chunk))
    seconds = time.perf_counter() - started
    if config.output is not None:
        write_json_lines(pathlib.Path(config.output), map(dataclasses.asdict, verdicts))
    fractions = ledger(verdicts)
    table = Table("status", "responses", "fraction")
    for status in STATUSES:
        count = sum(verdict.status == status for verdict in verdicts)
        table.add_row(status, f"{count:,}", f"{100 * fractions[f'verify/{status}_fraction']:.2f} %")
    table.add_row("all", f"{len(verdicts):,}", f"{len(verdicts) / max(seconds, 1e-9):,.0f} per second")
    Console().print(table)
    return 0


def _rows(config: VerifyConfig) -> Iterator[tuple[str, Problem]]:
    """Responses, and the problems they answer as far as the lines state them."""
    assert config.file is not None
    for where, row in read_json_lines(config.file):
        gold = row.get(config.gold_field, row.get("answer")) if isinstance(row, dict) else None
        response = row.get(config.response_field) if isinstance(row, dict) else None
        if not isinstance(response, str) or not isinstance(gold, str):
            fields = {k: type(row[k]).__name__ for k in row} if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f"{where}: expected fields {config.response_field!r} and {config.gold_field!r} (or 'answer') "
                f"with texts, the line has {fields}; name others with --response-field and --gold-field"
            )
        about = {name: row[name] for name in ("set", "source", "extra") if row.get(name) is not None}
        for name, value in about.items():
            kind = dict if name == "extra" else str
            if not isinstance(value, kind):
                raise ValueError(f"{where}: `{name}` is {value!r:.80}; expected {kind.__name__}")
        yield response, Problem(id=where, problem="", answer=gold, **about)


def _shown(text: str | None) -> str:
    if text is None:
        return "nothing"
    return repr(text) if len(text) <= 300 else f"{text[:300]!r}... ({len(text):,} characters)"


def _printer() -> Any:
    def say(line: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding))

    return say
