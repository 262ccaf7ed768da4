"""Worker of benchmarks/grpo_step.py: GRPOLearner of Tunix on checkpoint and problems of the working directory."""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

sys.path.append(".")  # own_reward, beside the problems
import own_reward

PROMPTS, GROUP, PROMPT, RESPONSE = 8, 8, 64, 128


class Words:
    """The tokenizer of the checkpoint, as Tunix wants one."""

    def __init__(self):
        self._own = transformers.PreTrainedTokenizerFast.from_pretrained("model")

    def encode(self, text: str, **_: object) -> list[int]:
        return self._own.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int], **_: object) -> str:
        return self._own.decode(ids, skip_special_tokens=True)

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return self._own.eos_token_id

    def pad_id(self) -> int:
        return self._own.pad_token_id


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """That of the other side."""
    return [own_reward.made_up(str(prompt), text) for prompt, text in zip(prompts, completions, strict=True)]


def main() -> None:
    """Writes a line for each step: when it ended, seconds of its sampling, tokens sampled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in pathlib.Path("problems.jsonl").read_text().splitlines()]
    given = json.loads(pathlib.Path("model/config.json").read_text())
    heads = given["num_attention_heads"]
    config = qwen2.ModelConfig(
        num_layers=given["num_hidden_layers"], vocab_size=given["vocab_size"], embed_dim=given["hidden_size"],
        hidden_dim=given["intermediate_size"], num_heads=heads, head_dim=given["hidden_size"] // heads,
        num_kv_heads=given["num_key_value_heads"], norm_eps=given["rms_norm_eps"],
        rope_theta=given["rope_parameters"]["rope_theta"], use_tied_embedding=True, dtype=jnp.float32,
        param_dtype=jnp.float32,
    )  # fmt: skip
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    settings = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh),
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-6), eval_every_n_steps=10**6, max_steps=10**6, mini_batch_size=PROMPTS,
            train_micro_batch_size=PROMPTS, rollout_micro_batch_size=PROMPTS, compute_logps_micro_batch_size=PROMPTS,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=RESPONSE, temperature=1.0, top_p=1.0, top_k=None, max_prompt_length=PROMPT,
            kv_cache_size=PROMPT + RESPONSE,
        ),
    )  # fmt: skip
    sampling, tokens = [0.0], [0]

    def batches(model: nnx.Module) -> Iterator[dict[str, np.ndarray]]:
        """The problems of a step; asked for when the step before is done."""
        for step in range(options.steps + 1):
            if step:
                jax.block_until_ready(jax.tree.leaves(nnx.state(model, nnx.Param)))
                line = {"end": time.time(), "generate": sampling[0], "tokens": tokens[0]}
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            if step < options.steps:
                chosen = [rows[(step * PROMPTS + place) % len(rows)]["problem"] for place in range(PROMPTS)]
                yield {"prompts": np.array(chosen)}

    with mesh:
        model = qwen2_params.create_model_from_safe_tensors("model", config, mesh, dtype=jnp.float32)
        cluster = rl_cluster.RLCluster(actor=model, tokenizer=Words(), cluster_config=settings)
        learner = grpo_learner.GRPOLearner(
            rl_cluster=cluster,
            reward_fns=reward,
            algo_config=grpo_learner.GRPOConfig(num_generations=GROUP, beta=0.0, epsilon=0.2),
        )
        inner = learner._generate_and_compute_advantage

        def timed(*arguments: object, **keywords: object) -> object:
            start = time.perf_counter()
            result = inner(*arguments, **keywords)
            jax.block_until_ready((result.completion_ids, result.advantages))
            sampling[0], tokens[0] = time.perf_counter() - start, int(result.completion_mask.sum())
            return result

        learner._generate_and_compute_advantage = timed
        learner.train(batches(cluster.actor_trainer.model))


if __name__ == "__main__":
    main()
