"""`sspo export RUN OUT`: the policy of a run as a Hugging Face checkpoint."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes safetensors, config, generation config and tokenizer, as transformers and vLLM read them."""

    run: tyro.conf.Positional[str]
    """Run directory."""
    out: tyro.conf.Positional[str]
    """Directory to write; must not exist, or be empty."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the written weights."""
    step: int | None = None
    """Checkpoint to export; None: the newest intact one."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo export`."""
    from sspo_jax.cli import parse

    config = parse(ExportConfig, arguments, prog="sspo export")
    step = export(pathlib.Path(config.run), pathlib.Path(config.out), dtype=config.dtype, step=config.step)
    print(f"policy of {config.run} after step {step}, {config.dtype}, written to {config.out}")
    return 0


def export(
    run: pathlib.Path,
    out: pathlib.Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    step: int | None = None,
) -> int:
    """Writes the policy of a run; returns the step it is of.

    Raises:
      FileNotFoundError: no run there, or no intact checkpoint in it.
      ValueError: no checkpoint of that step.
      FileExistsError: `out` is not empty.
    """
    from sspo_jax.data.tokenizer import load_tokenizer
    from sspo_jax.models.weights import save_qwen

    record = read_record(run)
    params, model, found = read_policy(run, step=step)
    settings = record["config"]["model"]
    tokenizer = load_tokenizer(settings["tokenizer"] or settings["path"])
    save_qwen(out, params, model, dtype=dtype, tokenizer=tokenizer)
    return found


def exported_checkpoint(run: pathlib.Path) -> pathlib.Path:
    """The newest policy of a run as a float32 Hugging Face checkpoint inside its directory, written on first use."""
    from sspo_jax.trainer.checkpoint import steps_in

    steps = steps_in(run / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {run}: it was stopped before the first one, start it again")
    path = run / "exported" / f"step_{steps[-1]:06d}"
    if not path.is_dir():
        export(run, path, dtype="float32", step=steps[-1])
    return path


def read_record(run: pathlib.Path) -> dict[str, Any]:
    """config.json of a run."""
    file = run / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no config.json in {run}: want the directory of a run")
    return json.loads(file.read_text(encoding="utf-8"))


def read_policy(run: pathlib.Path, *, step: int | None = None) -> tuple[Any, Any, int]:
    """(parameters, `QwenConfig`, step) of a checkpoint of a run, on the devices of this process."""
    from sspo_jax.models.configs import QwenConfig
    from sspo_jax.sharding import make_mesh
    from sspo_jax.trainer.checkpoint import Checkpoints
    from sspo_jax.trainer.step import abstract_state

    record = read_record(run)
    model = QwenConfig(**_tuples(record["model"]))
    checkpoints = Checkpoints(run / "checkpoints", keep=None)
    try:
        if step is not None and step not in checkpoints.steps:
            raise ValueError(f"no checkpoint of step {step} in {run}, there are {checkpoints.steps}")
        restored = checkpoints.restore(abstract_state(model, make_mesh()), only=step)
    finally:
        checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"no intact checkpoint in {run}")
    return restored.params, model, restored.step


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; a frozen config holds no lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
