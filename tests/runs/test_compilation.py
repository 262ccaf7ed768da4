"""Programs compiled beside other work are there when they are called."""

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from sspo_jax.runs.compilation import CompileAhead
from tests.trainer.conftest import SMALL

HIT, COMPILED = "/jax/compilation_cache/cache_hits", "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def events() -> Iterator[list[str]]:
    """Names of JAX's events, as they come."""
    seen: list[str] = []
    is_open = [True]

    def listen(event: str, *_: object, **__: object) -> None:
        if is_open:
            seen.append(event)

    jax.monitoring.register_event_listener(listen)
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    is_open.clear()


def of_its_own(number: float):
    """A program that no other test has compiled in this process."""

    @jax.jit
    def function(x: jax.Array) -> jax.Array:
        return jnp.tanh(x * number) @ x.T

    return function


def test_what_was_compiled_ahead_is_not_compiled_by_its_call(events: list[str]):
    x = jnp.ones((3, 3))
    function = of_its_own(0.731)
    events.clear()
    CompileAhead(lambda: [function.trace(x)]).wait()
    assert events.count(COMPILED) == 1
    events.clear()
    function(x)
    assert events.count(COMPILED) == events.count(HIT)  # nothing, or what the cache had


def test_an_error_is_left_to_the_call_and_a_stop_begins_nothing_more():
    begun, may_go = [], threading.Event()

    def traced():
        begun.append("first")
        may_go.wait()
        yield of_its_own(0.37).trace(jnp.ones((2, 2)))
        begun.append("second")
        raise RuntimeError("no such program")

    ahead = CompileAhead(traced)
    may_go.set()
    ahead.wait()
    assert begun == ["first", "second"]
    may_go.clear()
    begun.clear()
    stopped = CompileAhead(traced)
    threading.Timer(0.05, may_go.set).start()
    stopped.stop()
    assert begun == ["first"]


def test_without_a_cache_to_find_it_in_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        begun = []
        CompileAhead(lambda: begun or begun.append("first") or []).wait()
        assert not begun
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


RUN = """
import sys
from sspo_jax.commands.main import main
from sspo_jax.runs.compilation import CompileAhead
from tests.trainer.conftest import SMALL

wait = CompileAhead.wait

def told(self):
    wait(self)
    print("waited for what is compiled ahead", file=sys.stderr, flush=True)

CompileAhead.wait = told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_programs_of_the_updates_are_compiled_ahead_and_once(tmp_path: pathlib.Path):
    """In a process of its own: shapes instead of arrays do not pass the annotations that tests check."""
    arguments = ["train", str(SMALL), "--steps", "1", "--run-dir", str(tmp_path / "run"), "--evaluation.sets", "none"]
    environment = {**os.environ, "JAX_LOG_COMPILES": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    environment |= {"SSPO_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stderr.partition("waited for what is compiled ahead")
    for program in ("_micro_batch", "_apply_update", "_zero_gradients", "_segment", "denominator"):
        assert before.count(f"Finished XLA compilation of jit({program})") == 1
        assert f"Finished XLA compilation of jit({program})" not in after
