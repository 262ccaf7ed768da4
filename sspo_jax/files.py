"""Where things that can be made again are kept between runs."""

import json
import os
import pathlib
from typing import Any


def cache_directory(subject: str) -> pathlib.Path:
    """`$SSPO_CACHE_DIR`, or `~/.cache/sspo_jax`, and below it the subject. Not created."""
    root = os.environ.get("SSPO_CACHE_DIR") or pathlib.Path.home() / ".cache" / "sspo_jax"
    return pathlib.Path(root) / subject


def write_json(file: pathlib.Path, record: Any) -> None:
    """Atomic, indented."""
    replace_text(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def replace_text(file: pathlib.Path, text: str) -> None:
    """Writes a file so that it has the old content or the new one, never a part."""
    part = file.with_name(file.name + ".part")
    with open(part, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
