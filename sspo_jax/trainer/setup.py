"""Everything a run needs, opened and checked before anything expensive starts."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from sspo_jax.config import EvaluationConfig, ModelConfig, RolloutConfig, SegmenterConfig, TrainConfig, WarmStartConfig
from sspo_jax.data.filters import SubsetSource
from sspo_jax.data.problems import ProblemSource, iterate
from sspo_jax.data.prompts import PromptTemplate, PromptTokenizer, load_template
from sspo_jax.data.sources import require_files
from sspo_jax.data.tokenizer import count_tokens, load_tokenizer, tokenizer_digest
from sspo_jax.distributed.processes import is_main
from sspo_jax.models.attention import choose
from sspo_jax.models.configs import QwenModel, config_from_hf
from sspo_jax.models.end_tokens import end_tokens
from sspo_jax.models.hf.files import weight_files
from sspo_jax.models.hf.hub import fetch_model, model_digest
from sspo_jax.models.qwen import qwen_shardings
from sspo_jax.models.trainable import Trainable
from sspo_jax.runs.roofline import memory_of
from sspo_jax.runs.trackers import find_trackers
from sspo_jax.sampler.layout import DecodingLayout
from sspo_jax.sharding import MeshConfig, batch_shards, check_rows, make_mesh, shards
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.conversations import RememberingPrompts, load_environment
from sspo_jax.trainer.rollout_engine import check_server, run_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What `check` opened."""

    model: QwenModel
    model_path: pathlib.Path | None  # None: random weights
    reference_path: pathlib.Path | None  # None: the reference policy of a KL term is where the run starts
    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    prompts: PromptTokenizer
    data: ProblemSource
    dropped: int  # problems left out because their prompt is too long
    evaluation: tuple[ProblemSource, ...]
    segmenter: Segmenter
    mesh: Mesh  # of training
    decoding: DecodingLayout
    provenance: dict[str, Any]  # digests for config.json


def check(config: TrainConfig) -> RunInputs:
    """Opens data, tokenizer, model files and mesh, and asks the server of rollouts, if there is one.

    Raises:
      ValueError, FileNotFoundError, ServerError: states the value, what was expected and the fix.
    """
    config.check()
    config.reward.check()
    find_trackers(config.log.trackers)
    require_files(config.data, *config.evaluation.chosen)  # before a model is downloaded
    mesh, apart = _meshes(config.mesh, config.rollout.devices)
    model, path = resolve_model(config.model)
    reference_path = _reference(config.model, model, has_reference=config.loss.reads_reference)
    qwen_shardings(model, mesh)  # refuses a mesh that does not divide the model
    Trainable(model, config.model.lora).shardings(mesh)  # ... and adapters of weights that it does not have
    check_rows(mesh, config.update.micro_rows, config.row_tokens)
    tokenizer = load_tokenizer(config.model.tokenizer or config.model.path or "")
    if len(tokenizer) > model.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries, the model's vocabulary {model.vocab_size}: they do not "
            "belong together; set --model.tokenizer"
        )
    model = model.with_tokens(count_tokens(tokenizer))
    _check_attention(model, mesh, config.row_tokens, share_prompts=config.update.share_prompts)
    if config.update.replay_routing and not model.num_experts:
        raise ValueError(
            "--update.replay-routing is on, and this model has no experts to send tokens to: expected "
            "--update.no-replay-routing"
        )
    _check_lengths(model, config.rollout, config.evaluation)
    if config.model.lora is not None and config.model.lora.rank > model.hidden_size:
        raise ValueError(
            f"--model.lora.rank is {config.model.lora.rank}; expected at most {model.hidden_size}, the model's width"
        )
    template = load_template(config.prompt)
    prompts = _open_prompts(template, tokenizer, config.rollout)
    data = config.data.open(tokenizer)
    data, dropped = _fit_prompts(data, prompts, config.rollout)
    evaluation = _open_held_out(config.evaluation, tokenizer, prompts)
    if config.rollout.prompts > len(data):
        raise ValueError(f"--rollout.prompts is {config.rollout.prompts}, {data.name} has {len(data)} problems")
    segmenter = _segmenter(config.segmenter, tokenizer)
    stop_token_ids = end_tokens(tokenizer, model.eos_token_ids, own=config.rollout.stop_token_ids)
    _check_stop_tokens(config.rollout.stop_token_ids, model)
    if config.warm_start is not None:
        _check_rows(config.warm_start, model, mesh)
    longest_response = max(config.rollout.max_new_tokens, config.evaluation.max_new_tokens or 0)
    decoding = run_layout(
        config.rollout,
        model,
        mesh,
        apart=apart,
        lora=config.model.lora,
        has_reference=config.loss.reads_reference,
        longest_response=longest_response,
        memory=memory_of(apart or mesh),
    )
    if is_main():
        check_server(config.rollout, model, stop_token_ids, longest_response=longest_response)
    return RunInputs(
        model=model,
        model_path=path,
        reference_path=reference_path,
        tokenizer=tokenizer,
        stop_token_ids=stop_token_ids,
        prompts=prompts,
        data=data,
        dropped=dropped,
        evaluation=evaluation,
        segmenter=segmenter,
        mesh=mesh,
        decoding=decoding,
        provenance={
            "data": {data.name: data.digest},
            "evaluation": {source.name: source.digest for source in evaluation},
            "prompt": {template.name: template.digest},
            "tokenizer": tokenizer_digest(tokenizer),
            **({"model": {str(config.model.path): model_digest(path)}} if path else {}),  # a second for each GB
            **({"reference": {str(config.model.reference): model_digest(reference_path)}} if reference_path else {}),
        },
    )


def _meshes(config: MeshConfig, devices: int) -> tuple[Mesh, Mesh | None]:
    """The mesh of training, and one of the last `devices` where these sample."""
    if not devices:
        return make_mesh(config), None
    if jax.process_count() > 1:
        raise ValueError(
            f"--rollout.devices is {devices}, but {jax.process_count()} processes train together; expected one, or a "
            "server: --rollout.server.url"
        )
    found = jax.devices()
    if devices >= len(found):
        raise ValueError(
            f"--rollout.devices is {devices}; expected less than the {len(found)} devices that there are: some train"
        )
    return make_mesh(config, found[:-devices]), make_mesh(MeshConfig(), found[-devices:])


def _open_prompts(template: PromptTemplate, tokenizer: Any, rollout: RolloutConfig) -> PromptTokenizer:
    """What makes prompts of problems; with an environment, that can be made, they are remembered for it."""
    if rollout.environment is None:
        return PromptTokenizer(template, tokenizer, max_tokens=rollout.max_prompt_tokens)
    load_environment(rollout.environment)
    return RememberingPrompts(template, tokenizer, max_tokens=rollout.max_prompt_tokens)


def _segmenter(config: SegmenterConfig, tokenizer: Any) -> Segmenter:
    return Segmenter.from_tokenizer(
        tokenizer,
        rule=config.rule,
        min_tokens=config.min_tokens,
        max_tokens=config.max_tokens,
        math_aware=config.math_aware,
    )


def _open_held_out(config: EvaluationConfig, tokenizer: Any, prompts: PromptTokenizer) -> tuple[ProblemSource, ...]:
    """The sets of the evaluations; each has a name of its own, and its prompts are not too long."""
    opened = tuple(source.open(tokenizer) for source in config.chosen)
    names = [source.name for source in opened]
    if len(set(names)) < len(names):
        raise ValueError(f"the held-out sets are {', '.join(names)}; expected each name once")
    for source in opened:
        for index in range(_known_size(source, config.problems)):
            prompts(source[index])
    return opened


def _check_attention(model: QwenModel, mesh: Mesh, row_tokens: int, *, share_prompts: bool) -> None:
    """Refuses attention by name that cannot compute the rows of the updates, and a shared prompt where none can be."""
    if share_prompts and model.delta_layers:
        raise ValueError(
            "--update.share-prompts is on, and this model has layers with the gated delta rule, whose state cannot be "
            "handed from one prompt to several responses: expected --update.no-share-prompts"
        )
    computed, platform, parts = model.compute, mesh.devices.flat[0].platform, shards("time", mesh)
    choose(
        computed.attention,
        platform=platform,
        dtype=computed.dtype,
        head_dim=model.head_dim,
        time=row_tokens,
        time_shards=parts,
    )


def _check_stop_tokens(chosen: Sequence[int], model: QwenModel) -> None:
    """Refuses end tokens that the model does not have."""
    if beyond := [token for token in chosen if token >= model.vocab_size]:
        raise ValueError(
            f"--rollout.stop-token-ids has {', '.join(map(str, beyond))}; expected ids below the model's vocabulary of "
            f"{model.vocab_size}"
        )


def _check_lengths(model: QwenModel, rollout: RolloutConfig, evaluation: EvaluationConfig) -> None:
    """Refuses responses that the model has no room for."""
    prompt, context = rollout.max_prompt_tokens, model.max_positions
    lengths = {"rollout": rollout.max_new_tokens, "evaluation": evaluation.max_new_tokens}
    for section, response in lengths.items():
        if response is not None and prompt + response > context:
            raise ValueError(
                f"prompts of up to {prompt} and responses of up to {response} tokens make {prompt + response}, the "
                f"model's context is {context}: lower --rollout.max-prompt-tokens or --{section}.max-new-tokens"
            )


def _check_rows(warm_start: WarmStartConfig, model: QwenModel, mesh: Mesh) -> None:
    """Refuses rows of the warm start that the model has no room for, or that the mesh does not divide."""
    if warm_start.row_tokens > model.max_positions:
        raise ValueError(
            f"--warm-start.row-tokens is {warm_start.row_tokens}; expected at most {model.max_positions}, the context"
        )
    if warm_start.rows % batch_shards(mesh):
        raise ValueError(
            f"--warm-start.rows is {warm_start.rows}; expected a multiple of the {batch_shards(mesh)} shards of the "
            "batch"
        )
    if warm_start.row_tokens % shards("time", mesh):
        raise ValueError(
            f"--warm-start.row-tokens is {warm_start.row_tokens}; expected a multiple of --mesh.context = "
            f"{shards('time', mesh)}"
        )


def resolve_model(config: ModelConfig) -> tuple[QwenModel, pathlib.Path | None]:
    """(model, directory of the checkpoint or None for random weights); fetches a name of the Hub once.

    Raises:
      ValueError: neither path nor shape.
      FileNotFoundError: no such directory, not on the Hub, or its files are missing.
    """
    if config.path is None:
        if config.shape is None:
            raise ValueError("no model: set --model.path to a checkpoint, or model.shape in the experiment file")
        for field in dataclasses.fields(config.shape):  # those without a default are sizes
            value = getattr(config.shape, field.name)
            if field.default is dataclasses.MISSING and isinstance(value, int) and value < 1:
                raise ValueError(f"model.shape.{field.name} is {value}; expected at least 1")
        beyond = [token for token in config.shape.eos_token_ids if not 0 <= token < config.shape.vocab_size]
        if beyond:
            raise ValueError(
                f"model.shape.eos_token_ids has {', '.join(map(str, beyond))}; expected ids of 0 to "
                f"{config.shape.vocab_size - 1}, the model's vocabulary"
            )
        return config.computed(config.shape), None
    path = fetch_model(config.path)
    shape = config_from_hf(path)
    weight_files(path)  # refuses a directory without any
    return config.computed(shape), path


_OF_NO_CONCERN = {"eos_token_ids", "init_scale", "max_positions"}
"""Fields of a shape that do not enter the forward pass."""


def _reference(config: ModelConfig, model: QwenModel, *, has_reference: bool) -> pathlib.Path | None:
    """The directory of the reference policy, if it is a checkpoint of its own.

    Args:
      has_reference: whether the loss has a KL term.
    """
    name = config.reference
    if name is None:
        return None
    if not has_reference:
        raise ValueError(
            f"--model.reference is {name!r}, but --loss.kl-coefficient is 0, so nothing reads it: set one of them"
        )
    if config.lora is not None:
        raise ValueError(
            "--model.reference with --model.lora.*: with adapters the reference policy is the weights without them; "
            "leave out one of the two"
        )
    found, path = resolve_model(dataclasses.replace(config, path=name))
    ours, theirs = dataclasses.asdict(model.shape), dataclasses.asdict(found.shape)
    for field in sorted(ours.keys() - _OF_NO_CONCERN):  # the program of the policy computes the reference too
        if ours[field] != theirs[field]:
            raise ValueError(
                f"the model of --model.reference {name} has {field} = {theirs[field]}, the policy {ours[field]}; "
                "expected a model of the same shape"
            )
    return path


def _fit_prompts(data: ProblemSource, prompts: PromptTokenizer, rollout: RolloutConfig) -> tuple[ProblemSource, int]:
    """Tokenizes every prompt of a file now, rather than meet one that is too long after a day of training."""
    kept = []
    for index, problem in enumerate(iterate(data) if len(data) <= _MOST_CHECKED else ()):
        try:
            prompts(problem)
        except ValueError:
            if rollout.long_prompts == "error":
                raise
            continue
        kept.append(index)
    if len(data) > _MOST_CHECKED or len(kept) == len(data):
        return data, 0
    if not kept:
        raise ValueError(f"no prompt of {data.name} has at most {rollout.max_prompt_tokens} tokens")
    return SubsetSource(data, kept), len(data) - len(kept)


_MOST_CHECKED = 200_000  # problems whose prompts are tokenized at the start; generated sources are larger


def _known_size(source: ProblemSource, limit: int | None) -> int:
    return len(source) if limit is None else min(limit, len(source))
