"""The training loop: Algorithm 1 of the paper as `Trainer.step`, and around it what keeps a long run alive.

For each step: take problems, sample a group of responses for each, verify them, turn rewards into advantages, cut the
responses into subsentences, compute old log-probs and entropies with the training program, and make several SSPO
updates on minibatches of groups. The state is (parameters, optimizer, step, data cursor) and nothing else: noise is a
function of (seed, step, prompt, sample, position).
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sspo_jax.advantages import estimate
from sspo_jax.config import TrainConfig
from sspo_jax.distributed.interrupt import Interrupted, StopRequest
from sspo_jax.distributed.processes import any_process, is_main, on_main, together
from sspo_jax.distributed.watch import Watch
from sspo_jax.models.hf.weights import load_qwen
from sspo_jax.models.qwen import Params, init_qwen
from sspo_jax.optimizer import abstract_state
from sspo_jax.runs.base_weights import frozen_weights
from sspo_jax.runs.best import BestPolicy
from sspo_jax.runs.checkpoint import Checkpoint, Checkpoints
from sspo_jax.runs.compilation import CompileLog
from sspo_jax.runs.directory import RunDirectory
from sspo_jax.runs.display import Display
from sspo_jax.runs.metrics_file import MetricsWriter, combine, host_value
from sspo_jax.runs.summary import Summary, peak_memory_bytes, show_summary
from sspo_jax.sampler import RolloutEngine
from sspo_jax.serving import ServerError
from sspo_jax.sharding import fetch
from sspo_jax.trainer import stream as curriculum
from sspo_jax.trainer.batch import entropy_labels, entropy_statistics, pack_rows, split_groups
from sspo_jax.trainer.evaluator import Evaluator, metrics_of
from sspo_jax.trainer.grading import Groups, Judge, Stopwatch
from sspo_jax.trainer.overview import show_plan
from sspo_jax.trainer.rollout_engine import open_engine, rollout_sampling
from sspo_jax.trainer.setup import Parts, check
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.trainer.warm_start import warm_start
from sspo_jax.types import TrainBatch


@dataclasses.dataclass
class TrainState:
    """What a checkpoint holds; the arrays are donated to the next update."""

    params: Params
    optimizer: Any
    step: int
    data: dict[str, Any]
    """The data cursor after this step."""
    unrecorded: dict[str, float] | None = None
    """Metrics of this step that are not written yet, because its evaluation is still to come."""


def train(config: TrainConfig, *, experiment: str = "run") -> Summary:
    """Runs an experiment to its end, or until it is asked to stop; resumes the run of an existing `run_dir`.

    Raises:
      ValueError, FileNotFoundError, OSError: before anything expensive starts; see `setup.check` and `RunDirectory`.
      ServerError: the server of rollouts is gone or of no use; the last finished step is saved.
    """
    started = time.monotonic()
    compiles = CompileLog()
    display = Display(quiet=config.log.quiet, silent=not is_main())
    parts = together(lambda: check(config))
    directory = RunDirectory(config, experiment=experiment, model=parts.model, provenance=parts.provenance)
    try:
        show_plan(display, config, parts, directory.path, experiment)
        advice = f"Start all processes again with the same command and --run-dir {directory.path}: the run goes on."
        with Watch(advice), Judge(config.reward, parts.tokenizer) as judge:
            trainer = Trainer(config, parts, directory, display, judge, experiment=experiment)
            with trainer.stop:
                completed = trainer.run()
                summary = trainer.summary(time.monotonic() - started, compiles)
    finally:
        directory.close()
    if completed:
        if is_main():
            summary.write(directory.path / "summary.json")
        show_summary(display, summary, directory.path)
        return summary
    stopped = (
        f"stopped after step {trainer.state.step}, saved in {directory.path}; the same --run-dir resumes it"
        if trainer.state.step
        else f"stopped before the first step was done; the same --run-dir, {directory.path}, begins again"
    )
    if trainer.server_error is not None:
        raise type(trainer.server_error)(f"{trainer.server_error}\n{stopped}") from trainer.server_error
    display.say(stopped)
    return summary


class Trainer:
    """One run: its state, its compiled programs and the steps."""

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        directory: RunDirectory,
        display: Display,
        judge: Judge,
        *,
        experiment: str,
    ):
        self.experiment = experiment
        self.stop = StopRequest(display.say)
        self.state = TrainState({}, None, 0, {})  # until `start`
        self.saved_step = 0
        self.config = config
        self.parts = parts
        self.directory = directory
        self.display = display
        self.judge = judge
        self.stream = curriculum.open_stream(config, parts.data)
        self.programs = TrainPrograms(
            config=parts.model,
            objective=config.loss.with_budget(config.rollout.max_new_tokens),
            optimizer_config=config.optimizer,
            segmenter=parts.segmenter,
            mesh=parts.mesh,
            temperature=config.rollout.temperature,
            lora=config.model.lora,
        )
        self.trainable = self.programs.trainable
        self.sampling = rollout_sampling(config, parts.stop_token_ids)
        self.engine = open_engine(config, parts.model, parts.mesh, directory.path)
        self.server_error: ServerError | None = None
        self.evaluator = Evaluator(config, parts, self.sampling, judge, directory)
        self.best = BestPolicy(directory.checkpoints, config.evaluation.best)
        self.gradients: Params | None = None
        self.warm_start: dict[str, float] = {}
        self.stage_seconds = Stopwatch()
        self.history: list[dict[str, float]] = []

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def step(self, step: int) -> dict[str, float]:
        """One step of the algorithm; changes the state and returns the metrics."""
        watch = Stopwatch()
        groups = self.sample_groups(step, watch)
        advantages = self.advantages(groups)
        with watch("score"):
            minibatches, gaps = self.score(groups, advantages)
        with watch("update"):
            learning = self.update(minibatches)
        self.state.step, self.state.data = step, self.stream.state()
        sampled = self.sampled_groups  # metrics are of everything sampled, also of what dynamic sampling dropped
        tokens = float(sampled.rollout.response_mask.sum())
        times = {f"time/{name}_seconds": seconds for name, seconds in watch.seconds.items()}
        # Verification that went on while others were still sampled; the wait for the rest is time/verify_seconds.
        checked = sum(verdict.seconds for verdict in sampled.verdicts) / jax.process_count()
        times["time/verify_hidden_seconds"] = max(0.0, checked - watch.seconds["verify"])
        speed = {"throughput/rollout_tokens_per_second": tokens / watch.seconds["rollout"]}
        if is_main() and self.config.log.rollouts_every and step % self.config.log.rollouts_every == 0:
            sampled.write(self.directory.rollouts(step))
        return {
            **sampled.metrics(),
            **gaps,
            **learning,
            **times,
            **speed,
            **curriculum.metrics(self.stream),
            "rollout/tokens": tokens,
        }

    def sample_groups(self, step: int, watch: Stopwatch) -> Groups:
        """Problems, a group of responses for each, and their verdicts and rewards.

        With dynamic sampling (DAPO, arXiv:2503.14476, section 3.2), groups whose rewards are all equal are replaced
        by those of further problems, at most `dynamic_sampling` times.
        """
        rollout = self.config.rollout
        wanted = rollout.prompts * rollout.group_size
        drawn: list[Groups] = []
        kept: list[Groups] = []
        for attempt in range(1 + rollout.dynamic_sampling):
            problems = self.stream.next()
            prompts = [self.parts.prompts(problem) for problem in problems]
            indices = [attempt * rollout.prompts + place for place in range(len(prompts))]  # noise of their own
            judging = self.judge.begin(problems, rollout.group_size)
            self.display.phase("rollout")
            look = self.stop.looks()

            def progress(tokens: int, look: Callable[[], None] = look) -> None:
                self.display.phase("rollout", note=f"{tokens:,} tokens")
                look()

            with watch("rollout"):
                sampled = self.synced_engine(look).generate(
                    prompts,
                    self.sampling,
                    group_size=rollout.group_size,
                    seed=self.config.seed,
                    step=step,
                    prompt_ids=indices,
                    on_finished=judging.finished,
                    progress=progress,
                )
            group_ids = sampled.group_ids + np.int32(attempt * rollout.prompts)  # other problems, other groups
            sampled = dataclasses.replace(sampled, group_ids=group_ids)
            self.display.phase("verify")
            with watch("verify"):  # what the rollout did not hide
                groups = judging.result(sampled)
            curriculum.learn(self.stream, groups)
            drawn.append(groups)
            kept.append(groups.take(groups.informative()) if rollout.dynamic_sampling else groups)
            if sum(map(len, kept)) >= wanted:
                break
        self.sampled_groups = Groups.concatenate(drawn)
        groups = Groups.concatenate(kept)
        return groups.take(np.arange(min(wanted, len(groups))))

    def advantages(self, groups: Groups) -> Float[np.ndarray, " batch"]:
        """One per response; 0 where the checker gave no verdict."""
        settings = self.config.advantage
        if not len(groups):  # dynamic sampling found nothing to learn from
            return np.zeros(0, np.float32)
        rewards = jnp.asarray(groups.rewards, jnp.float32)
        ids, valid = jnp.asarray(groups.rollout.group_ids), jnp.asarray(groups.is_judged)
        return np.asarray(estimate(rewards, ids, estimator=settings.estimator, scale=settings.scale, valid=valid))

    def score(
        self, groups: Groups, advantages: Float[np.ndarray, " batch"]
    ) -> tuple[list[list[TrainBatch]], dict[str, float]]:
        """Old log-probs, entropies and subsentences: micro-batches of each update, and sampler/logprob_gap_*."""
        settings, rollout = self.config.update, self.config.rollout
        row_tokens = settings.row_tokens or rollout.max_prompt_tokens + rollout.max_new_tokens
        judged = np.flatnonzero(groups.is_judged)
        minibatches = [
            pack_rows(groups.rollout, advantages, judged[part], row_tokens).micro_batches(settings.micro_rows)
            for part in split_groups(groups.rollout.group_ids[judged], settings.per_rollout)
        ]
        flat = [rows for minibatch in minibatches for rows in minibatch]
        masks = [rows.mask for rows in flat]
        scored = []
        look = self.stop.looks()
        for done, rows in enumerate(flat):
            self.display.phase("score", total=len(flat), done=done)
            look()
            scored.append(self._score(self.programs.place(rows)))
        logprobs, entropies = fetch(([batch.old_logprobs for batch in scored], [batch.entropies for batch in scored]))
        # The rule "entropy" cuts at a quantile over the whole rollout, so all of it is scored before any is cut.
        threshold = self.programs.scalar(self.parts.segmenter.threshold(entropies, masks) or 0.0)
        ids = [self.programs.segment(batch, threshold) for batch in scored]
        scored = [dataclasses.replace(batch, subsentence_ids=own) for batch, own in zip(scored, ids, strict=True)]
        unit = self.programs.objective.entropy_unit
        labels = [entropy_labels(unit, rows.segment_ids, own) for rows, own in zip(flat, fetch(ids), strict=True)]
        mean, std = entropy_statistics(list(zip(entropies, labels, strict=True)), masks)
        shared = {"mean_entropy": self.programs.scalar(mean), "entropy_std": self.programs.scalar(std)}
        gap = np.concatenate(
            [
                np.abs(rows.sampler_logprobs[rows.mask] - scores[rows.mask])
                for rows, scores in zip(flat, logprobs, strict=True)
            ]
            or [np.zeros(1, np.float32)]
        )
        remaining = iter(scored)
        updates = []
        for minibatch in minibatches:
            batches = [next(remaining) for _ in minibatch]
            denominator = self.programs.denominator(batches)
            updates.append([dataclasses.replace(batch, denominator=denominator, **shared) for batch in batches])
        return updates, {
            "policy/entropy": mean,
            "sampler/logprob_gap_mean": float(gap.mean(dtype=np.float64)),
            "sampler/logprob_gap_max": float(gap.max()),
        }

    def _score(self, batch: TrainBatch) -> TrainBatch:
        """A micro-batch with old (and reference) log-probs and entropies."""
        self.gradients = self.programs.zero_gradients() if self.gradients is None else self.gradients
        if self.reference is not None:
            self.gradients, ref_logprobs, _, _ = self.programs.micro_batch(
                self.reference, self.gradients, batch, False, self.base
            )
            batch = dataclasses.replace(batch, ref_logprobs=ref_logprobs)
        self.gradients, logprobs, entropies, _ = self.programs.micro_batch(
            self.state.params, self.gradients, batch, False, self.base
        )
        return dataclasses.replace(batch, old_logprobs=logprobs, entropies=entropies)

    def update(self, minibatches: list[list[TrainBatch]]) -> dict[str, float]:
        """Several updates of the policy on one rollout."""
        self.engine.release()  # the updates take over the memory of the weights
        parts, applied = [], []
        total = len(minibatches) * self.config.update.epochs
        for number in range(total):
            self.display.phase("update", total=total, done=number)
            for batch in minibatches[number % len(minibatches)]:
                self.gradients, _, _, metrics = self.programs.micro_batch(
                    self.state.params, self.gradients, batch, True, self.base
                )
                parts.append(metrics)
            self.state.params, self.state.optimizer, self.gradients, figures = self.programs.apply_update(
                self.state.params, self.state.optimizer, self.gradients
            )
            applied.append(figures)
        self.gradients = None  # made again for the next scoring: no memory for them while responses are sampled
        parts, applied = jax.device_get((parts, applied))
        metrics = {name: host_value(metric) for name, metric in combine(parts).items()}
        norms = [figures["grad_norm"] for figures in applied]
        return {
            **metrics,
            "optim/grad_norm": float(np.mean(norms)) if norms else 0.0,
            "optim/grad_norm_max": float(np.max(norms)) if norms else 0.0,
            "optim/learning_rate": float(applied[-1]["learning_rate"]) if applied else 0.0,
        }

    # -- around it ----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """All steps that are left; false if it was asked to stop before the last."""
        checkpoints = Checkpoints(self.directory.checkpoints, keep=self.config.checkpoint.keep)
        self.writer = None
        try:
            self.start(checkpoints)
            self.writer = self.open_writer()
            self._steps(checkpoints)
        except (Interrupted, ServerError) as reason:
            self.server_error = reason if isinstance(reason, ServerError) else None
            self.judge.abandon()
            self._save(checkpoints)
        finally:
            if self.writer is not None:
                self.writer.close()
            checkpoints.close()  # waits for what is being written
        return self.state.step == self.config.steps and self.state.unrecorded is None

    def start(self, checkpoints: Checkpoints) -> None:
        """The state to go on from: the newest intact checkpoint, or a new one."""
        self.engine.release()
        lora = self.config.model.lora
        like = abstract_state(self.parts.model, self.parts.mesh, self.programs.optimizer, lora)
        restored = checkpoints.restore(like)
        self.base = None
        if lora is not None:
            path = self.parts.model_path or self.directory.path / "base"
            self.base = frozen_weights(
                path, self.parts.model, self.parts.mesh, tokenizer=self.parts.tokenizer, first=self.first_params
            )
        self.gradients = None
        if restored is not None:
            self.state = TrainState(
                restored.params, restored.optimizer, restored.step, restored.data, restored.unrecorded
            )
            self.stream.restore(restored.data)
            self.display.say(f"resuming after step {restored.step}")
        else:
            with self.stage_seconds("start"):
                weights = self.first_params() if self.base is None else self.base
                key = jax.random.fold_in(jax.random.key(self.config.seed), 1)  # other noise than that of the weights
                params = self.trainable.start(weights, key, self.parts.mesh)
            with jax.set_mesh(self.parts.mesh):
                self.state = TrainState(params, self.programs.init_optimizer(params), 0, self.stream.state())
        # The reference policy is where the run started from; it is frozen, so it is made again and not saved.
        self.reference = None
        if self.config.loss.kl_coefficient:
            self.reference = self.trainable.reference(self.state.params) or self.first_params()
        self.saved_step = self.state.step
        self.directory.forget_after(self.state.step if restored is not None else -1)
        if restored is None and self.evaluator.is_due(0):
            self.state.unrecorded = {}
        elif on_main(lambda: self.directory.is_recorded(self.state.step)):
            self.state.unrecorded = None  # since the checkpoint was written

    @property
    def policy(self) -> Params:
        """Parameters of the present policy, for the engine."""
        return self.trainable.policy(self.state.params, self.base)

    def synced_engine(self, look: Callable[[], None]) -> RolloutEngine:
        """The engine with the weights of the present policy, handed over once after they have changed.

        Args:
          look: called while they are handed over; what it raises ends that.
        """
        if self.engine.version != self.state.step:
            self.engine.sync(self.policy, self.state.step, look=look)
        return self.engine

    def first_params(self) -> Params:
        """Of a checkpoint, of the warm start, or random."""
        if self.parts.model_path is not None:
            params, _ = load_qwen(self.parts.model_path, mesh=self.parts.mesh, param_dtype=jnp.float32)
            return params
        if self.config.warm_start is not None:
            params, self.warm_start = warm_start(self.config, self.parts, self.display, look=self.stop.looks())
            return params
        return init_qwen(self.parts.model, jax.random.key(self.config.seed), mesh=self.parts.mesh)

    def open_writer(self) -> MetricsWriter | None:
        """Of metrics.jsonl and TensorBoard, on the process that writes."""
        if not is_main():
            return None
        tensorboard = self.directory.path / "tensorboard" if self.config.log.tensorboard else None
        return MetricsWriter(self.directory.metrics, tensorboard, start=self.state.step + 1)

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """To the files of the run."""
        if self.writer is not None:
            self.writer.write(step, metrics)

    def _steps(self, checkpoints: Checkpoints) -> None:
        """Raises Interrupted between two steps, or in one as long as the state is that of the step before."""
        total = self.config.steps
        with jax.set_mesh(self.parts.mesh), self.display.bars("steps", total, completed=self.state.step):
            if self.state.unrecorded is not None:
                self.finish_step(self.state.unrecorded)
            for step in range(self.state.step + 1, total + 1):
                if any_process(bool(self.stop)):  # what is not saved must not be left
                    raise Interrupted
                with self.stage_seconds("training"):
                    metrics = self.step(step)
                self.finish_step(metrics)
                if step % self.config.checkpoint.every == 0 or step == total:
                    self._save(checkpoints)

    def finish_step(self, metrics: dict[str, float]) -> None:
        """Evaluates where that is due, then writes the step's metrics; the evaluation may be interrupted."""
        step = self.state.step
        self.state.unrecorded = metrics
        if self.evaluator.is_due(step):
            metrics = metrics | self.evaluate(step)
        self.record(step, metrics)
        self.state.unrecorded = None
        if step:
            self.history.append(metrics)
            self.show(step, metrics)

    def _save(self, checkpoints: Checkpoints) -> None:
        """Starts writing the state, unless it is on disk; that of step 0 is made again instead."""
        state = self.state
        if state.step != self.saved_step:
            with jax.set_mesh(self.parts.mesh):
                checkpoints.save(Checkpoint(**vars(state)))
            self.saved_step = state.step

    def evaluate(self, step: int) -> dict[str, float]:
        """Scores of the present policy, as metrics."""
        with self.stage_seconds("evaluation"):
            look = self.stop.looks()
            scores = self.evaluator(self.synced_engine(look), step, self.display, look=look)
            is_best = self.best.offer(self.state.params, step, scores)
        shown = "  ".join(f"{name} {100 * score['greedy']['value']:.1f} %" for name, score in scores.items())
        self.display.say(f"evaluation after step {step}, greedy: {shown}{'  (best so far)' if is_best else ''}")
        return metrics_of(scores)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """The bar's note, and now and then a few samples."""
        note = (
            f"reward {metrics['reward/mean']:.3f}  clipped {100 * metrics.get('ratio/clip_fraction', 0):.2f} %  "
            f"length {metrics['response/length_mean']:.0f}  "
            f"{metrics['throughput/rollout_tokens_per_second']:,.0f} tokens/s"
        )
        self.display.step_done(step, self.config.steps, note)
        every = self.config.log.samples_every
        if every and step % every == 0:
            rows = np.linspace(0, len(self.sampled_groups) - 1, 2).astype(int) if len(self.sampled_groups) else ()
            self.display.samples(step, [self.sampled_groups.row(int(row)) for row in rows])

    def summary(self, seconds: float, compiles: CompileLog) -> Summary:
        """What the run came to, so far."""
        last = self.state.step

        def median(name: str) -> float:
            return float(np.median([metrics[name] for metrics in self.history])) if self.history else 0.0

        return Summary(
            experiment=self.experiment,
            steps=last,
            before=self.evaluator.read(0) or {},
            after=self.evaluator.read(last) or {},
            best=dataclasses.asdict(self.best.best) if self.best.best else None,
            metrics=self.history[-1] if self.history else {},
            seconds={**{name: round(value, 2) for name, value in self.stage_seconds.seconds.items()}, "all": seconds},
            rates={
                "rollout_tokens_per_second": median("throughput/rollout_tokens_per_second"),
                "rollout_seconds": median("time/rollout_seconds"),
                "verify_seconds": median("time/verify_seconds"),
                "score_seconds": median("time/score_seconds"),
                "update_seconds": median("time/update_seconds") / self.updates_per_step,
            },
            programs=compiles.programs,
            compile_seconds=round(compiles.seconds, 2),
            peak_memory_bytes=peak_memory_bytes(),
            examples=self.evaluator.examples(0, last),
        )

    @property
    def updates_per_step(self) -> int:
        return self.config.update.per_rollout * self.config.update.epochs
