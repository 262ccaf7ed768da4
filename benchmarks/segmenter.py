"""Speed of the segmenter inside jit, against its own reference on text: `python benchmarks/segmenter.py`.

Prints one JSON line. The tokens are drawn at random from the table's rows in the proportions of the vocabulary, so no
data is needed; `--tokenizer` names a tokenizer.json, without which a byte-level vocabulary of 256 is used.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sspo_jax.subsentences import Segmenter, parse_rule, table
from sspo_jax.subsentences.rules import segment_tokens
from sspo_jax.subsentences.vocabulary import token_bytes


def bytes_only() -> Tokenizer:
    """A byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", help="a tokenizer.json")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--time", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(options.tokenizer) if options.tokenizer else bytes_only()
    start = time.perf_counter()
    pieces = token_bytes(tokenizer)
    table.build(pieces, parse_rule("punctuation"))
    build_seconds = time.perf_counter() - start
    segmenter = Segmenter.from_tokenizer(tokenizer)
    tokens = np.random.default_rng(0).integers(0, len(pieces), (options.rows, options.time)).astype(np.int32)
    mask = jnp.ones(tokens.shape, bool)
    run = jax.jit(lambda segmenter, tokens, mask: segmenter(tokens, mask))
    start = time.perf_counter()
    ids = jax.block_until_ready(run(segmenter, tokens, mask))
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(segmenter, tokens, mask))
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    reference = segment_tokens([pieces[token] for token in tokens[0]], parse_rule("punctuation"), min_tokens=5)
    reference_seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "benchmark": "segmenter",
                "device": jax.devices()[0].device_kind,
                "shape": list(tokens.shape),
                "vocabulary": len(pieces),
                "table_seconds": round(build_seconds, 2),
                "compile_seconds": round(compile_seconds, 2),
                "tokens_per_second": round(tokens.size / float(np.median(seconds))),
                "best_tokens_per_second": round(tokens.size / min(seconds)),
                "reference_tokens_per_second": round(options.time / reference_seconds),
                "agrees": reference == np.asarray(ids)[0].tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()
