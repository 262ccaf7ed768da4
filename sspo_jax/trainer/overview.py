"""The table that a run prints before it starts."""

import pathlib

import jax

from sspo_jax.config import TrainConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.runs.display import Display
from sspo_jax.trainer.setup import Parts


def show_plan(display: Display, config: TrainConfig, parts: Parts, path: pathlib.Path, experiment: str) -> None:
    """The first thing a run prints."""
    rollout, update = config.rollout, config.update
    samples = rollout.prompts * rollout.group_size
    axes = {axis: size for axis, size in parts.mesh.shape.items() if size > 1}
    device = jax.devices()[0]
    row_tokens = update.row_tokens or rollout.max_prompt_tokens + rollout.max_new_tokens
    origin = str(parts.model_path) if parts.model_path else "random weights"
    if config.warm_start:
        origin += ", then a supervised warm start"
    dropped = f", {parts.dropped} left out for their length" if parts.dropped else ""
    display.table(
        f"{experiment}: {type(config.loss).__name__}, {config.steps} steps",
        [
            ("model", f"{parts.model.num_parameters / 1e6:,.2f} M parameters ({origin}), {parts.model.dtype}"),
            *_adapters(config, parts),
            ("data", f"{parts.data.name}, {len(parts.data):,} problems{dropped}"),
            ("devices", f"{parts.mesh.size} x {device.device_kind} ({device.platform}), mesh {axes or 'of one'}"),
            (
                "step",
                f"{rollout.prompts} problems x {rollout.group_size} samples, at most "
                f"{samples * rollout.max_new_tokens:,} sampled tokens; {update.per_rollout * update.epochs} updates "
                f"in micro-batches of {update.micro_rows} x {row_tokens} tokens",
            ),
            *_sampling(config),
            ("written to", str(path)),
        ],
    )


def _sampling(config: TrainConfig) -> list[tuple[str, str]]:
    server = config.rollout.server
    if server is None:
        return [("programs", "prefill and decode per cache size; training 1, optimizer 2, segmenter 1")]
    return [
        ("programs", "training 1, optimizer 2, segmenter 1"),
        ("sampled by", f"{server.url} ({server.protocol}), at most {server.concurrency} requests at once"),
    ]


def _adapters(config: TrainConfig, parts: Parts) -> list[tuple[str, str]]:
    lora = config.model.lora
    if lora is None:
        return []
    trained = count(Trainable(parts.model, lora).abstract())
    targets = ", ".join(lora.targets)
    return [
        ("trained", f"{trained / 1e6:,.2f} M parameters: LoRA of rank {lora.rank}, alpha {lora.alpha:g} on {targets}")
    ]
