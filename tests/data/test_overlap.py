"""Leakage: duplicates in other spelling are found, unrelated problems are not, and the cleaned file is clean."""

import dataclasses
import json

import pytest

from sspo_jax.commands.data import main
from sspo_jax.data.overlap import find_overlap, word_ngrams
from sspo_jax.data.problems import JsonlSource, ListSource, Problem, iterate

STORY = "A train leaves the station at noon and travels due north at a speed of sixty miles per hour for three hours."


def problems(*texts: str, name: str) -> ListSource:
    return ListSource(
        [Problem(id=f"{name}{index}", problem=text, answer="1") for index, text in enumerate(texts)], name=name
    )


EVALS = problems(r"Find $\dfrac{1}{2}+x$ if $x=3$.", f"{STORY} How far does it go?", "What is 1+1?", name="e")


@pytest.mark.parametrize(
    ("text", "kind", "eval_id"),
    [
        (r"find \(\frac{1}{2} + x\) if  x = 3", "equal", "e0"),
        (r"Find $\frac{1}{2} - x$, if $x=3$!", "letters", "e0"),
        (f"{STORY} Then it stops. What distance has it covered by then?", "near", "e1"),
        (f"{STORY.replace('A train', 'The bus')} What then?", "near", "e1"),
        ("What is 2+2?", None, None),
        ("A train leaves the station at noon. When does it arrive?", None, None),
        ("???", None, None),
    ],
)
def test_what_is_found(text, kind, eval_id):
    found = find_overlap(problems(text, name="t"), [EVALS])
    assert [(one.kind, one.eval_id, one.eval_set) for one in found] == ([] if kind is None else [(kind, eval_id, "e")])


def test_the_share_is_of_the_shorter_text():
    # 22 words of story and 5 of question make 20 8-grams; the story alone has 15 of them
    found = find_overlap(problems(STORY + " " + "and so on " * 30, name="t"), [EVALS], near_share=0.1)
    assert len(word_ngrams(STORY, 8)) == 15
    assert [round(one.share, 6) for one in found] == [round(15 / 20, 6)]
    assert find_overlap(problems(STORY + " " + "and so on " * 30, name="t"), [EVALS], near_share=0.76) == []


def test_the_command_writes_a_clean_file(tmp_path, capsys):
    train = tmp_path / "train.jsonl"
    rows = [
        {"id": "a", "problem": "what is 1 + 1", "answer": "2", "level": 3},
        {"id": "b", "problem": "What is 7·8?", "answer": "56", "extra": {"lang": "en"}},
    ]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "quiz.jsonl").write_text(json.dumps({"id": "q", "problem": "What is 1+1?", "answer": "2"}))
    arguments = ["overlap", str(train), "quiz", "--data-dir", str(tmp_path)]
    assert main(arguments) == 1
    assert "1 of 2 problems" in capsys.readouterr().out
    cleaned = tmp_path / "cleaned.jsonl"
    assert main([*arguments, "--write", str(cleaned)]) == 0
    assert [json.loads(line) for line in cleaned.read_text().splitlines()] == rows[1:]
    assert main(["overlap", str(cleaned), "quiz", "--data-dir", str(tmp_path)]) == 0
    with pytest.raises(ValueError, match="does not exist yet"):
        main([*arguments, "--write", str(cleaned)])


def test_a_planted_problem_is_found_among_real_ones(real_data):
    """The real training file was cleaned: it holds nothing but siblings (other numbers) of MATH-500 problems."""
    evals = [
        JsonlSource(real_data / "eval" / f"{name}.jsonl") for name in ("aime24", "amc23", "math500", "olympiadbench")
    ]
    longest = max(iterate(evals[2]), key=lambda problem: len(problem.problem))
    planted = [
        dataclasses.replace(evals[0][3], id="equal", problem=evals[0][3].problem.upper()),
        dataclasses.replace(longest, id="near", problem=longest.problem[20:] + " Give your answer in full."),
    ]
    train = ListSource([*iterate(JsonlSource(real_data / "train" / "math.jsonl")), *planted], name="train")
    found = {one.train_id: one for one in find_overlap(train, evals)}
    assert (found["equal"].kind, found["equal"].eval_id) == ("equal", evals[0][3].id)
    assert (found["near"].kind, found["near"].eval_id) == ("near", longest.id)
    siblings = [one for ident, one in found.items() if ident not in ("equal", "near")]
    assert {(one.kind, one.eval_set) for one in siblings} == {("near", "math500")}
    assert len(siblings) < 0.01 * len(train)
