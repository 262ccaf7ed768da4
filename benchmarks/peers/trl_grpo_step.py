"""Worker of benchmarks/grpo_step.py: GRPOTrainer of TRL on the checkpoint and the problems of the working directory."""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import datasets
import torch
import transformers
import trl

sys.path.append(".")  # own_reward, beside the problems
import own_reward


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """That of the other side."""
    return [own_reward.made_up(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]


def main() -> None:
    """Writes a line for each step: when it ended, seconds of its sampling, tokens sampled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in pathlib.Path("problems.jsonl").read_text().splitlines()]
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, fp16=False, per_device_train_batch_size=64,
        num_generations=8, max_completion_length=128, temperature=1.0, beta=0.0, gradient_checkpointing=False,
        max_steps=options.steps, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        learning_rate=1e-6, dataloader_pin_memory=False,
    )  # fmt: skip
    sampling, tokens = [0.0], [0]

    class Times(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            row = {"end": time.time(), "generate": sampling[0], "tokens": tokens[0]}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    model = transformers.AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list([{"prompt": row["problem"]} for row in rows]),
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained("model"),
        callbacks=[Times()],
    )
    inner = trainer._generate_and_score_completions

    def timed(*arguments: object, **keywords: object) -> dict:
        start = time.perf_counter()
        result = inner(*arguments, **keywords)
        sampling[0] = time.perf_counter() - start
        tokens[0] = int(result["completion_mask"].sum())
        return result

    trainer._generate_and_score_completions = timed
    trainer.train()


if __name__ == "__main__":
    main()
