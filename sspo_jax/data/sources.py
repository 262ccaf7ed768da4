"""Where problems come from, as values: the config of a data source, and its one-line spelling for command lines.

    JsonlData(path="math.jsonl", filter=ProblemFilter(levels=(3, 4, 5)))     in an experiment file
    open_problems("math.jsonl"), open_problems("tfds:gsm8k:test")             from a command line

Every config has `.open(tokenizer=None)`, which validates and returns a source; the tokenizer counts tokens for
`filter.max_tokens`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.dialogues import DialogueData
from sspo_jax.data.filters import KEEP_ALL, ProblemFilter, SubsetSource, filtered
from sspo_jax.data.mixtures import MixtureSource
from sspo_jax.data.problems import JsonlSource, ProblemSource, require_file
from sspo_jax.data.stories import StoryData
from sspo_jax.data.worded import WordedData
from sspo_jax.ranges import Count, Positive, from_record

DATA_VARIABLE = "SSPO_DATA"
"""The environment variable that names a folder of JSON-lines files, for sets called by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlData:
    """Problems of a JSON-lines file."""

    path: str
    """The file: one `{"id", "problem", "answer", ...}` per line."""
    fields: tuple[str, ...] | None = None
    """What the file calls fields of a problem, such as `answer=final_answer problem=question`; its other fields that
    no problem has are then left out. None: the file has the fields of a problem."""
    filter: ProblemFilter = KEEP_ALL
    """Which of them to take."""
    first: Count | None = None
    """Take only the first N problems (after the filter); None takes all."""

    def open(self, tokenizer: Any = None) -> ProblemSource:
        """The source, validated."""
        source = JsonlSource(self.path, fields=_field_names(self.fields or ()))
        return _first(filtered(source, self.filter, tokenizer=tokenizer), self.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsData:
    """Problems of a tensorflow-datasets data set (TensorFlow itself is not needed)."""

    name: str
    """A data set of the catalogue (`gsm8k`), or the folder of a prepared one."""
    split: str = "train"
    """Split, in the notation of tensorflow-datasets without slices."""
    data_dir: str | None = None
    """Where data sets are kept; None is the library's own choice."""
    filter: ProblemFilter = KEEP_ALL
    """Which of them to take."""
    first: Count | None = None
    """Take only the first N problems (after the filter); None takes all."""

    def open(self, tokenizer: Any = None) -> ProblemSource:
        """The source, validated; a data set of the catalogue is downloaded on first use."""
        from sspo_jax.data.catalogue import tfds_source

        source = tfds_source(self.name, split=self.split, data_dir=self.data_dir)
        return _first(filtered(source, self.filter, tokenizer=tokenizer), self.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubData:
    """Problems of a data set on the Hugging Face Hub (needs the package `datasets`, and the network once)."""

    name: str
    """The data set, such as `HuggingFaceH4/MATH-500`."""
    config: str | None = None
    """Its configuration, where it has several."""
    split: str = "train"
    """Its split."""
    filter: ProblemFilter = KEEP_ALL
    """Which of them to take."""
    first: Count | None = None
    """Take only the first N problems (after the filter); None takes all."""

    def open(self, tokenizer: Any = None) -> ProblemSource:
        """The source, validated."""
        from sspo_jax.data.catalogue import hub_source

        source = hub_source(self.name, config=self.config, split=self.split)
        return _first(filtered(source, self.filter, tokenizer=tokenizer), self.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureData:
    """Several sources in fixed proportions; see `mixtures.MixtureSource`."""

    parts: tuple[JsonlData | TfdsData | HubData | ArithmeticData, ...]
    """The sources."""
    weights: tuple[Positive, ...] | None = None
    """The share of each, of any sum; None takes each source once."""

    def open(self, tokenizer: Any = None) -> ProblemSource:
        """The source, validated."""
        return MixtureSource([part.open(tokenizer) for part in self.parts], self.weights)


Data = JsonlData | TfdsData | HubData | ArithmeticData | StoryData | WordedData | DialogueData | MixtureData


def require_files(*sources: Data) -> None:
    """Refuses sources whose file is not there; nothing is read, so it costs nothing before what is expensive.

    Raises:
      FileNotFoundError: names the file.
    """
    for source in sources:
        if isinstance(source, MixtureData):
            require_files(*source.parts)
        elif isinstance(source, JsonlData):
            require_file(source.path)


def data_from_record(record: Any) -> Data:
    """The data that `dataclasses.asdict` made the record from, in whatever version of the package.

    Raises:
      ValueError: no kind of data has these fields.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"data is {record!r:.80}; expected an object: give the sets with --data")
    kinds = (JsonlData, TfdsData, HubData, ArithmeticData, StoryData, WordedData, DialogueData, MixtureData)
    fields = {kind: {field.name: field for field in dataclasses.fields(kind)} for kind in kinds}
    fitting = [
        kind
        for kind in kinds
        if set(record) <= set(fields[kind])
        and all(name in record or field.default is not dataclasses.MISSING for name, field in fields[kind].items())
    ]
    if not fitting:
        raise ValueError(f"data with the fields {', '.join(record)} is of no known kind: give the sets with --data")
    kind = min(fitting, key=lambda kind: len(fields[kind]))
    values = _tuples(record)
    if isinstance(values.get("filter"), Mapping):
        values["filter"] = from_record(ProblemFilter, values["filter"], "data.filter")
    if isinstance(values.get("parts"), tuple):
        values["parts"] = tuple(data_from_record(part) for part in values["parts"])
    return from_record(kind, values, "data")


def _field_names(pairs: Sequence[str]) -> dict[str, str]:
    """`ours=theirs` to a mapping."""
    names = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ValueError(f"--data.fields has {pair!r}; expected FIELD=NAME, as in answer=final_answer")
        names[ours] = theirs
    return names


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; frozen dataclasses hold no lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}


def open_problems(spec: str, *, data_dir: str | None = None) -> ProblemSource:
    """A source from one word, for command lines.

    Args:
      spec: a `.jsonl` path; `NAME`, a file `NAME.jsonl` in the data folder; `tfds:NAME[:SPLIT]`; `hf:NAME[:SPLIT]`;
        `arithmetic:train` or `arithmetic:held_out`; any of them followed by `[:N]` in brackets for the first N.
      data_dir: the folder for sets called by name; None is `$SSPO_DATA`, then `data/`, each with its `eval/`.

    Raises:
      FileNotFoundError: no such file, with the places looked in.
      ValueError: the data is not valid, or the spec is not one of the above.
    """
    return parse_spec(spec, data_dir=data_dir).open()


def parse_spec(spec: str, *, data_dir: str | None = None) -> JsonlData | TfdsData | HubData | ArithmeticData:
    """The config that `open_problems` opens."""
    body, first = _split_first(spec)
    kind, _, rest = body.partition(":")
    if kind == "tfds" and rest:
        name, _, split = rest.partition(":")
        return TfdsData(name=name, split=split or "test", first=first)
    if kind == "hf" and rest:
        name, _, split = rest.partition(":")
        return HubData(name=name, split=split or "test", first=first)
    if kind == "arithmetic":
        return ArithmeticData(split=_arithmetic_split(rest), size=first or 1_000)
    return JsonlData(path=_find_file(body, data_dir), first=first)


def parse_sets(specs: str) -> tuple[JsonlData | TfdsData | HubData | ArithmeticData, ...]:
    """The configs of several sets, comma-separated; `none` is none.

    Raises:
      ValueError: nothing between two commas, or as `parse_spec`.
      FileNotFoundError: no such file, with the places looked in.
    """
    if specs.strip() == "none":
        return ()
    names = [name.strip() for name in specs.split(",")]
    if not all(names):
        raise ValueError(f"the sets are {specs!r}; expected names such as aime24,math500, or none")
    return tuple(map(parse_spec, names))


def sets_at_hand(*names: str) -> tuple[JsonlData, ...]:
    """Those of the sets called by name whose files are in the data folder (`$SSPO_DATA`, then `data/`)."""
    paths = [next(filter(os.path.isfile, _places(name, None)), None) for name in names]
    return tuple(JsonlData(path=path) for path in paths if path is not None)


def _arithmetic_split(word: str) -> Literal["train", "held_out"]:
    if word == "train":
        return "train"
    if word in ("", "held_out"):
        return "held_out"
    raise ValueError(f"arithmetic:{word}, expected arithmetic:train or arithmetic:held_out")


def _split_first(spec: str) -> tuple[str, int | None]:
    if not spec.endswith("]"):
        return spec, None
    body, bracket, count = spec[:-1].rpartition("[:")
    if not bracket or not count.isdigit() or int(count) < 1:
        raise ValueError(f"{spec!r}: expected a number of problems as in math500[:100]")
    return body, int(count)


def _find_file(name: str, data_dir: str | None) -> str:
    if name.endswith(".jsonl") or os.path.isfile(name):
        return name
    tried = _places(name, data_dir)
    for path in tried:
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f"no problems called {name!r}: looked for {', '.join(tried)}. Put the file there, name its folder with "
        f"--data-dir or ${DATA_VARIABLE}, or give the path of a .jsonl file, tfds:NAME, hf:NAME or arithmetic:held_out"
        "; `sspo data get` fetches known sets"
    )


def _places(name: str, data_dir: str | None) -> list[str]:
    """Where a set called by name may be, in the order in which it is looked for."""
    roots = [data_dir] if data_dir else [root for root in (os.environ.get(DATA_VARIABLE), "data") if root]
    return [os.path.join(root, *below, f"{name}.jsonl") for root in roots for below in ((), ("eval",))]


def _first(source: ProblemSource, count: int | None) -> ProblemSource:
    if count is None or count >= len(source):
        return source
    if count < 1:
        raise ValueError(f"first is {count}; expected at least 1")
    return SubsetSource(source, range(count))
