"""Worker processes: killed when late, replaced, never orphaned, usable from anywhere."""

import asyncio
import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from sspo_jax.checker import Verifier, verify
from sspo_jax.checker.workers.pool import WorkerDied, WorkerError

HANGS = r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^2}}"  # sympy works on it for longer than any test
NEEDS_A_WORKER = r"\boxed{\lim_{x \to 0} \frac{\sin x}{x}}"


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, timeout_seconds=20, cache_size=0) as verifier:
        assert verifier.verify(NEEDS_A_WORKER, "1").status == "correct"
        yield verifier


def call(verifier: Verifier, function: str, *arguments: object, timeout_seconds: float = 20.0, **keywords: object):
    return verifier.call(function, *arguments, timeout_seconds=timeout_seconds, **keywords)


def test_a_late_worker_is_killed_and_its_neighbours_go_on():
    with Verifier(workers=2, timeout_seconds=4.0, cache_size=0) as verifier:  # a busy machine may hold a worker up
        call(verifier, "math:sqrt", 2).result()
        started = time.monotonic()
        responses = [HANGS if index % 10 == 3 else NEEDS_A_WORKER for index in range(20)]
        statuses = [verdict.status for verdict in verifier.verify_batch(responses, ["1"] * 20)]
        assert statuses == ["timeout" if index % 10 == 3 else "correct" for index in range(20)]
        assert time.monotonic() - started < 20  # two that hang, at most one after the other; without a limit, hours


def test_a_verdict_comes_within_the_limit(verifier: Verifier):
    late = Verifier(timeout_seconds=1.0, cache_size=0)
    late.pool = verifier.pool
    started = time.monotonic()
    assert late.verify(HANGS, "1").status == "timeout"
    assert time.monotonic() - started < 1.5


def test_waiting_for_a_free_worker_counts_for_a_single_check():
    with Verifier(workers=1, timeout_seconds=1.0, cache_size=0) as verifier:
        call(verifier, "math:sqrt", 2).result()
        call(verifier, "time:sleep", 5)
        started = time.monotonic()
        assert verifier.verify(NEEDS_A_WORKER, "1").status == "timeout"
        assert time.monotonic() - started < 7  # the sleeper itself is not bounded by the check's limit
        verifier.pool.kill()


def test_the_seconds_of_a_verdict_leave_out_the_queue():
    with Verifier(workers=1, timeout_seconds=10, cache_size=0) as verifier:
        verifier.submit(NEEDS_A_WORKER, "1").result()  # loads what the check takes
        call(verifier, "time:sleep", 3)
        started = time.monotonic()
        verdict = verifier.submit(NEEDS_A_WORKER, "1").result()
        waited = time.monotonic() - started
        assert verdict.status == "correct"
        assert verdict.seconds < waited - 1


@pytest.mark.parametrize("response", ["\n" * 3000 + "word", HANGS, "x " * 100_000, NEEDS_A_WORKER], ids=range(4))
def test_a_short_limit_holds_even_while_the_processes_start(response: str):
    late = []
    for _ in range(3):  # late once may be the other jobs of the machine
        with Verifier(workers=1, timeout_seconds=0.2, cache_size=0) as verifier:
            started = time.monotonic()
            status = verifier.verify(response, "1").status
            late.append(time.monotonic() - started)
            verifier.pool.kill()
        assert status in ("unparsed", "timeout", "correct")
        if late[-1] < 0.7:
            return
    pytest.fail(f"{late} s at a limit of 0.2 s")


def test_a_batch_that_ends_in_newlines_is_fast(verifier: Verifier):
    started = time.process_time()
    verdicts = verifier.verify_batch(["We add." + "\n" * 3000 + "So"] * 64, ["1"] * 64)
    assert time.process_time() - started < 1
    assert {verdict.status for verdict in verdicts} == {"unparsed"}


def test_the_memory_of_a_worker_is_bounded():
    with Verifier(workers=1, memory_limit_bytes=1 << 30) as verifier:
        with pytest.raises((WorkerError, WorkerDied), match=r"MemoryError|ended"):
            call(verifier, "builtins:bytearray", 3 << 30).result()
        assert call(verifier, "builtins:len", [1, 2]).result() == 2


def test_a_worker_that_dies_is_replaced(verifier: Verifier):
    with pytest.raises(WorkerDied):
        call(verifier, "os:_exit", 3).result()
    assert call(verifier, "builtins:abs", -2).result() == 2


def test_an_error_of_a_function_comes_back_with_its_traceback(verifier: Verifier):
    with pytest.raises(WorkerError, match="ZeroDivisionError") as caught:
        call(verifier, "operator:truediv", 1, 0).result()
    assert "Traceback" in caught.value.traceback
    with pytest.raises(WorkerError, match="no function_that_is_not_there"):
        call(verifier, "math:function_that_is_not_there").result()
    with pytest.raises(TimeoutError):
        call(verifier, "time:sleep", 10, timeout_seconds=0.3).result()


def test_from_many_threads(verifier: Verifier):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(verifier.verify, NEEDS_A_WORKER, gold) for gold in ["1", "2"] * 20]
        assert [future.result().status for future in futures] == ["correct", "wrong"] * 20


def test_from_asyncio(verifier: Verifier):
    async def main() -> list[str]:
        waiting = [asyncio.wrap_future(verifier.submit(NEEDS_A_WORKER, gold)) for gold in ["1", "2", "1"]]
        return [verdict.status for verdict in await asyncio.gather(*waiting)]

    assert asyncio.run(main()) == ["correct", "wrong", "correct"]


def test_the_module_function_from_a_thread_that_is_not_the_main_one():
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(verify(NEEDS_A_WORKER, "1", timeout_seconds=30).status))
    thread.start()
    thread.join()
    assert found == ["correct"]


def test_verdicts_keep_the_order_of_the_batch(verifier: Verifier):
    responses = [NEEDS_A_WORKER if index % 3 == 0 else rf"\boxed{{{index}}}" for index in range(30)]
    golds = ["1" if index % 3 == 0 else str(index) for index in range(30)]
    verdicts = verifier.verify_batch(responses, golds)
    assert [verdict.gold for verdict in verdicts] == golds
    assert {verdict.status for verdict in verdicts} == {"correct"}
    with pytest.raises(ValueError, match="30 responses and 29 golds"):
        verifier.verify_batch(responses, golds[1:])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="workers is 0"):
        Verifier(workers=0)
    with pytest.raises(ValueError, match="timeout_seconds is 0"):
        Verifier(timeout_seconds=0)
    with pytest.raises(TypeError, match="tolerence"):
        Verifier(relative_tolerence=0.1)
    with pytest.raises(ValueError, match="relative_tolerance is -1"):
        Verifier(relative_tolerance=-1)


def run_script(folder: pathlib.Path, text: str, **options: object) -> "subprocess.Popen[str]":
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def children_of(pid: int) -> list[int]:
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found += [int(entry.name), *children_of(int(entry.name))]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_a_killed_parent(tmp_path: pathlib.Path):
    process = run_script(
        tmp_path,
        rf"""
        from sspo_jax.checker import Verifier
        with Verifier(workers=2, timeout_seconds=60) as verifier:
            verifier.call("math:sqrt", 2.0, timeout_seconds=30.0).result()
            futures = [verifier.submit({HANGS!r}, "1") for _ in range(2)]
            print("busy", flush=True)
            futures[0].result()
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    time.sleep(1.0)
    children = children_of(process.pid)
    assert len(children) == 3  # the one that forks and two workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in children):
        time.sleep(0.05)
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []


def test_the_main_module_is_not_imported_again_and_jax_not_at_all(tmp_path: pathlib.Path):
    process = run_script(
        tmp_path,
        rf"""
        import pathlib, sys, time
        with open({str(tmp_path / "imports")!r}, "a") as file:
            file.write("imported\n")
        from sspo_jax.checker import Verifier, verify
        started = time.perf_counter()
        print(verify({NEEDS_A_WORKER!r}, "1", timeout_seconds=60).status)
        verifier = Verifier(workers=1)
        loaded = verifier.call("sys:modules.__contains__", "jax", timeout_seconds=60.0).result()
        print(loaded, "jax" in sys.modules, "sympy" in sys.modules)
        """,
    )
    output, _ = process.communicate(timeout=120)
    assert output.split() == ["correct", "False", "False", "False"]
    assert (tmp_path / "imports").read_text() == "imported\n"


def test_next_to_jax(tmp_path: pathlib.Path):
    process = run_script(
        tmp_path,
        rf"""
        import jax, jax.numpy as jnp
        total = jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64)))
        from sspo_jax.checker import verify
        print(verify({NEEDS_A_WORKER!r}, "1", timeout_seconds=60).status, float(total))
        """,
    )
    output, _ = process.communicate(timeout=120)
    assert output.split() == ["correct", "262144.0"]


def test_importing_the_checker_is_cheap_and_loads_neither_jax_nor_sympy():
    code = "import sys, time; t = time.process_time(); import sspo_jax.checker; s = time.process_time() - t; "
    code += "print(s, [name for name in ('jax', 'sympy', 'numpy', 'mpmath') if name in sys.modules])"
    seconds, loaded = min(
        subprocess.check_output([sys.executable, "-c", code], text=True).split(" ", 1) for _ in range(3)
    )
    assert float(seconds) < 0.3
    assert loaded.strip() == "[]"
