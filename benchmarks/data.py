"""Speed of loading problems and of an evaluation with canned answers: `python benchmarks/data.py [--data FILE ...]`.

Prints one JSON line. Without files it writes made-up problems of the size of MATH's to a temporary one. The evaluation
judges the gold answer of every problem, takes the intervals and writes the report.
"""

import argparse
import json
import pathlib
import tempfile
import time

from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import JsonlSource, iterate
from sspo_jax.evaluation.run import EvaluateConfig, evaluate


def made_up(folder: pathlib.Path, rows: int) -> str:
    """A file of problems with texts of 200 and solutions of 500 characters."""
    path = folder / "made_up.jsonl"
    lines = (
        {"id": str(row), "problem": f"{row} " * 40, "answer": str(row), "solution": "so " * 170, "level": 1 + row % 5}
        for row in range(rows)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def seconds_of(function) -> float:
    """The shortest of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", default=[], help="JSON-lines files of problems")
    parser.add_argument("--rows", type=int, default=20_000, help="made-up rows, without --data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = options.data or [made_up(folder, options.rows)]
        opening = seconds_of(lambda: [JsonlSource(file) for file in files])
        sources = [JsonlSource(file) for file in files]
        rows = sum(map(len, sources))
        reading = seconds_of(lambda: [problem for source in sources for problem in iterate(source)])
        stream = ProblemStream(sources[0], batch_size=128, seed=0)
        streaming = seconds_of(lambda: [stream.next() for _ in range(20)])
        generated = ArithmeticData().open()
        generating = seconds_of(lambda: [generated[index] for index in range(2_000)])
        answers = folder / "answers.jsonl"
        with open(answers, "w", encoding="utf-8") as file:
            for source in sources:
                for problem in iterate(source):
                    row = {"set": source.name, "id": problem.id, "response": f"\\boxed{{{problem.answer}}}"}
                    file.write(json.dumps(row) + "\n")
        start = time.perf_counter()
        evaluate(EvaluateConfig(responses=str(answers), data=",".join(files), out=str(folder / "out")))
        evaluating = time.perf_counter() - start
    print(
        json.dumps(
            {
                "benchmark": "data",
                "rows": rows,
                "open_rows_per_second": round(rows / opening),
                "read_rows_per_second": round(rows / reading),
                "open_and_read_rows_per_second": round(rows / (opening + reading)),
                "stream_problems_per_second": round(20 * 128 / streaming),
                "generated_problems_per_second": round(2_000 / generating),
                "canned_evaluation_seconds": round(evaluating, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
