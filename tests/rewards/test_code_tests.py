"""Programs of the policy against tests, hostile ones among them: each does what it can to get out."""

import os
import pathlib
import signal
import time

import pytest

from sspo_jax.checker import Verifier
from sspo_jax.rewards import CodeTests, RewardConfig, RewardError, Runner, jail
from sspo_jax.rewards.code_tests import program_of, score
from sspo_jax.rewards.sandbox import Limits, run_program

pytestmark = pytest.mark.skipif(bool(jail.missing()), reason=f"no isolation here: {'; '.join(jail.missing())}")

QUICK = Limits(seconds=20.0)
SETTINGS = {"limits": QUICK, "tests": "tests", "most": 20, "partial": False}
SQUARE = "Squares it.\n```python\ndef square(x):\n    return x * x\n```\nDone."
ADD = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
PAIRS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", " 7 \n".strip()]}


@pytest.mark.parametrize(
    ("response", "tests", "partial", "expected"),
    [
        (SQUARE, "assert square(3) == 9", False, 1.0),
        (SQUARE, ["assert square(3) == 9", "assert square(2) == 5"], False, 0.0),
        (SQUARE, ["assert square(3) == 9", "assert square(2) == 5"], True, 0.5),
        (SQUARE, '["assert square(3) == 9"]', False, 1.0),
        ("<think>```python\nx\n```</think>" + ADD, PAIRS, False, 1.0),
        (ADD.replace("a + b", "a"), PAIRS, True, 0.0),
        ("print(int(input()[0]) + 2)", {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", "7"]}, True, 0.5),
        ("I do not know", "assert True", False, 0.0),
        (SQUARE, None, False, None),
        ("import os; os._exit(0)", "assert False", False, 0.0),
        ("raise SystemExit(0)", "assert False", False, 0.0),
    ],
)
def test_the_tests_decide(response: str, tests: object, partial: bool, expected: float | None):
    assert score(response, {"tests": tests}, **{**SETTINGS, "partial": partial}) == expected


def test_tests_of_another_form_are_refused():
    for tests in (3, {"inputs": ["1"], "outputs": []}, {"fn_name": "f", "inputs": ["1"], "outputs": ["2"]}, [1]):
        with pytest.raises(ValueError, match=r"extra\.tests of the problem is .*; expected Python statements"):
            score(SQUARE, {"tests": tests}, **SETTINGS)


def test_the_last_block_is_the_program():
    assert program_of("```python\n1\n```\n```py\n2\n```") == "2\n"
    assert program_of("```\n3") == "3"
    assert program_of("4") == "4"


HOSTILE = {
    "a fork bomb": ("import os\nwhile True:\n    os.fork()", "PermissionError"),
    "processes by the library": ("import subprocess\nsubprocess.run(['/bin/true'])", "PermissionError"),
    "its parent": ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
    "every process": ("import os\nos.kill(-1, 9)", "PermissionError"),
    "a file of the machine": ("print(open('/etc/passwd').read())", "Permission denied"),
    "a folder of the machine": ("import os\nprint(os.listdir('/'))", "Permission denied"),
    "the environment of its parent": ("import os\nprint(open(f'/proc/{os.getppid()}/environ').read())", "denied"),
    "a file of its own": ("open('notes', 'w').write('x')", "Permission denied"),
    "modes": ("import os\nos.chmod('program.py', 0)", "PermissionError"),
    "the network": ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    "a local socket": ("import socket\nsocket.socketpair()", "PermissionError"),
    "memory": ("x = bytearray(4 << 30)", "MemoryError"),
    "its own limits": ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))", "Error"),
    "a call of the kernel": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.unshare(0x10000000) == 0, ctypes.get_errno()",
        "AssertionError: 1",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_held(name: str):
    program, message = HOSTILE[name]
    result = run_program(program, limits=QUICK)
    assert not result.is_clean
    assert message in result.errors.splitlines()[-1]


def test_secrets_beside_it_stay_secret(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """What the run may read and the policy's program may not; links do not help, nor does the environment."""
    secret = tmp_path / "secret"
    secret.write_text("the gold answer")
    monkeypatch.setenv("API_KEY", "sesame")
    for program in (f"print(open({str(secret)!r}).read())", f"import os\nos.symlink({str(secret)!r}, 'link')"):
        result = run_program(program, limits=QUICK)
        assert not result.is_clean
        assert "the gold answer" not in result.output
    assert "sesame" not in run_program("import os\nprint(dict(os.environ))", limits=QUICK).output


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: print('x' * 1000)", "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
        ("while True: pass", "time"),
        ("import time\ntime.sleep(100)", "time"),
        ("import os\nos.close(1)\nos.close(2)\nwhile True: pass", "time"),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", "time"),
    ],
)
def test_a_program_without_end_is_ended(program: str, reason: str):
    started = time.monotonic()
    result = run_program(program, limits=Limits(seconds=1.5))
    assert result.reason == reason
    assert result.status == -signal.SIGKILL
    assert time.monotonic() - started < 15


def test_a_program_may_compute_and_have_threads():
    program = (
        "import sys, threading, collections\nfound = []\n"
        "thread = threading.Thread(target=lambda: found.append(sum(range(1000))))\n"
        "thread.start(); thread.join()\nprint(found, sys.stdin.read())"
    )
    result = run_program(program, "x" * 200_000, limits=QUICK)
    assert result.is_clean
    assert result.output.startswith("[499500] xxx")
    assert len(result.output) > 200_000


def test_it_is_a_reward_of_a_run(monkeypatch: pytest.MonkeyPatch):
    with Verifier(workers=1) as verifier:
        runner = Runner(CodeTests(weight=2.0, seconds=20.0), verifier, 2 << 30)
        assert set(runner.wanted.names) == {"response", "extra"}
        call = runner.submit({"response": ADD, "extra": {"tests": PAIRS}})
        assert runner.outcomes(call) == [({"": 1.0}, False)]
    assert RewardConfig(user=(CodeTests(),)).named_terms().keys() == {"correctness", "code_tests"}
    monkeypatch.setattr(jail, "missing", lambda: ["files: the kernel has no Landlock"])
    with pytest.raises(RewardError, match=r"cannot confine them here. files: the kernel has no Landlock. Run on Linux"):
        RewardConfig(user=(CodeTests(),)).check()
    assert os.path.exists("/etc/passwd")
