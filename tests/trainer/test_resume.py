"""The real program, killed and started again: the same numbers, bit for bit."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sspo_jax.runs.metric_table import describe
from sspo_jax.runs.policy import read_policy
from sspo_jax.runs.profile import read_roofline
from sspo_jax.runs.token_log import read_token_log
from tests.trainer.conftest import SMALL, run_cli


def metrics(run: pathlib.Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "throughput/", "verify/seconds"))}
        for row in rows
    ]


def start(run: pathlib.Path, cwd: pathlib.Path, *options: str, experiment: pathlib.Path = SMALL) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sspo_jax", "train", str(experiment), "--run-dir", str(run), "--log.quiet", *options],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(run: pathlib.Path, step: int, process: subprocess.Popen, timeout: float = 240) -> None:
    """Until metrics.jsonl has the row of that step."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {timeout} s")


@pytest.fixture(scope="module")
def uninterrupted(cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A whole run; its warm start is in the cache for the others."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_cli("train", str(SMALL), "--run-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def same_as(run: pathlib.Path, whole: pathlib.Path) -> None:
    assert metrics(run) == metrics(whole)
    (ours, _, step), (theirs, _, last) = read_policy(run), read_policy(whole)
    assert step == last == 4
    for ours_file, theirs_file in zip(*(sorted((one / "tokens").iterdir()) for one in (run, whole)), strict=True):
        for mine, other in zip(*(read_token_log(file).responses for file in (ours_file, theirs_file)), strict=True):
            assert (mine.about, mine.pieces) == (other.about, other.pieces)
            assert all(np.array_equal(values, other.arrays[name]) for name, values in mine.arrays.items())
    assert np.array_equal(np.asarray(ours["embedding"]), np.asarray(theirs["embedding"]))
    for name, leaf in ours["blocks"].items():
        assert np.array_equal(np.asarray(leaf), np.asarray(theirs["blocks"][name])), name


def test_a_run_writes_what_the_contract_lists(uninterrupted: pathlib.Path):
    names = {entry.name for entry in uninterrupted.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "rollouts",
        "summary.json",
        "tensorboard",
        "tokens",
        "report.html",
    } <= names
    rows = metrics(uninterrupted)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    relied_on = (
        *("reward/mean", "ratio/mean", "ratio/max", "ratio/clip_fraction", "ratio/clip_fraction_low"),
        *("ratio/clip_fraction_high", "counterfactual/grpo_clip_fraction", "counterfactual/gspo_clip_fraction"),
        *("counterfactual/sspo_clip_fraction", "policy/entropy", "policy/kl_old", "sampler/logprob_gap_mean"),
        *("sampler/logprob_gap_max", "response/length_mean", "response/truncated_fraction", "subsentence/count_mean"),
        *("subsentence/length_mean", "optim/grad_norm", "optim/learning_rate", "loss/policy"),
    )
    last = json.loads((uninterrupted / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    for name in (
        *relied_on,
        *("time/rollout_seconds", "time/verify_seconds", "time/update_seconds"),
        *("throughput/rollout_tokens_per_second", "eval/arithmetic_held_out/accuracy"),
    ):
        assert isinstance(last[name], float), name
    assert all(isinstance(value, int | float) for row in rows for value in row.values())
    assert not [name for name in last if name != "step" and describe(name) is None]
    first, *others = (last[f"update/{number}/clip_fraction"] for number in (1, 2))
    assert first == 0.0  # the policy that is updated is the one that was scored
    assert np.mean([first, *others]) == pytest.approx(last["ratio/clip_fraction"], abs=0.1)
    assert len((uninterrupted / "rollouts" / "step_000003.jsonl").read_text(encoding="utf-8").splitlines()) == 16
    assert list((uninterrupted / "tensorboard").glob("events.*"))
    summary = json.loads((uninterrupted / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 4
    assert summary["programs"] > 0


@pytest.mark.slow  # test_interrupt.py stops a run in every stage, without a process of its own
@pytest.mark.parametrize("step", [1, 3])
def test_killed_and_started_again_gives_the_same_run(uninterrupted: pathlib.Path, tmp_path: pathlib.Path, step: int):
    process = start(tmp_path / "run", tmp_path)
    wait_for_step(tmp_path / "run", step, process)
    process.kill()
    process.communicate()
    again = run_cli("train", str(SMALL), "--run-dir", "run", "--log.profile-steps", "3:4", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    same_as(tmp_path / "run", uninterrupted)  # also while it is traced
    profile = read_roofline(tmp_path / "run")
    assert profile is not None
    assert profile["steps"][-1] == 4
    shares = {row["stage"]: row.get("share") for row in profile["stages"]}
    assert all(0 < shares[stage] < 1 for stage in ("rollout", "score", "update"))
    assert list((tmp_path / "run" / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_sigterm_finishes_the_step_and_saves(uninterrupted: pathlib.Path, tmp_path: pathlib.Path):
    process = start(tmp_path / "run", tmp_path)
    wait_for_step(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "stopped after step" in output
    assert not (tmp_path / "run" / "summary.json").exists()
    again = run_cli("train", str(SMALL), "--run-dir", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after step" in again.stdout
    same_as(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_flipped_byte_costs_one_step_and_a_warning(uninterrupted: pathlib.Path, tmp_path: pathlib.Path):
    process = start(tmp_path / "run", tmp_path)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = max(int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdigit())
    file = max((checkpoints / str(newest) / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 16
    file.write_bytes(content)
    again = run_cli("train", str(SMALL), "--run-dir", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"checkpoint of step {newest} cannot be used" in again.stdout + again.stderr
    same_as(tmp_path / "run", uninterrupted)


def test_where_no_checkpoint_is_intact_the_run_stops_and_changes_nothing(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    for folder in (run / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(folder / "meta")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = run_cli("train", str(SMALL), "--run-dir", "run", cwd=tmp_path)
    assert refused.returncode == 1
    for words in ("has checkpoints, but no intact one", "step 4: ", "Nothing was changed", "begin anew on purpose"):
        assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 96 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: pathlib.Path) -> pathlib.Path:
    """A file that takes all space that is left."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    return disk / "filler"


@pytest.mark.slow
@pytest.mark.parametrize("when", [0, 2])
def test_a_disk_that_fills_up_ends_the_run_with_what_is_done_saved(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path, small_disk: pathlib.Path, when: int
):
    process = start(small_disk / "run", tmp_path)
    wait_for_step(small_disk / "run", when, process)
    filler = fill(small_disk)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output  # temporary: --supervise waits, and tries again
    assert "no space is left in" in output or "no space left for" in output
    assert "stopped after step" in output or "stopped before the first step was done" in output
    assert "Traceback" not in output
    refused = run_cli("train", str(SMALL), "--run-dir", str(small_disk / "run"), cwd=tmp_path)
    assert refused.returncode == 75
    assert "0 MB free" in refused.stderr
    filler.unlink()
    again = run_cli("train", str(SMALL), "--run-dir", str(small_disk / "run"), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    same_as(small_disk / "run", uninterrupted)


def test_the_finished_run_is_not_run_again(uninterrupted: pathlib.Path):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    again = run_cli("train", str(SMALL), "--run-dir", str(uninterrupted), cwd=uninterrupted.parent)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_more_steps_on_more_devices(uninterrupted: pathlib.Path, tmp_path: pathlib.Path):
    """A complete run goes on with other settings of the machine; what was done stays as it is."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    machine = ("--update.micro-rows", "4", "--rollout.slots", "8", "--reward.workers", "1", "--model.remat", "full")
    again = run_cli(
        *("train", str(SMALL), "--run-dir", "run", "--steps", "5", *machine),
        cwd=tmp_path,
        XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        NPROC="8",  # threads of XLA: a device that waits in two collectives at once must not take another's
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after step 4" in again.stdout
    rows = metrics(tmp_path / "run")
    assert rows[:5] == metrics(uninterrupted)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    record = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert len(record["history"]) == 1
    changed = record["history"][0]["changed"]
    assert (changed["steps"], changed["update.micro_rows"], changed["model.remat"]) == (
        [4, 5],
        [8, 4],
        ["none", "full"],
    )
    assert "run_dir" not in changed  # another spelling of the same place
    assert record["history"][0]["devices"] == "1 x cpu"
    assert record["devices"] == "4 x cpu"
    assert (tmp_path / "run" / "summary_step_000004.json").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["steps"] == 5


def test_another_configuration_is_refused_by_name(uninterrupted: pathlib.Path):
    refused = run_cli(
        *("train", str(SMALL), "--run-dir", str(uninterrupted), "--optimizer.learning-rate", "0.5", "--steps", "3"),
        cwd=uninterrupted.parent,
    )
    assert refused.returncode == 1
    assert "optimizer.learning_rate: 0.001 there, 0.5 here" in refused.stderr
    assert "steps: 4 there, 3 here (step 4 is done: expected at least 4)" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_export_and_inspect_read_the_run(uninterrupted: pathlib.Path, tmp_path: pathlib.Path):
    done = run_cli("export", str(uninterrupted), "out", "--dtype", "float32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from sspo_jax.models import load_qwen

    params, _ = load_qwen(tmp_path / "out")
    policy, _, _ = read_policy(uninterrupted)
    assert np.array_equal(np.asarray(params["embedding"]), np.asarray(policy["embedding"]))
    shown = run_cli("inspect", str(uninterrupted), "--step", "2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "complete" in shown.stdout
    assert "reward/mean" in shown.stdout
