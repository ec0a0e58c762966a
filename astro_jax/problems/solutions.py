"""Worked solutions, which a base model too weak for search is fine-tuned on first (base_sft)."""

from __future__ import annotations

import itertools

from astro_jax.types import Problem
from astro_jax.verify.number import calculate, find, parse


def worked_solution(problem: Problem) -> str | None:
    """Return the source's solution of a problem, else the only equation of two of its numbers that gives the answer.

    Example: "Tom has 5 cats and gets 3 more." with the answer 8 gives "We compute 5 + 3 = 8.\\nThe answer is 8."
    None if no equation or more than one equation gives the answer.
    """
    if problem.meta.get("solution"):
        return problem.meta["solution"]
    if problem.task != "number":
        return None
    answer = parse(problem.answer)
    equations = [
        f"{a} {op} {b} = {problem.answer}"
        for (i, (a, x)), (j, (b, y)) in itertools.permutations(enumerate(find(problem.prompt).items()), 2)
        for op in "+-*/"
        if (i < j or op in "-/") and calculate(x, op, y) == answer
    ]
    return f"We compute {equations[0]}.\nThe answer is {problem.answer}." if len(equations) == 1 else None
