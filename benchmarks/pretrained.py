"""A real checkpoint on this machine: loading, decoding beside transformers, an update; one JSON line each.

    python benchmarks/pretrained.py DIR load|decode|transformers|update|int8 [--unrolled]

`decode` and `transformers` sample 4 responses of 64 tokens to each of the same 4 prompts, without end tokens, at
temperature 1, float32, with the threads that the process is given (`taskset -c 0`: one core). Rates are also per second
of processor time, which other work on the machine hardly changes. Parts run in processes of their own, so that the peak
of memory is theirs alone.
"""

import argparse
import json
import pathlib
import resource
import time
from typing import Any

PROBLEMS = (
    "Tom has 3 apples and buys 4 more. How many apples does he have now?",
    "A box holds 6 pens. How many pens are in 4 boxes?",
    "Anna reads 12 pages on Monday and 9 pages on Tuesday. How many pages does she read in all?",
    "There are 20 birds in a tree and 7 fly away. How many birds are left?",
)
SAMPLES, NEW_TOKENS = 4, 64


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prompts(path: str) -> tuple[Any, list[list[int]]]:
    from sspo_jax.data.problems import Problem
    from sspo_jax.data.prompts import CHAT, PromptTokenizer
    from sspo_jax.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    encode = PromptTokenizer(CHAT, tokenizer)
    return tokenizer, [encode(Problem(id=str(i), problem=text, answer="")) for i, text in enumerate(PROBLEMS)]


def load(path: str) -> tuple[Any, Any, dict[str, float]]:
    import jax

    from sspo_jax.models import load_model

    jax.block_until_ready(jax.numpy.zeros(1))
    before, start = peak_mib(), time.perf_counter()
    params, config = load_model(path)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
    return params, config, {"seconds": seconds, "weights_mib": size, "peak_mib": peak_mib(), "before_mib": before}


def decode(path: str, *, unrolled: bool | None) -> dict[str, float]:
    from sspo_jax.sampler import Sampler, SamplingParams

    params, config, _ = load(path)
    sampler = Sampler(config, SamplingParams(max_new_tokens=NEW_TOKENS), unrolled=unrolled)
    weights = sampler.ready(params, release=True)
    del params
    tokens, start = prompts(path)[1], time.perf_counter()
    sampler.generate(weights, tokens, group_size=SAMPLES, seed=0)
    first, rates, by_processor = time.perf_counter() - start, [], []
    for seed in range(1, 4):
        start, used = time.perf_counter(), time.process_time()
        rollout = sampler.generate(weights, tokens, group_size=SAMPLES, seed=seed)
        count = sum(map(len, rollout.responses))
        rates.append(count / (time.perf_counter() - start))
        by_processor.append(count / (time.process_time() - used))
    return {
        "tokens_per_second": sorted(rates)[1],
        "tokens_per_processor_second": sorted(by_processor)[1],
        "first_call_seconds": first,
        "compile_seconds": sampler.programs.seconds,
        "peak_mib": peak_mib(),
    }


def transformers(path: str) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(_cores()))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    tokens = [ids for ids in prompts(path)[1] for _ in range(SAMPLES)]
    longest = max(map(len, tokens))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in tokens])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in tokens])
    rates, by_processor = [], []
    for _ in range(4):
        start, used = time.perf_counter(), time.process_time()
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, pad_token_id=0
            )
        count = (out.shape[1] - longest) * len(tokens)
        rates.append(count / (time.perf_counter() - start))
        by_processor.append(count / (time.process_time() - used))
    return {
        "tokens_per_second": sorted(rates[1:])[1],
        "tokens_per_processor_second": sorted(by_processor[1:])[1],
        "peak_mib": peak_mib(),
    }


def update(path: str) -> dict[str, float]:
    """Gradient of 8 rows of 160 tokens in micro-batches of 4: forward, backward; without the optimizer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sspo_jax.trainer.step import sequence_logprobs
    from sspo_jax.types import TrainBatch

    params, config, _ = load(path)
    config = config.computed(remat="full")
    rows, time_ = 4, 160
    ids, zeros = np.ones((rows, time_), np.int32), np.zeros((rows, time_), np.float32)
    batch = TrainBatch(
        tokens=np.random.default_rng(0).integers(0, config.vocab_size, (rows, time_)).astype(np.int32),
        positions=np.tile(np.arange(time_, dtype=np.int32), (rows, 1)),
        segment_ids=ids,
        mask=np.tile(np.arange(time_) >= 60, (rows, 1)),
        advantages=zeros,
        old_logprobs=zeros,
        entropies=zeros,
        sampler_logprobs=zeros,
        subsentence_ids=ids,
    )
    batch = jax.tree.map(jnp.asarray, batch)
    step = jax.jit(jax.grad(lambda p: jnp.sum(sequence_logprobs(p, config, batch, temperature=1.0)[0])))
    start = time.perf_counter()
    jax.block_until_ready(step(params))
    first, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(2):
        jax.block_until_ready(step(params))
    seconds = (time.perf_counter() - start) / 2
    return {"seconds": seconds, "first_seconds": first, "tokens": rows * time_, "peak_mib": peak_mib()}


def int8(path: str) -> dict[str, float]:
    """What the matrices of the blocks in int8 do to the log-probs of responses sampled from the model itself.

    Also the divergence KL(model, rounded) a token, the tokens whose most probable successor changes, and the bytes.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sspo_jax.models import apply_qwen
    from sspo_jax.models.int8 import quantize
    from sspo_jax.sampler import Sampler, SamplingParams

    params, config, _ = load(path)
    rollout = Sampler(config, SamplingParams(max_new_tokens=NEW_TOKENS)).generate(
        params, prompts(path)[1], group_size=SAMPLES, seed=0
    )
    blocks = {name: jax.jit(lambda x, name=name: quantize(name, x, lead=1))(x) for name, x in params["blocks"].items()}
    rounded = params | {"blocks": blocks}
    length = max(len(p) + len(r) for p, r in zip(rollout.prompts, rollout.responses, strict=True))

    @jax.jit
    def compared(params: Any, rounded: Any, tokens: Any) -> Any:
        ours, theirs = (jax.nn.log_softmax(apply_qwen(p, config, tokens)[:, :-1], axis=-1) for p in (params, rounded))
        chosen = [jnp.take_along_axis(x, tokens[:, 1:, None], axis=-1)[..., 0] for x in (ours, theirs)]
        divergence = jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)
        return chosen[1] - chosen[0], divergence, jnp.argmax(ours, axis=-1) != jnp.argmax(theirs, axis=-1)

    found: list[list[np.ndarray]] = []
    for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(prompt) + len(response)] = [*prompt, *response]
        here = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        found.append([np.asarray(x)[0, here] for x in compared(params, rounded, tokens)])
    gaps, divergences, changed = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return {
        "tokens": len(gaps),
        "logprob_error_mean": float(np.abs(gaps).mean()),
        "logprob_error_99th": float(np.quantile(np.abs(gaps), 0.99)),
        "logprob_error_max": float(np.abs(gaps).max()),
        "kl": float(divergences.mean()),
        "argmax_changed": float(changed.mean()),
        "blocks_mib_float32": sum(leaf.nbytes for leaf in jax.tree.leaves(params["blocks"])) / 2**20,
        "blocks_mib_int8": sum(leaf.nbytes for leaf in jax.tree.leaves(blocks)) / 2**20,
    }


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="directory of a Hugging Face checkpoint with its tokenizer")
    parser.add_argument("part", choices=("load", "decode", "transformers", "update", "int8"))
    parser.add_argument("--unrolled", action="store_true", help="each layer in arrays of its own (default: 8 or fewer)")
    arguments = parser.parse_args()
    path = str(pathlib.Path(arguments.path))
    if arguments.part == "load":
        found = load(path)[2]
    elif arguments.part == "decode":
        found = decode(path, unrolled=arguments.unrolled or None)
    else:
        found = {"transformers": transformers, "update": update, "int8": int8}[arguments.part](path)
    record = {"part": arguments.part, "cores": len(_cores()), "unrolled": arguments.unrolled, **found}
    print(json.dumps({name: round(value, 6) if isinstance(value, float) else value for name, value in record.items()}))


if __name__ == "__main__":
    main()
