"""`sspo export RUN OUT`: the policy of a run as a Hugging Face checkpoint."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from sspo_jax.ranges import Whole
from sspo_jax.runs.next_commands import next_commands


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes safetensors, config, generation config and tokenizer, as transformers and vLLM read them."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIRECTORY")]
    """Directory to write; must not exist, or be empty."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the written weights."""
    step: Whole | Literal["best"] | None = None
    """Checkpoint to export: a step, `best` (of the evaluations inside the run), or not set: the newest intact one."""
    adapters: bool = False
    """Write the adapters of a LoRA run alone, as PEFT does, float32; else they are merged into the weights."""
    base: str | None = None
    """Where the checkpoint is now that a LoRA run started from, if it was moved."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo export`."""
    from sspo_jax.commands.options import parse
    from sspo_jax.runs.policy import export, export_adapters

    config = parse(ExportConfig, arguments, prog="sspo export")
    run, out = pathlib.Path(config.run), pathlib.Path(config.out)
    if config.adapters:
        step, what = export_adapters(run, out, step=config.step, base=config.base), "adapters"
    else:
        step, what = export(run, out, dtype=config.dtype, step=config.step, base=config.base), config.dtype
    print(f"policy of {config.run} after step {step}, {what}, written to {config.out}")
    if not config.adapters:
        print(next_commands(f"evaluate --model {config.out}", f"serve --model {config.out}"))
    return 0
