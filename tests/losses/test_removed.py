"""What the clip takes away, against plain loops over tokens and units, for every objective."""

import dataclasses

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_loss_properties import OBJECTIVES, assert_equal_metrics, entropy_statistics, train_batch

from sspo_jax import losses
from sspo_jax.runs.metrics_file import host_value

LEVELS = ("token", "subsentence", "response")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def share(part: int | float, whole: int | float) -> float:
    return part / whole if whole else 0.0


def expected(arrays: dict, decisions: dict[str, np.ndarray]) -> dict[str, float]:
    """By loops; `decisions` are those of the objective, which test_per_token compares with its loss."""
    mask, segments = arrays["mask"], arrays["segment_ids"]
    labels = {level: oracle.labels_of(level, mask, arrays["subsentence_ids"]) for level in LEVELS}
    logs = {
        level: oracle.unit_log_ratios(arrays["logprobs"], arrays["old_logprobs"], mask, labels[level], segments)
        for level in LEVELS
    }
    places = [place for place in np.argwhere(mask).tolist() if arrays["advantages"][tuple(place)] != 0]
    counted = [tuple(place) for place in places]

    def beyond(ratio: float, place: tuple, low: float, high: float) -> bool:
        advantage = arrays["advantages"][place]
        return ratio > high if advantage > 0 else ratio < low

    extreme = {place for place in counted if beyond(np.exp(logs["token"][place]), place, 0.8, 1.2)}
    moderate = set(counted) - extreme
    gone = {place for place in counted if decisions["clipped"][place] != 0}
    mass = {place: abs(arrays["advantages"][place] * logs["token"][place]) for place in counted}
    found = {
        "clip/extreme_fraction": share(len(extreme), len(counted)),
        "clip/extreme_removed": share(len(gone & extreme), len(extreme)),
        "clip/moderate_removed": share(len(gone & moderate), len(moderate)),
        "clip/precision": share(len(gone & extreme), len(gone)),
        "clip/mass_removed": share(sum(mass[place] for place in gone), sum(mass.values())),
    }
    units = {"subsentence": oracle.units(mask, arrays["subsentence_ids"], segments)}
    units["response"] = oracle.responses(mask, segments)
    for unit, members in units.items():
        touched = [any(tuple(place) in gone for place in own) for own in members]
        found[f"clip/{unit}_fraction"] = share(sum(touched), len(touched))
    for level in LEVELS:
        bounds = decisions["low"], decisions["high"]
        removed = {
            place for place in counted if beyond(np.exp(logs[level][place]), place, bounds[0][place], bounds[1][place])
        }
        found[f"clip/{level}_extreme_removed"] = share(len(removed & extreme), len(extreme))
        found[f"clip/{level}_moderate_removed"] = share(len(removed & moderate), len(moderate))
        found[f"counterfactual/{level}_clip_fraction"] = share(len(removed), int(mask.sum()))
        found[f"ratio/{level}_max"] = float(np.exp(logs[level][mask]).max())
    return found


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("seed", [0, 1])
def test_against_loops(name: str, seed: int):
    objective = OBJECTIVES[name].with_budget(20, 50)
    arrays = batches.make(seed, scale=0.3, is_packed=bool(seed % 2))
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    metrics = losses.removed(objective, logprobs, batch)
    decisions = {key: np.asarray(value) for key, value in losses.per_token(objective, logprobs, batch).items()}
    arrays["advantages"] = np.asarray(objective.prepared(batch).advantages)  # its own, of an objective that has some
    values = {key: host_value(jax.tree.map(float, metric)) for key, metric in metrics.items()}
    assert values == pytest.approx(expected(arrays, decisions), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("objective", "level"),
    [
        (losses.Grpo(), "token"),
        (losses.Sspo.calibrated(), "subsentence"),
        (losses.Sspo(ratio_level="response"), "response"),
        (losses.Gspo(), "response"),
    ],
)
def test_at_its_own_level_the_bounds_clip_what_the_objective_clips(objective: losses.Objective, level: str):
    arrays = batches.make(4, scale=0.3, is_packed=True)
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    metrics, (_, own) = losses.removed(objective, logprobs, batch), objective(logprobs, batch)
    assert metrics[f"counterfactual/{level}_clip_fraction"].value == own["ratio/clip_fraction"].value > 0
    assert metrics[f"ratio/{level}_max"].value == own["ratio/max"].value
    for kind in ("extreme", "moderate"):
        assert metrics[f"clip/{level}_{kind}_removed"].value == metrics[f"clip/{kind}_removed"].value


def test_an_unmoved_policy_loses_nothing():
    arrays = batches.make(6, scale=0.0)
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    for objective in (losses.Grpo(), losses.Gspo(), losses.Sspo()):
        metrics = losses.removed(objective, logprobs, batch)
        assert all(float(metrics[key].value) == 0 for key in metrics if not key.startswith("ratio/"))
        assert {float(metrics[f"ratio/{level}_max"].value) for level in LEVELS} == {1.0}


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_a_batch_add_up(seed: int):
    arrays = batches.make(seed, scale=0.3, is_packed=True)
    mean, std = entropy_statistics(arrays)
    batch = dataclasses.replace(train_batch(arrays), mean_entropy=mean, entropy_std=std)
    logprobs, side = jnp.asarray(arrays["logprobs"]), jnp.arange(batches.SHAPE[0]) < 2
    parts = [
        losses.removed(losses.Sspo(), logprobs, dataclasses.replace(batch, mask=batch.mask & own[:, None]))
        for own in (side, ~side)
    ]
    whole = losses.removed(losses.Sspo(), logprobs, batch)
    assert_equal_metrics({key: parts[0][key] + parts[1][key] for key in whole}, whole)
