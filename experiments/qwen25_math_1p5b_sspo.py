"""SSPO, Qwen2.5-Math-1.5B, MATH levels 3-5: the paper's setting as far as it is known.

    make train EXP=qwen25_math_1p5b_sspo ARGS="--data.path math_lvl3to5_8k.jsonl"
    make train EXP=qwen25_math_1p5b_sspo ARGS="--model.path DIR --loss.clip-low 0.02 --loss.clip-high 0.028 \
        --loss.length-reference 10"                                   (the `calibrated` clip preset)

The paper (arXiv:2511.04256v2) reports 46.72 on average over five sets, GRPO 43.01 and GSPO 44.42. Its data, learning
rate and lengths were not available to us; these are the settings of the recipes it builds on: 128 prompts x 8 samples,
learning rate 1e-6, no KL term, temperature 1, 3,000 new tokens, and four updates per rollout, without which every ratio
would be 1. Those of the paper's five sets that are in $SSPO_DATA (or data/) are evaluated every 50 steps, one greedy
response per problem; `--evaluation.sets aime24,math500` names others. Not yet run at full size:
docs/first_real_run.md is the way to it.
"""

from sspo_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
    UpdateConfig,
)
from sspo_jax.data.sources import JsonlData, sets_at_hand
from sspo_jax.losses import Sspo


def config() -> TrainConfig:
    """The 1.5B setting."""
    return TrainConfig(
        steps=500,
        model=ModelConfig(path="Qwen/Qwen2.5-Math-1.5B", dtype="bfloat16", remat="full"),
        data=JsonlData(path="data/math_lvl3to5_8k.jsonl"),
        prompt="qwen-math",
        rollout=RolloutConfig(
            prompts=128,
            group_size=8,
            max_new_tokens=3000,
            max_prompt_tokens=1024,
            long_prompts="drop",
            temperature=1.0,
            slots=384,  # what a v5e-8 holds with room to spare; 1024, all of a step, on larger slices: see docs/tpu.md
            stop_token_ids=(151643, 151645),  # the base model ends on the first, chat turns end on the second
        ),
        loss=Sspo.paper_like(),
        update=UpdateConfig(per_rollout=4, row_tokens=4096, micro_rows=8),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        evaluation=EvaluationConfig(
            data=sets_at_hand("aime24", "amc23", "math500", "minerva", "olympiadbench"), every=50, samples=0
        ),
        checkpoint=CheckpointConfig(every=10, keep=2),
    )
