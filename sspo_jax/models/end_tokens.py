"""What ends a response: one answer for training, evaluation, export and serving."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

TURN_END = "<|im_end|>"
"""Ends a turn of ChatML, the format of Qwen's chat templates and of our prompts."""


def end_tokens(tokenizer: Any, declared: Iterable[int], *, own: Iterable[int] = ()) -> tuple[int, ...]:
    """Ids of the tokens of which any ends a response, without repetition, in this order:

    1. the tokenizer's end token;
    2. what the checkpoint declares (`QwenConfig.eos_token_ids`);
    3. `<|im_end|>`, where the tokenizer has it: prompts are ChatML turns, which end with it, but Qwen's base
       checkpoints declare `<|endoftext|>` alone;
    4. `own`, those of an experiment.

    `<|endoftext|>` is not added to a tokenizer that ends on `<|im_end|>`: unless the checkpoint declares it, it is
    padding there.

    Args:
      tokenizer: of transformers; None where there is none.
      declared: ids.
      own: ids.
    """
    found: list[int] = []
    if getattr(tokenizer, "eos_token_id", None) is not None:
        found.append(tokenizer.eos_token_id)
    found += declared
    if hasattr(tokenizer, "convert_tokens_to_ids"):
        turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
        if turn_end not in (None, tokenizer.unk_token_id):
            found.append(turn_end)
    return tuple(dict.fromkeys([*found, *own]))


def declared_end_tokens(directory: pathlib.Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The ids that a Hugging Face checkpoint declares: those of generation_config.json, else of config.json.

    Args:
      directory: of the checkpoint.
      config: content of its config.json.
    """
    generation = directory / "generation_config.json"
    ids = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    ids = config.get("eos_token_id") if ids is None else ids
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
