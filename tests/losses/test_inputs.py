"""What a loss says of arrays that do not fit, and the examples of docs/own_loop.md, which run as they stand."""

import inspect
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax import losses
from sspo_jax.losses.ratios import check_shapes
from sspo_jax.subsentences import Segmenter
from sspo_jax.types import Max, Mean

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_loop.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"## ([\w ]+)\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
ONES = jnp.ones((2, 6))
OF_GRPO = ("dapo_loss", "dr_grpo_loss")  # they call grpo_loss
FUNCTIONS = [name for name in losses.__all__ if name.endswith("_loss") and name not in OF_GRPO]


def untyped(name):
    """A loss as users call it: without the annotations that the tests check."""
    return inspect.unwrap(getattr(losses, name))


def arguments(name, **changed):
    """Arrays of ones for a loss, but for those given."""
    arrays = {"logprobs": 0 * ONES, "old_logprobs": 0 * ONES, "advantages": ONES, "mask": ONES > 0} | changed
    if "subsentence_ids" in inspect.signature(getattr(losses, name)).parameters:
        arrays["subsentence_ids"] = jnp.zeros(arrays["logprobs"].shape, jnp.int32)
    return arrays


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_mask_of_numbers_is_refused(function):
    kind = "int32" if function == "grpo_loss" else "float32"
    with pytest.raises(ValueError, match=rf"mask has type {kind}, expected bool, .*: mask > 0"):
        untyped(function)(**arguments(function, mask=ONES.astype(kind)))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("name", "time"), [("logprobs", 5), ("mask", 5), ("old_logprobs", 7)])
def test_arrays_one_position_apart(function, name, time):
    """Also where only the log-probs of the policy are short, of which the error speaks as the measure."""
    array = arguments(function)[name]
    array = jnp.pad(array, ((0, 0), (0, 1))) if time == 7 else array[:, :time]
    with pytest.raises(ValueError, match=r"one position apart: .*logprobs\[:, t\].*with \[:, 1:\]"):
        untyped(function)(**arguments(function, **{name: array}))


def test_the_advice_mends_it():
    short = {"logprobs": 0 * ONES[:, 1:]}
    rest = {name: array[:, 1:] for name, array in arguments("grpo_loss").items() if name not in short}
    assert float(losses.grpo_loss(**short, **rest)[0]) == pytest.approx(-1)


def test_one_number_a_row_and_other_shapes():
    with pytest.raises(
        ValueError, match=r"shape \(2,\), expected \(2, 6\).*broadcast_to\(advantages\[:, None\], \(2, 6\)\)"
    ):
        check_shapes(ONES, advantages=jnp.ones(2))
    with pytest.raises(ValueError, match=r"shape \(2, 1\), expected \(2, 6\).*broadcast_to\(advantages, \(2, 6\)\)"):
        check_shapes(ONES, advantages=jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="subsentence_ids has type float32, expected integers"):
        check_shapes(ONES, subsentence_ids=ONES)
    for shape in [(2, 4), (3, 6), (3, 5), (6,), (2, 6, 1)]:
        with pytest.raises(ValueError, match=r"shape \(.*\), expected \(2, 6\), the shape of logprobs$"):
            check_shapes(ONES, weights=jnp.ones(shape))


def test_the_segmenter_refuses_a_mask_of_numbers():
    segmenter = Segmenter(table=None, rule="token")
    with pytest.raises(ValueError, match="mask has type float32, expected bool"):
        inspect.unwrap(Segmenter.__call__)(segmenter, jnp.zeros((2, 6), jnp.int32), ONES)


@pytest.mark.parametrize("kind", [float, jnp.float32, np.asarray], ids=["float", "jax", "numpy"])
def test_a_metric_is_a_number(kind):
    assert float(Mean(kind(6.0), kind(4.0))) == 1.5
    assert float(Mean(kind(6.0), kind(0.0))) == 0.0
    assert float(Max(kind(6.0), kind(4.0))) == 6.0
    assert f"{float(Max(kind(6.0), kind(4.0))):.1f}" == "6.0"


RUN = """
import pathlib, re
for source in re.findall(r"```python\\n(.*?)```", pathlib.Path("docs/own_loop.md").read_text("utf-8"), re.DOTALL):
    space = {}
    exec(compile(source, "docs/own_loop.md", "exec"), space)
    change = space["log_probs"](space["model"], space["tokens"]) - space["batch"]["old_logprobs"]
    change, advantages = change[:, 3:].mean(1), space["advantages"]
    print("change", change[advantages.argmax()], change[advantages.argmin()])
"""


@pytest.mark.slow
def test_the_examples_run_and_learn():
    """Equal policies at first, and what was rewarded grows likelier. As users run them, without run-time types."""
    assert [name for name, _ in EXAMPLES] == ["Flax NNX", "Equinox"]
    result = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    for *printed, change in (lines[:5], lines[5:]):
        assert [row[0] == "1.0" for row in printed] == [True, False, False, False]
        assert float(change[1]) > 0.01 > -0.01 > float(change[2])
