"""What a run is: frozen dataclasses, nested by subject. An experiment file returns one `TrainConfig`.

A field can be set from the command line as `--section.field value`, unless it is `FileOnly`; the docstring under it is
its help text.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sspo_jax.advantages import Estimator, Scale
from sspo_jax.data.curriculum import CurriculumConfig
from sspo_jax.data.sources import Data, parse_sets
from sspo_jax.distributed.processes import DistributedConfig
from sspo_jax.environments import EnvironmentConfig
from sspo_jax.losses import Objective, Sspo
from sspo_jax.models.attention import Implementation
from sspo_jax.models.configs import QwenConfig, QwenModel
from sspo_jax.models.lora import LoraConfig
from sspo_jax.ranges import Count, FileOnly, NotNegative, Positive, Range, Seed, Whole, check
from sspo_jax.rewards import RewardConfig
from sspo_jax.sharding import MeshConfig, RolloutMeshConfig
from sspo_jax.subsentences.rules import MAX_TOKENS

if TYPE_CHECKING:
    import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the policy comes from and how it is computed."""

    path: str | None = None
    """Hugging Face checkpoint: a directory or a name on the Hub. None: random weights of `shape`."""
    shape: FileOnly[QwenConfig | None] = None
    """Shape of a model that starts from random weights; read from the checkpoint where `path` is given."""
    tokenizer: str | None = None
    """Directory or Hub name of the tokenizer; `tiny` is the one shipped with the project. None: that of `path`."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations and matrix products. Weights, optimizer, ratios and reductions are float32."""
    remat: Literal["none", "full", "dots"] = "full"
    """What the backward pass recomputes to save memory: nothing, whole layers, or all but matrix products."""
    attention: Implementation = "auto"
    """xla, cudnn (GPU) or splash (TPU); auto: the fastest there that computes these shapes. With xla the sampler too
    leaves its kernels alone, which read of a long cache what is held."""
    reference: str | None = None
    """Checkpoint of the KL term's reference policy, a directory or a name on the Hub, of the same shape; None:
    the policy that the run starts from. Read where --loss.kl-coefficient is above 0, and by --loss distill,
    whose teacher it is."""
    reference_every: Whole = 0
    """Steps after which the reference policy becomes the present one, again and again; 0: it stays as it is."""
    reference_mix: FileOnly[Annotated[float, Range(above=0, most=1)]] = 1.0
    """Share of the present policy in the reference that it then becomes; the rest is the reference so far. With
    `reference_every` 1, a moving average of the policy."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and leave the weights, kept in `dtype`, as they are; None: train the weights. Any of its
    options switches it on, for instance --model.lora.rank 16."""

    def computed(self, shape: QwenConfig) -> QwenModel:
        """The model of this shape, computed as the options say."""
        return shape.computed(dtype=self.dtype, remat=self.remat, attention=self.attention)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Rollouts and evaluations from a server, in place of this process's own sampler."""

    url: str = "http://localhost:8000"
    """Address of an OpenAI-compatible server that samples from this model: `sspo serve`, or vLLM. Several,
    comma-separated, share the prompts."""
    model: str | None = None
    """Name of the model there; None: what the server lists first."""
    protocol: Literal["sspo", "vllm"] = "sspo"
    """How it is told to load weights: as `sspo serve` (/sspo/reload) or as vLLM (/collective_rpc, reload_weights)."""
    api_key_variable: str = "SSPO_API_KEY"
    """Environment variable with the server's API key, where it asks for one; the key itself is written nowhere."""
    export_directory: str | None = None
    """Where the weights are written for it before each rollout, of this run alone; the server must see it under the
    same path. None: weights/ in the run directory."""
    concurrency: Count = 256
    """Requests in flight; `sspo serve` decodes those together that arrive together."""
    timeout_seconds: FileOnly[Positive] = 600.0
    """Longest wait for the answer to one request, which may wait for others."""
    patience_seconds: Positive = 120.0
    """How long a server that does not answer is waited for before the run saves and ends."""

    def __post_init__(self) -> None:
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"--rollout.server.url is {url!r}; expected one like http://localhost:8000")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"--rollout.server.url is {self.url!r}; expected each server once")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_variable):
            raise ValueError(
                "--rollout.server.api-key-variable is not the name of an environment variable; expected a name such as "
                "SSPO_API_KEY, and the key in the variable of that name"
            )

    @property
    def urls(self) -> tuple[str, ...]:
        """Of each server."""
        return tuple(url.strip() for url in self.url.split(","))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartialConfig:
    """Responses that go on over several steps: a step samples in rounds, and ends before all responses have ended."""

    tokens: Count = 1024
    """Tokens that each response gets at most in a round."""
    groups: Annotated[float | int, Range(0, 1)] = 0.0
    """Share of the groups under way, one at least, that is complete when a step ends sampling. 0: after one round."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled."""

    prompts: Count = 128
    """Problems per step."""
    group_size: Count = 8
    """Responses per problem."""
    max_new_tokens: Count = 3000
    """Longest response, in tokens; longer ones are truncated."""
    max_prompt_tokens: Count = 1024
    """Longest prompt, in tokens."""
    long_prompts: FileOnly[Literal["error", "drop"]] = "error"
    """What to do with problems whose prompt is longer: refuse to start, or leave them out and say how many."""
    temperature: Annotated[float, Range(1e-3, 1e3)] = 1.0
    """Temperature of the softmax; the training program scores responses at the same temperature."""
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """Nucleus: sample from the smallest set of tokens with this mass; 1 is off."""
    top_k: Whole = 0
    """Sample from the k most probable tokens; 0 is off."""
    slots: Count | None = None
    """Responses decoded at the same time; None: all of a step, but at most 64 on a CPU and 256 elsewhere."""
    dynamic_sampling: Whole = 0
    """DAPO's dynamic sampling: draw up to this many more batches of problems to replace groups whose rewards are all
    equal. 0 keeps such groups (they add nothing to the gradient)."""
    lag: Whole = 0
    """Steps by which the sampling is ahead: with d, step k is trained on samples of the weights after step k - 1 - d,
    always exactly (the first steps on those of the start). 0: each step samples from the weights that it trains."""
    partial: PartialConfig | None = None
    """Let unfinished responses go on in the next step, under newer weights; each step trains on the groups that are
    complete. None: every response ends in the step that began it. Any of its options switches it on, for instance
    --rollout.partial.tokens 512."""
    devices: Whole = 0
    """Sample on the last N devices of this process and train on the others, both at once where --rollout.lag is 1 or
    more. 0: on the devices that train, in turn."""
    weights: Literal["computation", "int8"] = "computation"
    """What is sampled from, in the run's evaluations too: the policy, or a copy of it with the matrices of the blocks
    in int8, which reads half the bytes at each step. sampler/logprob_gap_mean says how far it is from the policy, and
    --loss.correction.mode truncate weighs its samples."""
    stop_token_ids: tuple[Whole, ...] = ()
    """End tokens in addition to those of the tokenizer and of the checkpoint's generation config."""
    mesh: RolloutMeshConfig | None = None
    """How the devices hold the weights while they sample. None: between as few devices as they fit, the slots over the
    rest; the table at the start of a run states what was chosen. Any of its options switches it on, for instance
    --rollout.mesh.tensor 2."""
    environment: FileOnly[EnvironmentConfig | None] = None
    """What the policy talks to, turn by turn; None: a response is one turn. `max_new_tokens` is for all turns and the
    texts of the environment."""
    server: ServerConfig | None = None
    """Sample through a server in another process; None: here. Any of its options switches it on, for instance
    --rollout.server.url http://localhost:8000."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether sampling and training can go on side by side."""
        return self.server is not None or self.devices > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """How responses are cut into subsentences."""

    rule: str = "punctuation"
    """punctuation, sentence, newline, fixed(n), entropy, token or response."""
    min_tokens: Count = 5
    """Shorter subsentences are joined with their neighbour."""
    max_tokens: Count | None = MAX_TOKENS
    """Longer subsentences are cut into parts of equal length; None: never. Not read by fixed(n), token and response."""
    math_aware: FileOnly[bool] = True
    """Ignore boundary marks inside brackets or $...$."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """Rewards to advantages."""

    estimator: Estimator = "group"
    """Relative to the mean of the group (GRPO), to that of the others in the group (RLOO), or to that of the batch
    (REINFORCE++; with `_baseline` the group's mean is subtracted first); max_rl: relative to the group's mean, by that
    mean; pass_at_k: the best of a group gets its lead over the second; gdpo: each term of the reward relative to its
    own group, then their weighted sum relative to the batch."""
    scale: Scale | None = None
    """Divide by the standard deviation of the group or of the batch, or not (Dr. GRPO). None: as the estimator was
    published, which is group for GRPO and pass@k, none for RLOO and batch for REINFORCE++."""
    clip_b: Positive | None = None
    """Clear negative advantages of tokens whose entropy signal is this many standard deviations below its mean (Clip_B,
    arXiv:2602.03392, which has 2.5); None: none."""

    def __post_init__(self) -> None:
        if self.estimator.startswith("reinforce") and self.scale not in (None, "batch"):
            raise ValueError(
                f"--advantage.scale is {self.scale} with --advantage.estimator {self.estimator}, which divides by the "
                "standard deviation of the batch: expected batch, or leave it out"
            )
        if self.estimator in ("max_rl", "gdpo") and self.scale is not None:
            divisor = "the mean of the group" if self.estimator == "max_rl" else "both, one after the other"
            raise ValueError(
                f"--advantage.scale is {self.scale} with --advantage.estimator {self.estimator}, which divides by "
                f"{divisor}: leave it out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How a rollout is turned into updates."""

    per_rollout: Count = 4
    """Updates (minibatches of whole groups) per rollout and epoch. With one in all, every ratio is 1 and all methods
    are the same up to aggregation."""
    epochs: Count = 1
    """Times a rollout is gone through."""
    row_tokens: Count | None = None
    """Length of a packed training row, in tokens; None: just the longest prompt and response."""
    micro_rows: Count = 8
    """Rows whose gradient is computed at once; cut smaller to save memory, the result is the same."""
    share_prompts: bool = False
    """A row holds a prompt once for all responses to it that it has, not once for each. The result is the same up to
    rounding; the less a response is longer than its prompt, and the more responses a row has room for, the more it
    saves. Not for models with the gated delta rule."""
    old_logprobs: Literal["training", "sampler"] = "training"
    """Log-probs that ratios are relative to: those of the training program at the start of the update, or those that
    the sampler reported, which saves a pass and gives no entropies."""
    mask_truncated: bool = False
    """Leave responses that were cut off at the length limit out of the updates. They still count in the mean of their
    group."""
    replay_routing: bool = False
    """Updates send a token through the experts that it went through when its old log-prob was computed, so that ratios
    differ from 1 by weights alone. For models with experts."""
    skip_non_finite: Whole = 0
    """Updates one after the other that may be left out because a gradient was NaN or infinite; one more stops the run.
    Neither the parameters nor a checkpoint ever take one in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with global-norm clipping; a subclass in the experiment file may bring another (`transformation`)."""

    learning_rate: Annotated[float, Range(0, 1)] = 1e-6
    """Peak rate."""
    warmup_updates: Whole = 0
    """Updates over which the rate rises linearly: update k of n has k / n of the peak."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the rate falls after the warm-up; none: it stays at its peak."""
    decay_updates: Count | None = None
    """Update, counted from the first one, from which on the rate has fallen to `final_fraction` of its peak and stays
    there. None: the last one of --steps."""
    final_fraction: FileOnly[Annotated[float, Range(0, 1)]] = 0.1
    """Of the peak, where a decay ends."""
    b1: FileOnly[Annotated[float, Range(0, below=1)]] = 0.9
    """Decay of the first moment."""
    b2: Annotated[float, Range(0, below=1)] = 0.999
    """Decay of the second moment."""
    epsilon: FileOnly[Annotated[float, Range(above=0, most=1)]] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.0
    """Decoupled weight decay on matrices (not on norms and biases)."""
    max_grad_norm: Positive = 1.0
    """Gradients longer than this are scaled down to it."""
    first_moment: FileOnly[Literal["float32", "bfloat16"]] = "float32"
    """Type in which AdamW keeps its first moment; bfloat16 saves 2 bytes a parameter."""

    def transformation(self, learning_rate: Callable[[Any], Any]) -> "optax.GradientTransformation | None":
        """The optimizer that follows the clipping of the gradient's norm; None: AdamW with the settings above.

        A subclass returns any of optax's, or its own. Its state has to count the updates, as all do that are given
        the schedule.

        Args:
          learning_rate: from the number of updates done to the rate of the next; warm-up and decay are in it.
        """
        del learning_rate
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Supervised training on demonstrations before reinforcement learning, from random weights or from --model.path.

    Its result is kept and reused.
    """

    updates: Annotated[int, Range(2)] = 600
    """Optimizer updates."""
    rows: FileOnly[Count] = 24
    """Rows of packed demonstrations per update."""
    row_tokens: Annotated[int, Range(2)] = 192
    """Length of a row, in tokens."""
    drop_long: FileOnly[bool] = False
    """Leave out demonstrations that are longer than a row; without it one stops the training."""
    learning_rate: Annotated[float, Range(0, 1)] = 2e-3
    """Peak rate; linear warm-up over 5 % of the updates, then cosine decay to a tenth."""
    weight_decay: FileOnly[NotNegative] = 0.01
    """Decoupled weight decay on matrices."""
    seed: FileOnly[Seed] = 0
    """Seed of the order of the demonstrations, and of the weights where they are random; --seed changes neither."""
    shipped: FileOnly[bool] = False
    """Take the weights that come with the package for exactly these settings, model and data, where there are any;
    else, and without it, train them here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation inside the run."""

    data: FileOnly[tuple[Data, ...]] = ()
    """Held-out sets; each is scored under its own name."""
    sets: str | None = None
    """Other held-out sets, comma-separated: names of files in the data folder ($SSPO_DATA, then data/), .jsonl paths,
    tfds:NAME, hf:NAME, arithmetic:held_out; `math500[:100]` takes the first 100; none: no evaluation. Not set: those
    of the experiment file."""
    every: Whole = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    first: bool = True
    """Evaluate before the first step too."""
    greedy: bool = True
    """Sample one greedy response per problem, beside those of avg@k."""
    problems: Count | None = None
    """Evaluate only the first N problems of each set; None: all."""
    samples: Whole = 8
    """Responses per problem for avg@k, at the temperature of the rollout. 0: greedy only."""
    max_new_tokens: Count | None = None
    """Longest response, in tokens; None: as in the rollout."""
    best: Literal["greedy", "avg", "none"] = "greedy"
    """Keep the policy of the evaluation with the highest mean of this score over the sets, beside the checkpoints that
    are rotated; none: keep nothing."""

    @property
    def chosen(self) -> tuple[Data, ...]:
        """The held-out sets: those named in `sets`, else `data`.

        Raises:
          ValueError, FileNotFoundError: no set of that name.
        """
        return self.data if self.sets is None else parse_sets(self.sets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept to resume from."""

    every: Count = 10
    """Steps between checkpoints; the last step is always saved."""
    keep: Count = 2
    """Checkpoints kept, newest first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a person sees and what is written beside the metrics."""

    quiet: bool = False
    """No progress bars and no sampled texts: one line a step."""
    samples_every: FileOnly[Whole] = 10
    """Steps between printed samples; 0: never."""
    rollouts_every: FileOnly[Whole] = 1
    """Steps between written rollouts; 0: never."""
    tokens_every: Whole = 5
    """Steps between files of per-token data (log-probs of each update, entropies, clauses, bounds, what was clipped),
    which the report shows; 0: never."""
    tokens_responses: FileOnly[Count] = 16
    """Responses in each of these files: half spread over the step, half those of which most was clipped."""
    report_every: FileOnly[Whole] = 10
    """Steps between writings of report.html in the run directory, which is also written at the end; 0: never."""
    trackers: str = "tensorboard"
    """Where metrics go beside metrics.jsonl, comma-separated: tensorboard, wandb, trackio, mlflow, or module:name of
    one's own; none: nowhere."""
    profile_steps: str | None = None
    """Steps to trace with the JAX profiler, first:last, as in 3:5; into profile/ of the run directory, and the report
    says what share of the roofline their stages reached. Not step 1, which compiles. None: no trace."""

    def profiled(self, steps: int) -> range:
        """The steps to trace of a run of so many; none where no trace is wanted.

        Raises:
          ValueError: not two whole numbers in order, or beyond the run.
        """
        if self.profile_steps is None:
            return range(0)
        found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", self.profile_steps)
        first, last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= first <= last <= steps:
            raise ValueError(
                f"--log.profile-steps is {self.profile_steps!r}; expected first:last, both of 1 to {steps}, the steps "
                "of the run, as in 3:5"
            )
        return range(first, last + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. The state of its loop is (parameters, optimizer, step, data cursor), and with a lag the rollouts
    that were sampled ahead."""

    steps: Count
    """Steps: a rollout, its verification and its updates."""
    model: ModelConfig
    data: Data
    """Training problems."""
    prompt: str = "qwen-math"
    """Prompt template: chat, qwen-math, qwen-boxed, r1, stories, none, or a Jinja file."""
    curriculum: CurriculumConfig | None = None
    """Draw problems that are always or never solved less often; None: every problem once an epoch. Any of its options
    switches it on, for instance --curriculum.floor 0.1."""
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    loss: Objective = Sspo()
    """The objective: which ratio, which clipping, which aggregation. --loss NAME puts another in its place, as
    published: grpo, gspo, sspo_calibrated, ... (an unknown name lists all)."""
    update: UpdateConfig = UpdateConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    warm_start: WarmStartConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    seed: Seed = 0
    """Seed of the problem order and the sampling, and of random weights without a warm start, which has its own."""
    run_dir: str | None = None
    """Where everything is written; None: runs/<experiment>-<time>. One with a checkpoint in it is resumed."""

    def objective(self, vocab_size: int) -> Objective:
        """The objective of this run: `loss`, with what the run settles of it.

        Args:
          vocab_size: tokens of the tokenizer.
        """
        return self.loss.with_budget(self.rollout.max_new_tokens, vocab_size)

    @property
    def row_tokens(self) -> int:
        """Length of a training row in tokens: as set, else just the longest prompt and response."""
        return self.update.row_tokens or self.rollout.max_prompt_tokens + self.rollout.max_new_tokens

    @property
    def sizes(self) -> dict[str, int | None]:
        """By option, what makes a run longer and its scores surer: None is all; without sections that are off."""
        return {
            "steps": self.steps,
            "rollout.prompts": self.rollout.prompts,
            "rollout.group_size": self.rollout.group_size,
            **({"warm_start.updates": self.warm_start.updates} if self.warm_start is not None else {}),
            "evaluation.problems": self.evaluation.problems,
            "evaluation.samples": self.evaluation.samples,
        }

    @property
    def settled_optimizer(self) -> OptimizerConfig:
        """`optimizer`, whose decay ends at the last update of `steps` where nothing else is said."""
        optimizer, update = self.optimizer, self.update
        if optimizer.decay == "none" or optimizer.decay_updates is not None:
            return optimizer
        return dataclasses.replace(optimizer, decay_updates=self.steps * update.per_rollout * update.epochs)

    def resolved(self) -> dict[str, Any]:
        """The configuration as JSON holds it; the class of the objective is a field."""
        evaluation = dataclasses.replace(self.evaluation, data=self.evaluation.chosen, sets=None)
        settled = dataclasses.replace(self, evaluation=evaluation, optimizer=self.settled_optimizer)
        resolved = json.loads(json.dumps(dataclasses.asdict(settled)))
        resolved["loss"] = {"objective": type(self.loss).__name__, **resolved["loss"]}
        if type(self.optimizer) is not OptimizerConfig:
            resolved["optimizer"] = {"optimizer": type(self.optimizer).__name__, **resolved["optimizer"]}
        return resolved

    def completed(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A configuration that an earlier version recorded, with options it did not know at their defaults.

        A default of a new option is what was done before there was one; so the two say the same.
        """
        return _completed(recorded, self)

    def check(self) -> None:
        """Refuses what no run can have: values outside their declared ranges, and settings that contradict each other.

        Raises:
          ValueError: the option, what it is and what was expected.
        """
        check(self)
        self.log.profiled(self.steps)
        self.reward.within(self.rollout.max_new_tokens)
        rollout, update = self.rollout, self.update
        if rollout.environment is not None and rollout.partial is not None:
            raise ValueError(
                "rollout.environment is set with --rollout.partial: a conversation is not taken up again in a later "
                "step; expected one of them"
            )
        if rollout.mesh is not None and rollout.server is not None:
            raise ValueError(
                "--rollout.mesh lays out this process's devices for sampling, but --rollout.server.url samples "
                "elsewhere; expected one of them"
            )
        if rollout.weights != "computation" and rollout.server is not None:
            raise ValueError(
                f"--rollout.weights is {rollout.weights}, but --rollout.server.url samples elsewhere, from weights of "
                "its own form; expected one of them"
            )
        if rollout.devices and rollout.server is not None:
            raise ValueError(
                f"--rollout.devices is {rollout.devices}, but --rollout.server.url samples elsewhere; expected one of "
                "them"
            )
        if rollout.environment is not None and rollout.devices:
            raise ValueError(
                f"rollout.environment is set with --rollout.devices {rollout.devices}: conversations are sampled where "
                "the policy is trained; expected one of them"
            )
        if rollout.partial is not None and rollout.dynamic_sampling:
            raise ValueError(
                f"--rollout.dynamic-sampling is {rollout.dynamic_sampling} with --rollout.partial, whose responses may "
                "end steps later, when their group is no more to be replaced; expected one of them"
            )
        if (
            rollout.group_size == 1
            and self.loss.reads_rewards
            and self.advantage.estimator in ("group", "leave_one_out", "gdpo")
        ):
            raise ValueError(
                "--rollout.group-size is 1: an advantage relative to the group is then always 0; expected 2 or more"
            )
        if update.per_rollout > rollout.prompts:
            raise ValueError(
                f"--update.per-rollout is {update.per_rollout}; expected at most --rollout.prompts = "
                f"{rollout.prompts}: a minibatch holds whole groups"
            )
        longest = rollout.max_prompt_tokens + rollout.max_new_tokens
        if update.row_tokens is not None and update.row_tokens < longest:
            raise ValueError(
                f"--update.row-tokens is {update.row_tokens}; expected room for the longest prompt and response, "
                f"{rollout.max_prompt_tokens} + {rollout.max_new_tokens} tokens"
            )
        most = longest * rollout.prompts * rollout.group_size
        if update.row_tokens is not None and update.row_tokens > most:
            raise ValueError(
                f"--update.row-tokens is {update.row_tokens}; expected at most {most}, the prompts and responses of a "
                "whole step at full length"
            )
        if self.segmenter.max_tokens is not None and self.segmenter.max_tokens < self.segmenter.min_tokens:
            raise ValueError(
                f"--segmenter.max-tokens is {self.segmenter.max_tokens}; expected at least --segmenter.min-tokens = "
                f"{self.segmenter.min_tokens}, or None"
            )
        self._check_old_logprobs()
        self._check_reference()
        self._check_decay()
        self._check_evaluation()

    def _check_old_logprobs(self) -> None:
        """Refuses log-probs of the sampler where something reads what only the scoring pass gives."""
        if self.update.old_logprobs == "training":
            return
        for option, is_read, instead in (
            ("--loss.adapt-entropy is on", self.loss.reads_entropies, "--loss.no-adapt-entropy"),
            (f"--advantage.clip-b is {self.advantage.clip_b}", self.advantage.clip_b is not None, "None"),
            (
                f"--loss.entropy-target is {self.loss.entropy_target}",
                self.loss.entropy_target is not None,
                "None",
            ),
            (f"--segmenter.rule is {self.segmenter.rule}", self.segmenter.rule == "entropy", "another rule"),
        ):
            if is_read:
                raise ValueError(
                    f"--update.old-logprobs is sampler, which gives no entropies, but {option}: expected {instead}, or "
                    "--update.old-logprobs training"
                )
        if self.update.replay_routing:
            raise ValueError(
                "--update.replay-routing is on with --update.old-logprobs sampler: the pass that records the experts "
                "is left out; expected --update.no-replay-routing, or --update.old-logprobs training"
            )
        if self.loss.correction.mode != "off":
            raise ValueError(
                f"--loss.correction.mode is {self.loss.correction.mode} with --update.old-logprobs sampler: the two "
                "log-probs that it compares are then the same; expected off, or --update.old-logprobs training"
            )

    def _check_reference(self) -> None:
        """Refuses a reference policy that moves where nothing reads it, or that is no mean of two policies."""
        model = self.model
        if model.reference_every and not self.loss.reads_reference:
            raise ValueError(
                f"--model.reference-every is {model.reference_every}, but --loss.kl-coefficient is 0, so nothing reads "
                "the reference policy: set one of them"
            )
        if self.loss.reads_reference and not self.loss.kl_coefficient and model.reference is None:
            raise ValueError(
                f"the objective {type(self.loss).__name__} learns from a teacher, but --model.reference is not set: "
                "expected its checkpoint, of the same shape"
            )
        if model.reference_mix != 1 and not model.reference_every:
            raise ValueError(
                f"model.reference_mix is {model.reference_mix}, but --model.reference-every is 0, so the reference "
                "never moves: expected 1 or more steps"
            )
        if model.reference_mix != 1 and model.lora is not None:
            raise ValueError(
                f"model.reference_mix is {model.reference_mix} with --model.lora.*: the mean of two pairs of adapters "
                "is not the mean of what they add to the weights; expected 1.0, which takes the present policy"
            )

    def _check_decay(self) -> None:
        """Refuses a decay that ends before it begins, or that does not take place."""
        optimizer, settled = self.optimizer, self.settled_optimizer
        if optimizer.decay == "none" and optimizer.decay_updates is not None:
            raise ValueError(
                f"--optimizer.decay-updates is {optimizer.decay_updates}, but --optimizer.decay is none; expected "
                "linear or cosine"
            )
        if settled.decay_updates is not None and settled.decay_updates <= settled.warmup_updates:
            raise ValueError(
                f"the learning rate has decayed at update {settled.decay_updates} (--optimizer.decay-updates, or the "
                f"last one of --steps); expected more than the {settled.warmup_updates} of --optimizer.warmup-updates"
            )

    def _check_evaluation(self) -> None:
        """Refuses evaluations that sample nothing, or that the best policy cannot be chosen by."""
        evaluation = self.evaluation
        if not evaluation.chosen:
            return
        if not (evaluation.samples or evaluation.greedy):
            raise ValueError(
                "--evaluation.samples is 0 and --evaluation.greedy is off, so nothing would be sampled; expected one "
                "of them, or --evaluation.sets none for no evaluation"
            )
        if evaluation.best == "avg" and not evaluation.samples:
            raise ValueError("--evaluation.best is avg, but --evaluation.samples is 0; expected at least 1, or greedy")
        if evaluation.best == "greedy" and not evaluation.greedy:
            raise ValueError("--evaluation.best is greedy, but --evaluation.greedy is off; expected avg, or none")


def _completed(recorded: dict[str, Any], section: Any) -> dict[str, Any]:
    completed = dict(recorded)
    for field in dataclasses.fields(section):
        own = getattr(section, field.name)
        if field.name not in recorded and field.default is not dataclasses.MISSING:
            default = field.default
            if dataclasses.is_dataclass(default) and not isinstance(default, type):
                default = dataclasses.asdict(default)
            completed[field.name] = default
        elif dataclasses.is_dataclass(own) and isinstance(recorded.get(field.name), dict):
            completed[field.name] = _completed(recorded[field.name], own)
    return json.loads(json.dumps(completed))
