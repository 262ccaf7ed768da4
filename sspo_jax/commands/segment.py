"""`sspo segment FILE --tokenizer ...`: a text with its subsentences coloured, or the statistics of a whole file."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sspo_jax.files import read_json_lines
from sspo_jax.ranges import Count, Whole
from sspo_jax.subsentences import Segmenter, parse_rule
from sspo_jax.subsentences.rules import MAX_TOKENS, segment_tokens
from sspo_jax.types import Number

_COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Shows how texts are cut into subsentences: sspo segment FILE --tokenizer DIRECTORY."""

    file: pathlib.Path
    """A text, or JSON lines (`.jsonl`); `-` is the standard input."""
    tokenizer: str
    """`tiny`, a directory with a tokenizer, or a tokenizer.json."""
    field: str = "solution"
    """The field of a JSON line that holds the text."""
    rule: str = "punctuation"
    """punctuation, sentence, newline, fixed(n), token or response."""
    min_tokens: Count = 5
    """A shorter piece is joined with its neighbour."""
    max_tokens: Count | None = MAX_TOKENS
    """A longer piece is cut into parts of equal length; None: never. Not read by fixed(n), token and response."""
    math_aware: bool = True
    """Ignore boundary marks inside brackets or $...$."""
    show: Whole = 1
    """Texts to print in colours."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo segment`: FILE first, then options."""
    from sspo_jax.commands.options import parse

    arguments = list(arguments)
    if arguments and (arguments[0] == "-" or not arguments[0].startswith("-")):
        arguments = ["--file", *arguments]
    return segment(parse(SegmentConfig, arguments, prog="sspo segment"))


def read_tokenizer(path: str) -> Any:
    """A tokenizer.json, or what `sspo_jax.data.tokenizer.load_tokenizer` knows; nothing is downloaded.

    Raises:
      ValueError: there is no tokenizer at `path`.
    """
    if pathlib.Path(path).is_file():
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(path)
        except Exception as error:  # the library raises nothing more particular
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
    from sspo_jax.data.tokenizer import TINY, load_tokenizer

    if path != TINY and not pathlib.Path(path).is_dir():
        raise ValueError(f"--tokenizer is {path!r}; expected {TINY!r}, a tokenizer.json or a directory with one")
    return load_tokenizer(path)


def read_texts(config: SegmentConfig) -> list[str]:
    """The texts of the file: one, or one per JSON line.

    Raises:
      ValueError: a line is not a JSON object, or its field is missing or not text.
    """
    if config.file.suffix != ".jsonl":
        return [sys.stdin.read() if str(config.file) == "-" else config.file.read_text(encoding="utf-8")]
    texts = []
    for where, row in read_json_lines(config.file):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}; expected a JSON object")
        if not isinstance(row.get(config.field), str):
            raise ValueError(
                f"{where}: no text in {config.field!r}, the fields are {', '.join(row)}: name one of them with --field"
            )
        texts.append(row[config.field])
    return texts


def coloured(pieces: list[str]) -> Text:
    """The pieces one after another, each in another colour, newlines made visible."""
    text = Text()
    for index, piece in enumerate(pieces):
        text.append(piece.replace("\n", "⏎\n"), style=_COLOURS[index % len(_COLOURS)])
    return text


def lengths_of(segmenter: Segmenter, texts: list[str]) -> list[np.ndarray]:
    """Tokens per subsentence, for each text."""
    rule = parse_rule(segmenter.rule, math_aware=segmenter.math_aware)
    result = []
    for encoding in segmenter.host.tokenizer.encode_batch(texts, add_special_tokens=False):
        pieces = [segmenter.host.pieces[token] for token in encoding.ids]
        result.append(
            np.bincount(segment_tokens(pieces, rule, min_tokens=segmenter.min_tokens, max_tokens=segmenter.max_tokens))
        )
    return result


def statistics(lengths: list[np.ndarray]) -> dict[str, Number]:
    """Counts, and the distribution of tokens per subsentence, over all texts."""
    every = np.concatenate([np.zeros(0, int), *lengths])
    if not len(every):
        return {"texts": len(lengths), "tokens": 0, "subsentences": 0}
    return {
        "texts": len(lengths),
        "tokens": int(every.sum()),
        "subsentences": len(every),
        "subsentences_per_text": round(len(every) / len(lengths), 2),
        "tokens_mean": round(float(every.mean()), 2),
        "tokens_median": float(np.median(every)),
        "tokens_p95": round(float(np.percentile(every, 95)), 2),
        "tokens_max": int(every.max()),
    }


def segment(config: SegmentConfig) -> int:
    """Prints the first texts in colours, then counts and the length histogram of all; returns the exit status."""
    console = Console(highlight=False)
    if config.rule == "entropy":
        raise ValueError("rule 'entropy' needs the entropies of a model: it cannot split a text")
    texts = read_texts(config)
    segmenter = Segmenter.from_tokenizer(
        read_tokenizer(config.tokenizer),
        rule=config.rule,
        min_tokens=config.min_tokens,
        max_tokens=config.max_tokens,
        math_aware=config.math_aware,
    )
    for text in texts[: config.show]:
        console.print(coloured(segmenter.split(text)))
        console.print()
    lengths = lengths_of(segmenter, texts)
    console.print(json.dumps({"rule": config.rule, **statistics(lengths)}), soft_wrap=True)
    every = np.concatenate([np.zeros(0, int), *lengths])
    table = Table("tokens", "subsentences", "share")
    edges = [1, 2, 5, 10, 15, 20, 30, 50, 100]
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        count = int(((every >= low) & (every < (high or np.inf))).sum())
        share = count / max(len(every), 1)
        label = f"{low}+" if high is None else f"{low}-{high - 1}" if high - 1 > low else str(low)
        table.add_row(label, str(count), f"{share:6.1%} " + "█" * round(40 * share))
    console.print(table)
    return 0
