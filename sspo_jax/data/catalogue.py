"""Data sets of others as sources: tensorflow-datasets, the Hugging Face Hub, or any table of rows.

A table is anything with a length and `table[index] -> mapping` (a `tfds.data_source`, a `datasets.Dataset`); its
columns are mapped to the fields of a problem by `ROW_READERS`, by the columns it has.
"""

import importlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from sspo_jax.data.problems import ListSource, Problem, ProblemSource, parse_row

# Catalogue data sets whose builder registers itself only when its module is imported.
_MODULES = {
    "gsm8k": "tensorflow_datasets.text.gsm8k.gsm8k",
    "math_dataset": "tensorflow_datasets.text.math_dataset.math_dataset",
}


def table_source(table: Any, *, name: str) -> ProblemSource:
    """A table of rows as a source; every row is read and validated once.

    Raises:
      ValueError: the columns are not those of a known kind of table, or a row is not a problem.
    """
    if not len(table):
        raise ValueError(f"{name}: no rows in it")
    columns = set(table[0])
    for wanted, read in ROW_READERS:
        if set(wanted) <= columns:
            rows = (_decoded(table[index]) for index in range(len(table)))
            return ListSource([read(row, name, number) for number, row in enumerate(rows)], name=name)
    known = "; ".join(", ".join(wanted) for wanted, _ in ROW_READERS)
    raise ValueError(f"{name}: columns {', '.join(sorted(columns))}; expected one of: {known}")


def tfds_source(name: str, *, split: str, data_dir: str | None = None) -> ProblemSource:
    """A data set of tensorflow-datasets, by name or by the folder of a prepared one.

    It is downloaded and prepared as array_record on first use; TensorFlow is not needed.

    Raises:
      ValueError: no such data set or split.
      OSError: it is not there and cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    builder: Any  # its methods are wrapped in decorators that hide their parameters
    if pathlib.Path(name).is_dir():
        builder = tfds.builder_from_directory(name)
    else:
        if name in _MODULES:
            importlib.import_module(_MODULES[name])
        try:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        except tfds.core.DatasetNotFoundError:
            raise ValueError(
                f"tfds:{name}: no such data set in tensorflow-datasets {tfds.__version__}; expected "
                f"{', '.join(_MODULES)}, another name of its catalogue, or the folder of a prepared data set"
            ) from None
        if not pathlib.Path(builder.data_path).is_dir():
            _prepare(builder, name)
    if split not in builder.info.splits:
        raise ValueError(f"tfds:{name}: split {split!r}; expected {' or '.join(sorted(builder.info.splits))}")
    return table_source(builder.as_data_source(split=split), name=f"{_short(builder.name)}_{split}")


def hub_source(name: str, *, config: str | None = None, split: str) -> ProblemSource:
    """A data set of the Hugging Face Hub.

    Raises:
      ValueError: the package `datasets` is not installed.
      OSError: it is not to be had (no network, no such name).
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"hf:{name}: this needs the package datasets: pip install datasets. Or give a .jsonl file"
        ) from None
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the Hub's client has a dozen ways to say no
        raise OSError(f"hf:{name}: cannot be loaded ({_first_line(error)}): check name, split and network") from None
    return table_source(table, name=f"{_short(name)}_{split}")


def _prepare(builder: Any, name: str) -> None:
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each attempt, over a line of its own each
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the downloader: anything from a missing host to a changed checksum
        raise OSError(
            f"tfds:{name}: not in {builder.data_path} and cannot be downloaded ({_first_line(error)}): prepare it "
            "where there is a network and copy the folder, or give a .jsonl file"
        ) from None


def _read_problem(row: Mapping[str, Any], name: str, number: int) -> Problem:
    """Rows with our own fields, as `tfds_builder.ProblemBuilder` writes them; empty means absent."""
    fields = {key: row[key] for key in ("id", "problem", "answer", "solution", "subject", "source") if row.get(key)}
    if row.get("level"):
        fields["level"] = int(row["level"])
    extra = row.get("extra")
    if extra:
        fields["extra"] = json.loads(extra) if isinstance(extra, str) else dict(extra)
    return parse_row({"source": name, **fields}, f"{name}: row {number}")


def _read_gsm8k(row: Mapping[str, Any], name: str, number: int) -> Problem:
    """GSM8K: the answer column holds the solution and, after `####`, the answer."""
    solution, marker, answer = row["answer"].rpartition("####")
    if not marker:
        raise ValueError(f"{name}: row {number}: no #### in the answer; expected GSM8K's format")
    fields = {
        "id": f"{name}-{number}",
        "problem": row["question"],
        "answer": answer.strip().replace(",", ""),
        "solution": solution.strip(),
        "source": name,
    }
    return parse_row({key: value for key, value in fields.items() if value}, f"{name}: row {number}")


def _read_math(row: Mapping[str, Any], name: str, number: int) -> Problem:
    r"""MATH: no column of its own for the answer, which is the last \boxed{} of the solution; levels as `Level 3`."""
    fields: dict[str, Any] = {
        "id": str(row.get("unique_id") or f"{name}-{number}"),
        "problem": row["problem"],
        "answer": row.get("answer") or last_boxed(row["solution"]),
        "solution": row["solution"],
        "subject": row.get("subject") or row.get("type"),
        "source": name,
    }
    level = re.search(r"\d", str(row.get("level", "")))
    if level:
        fields["level"] = int(level.group())
    return parse_row({key: value for key, value in fields.items() if value}, f"{name}: row {number}")


def _read_question(row: Mapping[str, Any], name: str, number: int) -> Problem:
    """Rows of a question and its answer."""
    fields = {
        "id": str(row.get("id", f"{name}-{number}")),
        "problem": row["question"],
        "answer": str(row["answer"]),
        "source": name,
    }
    return parse_row(fields, f"{name}: row {number}")


def _read_question_or_gsm8k(row: Mapping[str, Any], name: str, number: int) -> Problem:
    return (_read_gsm8k if "####" in str(row["answer"]) else _read_question)(row, name, number)


ROW_READERS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any], str, int], Problem]], ...] = (
    (("id", "problem", "answer"), _read_problem),
    (("problem", "solution"), _read_math),
    (("question", "answer"), _read_question_or_gsm8k),
)
"""Columns that a kind of table has, and how a row of it becomes a problem; the first that fits is used."""


def last_boxed(solution: str) -> str:
    r"""The content of the last `\boxed{...}`, with balanced braces; empty if there is none.

    >>> last_boxed(r"so $x = \\boxed{\\frac{1}{2}}$.")
    '\\\\frac{1}{2}'
    """
    start = max(solution.rfind(r"\boxed{"), solution.rfind(r"\fbox{"))
    if start < 0:
        return ""
    first = solution.index("{", start) + 1
    depth = 1
    for place in range(first, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[place], 0)
        if depth == 0:
            return solution[first:place]
    return ""


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Text comes back from tensorflow-datasets as bytes."""
    return {key: value.decode("utf-8") if isinstance(value, bytes) else value for key, value in row.items()}


def _short(name: str) -> str:
    return os.path.basename(os.path.normpath(name)).lower().replace("-", "_")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
