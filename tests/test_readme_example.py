"""The Python block of the README runs as it stands, and trains; what the README names is there."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"<!-- loss-example -->\n```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs_and_learns(capsys):
    space: dict = {}
    exec(compile(EXAMPLE, "README.md", "exec"), space)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert "'ratio/mean': 1.0," in printed[0]  # of equal policies
    assert "'ratio/mean': 1.0," not in printed[-1]
    tokens, log_probs = space["tokens"], space["log_probs"]
    change = log_probs(space["params"], tokens) - log_probs(jnp.zeros((16, 16)), tokens)
    rewards = np.asarray((tokens == 7).mean(1))
    best, worst = rewards == rewards.max(), rewards == rewards.min()
    assert change[best].mean() > 0.01 > -0.01 > change[worst].mean()


def test_the_example_is_short():
    assert sum(bool(line.strip()) for line in EXAMPLE.splitlines()) <= 32


def test_paths_and_links_exist():
    paths = re.findall(r"\]\(([\w./]+)\)", README)
    rows = [row.split("|")[1] for row in README.splitlines() if row.startswith(("| `sspo_jax", "| `experiments"))]
    for row in rows:
        first, *others = re.findall(r"`([\w./]+)`", row)
        paths += [first, *(f"sspo_jax/{name}" for name in others)]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_commands_are_those_of_the_command_line():
    from sspo_jax.commands.main import COMMANDS

    (row,) = [line for line in README.splitlines() if line.startswith("| `sspo_jax/commands/`")]
    assert {name.removeprefix("sspo ") for name in re.findall(r"`([a-z][a-z -]*)`", row)} == set(COMMANDS)
