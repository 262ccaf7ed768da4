"""Where things that can be made again are kept between runs."""

import os
import pathlib


def cache_directory(subject: str) -> pathlib.Path:
    """`$SSPO_CACHE_DIR`, or `~/.cache/sspo_jax`, and below it the subject. Not created."""
    root = os.environ.get("SSPO_CACHE_DIR") or pathlib.Path.home() / ".cache" / "sspo_jax"
    return pathlib.Path(root) / subject
