"""The optimizer of a run, and the shapes of what a checkpoint holds."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from sspo_jax.config import OptimizerConfig
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import Params
from sspo_jax.models.trainable import Trainable, placed
from sspo_jax.sharding import replicated


def make_optimizer(
    config: OptimizerConfig, learning_rate: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """What follows the clipping by the global norm: AdamW, which decays no norms and biases, or one of the user's.

    Raises:
      TypeError: `OptimizerConfig.transformation` returned something that is no optax transformation.
    """
    if learning_rate is None:
        learning_rate = learning_rate_schedule(config)
    own = config.transformation(learning_rate)
    if own is None:
        own = optax.adamw(
            learning_rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_is_decayed,
            mu_dtype=None if config.first_moment == "float32" else config.first_moment,
        )
    if not isinstance(own, optax.GradientTransformation):
        raise TypeError(
            f"{type(config).__name__}.transformation returned {type(own).__name__}, expected an "
            "optax.GradientTransformation, or None for AdamW"
        )
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), own)


def _is_decayed(params: Params) -> Any:
    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].key
        return not name.endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(decayed, params)


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Updates done to learning rate of the next.

    Update k of n of the warm-up has k / n of the peak. Then it stays there or, after update w of the warm-up (w at
    least 1), decays: update k has the final fraction f and of the rest, 1 - f, the share 1 - x (linear) or
    (1 + cos(pi x)) / 2, where x = (k - w) / (d - w) and d is `decay_updates`; from there on f.

    Raises:
      ValueError: a decay whose last update is not known; see `TrainConfig.settled_optimizer`.
    """
    peak, warmup = config.learning_rate, max(1, config.warmup_updates)
    after = optax.constant_schedule(peak)
    if config.decay != "none":
        if config.decay_updates is None:
            raise ValueError("decay_updates is None; expected the update at which the decay ends")
        falling = max(1, config.decay_updates - warmup)
        if config.decay == "cosine":
            after = optax.cosine_decay_schedule(peak, falling, alpha=config.final_fraction)
        else:
            after = optax.linear_schedule(peak, config.final_fraction * peak, falling)
    if warmup == 1:
        return after
    rising = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rising, after], [warmup - 1])


def updates_done(state: Any) -> Array:
    """The optimizer's own count, which survives a resume.

    Raises:
      ValueError: the state has no `count`.
    """
    counts = [value for _, value in optax.tree_utils.tree_get_all_with_path(state, "count")]
    if not counts:
        raise ValueError(
            "the optimizer's state has no `count` of its updates, which tells the learning rate: give it the schedule, "
            "as in optax.sgd(learning_rate), or chain optax.scale_by_schedule"
        )
    return counts[0]


def optimizer_shardings(
    optimizer: optax.GradientTransformation, config: QwenConfig, mesh: Mesh, lora: LoraConfig | None = None
) -> Any:
    """Shardings of the optimizer's state: moments lie like their parameters, everything else is replicated.

    Explicit even for the step counter: without it, that scalar stays on one device, the second update compiles anew
    and a checkpoint cannot be restored on several processes.
    """
    trainable = Trainable(config, lora)
    state = jax.eval_shape(optimizer.init, trainable.abstract())
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        state,
        trainable.shardings(mesh),
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),  # of an optimizer that is for some parameters only
    )


def abstract_state(
    config: QwenConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation | None = None,
    lora: LoraConfig | None = None,
) -> dict[str, Any]:
    """{"params": ..., "optimizer": ...} of `jax.ShapeDtypeStruct` with shardings: where a checkpoint is restored.

    With `lora` both are of the adapters. The shapes of the optimizer's state do not depend on its settings, so that a
    reader needs none.
    """
    optimizer = make_optimizer(OptimizerConfig()) if optimizer is None else optimizer
    trainable = Trainable(config, lora)
    shapes = trainable.abstract()

    return {
        "params": placed(shapes, trainable.shardings(mesh)),
        "optimizer": placed(jax.eval_shape(optimizer.init, shapes), optimizer_shardings(optimizer, config, mesh, lora)),
    }
