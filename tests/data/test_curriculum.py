"""The curriculum: what is always or never solved comes less often, nothing is starved, resume is exact."""

import collections
import json

import pytest

from sspo_jax.data.curriculum import CurriculumConfig, CurriculumStream
from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import ListSource, Problem

SOURCE = ListSource([Problem(id=str(index), problem="p", answer="1") for index in range(30)])
CHANCE = {"0": 0.0, "1": 1.0, "2": 0.5}  # by the remainder of the id modulo 3


def solve_rate(problem: Problem) -> float:
    return CHANCE[str(int(problem.id) % 3)]


def make(**changes) -> CurriculumStream:
    return CurriculumStream(SOURCE, **{"config": CurriculumConfig(), "batch_size": 6, "seed": 3, **changes})


def run(stream: CurriculumStream, batches: int) -> list[str]:
    ids = []
    for _ in range(batches):
        problems = stream.next()
        stream.update(problems, [solve_rate(problem) for problem in problems])
        ids += [problem.id for problem in problems]
    return ids


def test_without_rates_it_is_the_ordinary_stream():
    plain, curriculum = ProblemStream(SOURCE, batch_size=6, seed=3), make()
    assert [curriculum.next() for _ in range(5)] == [plain.next() for _ in range(5)]


def test_solved_and_hopeless_problems_come_a_tenth_as_often():
    stream = make()
    run(stream, 5)  # each problem once
    counts = collections.Counter(int(ident) % 3 for ident in run(stream, 300))
    shares = [counts[remainder] / 1800 for remainder in range(3)]
    # weights 0.1, 0.1 and 1 of equally many problems
    assert shares == pytest.approx([1 / 12, 1 / 12, 10 / 12], abs=0.03)
    assert stream.weight("0") == stream.weight("1") == 0.1
    assert stream.weight("2") == 1.0


def test_a_problem_that_becomes_solvable_comes_back():
    stream = make(config=CurriculumConfig(memory=0.5))
    problem = SOURCE[0]
    for rate in (0.0, 0.0, 0.5, 0.5):
        stream.update([problem], [rate])
    assert stream.rates["0"] == 0.375
    assert stream.weight("0") == pytest.approx(4 * 0.375 * 0.625)


def test_a_batch_is_filled_even_when_everything_is_solved():
    stream = make(config=CurriculumConfig(floor=1e-9, most_candidates=3))
    stream.update([SOURCE[index] for index in range(30)], [1.0] * 30)
    assert len(stream.next()) == 6
    assert stream.state()["position"] <= 3 * 6 + 6


@pytest.mark.parametrize("batches", [0, 1, 7])
def test_resume_is_exact(batches):
    stream = make()
    run(stream, batches)
    resumed = make()
    resumed.restore(json.loads(json.dumps(stream.state())))
    assert run(resumed, 20) == run(stream, 20)
    assert resumed.state() == stream.state()


def test_the_processes_share_a_batch():
    whole, shares = make(), [make(process_index=index, process_count=2) for index in range(2)]
    for _ in range(20):
        problems = whole.next()
        assert [problem for share in shares for problem in share.next()] == problems
        for stream in (whole, *shares):
            stream.update(problems, [solve_rate(problem) for problem in problems])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 3}, "batch_size was 6 and is 3"),
        ({"config": CurriculumConfig(floor=0.2)}, "curriculum was"),
        ({"seed": 4}, "seed was 3 and is 4"),
    ],
)
def test_the_state_of_another_stream_is_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        make(**changes).restore(make().state())


def test_the_state_of_a_plain_stream_is_refused():
    with pytest.raises(ValueError, match="curriculum was None"):
        make().restore(ProblemStream(SOURCE, batch_size=6, seed=3).state())


@pytest.mark.parametrize("wrong", [{"floor": 0.0}, {"memory": 1.0}, {"most_candidates": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", "-")):
        make(config=CurriculumConfig(**wrong))


def test_a_rate_outside_is_refused():
    with pytest.raises(ValueError, match=r"solve rate of '0' is 1\.5"):
        make().update([SOURCE[0]], [1.5])
