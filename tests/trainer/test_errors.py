"""What is wrong with a run is said before anything expensive starts, with what to do."""

import json

import pytest

from sspo_jax.commands.main import main
from sspo_jax.config import RolloutConfig
from sspo_jax.trainer.overview import precision_hint, truncation_warning
from tests.trainer.conftest import SMALL

SERVED = SMALL.with_name("served_experiment.py")  # without a warm start, whose rows 8 devices do not divide


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """What the command prints to stderr; it must fail with this code and without a traceback."""
    assert main(["train", *arguments]) == code
    return capsys.readouterr().err


def test_unknown_experiment_lists_the_known(capsys):
    message = error_of(capsys, "nope")
    assert "no experiment 'nope'" in message
    assert "arithmetic_tiny " in message
    assert "qwen25_math_1p5b_sspo" in message


def test_unknown_command_and_no_command(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--rollout.grup-size", "8"), "grup-size"),
        (("--rollout.group-size", "many"), "many"),
        (("--loss.clip-low", "low"), "low"),
    ],
)
def test_unknown_or_ill_typed_override(capsys, arguments, wanted):
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(SMALL), *arguments])
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert wanted in output.err + output.out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--rollout.group-size", "1"), "--rollout.group-size is 1: an advantage relative to the group"),
        (("--steps", "0"), "--steps is 0; expected a whole number at least 1"),
        (("--rollout.temperature", "0"), "--rollout.temperature is 0.0; expected a finite number at least 0.001"),
        (("--update.per-rollout", "5"), "; expected at most --rollout.prompts = 4"),
        (("--rollout.max-new-tokens", "120", "--update.row-tokens", "300"), "the model's context is 128: lower"),
        (("--update.row-tokens", "50"), "; expected room for the longest prompt and response"),
        (("--mesh.tensor", "3"), "mesh"),
        (("--mesh.fsdp", "1", "--mesh.tensor", "8"), "which mesh axis 'tensor' of size 8 does not divide"),
        (("--model.path", "/no/such/model"), "not a directory and could not be downloaded from the Hub"),
        (("--model.tokenizer", "/no/such/tokenizer"), "not a directory and could not be downloaded from the Hub"),
        (
            ("--model.shape.vocab-size", "400"),
            "--model.shape.vocab-size is no option: model.shape.vocab_size",
        ),
        (("--rollout.max-prompt-tokens", "12"), "; expected at most 12"),
        (("--prompt", "poem"), "prompt template 'poem'; expected chat"),
        (("--segmenter.rule", "words"), "words"),
    ],
)
def test_refused_settings(capsys, cache, tmp_path, arguments, wanted):
    run = tmp_path / "run"
    assert wanted in error_of(capsys, str(SMALL), "--run-dir", str(run), *arguments)
    assert not run.exists()


def test_data_row_without_an_answer(capsys, cache, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        json.dumps({"id": "a", "problem": "1 + 1?", "answer": "2"}) + "\n" + json.dumps({"id": "b", "problem": "2?"})
    )
    experiment = tmp_path / "experiments" / "on_file.py"
    experiment.parent.mkdir()
    experiment.write_text(
        "import dataclasses\n"
        "from sspo_jax.data.sources import JsonlData\n"
        "from tests.trainer.small_experiment import config as small\n"
        "def config():\n"
        f"    return dataclasses.replace(small(), data=JsonlData(path={str(file)!r}))\n"
    )
    message = error_of(capsys, str(experiment), "--run-dir", str(tmp_path / "run"))
    assert f"{file}:2: no `answer`" in message


def test_a_directory_that_is_not_a_run(capsys, cache, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    message = error_of(capsys, str(SERVED), "--run-dir", str(tmp_path), "--mesh.fsdp", "-1", "--update.micro-rows", "8")
    assert "is not empty (thesis.tex)" in message
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_run_that_is_going_on_is_left_alone(capsys, cache, tmp_path):
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = error_of(capsys, str(SERVED), "--run-dir", str(run), "--update.micro-rows", "8")
    assert "is in use by another process" in message


def test_full_disk(capsys, cache, tmp_path, monkeypatch):
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 5 * 10**6))
    arguments = (str(SERVED), "--run-dir", str(tmp_path / "run"), "--update.micro-rows", "8")
    assert "5 MB free, expected at least" in error_of(capsys, *arguments, code=75)


def test_bfloat16_on_a_cpu_is_spoken_of():
    assert "--model.dtype float32" in str(precision_hint("cpu", "bfloat16"))
    assert precision_hint("cpu", "float32") is None
    assert precision_hint("tpu", "bfloat16") is None


def test_truncated_sampling_is_said_to_train_another_policy():
    assert truncation_warning(RolloutConfig()) is None
    warning = truncation_warning(RolloutConfig(top_p=0.95, top_k=20))
    assert warning is not None
    assert "--rollout.top-p 0.95 and --rollout.top-k 20" in warning
    assert "--rollout.top-p" not in str(truncation_warning(RolloutConfig(top_k=5)))
