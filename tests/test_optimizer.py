"""The schedule of the learning rate, by hand and in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sspo_jax.config import OptimizerConfig, UpdateConfig
from sspo_jax.optimizer import learning_rate_schedule, make_optimizer, updates_done
from tests.trainer.conftest import small


@pytest.mark.parametrize(
    ("warmup", "rates"), [(0, [1, 1, 1]), (1, [1, 1, 1]), (2, [1 / 2, 1, 1]), (4, [1 / 4, 1 / 2, 3 / 4, 1, 1, 1])]
)
def test_update_k_of_the_warm_up_has_k_nths_of_the_rate(warmup, rates):
    schedule = learning_rate_schedule(dataclasses.replace(OptimizerConfig(), learning_rate=2e-3, warmup_updates=warmup))
    np.testing.assert_allclose([schedule(done) for done in range(len(rates))], 2e-3 * np.array(rates), rtol=1e-6)


def oracle(update: int, *, decay: str, warmup: int, last: int, final: float) -> float:
    """Share of the peak that the update (from 1) has."""
    if update <= warmup:
        return update / warmup
    x = min(1.0, (update - max(1, warmup)) / (last - max(1, warmup)))
    return final + (1 - final) * ((1 + math.cos(math.pi * x)) / 2 if decay == "cosine" else 1 - x)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize(("warmup", "last", "final"), [(0, 6, 0.1), (1, 2, 0.0), (3, 9, 0.5), (4, 5, 1.0)])
def test_the_rate_decays_after_the_warm_up(decay, warmup, last, final):
    settings = {"learning_rate": 2e-3, "warmup_updates": warmup, "decay": decay, "decay_updates": last}
    schedule = learning_rate_schedule(dataclasses.replace(OptimizerConfig(), final_fraction=final, **settings))
    wanted = [
        2e-3 * oracle(update, decay=decay, warmup=warmup, last=last, final=final) for update in range(1, last + 4)
    ]
    np.testing.assert_allclose([schedule(done) for done in range(last + 3)], wanted, rtol=1e-5, atol=1e-12)


def test_a_decay_ends_with_the_run_unless_told_where():
    config = dataclasses.replace(small(), steps=5, update=UpdateConfig(per_rollout=2, epochs=3))
    cosine = dataclasses.replace(config, optimizer=OptimizerConfig(decay="cosine"))
    assert cosine.settled_optimizer.decay_updates == cosine.resolved()["optimizer"]["decay_updates"] == 30
    told = dataclasses.replace(config, optimizer=OptimizerConfig(decay="cosine", decay_updates=7))
    assert told.settled_optimizer == told.optimizer
    assert config.settled_optimizer == config.optimizer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay_updates": 9}, "--optimizer.decay is none; expected linear or cosine"),
        ({"decay": "linear", "warmup_updates": 30}, "decayed at update 30 .* more than the 30 of"),
        ({"decay": "linear", "warmup_updates": 4, "decay_updates": 4}, "decayed at update 4 .* more than the 4 of"),
    ],
)
def test_a_decay_that_cannot_be_is_refused(settings, message):
    config = dataclasses.replace(small(), steps=5, update=UpdateConfig(per_rollout=2, epochs=3))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, optimizer=OptimizerConfig(**settings)).check()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(OptimizerConfig):
    """Gradient descent with momentum."""

    momentum: float = 0.9
    """Decay of the average of the gradients."""

    def transformation(self, learning_rate):
        return optax.sgd(learning_rate, momentum=self.momentum)


def test_an_optimizer_of_ones_own():
    """After the clipping, with the schedule; recorded by its name; one that counts no updates is refused."""
    config = Momentum(learning_rate=0.5, warmup_updates=2, max_grad_norm=1.0)
    optimizer, w = make_optimizer(config), {"w": jnp.zeros(4)}
    state = optimizer.init(w)
    first, state = optimizer.update({"w": jnp.full(4, 5.0)}, state, w)  # of length 10, clipped to 1
    second, state = optimizer.update({"w": jnp.zeros(4)}, state, w)
    np.testing.assert_allclose(first["w"], -0.25 * np.full(4, 0.5), rtol=1e-6)
    np.testing.assert_allclose(second["w"], -0.5 * 0.9 * np.full(4, 0.5), rtol=1e-6)
    assert updates_done(state) == 2
    recorded = dataclasses.replace(small(), optimizer=config).resolved()["optimizer"]
    assert (recorded["optimizer"], recorded["momentum"]) == ("Momentum", 0.9)
    assert "optimizer" not in small().resolved()["optimizer"]
    with pytest.raises(ValueError, match="no `count` of its updates"):
        updates_done(optax.sgd(0.1).init(w))

    class Wrong(OptimizerConfig):
        def transformation(self, learning_rate):
            return learning_rate

    with pytest.raises(TypeError, match=r"Wrong\.transformation returned .*expected an optax"):
        make_optimizer(Wrong())


def test_the_first_moment_in_bfloat16():
    """Half its bytes; the update differs by its rounding and no more."""
    w, gradient = {"w": jnp.ones(64)}, {"w": jnp.linspace(-1, 1, 64)}
    updates = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, first_moment=dtype, max_grad_norm=100.0))
        updates[dtype], state = optimizer.update(gradient, optimizer.init(w), w)
        held = {str(x.dtype) for x in jax.tree.leaves(state) if x.shape == (64,)}
        assert held == {"float32"} | {dtype}
        assert updates_done(state) == 1
    np.testing.assert_allclose(updates["bfloat16"]["w"], updates["float32"]["w"], rtol=2**-7)
