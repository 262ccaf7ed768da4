"""An evaluation for people: report.md and report.html (one file, no network, no scripts)."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sspo_jax.data.problems import Problem
from sspo_jax.evaluation.intervals import Estimate
from sspo_jax.evaluation.presets import facts_of
from sspo_jax.evaluation.results import Evaluation
from sspo_jax.evaluation.scoring import SampleRow, SetScores, accuracy_per_problem
from sspo_jax.files import replace_text

_TEMPLATE = pathlib.Path(__file__).parent / "report.html.jinja"
_MOST_TEXT = 4_000  # characters of a response that are shown; samples.jsonl has all of them
_MOST_FAILURES = 20  # shown per set
_MOST_LONGEST = 5


def write_report(
    directory: pathlib.Path,
    evaluation: Evaluation,
    rows: Sequence[SampleRow],
    problems: Mapping[str, Sequence[Problem]],
) -> None:
    """Writes report.md and report.html.

    Args:
      directory: of the evaluation.
      evaluation: the scores.
      rows: all judged responses.
      problems: of each set, by its name; for the texts beside failures.
    """
    replace_text(directory / "report.md", markdown(evaluation))
    replace_text(directory / "report.html", html(evaluation, rows, problems))


def markdown(evaluation: Evaluation) -> str:
    """The tables as Markdown."""
    protocol = evaluation.protocol
    title, average = evaluation.average
    lines = [
        f"# {protocol['model']}, {protocol['preset']}",
        "",
        f"{_describe(protocol)} Scores in percent with 95 % intervals (bootstrap over problems, then samples).",
        "",
        "| set | problems | samples | score | pass@k | maj@k | mean tokens | truncated | unparsed | timed out |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for scores in evaluation.sets:
        cells = [
            facts_of(scores.name).title + _part_of(scores),
            str(scores.problems),
            str(scores.samples),
            _percent(scores.accuracy),
            *(_percent(scores.metrics.get(f"{kind}@{scores.samples}")) for kind in ("pass", "maj")),
            _number(scores.metrics.get("length_mean")),
            *(f"{scores.metrics[f'{kind}_fraction'].value:.1%}" for kind in ("truncated", "unparsed", "timeout")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(evaluation.sets) > 1:
        lines.append(f"| **{title}** | | | **{_percent(average)}** | | | | | | |")
    lines.append("")
    for scores in evaluation.sets:
        note = facts_of(scores.name).note
        if note:
            lines.append(f"- {facts_of(scores.name).title}: {note}.")
    for scores in evaluation.sets:
        for kind, group in (("Level", scores.by_level), ("Subject", scores.by_subject)):
            if len(group) > 1:
                lines += ["", f"## {facts_of(scores.name).title} by {kind.lower()}", ""]
                lines += [f"| {kind} | problems | score |", "|---|---:|---:|"]
                lines += [f"| {key} | {count} | {_percent(value)} |" for key, (count, value) in group.items()]
    lines += ["", "## How to repeat it", "", "```"]
    lines += [f"{key}: {value}" for key, value in {**protocol, **evaluation.about}.items()]
    return "\n".join([*lines, "```", ""])


def summary_table(evaluation: Evaluation) -> str:
    """The scores as a few lines of plain text."""
    title, average = evaluation.average
    rows = [(facts_of(scores.name).title + _part_of(scores), _percent(scores.accuracy)) for scores in evaluation.sets]
    if len(rows) > 1:
        rows.append((title, _percent(average)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [f"{evaluation.protocol['model']}, {evaluation.protocol['preset']}, percent [95 % interval]"]
        + [f"  {name:<{width}}  {score}" for name, score in rows]
    )


def html(evaluation: Evaluation, rows: Sequence[SampleRow], problems: Mapping[str, Sequence[Problem]]) -> str:
    """The report as one HTML page."""
    title, average = evaluation.average
    return _template().render(
        protocol=evaluation.protocol,
        description=_describe(evaluation.protocol),
        about=evaluation.about,
        average_title=title,
        average=average,
        sets=[
            _set_view(scores, [row for row in rows if row.set == scores.name], problems.get(scores.name, ()))
            for scores in evaluation.sets
        ],
    )


def _set_view(scores: SetScores, rows: Sequence[SampleRow], problems: Sequence[Problem]) -> dict[str, Any]:
    """What the template shows of a set."""
    texts = {problem.id: problem.problem for problem in problems}
    failures = [row for row in rows if row.status != "correct"]
    # What did not even get a decision comes first: timeouts and unread answers are ours to look at. Then the first
    # responses of all problems, rather than all responses of the first problem.
    order = {"error": 0, "timeout": 1, "unparsed": 2, "wrong": 3}
    failures.sort(key=lambda row: (order[row.status], row.sample))
    facts = facts_of(scores.name)
    return {
        "name": scores.name,
        "title": facts.title + _part_of(scores),
        "note": facts.note,
        "scores": scores,
        "accuracy": scores.accuracy,
        "metrics": {key: value for key, value in scores.metrics.items() if key != f"avg@{scores.samples}"},
        "groups": [
            (kind, group)
            for kind, group in (("level", scores.by_level), ("subject", scores.by_subject))
            if len(group) > 1
        ],
        "grid": accuracy_per_problem(scores),
        "failures": [_row_view(row, texts) for row in failures[:_MOST_FAILURES]],
        "failure_count": len(failures),
        "longest": [
            _row_view(row, texts)
            for row in sorted(rows, key=lambda row: -row.tokens)[:_MOST_LONGEST]
            if row.tokens >= 0
        ],
    }


def _row_view(row: SampleRow, texts: Mapping[str, str]) -> dict[str, Any]:
    view = dataclasses.asdict(row)
    if len(row.response) > _MOST_TEXT:
        half = _MOST_TEXT // 2
        left_out = len(row.response) - 2 * half
        view["response"] = f"{row.response[:half]}\n[… {left_out} characters left out …]\n{row.response[-half:]}"
    return {**view, "problem": texts.get(row.id, "")}


def _describe(protocol: Mapping[str, Any]) -> str:
    """How the responses were made, as a sentence."""
    if protocol["temperature"] is None:
        return "Responses sampled elsewhere, judged here."
    return (
        f"Prompt {protocol['prompt']}, temperature {protocol['temperature']:g}, top-p {protocol['top_p']:g}, at most "
        f"{protocol['max_new_tokens']} new tokens, seed {protocol['seed']}."
    )


def _part_of(scores: SetScores) -> str:
    size = facts_of(scores.name).size
    return "" if size is None or size == scores.problems else f" [{scores.problems} of {size}]"


def _percent(value: Estimate | None) -> str:
    return "" if value is None else f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _number(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.0f}"


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
