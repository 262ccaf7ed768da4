"""Which part of a response is its answer."""

import time

import pytest

from sspo_jax.checker import Options, is_correct, verify
from sspo_jax.checker.extract.response import extract

LENIENT = Options(lenient=True)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so $\boxed{7}$", "7"),
        (r"\boxed{3}. But wait, that is wrong: \boxed{7}", "7"),
        (r"\boxed{ \frac{ 1 }{ 2 } }", r"\frac{ 1 }{ 2 }"),
        ("\\boxed{\n  7\n}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7", "7"),
        (r"\boxed7 and so on", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \{ b}", r"a \{ b"),
        (r"\boxed{\text{if } x}", r"\text{if } x"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$", "1, 2"),
        (r"$\boxed{1}\text{ and }\boxed{2}$", "1, 2"),
        (r"$\boxed{1} \quad \boxed{2}$", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$", "1, 2, 3"),
        ("\\boxed{1}\n\n\\boxed{2}", "2"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{1} so \boxed{2}", "2"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"<think>\boxed{3}</think> It is \boxed{4}.", "4"),
        (r"<think>\boxed{3}</think> The answer is 4.", "4"),
        (r"\boxed{3}</think>a</think>\boxed{4}", "4"),
        (r"\boxed{3} then \boxed{4", "3"),
        ("16 - 3 = 13\n#### 18", "18"),
        ("#### 1,080\n", "1,080"),
        ("The final answer is 42.", "42"),
        ("The final answer is: $\\frac{1}{2}$. I hope it is correct.", r"$\frac{1}{2}$"),
        ("Answer: 42", "42"),
        ("**Answer:** 42", "42"),
        ("**Final Answer**: 42", "42"),
        ("Therefore, the answer is $x = 5$.", "$x = 5$"),
        ("The answer is (C).", "(C)"),
        ("The correct answer is: 12 cm", "12 cm"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("The answer is 4 because 2+2=4.", "4"),
        ("The answer to the problem is 12.", "12"),
        ("The answer is 3.5.", "3.5"),
        ("答案是 5。", "5"),
        ("所以答案为：$\\frac{3}{4}$。", r"$\frac{3}{4}$"),
        ("We add them up. So the total is 42.", "42"),
        ("We add them up.\n\n42", "42"),
        ("We add them up.\n$\\frac{1}{2}$", r"$\frac{1}{2}$"),
        ("Therefore, $x = 5$.", "5"),
    ],
)
def test_answer(response: str, answer: str):
    assert extract(response).answer == answer


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n ",
        "I do not know.",
        "There are 12 apples in the basket and 3 pears",
        "First we compute 3 * 4 = 12. Then we add",
        "The answer is",
        "The answer is clear",
        r"\boxed{\frac{1}{2}",
        r"<think>\boxed{3}",
        r"<think>\boxed{3}</think>",
        "There are 12 apples in it.",
        "x" * 1000,
        "Step 1: 5. Step 2: we see 7 things here, and more",
    ],
)
def test_nothing_is_guessed(response: str):
    assert extract(response).answer is None
    assert verify(response, "12").status == "unparsed"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Therefore the values are 2, 3 and 4.", "2, 3 and 4"),
        ("Hence $a=3$ and $b=4$.", "a=3, b=4"),
        ("Thus $r=47/48$, and $p+q=95$.", "p+q=95"),
        ("so $3 x=58$ or $x=19$.", "x=19"),
        ("We see that $n=35$ is the smallest such value.", "n=35"),
        ("The triple $(2,3,5)$ is the only solution.", "(2,3,5)"),
        ("Thus, there are 222 positive integers $n$ like this.", "222"),
        (r"It follows that $K=x+y=\mathbf{2 1 0}$.", r"\mathbf{2 1 0}"),
        ("In the end there are **12** of them.", "12"),
        ("So the maximum value is 13 (which occurs when $x=5$).", "13"),
        ("The answer is 800 (independent of the start).", "800"),
        ("The answer is therefore 30.", "30"),
        ("Therefore\n$$\n\\begin{aligned} x &= 2+3 \\\\ &= 5 \\end{aligned}\n$$", "5"),
        ("The answer is the remainder of $a$ by 7. Hence the remainder is 3.", "3"),
    ],
)
def test_closing_sentences(response: str, answer: str):
    assert extract(response).answer == answer


@pytest.mark.parametrize(
    "response",
    [
        "Let $x = 5$.",
        "Suppose that the number of apples is 12.",
        "This contradicts the minimality of $n$.",
        "The number is a multiple of 12.",
        "The number is less than or equal to 12.",
        "We know that s = 2t and s + t + 4 = 19.",
        "Therefore, the only number whose digits multiply to $8$",
        "The value of $T$ is irrelevant.",
        "Hence this number is not the smallest: $12$ is not the answer.",
        "She left the house at 5:51",
        "**Step 2.** We add the numbers.",
        "Therefore, it cannot be 12.",
        "<answer>12",
    ],
)
def test_no_answer_in_closing_sentences(response: str):
    assert extract(response).answer is None


def test_lenient_takes_the_last_number_or_formula():
    assert extract("There are 12 apples and 3 pears left", LENIENT).answer == "3"
    assert extract("we get $a = 7$ and go on", LENIENT).answer == "7"
    assert extract("no number at all", LENIENT).answer is None
    assert is_correct("There are 12 apples", "12", lenient=True)
    assert not is_correct("There are 12 apples", "12")


def test_boxes_that_say_the_same_in_two_forms_are_one_answer():
    assert is_correct(r"$\boxed{x+11}$ or $\boxed{11+x}$", "x+11")
    assert is_correct(r"$\boxed{1}$ and $\boxed{2}$", "2,1")
    assert not is_correct(r"$\boxed{1}$ and $\boxed{2}$", "2")
    assert is_correct(r"$\boxed{1}$ and $\boxed{2}$", "2", join_boxes=False)


def test_a_label_and_a_computation_before_the_answer():
    assert is_correct("Answer: The probability is 3/8.", r"\frac{3}{8}")
    assert not is_correct("Answer: The probability is not 3/8.", r"\frac{3}{8}")
    assert is_correct("Thus Sarah has $45 - 12 = 33$ stickers left.", "33")
    assert not is_correct("Therefore $2 + 2 = 4$, which shows the claim.", "4")
    assert not is_correct(r"So $x \ne 7$.", "7")


def test_boxes_of_named_values_are_points():
    assert is_correct(r"$\boxed{p=2, q=5}$ or $\boxed{p=5, q=2}$", "(2,5),(5,2)")
    assert not is_correct(r"$\boxed{p=2, q=5}$ or $\boxed{p=5, q=2}$", "(2,5),(5,3)")


@pytest.mark.parametrize("after", ["$ in base 7.", " in base $7$", "_7$", "_{7}$", "$ (in base 7)"])
def test_a_base_may_stand_behind_the_box(after: str):
    assert is_correct(rf"It is $\boxed{{1254}}{after}", "1254_7")
    assert is_correct(rf"It is $\boxed{{1254}}{after}", "1254")
    assert not is_correct(rf"It is $\boxed{{1254}}{after}", "1254_8")


def test_a_gold_may_be_boxed_or_a_whole_solution():
    assert is_correct(r"\boxed{5}", r"\boxed{5}")
    assert is_correct(r"\boxed{18}", "She makes 9 * 2 = 18.\n#### 18")
    assert is_correct(r"\boxed{5}", "$5$")


def test_an_empty_gold_is_an_error_and_an_empty_answer_is_unparsed():
    assert verify(r"\boxed{5}", "").status == "error"
    assert verify(r"\boxed{}", "5").status == "unparsed"
    assert verify(r"\boxed{ }", " ").status == "error"


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "$",
        "\\",
        "####",
        "the answer is ",
        "\\boxed{1} and ",
        "is ",
        "\n",
        "<think>",
        "= ",
        " ",
        " (ab",
        "there are 1 ",
        "**1",
        "$a$ or ",
        "$a$ is the only ",
        "1, ",
    ],
)
def test_extraction_is_linear(piece: str):
    """Ten times the text takes less than forty times as long (and some milliseconds)."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        times = []
        for _ in range(3):
            started = time.process_time()
            extract(text)
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(500_000) < 40 * seconds(50_000) + 0.05
