"""An evaluation as a directory: results.json and samples.jsonl, written and read back.

samples.jsonl is appended to block by block while the evaluation runs; its first line says what the samples are of, and
an evaluation goes on from a file only if that is the same. results.json is written at the end.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sspo_jax.evaluation.intervals import Estimate, estimate_average
from sspo_jax.evaluation.presets import PAPER_SETS
from sspo_jax.evaluation.scoring import SampleRow, SetScores
from sspo_jax.files import append_json_lines, read_json, read_json_lines, write_json, write_json_lines

RESULTS, SAMPLES = "results.json", "samples.jsonl"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything an evaluation found, and what is needed to repeat it."""

    protocol: Mapping[str, Any]
    """What decides the samples: preset and its numbers, model, prompt, seed, digests. Two evaluations with the same
    protocol have the same samples."""
    about: Mapping[str, Any]
    """What does not: versions, commit, device, seconds, tokens."""
    sets: tuple[SetScores, ...]
    """Scores of each set."""

    @property
    def average(self) -> tuple[str, Estimate]:
        """Name and value of the unweighted mean over the sets: over the paper's five where all are there."""
        by_name = {scores.name: scores for scores in self.sets}
        five = all(name in by_name for name in PAPER_SETS)
        chosen = PAPER_SETS if five else tuple(by_name)
        title = "average of the five sets" if five else f"average of {len(chosen)} sets"
        correct = {name: by_name[name].correct for name in chosen}
        return title, estimate_average(correct, seed=self.protocol["seed"])


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The content of results.json."""
    title, average = evaluation.average
    return {
        "format": FORMAT,
        "protocol": dict(evaluation.protocol),
        "about": dict(evaluation.about),
        "average": {"of": title, **dataclasses.asdict(average)},
        "sets": {scores.name: _set_to_json(scores) for scores in evaluation.sets},
    }


def read_results(directory: str | os.PathLike[str]) -> Evaluation:
    """An evaluation from its directory.

    Raises:
      FileNotFoundError: there is no finished evaluation in it.
      ValueError: another format.
    """
    path = pathlib.Path(directory) / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"no {RESULTS} in {directory}; expected the directory of a finished evaluation")
    content = read_json(path, advice="Evaluate again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: format {found}; expected {FORMAT}: evaluate again")
    try:
        sets = tuple(_set_from_json(name, scores) for name, scores in content["sets"].items())
        evaluation = Evaluation(protocol=dict(content["protocol"]), about=dict(content["about"]), sets=sets)
        json.dumps(to_json(evaluation))  # everything that a comparison reads is there
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error}); evaluate again") from None
    return evaluation


def write_results(directory: pathlib.Path, evaluation: Evaluation) -> None:
    """Writes results.json, at once (a reader sees the old file or the new one)."""
    write_json(directory / RESULTS, to_json(evaluation))


class SampleFile:
    """samples.jsonl of one evaluation: what is there already, and more of it.

    Args:
      directory: of the evaluation; made if missing.
      protocol: what decides the samples.

    Raises:
      ValueError: the file holds samples of another protocol; the fields that differ are named.
    """

    def __init__(self, directory: pathlib.Path, protocol: Mapping[str, Any]):
        self.path = directory / SAMPLES
        directory.mkdir(parents=True, exist_ok=True)
        self.rows: list[SampleRow] = []
        header = {"protocol": json.loads(json.dumps(protocol))}
        if self.path.is_file():
            found = self._read()
            if found is not None:
                _refuse_other(self.path, found["protocol"], header["protocol"])
                return
        write_json_lines(self.path, [header])

    def append(self, rows: Sequence[SampleRow]) -> None:
        """Adds rows and makes sure that they are on the disk."""
        append_json_lines(self.path, map(dataclasses.asdict, rows))

    def rows_of(self, name: str) -> list[SampleRow]:
        """The earlier rows of a set."""
        return [row for row in self.rows if row.set == name]

    def rewrite(self, rows: Sequence[SampleRow]) -> None:
        """The file with its first line and exactly these rows: drops what unfinished blocks had left."""
        _, header = next(read_json_lines(self.path))
        write_json_lines(self.path, [header, *map(dataclasses.asdict, rows)])

    def _read(self) -> dict[str, Any] | None:
        """The first line; rows go to `self.rows`. A line cut by a crash is the last one and is removed."""
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        lines = list(read_json_lines(self.path))
        if not lines:
            return None
        self.rows = list(map(_sample_row, lines[1:]))
        return lines[0][1]


def read_samples(directory: str | os.PathLike[str]) -> list[SampleRow]:
    """All judged responses of an evaluation."""
    return [_sample_row(line) for line in list(read_json_lines(pathlib.Path(directory) / SAMPLES))[1:]]


def _sample_row(line: tuple[str, Any]) -> SampleRow:
    where, row = line
    try:
        return SampleRow(**row)
    except TypeError as error:
        raise ValueError(f"{where}: not a judged response ({error}): remove the file, and evaluate again") from None


def _refuse_other(path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [
        f"{key} was {found.get(key)!r} and is {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise ValueError(
            f"{path} holds samples of another evaluation: {'; '.join(differing)}. Give another --out, or remove it"
        )


def _set_to_json(scores: SetScores) -> dict[str, Any]:
    groups = {
        name: {key: {"problems": count, **dataclasses.asdict(value)} for key, (count, value) in group.items()}
        for name, group in (("by_subject", scores.by_subject), ("by_level", scores.by_level))
    }
    return {
        "digest": scores.digest,
        "problems": scores.problems,
        "samples": scores.samples,
        "metrics": {key: dataclasses.asdict(value) for key, value in scores.metrics.items()},
        **groups,
        # one string of 0 and 1 a problem: small, and easy to read by eye
        "correct": {
            ident: "".join("01"[int(verdict)] for verdict in verdicts)
            for ident, verdicts in zip(scores.problem_ids, scores.correct, strict=True)
        },
    }


def _set_from_json(name: str, content: Mapping[str, Any]) -> SetScores:
    def group(entries: Mapping[str, Any]) -> dict[str, tuple[int, Estimate]]:
        return {
            key: (entry["problems"], Estimate(value=entry["value"], low=entry["low"], high=entry["high"]))
            for key, entry in entries.items()
        }

    return SetScores(
        name=name,
        digest=content["digest"],
        problems=content["problems"],
        samples=content["samples"],
        metrics={key: Estimate(**value) for key, value in content["metrics"].items()},
        by_subject=group(content["by_subject"]),
        by_level=group(content["by_level"]),
        correct=np.array([[verdict == "1" for verdict in line] for line in content["correct"].values()]),
        problem_ids=tuple(content["correct"]),
    )
