"""The verifier of problems whose answer is a number: what the response gives as its answer is read and compared.

The answer is the number of the last "the answer is NUMBER" or \\boxed{NUMBER}; in a response without either, the last
number. Nothing is evaluated: a number is matched, and has at most 30 characters.
"""

from __future__ import annotations

import re
from fractions import Fraction

from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Verdict

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,20})(?:\.\d{1,8})?"
_NUMBER = rf"[-−]?{_DIGITS}"
_ONE = re.compile(rf"({_NUMBER})(?:\s*/\s*({_DIGITS}))?")
_MARKED = re.compile(rf"(?:answer is|\\boxed\{{|####)[\s:*$\\(]*({_NUMBER}(?:\s*/\s*{_DIGITS})?)", re.IGNORECASE)
NUMBER = re.compile(rf"(?<![\w.,])({_NUMBER})(?!\w)")
# A sum of two numbers; not the end of a longer one.
_SUM = re.compile(
    rf"(?<![\w.,])(?<![-+*/x×÷] )({_DIGITS})\s*([-+*/x×÷])\s*({_DIGITS})\s*=\s*\$?\s*({_NUMBER})(?![\w%])"
)


def parse(text: str) -> Fraction | None:
    """The exact value of a number as people write it: 1,200 or -3.5 or 3/4; None where it is none."""
    match = _ONE.fullmatch(text.strip())
    if match is None:
        return None
    top, bottom = (Fraction((part or "1").replace(",", "").replace("−", "-")) for part in match.groups())
    return top / bottom if bottom else None


def calculate(a: Fraction, op: str, b: Fraction) -> Fraction | None:
    """a op b; None where there is none."""
    if op == "/":
        return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """See verify.verify. A response is valid when it gives an answer and every sum of two numbers in it is true."""
    found = [*_MARKED.finditer(response)] or [*NUMBER.finditer(response)]
    value = parse(found[-1][1]) if stopped and found else None
    return Verdict(
        correct=value is not None and value == parse(problem.answer),
        valid=value is not None and all(map(_true, _SUM.finditer(response))),
        answer=None if value is None else str(value),
        backtracks=count_backtracks(response),
    )


def _true(match: re.Match[str]) -> bool:
    """Whether a sum is true; a quotient may be rounded or cut to the places that are written."""
    a, b, said = (parse(match[i]) for i in (1, 3, 4))
    assert a is not None and b is not None and said is not None
    op = {"x": "*", "×": "*", "÷": "/"}.get(match[2], match[2])
    result, places = calculate(a, op, b), len(match[4].partition(".")[2])
    if result is None or op != "/":
        return result == said
    return abs(result - said) < Fraction(1, 10**places)
