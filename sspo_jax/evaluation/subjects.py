"""What an evaluation scores: a policy that it samples from, or responses that were sampled elsewhere."""

import functools
import hashlib
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sspo_jax.data.problems import Problem, ProblemSource, iterate
from sspo_jax.evaluation.judging import Judge
from sspo_jax.evaluation.policy import Response, evaluate_policy, judged, score_rows
from sspo_jax.evaluation.presets import Preset, facts_of
from sspo_jax.evaluation.scoring import SampleRow, SetScores
from sspo_jax.files import json_lines

Step = int | Literal["best"] | None
OnRows = Callable[[list[SampleRow]], None]


class PolicySubject:
    """Samples from a checkpoint; its weights are read when the first response is needed.

    Args:
      model: Hugging Face checkpoint (directory or name on the Hub), or the directory of a run.
      preset: how to sample.
      sources: the sets; their prompts are made here.
      step: of a run, which checkpoint.
      prompt, tokenizer, dtype, seed, problems_at_once, slots: as in `run.EvaluateConfig`.

    Raises:
      ValueError, FileNotFoundError: the model, the tokenizer or a prompt cannot be used.
    """

    def __init__(
        self,
        model: str,
        preset: Preset,
        sources: Mapping[str, ProblemSource],
        *,
        step: Step,
        prompt: str,
        tokenizer: str | None,
        dtype: Literal["float32", "bfloat16"],
        seed: int,
        problems_at_once: int,
        slots: int,
    ):
        from sspo_jax.data.prompts import PromptTokenizer, load_template
        from sspo_jax.data.tokenizer import load_tokenizer, tokenizer_digest
        from sspo_jax.models.configs import config_from_hf
        from sspo_jax.models.hf.hub import model_digest

        self._preset = preset
        self._dtype: Literal["float32", "bfloat16"] = dtype
        self._seed = seed
        self._problems_at_once = problems_at_once
        self._slots = slots
        self._path = _checkpoint_of(model, step)
        shape = config_from_hf(self._path)
        self._tokenizer = load_tokenizer(tokenizer or str(self._path))
        if len(self._tokenizer) > shape.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self._tokenizer)} entries, the model's vocabulary {shape.vocab_size}: "
                "they do not belong together; set --tokenizer"
            )
        template = load_template(prompt)
        room = shape.max_positions - preset.max_new_tokens
        if room < 1:
            raise ValueError(
                f"responses of up to {preset.max_new_tokens} tokens leave no room for a prompt in the model's context "
                f"of {shape.max_positions}: lower --max-new-tokens"
            )
        self._prompts = PromptTokenizer(template, self._tokenizer, max_tokens=room)
        for source in sources.values():  # now, and not after hours of sampling
            for problem in iterate(source):
                self._prompts(problem)
        self.protocol = {
            "model": f"{model}, {self._path.name}" if is_run(model) else model,
            "model_digest": model_digest(self._path),
            "dtype": dtype,
            "prompt": template.name,
            "prompt_digest": template.digest,
            "tokenizer_digest": tokenizer_digest(self._tokenizer),
            "samples": {name: _group_size(preset, name) for name in sources},
            "problems_at_once": problems_at_once,
        }

    def score(
        self, name: str, source: ProblemSource, judge: Judge, done: Sequence[SampleRow], on_rows: OnRows
    ) -> tuple[SetScores, list[SampleRow]]:
        """Samples, judges and scores a set; see `evaluate_policy`."""
        return evaluate_policy(
            lambda *args, **kwargs: self._sample(*args, **kwargs),
            source,
            name=name,
            prompts=self._prompts,
            tokenizer=self._tokenizer,
            judge=judge,
            sampling=None,
            group_size=_group_size(self._preset, name),
            seed=self._seed,
            problems_at_once=self._problems_at_once,
            done=done,
            on_rows=on_rows,
        )

    @functools.cached_property
    def _sample(self) -> Callable[..., Any]:
        from sspo_jax.data.tokenizer import count_tokens
        from sspo_jax.models.configs import config_from_hf
        from sspo_jax.models.end_tokens import end_tokens
        from sspo_jax.models.hf.load import load_qwen
        from sspo_jax.runs.roofline import memory_of
        from sspo_jax.sampler import Sampler, SamplingParams
        from sspo_jax.sampler.layout import Demand, decoding_layout
        from sspo_jax.sharding import make_mesh

        shape, devices = config_from_hf(self._path).computed(dtype=self._dtype), make_mesh()
        new_tokens = min(self._preset.max_new_tokens, shape.max_positions - 1)
        demand = Demand(
            samples=_MANY,
            slots=self._slots,
            prompt_tokens=max(1, min(_LONG_PROMPT, shape.max_positions - new_tokens)),
            new_tokens=new_tokens,
        )
        mesh = decoding_layout(None, shape, devices, demand, memory=memory_of(devices)).mesh  # nothing is trained here
        params, model = load_qwen(self._path, mesh=mesh, dtype=self._dtype, param_dtype=self._dtype)
        model = model.with_tokens(count_tokens(self._tokenizer))
        sampling = SamplingParams(
            max_new_tokens=self._preset.max_new_tokens,
            temperature=self._preset.temperature,
            top_p=self._preset.top_p,
            stop_token_ids=end_tokens(self._tokenizer, model.eos_token_ids),
        )
        sampler = Sampler(model, sampling, slots=self._slots, mesh=mesh)
        params = sampler.ready(params, release=True)

        def sample(prompts: list[list[int]], *, group_size: int, sampling: Any, seed: int) -> Any:
            del sampling
            return sampler.generate(params, prompts, group_size=group_size, seed=seed)

        return sample


_MANY, _LONG_PROMPT = 1 << 20, 1024  # what the layout of the devices leaves room for: full slots, long prompts


class GivenResponses:
    """Responses that were sampled elsewhere, read from a file.

    Args:
      path: JSON lines of id, response and, where needed, set, sample, tokens, truncated.
      sources: the sets that they answer.
      prompt: what the report says about the prompt.
      seed: of the bootstrap.

    Raises:
      ValueError, FileNotFoundError: no file, or a line in it cannot be used.
    """

    def __init__(self, path: str, sources: Mapping[str, ProblemSource], *, prompt: str | None, seed: int):
        file = pathlib.Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected JSON lines of id and response")
        raw = file.read_bytes()
        problems = {name: {problem.id: problem for problem in iterate(source)} for name, source in sources.items()}
        self._responses = _read_responses(path, raw, problems)
        self._seed = seed
        self.protocol = {
            "model": f"responses of {file.name}",
            "model_digest": hashlib.sha256(raw).hexdigest(),
            "prompt": prompt or "not stated",
            "prompt_digest": "",
        }

    def score(
        self, name: str, source: ProblemSource, judge: Judge, done: Sequence[SampleRow], on_rows: OnRows
    ) -> tuple[SetScores, list[SampleRow]]:
        """Judges and scores a set; judging again is quick, so nothing that is done is kept."""
        del done
        rows = judged(name, self._responses[name], judge)
        on_rows(rows)
        return score_rows(name, source.digest, list(iterate(source)), rows, judge, seed=self._seed), rows


def _read_responses(path: str, raw: bytes, problems: dict[str, dict[str, Problem]]) -> dict[str, list[Response]]:
    found: dict[str, list[Response]] = {name: [] for name in problems}
    counts: dict[tuple[str, str], int] = {}
    for where, row in json_lines(io.BytesIO(raw), path):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "response")):
            raise ValueError(f"{where}: expected an object with `id` and `response`, both strings")
        for field, kind in (("set", str), ("sample", int), ("tokens", int), ("truncated", bool)):
            if field in row and type(row[field]) is not kind:
                raise ValueError(f"{where}: `{field}` is {row[field]!r:.80}; expected {kind.__name__}")
        names = [row["set"]] if "set" in row else [name for name, ids in problems.items() if row["id"] in ids]
        if len(names) != 1 or names[0] not in problems or row["id"] not in problems[names[0]]:
            raise ValueError(
                f"{where}: {row['id']!r} is in {len(names)} of the sets {', '.join(problems)}: add `set`, or --data"
            )
        name, ident = names[0], row["id"]
        sample = row.get("sample", counts.get((name, ident), 0))
        counts[name, ident] = counts.get((name, ident), 0) + 1
        found[name].append(
            Response(
                problem=problems[name][ident],
                sample=sample,
                text=row["response"],
                tokens=row.get("tokens", -1),
                truncated=row.get("truncated", False),
            )
        )
    return found


def _group_size(preset: Preset, name: str) -> int:
    return preset.samples or facts_of(name).samples


def is_run(model: str) -> bool:
    """Whether this is the directory of a run, and not a checkpoint."""
    directory = pathlib.Path(model)
    return (directory / "checkpoints").is_dir() and not list(directory.glob("*.safetensors"))


def _checkpoint_of(model: str, step: Step) -> pathlib.Path:
    """The directory of a checkpoint, of that of a run (written on first use), or of a name on the Hub."""
    if is_run(model):
        from sspo_jax.runs.policy import exported_checkpoint

        return exported_checkpoint(pathlib.Path(model), step)
    if step is not None:
        raise ValueError(f"--step chooses a checkpoint of a run, and {model} is not a run: leave it out")
    if pathlib.Path(model).is_dir():
        return pathlib.Path(model)
    from sspo_jax.models.hf.hub import fetch_model

    return fetch_model(model)
