"""The verifier of problems whose answer is a number (task "number").

The answer is the number of the last "the answer is NUMBER", \\boxed{NUMBER} or "#### NUMBER". If a response has none of
these, the answer is its last number. A number is matched, never evaluated.
"""

from __future__ import annotations

import re

from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Verdict
from astro_jax.verify import equations
from astro_jax.verify.number import FRACTION, NUMBER, parse

_MARKED = re.compile(rf"(?:answer is|\\boxed\{{|####)[\s:*$\\(]*({FRACTION})", re.IGNORECASE)


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response (tasks.verify). A valid response gives an answer, and its equations are true (equations)."""
    matches = [*_MARKED.finditer(response)] or [*NUMBER.finditer(response)]
    value = parse(matches[-1][1]) if stopped and matches else None
    return Verdict(
        correct=value is not None and value == parse(problem.answer),
        valid=value is not None and not equations.find_false(response),
        answer=None if value is None else str(value),
        backtracks=count_backtracks(response),
    )
