"""What a problem is, and random access to a JSON-lines file of them.

A source is anything with a length, `source[index] -> Problem`, a `name` and a `digest`; `JsonlSource` is the one for
files, `ListSource` for problems in memory, `arithmetic.ArithmeticSource` for generated ones. The digest names the
content, so that a run or an evaluation can refuse to continue on other data.
"""

import dataclasses
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sspo_jax.files import parse_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem with its gold answer."""

    id: str
    """Unique inside its source."""
    problem: str
    """The question, as it is put to the model (without the prompt template)."""
    answer: str
    """The gold answer as LaTeX or text, without surrounding `$`."""
    solution: str | None = None
    """A worked solution, where there is one."""
    level: int | None = None
    """Difficulty, 1 (easy) to 5, where the data has it."""
    subject: str | None = None
    """Field of mathematics, where the data has it."""
    source: str = ""
    """The data set the problem comes from, as the data says."""
    set: str = dataclasses.field(default="", compare=False)
    """The set it is judged as (`evaluation.presets.SETS`): the name of what it was read from, unless the data says.
    Two problems that differ in nothing else are equal."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the data says: units, several answers, language (`lang`), ..."""

    @property
    def language(self) -> str:
        """ISO 639-1 code: `extra["lang"]`, `en` where the data says nothing."""
        return self.extra.get("lang", "en")


@runtime_checkable
class ProblemSource(Protocol):
    """Random access to problems. `name` is for people, `digest` (sha256, hex) names the content."""

    name: str
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Problem: ...


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "problem": str,
    "answer": str,
    "solution": str,
    "level": int,
    "subject": str,
    "source": str,
    "set": str,
    "extra": dict,
}
_REQUIRED = ("id", "problem", "answer")
_OTHER_FORMATS = {".csv": "a CSV file", ".tsv": "a TSV file", ".parquet": "a Parquet file", ".gz": "a compressed file"}


def parse_row(row: Any, where: str) -> Problem:
    """A decoded row as a Problem; an id or an answer that is a number becomes its text.

    Args:
      row: what `parse_json` returned.
      where: file and line, or whatever finds the row again; starts the error.

    Raises:
      ValueError: not an object, a required field missing or blank, a field of another type, an unknown field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {type(row).__name__}; expected an object with {', '.join(_REQUIRED)}")
    row = _with_texts(row)
    for field in _REQUIRED:
        value = row.get(field)
        if not isinstance(value, str) or not value.strip():
            came = "no" if field not in row else f"{value!r:.80} as"
            raise ValueError(
                f"{where}: {came} `{field}`; expected a non-empty string: add it, remove the row, or say which field "
                f"of the file it is (--data.fields {field}=NAME)"
            )
    for field, value in row.items():
        kind = _FIELDS.get(field)
        if kind is None:
            raise ValueError(f"{where}: unknown field {field!r}; expected {', '.join(_FIELDS)}: put it inside `extra`")
        if value is None:  # how many writers say that a field is absent
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}: `{field}` is {value!r:.80}; expected {kind.__name__}")  # type: ignore[union-attr]
    return _problem(row)


def _with_texts(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers as text where a problem has text; a number is spelt as JSON spells it."""
    numbers = {
        field: json.dumps(row[field])
        for field in ("id", "answer")
        if isinstance(row.get(field), int | float) and not isinstance(row[field], bool)
    }
    return {**row, **numbers}


def renamed(row: Any, fields: Mapping[str, str]) -> Any:
    """A row of a file with fields of its own: those that `fields` names (ours to the file's) under our names.

    Fields of the file that are neither named nor ours are left out. What is not an object is handed back.
    """
    if not fields or not isinstance(row, dict):
        return row
    kept = {name: value for name, value in row.items() if name in _FIELDS and name not in fields.values()}
    return kept | {ours: row[theirs] for ours, theirs in fields.items() if theirs in row}


def _problem(row: dict[str, Any]) -> Problem:
    return Problem(**{field: value for field, value in row.items() if value is not None})


def in_set(problem: Problem, name: str) -> Problem:
    """The problem as one of the set `name`, unless it belongs to one."""
    return problem if problem.set else dataclasses.replace(problem, set=name)


class NamedSource:
    """Another source under another name, its problems as those of the set of that name."""

    def __init__(self, source: ProblemSource, name: str):
        self.name = name
        self.digest = source.digest
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Problem:
        return dataclasses.replace(self._source[index], set=self.name)


def require_file(path: str) -> None:
    """Refuses the path of problems at which there is no file.

    Raises:
      FileNotFoundError: says so.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path}: no such file; expected JSON lines of {{id, problem, answer, ...}}: give another path"
        )


class JsonlSource:
    """A JSON-lines file (UTF-8, one problem per line) as a source: validated once, then read row by row on demand.

    Only the byte offset of each row is kept in memory; rows are decoded from the mapped file when asked for. Blank
    lines are allowed. A source can be sent to another process (it maps the file again there).

    Args:
      path: of the file.
      fields: what the file calls fields of a problem, by our names for them; see `renamed`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a row that is not a problem, or an id that came before (file and line of both); an empty file, one of
        another format, or `fields` that no problem has.
    """

    def __init__(self, path: str | os.PathLike[str], *, fields: Mapping[str, str] | None = None):
        self.path = os.fspath(path)
        self._fields = dict(fields or {})
        unknown = [name for name in self._fields if name not in _FIELDS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a field of a problem; expected {', '.join(_FIELDS)}")
        require_file(self.path)
        self.name, suffix = os.path.splitext(os.path.basename(self.path))
        if suffix in _OTHER_FORMATS:
            raise ValueError(
                f"{self.path}: {_OTHER_FORMATS[suffix]}; expected JSON lines, one object per line: convert it first"
            )
        self._map = _map_file(self.path)
        self._file_digest = hashlib.sha256(self._map).hexdigest()
        self.digest = self._file_digest
        if self._fields:
            content = json.dumps([self._file_digest, self._fields], sort_keys=True)
            self.digest = hashlib.sha256(content.encode()).hexdigest()
        self._starts, self._ends = self._scan()

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        starts: list[int] = []
        ends: list[int] = []
        lines: dict[str, int] = {}  # id -> line, for the error on a repeated id
        position = 0
        for number, line in enumerate(iter(self._map.readline, b""), 1):
            start, position = position, position + len(line)
            if line.isspace():
                continue
            where = f"{self.path}:{number}"
            problem = parse_row(renamed(parse_json(line.rstrip(), where), self._fields), where)
            first = lines.setdefault(problem.id, number)
            if first != number:
                raise ValueError(f"{where}: id {problem.id!r} is also at line {first}; expected unique ids: rename one")
            starts.append(start)
            ends.append(position)
        if not starts:
            raise ValueError(f"{self.path}: no problems in it; expected one JSON object per line")
        return np.asarray(starts, np.int64), np.asarray(ends, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: row {index}; expected 0 to {len(self) - 1}")
        row = renamed(parse_json(self._map[self._starts[index] : self._ends[index]], self.path), self._fields)
        return _problem({"set": self.name, **_with_texts(row)})  # validated by _scan

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map = _map_file(self.path)
        if hashlib.sha256(self._map).hexdigest() != self._file_digest:
            raise ValueError(f"{self.path}: changed since it was opened; expected sha256 {self._file_digest}")


class ListSource:
    """Problems in memory as a source."""

    def __init__(self, problems: Sequence[Problem], *, name: str = "list"):
        if not problems:
            raise ValueError(f"{name}: no problems; expected at least one")
        self.name = name
        self._problems = tuple(problems)
        self.digest = digest_problems(self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: int) -> Problem:
        return in_set(self._problems[index], self.name)


def iterate(source: ProblemSource) -> Iterator[Problem]:
    """The problems of a source in order."""
    for index in range(len(source)):
        yield source[index]


def digest_problems(problems: Sequence[Problem]) -> str:
    """sha256 (hex) over the content of problems, in order, whatever they were read from and are judged as."""
    sha = hashlib.sha256()
    for problem in problems:
        content = {name: value for name, value in dataclasses.asdict(problem).items() if name != "set"}
        sha.update(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
        sha.update(b"\n")
    return sha.hexdigest()


def _map_file(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
            raise ValueError(f"{path}: no problems in it; expected one JSON object per line")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
