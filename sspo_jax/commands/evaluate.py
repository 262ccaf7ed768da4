"""`sspo evaluate`: scores a checkpoint or a run on problem sets, compares two evaluations, or judges given responses.

sspo evaluate --model DIR --data aime24,amc23,math500,minerva,olympiadbench --preset paper-greedy
sspo evaluate --model runs/NAME
sspo evaluate --compare evaluations/a evaluations/b
sspo evaluate --responses answers.jsonl --data math500
"""

import pathlib
from collections.abc import Sequence

from sspo_jax.commands.options import parse
from sspo_jax.evaluation.results import read_results
from sspo_jax.evaluation.run import EvaluateConfig, evaluate
from sspo_jax.files import replace_text
from sspo_jax.runs.next_commands import next_commands


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo evaluate`."""
    return evaluate_command(parse(EvaluateConfig, arguments, prog="sspo evaluate"))


def evaluate_command(config: EvaluateConfig) -> int:
    """Runs an evaluation or a comparison and prints its table; returns the exit code.

    Raises:
      ValueError, FileNotFoundError: before anything is sampled; states the value, what was expected and the fix.
    """
    if config.compare is not None:
        return _compare(*config.compare)
    evaluation, directory = evaluate(config)
    from sspo_jax.evaluation.report import summary_table

    print(summary_table(evaluation))
    print(f"\nreport: {directory / 'report.html'}")
    print(next_commands(f"evaluate --compare {directory} OTHER"), " # OTHER: the evaluation of another model")
    return 0


def _compare(first: str, second: str) -> int:
    from sspo_jax.evaluation.comparison import compare, comparison_table

    one, two = read_results(first), read_results(second)
    names = (pathlib.Path(first).name, pathlib.Path(second).name)
    table = comparison_table(compare(one, two), names)
    print(table)
    path = pathlib.Path(first) / f"compared-with-{names[1]}.md"
    replace_text(path, f"# {names[0]} against {names[1]}\n\n{table}\n")
    print(f"\nwritten to {path}")
    return 0
