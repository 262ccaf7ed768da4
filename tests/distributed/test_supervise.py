"""Supervision: restarts what may get better, stops what will not, passes signals on."""

import pathlib
import signal
import subprocess
import sys
import time

from sspo_jax.commands.main import main
from sspo_jax.distributed.supervise import newest_checkpoint, supervise


def _shell(script: str) -> list[str]:
    return ["bash", "-c", script]


def _attempts(folder: pathlib.Path) -> int:
    return (folder / "attempts").read_text().count("x")


def test_restarts_until_success(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    script = f"cd {tmp_path}; echo x >> attempts; test $(wc -l < attempts) -ge 3 || exit 134"
    assert supervise(_shell(script), tmp_path, restarts=5, say=said.append, first_wait=0.0) == 0
    assert _attempts(tmp_path) == 3
    assert "restart 2 of 5" in said[1]


def test_gives_up_without_progress_and_keeps_the_code(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    script = f"cd {tmp_path}; echo x >> attempts; exit 75"
    assert supervise(_shell(script), tmp_path, restarts=2, say=said.append, first_wait=0.0) == 75
    assert _attempts(tmp_path) == 3
    assert "2 restarts without a new checkpoint are used up" in said[-1]


def test_a_new_checkpoint_starts_the_count_anew(tmp_path: pathlib.Path) -> None:
    script = f"cd {tmp_path}; echo x >> attempts; n=$(wc -l < attempts); mkdir -p checkpoints/$n"
    script += "; test $n -ge 5 || kill -9 $$"
    assert supervise(_shell(script), tmp_path, restarts=1, say=lambda _: None, first_wait=0.0) == 0
    assert _attempts(tmp_path) == 5
    assert newest_checkpoint(tmp_path) == 5


def test_an_error_of_ones_own_is_not_repeated(tmp_path: pathlib.Path) -> None:
    for code in (1, 2):
        script = f"cd {tmp_path}; echo x > attempts; exit {code}"
        assert supervise(_shell(script), tmp_path, restarts=5, say=lambda _: None, first_wait=0.0) == code
        assert _attempts(tmp_path) == 1


def test_a_stop_is_passed_on_and_waited_for(tmp_path: pathlib.Path) -> None:
    inner = "trap 'sleep 0.5; echo saved > state; exit 0' TERM; echo x > attempts; sleep 60 > /dev/null 2>&1 & wait"
    program = (
        "import pathlib, sys; from sspo_jax.distributed.supervise import supervise; "
        f"sys.exit(supervise(['bash', '-c', {inner!r}], pathlib.Path('.')))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    while not (tmp_path / "attempts").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert (tmp_path / "state").read_text() == "saved\n"


def test_wrong_supervision(capfd) -> None:
    assert main(["train", "arithmetic_tiny", "--supervise=often"]) == 1
    assert "expected a number of restarts" in capfd.readouterr().err
    options = ["--distributed.coordinator", "a:1", "--distributed.num-processes", "2", "--distributed.process-id", "0"]
    assert main(["train", "arithmetic_tiny", "--supervise", *options]) == 1
    assert "needs --run-dir" in capfd.readouterr().err
