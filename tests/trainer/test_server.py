"""A run whose rollouts come from a real `sspo serve`: that of the engine here; servers that die; what is refused."""

import contextlib
import dataclasses
import http.server
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax
import pytest

from sspo_jax.commands.main import main
from sspo_jax.config import PartialConfig, ServerConfig, TrainConfig
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import init_qwen
from sspo_jax.runs.checkpoint import steps_in
from sspo_jax.sampler import NO_WEIGHTS
from sspo_jax.serving import ServerGoneError
from sspo_jax.trainer.grading import Grading
from sspo_jax.trainer.loop import Trainer
from tests.serving.server_process import ServerProcess, free_port
from tests.trainer import served_experiment
from tests.trainer.conftest import run_cli, small
from tests.trainer.launch import Launch, assert_close, environment, metrics, run_alone
from tests.trainer.test_interrupt import LONG, opened
from tests.trainer.test_resume import wait_for_step

SERVED = pathlib.Path(served_experiment.__file__)


def served(**changes: object) -> TrainConfig:
    """The experiment on one device, with other fields."""
    config = dataclasses.replace(served_experiment.config(), mesh=dataclasses.replace(small().mesh, fsdp=1))
    return dataclasses.replace(config, **changes)


def started(checkpoint: str, *, port: int = 0) -> ServerProcess:
    """Few slots and some patience for a batch: few sizes to compile for."""
    return ServerProcess(checkpoint, port=port, options=("--slots", "8", "--gather-seconds", "0.05"))


def through(server: ServerProcess, config: TrainConfig, **options: object) -> TrainConfig:
    chosen = ServerConfig(url=server.url, **options)
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, server=chosen))


def in_directory(config: TrainConfig, run: pathlib.Path) -> TrainConfig:
    return dataclasses.replace(config, run_dir=str(run))


def run(config: TrainConfig, directory: pathlib.Path) -> Trainer:
    with opened(in_directory(config, directory)) as trainer:
        trainer.run()
        return trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the right shape and with other weights than any step of the run."""
    path = tmp_path_factory.mktemp("start") / "anything"
    shape = served().model.shape
    assert shape is not None
    save_qwen(path, init_qwen(shape, jax.random.key(99)), shape, dtype="float32")
    return str(path)


@pytest.fixture(scope="module")
def server(checkpoint: str) -> Iterator[ServerProcess]:
    server = started(checkpoint)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def here(cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run without a server."""
    directory = tmp_path_factory.mktemp("here") / "run"
    trainer = run(served(), directory)
    assert trainer.engine.version == 2  # evaluated last
    assert metrics(directory)[-1]["optim/grad_norm"] > 0
    return directory


def assert_same_run(one: pathlib.Path, two: pathlib.Path) -> None:
    """Texts, verdicts and rewards are equal; metrics up to the order in which the samplers add."""
    for name in ("rollouts/step_000001.jsonl", "rollouts/step_000002.jsonl", "evaluations/step_000000.jsonl"):
        assert (one / name).read_text() == (two / name).read_text(), name
    assert_close(metrics(one), metrics(two))


@pytest.mark.slow
def test_a_run_through_a_server_is_the_run_here(here: pathlib.Path, server: ServerProcess, tmp_path: pathlib.Path):
    before = server.ask("/health")["tokens"]
    assert run(through(server, served()), tmp_path / "run").state.step == 2
    assert_same_run(tmp_path / "run", here)
    health = server.ask("/health")
    sampled = sum(row["rollout/tokens"] for row in metrics(here)[1:])
    assert health["tokens"] - before > sampled  # the evaluations too
    assert health["weights_path"] == str(tmp_path / "run" / "weights" / "weights-00000002")
    assert [path.name for path in (tmp_path / "run" / "weights").iterdir()] == ["weights-00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("partial", [None, PartialConfig(tokens=6)])
def test_servers_sample_beside_the_updates_what_is_sampled_here_in_turn(server, checkpoint, cache, tmp_path, partial):
    """With a lag, two servers and a thread that waits for them: the run that samples here, in turn."""
    config = served(steps=3, evaluation=dataclasses.replace(served().evaluation, samples=0))
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, lag=1, partial=partial))
    assert run(config, tmp_path / "here").state.step == 3
    other = started(checkpoint)
    try:
        both = through(server, config)
        addresses = dataclasses.replace(both.rollout.server, url=f"{server.url}, {other.url}")
        both = dataclasses.replace(both, rollout=dataclasses.replace(both.rollout, server=addresses))
        assert run(both, tmp_path / "there").state.step == 3
    finally:
        other.kill()
    assert_same_run(tmp_path / "there", tmp_path / "here")
    times = [json.loads(row) for row in (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["time/wait_seconds"] > 0 for row in times[1:])


@pytest.mark.slow
def test_two_processes_and_a_server_with_a_lag(checkpoint, tmp_path: pathlib.Path):
    """A thread of process 0 samples while both train; both get the same."""
    variables = environment(tmp_path)
    options = ("--rollout.lag", "1", "--evaluation.sets", "none", "--steps", "3")
    here = Launch(tmp_path / "here", SERVED, variables, per_process=options)
    assert here.wait() == [0, 0], here.text(0) + here.text(1)
    server = started(checkpoint)
    try:
        there = Launch(
            tmp_path / "there", SERVED, variables, per_process=(*options, "--rollout.server.url", server.url)
        )
        assert there.wait() == [0, 0], there.text(0) + there.text(1)
    finally:
        server.kill()
    assert_close(metrics(there.run_dir), metrics(here.run_dir))


@pytest.mark.slow
def test_weights_are_handed_over_once_after_each_change(server: ServerProcess, cache, tmp_path, monkeypatch):
    """Not again for further draws of dynamic sampling, nor for the step after an evaluation; here none is kept."""
    config = served(evaluation=dataclasses.replace(served().evaluation, every=1))
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, dynamic_sampling=1))
    versions: list[int] = []
    with opened(in_directory(config, tmp_path / "run")) as trainer:
        sync, update = trainer.engine.sync, trainer.programs.apply_update

        def updates(*arguments):
            assert trainer.engine.version == NO_WEIGHTS  # donated: nobody may hold them
            return update(*arguments)

        def syncs(params, version, **options):
            versions.append(version)
            sync(params, version, **options)

        monkeypatch.setattr(trainer.engine, "sync", syncs)
        monkeypatch.setattr(trainer.programs, "apply_update", updates)
        assert trainer.run()
    assert versions == [0, 1, 2]


@pytest.mark.slow
def test_adapters_are_folded_into_what_the_server_gets(server: ServerProcess, cache, tmp_path: pathlib.Path):
    config = served()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, lora=LoraConfig(rank=2)),
        evaluation=dataclasses.replace(config.evaluation, data=()),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=3e-2),
    )
    run(config, tmp_path / "here")
    run(through(server, config), tmp_path / "there")
    for step in (1, 2):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert (tmp_path / "here" / name).read_text() == (tmp_path / "there" / name).read_text()
    assert_close(metrics(tmp_path / "here"), metrics(tmp_path / "there"))


@contextlib.contextmanager
def killed_in_the_second_step(monkeypatch, server: ServerProcess, then=lambda: None) -> Iterator[None]:
    """Kills the server when a quarter of the second step's responses have come, and calls `then`."""
    finished, arrived = Grading.finished, []
    samples = served().rollout.prompts * served().rollout.group_size

    def counted(judging: Grading, row: int, tokens: list[int]) -> None:
        finished(judging, row, tokens)
        arrived.append(row)
        if len(arrived) == samples + samples // 4:
            server.kill()
            then()

    with monkeypatch.context() as patch:
        patch.setattr(Grading, "finished", counted)
        yield


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_changes_nothing(here, checkpoint, monkeypatch, tmp_path):
    port = free_port()
    servers = [started(checkpoint, port=port)]
    config = through(servers[0], served(), concurrency=2)
    try:
        with killed_in_the_second_step(monkeypatch, servers[0], lambda: servers.append(started(checkpoint, port=port))):
            assert run(config, tmp_path / "run").state.step == 2
    finally:
        for server in servers:
            server.kill()
    assert len(servers) == 2
    assert_same_run(tmp_path / "run", here)


@pytest.mark.slow
def test_without_its_server_a_run_is_saved_and_goes_on_later(here, server, checkpoint, monkeypatch, tmp_path):
    """Gone for good; the restart finds another server, under another address."""
    gone = started(checkpoint)
    with killed_in_the_second_step(monkeypatch, gone):
        trainer = run(through(gone, served(), concurrency=2, patience_seconds=1.0), tmp_path / "run")
    assert isinstance(trainer.failure, ServerGoneError)
    assert "has not answered for 1 seconds" in str(trainer.failure)
    assert steps_in(tmp_path / "run" / "checkpoints") == [1]
    assert not (tmp_path / "run" / "rollouts" / "step_000002.jsonl").exists()
    assert run(through(server, served()), tmp_path / "run").failure is None
    assert_same_run(tmp_path / "run", here)


def refusal(capsys, tmp_path, *options: str, code: int = 1, **shape: int) -> str:
    """What `sspo train` prints on a model whose shape differs in this; nothing may have been written."""
    experiment = tmp_path / "served.py"
    experiment.write_text(
        "import dataclasses\nfrom sspo_jax.commands.experiments import load_experiment\ndef config():\n"
        f"    base = load_experiment({str(SERVED)!r})\n"
        f"    shape = dataclasses.replace(base.model.shape, **{shape!r})\n"
        "    return dataclasses.replace(base, model=dataclasses.replace(base.model, shape=shape))\n"
    )
    assert main(["train", str(experiment), "--run-dir", str(tmp_path / "run"), *options]) == code
    assert not (tmp_path / "run").exists()
    return capsys.readouterr().err


def test_a_server_that_cannot_be_used_is_refused_before_the_run_starts(server, cache, capsys, tmp_path):
    at = ("--rollout.server.url", server.url)
    nobody = refusal(capsys, tmp_path, "--rollout.server.url", f"http://127.0.0.1:{free_port()}", code=75)
    assert "Connection refused" in nobody
    assert "sspo serve --model" in nobody
    assert nobody.count("\n") == 1
    long = ("--rollout.max-new-tokens", "100", "--update.row-tokens", "150")
    assert "with 128 positions, expected 140" in refusal(capsys, tmp_path, *at, *long, max_positions=300)
    assert "intermediate_size 64, expected 48" in refusal(capsys, tmp_path, *at, intermediate_size=48)
    assert "not 'other'" in refusal(capsys, tmp_path, *at, "--rollout.server.model", "other")
    assert "VLLM_SERVER_DEV_MODE" in refusal(capsys, tmp_path, *at, "--rollout.server.protocol", "vllm")
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=files.serve_forever, daemon=True).start()
    other = refusal(capsys, tmp_path, "--rollout.server.url", f"http://127.0.0.1:{files.server_address[1]}")
    files.shutdown()
    files.server_close()
    assert "404 File not found: is this the server's address?" in other


def test_a_server_with_a_lower_limit_of_tokens_is_refused(checkpoint, cache, capsys, tmp_path):
    limited = ServerProcess(checkpoint, options=("--max-tokens", "8"))
    try:
        assert "gives at most 8 tokens, expected 16" in refusal(capsys, tmp_path, "--rollout.server.url", limited.url)
    finally:
        limited.kill()


def test_an_address_that_is_none(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["train", str(SERVED), "--rollout.server.url", "localhost:8000"])
    output = capsys.readouterr()
    assert "http://localhost:8000" in output.out + output.err


def start(run: pathlib.Path, url: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sspo_jax", "train", str(SERVED), "--run-dir", str(run), "--log.quiet"]
    return subprocess.Popen(
        [*command, "--rollout.server.url", url, *options],
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_ctrl_c_while_a_server_samples(checkpoint, cache, tmp_path: pathlib.Path):
    """Of 1,024 responses few are asked for at once, so the rollout takes long; those in flight are given up."""
    server = started(checkpoint)
    try:
        process = start(tmp_path / "run", server.url, *LONG, "--rollout.server.concurrency", "2")
        wait_for_step(tmp_path / "run", 0, process)
        time.sleep(1.0)  # into the rollout of the first step
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        output, errors = process.communicate(timeout=60)
        took = time.monotonic() - asked
    finally:
        server.kill()
    print(f"ended {took:.2f} s after SIGINT")
    assert process.returncode == 0, errors
    assert "stopped before the first step was done" in output
    assert took < 15


@pytest.mark.slow
def test_the_program_says_that_its_server_is_gone_and_goes_on_when_it_is_back(here, checkpoint, tmp_path):
    server = started(checkpoint)
    slowly = ("--rollout.server.concurrency", "1", "--rollout.server.patience-seconds", "1")
    process = start(tmp_path / "run", server.url, *slowly)
    wait_for_step(tmp_path / "run", 1, process)
    server.kill()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, output + errors
    assert "has not answered for 1 seconds" in errors
    assert "stopped after step 1, saved in" in errors
    assert "Traceback" not in output + errors
    again = started(checkpoint)
    try:
        done = run_cli(*("train", str(SERVED), "--run-dir", "run", "--rollout.server.url", again.url), cwd=tmp_path)
    finally:
        again.kill()
    assert done.returncode == 0, done.stderr
    assert "resuming after step 1" in done.stdout
    assert_same_run(tmp_path / "run", here)


@pytest.mark.slow
def test_two_processes_and_one_server(checkpoint, tmp_path: pathlib.Path):
    """Process 0 asks, both get the same; when the server goes, both save and end with the same code."""
    variables = environment(tmp_path)
    run_alone(tmp_path / "alone", SERVED, variables)
    server = started(checkpoint)
    options = ("--rollout.server.url", server.url, "--distributed.heartbeat-seconds", "150")
    options = (*options, "--rollout.server.patience-seconds", "2")
    try:
        both = Launch(tmp_path / "both", SERVED, variables, per_process=options)
        assert both.wait() == [0, 0], both.text(0) + both.text(1)
        assert_same_run(both.run_dir, tmp_path / "alone")
        left = Launch(tmp_path / "left", SERVED, variables, per_process=(*options, "--rollout.server.concurrency", "1"))
        left.reach(step=1)
    finally:
        server.kill()
    assert left.wait() == [75, 75], left.text(0) + left.text(1)
    for number in (0, 1):
        assert "stopped after step 1, saved in" in left.text(number)
        assert "Traceback" not in left.text(number)
    assert steps_in(left.run_dir / "checkpoints") == [1]
    row = json.loads((left.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 1
