"""Tokenizers by name: the tiny one shipped with the project, or that of a Hugging Face checkpoint."""

import hashlib
import json
import pathlib
from typing import Any

from sspo_jax.files import check_not_pointer

TINY = "tiny"
_TINY_PATH = pathlib.Path(__file__).parent / "tiny_tokenizer"


def load_tokenizer(spec: str) -> Any:
    """A fast tokenizer of transformers.

    Args:
      spec: `tiny`, a directory with a tokenizer.json, or a name on the Hub.

    Raises:
      FileNotFoundError: no directory, and it could not be downloaded from the Hub.
      ValueError: the directory has no tokenizer, or it has no end token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    directory = _TINY_PATH if spec == TINY else pathlib.Path(spec)
    if directory.is_dir():
        if not (directory / "tokenizer.json").is_file():
            raise ValueError(
                f"no tokenizer.json in {directory}: copy the tokenizer of the checkpoint there, or name the directory "
                "of another as the tokenizer"
            )
        check_not_pointer(directory / "tokenizer.json")
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        except Exception as error:  # of its two libraries, each with its own kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the tokenizer in {directory} cannot be read ({reason}): copy it there again") from None
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(spec)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FileNotFoundError(
                f"tokenizer {spec!r} is not a directory and could not be downloaded from the Hub ({reason})"
            ) from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {spec!r} has no end token: set eos_token in its tokenizer_config.json")
    return tokenizer


def count_tokens(tokenizer: Any) -> int:
    """One more than the largest id that the tokenizer has: a model's rows from there on are no tokens."""
    return 1 + max(tokenizer.get_vocab().values())


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 (first 16 hexadecimal digits) of everything that decides what text becomes which ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("padding", None)  # set by calls, of no effect on ids
    content.pop("truncation", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
