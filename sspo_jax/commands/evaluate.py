"""`sspo evaluate`: scores a checkpoint or a run on problem sets, compares two evaluations, or judges given responses.

sspo evaluate --model DIR --data aime24,amc23,math500,minerva,olympiadbench --preset paper-greedy
sspo evaluate --compare evaluations/a evaluations/b
sspo evaluate --responses answers.jsonl --data math500
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from sspo_jax.data.problems import Problem, ProblemSource, iterate
from sspo_jax.evaluation.policy import Response, evaluate_policy, judge, score_rows
from sspo_jax.evaluation.presets import Preset, facts_of, preset_named
from sspo_jax.evaluation.results import Evaluation, SampleFile, read_results, write_results
from sspo_jax.evaluation.scoring import SampleRow, SetScores
from sspo_jax.files import replace_text

OnRows = Callable[[list[SampleRow]], None]
FIVE_SETS = "aime24,amc23,math500,minerva,olympiadbench"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores of a model on problem sets, as a directory with results.json, samples.jsonl, report.md and report.html."""

    model: str | None = None
    """Hugging Face checkpoint (directory or name on the Hub), or the directory of a run."""
    step: int | Literal["best"] | None = None
    """Of a run: the checkpoint of this step, or `best` of its evaluations in training; not set: the newest."""
    data: str = FIVE_SETS
    """Sets, comma-separated: names of files in the data folder, .jsonl paths, tfds:NAME, hf:NAME, arithmetic:held_out.
    `math500[:100]` takes the first 100; `math500=FILE.jsonl` says which set a source is."""
    data_dir: str | None = None
    """Folder of the sets called by name; none: $SSPO_DATA, then data/."""
    preset: Literal["paper-greedy", "avg@k"] = "paper-greedy"
    """Protocol: one greedy response, or k responses at temperature 0.6, top-p 0.95 (32 for AIME and AMC, else 8)."""
    samples: int | None = None
    """Responses per problem instead of the preset's."""
    max_new_tokens: int | None = None
    """Longest response instead of the preset's 3,000."""
    prompt: str | None = None
    """Prompt template: chat, qwen-math, qwen-boxed, r1, none, or a Jinja file; not set: the run's, else qwen-math."""
    out: str | None = None
    """Where the results go; none: evaluations/<model>-<preset>. Finished samples in it are kept and continued."""
    seed: int = 0
    """Of sampling and bootstrap."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the computation."""
    tokenizer: str | None = None
    """Tokenizer, where it is not in the checkpoint; `tiny` is the shipped one."""
    problems_at_once: int = 64
    """Problems sampled together and then written; part of what decides the samples."""
    slots: int = 64
    """Responses decoded at the same time; more is faster until memory runs out, and changes no response."""
    workers: int | None = None
    """Processes of the checker; none: one per core."""
    timeout_seconds: float = 5.0
    """Limit of one check."""
    responses: str | None = None
    """Judge the responses of this file instead of sampling: JSON lines of id, response, and (where needed) set, sample,
    tokens, truncated."""
    compare: tuple[str, str] | None = None
    """Compare two evaluations (their directories) instead of making one."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo evaluate`."""
    from sspo_jax.commands.options import parse

    return evaluate_command(parse(EvaluateConfig, arguments, prog="sspo evaluate"))


def evaluate_command(config: EvaluateConfig) -> int:
    """Runs an evaluation or a comparison and prints its table; returns the exit code.

    Raises:
      ValueError, FileNotFoundError: before anything is sampled; what came, what is wanted, what to do.
    """
    if config.compare is not None:
        return _compare(*config.compare)
    evaluation, directory = evaluate(config)
    from sspo_jax.evaluation.report import summary_table

    print(summary_table(evaluation))
    print(f"\nreport: {directory / 'report.html'}")
    return 0


def evaluate(config: EvaluateConfig) -> tuple[Evaluation, pathlib.Path]:
    """Evaluates and writes the directory; returns the evaluation and the directory."""
    from rich.console import Console
    from rich.progress import Progress

    from sspo_jax.evaluation.report import write_report

    started = time.monotonic()
    sources = _open_sets(config)
    if config.responses is not None:
        if config.model is not None:
            raise ValueError("--model and --responses are both given, want one: sample, or judge what was sampled")
        subject: Any = _GivenResponses(config, sources)
        preset = None
    else:
        preset = _preset(config)
        subject = _Policy(config, preset, sources)  # reads the checkpoint's config and tokenizer, not yet its weights
    protocol = {
        **subject.protocol,
        **_protocol_of(preset),
        "seed": config.seed,
        "checker": _checker_version(),
        "timeout_seconds": config.timeout_seconds,
        "data": {name: source.digest for name, source in sources.items()},
    }
    directory = pathlib.Path(config.out or _default_out(config, protocol["preset"]))
    samples = SampleFile(directory, protocol)
    scores: list[SetScores] = []
    rows: list[SampleRow] = []
    with _verifier(config) as verifier, Progress(console=Console(stderr=True)) as bars:
        for name, source in sources.items():
            bar = bars.add_task(facts_of(name).title, total=len(source))

            def written(block: list[SampleRow], bar: Any = bar) -> None:
                samples.append(block)
                bars.advance(bar, len({row.id for row in block}))

            set_scores, set_rows = subject.score(name, source, verifier, samples.rows_of(name), written)
            bars.update(bar, completed=len(source), description=f"{facts_of(name).title} {set_scores.accuracy}")
            scores.append(set_scores)
            rows += set_rows
    samples.rewrite(rows)
    evaluation = Evaluation(
        protocol=protocol,
        about={
            **_versions(),
            "seconds": round(time.monotonic() - started, 1),
            "tokens": sum(max(row.tokens, 0) for row in rows),
        },
        sets=tuple(scores),
    )
    write_results(directory, evaluation)
    write_report(directory, evaluation, rows, {name: list(iterate(source)) for name, source in sources.items()})
    return evaluation, directory


class _Policy:
    """Samples from a checkpoint; its weights are read when the first response is needed."""

    def __init__(self, config: EvaluateConfig, preset: Preset, sources: dict[str, ProblemSource]):
        if config.model is None:
            raise ValueError("nothing to evaluate: give --model (a checkpoint or a run) or --responses (a file)")
        from sspo_jax.data.prompts import PromptTokenizer, load_template
        from sspo_jax.data.tokenizer import load_tokenizer, tokenizer_digest
        from sspo_jax.models.configs import config_from_hf
        from sspo_jax.models.hf.hub import model_digest

        self._config, self._preset = config, preset
        self._path, run_prompt = _checkpoint_of(config.model, config.step)
        model = config_from_hf(self._path)
        self._tokenizer = load_tokenizer(config.tokenizer or str(self._path))
        if len(self._tokenizer) > model.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self._tokenizer)} entries, the model's vocabulary {model.vocab_size}: "
                "they do not belong together; set --tokenizer"
            )
        template = load_template(config.prompt or run_prompt or "qwen-math")
        room = model.max_positions - preset.max_new_tokens
        if room < 1:
            raise ValueError(
                f"responses of up to {preset.max_new_tokens} tokens leave no room for a prompt in the model's context "
                f"of {model.max_positions}: lower --max-new-tokens"
            )
        self._prompts = PromptTokenizer(template, self._tokenizer, max_tokens=room)
        for source in sources.values():  # now, and not after hours of sampling
            for problem in iterate(source):
                self._prompts(problem)
        self.protocol = {
            "model": config.model if run_prompt is None else f"{config.model}, {self._path.name}",
            "model_digest": model_digest(self._path),
            "dtype": config.dtype,
            "prompt": template.name,
            "prompt_digest": template.digest,
            "tokenizer_digest": tokenizer_digest(self._tokenizer),
            "samples": {name: _group_size(preset, name) for name in sources},
            "problems_at_once": config.problems_at_once,
        }

    def score(
        self, name: str, source: ProblemSource, verifier: Any, done: Sequence[SampleRow], on_rows: OnRows
    ) -> tuple[SetScores, list[SampleRow]]:
        return evaluate_policy(
            lambda *args, **kwargs: self._sample(*args, **kwargs),
            source,
            name=name,
            prompts=self._prompts,
            tokenizer=self._tokenizer,
            verifier=verifier,
            sampling=None,
            group_size=_group_size(self._preset, name),
            seed=self._config.seed,
            problems_at_once=self._config.problems_at_once,
            done=done,
            on_rows=on_rows,
        )

    @functools.cached_property
    def _sample(self) -> Callable[..., Any]:
        from sspo_jax.models.end_tokens import end_tokens
        from sspo_jax.models.hf.load import load_qwen
        from sspo_jax.sampler import Sampler, SamplingParams
        from sspo_jax.sharding import make_mesh

        mesh = make_mesh()
        params, model = load_qwen(self._path, mesh=mesh, dtype=self._config.dtype, param_dtype=self._config.dtype)
        sampling = SamplingParams(
            max_new_tokens=self._preset.max_new_tokens,
            temperature=self._preset.temperature,
            top_p=self._preset.top_p,
            stop_token_ids=end_tokens(self._tokenizer, model.eos_token_ids),
        )
        sampler = Sampler(model, sampling, slots=self._config.slots, mesh=mesh)
        params = sampler.ready(params, release=True)

        def sample(prompts: list[list[int]], *, group_size: int, sampling: Any, seed: int) -> Any:
            del sampling
            return sampler.generate(params, prompts, group_size=group_size, seed=seed)

        return sample


class _GivenResponses:
    """Responses that were sampled elsewhere, read from a file."""

    def __init__(self, config: EvaluateConfig, sources: dict[str, ProblemSource]):
        path = str(config.responses)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file, want JSON lines of id and response")
        raw = pathlib.Path(path).read_bytes()
        problems = {name: {problem.id: problem for problem in iterate(source)} for name, source in sources.items()}
        self._responses = _read_responses(path, raw, problems)
        self._sources = sources
        self._seed = config.seed
        self.protocol = {
            "model": f"responses of {os.path.basename(path)}",
            "model_digest": hashlib.sha256(raw).hexdigest(),
            "prompt": config.prompt or "not stated",
            "prompt_digest": "",
        }

    def score(
        self, name: str, source: ProblemSource, verifier: Any, done: Sequence[SampleRow], on_rows: OnRows
    ) -> tuple[SetScores, list[SampleRow]]:
        rows = judge(name, self._responses[name], verifier)
        on_rows(rows)
        return score_rows(name, source.digest, list(iterate(source)), rows, verifier, seed=self._seed), rows


def _read_responses(path: str, raw: bytes, problems: dict[str, dict[str, Problem]]) -> dict[str, list[Response]]:
    found: dict[str, list[Response]] = {name: [] for name in problems}
    counts: dict[tuple[str, str], int] = {}
    for number, line in enumerate(raw.decode("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "response")):
            raise ValueError(f"{where}: want an object with `id` and `response`, both strings")
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


def _preset(config: EvaluateConfig) -> Preset:
    """The preset, with what the command line changes in it said in its name: such numbers are another protocol."""
    preset = preset_named(config.preset)
    changes = {key: getattr(config, key) for key in ("samples", "max_new_tokens") if getattr(config, key) is not None}
    for key, value in changes.items():
        if value < 1:
            raise ValueError(f"--{key.replace('_', '-')} is {value}, want at least 1")
    if not changes:
        return preset
    if preset.is_greedy and changes.get("samples", 1) > 1:
        raise ValueError("--samples above 1 with the greedy preset would repeat one response: use --preset avg@k")
    listed = ", ".join(f"{key}={value}" for key, value in changes.items())
    return dataclasses.replace(preset, name=f"{preset.name} ({listed})", **changes)


def _protocol_of(preset: Preset | None) -> dict[str, Any]:
    """What the preset says about the sampling; of given responses nothing is known."""
    names = ("temperature", "top_p", "max_new_tokens")
    if preset is None:
        return {"preset": "given responses", **dict.fromkeys(names)}
    return {"preset": preset.name, **{name: getattr(preset, name) for name in names}}


def _group_size(preset: Preset, name: str) -> int:
    return preset.samples or facts_of(name).samples


def _open_sets(config: EvaluateConfig) -> dict[str, ProblemSource]:
    from sspo_jax.data.sources import open_problems

    specs = [spec.strip() for spec in config.data.split(",") if spec.strip()]
    if not specs:
        raise ValueError("--data is empty, want sets such as aime24,math500")
    sources: dict[str, ProblemSource] = {}
    for spec in specs:
        name, _, rest = spec.rpartition("=")
        source = open_problems(rest, data_dir=config.data_dir)
        name = name or source.name
        if name in sources:
            raise ValueError(f"--data has two sets called {name}: name one of them as in other={rest}")
        sources[name] = source
    return sources


def _checkpoint_of(model: str, step: int | Literal["best"] | None) -> tuple[pathlib.Path, str | None]:
    """(checkpoint directory, prompt template it was trained with) of a checkpoint, a run, or a name on the Hub."""
    directory = pathlib.Path(model)
    is_run = (directory / "checkpoints").is_dir() and not list(directory.glob("*.safetensors"))
    if step is not None and not is_run:
        raise ValueError(f"--step chooses a checkpoint of a run, and {model} is none: leave it out")
    if not directory.is_dir():
        from sspo_jax.models.hf.hub import fetch_model

        return fetch_model(model), None
    if is_run:
        from sspo_jax.runs.policy import exported_checkpoint

        record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return exported_checkpoint(directory, step), record["config"]["prompt"]
    return directory, None


def _verifier(config: EvaluateConfig) -> Any:
    from sspo_jax.checker import Verifier

    return Verifier(workers=config.workers or os.cpu_count() or 1, timeout_seconds=config.timeout_seconds)


def _checker_version() -> int:
    from sspo_jax.checker.verdict import VERSION

    return VERSION


def _default_out(config: EvaluateConfig, preset_name: str) -> str:
    subject = pathlib.Path(config.model or str(config.responses)).name
    if config.step is not None:
        subject += f"-step-{config.step}"
    name = f"{subject}-{preset_name}".replace("@", "-at-")
    return os.path.join("evaluations", "".join(c if c.isalnum() or c in "-_." else "_" for c in name))


def _versions() -> dict[str, str]:
    import importlib.metadata
    import platform

    from sspo_jax import __version__

    packages = ("jax", "transformers", "tokenizers", "sympy", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"sspo_jax": __version__, "python": platform.python_version(), **found}


def _compare(first: str, second: str) -> int:
    from sspo_jax.evaluation.comparison import compare, comparison_table

    one, two = read_results(first), read_results(second)
    names = (pathlib.Path(first).name, pathlib.Path(second).name)
    table = comparison_table(compare(one, two), names)
    print(table)
    path = pathlib.Path(first) / f"compared-with-{names[1]}.md"
    replace_text(path, f"# {names[0]} against {names[1]}\n\n{table}\n")
    print(f"\nwritten to {path}")
    return 0
