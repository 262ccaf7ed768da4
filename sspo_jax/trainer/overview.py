"""The table that a run prints before it starts."""

import pathlib

import jax

from sspo_jax.config import RolloutConfig, ServerConfig, UpdateConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.runs.display import Display
from sspo_jax.sampler.layout import DecodingLayout
from sspo_jax.sharding import axes_of
from sspo_jax.trainer.setup import RunInputs


def show_plan(
    display: Display,
    inputs: RunInputs,
    *,
    title: str,
    rollout: RolloutConfig,
    update: UpdateConfig,
    row_tokens: int,
    lora: LoraConfig | None,
    has_warm_start: bool,
    path: pathlib.Path,
) -> None:
    """The first thing a run prints."""
    samples = rollout.prompts * rollout.group_size
    axes = axes_of(inputs.mesh)
    device = jax.devices()[0]
    origin = str(inputs.model_path) if inputs.model_path else "random weights"
    if has_warm_start:
        origin += ", then a supervised warm start"
    dropped = f", {inputs.dropped} left out for their length" if inputs.dropped else ""
    display.table(
        title,
        [
            (
                "model",
                f"{inputs.model.num_parameters / 1e6:,.2f} M parameters ({origin}), {inputs.model.compute.dtype}",
            ),
            *_adapters(inputs, lora),
            ("data", f"{inputs.data.name}, {len(inputs.data):,} problems{dropped}"),
            ("devices", f"{inputs.mesh.size} x {device.device_kind} ({device.platform}), mesh {axes or 'of one'}"),
            (
                "step",
                f"{rollout.prompts} problems x {rollout.group_size} samples, at most "
                f"{samples * rollout.max_new_tokens:,} sampled tokens; {update.per_rollout * update.epochs} updates "
                f"in micro-batches of {update.micro_rows} x {row_tokens} tokens",
            ),
            *_lag(rollout),
            *_sampling(rollout.server, inputs.decoding, rollout.devices),
            ("written to", str(path)),
        ],
    )
    for hint in (truncation_warning(rollout), precision_hint(device.platform, inputs.model.compute.dtype)):
        if hint:
            display.say(hint)


def truncation_warning(rollout: RolloutConfig) -> str | None:
    """What top-p and top-k mean for training; None where both are off."""
    chosen = [f"--rollout.top-p {rollout.top_p:g}"] if rollout.top_p < 1 else []
    chosen += [f"--rollout.top-k {rollout.top_k}"] if rollout.top_k else []
    if not chosen:
        return None
    return (
        f"warning: with {' and '.join(chosen)} responses are sampled from another policy than the one that is "
        "trained: tokens are left out there, and log-probabilities, ratios and KL are of the whole softmax. Leave "
        "both off (1 and 0) to train on samples of the policy itself"
    )


def precision_hint(platform: str, dtype: str) -> str | None:
    """What bfloat16 costs where there is no unit for it; None elsewhere."""
    if platform != "cpu" or dtype != "bfloat16":
        return None
    return (
        "note: on a CPU bfloat16 rounds more and usually takes longer; --model.dtype float32 is the better choice here"
    )


def _lag(rollout: RolloutConfig) -> list[tuple[str, str]]:
    """How far the sampling is ahead, and whether responses go on over several steps."""
    rows = []
    if rollout.lag:
        rows.append(
            (
                "lag",
                f"step k trains on samples of the weights after step k - {rollout.lag + 1}, sampled "
                + ("beside the updates" if rollout.is_elsewhere else "in turn with the updates"),
            )
        )
    if rollout.partial is not None:
        until = f", until {rollout.partial.groups:.0%} of the groups are complete" if rollout.partial.groups else ""
        rows.append(("partial", f"{rollout.partial.tokens} tokens of each response a round{until}; the rest goes on"))
    return rows


def _sampling(server: ServerConfig | None, decoding: DecodingLayout, devices: int) -> list[tuple[str, str]]:
    if server is None:
        is_shown = decoding.mesh.size > 1 or devices
        apart = f"on the last {devices} devices, " if devices else ""
        where = [("decoding", apart + decoding.describe())] if is_shown else []
        compiled = "about 4 programs of training, and those of a rollout for each size of the cache"
        return [*where, ("to compile", compiled)]
    return [
        ("to compile", "about 4 programs of training"),
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
