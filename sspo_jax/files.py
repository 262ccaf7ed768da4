"""Files of text, JSON and JSON lines, read and written in one way everywhere, and where caches are kept.

Writing is atomic (a file has the old content or the new one, never a part) and what is written is valid JSON: numbers
that JSON does not have become the strings "Infinity", "-Infinity" and "NaN", which `read_json` turns back.

JSON lines are split at "\\n" and nowhere else: a JSON string may hold U+2028, U+2029 and U+0085, at which
`str.splitlines` breaks. Whatever cannot be read raises one kind of error, a ValueError that names file and line.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_POINTER = b"version https://git-lfs"
_POINTER_ADVICE = (
    "Git LFS pointer, not the file itself: run `git lfs pull` in its directory, or download it again with `hf download`"
)
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip: decompress it first (gunzip)",
    b"PAR1": "a Parquet file: convert it to JSON lines first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    _POINTER: f"a {_POINTER_ADVICE}",
    b"\xff\xfe": "UTF-16: convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 first",
}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def check_not_pointer(file: pathlib.Path) -> None:
    """Refuses the lines of text that Git leaves in the place of a large file.

    Raises:
      ValueError: this is such a file; says how to get what it stands for.
    """
    with open(file, "rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{file}: this is a {_POINTER_ADVICE}")


class DiskFullError(OSError):
    """A file cannot be written because there is no space left; there may be, once some is freed."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk or a quota is used up.

    Libraries that write from C++ say so in the text of errors of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DiskFullError) or getattr(seen, "errno", None) in _NO_SPACE:
            return True
        if any(os.strerror(number) in str(seen) for number in _NO_SPACE):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def check_writable_name(option: str, path: str | os.PathLike[str] | None) -> None:
    """Refuses a URL, or nothing, where a path is expected; call it before anything is made.

    Raises:
      ValueError: `gs://...` and the like, or an empty name; says what to do.
    """
    if path is not None and not os.fspath(path):
        raise ValueError(f"{option} is empty; expected a path, or leave it out (is a variable of the shell not set?)")
    scheme, separator, _ = os.fspath(path or "").partition("://")
    if separator and scheme.isalnum():
        raise ValueError(
            f"{option} is {os.fspath(path or '')}, a URL; expected a path on a file system, for its locks and atomic "
            "renames. Mount the bucket (gcsfuse, s3fs) or a shared disk (NFS, Filestore), and name the path there"
        )


def check_writable_file(option: str, path: str | os.PathLike[str] | None) -> None:
    """Refuses a file that cannot be written where it is named; call it before the work whose result goes there.

    Raises:
      ValueError: as `check_writable_name`; it is a directory, or there is none to write it in.
    """
    check_writable_name(option, path)
    if path is None:
        return
    file = pathlib.Path(path)
    if file.is_dir():
        raise ValueError(f"{option} is {path}, a directory; expected the name of a file")
    if not file.parent.is_dir():
        raise ValueError(f"{option} is {path}, but there is no directory {file.parent}: make it first, or name another")


def cache_directory(subject: str) -> pathlib.Path:
    """`$SSPO_CACHE_DIR`, or `~/.cache/sspo_jax`, and below it the subject. Not created."""
    check_writable_name("SSPO_CACHE_DIR", os.environ.get("SSPO_CACHE_DIR"))
    root = os.environ.get("SSPO_CACHE_DIR") or pathlib.Path.home() / ".cache" / "sspo_jax"
    return pathlib.Path(root) / subject


def parse_json(text: bytes | str, where: str) -> Any:
    """One JSON value.

    Args:
      text: UTF-8, with or without a byte order mark.
      where: file and line, or whatever finds the text again; starts the error.

    Raises:
      ValueError: not UTF-8 or not JSON, nested too deeply, or half of a surrogate pair in a string.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    for magic, advice in _OTHER_FORMATS.items():
        if raw.startswith(magic):
            raise ValueError(f"{where}: this is {advice}")
    raw = raw.removeprefix(_BOM)
    try:
        value = json.loads(raw.decode("utf-8"))
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); expected UTF-8") from None
    except UnicodeEncodeError as error:
        found = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{where}: {found} is half of a surrogate pair and no character: correct the text") from None
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}: not JSON ({error.msg}, {place})") from None
    except RecursionError:
        raise ValueError(f"{where}: JSON that is nested too deeply to be read") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{where}: not usable JSON ({error})") from None
    return value


def json_lines(lines: Iterable[bytes], name: str, *, may_be_cut: bool = False) -> Iterator[tuple[str, Any]]:
    """(`name:number`, value) of each line that is not blank.

    Args:
      lines: ending with b"\\n", as a binary file gives them; the last one may lack it.
      name: of the file, for errors.
      may_be_cut: leave out a last line that does not end and is not JSON: a process was killed while it wrote it.

    Raises:
      ValueError: as `parse_json`.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.strip() == _BOM:
            continue
        where = f"{name}:{number}"
        try:
            value = parse_json(line.rstrip(), where)
        except ValueError:
            if may_be_cut and not line.endswith(b"\n"):
                return
            raise
        yield where, value


def read_json_lines(file: str | os.PathLike[str], *, may_be_cut: bool = False) -> Iterator[tuple[str, Any]]:
    """(`file:number`, value) of each line of a file; see `json_lines`."""
    with open(file, "rb") as stream:
        yield from json_lines(stream, os.fspath(file), may_be_cut=may_be_cut)


def read_json(file: str | os.PathLike[str], *, advice: str = "") -> Any:
    """The value in a JSON file; "Infinity", "-Infinity" and "NaN" are numbers again.

    Args:
      file: to read.
      advice: what to do where it is damaged; ends the error.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged; names the file.
    """
    raw = pathlib.Path(file).read_bytes()
    try:
        if not raw.strip():
            raise ValueError(f"{os.fspath(file)}: empty")
        return _restored(parse_json(raw, os.fspath(file)))
    except ValueError as error:
        if not advice:
            raise
        raise ValueError(f"{error}. {advice}") from None


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Valid JSON, whatever numbers and characters are in it."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _characters(text)


def write_json(file: pathlib.Path, record: Any) -> None:
    """Atomic, indented."""
    replace_text(file, to_json(record, indent=2) + "\n")


def write_json_lines(file: pathlib.Path, rows: Iterable[Any]) -> None:
    """Atomic, one value per line."""
    replace_text(file, "".join(to_json(row) + "\n" for row in rows))


def append_json_lines(file: pathlib.Path, rows: Iterable[Any]) -> None:
    """Adds lines and returns when they are on the disk."""
    with open(file, "a", encoding="utf-8") as stream:
        stream.write("".join(to_json(row) + "\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())


def replace_text(file: pathlib.Path, text: str) -> None:
    """Writes a file so that it has the old content or the new one, never a part."""
    replace_bytes(file, _characters(text).encode("utf-8"))


def replace_bytes(file: pathlib.Path, content: bytes) -> None:
    """As `replace_text`."""
    part = file.with_name(file.name + ".part")
    try:
        with open(part, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()  # half a file on a full disk, or beside a directory of this name
        raise


def step_files(directory: pathlib.Path, suffix: str) -> dict[int, pathlib.Path]:
    """The files `step_NNNNNN<suffix>` of a directory by their step, in order; every other file is passed over.

    A `.part` file that a killed process left behind is such another file.
    """
    name = re.compile(r"step_(\d{6,})" + re.escape(suffix))
    found = {}
    for entry in directory.iterdir() if directory.is_dir() else ():
        match = name.fullmatch(entry.name)
        if match:
            found[int(match.group(1))] = entry
    return dict(sorted(found.items()))


def _finite(value: Any) -> Any:
    """The value with strings in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which no encoding can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text
