"""Worker of benchmarks/sampler.py: the native sampler of Tunix."""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as qwen2

_FILE = pathlib.Path(__file__).parents[1] / "sampler.py"
_SPEC = importlib.util.spec_from_file_location("sampler_benchmark", _FILE)
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)


class Numbers:
    """A tokenizer that maps '12 7 99' to [12, 7, 99]; its end token is never generated."""

    def __init__(self, vocab: int):
        self._vocab = vocab

    def encode(self, text, **_):
        return [int(token) for token in text.split()]

    def decode(self, ids, **_):
        return " ".join(str(int(token)) for token in ids)

    def bos_id(self):
        return None

    def eos_id(self):
        return self._vocab + 7

    def pad_id(self):
        return 0


def main() -> None:
    work = json.loads(sys.stdin.readline())
    head_dim = work["hidden"] // work["heads"]
    config = qwen2.ModelConfig(
        num_layers=work["layers"],
        vocab_size=work["vocab"],
        embed_dim=work["hidden"],
        hidden_dim=work["inter"],
        num_heads=work["heads"],
        head_dim=head_dim,
        num_kv_heads=work["kv_heads"],
        norm_eps=1e-6,
        rope_theta=1_000_000,
        use_tied_embedding=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    embedding = model.embedder.input_embedding
    embedding.value = embedding.value * 0.02
    longest = max(work["lengths"])
    cache = sampler_lib.CacheConfig(
        cache_size=work["prompt"] + longest,
        num_layers=work["layers"],
        num_kv_heads=work["kv_heads"],
        head_dim=head_dim,
    )
    sampler = sampler_lib.Sampler(model, Numbers(work["vocab"]), cache)
    rows = [" ".join(map(str, prompt)) for prompt in work["prompt_ids"] for _ in range(work["group"])]
    calls = [0]

    def run_once() -> int:
        calls[0] += 1
        for start in range(0, len(rows), 64):
            out = sampler(
                rows[start : start + 64],
                max_generation_steps=longest,
                max_prompt_length=work["prompt"],
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                seed=calls[0],
                return_logprobs=False,
            )
            jax.block_until_ready(out.tokens)
        return sum(work["lengths"])

    described = {"system": f"google-tunix {importlib.metadata.version('google-tunix')}, jax {jax.__version__}"}
    benchmark.serve_rounds(run_once, described)


if __name__ == "__main__":
    main()
