"""What a person gets wrong is answered with a line that says so, over all commands; never with a traceback."""

import copy
import json
import pathlib
from typing import Any

import pytest

from sspo_jax.commands import main as cli
from sspo_jax.config import TrainConfig
from tests.trainer.conftest import SMALL, run_cli

DEEP = "[" * 100_000
HF = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
RUN: dict[str, Any] = {
    "experiment": "small",
    "commit": "",
    "devices": "1 x cpu",
    "model": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
    },
    "provenance": {},
    "config": {
        "steps": 2,
        "prompt": "chat",
        "model": {"path": None, "tokenizer": "tiny", "dtype": "float32", "lora": None},
        "loss": {"objective": "Sspo"},
        "rollout": {"max_new_tokens": 16},
        "evaluation": {"data": [{"split": "held_out", "size": 2}], "max_new_tokens": None, "problems": None},
    },
}


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SSPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SSPO_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SSPO_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is printed; the command must end with a code, not with an exception."""
    try:
        code = cli.main(list(map(str, arguments)))
    except SystemExit as exit_:
        code = exit_.code
    output = capsys.readouterr()
    assert code not in (0, None), output.out
    assert "Traceback" not in output.err
    return output.err + output.out


def changed(record: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy with the field of a dotted name changed; `...` removes it."""
    record = copy.deepcopy(record)
    inner = record
    *path, last = name.split(".")
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return record


SETTINGS = [
    ("--rollout.slots 0", "--rollout.slots is 0; expected a whole number at least 1"),
    ("--evaluation.problems 0", "--evaluation.problems is 0"),
    ("--evaluation.samples -2", "--evaluation.samples is -2"),
    ("--evaluation.max-new-tokens 500", "lower --rollout.max-prompt-tokens or --evaluation.max-new-tokens"),
    ("--rollout.stop-token-ids 999999", "--rollout.stop-token-ids has 999999; expected ids below"),
    ("--warm-start.updates 1", "--warm-start.updates is 1; expected a whole number at least 2"),
    ("--warm-start.row-tokens 4096", "--warm-start.row-tokens is 4096; expected at most 128"),
    ("--model.lora.rank 500", "--model.lora.rank is 500; expected at most 32"),
    ("--rollout.dynamic-sampling -1", "--rollout.dynamic-sampling is -1"),
    ("--seed 100000000000000000000", "--seed is 100000000000000000000"),
    ("--optimizer.learning-rate nan", "--optimizer.learning-rate is nan; expected a finite number"),
    ("--optimizer.b2 -1", "--optimizer.b2 is -1.0"),
    ("--loss.clip-low inf", "--loss.clip-low is inf"),
    ("--loss.dual-clip 1", "--loss.dual-clip is 1.0; expected a finite number above 1"),
    ("--curriculum.floor 0", "--curriculum.floor is 0"),
    ("--rollout.server.concurrency 0", "concurrency is 0"),
    ("--segmenter.rule fixed(99999999999)", "rule is 'fixed(99999999999)', expected punctuation"),
    ("--segmenter.max-tokens 3", "--segmenter.max-tokens is 3; expected at least --segmenter.min-tokens = 5"),
    ("--model.attention splash", "--model.attention splash needs rows of a multiple of 128 tokens"),
    ("--model.attention cudnn", "--model.attention cudnn needs an NVIDIA GPU"),
    ("--run-dir=", "--run-dir is empty; expected a path"),
    ("--reward.workers 1000000", "--reward.workers is 1000000; expected a whole number at least 1 and at most 1024"),
    ("--reward.overlong.buffer-tokens 999", "buffer_tokens is 999; expected 1 to max_tokens (16)"),
    ("--update.row-tokens 100000000", "--update.row-tokens is 100000000; expected at most 896"),
    ("--log.profile-steps 3:2", "--log.profile-steps is '3:2'; expected first:last, both of 1 to 4"),
    ("--log.profile-steps 3:9", "--log.profile-steps is '3:9'; expected first:last, both of 1 to 4"),
    ("--log.profile-steps soon", "--log.profile-steps is 'soon'"),
    ("--model.shape.num-layers 3", "--model.shape.num-layers is no option"),
    ("--evaluation.data.0.size 3", "--evaluation.data.0.size is no option"),
    ("--evaluation.sets nowhere", "no problems called 'nowhere'"),
    ("--evaluation.sets arithmetic:held_out,,math500", "expected names such as aime24,math500"),
    ("--evaluation.sets arithmetic:test", "arithmetic:test"),
    ("--evaluation.sets arithmetic,arithmetic", "expected each name once"),
    ("--loss nothing", "--loss is 'nothing', expected one of"),
    ("--supervise=soon", "expected a number of restarts"),
    ("--distributed.num-processes 0", "--distributed.num-processes is 0"),
    ("--mesh.fsdp 0", "--mesh.fsdp is 0; expected a whole number at least 1, or -1"),
]


@pytest.mark.parametrize(("arguments", "expected"), SETTINGS)
def test_a_setting(capsys, tmp_path, arguments, expected):
    message = refused(capsys, "train", SMALL, "--run-dir", tmp_path / "run", *arguments.split())
    assert expected in message, message
    assert not (tmp_path / "run").exists()
    assert len(message.strip().splitlines()) == 1


SHAPED = """import dataclasses
from tests.trainer.conftest import small
def config():
    base = small()
    shape = dataclasses.replace(base.model.shape, {})
    return dataclasses.replace(base, model=dataclasses.replace(base.model, shape=shape))
"""
EXPERIMENTS = [
    ("def config(:\n    pass", "line 1: SyntaxError"),
    ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
    ("def config():\n    return base\n", "line 2: NameError"),
    ("x = 3\n", "expected a function config() that returns a TrainConfig"),
    ("def config():\n    return {'steps': 3}\n", "one that returns a dict"),
    ("def config(size):\n    return size\n", "TypeError"),
    ("def config():\n    return {}['steps']\n", "line 2: KeyError: 'steps'"),
    ("from sspo_jax.config import TrainConfig\ndef config():\n    return TrainConfig(stps=3)\n", "line 3: TypeError"),
    ("from tests.trainer.conftest import small\ndef config():\n    return small(steps='3')\n", "line 3"),
    ("from tests.trainer.conftest import small\ndef config():\n    return small(rollout={})\n", "line 3"),
    ("def config():\n    raise ValueError()\n", "line 2: ValueError: no message"),
    (b"\xff\xfe\x00", ""),
    ("x = '\0'\n", ""),
    ("def config():\n    raise SystemExit(0)\n", "line 2: SystemExit: 0"),
    (SHAPED.format("head_dim=15"), "head_dim is 15; expected an even number"),
    (SHAPED.format("eos_token_ids=(9999,)"), "model.shape.eos_token_ids has 9999; expected ids of 0 to 511"),
    (SHAPED.format("num_layers=0"), "model.shape.num_layers is 0; expected at least 1"),
]


@pytest.mark.parametrize(("text", "expected"), EXPERIMENTS)
def test_an_experiment_file(capsys, tmp_path, text, expected):
    file = tmp_path / "mine.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(capsys, "train", file, "--run-dir", tmp_path / "run")
    assert str(file) in message or "model.shape" in message
    assert expected in message, message
    assert not (tmp_path / "run").exists()


TEMPLATES = [
    "{{ problem | nofilter }}",
    "{{ question }}",
    "{{ problem }}{{ 1 / 0 }}",
    "{{ problem + 1 }}",
    "{{ problem.a.b }}",
    "{% for %}{{ problem }}",
    "{% include 'other.jinja' %}{{ problem }}",
    "{{ problem }}{{ range(10000000) | list }}",
    "{{ problem.__class__.__mro__ }}",
    "{{ problem }}{{ '\\ud800' }}",
    "{{ " + "(" * 5000 + "problem" + ")" * 5000 + " }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}{{ problem }}",
    "{{ problem }}{{ problem | replace }}",
    "{{ problem() }}",
    "no question in it",
    b"{{ problem }} \xff",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_template(capsys, tmp_path, template):
    file = tmp_path / "mine.jinja"
    file.write_bytes(template if isinstance(template, bytes) else template.encode())
    message = refused(capsys, "train", SMALL, "--run-dir", tmp_path / "run", "--prompt", file)
    assert "mine" in message
    assert "expected" in message
    assert len(message.strip().splitlines()) == 1


CHECKPOINTS = [
    ("{", "config.json: not JSON"),
    ("", "config.json: empty"),
    (DEEP, "config.json: JSON that is nested too deeply"),
    ("[1]", "config.json: a list; expected an object"),
    ("{}", "architecture none"),
    (changed(HF, "hidden_size", ...), "config.json: no hidden_size"),
    (changed(HF, "hidden_size", "32"), "hidden_size is '32'; expected int"),
    (changed(HF, "hidden_size", None), "config.json: no hidden_size"),
    (changed(HF, "num_hidden_layers", 0), "num_hidden_layers is 0; expected a number above 0"),
    (changed(HF, "num_key_value_heads", 3), "num_kv_heads"),
    (changed(HF, "architectures", "Qwen2ForCausalLM"), "architectures is 'Qwen2ForCausalLM'; expected list"),
    (changed(HF, "architectures", [{}]), "architectures is [{}]; expected a list of str"),
    (HF | {"rope_scaling": 5}, "rope_scaling is 5; expected dict"),
    (HF | {"rope_scaling": {"type": "yarn"}}, "rope_scaling has no factor"),
    (HF | {"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling.factor is '4'; expected int or float"),
    (HF | {"rope_theta": "many"}, "rope_theta is 'many'; expected int or float"),
    (HF | {"eos_token_id": "</s>"}, "eos_token_id is '</s>'; expected int or list"),
    (HF | {"layer_types": [3]}, "layer_types is [3]; expected a list of str"),
    (HF | {"architectures": ["Qwen3MoeForCausalLM"]}, "config.json: no num_experts_per_tok"),
]


@pytest.mark.parametrize(("config", "expected"), CHECKPOINTS)
def test_the_config_of_a_checkpoint(capsys, tmp_path, config, expected):
    (tmp_path / "model").mkdir()
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "model" / "config.json").write_text(text)
    message = refused(capsys, "evaluate", "--model", tmp_path / "model", "--data", "arithmetic[:2]")
    assert expected in message, message


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": [1, "x"]}', '{"eos_token_id": true}'])
def test_the_generation_config_of_a_checkpoint(capsys, tmp_path, text):
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / "generation_config.json").write_text(text)
    assert "generation_config.json" in refused(capsys, "evaluate", "--model", tmp_path, "--data", "arithmetic[:2]")


def test_a_tokenizer_that_is_none(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    message = refused(capsys, "evaluate", "--model", tmp_path, "--data", "arithmetic[:2]")
    assert f"the tokenizer in {tmp_path} cannot be read" in message


RECORDS = [
    ("inspect", "{", "config.json: not JSON"),
    ("inspect", "[1]", "config.json: no experiment"),
    ("inspect", "{}", "config.json: no experiment"),
    ("inspect", changed(RUN, "config", 3), "no config.steps"),
    ("inspect", changed(RUN, "config.steps", "many"), "'many' as config.steps"),
    ("inspect", changed(RUN, "config.loss", None), "no config.loss.objective"),
    ("inspect", changed(RUN, "devices", ...), "no devices"),
    ("export", changed(RUN, "model", {}), "config.json: model has no vocab_size"),
    ("export", changed(RUN, "model.num_layers", "two"), "model.num_layers is 'two'; expected a whole number"),
    ("export", changed(RUN, "model.rope_scaling", 3), "model.rope_scaling is 3; expected an object"),
    ("export", changed(RUN, "config.model.lora", {"rnk": 3}), "has an unknown field 'rnk'"),
    ("export", changed(RUN, "config.model.tokenizer", 7), "7 as config.model.tokenizer"),
    ("evaluate", changed(RUN, "config.evaluation.data", [3]), "data is 3; expected an object"),
    ("evaluate", changed(RUN, "config.evaluation.data", [{"splt": "x"}]), "is of no known kind"),
    ("evaluate", changed(RUN, "config.evaluation.data", [{"split": "x", "size": "y"}]), "data.split is 'x'"),
    ("evaluate", changed(RUN, "config.prompt", ["chat"]), "as config.prompt"),
]


@pytest.mark.parametrize(("command", "record", "expected"), RECORDS)
def test_the_config_of_a_run(capsys, tmp_path, command, record, expected):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(record if isinstance(record, str) else json.dumps(record))
    options = {"inspect": [run], "export": [run, tmp_path / "out"], "evaluate": ["--model", run]}[command]
    message = refused(capsys, command, *options)
    assert expected in message, message


BESTS = ["{", "[1]", '{"step": "x"}', '{"step": 1.5, "metric": "greedy", "score": 1}', '{"step": 1, "metric": 2}']


@pytest.mark.parametrize("text", BESTS)
def test_the_record_of_the_best_policy(capsys, tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    (tmp_path / "checkpoints" / "best.json").write_text(text)
    message = refused(capsys, "export", tmp_path, tmp_path / "out", "--step", "best")
    assert "best.json" in message
    assert "Remove it" in message


ROWS = [
    DEEP,
    '{"id": "a", "problem": "\\ud800", "answer": "1"}',
    "[1]",
    '{"id": "a"}',
    '{"id": "a", "problem": "x", "answer": ["1"]}',
    '{"id": "a", "problem": "x", "answer": "1", "level": "hard"}',
    '{"id": "a", "problem": "x", "answer": "1"} {}',
    b"\xff",
    b"\x1f\x8b\x08",
    "",
    "1e400",
    "9" * 5000,
]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("command", ["data overlap", "evaluate", "verify", "segment", "data audit"])
def test_a_file_of_data(capsys, tmp_path, command, rows):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    if rows == "" and command in ("verify", "segment", "data audit"):
        return  # no lines are nothing to do
    options = {
        "data overlap": [file, "arithmetic"],
        "data audit": [file],
        "evaluate": ["--responses", file, "--data", file],
        "verify": [file],
        "segment": [file, "--tokenizer", "tiny"],
    }[command]
    if command == "data audit" and "hard" in str(rows):
        return  # it looks at golds alone
    assert "rows.jsonl" in refused(capsys, *command.split(), *options)


RESPONSES = [
    '{"id": "0", "response": 3}',
    '{"id": "nowhere", "response": "x"}',
    '{"id": "a", "response": "x", "sample": "first"}',
    '{"id": "a", "response": "x", "tokens": []}',
    '{"id": "a", "response": "x", "truncated": "no"}',
    '{"id": "a", "response": "x", "set": ["s"]}',
]


@pytest.mark.parametrize("row", RESPONSES)
def test_a_file_of_responses(capsys, tmp_path, row):
    (tmp_path / "set.jsonl").write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}')
    (tmp_path / "responses.jsonl").write_text(row)
    options = ("--responses", tmp_path / "responses.jsonl", "--data", "set", "--out", tmp_path / "out")
    assert "responses.jsonl:1" in refused(capsys, "evaluate", *options)


RESULTS = [
    "{",
    "[]",
    '{"format": 1}',
    '{"format": 1, "sets": 3}',
    '{"format": 1, "sets": {"a": {}}, "protocol": {}, "about": {}}',
    '{"format": 1, "sets": {}, "protocol": {"seed": 0}, "about": {}}',
]


@pytest.mark.parametrize("text", RESULTS)
def test_the_results_of_an_evaluation(capsys, tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert "results.json" in refused(capsys, "evaluate", "--compare", tmp_path, tmp_path)


OTHERS = [
    ("data overlap arithmetic", "no evaluation set is named"),
    ("data overlap arithmetic arithmetic --write nowhere/x.jsonl", "there is no directory nowhere: make it first"),
    ("data audit rows.jsonl --output .", "--output is ., a directory; expected the name of a file"),
    ("verify rows.jsonl --output nowhere/x", "there is no directory nowhere: make it first"),
    ("evaluate --model nowhere --data arithmetic[:2] --out /dev/null", "--out is /dev/null, a file; expected"),
    ("evaluate --model nowhere --data arithmetic[:2] --prompt nothing", "prompt template 'nothing'; expected"),
    ("", "usage"),
    ("nothing", "no command 'nothing'"),
    ("train nothing", "no experiment 'nothing'; expected"),
    ("data nothing", "usage"),
    ("inspect nowhere", "no config.json in nowhere"),
    ("export nowhere out", "no config.json in nowhere"),
    ("inspect run --step -1", "--step is -1; expected a whole number at least 0"),
    ("export run out --step -1", "--step is -1"),
    ("evaluate", "nothing to evaluate"),
    ("evaluate --model nowhere --data arithmetic[:0]", "expected a number of problems"),
    ("evaluate --model nowhere --slots 0", "--slots is 0"),
    ("evaluate --model nowhere --samples 0", "--samples is 0"),
    ("evaluate --model nowhere --seed -1", "--seed is -1"),
    ("evaluate --model nowhere --timeout-seconds nan", "--timeout-seconds is nan"),
    ("evaluate --compare a b", "no results.json in a"),
    ("evaluate --responses nowhere --data arithmetic", "nowhere: no such file"),
    ("verify", "nothing to judge"),
    ("verify --response 1 --gold 1 --timeout-seconds 0", "--timeout-seconds is 0"),
    ("verify --response 1 --gold 1 --workers 0", "--workers is 0"),
    ("verify --response 1 --gold 1 --relative-tolerance nan", "--relative-tolerance is nan"),
    ("segment nowhere.txt --tokenizer tiny", "No such file"),
    ("segment nowhere.txt --tokenizer tiny --show -1", "--show is -1"),
    ("data overlap a b --ngram 0", "--ngram is 0"),
    ("data overlap a b --near-share nan", "--near-share is nan"),
    ("data audit nowhere.jsonl", "No such file"),
    ("serve --model nowhere --port 70000", "--port is 70000; expected a whole number at least 0 and at most 65535"),
    ("serve --model nowhere --limits.samples 0", "--limits.samples is 0"),
    ("serve --model nowhere --gather-seconds inf", "--gather-seconds is inf"),
    ("plan qwen25_math_7b_sspo --slices 0", "--slices is 0"),
    ("plan nothing", "sspo plan: "),
    ("train arithmetic_tiny --reward.length.scale-tokens 0", "scale_tokens is 0; expected at least 1"),
    ("train arithmetic_tiny --rollout.server.url here", "--rollout.server.url is 'here'; expected"),
]


@pytest.mark.parametrize(("arguments", "expected"), OTHERS)
def test_other_commands(capsys, arguments, expected):
    message = refused(capsys, *arguments.split())
    assert expected in message, message


def test_a_bug_shows_its_traceback(monkeypatch):
    """Errors that no `raise` of ours made are not hidden: they come out of `main` as they are."""

    def broken(arguments):
        return int("of a library")

    monkeypatch.setattr("sspo_jax.commands.inspect.main", broken)
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["inspect", "run"])
    monkeypatch.setattr("sspo_jax.commands.inspect.main", lambda arguments: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["inspect", "run"])


def test_an_error_is_explained_by_the_instruction_that_made_it():
    def explained(source: str, module: str) -> bool:
        space: dict[str, Any] = {"__name__": module}
        exec(compile(source, "nowhere.py", "exec"), space)
        try:
            space["f"]()
        except Exception as error:
            return cli.is_explained(error)
        raise AssertionError("nothing was raised")

    one_line = "def f():\n    if True: raise ValueError('x')\n"
    assert explained(one_line, "sspo_jax.data.problems")
    assert explained(one_line, "sspo_experiments_0.mine")
    assert not explained(one_line, "json.decoder")
    assert not explained(one_line, "sspo_jax_of_another.module")
    assert not explained("def f():\n    return int('x')\n", "sspo_jax.data.problems")
    again = "def f():\n    try:\n        int('x')\n    except ValueError:\n        raise\n"
    assert not explained(again, "sspo_jax.data.problems")


@pytest.mark.parametrize("arguments", ["--optimizer.learning-rate nan", "--seed 1e20", "--rollout.slots 0"])
def test_by_the_real_program(tmp_path, arguments):
    done = run_cli("train", str(SMALL), "--run-dir", str(tmp_path / "run"), *arguments.split(), cwd=SMALL.parents[2])
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert arguments.split()[0] in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


def test_the_large_experiments_evaluate_on_the_sets_that_are_there(tmp_path):
    from sspo_jax.commands.experiments import load_experiment

    for name in ("qwen25_math_1p5b_sspo", "qwen25_math_7b_sspo"):
        assert load_experiment(name).evaluation.chosen == ()
    (tmp_path / "eval").mkdir()
    for name in ("aime24", "math500"):
        (tmp_path / "eval" / f"{name}.jsonl").write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}')
    for name in ("qwen25_math_1p5b_sspo", "qwen25_math_7b_sspo"):
        config = load_experiment(name)
        assert [source.open().name for source in config.evaluation.chosen] == ["aime24", "math500"]
        assert (config.evaluation.every, config.evaluation.samples) == (50, 0)


def test_sets_by_name_on_the_command_line(tmp_path):
    from sspo_jax.commands.options import parse

    (tmp_path / "math500.jsonl").write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}')
    from tests.trainer.conftest import small

    def chosen(*arguments: str) -> TrainConfig:
        return parse(TrainConfig, arguments, prog="sspo train", default=small())

    config = chosen("--evaluation.sets", "math500[:1],arithmetic:held_out[:3]")
    assert [type(source).__name__ for source in config.evaluation.chosen] == ["JsonlData", "ArithmeticData"]
    assert [len(source.open()) for source in config.evaluation.chosen] == [1, 3]
    record = config.resolved()["evaluation"]
    assert record["sets"] is None
    assert [entry.get("path", "") for entry in record["data"]] == [str(pathlib.Path(tmp_path / "math500.jsonl")), ""]
    assert chosen("--evaluation.sets", "none").evaluation.chosen == ()
    assert chosen().evaluation.chosen == small().evaluation.data
