"""Published sets by name: fetched from the Hugging Face Hub, or copied from a folder of files fetched before.

What is written is the same either way: a file of problems as docs/data.md describes them, and its entry in
manifest.json of the folder (rows, digest, licence, where from), by which a later copy is checked. A file is there whole
or not at all.
"""

import ast
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sspo_jax.data.catalogue import last_boxed
from sspo_jax.data.overlap import write_problems
from sspo_jax.data.problems import JsonlSource, Problem, parse_row
from sspo_jax.files import read_json, read_json_lines, replace_bytes, write_json

Row = Mapping[str, Any]
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file of problems and where it comes from."""

    path: str
    """In a data folder."""
    repository: str
    """Data set of the Hub."""
    match: str
    """Regular expression that its file there matches, and no other."""
    rows: int
    """That the file on the Hub has, those without an answer included."""
    licence: str
    """As stated upstream; shown where the Hub's page of the set states none."""
    fields: Callable[[Row], dict[str, Any]]
    """Fields of a problem, from a row there."""


class HubUnreachableError(OSError):
    """The Hub did not answer, or may not be asked."""


def _math500(row: Row) -> dict[str, Any]:
    level = re.search(r"\d", str(row.get("level", "")))
    fields = {name: row.get(name) for name in ("problem", "answer", "solution", "subject")}
    return fields | {"level": int(level.group()) if level else None}


def _aime(row: Row) -> dict[str, Any]:
    answer = row.get("answer") or last_boxed(row["solution"]) or row["solution"]
    return {"problem": row["problem"], "answer": str(int(str(answer).strip()))}  # upstream writes 025


def _amc(row: Row) -> dict[str, Any]:
    number = float(row["answer"])
    return {"problem": row["question"], "answer": f"{number:.0f}" if number.is_integer() else str(row["answer"])}


def _minerva(row: Row) -> dict[str, Any]:
    return {"problem": row["question"], "answer": " ".join(str(row["answer"]).split())}


def _olympiadbench(row: Row) -> dict[str, Any]:
    answers = row["final_answer"]
    answers = ast.literal_eval(answers) if isinstance(answers, str) else list(answers)
    extra = {name: row[name] for name in ("answer_type", "unit", "error") if row.get(name)}
    return {
        "problem": row["question"],
        "answer": answers[0].replace("$", "").strip().rstrip("."),
        "extra": extra or None,
    }


def _gsm8k(row: Row) -> dict[str, Any]:
    solution, _, answer = row["answer"].rpartition("####")
    return {"problem": row["question"], "answer": answer.strip().replace(",", ""), "solution": solution.strip()}


def _math_levels(row: Row) -> dict[str, Any]:
    inner = row.get("extra_info") or {}
    answer = row.get("gt_answer") or inner.get("answer") or row.get("answer")
    fields = {"problem": row.get("question") or inner.get("question"), "answer": answer, "subject": row.get("subject")}
    level = re.search(r"\d", str(row.get("level", "")))
    return fields | {"level": int(level.group()) if level else None}


def _dapo(row: Row) -> dict[str, Any]:
    is_chinese = re.search("[\u4e00-\u9fff]", row["prompt"]) is not None
    return {"problem": row["prompt"], "answer": str(row["solution"]), "extra": {"lang": "zh"} if is_chinese else None}


_TEST = r"(.*/)?test[^/]*\.(parquet|jsonl)"
_NOT_STATED = "not stated for the data; the problems are of the MAA"
_FILES = {
    "aime24": PublishedFile(
        path="eval/aime24.jsonl", repository="math-ai/aime24", match=_TEST, rows=30,
        licence=_NOT_STATED, fields=_aime,
    ),
    "amc23": PublishedFile(
        path="eval/amc23.jsonl", repository="math-ai/amc23", match=_TEST, rows=40,
        licence=_NOT_STATED, fields=_amc,
    ),
    "math500": PublishedFile(
        path="eval/math500.jsonl", repository="HuggingFaceH4/MATH-500", match=r"test\.jsonl", rows=500,
        licence="MIT (hendrycks/math; openai/prm800k for the choice of the 500)", fields=_math500,
    ),
    "minerva": PublishedFile(
        path="eval/minerva.jsonl", repository="math-ai/minervamath", match=_TEST, rows=272,
        licence="unclear; the problems are from MIT OpenCourseWare, generally CC BY-NC-SA", fields=_minerva,
    ),
    "olympiadbench": PublishedFile(
        path="eval/olympiadbench.jsonl", repository="math-ai/olympiadbench", match=_TEST,
        rows=674, licence="MIT (OpenBMB/OlympiadBench)", fields=_olympiadbench,
    ),
    "gsm8k-train": PublishedFile(
        path="train/gsm8k.jsonl", repository="openai/gsm8k", match=r"main/train.*\.parquet", rows=7_473,
        licence="MIT", fields=_gsm8k,
    ),
    "gsm8k-test": PublishedFile(
        path="eval/gsm8k.jsonl", repository="openai/gsm8k", match=r"main/test.*\.parquet", rows=1_319,
        licence="MIT", fields=_gsm8k,
    ),
    "math-lvl3to5": PublishedFile(
        path="train/math_lvl3to5_8k.jsonl", repository="hkust-nlp/SimpleRL-Zoo-Data",
        match=r"simplelr_qwen_level3to5/train\.parquet", rows=8_523,
        licence="MIT for the problems (hendrycks/math); not stated for the choice of them", fields=_math_levels,
    ),
    "dapo-17k": PublishedFile(
        path="train/dapo_math_17k.jsonl", repository="open-r1/DAPO-Math-17k-Processed",
        match=r"all/train.*\.parquet", rows=17_398, licence="Apache-2.0 (BytedTsinghua-SIA/DAPO-Math-17k)",
        fields=_dapo,
    ),
}  # fmt: skip
EVALUATION = ("aime24", "amc23", "math500", "minerva", "olympiadbench")
SETS: dict[str, tuple[PublishedFile, ...]] = {
    "math-lvl3to5": (_FILES["math-lvl3to5"],),
    "gsm8k": (_FILES["gsm8k-train"], _FILES["gsm8k-test"]),
    "dapo-17k": (_FILES["dapo-17k"],),
    **{name: (_FILES[name],) for name in EVALUATION},
    "eval": tuple(_FILES[name] for name in EVALUATION),
}
"""Name to its files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A file as manifest.json lists it."""

    path: str
    rows: int
    sha256: str
    licence: str
    source: str
    """Where it is from, with the commit where there is one."""


def present(file: PublishedFile, folder: pathlib.Path) -> Entry | None:
    """The entry of a file that is in a folder already, checked; None where it is not there.

    Raises:
      ValueError: the file is not what manifest.json says.
    """
    if not (folder / file.path).is_file():
        return None
    entry = _listed(folder).get(file.path)
    if entry is None or entry.sha256 != _sha256(folder / file.path):
        why = "has another digest than manifest.json says" if entry else "is there, but not in manifest.json beside it"
        raise ValueError(f"{folder / file.path} {why}: remove it to fetch it anew, or choose another --out")
    return entry


def copy(file: PublishedFile, source: pathlib.Path, out: pathlib.Path) -> Entry:
    """Copies a file from a data folder, checked against the manifest.json of that folder.

    Raises:
      FileNotFoundError: it is not there, or there is no manifest.json.
      ValueError: rows or digest are not those of the manifest, or a row is no problem.
    """
    path = source / file.path
    if not path.is_file():
        raise FileNotFoundError(f"no {file.path} in {source}; expected a data folder that has it, with {MANIFEST}")
    entry = _listed(source).get(file.path)
    if entry is None:
        raise FileNotFoundError(
            f"{source / MANIFEST} does not list {file.path}, so nothing says what it must be; expected a folder that "
            "`sspo data get` has written, or one with the same manifest"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        raise ValueError(
            f"{path}: its sha256 is {digest}, {MANIFEST} says {entry.sha256}: copy it again from its source"
        )
    rows = len(JsonlSource(str(path)))
    if rows != entry.rows:
        raise ValueError(f"{path}: {rows} rows, {MANIFEST} says {entry.rows}: one of the two is damaged")
    target = out / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(target, content)
    return _record(out, entry)


def download(file: PublishedFile, out: pathlib.Path, *, any_rows: bool = False) -> tuple[Entry, int]:
    """Fetches a file from the Hub ($HF_ENDPOINT) and writes its problems; (entry, rows without an answer left out).

    The Hub's client shows progress, and goes on where a connection broke off. What it brings is checked against the
    digest that the Hub states for the commit.

    Args:
      file: to fetch.
      out: data folder.
      any_rows: take it also with another number of rows than is known.

    Raises:
      HubUnreachableError: no connection, or HF_HUB_OFFLINE is set.
      ValueError, OSError: it is not there, wants a login, is damaged, or has another number of rows.
    """
    raw, commit, licence = _fetch(file)
    rows = list(_table(raw))
    if len(rows) != file.rows and not any_rows:
        raise ValueError(
            f"{file.repository} has {len(rows)} rows at {commit[:12]}, expected {file.rows}: it has changed "
            "since; look at it, and take it as it is with --any-rows"
        )
    stem = pathlib.Path(file.path).stem
    problems = [_problem(file, row, f"{stem}-{number:05d}") for number, row in enumerate(rows)]
    kept = [problem for problem in problems if problem is not None]
    target = out / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_problems(str(target), kept)
    entry = Entry(
        path=file.path,
        rows=len(kept),
        sha256=_sha256(target),
        licence=licence or file.licence,
        source=f"{file.repository} on the Hugging Face Hub, commit {commit}",
    )
    return _record(out, entry), len(problems) - len(kept)


def _problem(file: PublishedFile, row: Row, name: str) -> Problem | None:
    """A row as a problem; None where it has no answer."""
    try:
        fields = {key: value for key, value in file.fields(row).items() if value not in (None, "")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file.repository}: row {name} has the columns {', '.join(row)}, which are not those known ({error!r}): "
            "fetch it yourself and give it with --data.path and --data.fields"
        ) from None
    if "answer" not in fields:
        return None
    return parse_row({"id": name, "source": pathlib.Path(file.path).stem, **fields}, f"{file.repository}: {name}")


def _fetch(file: PublishedFile) -> tuple[pathlib.Path, str, str]:
    """(the file as the Hub has it, commit, licence on its page or nothing)."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        endpoint = os.environ.get("HF_ENDPOINT")
        information = huggingface_hub.HfApi(endpoint).dataset_info(file.repository, files_metadata=True)
        siblings = information.siblings or []
        found = [each for each in siblings if re.fullmatch(file.match, each.rfilename)]
        if len(found) != 1:
            names = ", ".join(each.rfilename for each in siblings[:20]) or "none"
            raise ValueError(
                f"{file.repository} has {len(found)} files like {file.match}, expected one; there are {names}"
            )
        commit = information.sha or "main"
        path = huggingface_hub.hf_hub_download(
            file.repository, found[0].rfilename, repo_type="dataset", revision=commit, endpoint=endpoint
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise OSError(
            f"{file.repository}: the Hub does not give it out ({_first_line(error)}): accept its terms on its page and "
            "set HF_TOKEN, or copy the files from a machine that has them and use --from"
        ) from None
    except HfHubHTTPError as error:
        raise OSError(f"{file.repository}: {_first_line(error)}: try again, or use --from with a local copy") from None
    except ValueError:
        raise
    except Exception as error:  # no connection: the client and the library below it have a dozen ways to say so
        raise HubUnreachableError(f"{file.repository}: the Hub cannot be reached ({_first_line(error)})") from None
    stated = found[0].lfs.sha256 if found[0].lfs else found[0].blob_id
    if stated and stated != (_sha256(path) if found[0].lfs else _git_digest(path)):
        raise ValueError(
            f"{path}: not the file whose digest the Hub states ({stated}): remove it, so that it is fetched again"
        )
    licence = (information.card_data or {}).get("license") or ""
    return pathlib.Path(path), commit, ", ".join(licence) if isinstance(licence, list) else str(licence)


def _table(file: pathlib.Path) -> Iterator[Row]:
    """Rows of a JSON-lines or a Parquet file."""
    if file.suffix == ".jsonl":
        yield from (row for _, row in read_json_lines(file))
        return
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{file}: reading Parquet needs the package pyarrow: pip install pyarrow") from None
    yield from pyarrow.parquet.read_table(file).to_pylist()


def _listed(folder: pathlib.Path) -> dict[str, Entry]:
    """What the manifest.json of a folder lists, by path; nothing without one."""
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    entries = {}
    for each in read_json(file, advice="Remove it to fetch everything anew").get("files", []):
        upstream = "; ".join(f"{one['repo']}: {one['path']} @ {one['commit']}" for one in each.get("upstream", []))
        entries[each["path"]] = Entry(
            path=each["path"],
            rows=each["rows"],
            sha256=each["sha256"],
            licence=each["licence"],
            source=each.get("source") or upstream,
        )
    return entries


def _record(folder: pathlib.Path, entry: Entry) -> Entry:
    """Puts an entry into the manifest.json of a folder."""
    entries = _listed(folder) | {entry.path: entry}
    write_json(folder / MANIFEST, {"files": [dataclasses.asdict(entries[path]) for path in sorted(entries)]})
    return entry


def _sha256(file: str | os.PathLike[str]) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git_digest(file: str | os.PathLike[str]) -> str:
    """As Git names content: what the Hub states for files that are not large."""
    content = pathlib.Path(file).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
