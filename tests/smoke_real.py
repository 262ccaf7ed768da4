"""The paper's experiment end to end, with nothing replaced but sizes: `make smoke-real`.

A random Qwen2 checkpoint as transformers saves it, with the real 151,936-row vocabulary and tokenizer; the real MATH
problems of levels 3 to 5; a few steps of experiments/qwen25_math_1p5b_sspo.py; an evaluation on real MATH-500 rows; the
export, loaded by transformers again. Needs real data in the folder $SSPO_DATA, which CONTRIBUTING.md describes.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
REAL_DATA = pathlib.Path(os.environ.get("SSPO_DATA") or "(SSPO_DATA is not set)")
NEEDED = ("train/math_lvl3to5_8k.jsonl", "eval/math500.jsonl", "qwen2.5-tokenizer/tokenizer.json")


def random_checkpoint(path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """A Qwen2 of 10 M parameters, nearly all of them the real vocabulary's embedding."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    for file in tokenizer.glob("tokenizer*.json"):
        shutil.copy(file, path)


def sspo(*arguments: str) -> None:
    """Runs a command of the project as a user does."""
    print("$ sspo", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "sspo_jax", *arguments], check=True, cwd=HERE.parent)


def main() -> int:
    missing = [name for name in NEEDED if not (REAL_DATA / name).is_file()]
    if missing:
        print(f"smoke-real: {REAL_DATA} has no {', '.join(missing)}: set SSPO_DATA to the folder of CONTRIBUTING.md")
        return 2
    work = pathlib.Path(tempfile.mkdtemp(prefix="sspo-smoke-"))
    model, run, out = work / "model", work / "run", work / "export"
    random_checkpoint(model, REAL_DATA / "qwen2.5-tokenizer")
    sspo(
        *("train", "qwen25_math_1p5b_sspo", "--model.path", str(model), "--run-dir", str(run)),
        *("--data.path", str(REAL_DATA / "train" / "math_lvl3to5_8k.jsonl")),
        *("--steps", "2", "--rollout.prompts", "4", "--rollout.group-size", "4", "--rollout.max-new-tokens", "48"),
        *("--rollout.max-prompt-tokens", "400", "--update.row-tokens", "512", "--update.micro-rows", "2"),
        *("--checkpoint.every", "1"),
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2], rows
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["model"]["vocab_size"] == 151936
    sspo(
        *("evaluate", "--model", str(run), "--data", f"{REAL_DATA / 'eval' / 'math500.jsonl'}[:8]"),
        *("--max-new-tokens", "32", "--out", str(work / "evaluation"), "--dtype", "float32"),
    )
    assert (work / "evaluation" / "report.html").is_file()
    sspo("export", str(run), str(out), "--dtype", "float32")

    import numpy as np
    import torch
    import transformers

    from sspo_jax.models import apply_qwen, load_qwen

    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokens = tokenizer("What is $1 + 1$?", return_tensors="np")["input_ids"].astype(np.int32)
    params, config = load_qwen(out, dtype="float32")
    ours = np.asarray(apply_qwen(params, config, tokens))
    with torch.no_grad():
        reference = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    gap = float(np.abs(ours - reference).max())
    print(f"export loads in transformers; largest difference of the logits {gap:.2e}")
    assert gap < 2e-5, gap
    shutil.rmtree(work)
    print("smoke-real: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
