"""The bytes each token of a tokenizer stands for."""

import functools
import hashlib
import json
import re
from typing import Any

# What a token of the tokenizer's own (end of text, padding) stands for: to the rules it is white space.
SPECIAL = b" "


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The inverse of GPT-2's map from bytes to printable characters, used by byte-level vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` of a transformers fast tokenizer, or the argument itself if it is one."""
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(tokenizer, "get_vocab") or not hasattr(tokenizer, "get_added_tokens_decoder"):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}, expected a transformers fast tokenizer or a "
            "tokenizers.Tokenizer"
        )
    return tokenizer


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes of every token id, `SPECIAL` for special tokens and for ids that are not in use.

    Byte-level vocabularies (GPT-2, Qwen, Llama 3) and SentencePiece-like ones with byte fallback (Llama 2, Gemma) are
    understood; other kinds lose white space, on which the rules depend, and are refused.
    """
    tokenizer = backend(tokenizer)
    # The decoder says how tokens are spelled; a Sequence holds its members somewhere inside.
    decoder = tokenizer.decoder
    spelling = json.dumps(json.loads(tokenizer.to_str()).get("decoder")) if decoder is not None else ""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    if "ByteLevel" in spelling:
        table = _byte_of_character()

        def to_bytes(token: str) -> bytes:
            return bytes(table[character] for character in token)

    elif "ByteFallback" in spelling or "Metaspace" in spelling:

        def to_bytes(token: str) -> bytes:
            match = re.fullmatch("<0x([0-9A-F]{2})>", token)
            return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode("utf-8")

    else:
        raise ValueError("the tokenizer's decoder is neither ByteLevel nor Metaspace: its tokens have no exact bytes")
    result = [SPECIAL] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if index in added:
            result[index] = SPECIAL if added[index].special else added[index].content.encode("utf-8")
        else:
            result[index] = to_bytes(token)
    return result


def digest(pieces: list[bytes]) -> str:
    """A name for the vocabulary: equal for equal tokens in equal order."""
    lengths = b"".join(len(piece).to_bytes(4, "little") for piece in pieces)
    return hashlib.sha256(lengths + b"".join(pieces)).hexdigest()
