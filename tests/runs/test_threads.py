"""A thread that dies stops the run; where the main thread waits for it, the process ends itself."""

import logging
import subprocess
import sys
import threading

import pytest

from sspo_jax.distributed.interrupt import Interrupted, StopRequest
from sspo_jax.runs.threads import ThreadGuard
from sspo_jax.runs.trackers import tracker_packages


def fail() -> None:
    raise KeyError("lost")


def test_the_run_is_asked_to_stop(capsys: pytest.CaptureFixture[str]):
    before = threading.excepthook
    stop = StopRequest(print)
    with ThreadGuard(stop) as guard:
        thread = threading.Thread(target=fail, name="writer")
        thread.start()
        thread.join()
        with pytest.raises(Interrupted):
            stop.polls()()
    assert str(guard.failure) == "the thread writer ended with KeyError('lost')"
    assert "KeyError: 'lost'" in capsys.readouterr().err
    assert threading.excepthook is before
    with ThreadGuard(StopRequest(print)) as guard:
        thread = threading.Thread(target=print)
        thread.start()
        thread.join()
    assert guard.failure is None


def test_a_thread_of_a_tracker_is_left_to_die(caplog: pytest.LogCaptureFixture):
    stop, package = StopRequest(print), __name__.partition(".")[0]
    with caplog.at_level(logging.WARNING), ThreadGuard(stop, bystanders={package}) as guard:
        thread = threading.Thread(target=fail, name="sender")
        thread.start()
        thread.join()
        stop.polls()()
    assert guard.failure is None
    assert caplog.messages == ["the thread sender ended with KeyError('lost'); the run goes on"]
    assert tracker_packages(" tensorboard, wandb,my.own:Tracker,none") == {"wandb", "my"}


def test_a_main_thread_that_waits_for_it_does_not_hold_the_process():
    program = (
        "import queue, threading\n"
        "from sspo_jax.distributed.interrupt import StopRequest\n"
        "from sspo_jax.runs.threads import ThreadGuard\n"
        "def fail(): raise OSError(28, 'No space left on device')\n"
        "with ThreadGuard(StopRequest(print), grace_seconds=0.2):\n"
        "    threading.Thread(target=fail, name='writer').start()\n"
        "    queue.Queue().get()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 70
    assert "the thread writer has died, and the run does not come to an end" in ended.stderr
