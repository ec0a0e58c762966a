"""The verifier of problems whose answer is a number (task "number").

The answer is the number of the last "the answer is NUMBER", \\boxed{NUMBER} or "#### NUMBER". If a response has none of
these, the answer is its last number. A number is matched, never evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction

from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Verdict
from astro_jax.verify.number import FRACTION, NUMBER, SIGNED, UNSIGNED, calculate, parse

_MARKED = re.compile(rf"(?:answer is|\\boxed\{{|####)[\s:*$\\(]*({FRACTION})", re.IGNORECASE)
# An equation of two operands, but not the end of a longer equation.
_EQUATION = re.compile(
    rf"(?<![\w.,])(?<![-+*/x×÷] )({UNSIGNED})\s*([-+*/x×÷])\s*({UNSIGNED})\s*=\s*\$?\s*({SIGNED})(?![\w%])"
)


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response (tasks.verify). A valid response gives an answer, and its equations of two operands are true."""
    matches = [*_MARKED.finditer(response)] or [*NUMBER.finditer(response)]
    value = parse(matches[-1][1]) if stopped and matches else None
    return Verdict(
        correct=value is not None and value == parse(problem.answer),
        valid=value is not None and not false_equations(response),
        answer=None if value is None else str(value),
        backtracks=count_backtracks(response),
    )


def false_equations(text: str) -> list[str]:
    """Find the equations of two operands that are false: "3 + 4 = 8"."""
    return [match[0] for match in _EQUATION.finditer(text) if not _is_true(match)]


def _is_true(match: re.Match[str]) -> bool:
    """Check an equation. A quotient may be rounded or cut to the written decimal places."""
    a, b, written = (parse(match[i]) for i in (1, 3, 4))
    assert a is not None and b is not None and written is not None
    op = {"x": "*", "×": "*", "÷": "/"}.get(match[2], match[2])
    result, places = calculate(a, op, b), len(match[4].partition(".")[2])
    if result is None or op != "/":
        return result == written
    return abs(result - written) < Fraction(1, 10**places)
