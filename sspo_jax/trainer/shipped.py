"""Warm starts that come with the package, so that the default experiment begins with reinforcement learning at once.

A folder each in shipped_warm_starts/, under the key of `warm_start` (a hash of shape, settings, data, prompt, tokenizer
and version of the code that trains), so that settings that differ in anything find none. built.json beside the weights
says on what they were made; the same there makes them again bit for bit (`sspo warm-start`), and anything else, another
number of cores or another jax included, other roundings.
"""

import dataclasses
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from sspo_jax.files import read_json, write_json

SHIPPED = pathlib.Path(__file__).parent / "shipped_warm_starts"
_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """What a warm start was made on."""

    sha256: str
    """Digest of the weights."""
    jax: str
    """Version."""
    cores: int
    """Of the processor, that the process could use."""
    processor: str
    """Its vector instructions, by which XLA chooses how sums are ordered."""

    def differences(self, other: "Built") -> list[str]:
        """What of the machine and the software is not the same, in words."""
        return [
            f"{field.name} {getattr(self, field.name)} / {getattr(other, field.name)}"
            for field in dataclasses.fields(self)
            if field.name != "sha256" and getattr(self, field.name) != getattr(other, field.name)
        ]


def shipped_folder(key: str) -> pathlib.Path | None:
    """The folder of a shipped warm start, checked; None where none is shipped under this key.

    Raises:
      ValueError: its weights are not those that were shipped.
    """
    folder = SHIPPED / key
    if not (folder / "built.json").is_file():
        return None
    built = read_built(folder)
    if digest(folder) != built.sha256:
        raise ValueError(
            f"{folder}: the weights are damaged, their digest is not that of built.json: install sspo_jax again"
        )
    return folder


def read_built(folder: pathlib.Path) -> Built:
    """What the warm start in a folder was made on."""
    return Built(**read_json(folder / "built.json"))


def ship(folder: pathlib.Path) -> Built:
    """Writes built.json for weights that this process has made, and removes what need not be shipped."""
    for file in folder.iterdir():
        if file.name not in (_WEIGHTS, "config.json"):
            file.unlink()
    built = here(digest(folder))
    write_json(folder / "built.json", dataclasses.asdict(built))
    return built


def here(sha256: str) -> Built:
    """Weights made by this process."""
    return Built(sha256=sha256, jax=jax.__version__, cores=cores(), processor=_processor())


def digest(folder: pathlib.Path) -> str:
    """Sha256 of the weights in a folder."""
    return hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores(count: int) -> None:
    """Lets this process use so many cores, where the system can and has them; before anything is computed."""
    if hasattr(os, "sched_setaffinity") and count < cores():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _processor() -> str:
    """Machine and the widest vector instructions of the processor."""
    found: Any = ""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
        found = next((name for name in ("avx512f", "avx2", "avx", "asimd") if name in flags), "")
    except OSError:
        pass  # not Linux
    return f"{platform.machine()} {found}".strip()
