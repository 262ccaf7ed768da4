"""The stream: epochs are permutations, shares are disjoint, resume is exact at any batch, other states are refused."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import ListSource, Problem

SETTINGS = settings(max_examples=20, deadline=None)
LONG = 1_500  # ordered by grain; shorter sources are ordered by numpy


@functools.cache
def source(size: int, answer: str = "1") -> ListSource:
    return ListSource([Problem(id=str(index), problem="p", answer=answer) for index in range(size)])


def ids(stream: ProblemStream, batches: int) -> list[str]:
    return [problem.id for _ in range(batches) for problem in stream.next()]


@given(size=st.integers(1, 30) | st.just(LONG), batch_size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
@SETTINGS
def test_every_epoch_is_a_permutation(size, batch_size, seed):
    stream = ProblemStream(source(size), batch_size=batch_size, seed=seed)
    seen = ids(stream, 3 * size // batch_size + 1)
    for epoch in range(len(seen) // size):
        assert sorted(seen[epoch * size : (epoch + 1) * size], key=int) == [str(index) for index in range(size)]


def test_epochs_and_seeds_are_ordered_differently():
    stream = ProblemStream(source(50), batch_size=50, seed=1)
    first, second = ids(stream, 1), ids(stream, 1)
    assert first != second
    assert first != ids(ProblemStream(source(50), batch_size=50, seed=2), 1)
    assert first == ids(ProblemStream(source(50), batch_size=50, seed=1), 1)
    assert stream.epoch == 2.0


@given(taken=st.integers(0, 20), batch_size=st.sampled_from([1, 3, 200]), size=st.sampled_from([10, LONG]))
@SETTINGS
def test_resume_is_exact_at_any_batch(taken, batch_size, size):
    stream = ProblemStream(source(size), batch_size=batch_size, seed=4)
    ids(stream, taken)
    state = json.loads(json.dumps(stream.state()))
    resumed = ProblemStream(source(size), batch_size=batch_size, seed=4)
    resumed.restore(state)
    assert ids(resumed, 9) == ids(stream, 9)
    assert resumed.state() == stream.state()


@pytest.mark.parametrize("size", [10, LONG])
@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_the_shares_of_the_processes_make_the_whole_batch(process_count, size):
    whole = ProblemStream(source(size), batch_size=6, seed=4)
    shares = [
        ProblemStream(source(size), batch_size=6, seed=4, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    for _ in range(7):
        assert [problem for share in shares for problem in share.next()] == whole.next()
    assert all(share.state() == shares[0].state() for share in shares)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: ProblemStream(source(10), batch_size=4, seed=5), "seed was 4 and is 5"),
        (lambda: ProblemStream(source(10), batch_size=2, seed=4), "batch_size was 4 and is 2"),
        (lambda: ProblemStream(source(10), batch_size=4, seed=4, process_count=2), "process_count was 1 and is 2"),
        (lambda: ProblemStream(source(11), batch_size=4, seed=4), "source_size was 10 and is 11"),
        (lambda: ProblemStream(source(10, "2"), batch_size=4, seed=4), "source_digest was"),
    ],
)
def test_the_state_of_another_stream_is_refused_by_name(other, named):
    state = ProblemStream(source(10), batch_size=4, seed=4).state()
    stream = other()
    with pytest.raises(ValueError, match=named):
        stream.restore(state)
    assert stream.state()["position"] == 0


def test_a_state_without_a_position_is_refused():
    stream = ProblemStream(source(10), batch_size=4, seed=4)
    with pytest.raises(ValueError, match="position is None"):
        stream.restore({key: value for key, value in stream.state().items() if key != "position"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5, "process_count": 2}, "multiple of the 2 processes"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process_index is 2; expected 0 to 1"),
    ],
)
def test_shares_that_do_not_divide_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ProblemStream(source(10), seed=0, **wrong)


def test_one_problem_is_a_source_too():
    """Training on a single problem is an experiment people do; its stream must not be slow."""
    stream = ProblemStream(source(1), batch_size=10_000, seed=0)
    assert {problem.id for problem in stream.next()} == {"0"}
    assert stream.epoch == 10_000
