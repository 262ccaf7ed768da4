"""The table that a run prints before it starts."""

import pathlib

import jax

from sspo_jax.config import ServerConfig, TrainConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.runs.display import Display
from sspo_jax.trainer.setup import RunInputs


def show_plan(display: Display, inputs: RunInputs, config: TrainConfig, *, experiment: str, path: pathlib.Path) -> None:
    """The first thing a run prints."""
    rollout, update = config.rollout, config.update
    samples = rollout.prompts * rollout.group_size
    axes = {axis: size for axis, size in inputs.mesh.shape.items() if size > 1}
    device = jax.devices()[0]
    origin = str(inputs.model_path) if inputs.model_path else "random weights"
    if config.warm_start:
        origin += ", then a supervised warm start"
    dropped = f", {inputs.dropped} left out for their length" if inputs.dropped else ""
    display.table(
        f"{experiment}: {type(config.loss).__name__}, {config.steps} steps",
        [
            (
                "model",
                f"{inputs.model.num_parameters / 1e6:,.2f} M parameters ({origin}), {inputs.model.compute.dtype}",
            ),
            *_adapters(inputs, config.model.lora),
            ("data", f"{inputs.data.name}, {len(inputs.data):,} problems{dropped}"),
            ("devices", f"{inputs.mesh.size} x {device.device_kind} ({device.platform}), mesh {axes or 'of one'}"),
            (
                "step",
                f"{rollout.prompts} problems x {rollout.group_size} samples, at most "
                f"{samples * rollout.max_new_tokens:,} sampled tokens; {update.per_rollout * update.epochs} updates "
                f"in micro-batches of {update.micro_rows} x {config.row_tokens} tokens",
            ),
            *_sampling(rollout.server),
            ("written to", str(path)),
        ],
    )


def _sampling(server: ServerConfig | None) -> list[tuple[str, str]]:
    if server is None:
        return [("programs", "prefill and decode per cache size; training 1, optimizer 2, segmenter 1")]
    return [
        ("programs", "training 1, optimizer 2, segmenter 1"),
        ("sampled by", f"{server.url} ({server.protocol}), at most {server.concurrency} requests at once"),
    ]


def _adapters(inputs: RunInputs, lora: LoraConfig | None) -> list[tuple[str, str]]:
    if lora is None:
        return []
    trained = count(Trainable(inputs.model, lora).abstract())
    targets = ", ".join(lora.targets)
    return [
        ("trained", f"{trained / 1e6:,.2f} M parameters: LoRA of rank {lora.rank}, alpha {lora.alpha:g} on {targets}")
    ]
