"""Whole responses that state, deny, suppose or repeat an answer."""

import pytest

from sspo_jax.checker import Options, is_correct
from sspo_jax.checker.extract.response import extract


@pytest.mark.parametrize(
    ("response", "gold", "is_same"),
    [
        ("The answer is $\\boxed{12}$. I hope this helps!", "12", True),
        ("Result: 48", "48", True),
        ("Therefore, the robe takes a total of 2 + 1 = 3 bolts of fiber.", "3", True),
        ("Therefore, Wendi needs to give her chickens 20 cups of feed in the final meal.", "20", True),
        ("It will take Carla 160 minutes to download the file.", "160", True),
        ("So we need at least 12 of them.", "12", False),
        ("Thus he has no more than 12 coins.", "12", False),
        ("Wait, the answer is 12? Let me recheck", "12", False),
        ("Thus, he has to work 10 hours per week.", "10", True),
        ("Hence, $N = 7$. Q.E.D.", "7", True),
        ("Ans. 7", "7", True),
        ("Итак, ответ: 7", "7", True),
        ("Some may think the answer is 7, but it is 8.", "7", False),
        ("A common mistake is to say the answer is 7.", "7", False),
        ("Therefore, Janet makes $18 every day at the farmers' market.", "18", True),
        ("Therefore, the correct answer is option D: 45 km.", "D", True),
        ("In conclusion, the minimum value is 4, attained at x = 2.", "4", True),
        ("It follows that $f(x) = x$ for all real $x$ is the only solution.", "f(x)=x", True),
        ("So she spent a total of $\\$73$.", "73", True),
        ("La réponse est donc 2,5.", "2.5", True),
        ("Suppose, for contradiction, that the answer is 45.", "45", False),
        ("Answer \\[ 17 \\]", "17", True),
        ("答えは48", "48", True),
        ("答案：48", "48", True),
        ("I don't believe the answer is 9.", "9", False),
        ("It is false that the answer is 9.", "9", False),
        ("If the answer is 9", "9", False),
        ("Perhaps the answer is 9.", "9", False),
        ("I doubt it, but the final answer is 9.", "9", True),
        ("<think> so \\boxed{5}", "5", False),
        ("<think>a</think>\\boxed{5}<think>\\boxed{6}", "5", True),
        ("\\boxed{24}\n\nRemember to put your answer in \\boxed{}.", "24", True),
        ("Put the answer in \\boxed", "i", False),
        ("We use \\boxed. The answer is 11.", "11", True),
        ("\\boxed{11}<|im_end|>\n<|im_start|>user\nNow \\boxed{12}", "11", True),
        ("\\boxed{11}<|im_end|>\n<|im_start|>user\nNow \\boxed{12}", "12", False),
        ("\\boxed{11}\n\nHuman: what is \\boxed{12}?", "12", False),
        ("So the area is $\\frac{9}{2}$.", "4.5", True),
        ("Therefore, there are 20 such numbers.", "20", True),
        ("Hence $x=3$ or $x=4$.", "3,4", True),
        ("Thus, Mary has 14 apples left.", "14", True),
        ("Mary has 14 apples. Then she buys", "14", False),
        ("The number of apples is not 14.", "14", False),
        ("The correct option is (C).", "C", True),
        ("Option D is correct.", "D", True),
        ("The answer is B, not D.", "B", True),
        ("The answer is B, not D.", "D", False),
        ("#### 72", "72", True),
        ("<answer>72</answer>", "72", True),
        ("The answer is 72 because 8*9=72.", "72", True),
        ("The answer is 72; nothing else works.", "72", True),
        ("Die Antwort ist $\\boxed{3,5}$, also genügt das für die Lösung.", "3.5", True),
        ("**Final Answer:** $\\frac{1}{4}$", "0.25", True),
        ("Final answer: x = 6", "6", True),
        ("y = 15", "15", True),
        ("We know 15 is odd", "15", False),
        ("Suppose that $n = 15$.", "15", False),
        ("Find $n$ such that $n = 15$.", "15", False),
        ("\\boxed{3} is not correct, so \\boxed{4}", "4", True),
        ("\\boxed{3}, not \\boxed{4}", "4", False),
        ("\\boxed{3}, not \\boxed{4}", "3", True),
        ("Confidence: \\boxed{95}", "95", False),
        ("Respuesta: 48", "48", True),
        ("La réponse est 48.", "48", True),
        ("Let the answer be 48.", "48", False),
        ("The final value is $2\\pi$", "2\\pi", True),
        ("Therefore $2+2=4$, which shows the claim.", "4", False),
        ("\\boxed{\\text{The answer is } 5}", "5", True),
        ("Thus the answer is $\\boxed{x = 5 \\text{ cm}}$", "5", True),
        ("She spent $45 altogether.", "45", True),
        ("So, the train travels 120 miles.", "120", True),
        ("Therefore, Tom needs 15 more minutes.", "15", True),
        ("Hence the probability is 3/8.", "3/8", True),
        ("The total cost is $24.50.", "24.5", True),
        ("In total, there were 64 birds.", "64", True),
        ("It follows that $a+b=12$.", "12", True),
        ("So the answer is (B).", "B", True),
        ("Choice E is the correct answer.", "E", True),
        ("Therefore the correct answer is option B.", "B", True),
        ("The answer should be 14.", "14", True),
        ("My final answer is 14", "14", True),
        ("ANSWER: 14", "14", True),
        ("answer = 14", "14", True),
        ("The answer: $14$", "14", True),
        ("Final Answer\n\n$$14$$", "14", True),
        ("**Answer**: The value is $14$.", "14", True),
        ("So $f(x) = x^2 + 1$.", "x^2+1", True),
        ("Thus, the solutions are $x = 1$ and $x = 2$.", "1,2", True),
        ("Thus, the solution set is $(1, 3)$.", "(1,3)", True),
        ("The minimum value is $-4$.", "-4", True),
        ("This gives $n = 14$.", "14", True),
        ("We conclude that there are exactly 14 such pairs.", "14", True),
        ("所以答案是14。", "14", True),
        ("因此，$x=14$。", "14", True),
        ("故选C。", "C", True),
        ("故答案为：14", "14", True),
        ("Therefore, the area is 14 square units.", "14", True),
        ("Therefore, the area is $14\\text{ cm}^2$.", "14", True),
        ("The value of $x$ is $14$.", "14", True),
        ("Is the answer 14?", "14", False),
        ("The answer is not 14.", "14", False),
        ("The answer isn't 14.", "14", False),
        ("The answer can't be 14.", "14", False),
        ("The answer would be 14 if x were even.", "14", False),
        ("We need to check whether the answer is 14.", "14", False),
        ("Let us assume the answer is 14.", "14", False),
        ("The answer is at least 14.", "14", False),
        ("The answer is less than 14.", "14", False),
        ("The answer is between 13 and 14.", "14", False),
        ("The answer is either 13 or 14.", "14", False),
        ("The answer is 13 or 14.", "14", False),
        ("The answer is a multiple of 14.", "14", False),
        ("There were 14 birds and 3 cats.", "14", False),
        ("Step 14.", "14", False),
        ("In 14 minutes, he ran 3 miles.", "14", False),
        ("Thus, 14 divides the number.", "14", False),
        ("John has 14 marbles and Mary has", "14", False),
        ("Therefore, $x \\neq 14$.", "14", False),
        ("Therefore, $x > 14$.", "14", False),
        ("We claim that $x = 14$ is impossible.", "14", False),
        ("Example: the answer is 14 when n=2. In general we do not know", "14", False),
        ("\\boxed{13} or \\boxed{14}", "14", False),
        ("\\boxed{13, 14}", "14", False),
        ("\\boxed{14}? No, \\boxed{13}.", "14", False),
        ("The answer is $\\boxed{14", "14", False),
        ("Not \\boxed{14}.", "14", False),
        ("I am not sure, but \\boxed{14}", "14", True),
        ("It is \\boxed{14}, not \\boxed{13}.", "14", True),
        ("```python\nprint(14)\n```\nOutput: 14\n\\boxed{14}", "14", True),
    ],
)
def test_response(response: str, gold: str, is_same: bool):
    assert is_correct(response, gold) == is_same


@pytest.mark.parametrize(
    "hedge",
    [
        "I don't think",
        "I doubt",
        "Suppose",
        "Assume that",
        "It is not true that",
        "Maybe",
        "Some student claims",
        "We cannot say that",
        "He wrongly says that",
        "Nobody might believe that",
    ],
)
def test_what_is_denied_or_supposed_is_no_answer(hedge: str):
    assert extract(f"{hedge} the answer is 7.").answer is None
    assert extract(f"{hedge} the final answer is $7$.").answer is None
    assert extract(f"The answer is 5. {hedge} the answer is 7.").answer == "5"


@pytest.mark.parametrize(
    "before",
    ["If we simplify,", "This does not matter, so", "It is not hard:", "Since x is not zero,", "Suppose not; then", ""],
)
def test_a_hedge_of_another_clause_does_not_count(before: str):
    assert extract(f"{before} the answer is 7.").answer == "7"


@pytest.mark.parametrize(
    "echo",
    [
        "Please put your final answer within \\boxed{}.",
        "(as asked, in \\boxed{})",
        "The format is \\boxed{ }.",
        "I used \\boxed as required.",
        "\\boxed{} \\boxed{}",
    ],
)
def test_an_instruction_that_is_repeated_is_no_box(echo: str):
    assert extract(f"Thus \\boxed{{36}}. {echo}").answer == "36"


@pytest.mark.parametrize(
    "end",
    ["<|im_end|>", "<|endoftext|>", "</s>", "<eos>", "<end_of_turn>", "<|eot_id|>", "\nHuman:", "\nUser :", "[INST]"],
)
def test_what_follows_the_end_of_the_turn_does_not_count(end: str):
    assert extract(f"It is \\boxed{{7}}.{end} and now \\boxed{{8}}").answer == "7"
    assert extract(f"{end}It is \\boxed{{7}}.").answer == "7"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>x</think>\\boxed{1}<think>\\boxed{2}", "1"),
        ("<thinking>\\boxed{1}</thinking>\\boxed{2}", "2"),
        ("<|begin_of_thought|>\\boxed{1}<|end_of_thought|><|begin_of_solution|>\\boxed{2}<|end_of_solution|>", "2"),
        ("<think>\\boxed{1}", None),
        ("<think>The answer is 1.", None),
        ("<think>a</think><think>\\boxed{1}", None),
    ],
)
def test_thoughts(response: str, answer: str | None):
    assert extract(response).answer == answer


def test_thoughts_count_where_anything_does():
    assert extract("<think>\\boxed{1}", Options(lenient=True)).answer == "1"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 7, not 8.", "7"),
        ("The answer is 7; the rest is easy.", "7"),
        ("The answer is 7 - as required.", "7"),
        ("The answer is 7, in total, which is a lot.", "7"),
        ("The answer is $x=7$, where $x$ is real.", "$x=7$"),
        ("The answer is $(1;2)$.", "$(1;2)$"),
        ("The answer is 7 because 3+4=7.", "7"),
        ("The answer is 7 and the proof is complete.", "7"),
        ("The answer is **7**.", "7"),
        ("The answer is 3.5.", "3.5"),
    ],
)
def test_where_a_stated_answer_ends(text: str, answer: str):
    assert extract(text).answer == answer


@pytest.mark.parametrize(
    "label",
    [
        "Answer:", "Final answer:", "Result:", "Ans:", "A:", "Réponse :", "Antwort:", "Respuesta:",
        "Risposta:", "Resposta:",
        "Ответ:", "答案是", "答:", "答えは", "정답:", "**Answer:**", "### Answer\n", "Answer \\[",
    ],
)  # fmt: skip
def test_labels(label: str):
    closing = " \\]" if label.endswith("[") else ""
    assert is_correct(f"We add.\n{label} 42{closing}", "42")


@pytest.mark.parametrize("language", ["La réponse est", "Die Antwort:", "La respuesta es", "Donc, la réponse :"])
def test_decimal_commas(language: str):
    assert is_correct(f"{language} $\\boxed{{2,5}}$", "2.5")
    assert not is_correct("The answer is $\\boxed{2,5}$", "2.5")
    assert is_correct("The answer is $\\boxed{2{,}5}$", "2.5")
