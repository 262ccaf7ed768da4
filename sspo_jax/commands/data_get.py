"""`sspo data get NAME ...`: published sets by name, from the Hub or from a local copy."""

import dataclasses
import os
import pathlib
from typing import Annotated

import tyro

from sspo_jax.data.published import EVALUATION, SETS, Entry, HubUnreachableError, PublishedFile, copy, download, present
from sspo_jax.data.sources import DATA_VARIABLE
from sspo_jax.runs.next_commands import next_commands


@dataclasses.dataclass(frozen=True, kw_only=True)
class GetConfig:
    """Fetches published problem sets by name into a data folder: training sets to train/, evaluation sets to eval/.

    From the Hugging Face Hub; where it cannot be reached, from the local copy in $SSPO_DATA; with --from, only from
    there. The licence is printed, rows and digest are checked, and manifest.json in the folder keeps them. Called
    again, it goes on where it stopped and fetches nothing twice.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME [NAME ...]")]
    """math-lvl3to5, gsm8k, dapo-17k, aime24, amc23, math500, minerva, olympiadbench, or eval for the last five."""
    out: str = "data"
    """Data folder to write to; later commands look in $SSPO_DATA, then in data/."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A data folder with a manifest.json to copy from, instead of the Hub."""
    any_rows: bool = False
    """Take a set from the Hub also where it has another number of rows than is known."""


def get_command(config: GetConfig) -> int:
    """Fetches what is named and says what is there and what comes next.

    Raises:
      ValueError: no set of that name, or what came is not what was expected.
      OSError: it is to be had from nowhere.
    """
    unknown = [name for name in config.names if name not in SETS]
    if unknown or not config.names:
        named = f"no set {unknown[0]!r}" if unknown else "no set is named"
        raise ValueError(f"{named}; expected one or more of {', '.join(SETS)}")
    out = pathlib.Path(config.out)
    source = None if config.source is None else pathlib.Path(config.source)
    if source is not None and not source.is_dir():
        raise FileNotFoundError(f"--from is {source}, no directory; expected a data folder with manifest.json")
    files = list(dict.fromkeys(file for name in config.names for file in SETS[name]))
    for file in files:
        _get(file, out, source, any_rows=config.any_rows)
    print(_next(config.names, files, out))
    return 0


def _get(file: PublishedFile, out: pathlib.Path, source: pathlib.Path | None, *, any_rows: bool) -> None:
    entry = present(file, out)
    if entry is not None:
        _say(entry, out, "there already, and intact")
        return
    if source is None:
        try:
            entry, without = download(file, out, any_rows=any_rows)
            left_out = f"{without} without an answer left out, " if without else ""
            _say(entry, out, f"{left_out}from {entry.source}")
            return
        except HubUnreachableError as error:
            local = os.environ.get(DATA_VARIABLE)
            if not local:
                raise OSError(
                    f"{error}: check the network, HF_ENDPOINT and HF_HUB_OFFLINE; or run this command where there is a "
                    f"network, copy its folder here, and name it with --from or in ${DATA_VARIABLE}"
                ) from None
            print(f"{error}; taken from ${DATA_VARIABLE}, {local}")
            source = pathlib.Path(local)
    _say(copy(file, source, out), out, f"copied from {source}")


def _say(entry: Entry, out: pathlib.Path, how: str) -> None:
    print(f"{out / entry.path}: {entry.rows:,} problems, sha256 {entry.sha256[:16]}, {how}")
    print(f"  licence, as stated upstream: {entry.licence}")


def _next(names: tuple[str, ...], files: list[PublishedFile], out: pathlib.Path) -> str:
    """The command that uses what was fetched."""
    training = next((file.path for file in files if file.path.startswith("train/")), None)
    where = "" if os.path.normpath(out) == "data" else f"{DATA_VARIABLE}={out} "
    if training:
        return next_commands(f"train qwen25_math_1p5b_sspo --data.path {out / training}", before=where)
    sets = ",".join(dict.fromkeys(name for each in names for name in (EVALUATION if each == "eval" else (each,))))
    return next_commands(f"evaluate --model MODEL --data {sets}", before=where)
