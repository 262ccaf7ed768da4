"""The training loop: Algorithm 1 of the paper as `Trainer.step`.

For each step: take problems, sample a group of responses for each, verify them, turn rewards into advantages, cut the
responses into subsentences, compute old log-probs and entropies with the training program, and make several SSPO
updates on minibatches of groups. The state is (parameters, optimizer, step, data cursor), and with a lag what was
sampled ahead (`schedule.py`): noise is a function of (seed, step, prompt, sample, position). What is kept of a run is
`runs.manager`'s part.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from sspo_jax.advantages import clip_b, estimate
from sspo_jax.config import TrainConfig
from sspo_jax.distributed.interrupt import Interrupted, StopRequest
from sspo_jax.distributed.processes import any_process, is_main, together
from sspo_jax.distributed.watch import Watch
from sspo_jax.files import DiskFullError, is_disk_full
from sspo_jax.host_memory import release_freed_memory
from sspo_jax.losses import adapted_coefficient
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.qwen import Params
from sspo_jax.optimizer import abstract_state
from sspo_jax.report.page import RunReport
from sspo_jax.rewards import RewardError
from sspo_jax.runs.base_weights import frozen_weights
from sspo_jax.runs.checkpoint import Checkpoint
from sspo_jax.runs.compilation import CompileAhead, CompileLog
from sspo_jax.runs.directory import RunDirectory
from sspo_jax.runs.display import Display
from sspo_jax.runs.health import remarks
from sspo_jax.runs.manager import RunManager
from sspo_jax.runs.metrics_file import combine, each_update, host_values
from sspo_jax.runs.profile import Profiler
from sspo_jax.runs.roofline import Counts
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.runs.summary import Summary, show_summary
from sspo_jax.runs.threads import ThreadDiedError, ThreadGuard
from sspo_jax.runs.token_log import TokenLog
from sspo_jax.runs.trackers import TrackedRun, open_trackers, tracker_packages
from sspo_jax.sampler import LocalEngine, RolloutEngine
from sspo_jax.serving import ServerError
from sspo_jax.sharding import fetch
from sspo_jax.trainer import stream
from sspo_jax.trainer.batch import assign_rows, entropy_labels, entropy_statistics, pack_rows, split_groups
from sspo_jax.trainer.conversations import talking
from sspo_jax.trainer.evaluator import Evaluator, metrics_of
from sspo_jax.trainer.grading import GradedRollout, Grader
from sspo_jax.trainer.overview import show_plan
from sspo_jax.trainer.profiling import open_profiler, step_counts
from sspo_jax.trainer.rollout_engine import open_engine, rollout_sampling
from sspo_jax.trainer.schedule import Schedule, ages
from sspo_jax.trainer.setup import RunInputs, check
from sspo_jax.trainer.step import TrainPrograms, moved, wait_for_earlier
from sspo_jax.trainer.token_record import TokenRecord, piece_texts
from sspo_jax.trainer.warm_start import starting_weights, warm_start
from sspo_jax.types import FinishReason, TrainBatch


def train(config: TrainConfig, *, experiment: str = "run", shortened: Sequence[str] = ()) -> Summary:
    """Runs an experiment to its end, or until it is asked to stop; resumes the run of an existing `run_dir`.

    `shortened` says in which options it is smaller than the experiment of that name, for the summary.

    A run that was asked to stop (Ctrl-C, SIGTERM) is saved; its Summary has `is_complete` false and the steps done.

    Raises:
      ValueError, FileNotFoundError, OSError: before anything expensive starts; see `setup.check` and `RunDirectory`.
      ServerError: the server of rollouts is gone or of no use; the last finished step is saved.
      RewardError: a user's reward function failed; the last finished step is saved.
      DiskFullError, OSError: a file of the run could not be written; the last finished step is saved, if it can be.
      ThreadDiedError: a thread that works beside the run ended with an error; the last finished step is saved.
      NonFiniteError: a gradient was not finite; what was saved before that step is kept.
    """
    started, compiles = time.monotonic(), CompileLog()
    display = Display(quiet=config.log.quiet, silent=not is_main())
    inputs = together(lambda: check(config))
    directory = RunDirectory(
        config.run_dir,
        config.resolved(),
        experiment=experiment,
        model=inputs.model,
        provenance=inputs.provenance,
        completed=config.completed,
    )
    try:
        show_plan(
            display,
            inputs,
            title=f"{experiment}: {type(config.loss).__name__}, {config.steps} steps",
            rollout=config.rollout,
            update=config.update,
            row_tokens=config.row_tokens,
            lora=config.model.lora,
            has_warm_start=config.warm_start is not None,
            path=directory.path,
        )
        advice = f"Start all processes again with the same command and --run-dir {directory.path}: the run goes on."
        rewards = config.reward.within(config.rollout.max_new_tokens)
        grader = Grader(rewards, inputs.tokenizer, stop_token_ids=inputs.stop_token_ids)
        with Watch(advice), grader:
            trainer = Trainer(config, inputs, directory, display, grader)
            bystanders = tracker_packages(config.log.trackers)
            with trainer.stop, ThreadGuard(trainer.stop, bystanders=bystanders) as threads:
                completed = trainer.run()
            trainer.failure = trainer.failure or threads.failure
            if trainer.failure is not None and not _is_shared(trainer.failure):
                raise _with_state(trainer) from trainer.failure  # inside, so that other processes hear of it
            summary = trainer.summary(experiment, time.monotonic() - started, compiles, is_complete=completed)
            summary = dataclasses.replace(summary, shortened=tuple(shortened))
    finally:
        directory.close()
    if trainer.failure is not None:
        raise _with_state(trainer) from trainer.failure
    if completed:
        file = directory.path / "summary.json"
        if is_main() and (trainer.manager.history or not file.exists()):  # a run that was complete keeps its own
            summary.write(file)
            trainer.write_report()
        show_summary(display, summary, directory.path)
    else:
        display.say(_stopped(trainer))
    return summary


def _is_shared(failure: BaseException) -> bool:
    """Whether all processes meet a failure together; of its own disk and its own threads only one process knows."""
    return isinstance(failure, Interrupted | RewardError | ServerError) or jax.process_count() == 1


def _with_state(trainer: "Trainer") -> Exception:
    """What ended the run, with what is kept of it."""
    failure, stopped = trainer.failure, _stopped(trainer)
    if failure is None or is_disk_full(failure):
        reason = "" if isinstance(failure, DiskFullError) else f" ({failure})"
        return DiskFullError(f"no space is left in {trainer.manager.directory.path}{reason}\n{stopped}")
    kind = type(failure) if isinstance(failure, ServerError | RewardError | ThreadDiedError) else OSError
    return kind(f"{failure}\n{stopped}")


def _stopped(trainer: "Trainer") -> str:
    """How far the run came, what is saved, and how it goes on."""
    path, done, saved = trainer.manager.directory.path, trainer.state.step, trainer.manager.saved_step
    if not done:
        return f"stopped before the first step was done; the same --run-dir, {path}, begins again"
    if saved == done:
        return f"stopped after step {done}, saved in {path}; the same --run-dir resumes it"
    again = f"goes on after step {saved}, the last that was" if saved else "begins again"
    return f"stopped after step {done}, which could not be saved; the same --run-dir, {path}, {again}"


_OF_ENTROPIES = ("counterfactual/sspo_", "subsentence/entropy_")
"""Metrics that mean nothing where no pass has scored the rollout."""
_advantages = jax.jit(estimate, static_argnames=("estimator", "scale"))


class NonFiniteError(ArithmeticError):
    """A gradient or an update was NaN or infinite; the parameters are those of the last finished step, on disk."""


class Trainer:
    """One run: its state, its compiled programs and the steps."""

    def __init__(
        self, config: TrainConfig, inputs: RunInputs, directory: RunDirectory, display: Display, grader: Grader
    ):
        self.config, self.inputs, self.display, self.grader = config, inputs, display, grader
        self.stop = StopRequest(display.say)
        self.state = Checkpoint(params={}, optimizer=None, step=0, data={})  # until `start`
        self.manager = RunManager(
            directory,
            display,
            steps=config.steps,
            checkpoint=config.checkpoint,
            best=config.evaluation.best,
            trackers=lambda start: open_trackers(config.log.trackers, self.tracked(start)),
        )
        self.stream = stream.open_stream(
            inputs.data, config.curriculum, batch_size=config.rollout.prompts, seed=config.seed
        )
        self.programs = TrainPrograms(
            config=inputs.model,
            objective=config.objective(len(inputs.tokenizer)),
            optimizer_config=config.settled_optimizer,
            segmenter=inputs.segmenter,
            mesh=inputs.mesh,
            temperature=config.rollout.temperature,
            lora=config.model.lora,
            replay_routing=config.update.replay_routing,
        )
        self.trainable = self.programs.trainable
        self.is_scored = config.update.old_logprobs == "training"
        self.sampling = rollout_sampling(config.rollout, inputs.stop_token_ids)
        self.engine = talking(
            open_engine(config.rollout, inputs.model, inputs.decoding.mesh, directory.path),
            config.rollout.environment,
            inputs.prompts,
            inputs.tokenizer,
        )
        self.schedule = self.open_schedule()
        self.failure: Exception | None = None
        self.is_started = False
        self.is_updating = False  # the parameters are between those of two steps
        self.evaluator = Evaluator(
            config.evaluation,
            inputs,
            self.sampling,
            grader.judge,
            directory,
            steps=config.steps,
            seed=config.seed,
            responses_at_once=config.rollout.prompts * config.rollout.group_size,
        )
        self.ahead: CompileAhead | None = None
        self.gradients: Params | None = None
        self.bonus = (0.0, 0.0)  # weight of an entropy bonus that follows the entropy: of this step, before the next
        self.skipped = 0  # updates in a row that were not finite
        self.report, self.remarked = RunReport(directory.path), set[str]()
        self.profiler = self.open_profiler()
        self.record: TokenRecord | None = None  # of a step whose tokens are logged
        self.token_log: TokenLog | None = None  # what it came to, until it is written

    def run(self) -> bool:
        """From the newest checkpoint, or the start, to the last step; false if it was asked to stop before that.

        It is interrupted between two steps, or in one as long as the state is that of the step before.
        """
        manager, total = self.manager, self.config.steps
        manager.open()
        try:
            self.start()
            self.ahead = self.compile_ahead()
            with jax.set_mesh(self.inputs.mesh), self.display.bars("steps", total, completed=self.state.step):
                if self.state.unrecorded is not None:
                    self.finish_step(self.state.unrecorded)
                for step in range(self.state.step + 1, total + 1):
                    if any_process(bool(self.stop)):  # what is not saved must not be left
                        raise Interrupted
                    with manager.stage_seconds("training"), self.profiler(step):
                        metrics = self.step(step)
                    self.finish_step(metrics)
                    if manager.is_save_due(step):
                        manager.save(self.state)
            manager.wait()
        except (Interrupted, RewardError, OSError) as reason:
            if isinstance(reason, OSError) and not self.is_started:
                raise  # there is nothing to save, and what is there could not be read
            self.failure = None if isinstance(reason, Interrupted) else reason
            self.schedule.abandon()
            self.grader.abandon()
            if _is_shared(reason) and not self.is_updating:  # saving takes all processes
                with jax.set_mesh(self.inputs.mesh):
                    self.failure = manager.save_last(self.state) or self.failure
        finally:
            self.schedule.abandon()
            self.profiler.close()
            manager.close()
            if self.ahead is not None:
                self.ahead.stop()
        return self.failure is None and self.state.step == self.config.steps and self.state.unrecorded is None

    def step(self, step: int) -> dict[str, float]:
        """One step of the algorithm; changes the state and returns the metrics."""
        watch = Stopwatch()
        # Metrics are of everything sampled, also of what dynamic sampling dropped.
        self.sampled_groups, groups = self.schedule.take(step, watch)
        sampled, advantages = self.sampled_groups, self.advantages(groups)
        with watch("score"):
            minibatches, gaps = self.score(groups, advantages)
        if is_main() and self.config.log.rollouts_every and step % self.config.log.rollouts_every == 0:
            sampled.write(self.manager.directory.rollouts(step))  # before the parameters change: a disk may refuse
        every = self.config.log.tokens_every
        self.record = TokenRecord(self.config.log.tokens_responses) if every and step % every == 0 else None
        self.is_updating = True
        with watch("update"):
            learning = self.update(minibatches)
        self.move_reference(step)
        self.schedule.finish(watch)
        if self.record is not None and minibatches:
            with watch("token_log"):
                self.token_log = self.log_tokens(step, self.record, minibatches, groups, advantages)
        self.state.step, self.state.data, self.is_updating = step, self.stream.state(), False
        self.state.ahead = self.schedule.state()
        if self.state.entropy_coefficient is not None:
            self.state.entropy_coefficient = self.bonus[1]
        backward = learning.get("update/backward_fraction", 1.0)
        self.profiler.add(step, lambda: self.counts(groups, minibatches, backward), watch.seconds)
        tokens = float(sampled.rollout.lengths.sum())
        times = {f"time/{name}_seconds": seconds for name, seconds in watch.seconds.items()}
        # Verification that went on while others were still sampled; the wait for the rest is time/verify_seconds.
        checked = sum(verdict.seconds for verdict in sampled.verdicts) / jax.process_count()
        return {
            **sampled.metrics(),
            **ages(groups.rollout, step),
            **gaps,
            **learning,
            **times,
            "time/verify_hidden_seconds": max(0.0, checked - watch.seconds["verify"]),
            "throughput/rollout_tokens_per_second": tokens / watch.seconds["rollout"],
            **stream.metrics(self.stream),
            "rollout/tokens": tokens,
        }

    def advantages(self, groups: GradedRollout) -> Float[np.ndarray, " batch"]:
        """One per response; 0 where the checker gave no verdict."""
        settings = self.config.advantage
        if not len(groups):  # dynamic sampling found nothing to learn from
            return np.zeros(0, np.float32)
        rewards = jnp.asarray(groups.rewards, jnp.float32)
        ids, valid = jnp.asarray(groups.rollout.group_ids), jnp.asarray(groups.is_judged)
        terms, weights = groups.columns() if settings.estimator == "gdpo" else (None, None)
        return np.asarray(
            _advantages(
                rewards,
                ids,
                estimator=settings.estimator,
                scale=settings.scale,
                lengths=jnp.asarray(groups.rollout.lengths, jnp.int32),
                valid=valid,
                terms=terms,
                weights=weights,
            )
        )

    def open_profiler(self) -> Profiler:
        """Traces the steps that are to be profiled, on process 0."""
        config, inputs = self.config, self.inputs
        return open_profiler(
            self.manager.directory.path,
            config.log.profiled(config.steps) if is_main() else range(0),
            inputs.model,
            inputs.mesh,
            inputs.decoding.mesh,
            epochs=config.update.epochs,
            has_reference=config.loss.reads_reference,
            lora=config.model.lora,
            say=self.display.say,
        )

    def counts(self, groups: GradedRollout, minibatches: list[list[TrainBatch]], backward: float) -> Counts:
        """What a step consisted of, for its roofline."""
        trained = groups.rollout.take(np.flatnonzero(self.is_trained(groups)))
        sampled, engine = self.sampled_groups.rollout, self.engine
        slots = engine.sampler(self.sampling).num_slots(len(sampled)) if isinstance(engine, LocalEngine) else None
        return step_counts(
            sampled,
            trained,
            minibatches,
            epochs=self.config.update.epochs,
            slots=slots,
            share_prompts=self.config.update.share_prompts,
            backward=backward,
        )

    def parts(self, groups: GradedRollout) -> list[np.ndarray]:
        """The responses of each minibatch, of whole groups but for those that are not trained on."""
        trained = np.flatnonzero(self.is_trained(groups))
        parts = split_groups(groups.rollout.group_ids[trained], self.config.update.per_rollout)
        return [trained[part] for part in parts]

    def is_trained(self, groups: GradedRollout) -> Bool[np.ndarray, " batch"]:
        """Which responses enter the updates: those with a reward, and with `mask_truncated` those that ended."""
        if not self.config.update.mask_truncated:
            return groups.is_judged
        return groups.is_judged & (groups.rollout.finish_reasons != FinishReason.LENGTH)

    def score(
        self, groups: GradedRollout, advantages: Float[np.ndarray, " batch"]
    ) -> tuple[list[list[TrainBatch]], dict[str, float]]:
        """Old log-probs, entropies, subsentences: micro-batches of each update; fill and sampler/logprob_gap_*."""
        if self.ahead is not None:
            self.ahead.wait()
            self.ahead = None
        if not self.schedule.is_sampling:
            self.engine.release()  # gradients and activations take over the memory of its weights
        programs, update = self.programs, self.config.update
        how = {"row_tokens": self.config.row_tokens, "share_prompts": update.share_prompts}
        placed = [assign_rows(groups.rollout, part, advantages=advantages, **how) for part in self.parts(groups)]
        minibatches = [
            pack_rows(groups.rollout, advantages, members, micro_rows=update.micro_rows, **how) for members in placed
        ]
        rows = [micro_batch for minibatch in minibatches for micro_batch in minibatch]
        scored, poll = [], self.stop.polls()
        self.gradients = programs.zero_gradients() if self.gradients is None else self.gradients
        for done, batch in enumerate(rows):
            self.display.phase("score", total=len(rows), done=done)
            poll()
            batch = programs.place(batch)
            if self.reference is not None:
                self.gradients, reference, _ = programs.micro_batch(
                    self.reference, self.gradients, batch, False, self.base
                )
                batch = dataclasses.replace(batch, ref_logprobs=reference.logprobs)
            if not self.is_scored:
                scored.append(dataclasses.replace(batch, old_logprobs=batch.sampler_logprobs))
                continue
            self.gradients, scores, _ = programs.micro_batch(self.state.params, self.gradients, batch, False, self.base)
            found = {"entropies": scores.entropies, "experts": scores.experts}
            scored.append(dataclasses.replace(batch, old_logprobs=scores.logprobs, **found))
            wait_for_earlier(scored)
        return self.segment(rows, scored, [len(minibatch) for minibatch in minibatches])

    def segment(
        self, rows: list[TrainBatch], scored: list[TrainBatch], sizes: list[int]
    ) -> tuple[list[list[TrainBatch]], dict[str, float]]:
        """Cuts scored rows into subsentences and gives each update what is counted over all of it.

        Args:
          rows: micro-batches as packed, on the host.
          scored: the same on the devices, with old log-probs and entropies.
          sizes: micro-batches of each update.
        """
        programs, masks = self.programs, [batch.mask for batch in rows]
        logprobs, entropies = fetch(([batch.old_logprobs for batch in scored], [batch.entropies for batch in scored]))
        scored, cleared = self.clip_by_entropy(rows, scored, logprobs, entropies)
        # The rule "entropy" cuts at a quantile over the whole rollout, so all of it is scored before any is cut.
        threshold = programs.scalar(self.inputs.segmenter.threshold(entropies, masks) or 0.0)
        ids = [programs.segment(batch, threshold) for batch in scored]
        unit = programs.objective.entropy_unit
        labels = [entropy_labels(unit, batch.segment_ids, own) for batch, own in zip(rows, fetch(ids), strict=True)]
        mean, std = entropy_statistics(list(zip(entropies, labels, strict=True)), masks)
        shared = {"mean_entropy": programs.scalar(mean if self.is_scored else 1.0), "entropy_std": programs.scalar(std)}
        if self.state.entropy_coefficient is not None:
            shared["entropy_coefficient"] = programs.scalar(self.entropy_bonus(mean, has_any=bool(rows)))
        remaining = iter([dataclasses.replace(b, subsentence_ids=own) for b, own in zip(scored, ids, strict=True)])
        updates = []
        for size in sizes:
            batches = [next(remaining) for _ in range(size)]
            denominator = programs.denominator(batches)
            updates.append([dataclasses.replace(batch, denominator=denominator, **shared) for batch in batches])
        gaps = [
            np.abs(batch.sampler_logprobs - values)[batch.mask] for batch, values in zip(rows, logprobs, strict=True)
        ]
        gap = np.concatenate(gaps or [np.zeros(1, np.float32)])
        held = [np.count_nonzero(batch.segment_ids) for batch in rows]
        return updates, {
            "update/fill": sum(held) / max(sum(batch.segment_ids.size for batch in rows), 1),
            **(
                {
                    "policy/entropy": mean,
                    "sampler/logprob_gap_mean": float(gap.mean(dtype=np.float64)),
                    "sampler/logprob_gap_max": float(gap.max()),
                }
                if self.is_scored
                else {}
            ),
            **({"loss/entropy_coefficient": self.bonus[0]} if self.state.entropy_coefficient is not None else {}),
            **cleared,
        }

    def entropy_bonus(self, entropy: float, *, has_any: bool) -> float:
        """The weight of the entropy bonus in this step, where it follows the entropy; keeps that of the next beside it.

        Args:
          entropy: of the rollout, nats a token.
          has_any: whether there is any token.
        """
        loss, before = self.config.loss, self.state.entropy_coefficient
        assert before is not None
        assert loss.entropy_target is not None
        self.bonus = (0.0, before)
        if has_any:
            steps = {"step": loss.entropy_step, "most": loss.entropy_most}
            self.bonus = adapted_coefficient(before, entropy, target=loss.entropy_target, **steps)
        return self.bonus[0]

    def clip_by_entropy(
        self,
        rows: list[TrainBatch],
        scored: list[TrainBatch],
        logprobs: list[np.ndarray],
        entropies: list[np.ndarray],
    ) -> tuple[list[TrainBatch], dict[str, float]]:
        """Clip_B over the whole rollout, where it is on: scored rows with some advantages cleared, and their share."""
        width = self.config.advantage.clip_b
        if width is None or not rows:
            return scored, {}
        arrays = ([batch.advantages for batch in rows], logprobs, entropies, [batch.mask for batch in rows])
        before, *others = (np.stack(array) for array in arrays)
        after = clip_b(before, *(x.astype(np.float64) if x.dtype != bool else x for x in others), width=width)
        count = max(np.count_nonzero(others[-1]), 1)
        return [
            dataclasses.replace(batch, advantages=self.programs.rows(own))
            for batch, own in zip(scored, after, strict=True)
        ], {"advantage/clip_b_fraction": np.count_nonzero(before != after) / count}

    def update(self, minibatches: list[list[TrainBatch]]) -> dict[str, float]:
        """Several updates of the policy on one rollout."""
        parts, applied, queued = [], [], []  # of each update; of each micro-batch
        total = len(minibatches) * self.config.update.epochs
        for number in range(total):
            self.display.phase("update", total=total, done=number)
            parts.append([])
            batches = minibatches[number % len(minibatches)] = self.with_cutoff(minibatches[number % len(minibatches)])
            for batch in batches:
                self.gradients, scores, metrics = self.programs.micro_batch(
                    self.state.params, self.gradients, batch, True, self.base
                )
                parts[-1].append(metrics)
                queued.append(metrics)
                wait_for_earlier(queued)
                if self.record is not None:
                    self.record.add(number, scores.logprobs)
            self.state.params, self.state.optimizer, self.gradients, figures = self.programs.apply_update(
                self.state.params, self.state.optimizer, self.gradients
            )
            applied.append(figures)
        self.gradients = None  # made again for the next scoring: no memory for them while responses are sampled
        parts, applied = jax.device_get((parts, applied))
        self.check_finite([bool(figures["is_applied"]) for figures in applied])
        metrics = host_values(combine(itertools.chain(*parts)))
        if not self.is_scored:
            metrics = {name: value for name, value in metrics.items() if not name.startswith(_OF_ENTROPIES)}
        norms = [figures["grad_norm"] for figures in applied if figures["is_applied"]]
        none = float("nan") if applied else 0.0  # where all were left out no norm is known
        return {
            **metrics,
            **each_update(parts, [float(figures["grad_norm"]) for figures in applied]),
            "optim/grad_norm": float(np.mean(norms)) if norms else none,
            "optim/grad_norm_max": float(np.max(norms)) if norms else none,
            "optim/learning_rate": float(applied[-1]["learning_rate"]) if applied else 0.0,
            "optim/skipped_updates": float(len(applied) - len(norms)),
        }

    def move_reference(self, step: int) -> None:
        """Brings the reference policy up to the policy after this step, or part of the way, where that is due."""
        every, share = self.config.model.reference_every, self.config.model.reference_mix
        if not every or step % every:
            return
        before, self.reference, self.state.reference = self.reference, None, None
        assert before is not None
        self.reference = self.state.reference = moved(before, self.state.params, share)

    def with_cutoff(self, batches: list[TrainBatch]) -> list[TrainBatch]:
        """The micro-batches of an update with what takes their log-probs together, for an objective that reads it."""
        if not self.programs.objective.reads_cutoff:
            return batches
        found = []
        for batch in batches:
            self.gradients, scores, _ = self.programs.micro_batch(
                self.state.params, self.gradients, batch, False, self.base
            )
            found.append(scores.logprobs)
            wait_for_earlier(found)
        cutoff = self.programs.cutoff(found, batches)
        return [dataclasses.replace(batch, cutoff=cutoff) for batch in batches]

    def log_tokens(
        self,
        step: int,
        record: TokenRecord,
        minibatches: list[list[TrainBatch]],
        groups: GradedRollout,
        advantages: Float[np.ndarray, " batch"],
    ) -> TokenLog:
        """What the updates of a step did, token by token."""
        return record.log(
            step=step,
            objective=type(self.config.loss).__name__,
            per_token=self.programs.per_token,
            minibatches=minibatches,
            parts=self.parts(groups),
            share_prompts=self.config.update.share_prompts,
            groups=groups,
            advantages=advantages,
            pieces=piece_texts(self.inputs.segmenter.host.pieces, self.inputs.tokenizer),
        )

    def check_finite(self, is_applied: list[bool]) -> None:
        """Counts the updates of a step that were left out because a number was not finite.

        Raises:
          NonFiniteError: one was and the run is to stop, or too many were in a row.
        """
        settings, step = self.config.update, self.state.step + 1
        for number, applied in enumerate(is_applied, 1):
            self.skipped = 0 if applied else self.skipped + 1
            limit = settings.skip_non_finite
            if self.skipped > limit:
                raise NonFiniteError(
                    f"step {step}: the gradient of update {number} of {len(is_applied)} is not finite"
                    + (f", as were the {limit} before it" if limit else "")
                    + ". It was left out, and nothing after it is kept. Lower --optimizer.learning-rate, or skip such "
                    "updates with --update.skip-non-finite 10"
                )
            if not applied:
                self.display.say(f"step {step}: update {number} left out, its gradient is not finite")

    def finish_step(self, metrics: dict[str, float]) -> None:
        """Evaluates where that is due, then writes the step's metrics; the evaluation may be interrupted."""
        step = self.state.step
        release_freed_memory()  # what a step frees lies between what stays, and would add up over the steps
        self.state.unrecorded = metrics
        if self.token_log is not None and is_main():
            self.manager.directory.write_tokens(self.token_log)
        self.record = self.token_log = None
        if self.evaluator.is_due(step):
            metrics = metrics | self.evaluate(step)
        self.manager.record(step, metrics)
        self.state.unrecorded = None
        self.say_remarks()
        every = self.config.log.report_every
        if every and step % every == 0 and step < self.config.steps:
            self.write_report()
        every = self.config.log.samples_every
        if step and every and step % every == 0 and len(self.sampled_groups):
            rows = np.linspace(0, len(self.sampled_groups) - 1, 2).astype(int)
            self.display.samples(step, [self.sampled_groups.row(int(row)) for row in rows])

    def tracked(self, start: int) -> TrackedRun:
        """What trackers are told of this run, which goes on with step `start`."""
        return TrackedRun(path=self.manager.directory.path, config=self.config.resolved(), start=start)

    def say_remarks(self) -> None:
        """Where the run is at odds with itself, each remark once."""
        rows = [{"step": step, **metrics} for step, metrics in enumerate(self.manager.history[-10:], 1)]
        weights = {name: term.weight for name, term in self.config.reward.named_terms().items()}
        updates = self.config.update.per_rollout * self.config.update.epochs
        for remark in remarks(rows, updates_per_rollout=updates, weights=weights) if rows else ():
            if remark.key not in self.remarked:
                self.remarked.add(remark.key)
                self.display.say(f"warning after step {self.state.step}: {remark.text}")

    def write_report(self) -> None:
        """report.html; a failure is a warning."""
        if is_main() and self.config.log.report_every:
            self.report.refresh()

    def evaluate(self, step: int) -> dict[str, float]:
        """Scores of the present policy, as metrics."""
        with self.manager.stage_seconds("evaluation"):
            poll = self.stop.polls()
            scores = self.evaluator(self.synced_engine(poll), step, self.display, poll=poll)
            self.manager.offer(self.state.params, step, scores)
        return metrics_of(scores)

    def synced_engine(self, poll: Callable[[], None]) -> RolloutEngine:
        """The engine with the weights of the present policy, handed over once after they have changed.

        Args:
          poll: called while they are handed over; what it raises ends that.
        """
        if self.engine.version != self.state.step:
            policy = self.trainable.policy(self.state.params, self.base)
            self.engine.sync(policy, self.state.step, poll=poll)
        return self.engine

    def start(self) -> None:
        """The state to go on from: the newest intact checkpoint, or a new one."""
        self.engine.release()
        self.failure, self.is_started, self.is_updating = None, False, False
        self.schedule = self.open_schedule()
        lora, model, mesh = self.config.model.lora, self.inputs.model, self.inputs.mesh
        like = abstract_state(model, mesh, self.programs.optimizer, lora)
        moves = self.config.model.reference_every > 0
        restored = self.manager.restore(like | {"reference": like["params"]} if moves else like)
        self.base = self.gradients = None
        if lora is not None:
            path = self.inputs.model_path
            if path is None or self.config.warm_start is not None:  # weights that are nowhere else for certain
                path = self.manager.directory.path / "base"
            self.base = frozen_weights(
                path, model, mesh, lora, tokenizer=self.inputs.tokenizer, first=self.first_params
            )
        if restored is not None:
            self.state = restored
            self.stream.restore(restored.data)
            self.schedule.restore(restored.ahead)
        else:
            with self.manager.stage_seconds("start"):
                weights = self.first_params() if self.base is None else self.base
                key = jax.random.fold_in(jax.random.key(self.config.seed), 1)  # other noise than that of the weights
                params = self.trainable.start(weights, key, mesh)
            with jax.set_mesh(mesh):
                optimizer = self.programs.init_optimizer(params)
            self.state = Checkpoint(params=params, optimizer=optimizer, step=0, data=self.stream.state())
            self.state.unrecorded = {} if self.evaluator.is_due(0) else None
            if self.config.loss.entropy_target is not None:
                self.state.entropy_coefficient = float(self.config.loss.entropy_coefficient)
        # The reference policy is a checkpoint or where the run started, read again and not saved unless it moves.
        self.reference = self.state.reference
        if self.reference is None and self.inputs.reference_path is not None:
            self.reference, _ = load_qwen(self.inputs.reference_path, mesh=mesh, param_dtype="float32")
        elif self.reference is None and self.config.loss.reads_reference:
            self.reference = self.trainable.reference(self.state.params) or self.first_params()
        if moves:
            self.state.reference = self.reference
        self.manager.begin(self.state, is_resumed=restored is not None)
        self.is_started = True

    def compile_ahead(self) -> CompileAhead | None:
        """Begins to compile the programs of the updates, beside the first rollout and what comes before it.

        Not where several processes train: each would have to find what it compiles in a cache that only one writes.
        """
        if jax.process_count() > 1 or self.state.step == self.config.steps:
            return None
        update = self.config.update
        sizes: Any = {"micro_rows": update.micro_rows, "row_tokens": self.config.row_tokens}
        sizes["share_prompts"] = update.share_prompts

        def traced() -> Iterator[Any]:
            for program in self.programs.programs_for(**sizes).values():
                with jax.set_mesh(self.inputs.mesh):
                    yield program.traced
            yield from self.programs.helpers_for(**sizes)

        return CompileAhead(traced)

    def open_schedule(self) -> Schedule:
        """What samples ahead of the steps, with nothing sampled yet."""
        return Schedule(
            self.config.rollout,
            seed=self.config.seed,
            sampling=self.sampling,
            prompts=self.inputs.prompts,
            stream=self.stream,
            grader=self.grader,
            engine=self.synced_engine,
            polls=self.stop.polls,
            display=self.display,
            each_term=self.config.advantage.estimator == "gdpo",
        )

    def first_params(self) -> Params:
        """Of the warm start, of a checkpoint, or random."""
        if self.config.warm_start is not None:
            return warm_start(self.config.warm_start, self.inputs, self.display, poll=self.stop.polls())
        return starting_weights(self.inputs, self.config.seed)

    def summary(self, experiment: str, seconds: float, compiles: CompileLog, *, is_complete: bool) -> Summary:
        """What the run came to, so far."""
        last = self.state.step
        return self.manager.summary(
            experiment,
            last,
            is_complete=is_complete,
            seconds=seconds,
            compiles=compiles,
            updates_per_step=self.config.update.per_rollout * self.config.update.epochs,
            scores=(self.evaluator.read(0), self.evaluator.read(last)),
            examples=self.evaluator.examples(0, last),
        )
