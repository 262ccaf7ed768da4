"""`sspo cache`: what is kept between runs to save time, and how to be rid of it."""

import dataclasses
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

from sspo_jax.commands.options import parse
from sspo_jax.files import cache_directory
from sspo_jax.runs.next_commands import next_commands

_KINDS = {
    "compiled": ("compiled/*", "programs that XLA compiled; made again by the next run"),
    "warm_start": ("warm_start/*", "weights after a supervised warm start, a folder each; trained again when wanted"),
    "boundaries": ("boundaries-*.npz", "where the pieces of a tokenizer may end a clause; seconds to make again"),
}
"""Kind to (its files in the cache directory, what they are)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Lists what is kept between runs in $SSPO_CACHE_DIR (~/.cache/sspo_jax), or empties it."""

    empty: Literal["none", "compiled", "warm_start", "boundaries", "all"] = "none"
    """What to delete. Only files of these kinds ever are, whatever else lies in the directory."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo cache`."""
    config = parse(CacheConfig, arguments, prog="sspo cache")
    root = cache_directory("")
    console = Console(highlight=False)
    if config.empty == "none":
        console.print(listing(root))
        console.print(f"in {root}\n{next_commands('cache --empty all')}", soft_wrap=True)
        return 0
    freed = sum(_delete(path) for kind in _KINDS if config.empty in (kind, "all") for path in entries(root, kind))
    console.print(f"{_size(freed)} freed in {root}", soft_wrap=True)
    return 0


def entries(root: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """Files and folders of a kind."""
    return sorted(root.glob(_KINDS[kind][0]))


def listing(root: pathlib.Path) -> Table:
    """One row a kind: how many there are, their size, when the last was made."""
    table = Table(title="Kept between runs")
    for column in ("kind", "entries", "size", "newest", "what it is"):
        table.add_column(column, justify="right" if column in ("entries", "size") else "left")
    for kind, (_, meaning) in _KINDS.items():
        found = entries(root, kind)
        newest = max((path.stat().st_mtime for path in found), default=None)
        made = "-" if newest is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))
        table.add_row(kind, str(len(found)), _size(sum(map(size_of, found))), made, meaning)
    return table


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.lstat().st_size for file in [path, *path.rglob("*")] if not file.is_dir())


def _delete(path: pathlib.Path) -> int:
    """Deletes a file or a folder; returns its bytes, 0 where it cannot be deleted, which is said."""
    size = size_of(path)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        print(f"sspo cache: cannot delete {path}: {error.strerror}", file=sys.stderr)
        return 0
    return size


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
