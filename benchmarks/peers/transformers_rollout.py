"""Worker of benchmarks/sampler.py: `generate` of Hugging Face transformers on torch, with a static cache."""

import importlib.util
import json
import pathlib
import sys

import torch
import transformers

_FILE = pathlib.Path(__file__).parents[1] / "sampler.py"
_SPEC = importlib.util.spec_from_file_location("sampler_benchmark", _FILE)
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)


def main() -> None:
    work = json.loads(sys.stdin.readline())
    config = transformers.Qwen2Config(
        hidden_size=work["hidden"],
        num_hidden_layers=work["layers"],
        num_attention_heads=work["heads"],
        num_key_value_heads=work["kv_heads"],
        intermediate_size=work["inter"],
        vocab_size=work["vocab"],
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    device = "cpu" if work["dtype"] == "float32" else "cuda"  # workloads in bfloat16 are for an accelerator
    with torch.device(device):
        model = transformers.Qwen2ForCausalLM(config).to(getattr(torch, work["dtype"])).eval()
    rows = [prompt for prompt in work["prompt_ids"] for _ in range(work["group"])]
    size = 64 if device == "cpu" else 256
    batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]

    def run_once() -> int:
        for batch in batches:
            ids = torch.tensor([rows[row] for row in batch], device=device)
            longest = max(work["lengths"][row] for row in batch)
            settings = transformers.GenerationConfig(
                max_new_tokens=longest,
                min_new_tokens=longest,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                eos_token_id=None,
                cache_implementation="static",
                disable_compile=True,
            )
            with torch.no_grad():
                model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            if device == "cuda":
                torch.cuda.synchronize()
        return sum(work["lengths"])

    computed = sum(len(batch) * max(work["lengths"][row] for row in batch) for batch in batches)
    described = {
        "system": f"transformers {transformers.__version__}, torch {torch.__version__}, static cache",
        "useful_fraction": round(sum(work["lengths"]) / computed, 3),
    }
    benchmark.serve_rounds(run_once, described)


if __name__ == "__main__":
    main()
