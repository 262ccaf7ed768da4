"""The command line: `sspo COMMAND ...`. Each command imports only what it needs."""

import dis
import importlib
import os
import select
import sys
from collections.abc import Sequence

from sspo_jax.files import is_disk_full
from sspo_jax.host_memory import keep_freed_memory

COMMANDS = {
    "train": ("sspo_jax.commands.train:main", "train an experiment, or resume its run"),
    "evaluate": ("sspo_jax.commands.evaluate:main", "score a checkpoint or a run on problem sets"),
    "verify": ("sspo_jax.commands.verify:main", "judge a response, or a file of them"),
    "segment": ("sspo_jax.commands.segment:main", "show how texts are cut into subsentences"),
    "export": ("sspo_jax.commands.export:main", "write a run's policy as a Hugging Face checkpoint"),
    "plan": ("sspo_jax.commands.plan:main", "does a run fit on TPUs that are not here"),
    "data": ("sspo_jax.commands.data:main", "published sets by name; overlap of sets; audit of golds"),
    "serve": ("sspo_jax.commands.serve:main", "an OpenAI-compatible server for a checkpoint"),
    "warm-start": ("sspo_jax.commands.warm_start:main", "train an experiment's warm start anew; is it the shipped one"),
    "study": ("sspo_jax.commands.study:main", "many runs that answer a question, with intervals over seeds"),
    "report": ("sspo_jax.commands.report:main", "a run, or several, as one HTML page"),
    "inspect": ("sspo_jax.commands.inspect:main", "what a run directory holds and how it went"),
    "cache": ("sspo_jax.commands.cache:main", "what is kept between runs; empty it"),
}

PACKAGES = {
    "checker": ("mpmath", "rich", "sympy", "tyro"),
    "train": (
        *("flax", "grain", "jinja2", "ml_dtypes", "optax", "orbax", "safetensors", "tensorboardX", "tokenizers"),
        "transformers",
    ),
    "serve": ("h11", "starlette", "uvicorn"),
    "tfds": ("importlib_resources", "tensorflow_datasets"),
}
"""Extra of this distribution to the names under which its packages are imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (2: the command line is wrong, 1: it could not be done, 75: not now).

    Without `arguments` the process is ours: the command line is read, freed memory is kept, and modules of the working
    directory can be imported (after all others, so that they hide none), as `python -m sspo_jax` lets them.
    """
    if arguments is None:
        sys.path.append(os.getcwd())
        keep_freed_memory()
        pass_over_closed_loops()
        arguments = sys.argv[1:]
    code = 141  # as of a process that SIGPIPE ended
    try:
        code = _run(list(arguments))
    except BrokenPipeError:
        if not _is_unread():
            raise
    if _is_unread():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written
        return 141
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from sspo_jax import __version__

        print(f"sspo_jax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"sspo: no command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    _quiet_libraries()
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(rest)
    except (ValueError, OSError, ArithmeticError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            raise
        if os.environ.get("SSPO_TRACEBACK") or not is_explained(error):
            raise
        print(f"sspo {name}: {described(error)}", file=sys.stderr)
        is_temporary = isinstance(error, ConnectionError) or is_disk_full(error)
        return 75 if is_temporary else 1  # 75: it may be tried again
    except ModuleNotFoundError as error:
        if os.environ.get("SSPO_TRACEBACK") or (extra := missing_extra(name, error)) is None:
            raise
        print(f"sspo {name}: needs {error.name}: pip install 'sspo-jax[{extra}]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sspo {name}: interrupted", file=sys.stderr)
        return 130


def described(error: Exception) -> str:
    """The text of an error; where the system made it, the file and what is wrong with it, without a number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _is_unread() -> bool:
    """Whether nobody reads the standard output any more, as after `| head`."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, closed, or an object of a caller's
        return False
    watched = select.poll()
    watched.register(output, 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def missing_extra(command: str, error: ModuleNotFoundError) -> str | None:
    """The extra that brings what a command could not import; None for a module that no extra brings."""
    package = (error.name or "").partition(".")[0]
    of_package = [extra for extra, packages in PACKAGES.items() if package in packages]
    if not of_package or of_package == ["tfds"]:
        return of_package[0] if of_package else None
    return {"verify": "checker", "serve": "serve"}.get(command, "train")


def pass_over_closed_loops() -> None:
    """Says nothing of what the reads of a damaged checkpoint still want when it has been given up for another one.

    Orbax closes its event loop at the first error; the reads that go on meet that, and Python would print a traceback
    for each, after the warning that says which checkpoint is damaged.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


def is_explained(error: Exception) -> bool:
    """Whether an error was raised on purpose, with a text for the person at the terminal; anything else is a bug.

    Files that cannot be read or written explain themselves. Of other errors those do that a `raise` statement of this
    package, or of an experiment file, made; one that came out of an expression, here or in a library, needs its
    traceback to be understood. The instruction tells the two apart, so no source has to be at hand.
    """
    if isinstance(error, OSError):
        return True
    last = error.__traceback__
    if last is None:
        return False
    while last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "")
    is_ours = module.partition(".")[0] == "sspo_jax" or module.startswith("sspo_experiments_")
    return is_ours and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _quiet_libraries() -> None:
    """No advice of libraries between the lines of a run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _usage() -> str:
    lines = ["usage: sspo COMMAND ... (`sspo COMMAND --help` for its options)", ""]
    lines += [f"  {name:<10} {help_text}" for name, (_, help_text) in COMMANDS.items()]
    lines += [
        "",
        "To begin: `sspo train hello` trains a tiny model in a minute on a CPU, `sspo train arithmetic_tiny` in some.",
    ]
    lines += ["SSPO_TRACEBACK=1 in the environment shows where an error was raised."]
    return "\n".join(lines)
