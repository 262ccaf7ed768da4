"""Accuracy and speed of the answer checker; math-verify side by side where an interpreter that has it is given.

    python benchmarks/checker.py [--data FOLDER] [--math-verify VENV/bin/python]

with FOLDER holding problems with worked solutions as JSON lines, and VENV made by
`python3 -m venv VENV && VENV/bin/pip install "math-verify[antlr4_13_2]==0.9.0"`. Prints one JSON line. Caches are off;
rates are per second of CPU time of all processes (`per_cpu_second`) and of the clock (`per_second`).
"""

import argparse
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sspo_jax.checker import Verifier  # noqa: E402
from tests.checker.corpus import as_response, read_corpus  # noqa: E402

HANGS = r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^2}}"
MATH_VERIFY = """
import json, sys, time, warnings, logging
warnings.filterwarnings("ignore"); logging.disable(logging.CRITICAL)
from math_verify import parse, verify
found, times = [], []
start = time.process_time()
for response, gold in json.load(sys.stdin):
    begin = time.perf_counter()
    try:
        found.append(bool(verify(parse("$" + gold + "$"), parse(response))))
    except BaseException:
        found.append(False)
    times.append(time.perf_counter() - begin)
print(json.dumps({"found": found, "times": times, "cpu": time.process_time() - start}))
"""


def cpu_seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def spread(times: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(times)
    return {
        "median_ms": round(1000 * statistics.median(ordered), 3),
        "p99_ms": round(1000 * ordered[math.ceil(0.99 * len(ordered)) - 1], 2),
    }


def accuracy(labels: list[bool], found: list[bool]) -> dict[str, float | int]:
    """How many pairs are judged as labelled, and how many different answers are called the same."""
    right = sum(label == answer for label, answer in zip(labels, found, strict=True))
    false_positives = sum(answer and not label for label, answer in zip(labels, found, strict=True))
    return {"right_percent": round(100 * right / len(labels), 2), "false_positives": false_positives}


def corpus_here(responses: list[str], golds: list[str], labels: list[bool]) -> dict[str, object]:
    """The project's checker on its corpus, one after the other and as a batch."""
    with Verifier(cache_size=0) as verifier:
        verifier.call("math:sqrt", 2.0, timeout_seconds=60.0).result()
        verdicts = [verifier.verify(response, gold) for response, gold in zip(responses, golds, strict=True)]
        started = time.perf_counter()
        verifier.verify_batch(responses, golds)
        seconds = time.perf_counter() - started
    found = [verdict.is_correct for verdict in verdicts]
    rate = {"per_second": round(len(golds) / seconds)}
    return {**accuracy(labels, found), **rate, **spread([verdict.seconds for verdict in verdicts])}


def corpus_there(python: str, responses: list[str], golds: list[str], labels: list[bool]) -> dict[str, object]:
    """math-verify on the same pairs, its default limits on."""
    pairs = json.dumps(list(zip(responses, golds, strict=True)))
    run = subprocess.run([python, "-c", MATH_VERIFY], input=pairs, capture_output=True, text=True, check=True)
    output = json.loads(run.stdout)
    rate = {"per_cpu_second": round(len(golds) / output["cpu"])}
    return {**accuracy(labels, output["found"]), **rate, **spread(output["times"])}


def solutions(folder: pathlib.Path) -> dict[str, object]:
    """Worked solutions against their golds, by file."""
    result: dict[str, object] = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        rows = [json.loads(line) for line in path.open(encoding="utf-8")]
        rows = [row for row in rows if row.get("solution")]
        if len(rows) < 200:
            continue
        with Verifier(cache_size=0) as verifier:
            before, started = cpu_seconds(), time.perf_counter()
            verdicts = verifier.verify_batch([row["solution"] for row in rows], [row["answer"] for row in rows])
            seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
        result[path.stem + "/" + path.parent.name] = {
            "rows": len(rows),
            "right_percent": round(100 * sum(verdict.is_correct for verdict in verdicts) / len(rows), 2),
            "per_second": round(len(rows) / seconds),
            "per_cpu_second": round(len(rows) / cpu),
        }
    return result


def hanging_batch() -> float:
    """Seconds for 1,024 responses of which one in a hundred hangs, at a limit of 2 s, processes already started."""
    with Verifier(timeout_seconds=2.0, cache_size=0) as verifier:
        verifier.call("math:sqrt", 2.0, timeout_seconds=60.0).result()
        responses = [HANGS if index % 100 == 50 else rf"\boxed{{{index}}}" for index in range(1024)]
        started = time.perf_counter()
        verdicts = verifier.verify_batch(responses, [str(index) for index in range(1024)])
        seconds = time.perf_counter() - started
    assert sum(verdict.status == "timeout" for verdict in verdicts) == 10
    assert sum(verdict.status == "correct" for verdict in verdicts) == 1014
    return round(seconds, 2)


def garbage() -> float:
    """Seconds for 200 responses of 10 kB each that hold no answer."""
    text = "the quick brown $x_{0}$ fox = \\frac{1} { jumps. " * 300
    with Verifier(cache_size=0) as verifier:
        started = time.perf_counter()
        verifier.verify_batch([text[index : index + 10_000] for index in range(200)], ["5"] * 200)
        return round(time.perf_counter() - started, 3)


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, help="folder with */*.jsonl of problems with solutions")
    parser.add_argument("--math-verify", help="a Python interpreter that has math-verify")
    arguments = parser.parse_args()
    corpus = read_corpus()
    responses, golds = [as_response(pair.answer) for pair in corpus], [pair.gold for pair in corpus]
    labels = [pair.is_same for pair in corpus]
    result: dict[str, object] = {
        "benchmark": "checker",
        "processors": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "pairs": len(corpus),
        "different_pairs": labels.count(False),
        "sspo_jax": corpus_here(responses, golds, labels),
        "hanging_batch_seconds": hanging_batch(),
        "garbage_seconds": garbage(),
    }
    if arguments.math_verify:
        result["math_verify"] = corpus_there(arguments.math_verify, responses, golds, labels)
    if arguments.data:
        result["solutions"] = solutions(arguments.data)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
