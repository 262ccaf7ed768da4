"""`sspo export RUN OUT`: the policy of a run as a Hugging Face checkpoint."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from sspo_jax.files import read_json

if TYPE_CHECKING:
    from sspo_jax.runs.best import Best

Step = int | Literal["best"] | None


def export(
    run: pathlib.Path,
    out: pathlib.Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    step: Step = None,
    base: str | None = None,
) -> int:
    """Writes the policy of a run, adapters merged; returns the step it is of. Arguments as for `read_policy`.

    Raises:
      FileNotFoundError, ValueError: as `read_policy`.
      FileExistsError: `out` is not empty.
    """
    from sspo_jax.data.tokenizer import load_tokenizer
    from sspo_jax.models.end_tokens import end_tokens
    from sspo_jax.models.hf.save import save_qwen

    record = read_record(run)
    params, model, found = read_policy(run, step=step, base=base)
    settings = record["config"]["model"]
    tokenizer = load_tokenizer(settings["tokenizer"] or settings["path"])
    # What else ended a response in the run ends one wherever the checkpoint is used.
    ends = end_tokens(tokenizer, model.eos_token_ids, own=record["config"]["rollout"]["stop_token_ids"])
    model = dataclasses.replace(model, eos_token_ids=ends)
    save_qwen(out, params, model, dtype=dtype, tokenizer=tokenizer)
    return found


def export_adapters(run: pathlib.Path, out: pathlib.Path, *, step: Step = None, base: str | None = None) -> int:
    """Writes the adapters of a LoRA run as PEFT does; returns the step they are of.

    Raises:
      FileNotFoundError, ValueError: as `read_policy`; or the run trained all weights.
      FileExistsError: `out` is not empty.
    """
    from sspo_jax.models.hf.peft import save_peft
    from sspo_jax.runs.base_weights import base_directory, lora_of

    record = read_record(run)
    lora = lora_of(record)
    if lora is None:
        raise ValueError(f"{run} trained all weights and has no adapters: leave out --adapters")
    adapters, model, found = read_trained(run, step=step)
    recorded = base or record["config"]["model"]["path"]
    save_peft(out, adapters, lora, base=recorded or str(base_directory(run, record).absolute()), config=model)
    return found


def exported_checkpoint(run: pathlib.Path, step: Step = None) -> pathlib.Path:
    """A policy of a run as a float32 Hugging Face checkpoint inside its directory, written on first use.

    Raises:
      FileNotFoundError, ValueError: as `read_policy`.
    """
    from sspo_jax.runs.checkpoint import steps_in

    steps = steps_in(run / "checkpoints")
    if not steps and step != "best":
        raise FileNotFoundError(f"no checkpoint in {run}: it was stopped before the first one, start it again")
    number = best_of(run).step if step == "best" else steps[-1] if step is None else step
    path = run / "exported" / f"step_{number:06d}"
    if not path.is_dir():
        export(run, path, dtype="float32", step="best" if step == "best" else number)
    return path


def best_of(run: pathlib.Path) -> "Best":
    """Which policy of a run was kept as the best.

    Raises:
      FileNotFoundError: none was.
    """
    from sspo_jax.runs.best import read_best

    best = read_best(run / "checkpoints")
    if best is None:
        raise FileNotFoundError(
            f"{run} kept no best policy: it needs held-out sets (evaluation.data) and --evaluation.best greedy or avg"
        )
    return best


def read_record(run: pathlib.Path) -> dict[str, Any]:
    """config.json of a run."""
    file = run / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no config.json in {run}; expected the directory of a run")
    advice = "Restore it from a copy: it says what the checkpoints are of"
    record = read_json(file, advice=advice)
    for name, kinds in _RECORD.items():
        found: Any = record
        for part in name.split("."):
            found = found.get(part, _MISSING) if isinstance(found, dict) else _MISSING
        if not isinstance(found, kinds):
            came = "no" if found is _MISSING else f"{found!r:.80} as"
            raise ValueError(f"{file}: {came} {name}; expected the config.json of a run. {advice}")
    return record


_MISSING = object()
_TEXT = (str, type(None))
_RECORD: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "devices": (str,),
    "model": (dict,),
    "provenance": (dict,),
    "config.steps": (int,),
    "config.prompt": (str,),
    "config.model.path": _TEXT,
    "config.model.tokenizer": _TEXT,
    "config.model.dtype": (str,),
    "config.loss.objective": (str,),
    "config.rollout.max_new_tokens": (int,),
    "config.evaluation.data": (list,),
}
"""What is read of a config.json, by its dotted name."""


def read_policy(run: pathlib.Path, *, step: Step = None, base: str | None = None) -> tuple[Any, Any, int]:
    """(parameters, `QwenModel`, step) of a checkpoint of a run, adapters merged, on the devices of this process.

    Args:
      step: of the checkpoint; `best`: of the best evaluation; None: the newest intact one.
      base: where the checkpoint is now that a LoRA run started from, if it was moved.

    Raises:
      FileNotFoundError: no run there, no intact checkpoint in it, no best one, or the weights under the adapters are
        gone.
      ValueError: no checkpoint of that step, or the weights under the adapters are others, or there are no adapters.
    """
    from sspo_jax.models.hf.load import load_qwen
    from sspo_jax.models.int8 import dense
    from sspo_jax.models.lora import merge_lora
    from sspo_jax.runs.base_weights import base_directory, load_frozen, lora_of
    from sspo_jax.sharding import make_mesh

    record = read_record(run)
    lora = lora_of(record)
    if lora is None and base is not None:
        raise ValueError(f"{run} trained all weights, which are all in its checkpoints: leave out --base")
    trained, model, step = read_trained(run, step=step)
    if lora is None:
        return trained, model, step
    import jax
    import jax.numpy as jnp

    path, mesh = base_directory(run, record, moved_to=base), make_mesh()
    if lora.frozen == "int8":  # the policy is one over the rounded weights
        weights = dense(load_frozen(path, model, mesh, lora), jnp.float32)
        weights = jax.tree.map(lambda x: x.astype(jnp.float32), weights)
    else:
        weights, _ = load_qwen(path, mesh=mesh, param_dtype="float32")
    return jax.jit(merge_lora, static_argnums=2)(weights, trained, lora), model, step


def read_trained(run: pathlib.Path, *, step: Step = None) -> tuple[Any, Any, int]:
    """As `read_policy`, but what was trained: with LoRA the adapters alone."""
    from sspo_jax.models.configs import QwenModel
    from sspo_jax.optimizer import abstract_state
    from sspo_jax.runs.base_weights import lora_of
    from sspo_jax.runs.best import open_best
    from sspo_jax.runs.checkpoint import Checkpoints
    from sspo_jax.sharding import make_mesh

    record = read_record(run)
    model = QwenModel.from_record(record["model"], f"{run / 'config.json'}: model")
    like = {"params": abstract_state(model, make_mesh(), lora=lora_of(record))["params"]}
    if step == "best":
        step = best_of(run).step
        checkpoints = open_best(run / "checkpoints", is_reader=True)
    else:
        checkpoints = Checkpoints(run / "checkpoints", keep=None, is_reader=True)
    try:
        if step is not None and step not in checkpoints.steps:
            raise ValueError(f"no checkpoint of step {step} in {run}, there are {checkpoints.steps}")
        restored = checkpoints.restore(like, only=step)
    finally:
        checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"no intact checkpoint in {run}")
    return restored.params, model, restored.step
