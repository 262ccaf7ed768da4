"""A tensorflow-datasets builder for files of problems: converts JSON lines to array_record, without TensorFlow.

    builder = ProblemBuilder(jsonl={"train": "math.jsonl"}, data_dir="~/datasets", file_format="array_record")
    builder.download_and_prepare()
    source = tfds_source(builder.data_path, split="train")        # sspo_jax.data.catalogue

Rows keep all their fields (absent ones are empty) but not their order, which tensorflow-datasets hashes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sspo_jax.data.problems import JsonlSource, Problem, iterate

NO_LEVEL = 0  # tensorflow-datasets has no absent integers; levels start at 1


class ProblemBuilder(tfds.core.GeneratorBasedBuilder):
    """Problems of JSON-lines files as a data set.

    Args:
      jsonl: split name -> path of a JSON-lines file of problems; validated, with file and line in errors.
      arguments: of `tfds.core.GeneratorBasedBuilder`: `data_dir`, `file_format`, ...
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "sspo_problems"

    def __init__(self, *, jsonl: Mapping[str, str | os.PathLike[str]] | None = None, **arguments: Any):
        self._jsonl = dict(jsonl or {})
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        text = ("id", "problem", "answer", "solution", "subject", "source", "extra")
        features = tfds.features.FeaturesDict(
            {**{name: tfds.features.Text() for name in text}, "level": tfds.features.Scalar(dtype=np.int32)}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        if not self._jsonl:
            raise ValueError("no files to prepare; expected ProblemBuilder(jsonl={split: path})")
        return {split: self._generate_examples(JsonlSource(path)) for split, path in self._jsonl.items()}

    def _generate_examples(self, source: JsonlSource) -> Iterator[tuple[str, dict[str, Any]]]:
        for problem in iterate(source):
            yield problem.id, to_features(problem)


def to_features(problem: Problem) -> dict[str, Any]:
    """A problem as a row of the data set."""
    return {
        "id": problem.id,
        "problem": problem.problem,
        "answer": problem.answer,
        "solution": problem.solution or "",
        "level": problem.level if problem.level is not None else NO_LEVEL,
        "subject": problem.subject or "",
        "source": problem.source,
        "extra": json.dumps(dict(problem.extra), ensure_ascii=False, sort_keys=True) if problem.extra else "",
    }
