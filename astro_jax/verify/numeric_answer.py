"""The verifier of problems whose answer is a number (task "number").

The answer stands behind the last "the answer is", \\boxed{ or "####": the number there, behind the last "=" of its line
or box. A number that goes on in another notation, as 10^5 and 2\\sqrt{3} do, is no answer, and an earlier marker never
counts in the place of the last. If a response has no marker, the answer is its last number. A number is matched, never
evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction

from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Verdict
from astro_jax.verify import equations
from astro_jax.verify.answer import MAX_CHARACTERS, braced
from astro_jax.verify.number import FRACTION, NUMBER, parse, parse_latex

_MARKER = re.compile(r"answer is|\\boxed\s*(?=(\{))|####", re.IGNORECASE)
_BEFORE = r"[\s:*$\\(]*([-−]?)\$?"  # what may stand before a number
_FIRST = re.compile(
    rf"{_BEFORE}({FRACTION})"
    r"(?![\d.,^:/*×x]*\d|\s\d{3}(?!\d)|\s*[*×x^/]\s*[\d({\\]|\s*\\(?:sqrt|frac|pi|times|cdot|div))"
)


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response (tasks.verify). A valid response gives an answer, and its equations are true (equations)."""
    value = read(response) if stopped else None
    return Verdict(
        correct=value is not None and value == parse(problem.answer),
        valid=value is not None and not equations.find_false(response),
        answer=None if value is None else str(value),
        backtracks=count_backtracks(response),
    )


def read(response: str) -> Fraction | None:
    """Read the answer of a response; None if it has none."""
    if markers := [*_MARKER.finditer(response)]:
        last = markers[-1]
        text = braced(response, last.end()) if last[1] else response[last.end() :].split("\n", 1)[0]
        return None if text is None else _read(text[: 2 * MAX_CHARACTERS].rpartition("=")[2])
    numbers = NUMBER.findall(response)
    return parse(numbers[-1]) if numbers else None


def _read(text: str) -> Fraction | None:
    """Read the number with which a text begins, or its only number."""
    if (value := parse_latex(text)) is not None:
        return value
    if match := _FIRST.match(text):
        value = parse(match[2])
        return value if value is None or not match[1] else -value
    numbers = NUMBER.findall(text)
    return parse(numbers[0]) if len(numbers) == 1 and not re.match(rf"{_BEFORE}[\d\\]", text) else None
