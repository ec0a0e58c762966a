"""Problems whose answer is a number: which number is the answer, and which equations are true."""

import pytest

from astro_jax.types import Problem
from astro_jax.verify import verify


@pytest.mark.parametrize(
    "response, answer, correct",
    [
        ("The answer is 12.", "12", True),
        ("The answer is 12.50 dollars.", "12.5", True),
        ("The answer is $1,200.", "1200", True),
        (r"So it is \boxed{3/4}.", "0.75", True),
        ("5 and 7 are 12", "12", True),
        ("The answer is 5.\nBut wait.\nThe answer is 12.", "12", True),
        ("The answer is 12, since 7 and 5 are.", "12", True),  # the marked number, not the last number
        ("**The answer is: 12**", "12", True),
        ("The answer is 120.", "12", False),
        ("The answer is 1.2", "12", False),
        ("The answer is twelve.", "12", False),
        ("x12 is no number", "12", False),
        ("", "12", False),
        ("The answer is **12** dollars.", "12", True),
        ("The answer is 3 * 4 = 12", "12", True),
        ("The answer is 7? No, the answer is really 12.", "12", True),
        (r"#### 7 \boxed{x=12}", "12", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        ("The answer is -$12", "-12", True),
        ("The answer is $12 a day for 7 days", "12", True),
        # The number goes on in another notation, or the last marker has none.
        (r"\boxed{12\sqrt{3}}", "12", False),
        ("The answer is 12^5", "12", False),
        ("The answer is 12x10^3", "12", False),
        ("The answer is 12:30", "12", False),
        ("The answer is 12,0000", "12", False),
        (r"#### 12\boxed{}", "12", False),
        ("1" + ",000" * 1500 + " The answer is 12.", "12", True),  # a number beyond Python's limit of digits
    ],
)
def test_last_marked_answer_counts(response, answer, correct):
    problem = Problem("x", "", answer, {}, "number")
    assert verify(problem, response, stopped=True).correct == correct
    assert not verify(problem, response, stopped=False).correct


@pytest.mark.parametrize(
    "response, valid",
    [
        ("We compute 5 + 7 = 12.\nThe answer is 12.", True),
        ("We compute 177 - 12 = 143.\nThe answer is 143.", False),
        ("(8 / 3 = 2.67) The answer is 2.67", True),
        ("8 / 3 = 2.66\nThe answer is 2.66", True),
        ("8 / 3 = 2.7\nThe answer is 2.7", True),
        ("8 / 3 = 2.5\nThe answer is 2.5", False),
        ("5 * 7 = 35.5 The answer is 35.5", False),
        ("3 + 4 + 5 = 12\nThe answer is 12", True),
        ("3 apples + 4 + 5 = 13 apples\nThe answer is 13", False),
        ("5 x 7 = 35, 4 / 0 = 3\nThe answer is 3", False),
        ("No number", False),
    ],
)
def test_response_is_valid_if_its_equations_are_true(response, valid):
    assert verify(Problem("x", "", "1", {}, "number"), response, stopped=True).valid == valid


def test_hostile_text_is_judged_without_delay():
    for text in ("1," * 50_000, "1/" * 50_000, "9" * 100_000, "answer is " * 10_000, "1 + " * 30_000, "-" * 100_000):
        assert not verify(Problem("x", "", "7", {}, "number"), text, stopped=True).correct
