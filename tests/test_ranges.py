"""Every number of a configuration has a range beside its field, and one walk refuses what is outside."""

import copy
import dataclasses
import math
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sspo_jax.commands import data, export, inspect, segment, serve, verify
from sspo_jax.commands.experiments import objectives
from sspo_jax.config import ServerConfig, TrainConfig
from sspo_jax.data.curriculum import CurriculumConfig
from sspo_jax.data.sources import HubData, JsonlData, MixtureData, TfdsData
from sspo_jax.evaluation.run import EvaluateConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.ranges import MOST, Count, NotNegative, Positive, Range, check, file_only, from_record, numbers
from sspo_jax.rewards import Format, Length, Overlong, RewardConfig, UserReward
from tests.trainer.conftest import small

BAD = (math.nan, math.inf, -math.inf, -1, 0, 10**20, -(10**20), 1e300)
COMMANDS = (
    *(EvaluateConfig, segment.SegmentConfig, serve.ServeConfig, verify.VerifyConfig, inspect.InspectConfig),
    *(export.ExportConfig, data.AuditConfig, data.OverlapConfig),
)


def everything_on(loss: Any) -> TrainConfig:
    """A configuration in which no section is left out."""
    return small(
        model__lora=LoraConfig(),
        model__reference="teacher",  # which distillation wants; it is not looked for
        rollout__server=ServerConfig(),
        curriculum=CurriculumConfig(),
        reward=RewardConfig(format=Format(), overlong=Overlong(), length=Length()),
        loss=loss,
    )


def leaves(config: Any, prefix: str = "") -> dict[str, tuple[type, Range | None]]:
    """The numbers of a configuration by dotted name, of the classes that are really there."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
    own = {name: entry for name, entry in numbers(type(config)).items() if "." not in name}
    return {**{prefix + name: entry for name, entry in own.items()}, **found}


def with_value(config: Any, name: str, value: Any) -> Any:
    """A copy with one value changed, by the side of all constructors: they check types in tests."""
    head, _, rest = name.partition(".")
    changed = copy.copy(config)
    object.__setattr__(changed, head, with_value(getattr(config, head), rest, value) if rest else value)
    return changed


@pytest.mark.parametrize("loss", sorted(objectives()))
def test_every_number_of_a_run_is_checked(loss):
    config = everything_on(objectives()[loss]())
    config.check()
    found = {name: entry for name, entry in leaves(config).items() if not name.startswith("model.shape.")}
    assert len(found) > 60
    if loss != "sspo":  # the other sections are the same
        found = {name: entry for name, entry in found.items() if name.startswith("loss.")}
    for name, (kind, bounds) in found.items():
        assert bounds is not None, f"{name} has no range"
        for value in BAD:
            allowed = bounds.holds(value) and (kind is float or isinstance(value, int))
            try:
                check(with_value(config, name, value))
            except ValueError as error:
                text = str(error)
                assert not allowed, text
                assert name.rpartition(".")[2].replace("_", "-") in text.replace("_", "-")
                assert "expected" in text
                assert "\n" not in text
            else:
                assert allowed, f"{name} = {value} was accepted"


@pytest.mark.parametrize("kind", [*COMMANDS, UserReward, JsonlData, TfdsData, HubData, MixtureData])
def test_every_number_of_the_other_commands_has_a_range(kind):
    assert not [name for name, (_, bounds) in numbers(kind).items() if bounds is None]


def test_the_few_numbers_without_bounds_are_meant():
    """Rewards and the entropy bonus may be negative; everything else has a bound somewhere."""
    names = leaves(everything_on(objectives()["sspo"]()))
    unbounded = [name for name, (_, bounds) in names.items() if bounds is not None and not str(bounds)]
    assert {name.split(".")[0] for name in unbounded} == {"reward", "loss"}
    assert [name for name in unbounded if name.startswith("loss")] == ["loss.entropy_coefficient"]


@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**25), 10**25))
def test_a_range_holds_what_it_says(value):
    is_whole = isinstance(value, int)
    is_usable = math.isfinite(value) and not (is_whole and abs(value) > MOST)
    assert Range(0, 1).holds(value) == (is_usable and 0 <= value <= 1)
    assert Range(above=0).holds(value) == (is_usable and value > 0)
    assert Range(0, below=1).holds(value) == (is_usable and 0 <= value < 1)
    assert Range(1, besides=(-1,)).holds(value) == (value == -1 or (is_usable and value >= 1))
    assert Range(1, 2**40).holds(value) == (math.isfinite(value) and 1 <= value <= 2**40)


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    rate: Positive = 1.0
    pair: tuple[float, float] = (0.0, 1.0)
    counts: tuple[Count, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    """A configuration."""

    name: str = "a"
    is_on: bool = True
    limit: NotNegative | None = None
    free: int = 0
    inner: Inner = Inner()
    others: tuple[Inner, ...] = ()
    most: Annotated[int, Range(1, 3)] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "--name is 3; expected a text"),
        ({"name": "a\ud800"}, "expected UTF-8"),
        ({"name": "a\0"}, "NUL"),
        ({"is_on": 1}, "--is-on is 1; expected True or False"),
        ({"limit": "many"}, "--limit is 'many'; expected a number at least 0 or None"),
        ({"limit": -0.5}, "--limit is -0.5; expected a finite number at least 0"),
        ({"free": 2.5}, "--free is 2.5; expected a whole number"),
        ({"free": True}, "--free is True; expected a whole number"),
        ({"free": 2**31}, f"--free is {2**31}; expected a whole number of at most {MOST} in size"),
        ({"most": 4}, "--most is 4; expected a whole number at least 1 and at most 3"),
        ({"most": 10**20}, f"--most is {10**20}; expected a whole number at least 1 and at most 3"),
        ({"inner": None}, "--inner is None; expected Inner"),
        ({"inner": {"rate": 1}}, "--inner is {'rate': 1}; expected Inner"),
        ({"inner": Inner(rate=0)}, "--inner.rate is 0; expected a finite number above 0"),
        ({"inner": Inner(rate=math.nan)}, "--inner.rate is nan; expected a finite number above 0"),
        ({"inner": Inner(pair=(1.0,))}, "--inner.pair has 1 values; expected 2"),
        ({"inner": Inner(pair=[0.0, 1.0])}, r"--inner.pair is [0.0, 1.0]; expected a tuple"),
        ({"inner": Inner(counts=(1, 0))}, "--inner.counts is 0; expected a whole number at least 1"),
        ({"others": (Inner(), Inner(rate=-1))}, "--others.1.rate is -1; expected a finite number above 0"),
    ],
)
def test_values_and_types_are_refused_by_name(changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared)
        check(dataclasses.replace(Outer(), **changes))
    assert message in str(error.value)


def test_what_is_declared_passes():
    check(Outer(limit=3, inner=Inner(rate=2, pair=(1, 2.5), counts=(1, 2)), others=(Inner(),)))


def test_a_record_becomes_a_value_or_a_reason():
    assert from_record(Inner, {"rate": 2, "counts": [1, 2]}, "x") == Inner(rate=2, counts=(1, 2))
    for record, message in (
        ([1], r"x is \[1\]; expected an object"),
        ({"rat": 1}, "x has an unknown field 'rat'"),
        ({"rate": "fast"}, "x.rate is 'fast'; expected a number"),
        ({"counts": [0]}, "x.counts is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            from_record(Inner, record, "x")


def test_values_of_the_experiment_file():
    names = file_only(small())
    assert {"model.shape", "evaluation.data", "loss.vocab_size"} <= set(names)
    assert not {"steps", "optimizer.learning_rate", "loss.clip_low"} & set(names)
