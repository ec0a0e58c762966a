"""Worked solutions: the source's own, or the only equation of two numbers that gives the answer."""

import pytest

from astro_jax.problems.solutions import worked_solution
from astro_jax.types import Problem


@pytest.mark.parametrize(
    "text, answer, solution",
    [
        ("Tom has 5 cats and gets 3 more.", "8", "We compute 5 + 3 = 8.\nThe answer is 8."),
        ("There are 12 birds, and 3 nests.", "4", "We compute 12 / 3 = 4.\nThe answer is 4."),
        ("Take 3 from 1,200.", "1197", "We compute 1,200 - 3 = 1197.\nThe answer is 1197."),
        ("2 cats and 2 dogs", "4", None),  # a repeated number counts once: no equation gives the answer
        ("2 cats, 2 dogs, 4 birds", "2", None),  # 4 - 2 and 4 / 2
        ("Tom has three cats and 3 dogs.", "6", None),
    ],
)
def test_worked_solution_is_the_only_equation_that_gives_the_answer(text, answer, solution):
    assert worked_solution(Problem("x", text, answer, {"solution": ""}, "number")) == solution


def test_solution_of_the_source_comes_first():
    assert worked_solution(Problem("x", "5 and 3", "8", {"solution": "Count."}, "number")) == "Count."
