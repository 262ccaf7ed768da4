"""The compiled programs of training: score a micro-batch or add its gradient, segment it, apply the update.

Scoring and updating are one executable (`TrainPrograms.micro_batch`), which differ only in whether the backward pass
is run. The old log-probs of a rollout and the log-probs of its first update therefore come from the same machine
code: with unchanged parameters every ratio is exactly 1, which two separately compiled programs do not guarantee.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, Shaped

from sspo_jax.config import OptimizerConfig
from sspo_jax.logprobs import logprobs_and_entropies
from sspo_jax.losses import Objective, diagnostics, per_token, removed
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.experts import expert_loads
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import Params, hidden_states
from sspo_jax.models.trainable import Trainable
from sspo_jax.optimizer import abstract_state, learning_rate_schedule, make_optimizer, optimizer_shardings, updates_done
from sspo_jax.sampler.programs import TracedProgram
from sspo_jax.sharding import after, constrain, named_sharding, put, replicated, shards
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.batch import NO_ROLLOUT, pack_rows
from sspo_jax.types import Loads, Mean, TrainBatch


def _shape_of(x: Any, *, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """What `put` gives, without the array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


class SequenceScores(NamedTuple):
    """What the policy says of each token."""

    logprobs: Float[Array, "batch time"]
    entropies: Float[Array, "batch time"]
    """Nats, of the distribution that the token was drawn from."""
    experts: Int[Array, "layers batch time chosen"] | None
    """That the routers rank highest; None without experts."""


def sequence_logprobs(params: Params, config: QwenConfig, batch: TrainBatch, *, temperature: float) -> SequenceScores:
    """Log-probability of each token given what precedes it in its sequence, and the entropy it was drawn with.

    The softmax is over the tokens of the tokenizer, without the rows that pad the embedding, as in the sampler;
    computed where the next token is in the mask.

    Position t of log-probs and entropies speaks of token t: the shift by one happens here and nowhere else. What
    position 0 and masked positions hold means nothing.

    Args:
      temperature: of the softmax, as in sampling.
    """
    hidden, _, experts = hidden_states(
        params,
        config,
        batch.tokens,
        positions=batch.positions,
        segment_ids=batch.segment_ids,
        prefix_ids=batch.prefix_ids,
        experts=batch.experts,
    )

    def following(x: Array) -> Array:
        return by_shards(jnp.pad(x[:, 1:], ((0, 0), (0, 1))))

    tied = "unembedding" not in params
    logprobs, entropies = logprobs_and_entropies(
        by_shards(hidden),
        params["embedding" if tied else "unembedding"].astype(hidden.dtype),
        following(batch.tokens),
        temperature=temperature,
        vocab_size=config.num_tokens,
        mask=after(following(batch.mask), hidden),
        vocab_axis=0 if tied else 1,
        vocab_shards=shards("vocab"),
        token_shards=shards("tokens"),
    )

    def align(x: Array) -> Array:
        x = constrain(from_shards(x, batch.tokens.shape), "batch", None)
        return jnp.pad(x[:, :-1], ((0, 0), (1, 0)))

    return SequenceScores(align(logprobs), align(entropies), experts)


def by_shards(x: Shaped[Array, "batch time ..."]) -> Shaped[Array, "tokens ..."]:
    """Rows and time in one axis, in an order in which each device keeps the tokens that it has.

    >>> by_shards(jnp.arange(6).reshape(2, 3)).tolist()  # without a mesh: row by row
    [0, 1, 2, 3, 4, 5]
    """
    rows, parts = shards("batch"), shards("time")
    if parts == 1:
        return x.reshape(-1, *x.shape[2:])
    batch, time = x.shape[:2]
    x = x.reshape(rows, batch // rows, parts, time // parts, *x.shape[2:])
    return x.swapaxes(1, 2).reshape(batch * time, *x.shape[4:])


def from_shards(x: Shaped[Array, " tokens"], shape: tuple[int, int]) -> Shaped[Array, "batch time"]:
    """What `by_shards` was made of."""
    rows, parts = shards("batch"), shards("time")
    if parts == 1:
        return x.reshape(shape)
    return x.reshape(rows, parts, shape[0] // rows, shape[1] // parts).swapaxes(1, 2).reshape(shape)


def routing_metrics(
    own: Int[Array, "layers batch time chosen"], batch: TrainBatch, num_experts: int
) -> dict[str, Loads | Mean]:
    """Loads of the experts over the tokens that are not padding, and where they are recorded, how many choices changed.

    Args:
      own: the experts that the routers rank highest now.
    """
    is_token, used, changed = batch.segment_ids > 0, own, {}
    if batch.experts is not None:
        is_recorded = (batch.experts >= 0) & is_token[None, :, :, None]
        used = jnp.where(is_recorded, batch.experts, own)
        differs = ~jnp.any(batch.experts[..., None] == own[..., None, :], axis=-1)
        changed["experts/changed_fraction"] = Mean(
            jnp.sum(differs & is_recorded, dtype=jnp.float32), jnp.sum(is_recorded, dtype=jnp.float32)
        )
    loads = expert_loads(used, is_token, num_experts)
    return {"experts/load": Loads(loads, jnp.sum(is_token, dtype=jnp.float32)), **changed}


def wait_for_earlier(results: Sequence[Any]) -> None:
    """Waits until all but the last results are computed, so that little is queued.

    One call ahead keeps a device busy; more make nothing faster. On a CPU, where the host shares the cores and each
    queued call holds its working memory, none is.
    """
    ahead = 0 if jax.default_backend() == "cpu" else 1
    if len(results) > ahead:
        jax.block_until_ready(results[-1 - ahead])


def moved(reference: Params, params: Params, share: float) -> Params:
    """reference + share * (params - reference), in arrays of its own; those of `reference` are given up.

    >>> moved({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, 0.25)["w"].tolist()
    [0.25, 0.25]
    """
    if share == 1:
        return jax.tree.map(jnp.copy, params)  # the next update overwrites theirs
    return _mixed(reference, params, share)


@functools.partial(jax.jit, donate_argnums=0)
def _mixed(reference: Params, params: Params, share: Array | float) -> Params:
    return jax.tree.map(lambda old, new: old + share * (new - old), reference, params)


@dataclasses.dataclass
class TrainPrograms:
    """The jitted programs of one run and how long they took to compile. Call them under `jax.set_mesh(mesh)`."""

    config: QwenConfig
    objective: Objective
    optimizer_config: OptimizerConfig
    segmenter: Segmenter
    mesh: Mesh
    temperature: float
    lora: LoraConfig | None = None
    replay_routing: bool = False

    def __post_init__(self) -> None:
        self.trainable = Trainable(self.config, self.lora)
        self.learning_rate = learning_rate_schedule(self.optimizer_config)
        self.optimizer = make_optimizer(self.optimizer_config)
        shardings = self.trainable.shardings(self.mesh)
        state_shardings = optimizer_shardings(self.optimizer, self.config, self.mesh, self.lora)
        rows = named_sharding(self.mesh, ("batch", None))  # where rows are cut in time, objectives see them whole
        scalar = replicated(self.mesh)
        self._rows_sharding = rows
        self._experts_sharding = named_sharding(self.mesh, (None, "batch", "time", None))
        self.init_optimizer = jax.jit(self.optimizer.init, out_shardings=state_shardings)
        self.zero_gradients = jax.jit(self._zero_gradients, out_shardings=shardings)
        self.count = jax.jit(self.objective.denominator)
        self.cutoff = jax.jit(self.objective.cutoff, out_shardings=scalar)
        scores: Any = SequenceScores(rows, rows, self._experts_sharding)  # pyright: ignore[reportArgumentType]
        self.micro_batch = jax.jit(self._micro_batch, donate_argnums=(1,), out_shardings=(shardings, scores, scalar))
        self.apply_update = jax.jit(
            self._apply_update, donate_argnums=(0, 1, 2), out_shardings=(shardings, state_shardings, shardings, scalar)
        )
        self.segment = jax.jit(self._segment, out_shardings=rows)
        self.per_token = jax.jit(functools.partial(per_token, self.objective), out_shardings=rows)

    def place(self, rows: TrainBatch, *, put: Callable[..., Any] = put) -> TrainBatch:
        """Puts a packed micro-batch on the mesh; what scoring fills in and what all of an update shares is made up.

        Args:
          put: what puts an array there, called with it and its `sharding`.
        """
        on_mesh = functools.partial(put, sharding=self._rows_sharding)
        if self.objective.aggregation != "prompt-mean":
            rows = dataclasses.replace(rows, group_tokens=None)
        experts = None
        if self.replay_routing:
            shape = (len(self.config.expert_layers), *rows.tokens.shape, self.config.experts_per_token)
            experts = put(np.full(shape, -1, np.int16), sharding=self._experts_sharding)
        one = put(np.float32(1.0), sharding=replicated(self.mesh))
        return dataclasses.replace(
            jax.tree.map(on_mesh, rows),
            ref_logprobs=on_mesh(np.zeros(rows.tokens.shape, np.float32)) if self.objective.reads_reference else None,
            mean_entropy=one,
            entropy_std=one,
            denominator=one,
            entropy_coefficient=one if self.objective.entropy_target is not None else None,
            cutoff=one if self.objective.reads_cutoff else None,
            experts=experts,
        )

    def programs_for(
        self, *, micro_rows: int, row_tokens: int, share_prompts: bool = False
    ) -> dict[str, TracedProgram]:
        """What an update compiles: `update` (which scores too) and `optimizer`, traced for shapes; nothing is computed.

        The devices of the mesh need not exist, so it is called without `jax.set_mesh`.

        Args:
          micro_rows, row_tokens, share_prompts: of a micro-batch.
        """
        batch = self._abstract_batch(micro_rows=micro_rows, row_tokens=row_tokens, share_prompts=share_prompts)
        state = abstract_state(self.config, self.mesh, self.optimizer, self.lora)
        params, base = state["params"], self.trainable.abstract_base(self.mesh)
        calls = {
            "optimizer": (self.apply_update, (params, state["optimizer"], params)),
            "update": (self.micro_batch, (params, params, batch, True, base)),
        }
        found = {}
        for kind, (program, arguments) in calls.items():
            with jax.set_mesh(self.mesh):
                traced = program.trace(*arguments)
            found[kind] = TracedProgram(kind=kind, traced=traced, arguments=arguments, results=traced.out_info)
        return found

    def helpers_for(self, *, micro_rows: int, row_tokens: int, share_prompts: bool = False) -> Iterator[Any]:
        """The small programs of an update, as `jax.stages.Traced`; arguments as for `programs_for`."""
        batch = self._abstract_batch(micro_rows=micro_rows, row_tokens=row_tokens, share_prompts=share_prompts)
        with jax.set_mesh(self.mesh):
            yield self.zero_gradients.trace()
            yield self.segment.trace(batch, batch.denominator)
            yield self.count.trace(batch)

    def _abstract_batch(self, *, micro_rows: int, row_tokens: int, share_prompts: bool) -> TrainBatch:
        """Shapes of a micro-batch as `place` gives it."""
        nothing = np.zeros(0, np.float32)
        [empty] = pack_rows(
            NO_ROLLOUT, nothing, [[]], row_tokens=row_tokens, micro_rows=micro_rows, share_prompts=share_prompts
        )
        return self.place(empty, put=_shape_of)

    def _micro_batch(
        self, params: Params, gradients: Params, batch: TrainBatch, is_update: Array, base: Params | None = None
    ) -> tuple[Params, SequenceScores, dict[str, Any]]:
        """(gradients + this batch's if is_update, scores, metrics); `base`: see `trainable`.

        A micro-batch whose loss depends on no log-prob and no entropy, as where all advantages are 0, has no gradient
        to add, and its backward pass is left out.

        The experts among the scores are those to record: None unless routing is replayed.
        """

        def forward(params: Params) -> tuple[tuple[Array, Array], Array | None]:
            policy = self.trainable.policy(params, base)
            scores = sequence_logprobs(policy, self.config, batch, temperature=self.temperature)
            return scores[:2], scores.experts

        (logprobs, entropies), pullback, experts = jax.vjp(forward, params, has_aux=True)
        loss_and_gradients = jax.value_and_grad(self.objective, argnums=(0, 2), has_aux=True)
        (_, metrics), cotangents = loss_and_gradients(logprobs, batch, entropies)
        metrics = (
            metrics | diagnostics(logprobs, self.objective.prepared(batch)) | removed(self.objective, logprobs, batch)
        )
        if experts is not None:
            metrics |= routing_metrics(experts, batch, self.config.num_experts)
            experts = experts.astype(jnp.int16) if self.replay_routing else None

        def add(gradients: Params) -> Params:
            return jax.tree.map(jnp.add, gradients, pullback(cotangents)[0])

        has_gradient = jnp.any(cotangents[0] != 0) | jnp.any(cotangents[1] != 0)  # also where one is NaN
        metrics["update/backward_fraction"] = Mean(has_gradient.astype(jnp.float32), jnp.float32(1))
        is_update = after(jnp.asarray(is_update) & has_gradient, metrics)
        gradients = jax.lax.cond(is_update, add, lambda gradients: gradients, gradients)
        return gradients, SequenceScores(logprobs, entropies, experts), metrics

    def _apply_update(
        self, params: Params, state: Any, gradients: Params
    ) -> tuple[Params, Any, Params, dict[str, Array]]:
        """(parameters, optimizer state, zeroed gradients, figures of the update).

        A gradient or an update that is not finite changes neither parameters nor optimizer. The figures: gradient norm
        before clipping, learning rate, and whether the update was applied.
        """
        norm, rate = optax.global_norm(gradients), self.learning_rate(updates_done(state))
        updates, updated = self.optimizer.update(gradients, state, params)
        is_finite = jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(updates))
        params = jax.tree.map(lambda old, update: jnp.where(is_finite, old + update, old), params, updates)
        state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, state)
        figures = {"grad_norm": norm, "learning_rate": rate, "is_applied": is_finite}
        return params, state, jax.tree.map(jnp.zeros_like, gradients), figures

    def rows(self, values: np.ndarray) -> Array:
        """An array of [rows, time] on the mesh."""
        return put(values, self._rows_sharding)

    def scalar(self, value: float) -> Array:
        """A float32 that every device holds."""
        return put(np.float32(value), replicated(self.mesh))

    def denominator(self, batches: list[TrainBatch]) -> Array:
        """The objective's count over all micro-batches of an update."""
        return self.scalar(sum(float(self.count(batch)) for batch in batches))

    def _zero_gradients(self) -> Params:
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), self.trainable.abstract())

    def _segment(self, batch: TrainBatch, threshold: Array) -> Array:
        return self.segmenter(
            batch.tokens, batch.mask, batch.segment_ids, entropies=batch.entropies, entropy_threshold=threshold
        )
