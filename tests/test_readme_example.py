"""The example of the loss in someone else's training step runs, and the README shows it as it is."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from test_subsentences import tokenizer  # noqa: F401  (a fixture)

from sspo_jax.subsentences import Segmenter

ROOT = pathlib.Path(__file__).parent.parent
SNIPPET = ROOT / "docs" / "snippets" / "your_training_step.py"


def test_the_example_runs(tokenizer, tmp_path):  # noqa: F811
    space = {}
    exec(compile(SNIPPET.read_text(encoding="utf-8"), str(SNIPPET), "exec"), space)
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 100)
    params = {"table": jnp.zeros((400,))}

    def apply(params, tokens):
        return jax.nn.log_softmax(params["table"])[tokens]

    optimizer = optax.sgd(0.1)
    batch = {
        "tokens": tokens,
        "mask": jnp.ones((2, 16), bool),
        "old_logprobs": apply(params, tokens),
        "advantages": jnp.ones((2, 16)),
        "entropies": jnp.ones((2, 16)),
    }
    step = space["make_step"](apply, optimizer, Segmenter.from_tokenizer(tokenizer, cache_dir=tmp_path))
    new, _, loss, metrics = step(params, optimizer.init(params), batch)
    np.testing.assert_allclose(loss, -1, rtol=1e-6)
    assert metrics["ratio/mean"].value == 1
    # The sampled tokens became likelier.
    assert float(jnp.mean(apply(new, tokens) - apply(params, tokens))) > 0


def test_readme_shows_it():
    readme = ROOT / "README.md"
    if readme.exists() and "make_step" in readme.read_text(encoding="utf-8"):
        assert SNIPPET.read_text(encoding="utf-8").strip() in readme.read_text(encoding="utf-8")
