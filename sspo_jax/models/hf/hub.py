"""Checkpoints by name: a directory, or what the Hugging Face Hub has under it."""

import hashlib
import os
import pathlib

from sspo_jax.models.hf.files import weight_files


def fetch_model(name: str) -> pathlib.Path:
    """The directory of a checkpoint: `name` itself, or what the Hub has under it."""
    path = pathlib.Path(name)
    if path.is_dir():
        return path
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"],
                ignore_patterns=["original/*", "consolidated*"],  # Llama's and Mistral's weights once more
            )
        )
    except Exception as error:
        # The Hub's client has a dozen ways to say no; all mean that there is nothing to train.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"model {name!r} is not a directory and could not be downloaded from the Hub ({reason}): give the "
            "directory of a Hugging Face checkpoint"
        ) from None


def model_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the config and the weights of a checkpoint directory, as recorded in a run's config.json.

    Raises:
      FileNotFoundError: no weights there.
    """
    directory = pathlib.Path(path)
    files = [directory / "config.json", *weight_files(directory)]
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
