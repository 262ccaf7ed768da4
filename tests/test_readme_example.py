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
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 100)
    params = {"table": jnp.zeros((400,))}

    def log_probs(params, tokens):
        return jax.nn.log_softmax(params["table"])[tokens]

    optimizer = optax.sgd(0.1)
    segmenter = Segmenter.from_tokenizer(tokenizer, cache_dir=tmp_path)
    space = {"log_probs": log_probs, "optimizer": optimizer, "segmenter": segmenter}
    exec(compile(SNIPPET.read_text(encoding="utf-8"), str(SNIPPET), "exec"), space)
    batch = {
        "old_logprobs": log_probs(params, tokens),
        "advantages": jnp.ones((2, 16)),
        "mask": jnp.ones((2, 16), bool),
        "entropies": jnp.ones((2, 16)),
    }
    new, _, metrics = space["step"](params, optimizer.init(params), tokens, batch)
    np.testing.assert_allclose(metrics["loss/policy"].value, -1, rtol=1e-6)
    assert metrics["ratio/mean"].value == 1
    # The sampled tokens became likelier.
    assert float(jnp.mean(log_probs(new, tokens) - log_probs(params, tokens))) > 0


def test_it_is_ten_lines():
    assert sum(bool(line.strip()) for line in SNIPPET.read_text(encoding="utf-8").splitlines()) == 10


def test_readme_shows_it():
    assert SNIPPET.read_text(encoding="utf-8").strip() in (ROOT / "README.md").read_text(encoding="utf-8")
